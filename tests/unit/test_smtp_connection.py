"""Tests for twisted_mta.net.smtp_client that need no delivery around it."""

from __future__ import annotations

import base64
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp.client import Login, SmtpClient, State, TlsUse, TransactionDone
from twisted_mta.core.smtp.transaction import Transaction
from twisted_mta.core.smtp.whole import Whole
from twisted_mta.net.scram_client import ScramHelper
from twisted_mta.net.smtp_client import (
    LINGER,
    OpportunisticTls,
    SessionError,
    SmtpConnection,
    opportunistic_context,
)
from twisted_mta.store.threads import InlineWorkers

CREATOR = OpportunisticTls(opportunistic_context(), "mx.test")


class Transport(StringTransport):
    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class ConnectionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.connection = SmtpConnection(SmtpClient("me.test", tls=TlsUse.NEVER), self.clock, CREATOR)
        self.transport = Transport()
        self.ended: list[Any] = []
        self.connection.on_end = self.ended.append
        self.connection.makeConnection(self.transport)

    def lose(self, error: Exception) -> str:
        self.connection.connectionLost(Failure(error))
        self.assertEqual(self.ended, [self.connection])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return self.failureResultOf(self.connection.ready, SessionError).value.reply.text

    def test_why_it_was_lost(self) -> None:
        self.assertEqual(self.lose(ConnectionDone()), "lost the connection, waiting for greeting")

    def test_lost_uncleanly(self) -> None:
        self.assertIn("non-clean fashion", self.lose(ConnectionLost()))

    def test_lost_by_tls(self) -> None:
        text = self.lose(SSL.Error([("SSL routines", "", "wrong version number"), ("x", "y", "z")]))
        self.assertTrue(text.endswith("(TLS: wrong version number, z)"), text)

    def test_lost_by_tls_without_details(self) -> None:
        self.assertTrue(
            self.lose(SSL.SysCallError(-1, "Unexpected EOF")).endswith("(TLS: (-1, 'Unexpected EOF'))")
        )

    def test_lost_by_tls_in_silence(self) -> None:
        self.assertTrue(self.lose(SSL.ZeroReturnError()).endswith("(TLS: the handshake failed)"))

    def test_a_peer_that_does_not_close_is_cut_off(self) -> None:
        self.connection.dataReceived(b"554 no\r\n")
        self.assertEqual(self.transport.value(), b"QUIT\r\n")
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(
            self.failureResultOf(self.connection.ready, SessionError).value.state, State.GREETING
        )
        self.clock.advance(LINGER)
        self.assertTrue(self.transport.aborted)

    def test_timeout_cuts_at_once(self) -> None:
        self.clock.advance(300)
        self.assertTrue(self.transport.aborted)
        self.failureResultOf(self.connection.ready, SessionError)

    def test_nobody_waits_any_more(self) -> None:
        self.connection.ready.cancel()
        self.assertTrue(self.transport.aborted)
        self.failureResultOf(self.connection.ready, CancelledError)
        self.connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def log_in(self, workers: InlineWorkers) -> None:
        """Up to the server's first message of SCRAM."""
        scram = ScramHelper(workers, lambda size: bytes(size))
        core = SmtpClient("me.test", login=Login("me", "secret"), nonces=scram.nonce)
        core.secured()
        self.connection = SmtpConnection(core, self.clock, CREATOR, scram)
        self.connection.makeConnection(self.transport)
        self.connection.dataReceived(b"220 mx\r\n250-mx\r\n250 AUTH SCRAM-SHA-256\r\n")
        self.transport.clear()
        first = base64.b64encode(b"r=" + scram.nonce() + b"x,s=c2FsdA==,i=4096")
        self.connection.dataReceived(b"334 " + first + b"\r\n")

    def test_keys_for_scram(self) -> None:
        self.log_in(InlineWorkers())
        self.assertTrue(base64.b64decode(self.transport.value()).startswith(b"c=biws,r=AAAA"))
        self.assertNoResult(self.connection.ready)

    def test_keys_that_can_not_be_computed(self) -> None:
        class Broken(InlineWorkers):
            def run(self, function: Any, *args: Any, **kwargs: Any) -> Any:
                return fail(RuntimeError("no thread"))

        self.log_in(Broken())
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        error = self.failureResultOf(self.connection.ready, SessionError).value
        self.assertEqual(
            (error.state, str(error.reply)),
            (State.DERIVING, "451 4.3.0 the keys for SCRAM can't be computed"),
        )
        self.assertTrue(self.transport.disconnecting)

    def ready(self) -> None:
        self.connection.dataReceived(b"220 mx\r\n250-mx\r\n250 PIPELINING\r\n")
        self.successResultOf(self.connection.ready)
        self.transport.clear()

    def send(self, name: str, whole: bytes | None = b"text\r\n") -> Deferred[TransactionDone]:
        async def read() -> bytes:
            raise AssertionError("not asked for")

        message = Transaction(sender=None, recipients=(Recipient(Address(name, "x.test")),), size=6)
        return self.connection.send(message, read, None if whole is None else Whole(whole))

    def test_the_next_transaction_leaves_with_the_message_before(self) -> None:
        self.ready()
        one, two, three = self.send("one"), self.send("two"), self.send("three")
        self.assertEqual(self.transport.value(), b"MAIL FROM:<>\r\nRCPT TO:<one@x.test>\r\nDATA\r\n")
        self.transport.clear()
        self.connection.dataReceived(b"250 ok\r\n250 ok\r\n354 go\r\n")
        written = self.transport.value()
        self.assertEqual(written, b"text\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<two@x.test>\r\nDATA\r\n")
        self.transport.clear()
        self.connection.dataReceived(b"250 2.0.0 taken\r\n250 ok\r\n250 ok\r\n354 go\r\n")
        self.assertEqual(self.successResultOf(one).replies, (Reply(250, "2.0.0", "taken"),))
        written = self.transport.value()
        self.assertEqual(written, b"text\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<three@x.test>\r\nDATA\r\n")
        self.connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.successResultOf(two).doubtful, {0})
        self.assertEqual(self.successResultOf(three).undecided, {0})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_whoever_hears_of_an_end_may_send_or_quit_at_once(self) -> None:
        self.ready()
        self.send("one").addCallback(lambda _: self.send("two").addCallback(lambda _: self.connection.quit()))
        for _ in range(2):
            self.transport.clear()
            self.connection.dataReceived(b"250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n")
        self.assertEqual(self.transport.value(), b"text\r\n.\r\nQUIT\r\n")
        self.connection.connectionLost(Failure(ConnectionDone()))

    def test_what_waits_when_the_session_ends_was_not_sent(self) -> None:
        self.ready()
        one, two = self.send("one"), self.send("two")
        self.connection.dataReceived(b"421 bye\r\n")
        self.assertEqual(self.successResultOf(one).undecided, {0})
        self.assertEqual(self.successResultOf(two).undecided, {0})
        self.connection.connectionLost(Failure(ConnectionDone()))

    def test_an_address_that_fits_into_no_command(self) -> None:
        self.ready()
        broken, fine = self.send('"\r\nDATA'), self.send("fine")
        self.failureResultOf(broken, ValueError)
        self.assertEqual(self.transport.value(), b"MAIL FROM:<>\r\nRCPT TO:<fine@x.test>\r\nDATA\r\n")
        self.connection.connectionLost(Failure(ConnectionDone()))
        self.successResultOf(fine)

    def test_time_is_counted_from_the_last_reply(self) -> None:
        self.ready()
        done = self.send("one")
        self.clock.advance(200)
        self.connection.dataReceived(b"250 ok\r\n")
        self.clock.advance(200)
        self.connection.dataReceived(b"25")  # a part of a reply is no progress
        self.assertFalse(self.transport.aborted)
        self.clock.advance(100)
        self.assertTrue(self.transport.aborted)
        self.assertEqual(self.successResultOf(done).undecided, {0})

    def test_name_for_the_server(self) -> None:
        """RFC 6066 §3: no SNI with an IP address."""
        named = CREATOR.clientConnectionForTLS(None)  # type: ignore[arg-type]
        bare = OpportunisticTls(opportunistic_context(), "").clientConnectionForTLS(None)  # type: ignore[arg-type]
        self.assertEqual((named.get_servername(), bare.get_servername()), (b"mx.test", None))

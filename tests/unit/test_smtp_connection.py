"""Tests for twisted_mta.net.smtp_client that need no delivery around it."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.smtp.client import SmtpClient, State, TlsUse
from twisted_mta.net.smtp_client import (
    LINGER,
    OpportunisticTls,
    SessionError,
    SmtpConnection,
    opportunistic_context,
)

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

    def test_name_for_the_server(self) -> None:
        """RFC 6066 §3: no SNI with an IP address."""
        named = CREATOR.clientConnectionForTLS(None)  # type: ignore[arg-type]
        bare = OpportunisticTls(opportunistic_context(), "").clientConnectionForTLS(None)  # type: ignore[arg-type]
        self.assertEqual((named.get_servername(), bare.get_servername()), (b"mx.test", None))

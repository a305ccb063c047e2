"""net.pop3: sessions over an in-memory transport, with mailboxes in memory."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.pop3.server import Pop3Server, Pop3Settings
from twisted_mta.core.sasl import Claim, Credentials, Proof, Secret
from twisted_mta.interfaces import Account, AuthenticationUnavailable, MailboxError
from twisted_mta.net.pop3 import Pop3Handler, pop3_session
from twisted_mta.net.session import Session, SessionFactory
from twisted_mta.testing.mailboxes import MemoryMailboxes
from twisted_mta.testing.scram import known_secret

ALICE = Account("alice@example.test", "/nowhere")
ONE = b"Subject: one\r\n\r\n.first\r\n"


class Passwords:
    async def authenticate(self, claim: Claim, client: object) -> Account | None:
        if claim.login == "busy":
            raise AuthenticationUnavailable("too many logins")
        if isinstance(claim, Proof):
            return ALICE if claim.right and claim.login == "alice" else None
        return ALICE if claim == Credentials("alice", b"secret") else None

    async def secret(self, login: str, client: object) -> Secret:
        if login == "busy":
            raise AuthenticationUnavailable("too many logins")
        return known_secret(login)


@attrs.define
class Client:
    """The other end of one session."""

    session: Session
    handler: Pop3Handler
    transport: StringTransport

    def say(self, *lines: str) -> list[str]:
        self.transport.clear()
        self.session.dataReceived("".join(f"{line}\r\n" for line in lines).encode())
        return self.heard()

    def heard(self) -> list[str]:
        return self.transport.value().decode().split("\r\n")[:-1]


class Pop3SessionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.mailboxes = MemoryMailboxes()
        self.store = self.mailboxes.of(ALICE)

    def connect(self, login: bool = True) -> Client:
        core = Pop3Server(Pop3Settings(hostname="mx.example.test"))
        core.secured()
        handler = Pop3Handler(self.mailboxes, Passwords(), "192.0.2.1")
        session = Session(core, handler, self.clock)
        factory = SessionFactory(lambda _: session, b"")
        client = Client(session, handler, StringTransport())
        factory.buildProtocol(None)
        session.makeConnection(client.transport)
        if login:
            self.assertTrue(client.say("USER alice", "PASS secret")[-1].startswith("+OK"))
        return client

    def lose(self, client: Client) -> None:
        client.session.connectionLost()

    def test_read_and_delete(self) -> None:
        self.store.deliver(ONE)
        self.store.deliver(b"Subject: two\r\n\r\n")
        client = self.connect()
        self.assertEqual(client.say("STAT"), [f"+OK 2 {len(ONE) + 16}"])
        self.assertEqual(client.say("RETR 1"), [f"+OK {len(ONE)} octets", "Subject: one", "", "..first", "."])
        self.assertEqual(client.say("TOP 1 0")[1:], ["Subject: one", "", "."])
        self.assertEqual(client.say("UIDL 2"), ["+OK 2 m2"])
        self.assertEqual(client.say("DELE 1", "QUIT")[-1], "+OK Bye")
        self.assertTrue(client.transport.disconnecting)
        self.lose(client)
        self.assertEqual(self.connect().say("STAT"), ["+OK 1 16"])

    def test_nothing_is_deleted_without_quit(self) -> None:
        self.store.deliver(ONE)
        client = self.connect()
        client.say("DELE 1")
        self.lose(client)
        self.assertEqual(self.connect().say("STAT"), [f"+OK 1 {len(ONE)}"])

    def test_two_sessions_do_each_other_no_harm(self) -> None:
        self.store.deliver(ONE)
        self.store.deliver(ONE)
        first, second = self.connect(), self.connect()
        first.say("DELE 1", "QUIT")
        self.assertEqual(second.say("STAT"), [f"+OK 2 {2 * len(ONE)}"])
        self.assertEqual(second.say("RETR 1"), ["-ERR the message is gone"])
        self.assertEqual(second.say("RETR 2")[0], f"+OK {len(ONE)} octets")
        self.assertEqual(second.say("DELE 1", "DELE 2", "QUIT")[-1], "+OK Bye")
        self.assertEqual(self.connect().say("STAT"), ["+OK 0 0"])

    def test_passwords_can_not_be_checked_just_now(self) -> None:
        client = self.connect(login=False)
        self.assertEqual(client.say("USER busy", "PASS x")[-1], "-ERR [SYS/TEMP] too many logins")

    def test_login_refused(self) -> None:
        client = self.connect(login=False)
        self.assertEqual(client.say("USER alice", "PASS wrong")[-1], "-ERR [AUTH] Login or password is wrong")
        self.store.knobs.errors["open"] = MailboxError("the mailbox can't be used just now")
        self.assertEqual(
            client.say("USER alice", "PASS secret")[-1],
            "-ERR [SYS/TEMP] the mailbox can't be used just now",
        )

    def test_update_fails(self) -> None:
        self.store.deliver(ONE)
        client = self.connect()
        self.store.knobs.errors["remove"] = MailboxError("there is no room on the disk")
        self.assertEqual(
            client.say("DELE 1", "QUIT")[-1],
            "-ERR [SYS/TEMP] Deleted messages were not removed: there is no room on the disk",
        )
        self.assertTrue(client.transport.disconnecting)

    def test_a_large_message_waits_for_a_slow_reader(self) -> None:
        message = b"Subject: large\r\n\r\n" + b"x" * 200_000 + b"\r\n"
        self.store.deliver(message)
        client = self.connect()
        client.transport.clear()
        client.session.pauseProducing()
        client.session.dataReceived(b"RETR 1\r\n")
        self.assertLess(len(client.transport.value()), 70_000)
        client.session.resumeProducing()
        self.assertEqual(client.transport.value(), b"+OK %d octets\r\n%s.\r\n" % (len(message), message))

    def test_a_pipeline_of_listings_waits_for_a_slow_reader(self) -> None:
        for _ in range(100):
            self.store.deliver(ONE)
        client = self.connect()
        client.transport.clear()
        write = client.transport.write
        client.transport.write = lambda data: (write(data), client.session.pauseProducing())  # type: ignore[method-assign]
        client.session.dataReceived(b"LIST\r\n" * 100)
        for number in range(1, 101):
            self.assertEqual(client.transport.value().count(b"\r\n.\r\n"), number)
            client.session.resumeProducing()

    def test_a_reader_that_leaves_amid_a_message(self) -> None:
        self.store.deliver(b"x" * 200_000)
        client = self.connect()
        client.session.pauseProducing()
        client.session.dataReceived(b"RETR 1\r\n")
        self.lose(client)
        self.assertEqual(self.store.knobs.calls["close"], 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_mailbox_is_closed_with_the_connection(self) -> None:
        client = self.connect()
        self.store.knobs.errors["close"] = RuntimeError("a bug")
        self.lose(client)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_peer_that_leaves_during_login(self) -> None:
        self.store.knobs.gates["open"] = gate = Deferred[None]()
        client = self.connect(login=False)
        client.say("USER alice", "PASS secret")
        self.lose(client)
        gate.callback(None)
        self.assertNotIn("close", self.store.knobs.calls)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_timeouts(self) -> None:
        client = self.connect(login=False)
        client.transport.clear()
        self.clock.advance(61)
        self.assertTrue(client.transport.disconnecting)
        self.assertEqual(client.heard(), [])
        client = self.connect()
        self.clock.advance(599)
        self.assertFalse(client.transport.disconnecting)
        self.clock.advance(2)
        self.assertTrue(client.transport.disconnecting)

    def test_a_dribbled_command(self) -> None:
        """A command has its time, however many octets come."""
        client = self.connect()
        for _ in range(5):
            self.clock.advance(500)
            client.say("NOOP")
        for _ in range(5):
            self.clock.advance(100)
            client.session.dataReceived(b"x")
        self.assertFalse(client.transport.disconnecting)
        self.clock.advance(100)
        self.assertTrue(client.transport.disconnecting)

    def test_a_bug_in_the_mailbox_is_told_as_such(self) -> None:
        self.store.deliver(ONE)
        client = self.connect()
        self.store.knobs.errors["read"] = RuntimeError("a bug")
        self.assertEqual(client.say("RETR 1"), ["-ERR [SYS/TEMP] Something went wrong here; try again later"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_session_without_tls_offers_none(self) -> None:
        def session(tls: Any) -> list[bytes]:
            made = pop3_session(
                Pop3Settings(hostname="mx.example.test"),
                self.mailboxes,
                Passwords(),
                "192.0.2.1",
                self.clock,
                tls=tls,
            )
            transport = StringTransport()
            made.makeConnection(transport)
            made.dataReceived(b"CAPA\r\n")
            return transport.value().split(b"\r\n")

        self.assertNotIn(b"STLS", session(None))
        self.assertIn(b"STLS", session(object()))

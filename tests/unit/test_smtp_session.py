"""net.smtp on a transport, under a Clock: how long a client may take, and for whom it may speak."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from twisted_mta.core.envelope import Envelope
from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl import Claim
from twisted_mta.core.smtp.settings import Audience, Role, ServerSettings
from twisted_mta.core.smtp.states import Times
from twisted_mta.interfaces import Account, IMessageSink, Peer
from twisted_mta.net.session import SessionFactory
from twisted_mta.net.smtp import smtp_session

OK = Reply(250, "2.0.0", "OK")
ALICE, BOB = Account("alice@b", "/alice"), Account("bob@b", "/bob")


@implementer(IMessageSink)
class Sink:
    aborted = False

    def write(self, data: bytes) -> None:
        return None

    async def finish(self) -> Reply:
        return OK

    def abort(self) -> None:
        self.aborted = True


class Reception:
    """Takes everything."""

    def __init__(self) -> None:
        self.sinks: list[Sink] = []

    def connected(self, peer: Peer) -> None:
        return None

    helo = connected

    def mail(self, *_: Any) -> Reply:
        return OK

    rcpt = mail

    def verify(self, peer: Peer, argument: str) -> Reply:
        return Reply(250, "2.1.5", f"<{argument}>")

    def account(self, login: str) -> Account | None:
        return ALICE if login == "alice" else None

    async def authenticate(self, peer: Peer, claim: Claim) -> Account | None:
        return BOB

    def message(self, peer: Peer, envelope: Envelope) -> Sink:
        self.sinks.append(Sink())
        return self.sinks[-1]


class SessionTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.reception: Any = Reception()

    def connect(self, **settings: Any) -> None:
        """A session of a client for which the network 192.0.2.0/24 is trusted."""
        self.peer = Peer(address="192.0.2.1", port=1)
        made = smtp_session(
            ServerSettings(hostname="mx", trusted=True, **settings),
            self.reception,
            self.peer,
            self.clock,
            trusts=lambda address: address.startswith("192.0.2."),
        )
        self.session: Any = SessionFactory(lambda _: made, b"").buildProtocol(
            IPv4Address("TCP", "192.0.2.1", 1)
        )
        self.transport = StringTransport()
        self.session.makeConnection(self.transport)
        self.transport.clear()

    def say(self, *lines: bytes) -> list[str]:
        """The codes of the replies."""
        self.transport.clear()
        self.session.dataReceived(b"".join(line + b"\r\n" for line in lines))
        return [line[:3] for line in self.transport.value().decode().splitlines() if line[3:4] == " "]

    def dribble(self, seconds: int, octet: bytes = b"x") -> None:
        """An octet every five seconds: never silent for long."""
        for _ in range(seconds // 5):
            self.clock.advance(5)
            self.session.dataReceived(octet)

    def cut_off(self) -> bool:
        """Whether the client was told that it took too long."""
        told = self.transport.value().endswith(b"421 4.4.2 mx Timeout, closing the connection\r\n")
        self.assertEqual(told, self.transport.disconnecting)
        return told


class PhaseTests(SessionTestCase):
    """Each phase of RFC 5321 §4.5.3.2 has its time."""

    def setUp(self) -> None:
        super().setUp()
        times = Times(command=60, block=20, message=300, login=30)
        self.connect(times=times, role=Role.SUBMISSION)
        self.session._core.secured()

    def test_silence(self) -> None:
        envelope = [b"AUTH PLAIN AGIAYg==", b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>"]
        for commands, seconds in (
            ([], 60),
            ([b"EHLO x"], 60),
            ([b"EHLO x", b"AUTH LOGIN"], 30),
            ([b"EHLO x", b"AUTH LOGIN", b"Yg=="], 30),
            ([b"EHLO x", *envelope], 60),
            ([b"EHLO x", *envelope, b"DATA"], 20),
            ([b"EHLO x", *envelope, b"DATA", b"text"], 20),
            ([b"EHLO x", *envelope, b"BDAT 10", b"ab"], 20),
            ([b"EHLO x", *envelope, b"BDAT 4", b"ab"], 60),
            ([b"EHLO x", *envelope, b"BDAT 4", b"abBDAT 3", b"aRSET"], 60),
        ):
            self.setUp()
            self.say(*commands)
            self.clock.advance(seconds - 1)
            self.assertFalse(self.cut_off(), commands)
            self.clock.advance(1)
            self.assertTrue(self.cut_off(), commands)

    def test_a_dribbled_command(self) -> None:
        self.say(b"EHLO x")
        self.dribble(55)
        self.assertFalse(self.cut_off())
        self.dribble(5)
        self.assertTrue(self.cut_off())

    def test_each_command_has_its_time(self) -> None:
        for _ in range(5):
            self.dribble(50)
            self.assertEqual(self.say(b""), ["500"])

    def test_a_dribbled_login(self) -> None:
        """The lines of one exchange share its time; the next has it anew."""
        self.say(b"EHLO x", b"AUTH LOGIN")
        self.dribble(20)
        self.say(b"AGI=")
        self.dribble(5)
        self.assertEqual(self.say(b"*"), ["501"])
        self.say(b"AUTH LOGIN")
        self.dribble(25)
        self.assertFalse(self.cut_off())
        self.dribble(5)
        self.assertTrue(self.cut_off())

    def test_chunks_share_the_time_of_the_message(self) -> None:
        self.say(b"EHLO x", b"AUTH PLAIN AGIAYg==", b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>")
        for _ in range(9):
            self.assertEqual(self.say(b"BDAT 2", b""), ["250"])
            self.clock.advance(30)
            self.assertEqual(self.say(b"NOOP"), ["250"])
        self.clock.advance(30)
        self.assertTrue(self.cut_off())


class VrfyTests(SessionTestCase):
    def test_who_may_ask(self) -> None:
        for audience, code in (
            ("nobody", "252"),
            ("logged-in", "252"),
            ("trusted", "250"),
            ("anyone", "250"),
        ):
            self.connect(vrfy=Audience(audience))
            self.assertEqual(self.say(b"EHLO x", b"VRFY bob")[-1], code, audience)


class XclientTests(SessionTestCase):
    def test_a_login(self) -> None:
        """It counts as one, until it is taken back, or another client is named who logs in by itself."""
        self.connect(xclient=True, role=Role.SUBMISSION)
        self.assertEqual(self.say(b"EHLO x", b"MAIL FROM:<a@b>"), ["250", "530"])
        self.assertEqual(self.say(b"XCLIENT LOGIN=alice ADDR=198.51.100.7"), ["220"])
        self.assertEqual((self.peer.account, self.peer.address), (ALICE, "198.51.100.7"))
        self.assertEqual(self.say(b"EHLO x", b"MAIL FROM:<a@b>", b"RSET"), ["250", "250", "250"])
        self.say(b"XCLIENT ADDR=198.51.100.8")
        self.assertIs(self.peer.account, ALICE)
        self.say(b"XCLIENT LOGIN=[UNAVAILABLE]")
        self.assertIsNone(self.peer.account)
        self.assertEqual(self.say(b"EHLO x", b"MAIL FROM:<a@b>"), ["250", "530"])

    def test_the_log_names_who_speaks(self) -> None:
        self.connect(xclient=True)
        with capturedLogs() as logs:
            self.say(b"XCLIENT ADDR=198.51.100.7", b"XCLIENT ADDR=198.51.100.8")
        said = [(event["peer"], event["client"]) for event in logs if "client" in event]
        self.assertEqual(said, [("192.0.2.1", "198.51.100.7"), ("192.0.2.1", "198.51.100.8")])

    def test_an_unknown_login(self) -> None:
        """Nothing of that XCLIENT counts."""
        self.connect(xclient=True)
        self.assertEqual(self.say(b"XCLIENT LOGIN=bob ADDR=198.51.100.7"), ["550"])
        self.assertEqual((self.peer.account, self.peer.address), (None, "192.0.2.1"))

    def test_the_login_of_the_one_that_speaks(self) -> None:
        self.connect(xclient=True, role=Role.SUBMISSION)
        self.session._core.secured()
        self.assertEqual(self.say(b"EHLO x", b"AUTH PLAIN AGIAYg=="), ["250", "235"])
        self.assertIs(self.peer.account, BOB)
        self.say(b"XCLIENT ADDR=192.0.2.9")
        self.assertIsNone(self.peer.account)

    def test_tls_forgets_it(self) -> None:
        self.connect(xclient=True)
        self.say(b"XCLIENT LOGIN=alice")
        self.session._handler.secured("TLSv1.3")
        self.say(b"XCLIENT PORT=1")
        self.assertIsNone(self.peer.account)

    def test_trust_goes_by_the_client_that_was_named(self) -> None:
        self.connect(xclient=True, vrfy=Audience.TRUSTED)
        for address, code in ((b"198.51.100.7", "252"), (b"192.0.2.7", "250")):
            self.say(b"XCLIENT ADDR=" + address)
            self.assertEqual(self.say(b"EHLO x", b"VRFY bob")[-1], code)
        self.assertEqual(self.say(b"XCLIENT ADDR=x"), ["501"])


class MessageTimeTests(SessionTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.connect(times=Times(command=10, block=10, message=60))
        self.session.dataReceived(b"HELO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
        self.transport.clear()

    def test_who_dribbles_is_cut_off(self) -> None:
        self.dribble(55)
        self.assertEqual(self.transport.value(), b"")
        self.dribble(5)
        self.assertEqual(self.transport.value(), b"421 4.4.2 mx Timeout, closing the connection\r\n")
        self.assertTrue(self.transport.disconnecting)
        self.session.connectionLost()
        self.assertTrue(self.reception.sinks[0].aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_time_is_for_one_message(self) -> None:
        self.dribble(50)
        self.session.dataReceived(b"\r\n.\r\n")
        self.assertEqual(self.transport.value(), OK.encode())
        for _ in range(10):
            self.clock.advance(5)
            self.session.dataReceived(b"NOOP\r\n")
        self.assertFalse(self.transport.disconnecting)
        self.session.connectionLost()

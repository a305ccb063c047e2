"""net.smtp on a transport, under a Clock: how long a client may take."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from twisted_mta.core.envelope import Envelope
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp.settings import ServerSettings
from twisted_mta.interfaces import IMessageSink, Peer
from twisted_mta.net.session import SessionFactory
from twisted_mta.net.smtp import smtp_session

OK = Reply(250, "2.0.0", "OK")


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

    def message(self, peer: Peer, envelope: Envelope) -> Sink:
        self.sinks.append(Sink())
        return self.sinks[-1]


class MessageTimeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.reception: Any = Reception()
        peer = Peer(address="192.0.2.1", port=1)
        settings = ServerSettings(hostname="mx")
        factory = SessionFactory(
            lambda _: smtp_session(settings, self.reception, peer, self.clock, idle=10, message_time=60), b""
        )
        self.session: Any = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
        self.transport = StringTransport()
        self.session.makeConnection(self.transport)
        self.session.dataReceived(b"HELO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
        self.transport.clear()

    def dribble(self, seconds: int) -> None:
        """An octet every five seconds: never silent for long."""
        for _ in range(seconds // 5):
            self.clock.advance(5)
            self.session.dataReceived(b"x")

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

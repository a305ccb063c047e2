"""net.session and net.smtp: effects on a transport, under a Clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_network
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.admission import Admission, Bounds
from twisted_mta.core.effects import Ask, BodyChunk, Close, Effect, Pace, Send, StartTLS
from twisted_mta.net.session import Session, SessionFactory


class EchoCore:
    """Each octet is a command: lower case letters are asked about, capitals are body, "." closes, "!" is for TLS, others are
    echoed."""

    def __init__(self) -> None:
        self.buffer = b""
        self.open = False
        self.pace = Pace(10)
        self.begun = 0

    def run(self) -> list[Effect]:
        effects: list[Effect] = []
        while self.buffer and not self.open:
            octet, self.buffer = self.buffer[:1], self.buffer[1:]
            if octet == b"!":
                effects.append(StartTLS())
            elif octet == b".":
                effects += [Send(b"bye"), Close()]
            elif octet.islower():
                self.open = True
                effects.append(Ask(octet))
            elif octet.isupper():
                effects.append(BodyChunk(octet))
            else:
                effects.append(Send(octet))
        return effects

    def greet(self) -> list[Effect]:
        return [Send(b"hi")]

    def receive(self, data: bytes) -> list[Effect]:
        self.buffer += data
        return self.run()

    def answer(self, answer: Any, *, more: bool = False) -> Sequence[Effect]:
        assert self.open
        self.open = more
        return [Send(answer), *self.run()]

    def fault(self) -> Sequence[Effect]:
        self.open = False
        return [Send(b"fault"), *self.run()]

    def secured(self, bindings: object = None) -> list[Effect]:
        return []

    def timed_out(self) -> list[Effect]:
        return [Send(b"timeout"), Close()]

    def shut_down(self) -> list[Effect]:
        return [Send(b"down"), Close()]


class Handler:
    def __init__(self) -> None:
        self.answers: dict[bytes, Any] = {}
        self.chunks: list[bytes] = []
        self.body_waits: Deferred[None] | None = None
        self.closed_calls = 0

    def attached(self, session: Session) -> None:
        self.session = session

    def ask(self, question: bytes) -> Any:
        answer = self.answers.get(question, question * 2)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def body(self, data: bytes) -> Deferred[None] | None:
        self.chunks.append(data)
        return self.body_waits

    def secured(self, tls: str) -> None:
        pass

    def closed(self) -> None:
        self.closed_calls += 1


class Transport(StringTransport):
    """Counts writes, and knows abortConnection."""

    writes = 0
    aborted = False

    def write(self, data: bytes) -> None:
        self.writes += 1
        super().write(data)

    def abortConnection(self) -> None:
        self.aborted = True


class SessionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.handler = Handler()
        bounds = Bounds(total=2, per_address=1)
        self.factory = SessionFactory(
            lambda _: Session(EchoCore(), self.handler, self.clock),
            b"busy",
            Admission(bounds, self.clock.seconds),
        )
        self.session, self.transport = self.connect("192.0.2.1")

    def connect(self, host: str) -> tuple[Any, Transport]:
        protocol = self.factory.buildProtocol(IPv4Address("TCP", host, 1000))
        assert protocol is not None
        transport = Transport()
        protocol.makeConnection(transport)
        return protocol, transport

    def lose(self) -> None:
        from twisted.internet.protocol import connectionDone

        self.session.connectionLost(connectionDone)

    def test_a_batch_leaves_in_one_write(self) -> None:
        self.transport.clear()
        self.transport.writes = 0
        self.session.dataReceived(b"1a2b3")
        self.assertEqual(self.transport.value(), b"1aa2bb3")
        self.assertEqual(self.transport.writes, 1)

    def test_a_late_answer_keeps_the_order(self) -> None:
        answer: Deferred[bytes] = Deferred()
        self.handler.answers[b"a"] = answer
        self.session.dataReceived(b"1a2")
        self.assertEqual(self.transport.value(), b"hi1")
        self.session.dataReceived(b"3b4")
        self.assertEqual(
            self.transport.producerState, "paused", "one more read is buffered, then the peer has to wait"
        )
        answer.callback(b"A")
        self.assertEqual(self.transport.value(), b"hi1A23bb4")
        self.assertEqual(self.transport.producerState, "producing")

    def test_no_timeout_while_it_is_our_turn(self) -> None:
        answer: Deferred[bytes] = Deferred()
        self.handler.answers[b"a"] = answer
        self.session.dataReceived(b"a")
        self.clock.advance(100)
        self.assertEqual(self.transport.value(), b"hi")
        answer.callback(b"A")
        self.clock.advance(9)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(1)
        self.assertEqual(self.transport.value(), b"hiAtimeout")
        self.assertTrue(self.transport.disconnecting)

    def test_a_peer_that_does_not_read_is_cut_off(self) -> None:
        self.session.pauseProducing()
        self.clock.advance(10)
        self.assertTrue(self.transport.aborted)

    def test_dribbling_does_not_help(self) -> None:
        """All of one thing has a time; the next thing has it anew."""
        core = self.session._core
        core.pace = Pace(10, 25, "a command")
        self.session.dataReceived(b"1")
        for _ in range(4):
            self.clock.advance(6)
            self.session.dataReceived(b"2")
        core.begun += 1
        for _ in range(4):
            self.session.dataReceived(b"3")
            self.clock.advance(6)
        self.session.dataReceived(b"4")
        self.clock.advance(0.9)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(0.1)
        self.assertEqual(self.transport.value(), b"hi1222233334timeout")
        self.assertTrue(self.transport.disconnecting)

    def test_our_time_is_not_the_peers(self) -> None:
        """Neither that of an answer, nor that in which what we sent has not left."""
        self.session._core.pace = Pace(10, 25, "a message")
        self.handler.answers[b"a"] = answer = Deferred()
        self.session.dataReceived(b"1")
        self.clock.advance(9)
        self.session.dataReceived(b"a")
        self.clock.advance(100)
        answer.callback(b"A")
        self.clock.advance(9)
        self.session.pauseProducing()
        self.clock.advance(9)
        self.session.resumeProducing()
        self.session.dataReceived(b"2")
        self.clock.advance(6.9)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(0.1)
        self.assertTrue(self.transport.disconnecting)

    def test_no_timeout_once_the_peer_reads_again_and_it_is_our_turn(self) -> None:
        self.handler.answers[b"a"] = answer = Deferred()
        self.session.dataReceived(b"a")
        self.session.pauseProducing()
        self.clock.advance(9)
        self.session.resumeProducing()
        self.clock.advance(100)
        self.assertFalse(self.transport.disconnecting)
        answer.callback(b"A")
        self.assertEqual(self.transport.value(), b"hiA")

    def test_faults(self) -> None:
        self.handler.answers[b"a"] = ValueError("at once")
        later: Deferred[bytes] = Deferred()
        self.handler.answers[b"b"] = later
        self.session.dataReceived(b"a1b2")
        later.errback(ValueError("later"))
        self.assertEqual(self.transport.value(), b"hifault1fault2")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_slow_body_sink(self) -> None:
        self.handler.body_waits = Deferred()
        self.session.dataReceived(b"AB1")
        self.assertEqual(self.handler.chunks, [b"A"])
        # Not one read more: a thousand of them would be a lot.
        self.assertEqual(self.transport.producerState, "paused")
        waits, self.handler.body_waits = self.handler.body_waits, None
        waits.callback(None)
        self.assertEqual(self.handler.chunks, [b"A", b"B"])
        self.assertEqual(self.transport.producerState, "producing")
        self.assertEqual(self.transport.value(), b"hi1")

    def test_answer_in_parts_waits_for_the_reader(self) -> None:
        async def parts() -> AsyncIterator[bytes]:
            for part in (b"x", b"y", b"z"):
                yield part

        self.handler.answers[b"a"] = parts()
        self.session.pauseProducing()
        self.session.dataReceived(b"a1")
        self.assertEqual(self.transport.value(), b"hix")
        self.session.resumeProducing()
        self.assertEqual(self.transport.value(), b"hixyz1")

    def test_lost_while_asking(self) -> None:
        answer: Deferred[bytes] = Deferred()
        self.handler.answers[b"a"] = answer
        self.session.dataReceived(b"a1")
        self.lose()
        answer.callback(b"A")
        self.assertEqual(self.transport.value(), b"hi")
        self.assertEqual(self.handler.closed_calls, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nothing_after_close(self) -> None:
        self.session.dataReceived(b"1.2")
        self.session.dataReceived(b"3")
        self.assertEqual(self.transport.value(), b"hi1bye")
        self.assertTrue(self.transport.disconnecting)

    def held(self) -> tuple[Any, Transport]:
        """A session that greets after three seconds."""
        session = Session(EchoCore(), self.handler, self.clock)
        session.hold_greeting(3, lambda: b"early")
        session.factory = self.factory
        transport = Transport()
        session.makeConnection(transport)
        return session, transport

    def test_a_held_greeting(self) -> None:
        session, transport = self.held()
        self.clock.advance(2.9)
        self.assertEqual(transport.value(), b"")
        self.clock.advance(0.1)
        session.dataReceived(b"1")
        self.assertEqual(transport.value(), b"hi1")
        session.connectionLost()

    def test_the_peers_time_begins_with_the_greeting(self) -> None:
        session, transport = self.held()
        self.clock.advance(3)
        self.clock.advance(9.9)
        self.assertEqual(transport.value(), b"hi")
        self.clock.advance(0.1)
        self.assertEqual(transport.value(), b"hitimeout")
        session.connectionLost()

    def test_an_early_talker(self) -> None:
        session, transport = self.held()
        session.dataReceived(b"1")
        session.dataReceived(b"2")
        self.clock.advance(3)
        self.assertEqual(transport.value(), b"early")
        self.assertTrue(transport.disconnecting)
        session.connectionLost()

    def test_the_end_of_a_session_that_was_not_greeted(self) -> None:
        for end in ("connectionLost", "shut_down"):
            session, transport = self.held()
            calls = len(self.clock.getDelayedCalls())
            getattr(session, end)()
            self.clock.advance(3)
            self.assertEqual(transport.value(), b"down" if end == "shut_down" else b"")
            session.connectionLost()
        self.assertLess(len(self.clock.getDelayedCalls()), calls)

    def test_a_session_that_can_not_be_made_is_not_counted(self) -> None:
        def fail(address: object) -> Session:
            raise ValueError("no")

        admission = Admission(Bounds(total=1), self.clock.seconds)
        factory = SessionFactory(fail, b"busy", admission)
        for _ in range(2):
            self.assertRaises(ValueError, factory.buildProtocol, IPv4Address("TCP", "192.0.2.1", 1000))

    def test_limits(self) -> None:
        self.assertEqual(self.connect("192.0.2.1")[1].value(), b"busy")
        self.assertEqual(self.connect("192.0.2.2")[1].value(), b"hi")
        self.assertEqual(self.connect("192.0.2.3")[1].value(), b"busy")
        self.lose()
        self.assertEqual(self.connect("192.0.2.3")[1].value(), b"hi")

    def test_factories_share_their_limits(self) -> None:
        other = SessionFactory(
            lambda _: Session(EchoCore(), Handler(), self.clock), b"other busy", self.factory.admission
        )
        refused, session = (
            other.buildProtocol(IPv4Address("TCP", host, 1000)) for host in ("192.0.2.1", "192.0.2.2")
        )
        assert refused is not None
        transport = Transport()
        refused.makeConnection(transport)
        self.assertEqual(transport.value(), b"other busy")
        self.assertEqual(self.connect("192.0.2.3")[1].value(), b"busy")
        assert isinstance(session, Session)
        session.makeConnection(Transport())
        session.connectionLost()
        self.assertEqual(self.connect("192.0.2.3")[1].value(), b"hi")

    def test_each_service_counts_for_itself(self) -> None:
        admission = self.factory.admission
        admission.bounds = Bounds(total=3, sure={"imap": 1})
        imap = SessionFactory(
            lambda _: Session(EchoCore(), Handler(), self.clock), b"no imap", admission, "imap"
        )
        self.assertEqual(self.connect("192.0.2.1")[1].value(), b"hi")
        self.assertEqual(self.connect("192.0.2.1")[1].value(), b"busy")
        session = imap.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1000))
        assert isinstance(session, Session)
        session.makeConnection(Transport())
        self.assertEqual(admission.open("imap"), 1)
        session.connectionLost()
        self.assertEqual(admission.open("imap"), 0)

    def test_who_becomes_exempt_leaves_as_it_came(self) -> None:
        admission = self.factory.admission
        admission.bounds = Bounds(total=9, per_address=1, exempt=(ip_network("192.0.2.1"),))
        exempt = [self.connect("192.0.2.1") for _ in range(2)]
        self.assertEqual([transport.value() for _, transport in exempt], [b"hi", b"hi"])
        admission.bounds = Bounds(total=9, per_address=1)
        for session, _ in exempt:
            session.connectionLost()
        self.assertEqual(self.connect("192.0.2.1")[1].value(), b"busy")  # the first one is there still
        self.lose()
        self.assertEqual(self.connect("192.0.2.1")[1].value(), b"hi")
        self.assertEqual(admission.total, 1)

    def test_shut_down(self) -> None:
        """The question under way is answered first; who stays is cut off after the grace."""
        answer: Deferred[bytes] = Deferred()
        self.handler.answers[b"a"] = answer
        self.session.dataReceived(b"a")
        done = Deferred.fromCoroutine(self.factory.shut_down(self.clock, 5))
        answer.callback(b"A")
        self.assertEqual(self.transport.value(), b"hiAdown")
        self.assertTrue(self.transport.disconnecting)
        self.clock.advance(5)
        self.assertTrue(self.transport.aborted)
        self.assertNoResult(done)
        self.lose()
        self.successResultOf(done)
        self.successResultOf(Deferred.fromCoroutine(self.factory.shut_down(self.clock)))

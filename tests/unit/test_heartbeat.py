"""Workers that hang: service.heartbeat, crew and channel, with a Clock and without processes."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from twisted_mta.service import channel, crew
from twisted_mta.service.channel import Channel, ChannelClosed, read_line
from twisted_mta.service.crew import Member
from twisted_mta.service.heartbeat import BEAT, NOTEWORTHY, SILENCE, START, Silence, beat, every_beat
from twisted_mta.service.start import StartError
from twisted_mta.service.supervisor import Supervisor
from twisted_mta.service.worker import Orders, Worker
from twisted_mta.testing.world import World

_READY = {"command": "ready", "arguments": {}}
_ALIVE = {"command": "alive", "arguments": {}}


def line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


class Wire(StringTransport):
    """Of a process that reads only if `reads`."""

    #: As a socket's: what waits beyond it is too much for its producer.
    bufferSize = 65536

    def __init__(self, reactor: Reactor, channel: Channel) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reactor = reactor
        self.channel = channel
        self.reads = True

    def write(self, data: bytes) -> None:
        super().write(data)  # type: ignore[no-untyped-call]
        if not self.reads and len(self.value()) > self.bufferSize:
            self.channel.pauseProducing()

    def read(self) -> list[Any]:
        """All that waits."""
        said = self.value()
        self.clear()
        self.channel.resumeProducing()
        return [json.loads(one) for one in said.splitlines()]

    def abortConnection(self) -> None:
        self.reactor.callLater(0, self.channel.connectionLost)


class Descriptor(FileDescriptor):
    """What Twisted's connections are made of; all that may be written is taken."""

    connected = True

    def __init__(self) -> None:
        super().__init__(mock.Mock())
        self.aborted = False

    def writeSomeData(self, data: bytes) -> int:
        return len(data)

    def abortConnection(self) -> None:
        self.aborted = True


class Reactor(Clock):
    """A Clock that adopts sockets, of which it reads what is there already."""

    def __init__(self) -> None:
        super().__init__()
        self.wires: list[Wire] = []

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> None:
        channel = factory.buildProtocol(None)
        wire = Wire(self, channel)
        channel.makeConnection(wire)
        self.wires.append(wire)
        with socket.socket(fileno=os.dup(descriptor)) as end:
            end.setblocking(False)  # where that is not a matter of the descriptor
            try:
                said = end.recv(65536)
            except BlockingIOError:
                return
        if said:
            self.callLater(0, channel.dataReceived, said)


class Process:
    """`deaf` to signals, to SIGKILL too; it ends by SIGKILL else."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.signals: list[int] = []
        self.deaf = False

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        return -signal.SIGKILL if signal.SIGKILL in self.signals and not self.deaf else None


class Case(SynchronousTestCase):
    """A member, `says` is what its first process said before anybody looked."""

    says = line(_READY)

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.processes: list[Process] = []
        self.changes: list[bool] = []
        self.heard: list[str] = []
        self.member = Member(
            1, self.reactor, self.spawn, lambda number: {"text": ""}, {"hello": self.hello}, self.changed
        )

    def start(self) -> None:
        self.member.launch()
        self.member.await_first()
        self.member.watch()
        self.loop = every_beat(self.member.look, self.reactor)

    def spawn(self, number: int, descriptor: int) -> Any:
        end = socket.socket(fileno=os.dup(descriptor))
        self.addCleanup(end.close)
        if not self.processes:
            end.sendall(self.says)
        self.processes.append(Process(100 + len(self.processes)))
        return self.processes[-1]

    async def hello(self, arguments: Any) -> None:
        self.heard.append("hello")

    def changed(self, number: int) -> None:
        self.changes.append(self.member.missing)

    def say(self, message: object) -> None:
        self.reactor.wires[-1].channel.dataReceived(line(message))

    def wait(self, seconds: float, step: float = 1.0) -> None:
        self.reactor.pump([step] * round(seconds / step))

    @property
    def now(self) -> Process:
        return self.processes[-1]


class HangingTests(Case):
    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_one_that_beats_stays(self) -> None:
        for _ in range(100):
            self.wait(SILENCE - 1)
            self.say(_ALIVE)
        self.assertEqual((self.now.signals, self.member.warning, self.changes), ([], "", []))

    def test_one_that_does_not_is_replaced(self) -> None:
        asked = Deferred.fromCoroutine(self.member.ask("status", {}))
        self.wait(SILENCE - 1)
        self.assertEqual(self.now.signals, [])
        self.wait(2)
        # It tells where it hangs, and the others take its place.
        self.assertEqual((self.now.signals, self.changes), ([signal.SIGQUIT], [True]))
        self.assertIn("ended meanwhile", str(self.failureResultOf(asked, ChannelClosed).value))
        self.wait(5)
        first, second = self.processes
        self.assertEqual((first.signals, second.signals), ([signal.SIGQUIT, signal.SIGKILL], []))
        self.assertEqual(self.reactor.wires[-1].read(), [{"text": ""}])
        self.say(_READY)
        self.assertTrue(self.member.up)
        self.assertEqual((self.changes, self.member.restarts), ([True, False], 1))
        assert self.member.last_end is not None
        self.assertEqual(self.member.last_end[1], "by signal 9 (not heard for 60 seconds)")
        self.wait(SILENCE - 2 * BEAT)
        self.assertEqual(second.signals, [])

    def test_an_administrator_is_told(self) -> None:
        self.wait(NOTEWORTHY - 1)
        self.assertEqual(self.member.warning, "")
        with capturedLogs() as logged:
            self.wait(2 * BEAT)
        self.assertEqual(self.member.warning, "worker 1 (process 100) has not been heard for 25 seconds")
        self.assertEqual(
            [formatEvent(event) for event in logged],
            ["worker 1 (process 100) has not been heard for 20 seconds"],
        )
        self.say(_ALIVE)
        self.assertEqual(self.member.warning, "")

    def test_while_the_parent_did_not_run_nobody_hung(self) -> None:
        """The machine slept, and timers are the first that come."""
        for _ in range(5):
            self.reactor.advance(10 * START)
        self.assertEqual(self.now.signals, [])
        self.say(_ALIVE)
        self.wait(SILENCE)
        self.assertEqual(self.now.signals, [])
        self.wait(BEAT)
        self.assertEqual(self.now.signals, [signal.SIGQUIT])

    def test_a_start_has_its_time(self) -> None:
        self.wait(SILENCE + 5)
        self.assertEqual(len(self.processes), 2)
        self.wait(NOTEWORTHY + BEAT)
        self.assertIn("worker 1 (process 101) has been starting for", self.member.warning)
        self.wait(START - NOTEWORTHY - 3 * BEAT)
        self.assertEqual(self.now.signals, [])
        self.wait(2 * BEAT + 5)
        self.assertEqual(self.processes[1].signals, [signal.SIGQUIT, signal.SIGKILL])
        self.assertEqual(len(self.processes), 3)
        assert self.member.last_end is not None
        self.assertEqual(self.member.last_end[1], "by signal 9 (not up for 600 seconds)")

    def test_nobody_takes_the_place_of_one_that_does_not_end(self) -> None:
        """Two processes would have one part of the queue."""
        self.now.deaf = True
        self.wait(SILENCE + 5)
        self.assertEqual(self.member.warning, "")  # it was killed just now
        self.wait(60)
        self.assertIn("worker 1 (process 100) does not end though it was killed", self.member.warning)
        self.wait(3600)
        self.assertEqual(len(self.processes), 1)
        self.now.deaf = False
        self.wait(2)
        self.assertEqual((len(self.processes), self.member.warning), (2, ""))

    def test_one_that_ends_by_itself_is_no_hang(self) -> None:
        self.reactor.wires[-1].channel.connectionLost()
        self.wait(29)
        self.assertEqual(self.now.signals, [])  # it may have something to do yet
        self.wait(3)
        self.assertEqual(self.processes[0].signals, [signal.SIGKILL])
        assert self.member.last_end is not None
        self.assertEqual(self.member.last_end[1], "by signal 9")

    def test_one_that_hangs_when_the_server_stops(self) -> None:
        stopped = Deferred.fromCoroutine(self.member.stop())
        self.wait(30)
        self.assertEqual(self.now.signals, [])
        self.wait(3)
        self.successResultOf(stopped)
        self.assertEqual((self.now.signals, len(self.processes)), ([signal.SIGKILL], 1))


class UnreadTests(Case):
    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.wire = self.reactor.wires[0]
        self.wire.reads = False
        self.patch(channel, "MAX_UNREAD", 1000)

    def fill(self, octets: int) -> None:
        self.member.tell("hello", {"text": "x" * octets})

    def test_one_that_does_not_read_is_replaced(self) -> None:
        self.fill(65536)
        for _ in range(8):
            self.fill(70)
        self.reactor.advance(0)
        self.assertEqual(self.now.signals, [])
        waiting = len(self.wire.value())
        asked = Deferred.fromCoroutine(self.member.ask("status", {}))
        self.fill(70)
        self.fill(70)
        self.assertLessEqual(len(self.wire.value()), waiting + 100)  # and no more is kept for it
        self.reactor.advance(0)
        self.failureResultOf(asked, ChannelClosed)
        self.assertEqual((self.now.signals, self.changes), ([signal.SIGQUIT], [True]))
        self.wait(5)
        self.assertEqual(len(self.processes), 2)
        assert self.member.last_end is not None
        self.assertEqual(self.member.last_end[1], "by signal 9 (it does not read what it is told)")

    def test_what_was_read_counts_no_more(self) -> None:
        for _ in range(20):
            self.fill(65536)
            self.fill(900)
            self.wire.read()
        self.reactor.advance(0)
        self.assertEqual((self.now.signals, self.member.up), ([], True))

    def test_one_message_may_be_long(self) -> None:
        self.fill(1 << 20)
        self.reactor.advance(0)
        self.assertEqual((self.now.signals, self.member.up), ([], True))

    def test_as_twisted_tells_it(self) -> None:
        """A transport says at each write that it has enough, and once when it has nothing more."""
        sent = Descriptor()
        channel = Channel({}, lambda: None)
        channel.makeConnection(sent)
        for _ in range(20):
            channel.tell("hello", {"text": "x" * 70_000})
            channel.tell("hello", {"text": "x" * 900})
            self.assertFalse(channel.clogged)
            while sent.doWrite() is None and sent.dataBuffer:
                pass
        channel.tell("hello", {"text": "x" * 70_000})
        for _ in range(8):
            channel.tell("hello", {"text": "x" * 70})
        self.assertEqual((channel.clogged, sent.aborted), (False, False))
        channel.tell("hello", {"text": "x" * 70})
        self.assertEqual((channel.clogged, sent.aborted, channel.open), (True, True, False))

    def test_the_interface(self) -> None:
        self.assertTrue(verifyObject(IPushProducer, self.wire.channel))
        self.assertIs(self.wire.producer, self.wire.channel)


class FirstStartTests(Case):
    says = line(_READY) + line({"command": "hello", "arguments": {}}) + line(_ALIVE)[:9]

    def test_what_it_says_at_once_is_not_lost(self) -> None:
        """Its clients come before the parent has heard of all workers."""
        self.start()
        self.assertEqual(self.heard, [])
        self.reactor.advance(0)
        self.assertEqual(self.heard, ["hello"])
        self.wait(NOTEWORTHY)
        self.assertTrue(self.member.warning)
        self.reactor.wires[0].channel.dataReceived(line(_ALIVE)[9:])
        self.assertFalse(self.member.warning)

    def test_a_deadline(self) -> None:
        self.says = b""
        self.patch(crew, "START", 0.01)
        with self.assertRaisesRegex(StartError, "worker 1 was not up after"):
            self.start()
        assert self.member._end is not None
        self.member._end.close()


class FirstLineTests(SynchronousTestCase):
    def test_only_the_first_line_is_taken(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            long = {"text": "x" * 100_000}  # more than one reading takes
            theirs.sendall(line(long) + b"rest")
            self.assertEqual(read_line(ours), long)
            self.assertEqual(ours.recv(100), b"rest")
            theirs.sendall(b'{"cut')
            theirs.close()
            self.assertRaises(EOFError, read_line, ours)


class BeatTests(SynchronousTestCase):
    def test_a_worker_beats_at_once_and_then_every_few_seconds(self) -> None:
        clock, channel = Clock(), mock.Mock()
        heart = beat(channel, clock)
        self.assertEqual(channel.tell.mock_calls, [mock.call("alive")])
        clock.pump([BEAT] * 3)
        self.assertEqual(len(channel.tell.mock_calls), 4)
        heart.stop()
        clock.advance(BEAT)
        self.assertEqual(len(channel.tell.mock_calls), 4)

    def test_a_bug_is_seen(self) -> None:
        every_beat(mock.Mock(side_effect=RuntimeError("a bug")), Clock())
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_slow_machines_are_no_hang(self) -> None:
        self.assertGreaterEqual(SILENCE, 10 * BEAT)
        silence = Silence()
        silence.end()
        self.assertEqual([silence.look() for _ in range(12)], [False] * 12)
        self.assertTrue(silence.look())


class StatusTests(Case):
    def test_one_that_hangs_does_not_keep_the_others_from_telling(self) -> None:
        self.start()
        supervisor = Supervisor(mock.Mock(workers=2), "", [], self.reactor, None)
        supervisor._members = [_member_that_tells(), self.member]
        supervisor._usage = mock.Mock(status=list)
        asked = Deferred.fromCoroutine(supervisor._status({}))
        self.wait(14)
        self.assertNoResult(asked)
        self.wait(1)
        status = self.successResultOf(asked)
        self.assertEqual([one["state"] for one in status["workers"]], ["up", "no answer"])
        self.assertEqual(
            [one.get("last end") for one in status["workers"]], [{"at": 7.0, "how": "why"}, None]
        )
        self.assertEqual(status["warnings"], ["of the member", "of the worker"])
        self.say({"answer": 1, "result": {}})  # too late, and nobody minds


def _member_that_tells() -> Any:
    told = {
        "listen": [],
        "queue": {"being delivered": 0},
        "connections": 0,
        "disk of the queue": {},
        "messages coming in": {"in memory": 0, "limit": 0},
        "services": [],
        "warnings": ["of the worker"],
    }

    async def ask(command: str, arguments: Any) -> Any:
        return told

    return mock.Mock(up=True, number=0, ask=ask, warning="of the member", last_end=(7.0, "why"))


class OrphanTests(SynchronousTestCase):
    def test_a_parent_that_does_not_read_is_none(self) -> None:
        world = World(Path(self.mktemp()))
        self.addCleanup(world.close)
        reactor = mock.Mock()
        orders = Orders(
            worker=0,
            workers=2,
            former=(),
            parts=2,
            path="",
            first="",
            text="",
            sockets=[],
            lock=-1,
            commands=-1,
            missing=[],
        )
        for clogged, said in ((True, "the parent process hangs"), (False, "the parent process has ended")):
            worker = Worker(mock.Mock(), orders, world.config, reactor)
            worker._channel = mock.Mock(clogged=clogged)
            with capturedLogs() as logged:
                worker._orphaned()
            self.assertEqual([formatEvent(event) for event in logged], [said + ": this worker stops"])
        self.assertEqual(len(reactor.stop.mock_calls), 2)

"""What several workers have in common: service.desk, common, channel, merging and shards, without processes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.config.schema import Rates
from twisted_mta.core.admission import Admission, Bounds
from twisted_mta.core.queueids import QueueIds
from twisted_mta.interfaces import Account
from twisted_mta.policy.rates import Excess
from twisted_mta.service.channel import Channel, ChannelClosed
from twisted_mta.service.common import DELAY, Common
from twisted_mta.service.control import ControlError, Handler
from twisted_mta.service.desk import Desk
from twisted_mta.service.engine import Engine
from twisted_mta.service.lock import DataLock
from twisted_mta.service.merging import COMMANDS, join_all, joined
from twisted_mta.service.shards import Place, directory_of, places, shards_in
from twisted_mta.service.usage import UsageKeeper
from twisted_mta.store.maildir import MaildirMailboxes
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.store.usage import UsageFile
from twisted_mta.testing.world import World


class Wire(StringTransport):
    """Brings what is written to the other end, when asked to."""

    connected = True


class Pair:
    """Two channels that are connected; `pump` carries what was said."""

    def __init__(self, left: Mapping[str, Handler], right: Mapping[str, Handler]) -> None:
        self.closed: list[str] = []
        self.left = Channel(left, lambda: self.closed.append("left"))
        self.right = Channel(right, lambda: self.closed.append("right"))
        self.wires = Wire(), Wire()  # type: ignore[no-untyped-call]
        self.left.makeConnection(self.wires[0])
        self.right.makeConnection(self.wires[1])

    def pump(self, size: int = 1 << 20) -> None:
        """Until nothing more is said; so many octets at a time."""
        busy = True
        while busy:
            busy = False
            for wire, other in ((self.wires[0], self.right), (self.wires[1], self.left)):
                said = wire.value()
                wire.clear()
                busy |= bool(said)
                for start in range(0, len(said), size):
                    other.dataReceived(said[start : start + size])


async def _double(arguments: Mapping[str, Any]) -> Any:
    return arguments["n"] * 2


async def _refuse(arguments: Mapping[str, Any]) -> Any:
    raise ControlError("no")


async def _fail(arguments: Mapping[str, Any]) -> Any:
    raise RuntimeError("a bug")


class ChannelTests(SynchronousTestCase):
    def setUp(self) -> None:
        handlers: Mapping[str, Handler] = {"double": _double, "refuse": _refuse, "fail": _fail}
        self.pair = Pair(handlers, handlers)

    def test_both_ask_and_are_answered_however_the_octets_come(self) -> None:
        for size in (1, 7, 1 << 20):
            answers = [self.pair.left.ask("double", {"n": n}) for n in range(3)]
            answers.append(self.pair.right.ask("double", {"n": 30}))
            self.pair.pump(size)
            self.assertEqual([self.successResultOf(answer) for answer in answers], [0, 2, 4, 60])

    def test_errors(self) -> None:
        refused, failed = self.pair.left.ask("refuse"), self.pair.left.ask("fail")
        self.pair.pump()
        self.assertEqual(str(self.failureResultOf(refused, ControlError).value), "no")
        self.assertIn("internal error", str(self.failureResultOf(failed, ControlError).value))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_the_end(self) -> None:
        waiting = self.pair.left.ask("double", {"n": 1})
        self.pair.left.connectionLost()
        self.failureResultOf(waiting, ChannelClosed)
        self.failureResultOf(self.pair.left.ask("double", {"n": 1}), ChannelClosed)
        self.pair.left.tell("double", {"n": 1})
        self.pair.left.close()
        self.assertEqual(self.pair.closed, ["left"])


class Crew:
    """A desk, and workers that are only what they have in common. What one tells arrives at once."""

    def __init__(self, test: SynchronousTestCase, workers: int = 3) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.keeper = UsageKeeper(UsageFile(Path(test.mktemp())), InlineWorkers(), self.clock)
        self.gone: set[int] = set()
        self.desk = Desk(workers, self.keeper, self.clock, self.tell)
        self.workers = [Worker(self, number) for number in range(workers)]

    def tell(self, number: int, command: str, arguments: Mapping[str, Any]) -> None:
        if number not in self.gone:
            told = json.loads(json.dumps(arguments))
            Deferred.fromCoroutine(_call(self.workers[number].handlers[command], told))


class Worker:
    def __init__(self, crew: Crew, number: int) -> None:
        self.failed: Any = None
        self.failures: list[str] = []
        self.admission = Admission(Bounds(total=10, per_address=2, rate=6), crew.clock.seconds)
        self.mailboxes = MaildirMailboxes(InlineWorkers(), crew.clock)
        self.common = Common(crew.clock)
        fake: Any = self
        self.handlers = self.common.join(fake, self.mailboxes, fake)
        desk = crew.desk.handlers(number)
        self.common.speak(Pair({}, {}).left)
        channel: Any = attrs.make_class("Direct", [])()
        channel.tell = lambda command, arguments: Deferred.fromCoroutine(
            _call(desk[command], json.loads(json.dumps(arguments)))
        )
        channel.ask = channel.tell
        self.common.speak(channel)

    def failed_elsewhere(self, address: str) -> None:
        self.failures.append(address)


async def _call(handler: Handler, arguments: Mapping[str, Any]) -> Any:
    return await handler(arguments)


class CommonTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.crew = Crew(self)
        self.workers = self.crew.workers

    def enter(self, worker: int, host: str = "192.0.2.1") -> bool:
        return not self.workers[worker].admission.enter(host)

    def settle(self) -> None:
        self.crew.clock.advance(DELAY)

    def test_connections_count_for_all(self) -> None:
        self.assertTrue(self.enter(0))
        self.assertTrue(self.enter(1))
        self.settle()
        self.assertEqual([self.enter(worker) for worker in (0, 1, 2)], [False] * 3)
        self.workers[0].admission.leave("192.0.2.1")
        self.settle()
        self.assertTrue(self.enter(2))

    def test_the_total(self) -> None:
        for number in range(9):
            self.assertTrue(self.enter(number % 3, f"192.0.{number}.1"))
            self.settle()
        self.assertTrue(self.enter(0, ""))
        self.settle()
        self.assertFalse(self.enter(1, "198.51.100.1"))

    def test_a_service_is_sure_of_its_share_at_each_of_them(self) -> None:
        for worker in self.workers:
            worker.admission.bounds = Bounds(total=10, sure={"mx": 2, "imap": 3})
        for number in range(7):
            self.assertEqual(self.workers[number % 2].admission.enter("192.0.2.1", "mx"), "")
            self.settle()
        for worker in self.workers:
            self.assertIn("3 are kept for other services", worker.admission.refusal("192.0.2.2", "mx"))
        for worker in self.workers:
            self.assertEqual(worker.admission.enter("192.0.2.2", "imap"), "")
        self.settle()
        for worker in self.workers:
            self.assertIn("10 connections are open", worker.admission.refusal("192.0.2.3", "imap"))
        self.workers[2].admission.leave("192.0.2.2", "imap")
        self.settle()
        self.assertEqual(self.workers[0].admission.refusal("192.0.2.2", "imap"), "")

    def test_a_share_is_not_lost_to_those_that_come_to_all_at_once(self) -> None:
        for worker in self.workers:
            worker.admission.bounds = Bounds(total=10, sure={"mx": 2, "imap": 3})
            while not worker.admission.enter("192.0.2.1", "mx"):
                pass
        self.settle()
        self.assertEqual([worker.admission.total for worker in self.workers], [7, 7, 7])
        for worker in self.workers:
            self.assertEqual(worker.admission.enter("192.0.2.2", "imap"), "")
            self.settle()
        self.assertIn("10 connections are open", self.workers[0].admission.refusal("192.0.2.2", "imap"))

    def test_the_rate(self) -> None:
        let_in = 0
        for number in range(12):
            worker = self.workers[number % 3]
            if not worker.admission.enter("192.0.2.1"):
                worker.admission.leave("192.0.2.1")
                let_in += 1
            self.settle()
        self.assertEqual(let_in, 6)

    def test_those_of_a_worker_that_died_are_gone_and_the_next_one_learns(self) -> None:
        self.enter(0)
        self.enter(1)
        self.settle()
        self.crew.gone.add(0)
        self.crew.desk.went(0)
        self.assertTrue(self.enter(2))
        self.settle()
        self.crew.gone.discard(0)
        self.workers[0] = Worker(self.crew, 0)
        self.assertTrue(self.enter(0))
        self.workers[0].admission.leave("192.0.2.1")
        self.crew.desk.came(0)
        self.assertFalse(self.enter(0))

    def test_failed_logins_are_told(self) -> None:
        self.workers[1].failed("192.0.2.7")
        self.assertEqual([worker.failures for worker in self.workers], [["192.0.2.7"], [], ["192.0.2.7"]])

    def test_what_accounts_send_is_exact(self) -> None:
        limits = [("alice@example.test", Rates(messages_per_day=4)), ("@example.test", Rates())]
        answers: list[Any] = []
        for number in range(9):  # none of them has heard of another's
            meter = self.workers[number % 3].common.usage.meter
            self.assertIsNone(meter.look(limits, 1))
            answers.append(self.successResultOf(Deferred.fromCoroutine(meter.charge(limits, 1))))
        excess = Excess("alice@example.test", "4 messages in a day", permanent=True)
        self.assertEqual(answers, [None] * 4 + [excess] * 5)
        self.settle()
        self.assertEqual([worker.common.usage.meter.look(limits, 1) for worker in self.workers], [excess] * 3)
        self.assertEqual(self.crew.keeper.status()[0]["messages"], 4)

    def test_without_limits_nobody_waits(self) -> None:
        meter = self.workers[0].common.usage.meter
        answer = Deferred.fromCoroutine(meter.charge([("bob@example.test", Rates())], 3))
        self.assertIsNone(self.successResultOf(answer))
        self.assertEqual(self.crew.keeper.ledger.usage("bob@example.test").day.recipients, 3)

    def test_the_postmaster_is_told_once(self) -> None:
        alarms: list[str] = []
        for worker in self.workers:
            worker.common.usage.meter.tell("alice@example.test", lambda: alarms.append("told"))
        self.assertEqual(alarms, ["told"])

    def test_mail_that_another_worker_delivers_is_seen_at_once(self) -> None:
        account = Account("alice@example.test", self.mktemp())
        told: list[str] = []
        here, there = self.workers[0].mailboxes, self.workers[1].mailboxes
        mailbox = self.successResultOf(Deferred.fromCoroutine(here.of(account).open("INBOX")))
        mailbox.watch(lambda: told.append("changed"))
        there.delivered(account)  # no session has it open there
        self.assertEqual(told, ["changed"])
        other = self.successResultOf(Deferred.fromCoroutine(there.of(account).open("INBOX")))
        self.successResultOf(Deferred.fromCoroutine(there.of(account).append("INBOX", b"Subject: x\r\n\r\n")))
        self.assertEqual(told, ["changed"] * 2)
        self.successResultOf(Deferred.fromCoroutine(mailbox.refresh()))
        self.assertEqual(len(mailbox.entries), 1)
        self.successResultOf(Deferred.fromCoroutine(other.refresh()))
        uid = other.entries[0].uid
        self.successResultOf(Deferred.fromCoroutine(other.set_flags([uid], ["\\Seen"], "add")))
        self.assertEqual(told, ["changed"] * 3)
        self.successResultOf(Deferred.fromCoroutine(mailbox.refresh()))
        self.assertIn("\\Seen", mailbox.entries[0].flags)
        self.successResultOf(Deferred.fromCoroutine(mailbox.close()))
        there.delivered(account)
        self.assertEqual(told, ["changed"] * 3)
        self.successResultOf(Deferred.fromCoroutine(other.close()))

    def test_uids_are_the_same_for_all(self) -> None:
        account = Account("alice@example.test", self.mktemp())
        stores = [worker.mailboxes.of(account) for worker in self.workers]
        added = [
            self.successResultOf(
                Deferred.fromCoroutine(stores[n % 3].append("INBOX", b"Subject: %d\r\n\r\n" % n))
            )
            for n in range(9)
        ]
        self.assertEqual([uid for _, uid in added], list(range(1, 10)))
        views = [self.successResultOf(Deferred.fromCoroutine(store.open("INBOX"))) for store in stores]
        for view in views:
            read = self.successResultOf(Deferred.fromCoroutine(view.read(5)))
            self.assertIn(b"Subject: 4", read)
            self.successResultOf(Deferred.fromCoroutine(view.close()))


def _saying(answer: Any) -> Handler:
    async def handle(arguments: Mapping[str, Any]) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle


class MergingTests(SynchronousTestCase):
    def ask(self, command: str, *answers: Any, **arguments: Any) -> Any:
        handler = joined(command, [_saying(answer) for answer in answers])
        return self.successResultOf(Deferred.fromCoroutine(_call(handler, arguments)))

    def test_a_listing_is_in_order_and_as_long_as_was_asked(self) -> None:
        parts = ({"messages": [{"id": "a"}, {"id": "d"}]}, {"messages": [{"id": "b"}, {"id": "c"}]})
        listed = self.ask("queue.list", *parts, limit=3)["messages"]
        self.assertEqual([one["id"] for one in listed], ["a", "b", "c"])

    def test_orders_are_added_up(self) -> None:
        one, other = (
            {"messages": 1, "recipients": 2, "ids": ["b"]},
            {"messages": 2, "recipients": 2, "ids": ["a"]},
        )
        self.assertEqual(
            self.ask("queue.retry", one, other), {"messages": 3, "recipients": 4, "ids": ["a", "b"]}
        )

    def test_whoever_knows_shows(self) -> None:
        unknown = ControlError("there is no message")
        self.assertEqual(self.ask("queue.show", unknown, {"id": "x"}), {"id": "x"})
        handler = joined("queue.show", [_saying(unknown), _saying(ControlError("nor here"))])
        failure = self.failureResultOf(Deferred.fromCoroutine(_call(handler, {})), ControlError)
        self.assertEqual(str(failure.value), "nor here")

    def test_one_that_is_not_there_may_be_the_one_that_knows(self) -> None:
        handler = joined(
            "queue.show", [_saying(ChannelClosed("worker 0 is down")), _saying(ControlError("there is none"))]
        )
        failure = self.failureResultOf(Deferred.fromCoroutine(_call(handler, {})), ControlError)
        self.assertEqual(str(failure.value), "worker 0 is down")

    def test_an_error_of_one_is_an_error(self) -> None:
        handler = joined("queue.list", [_saying({"messages": []}), _saying(ControlError("a sentence"))])
        failure = self.failureResultOf(Deferred.fromCoroutine(_call(handler, {})), ControlError)
        self.assertEqual(str(failure.value), "a sentence")

    def test_traces(self) -> None:
        parts = [
            {"trees": [{"arrived": time} for time in times], "more": False, "kept": 5.0}
            for times in ((3, 9), (1,))
        ]
        self.assertEqual(
            self.ask("trace", *parts),
            {"trees": [{"arrived": 1}, {"arrived": 3}, {"arrived": 9}], "more": False, "kept": 5.0},
        )

    def test_destinations(self) -> None:
        def seen(state: str, heard: float, **more: Any) -> dict[str, Any]:
            counts = dict.fromkeys(("running", "waiting", "put_off", "concurrency", "limit", "rate"), 1)
            told = {"down_since": 0.0, "next_probe": 0.0, "last_reply": state, "last_heard": heard}
            return {"destination": "far.test", "state": state, **counts, **told, **more}

        parts = (
            {"destinations": [seen("well", 9.0)]},
            {"destinations": [seen("down", 5.0, down_since=4.0, next_probe=7.0)]},
            {"destinations": []},
        )
        (found,) = self.ask("queue.destinations", *parts)["destinations"]
        self.assertEqual(
            (found["state"], found["down_since"], found["next_probe"], found["last_reply"], found["running"]),
            ("down", 4.0, 7.0, "well", 2),
        )

    def test_each_command_of_a_server_is_joined(self) -> None:
        """Whoever adds a command must say what it means for several workers."""
        world = World(Path(self.mktemp()))
        self.addCleanup(world.close)
        engine = Engine(world.config, None, world.network, world.listeners)
        engine._parts, engine._serving = world.parts, world.listeners.serving
        self.assertEqual(set(engine.handlers()) - {"status", "reload"}, set(COMMANDS))


class CommitTests(SynchronousTestCase):
    def test_one_that_was_started_between_the_steps_of_a_reload_has_nothing_to_do(self) -> None:
        engine = Engine(mock.Mock(), None, mock.Mock(), mock.Mock())
        engine._parts = engine._serving = mock.Mock()
        done = Deferred.fromCoroutine(engine._commit({}))
        self.assertEqual(self.successResultOf(done), {})


class ShardTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.data = Path(self.mktemp())
        self.data.mkdir()

    def make(self, *numbers: int) -> None:
        for number in numbers:
            directory_of(self.data, number).mkdir()

    def places(self, workers: int) -> Sequence[Place]:
        return places(workers, self.data, DataLock(self.data))

    def test_names(self) -> None:
        self.assertEqual(
            [directory_of(self.data, n).name for n in (0, 1, 12)], ["queue", "queue-1", "queue-12"]
        )
        self.make(0, 1, 12)
        for other in ("queue-0", "queue-01", "queue-x", "queue-1.old"):
            (self.data / other).mkdir()
        (self.data / "queue-3").touch()
        self.assertEqual(shards_in(self.data), [0, 1, 12])
        self.assertEqual(shards_in(self.data / "nowhere"), [])

    def test_nobody_elses_parts_are_forgotten(self) -> None:
        self.make(0, 1, 2, 3, 7)
        for workers in range(1, 10):
            found = [number for place in self.places(workers) for number in (place.worker, *place.former)]
            self.assertEqual(len(set(found)), len(found))
            self.assertLessEqual({0, 1, 2, 3, 7}, set(found))
            self.assertEqual({place.parts for place in self.places(workers)}, {len(found)})

    def test_limits_are_divided(self) -> None:
        world = World(
            self.data / "world",
            "[queue]\nactive = 100\n[relay]\nconcurrency = 5\nrate = 0\n"
            '[[relay.domain]]\nnames = ["slow.test"]\nconcurrency = 1\nrate = 7\n',
        )
        self.addCleanup(world.close)
        self.assertIs(Place().share(world.config), world.config)
        shares = [Place(worker=n, workers=3, parts=3).share(world.config) for n in range(3)]
        self.assertEqual([share.relay.concurrency for share in shares], [2, 2, 1])
        self.assertEqual([share.relay.rate for share in shares], [0, 0, 0])
        self.assertEqual([share.relay.overrides[0].concurrency for share in shares], [1, 1, 1])
        self.assertEqual([share.relay.overrides[0].rate for share in shares], [3, 2, 2])
        self.assertEqual([share.relay.overrides[0].expire for share in shares], [None] * 3)
        self.assertEqual([share.queue.active for share in shares], [34, 33, 33])

    def test_ids_of_workers_differ(self) -> None:
        makers = [QueueIds(lambda: 1_800_000_000.0, lambda: 0.5, worker) for worker in (0, 1, 63)]
        made = [maker() for _ in range(5) for maker in makers]
        self.assertEqual(len(set(made)), 15)
        self.assertEqual({len(name) for name in made}, {14})
        self.assertEqual([name[10:12] for name in made[:3]], ["00", "01", "11"])

    def test_what_a_former_worker_left_is_delivered(self) -> None:
        """The queue of two workers, of which one is left."""
        world = World(self.data / "site")
        self.addCleanup(world.close)
        world.network.servers.clear()
        self.assertEqual(
            world.send("dave@example.org", ["carol@far.example.org"], b"Subject: x\r\n\r\n").code, 550
        )
        world.close()
        left = directory_of(world.config.data, 1)
        (world.config.data / "queue").rename(left)
        world.parts = world._start()
        self.assertEqual([shard.store._directory.name for shard in world.parts.shards], ["queue", "queue-1"])


def test_join_all_keeps_commands() -> None:
    tables: list[dict[str, Handler]] = [{"queue.list": _double}, {"queue.list": _double}]
    assert set(join_all(tables)) == {"queue.list"}

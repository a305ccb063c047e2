"""What `mta simulate` runs: exact timelines, with a chance that is always one half, so that nothing is early or late."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.config.schema import Queue, Relay, Route
from twisted_mta.core.address import Address
from twisted_mta.core.conditions import Condition, Conditions, Kind
from twisted_mta.core.envelope import Notify
from twisted_mta.core.queue import QueuedMessage, QueuedRecipient, Status, Transport, WorkItem
from twisted_mta.core.rules import Rules, Vacation
from twisted_mta.interfaces import Update
from twisted_mta.service.simulation.run import Arrival, Setup, Simulation
from twisted_mta.service.simulation.timeline import DETAILED, Event, Story, Timeline, What
from twisted_mta.store.queue.bodies import MemoryBody
from twisted_mta.store.queue.memory import MemoryQueueStore
from twisted_mta.testing.contracts.queue import LATER
from twisted_mta.testing.directory import make_directory, make_list

BEGIN = 1_800_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
ALICE, CAROL = Address("alice", "example.test"), Address("carol", "example.org")


def setup(*conditions: str, **changes: Any) -> Setup:
    """Conditions as "down example.org=3d"; alice has a mailbox in example.test."""
    split = [text.partition(" ") for text in conditions]
    made = Setup(
        queue=Queue(schedule=(HOUR, 2 * HOUR), expire=DAY, warn_after=4 * HOUR),
        relay=Relay(concurrency=2),
        directory=make_directory(),
        hostname="mx.example.test",
        postmaster=ALICE,
        conditions=Conditions([Condition.parse(Kind(kind), rest) for kind, _, rest in split]),
        random=lambda: 0.5,
        begin=BEGIN,
        seconds=2 * DAY,
    )
    return attrs.evolve(made, **changes)


def waiting(name: str, *addresses: Address, **changes: Any) -> WorkItem:
    """A message as it stands in a queue: an hour old, and due now."""
    message = QueuedMessage(
        id=name,
        sender=ALICE,
        prefix=b"",
        body_id=7,
        body_size=1,
        arrived=BEGIN - HOUR,
        expires=BEGIN + 23 * HOUR,
        body_type="7BIT",
        smtputf8=False,
        envid="",
        ret="",
        parent="",
        message_id="",
        origin="",
    )
    recipients = tuple(
        QueuedRecipient(
            row=number,
            address=address,
            transport=Transport.SMTP,
            original=address,
            notify=Notify.FAILURE | Notify.DELAY,
            orcpt="",
            status=Status.QUEUED,
            attempts=1,
            next_attempt=BEGIN,
            last_reply="",
            warned=False,
        )
        for number, address in enumerate(addresses, 100)
    )
    return WorkItem(attrs.evolve(message, **changes), recipients)


class SimulationTests(SynchronousTestCase):
    def run_one(
        self, *recipients: Address, data: bytes = b"Subject: x\r\n\r\nhi\r\n", **changes: Any
    ) -> Timeline:
        conditions = changes.pop("conditions", ())
        simulation = Simulation(setup(*conditions, **changes))
        return simulation.run([Arrival(0.0, ALICE, recipients or (CAROL,), data)])

    def first(self, timeline: Timeline) -> Story:
        return next(iter(timeline.stories.values()))

    def told(self, events: list[Event]) -> list[tuple[float, str]]:
        """When what happened, in seconds since the beginning; "!" where the sender was told."""
        return [(event.time - BEGIN, event.what.value + "!" * event.told) for event in events]

    def history(self, *conditions: str, **changes: Any) -> list[tuple[float, str]]:
        story = self.first(self.run_one(conditions=conditions, **changes))
        return self.told(story.recipients["carol@example.org"])

    def test_nothing_is_the_matter(self) -> None:
        self.assertEqual(self.history(), [(0.0, "delivered")])
        self.assertEqual(self.history("down example.net=1d", "reject .example.org"), [(0.0, "delivered")])

    def test_down_for_a_while(self) -> None:
        # Each attempt takes the 30 s until a connection is given up.
        self.assertEqual(
            self.history("down example.org=7h"),
            [
                (30.0, "deferred"),
                (HOUR + 60.0, "deferred"),
                (3 * HOUR + 90.0, "deferred"),
                (4 * HOUR + 30.0, "deferred!"),
                (6 * HOUR + 60.0, "deferred"),
                (8 * HOUR + 60.0, "delivered"),
            ],
        )

    def test_down_later(self) -> None:
        self.assertEqual(self.history("down example.org=7h@1s"), [(0.0, "delivered")])
        self.assertEqual(
            self.history("tempfail example.org=1m", "down example.org=1h@1h"),
            [(0.0, "deferred"), (HOUR + 30.0, "deferred"), (3 * HOUR + 30.0, "delivered")],
        )

    def test_down_for_too_long(self) -> None:
        timeline = self.run_one(conditions=("down example.org=5d",))
        story, warning, bounce = timeline.stories.values()
        events = self.told(story.recipients["carol@example.org"])
        self.assertEqual(events[-1], (DAY + 30.0, "failed!"))
        self.assertEqual([time for time, what in events if "!" in what], [4 * HOUR + 30.0, DAY + 30.0])
        for notice, when in ((warning, 4 * HOUR + 30.0), (bounce, DAY + 30.0)):
            self.assertEqual((notice.parent, notice.sender), (story.queue_id, ""))
            self.assertEqual(self.told(notice.recipients["alice@example.test"]), [(when, "delivered")])
        total, notices = timeline.total, timeline.notifications
        self.assertEqual((total.recipients, total.failed, total.bounces, total.warnings), (1, 1, 1, 1))
        self.assertEqual((notices.recipients, notices.delivered), (2, 2))
        self.assertEqual(timeline.domains["example.org"].attempts, len(events))

    def test_tempfail(self) -> None:
        events = self.first(self.run_one(conditions=("tempfail example.org=30m",))).recipients[str(CAROL)]
        self.assertEqual(self.told(events), [(0.0, "deferred"), (HOUR, "delivered")])
        self.assertEqual(events[0].reply, "example.org: 451 4.3.2 try again later")
        self.assertEqual(events[0].next_attempt, BEGIN + HOUR)

    def test_greylisting_counts_from_the_first_attempt(self) -> None:
        self.assertEqual(
            self.history("greylist example.org=2h"),
            [(0.0, "deferred"), (HOUR, "deferred"), (3 * HOUR, "delivered")],
        )

    def test_greylisting_is_for_each_recipient(self) -> None:
        dave = Address("dave", "example.org")
        simulation = Simulation(setup("greylist example.org=30m"))
        timeline = simulation.run([Arrival(0.0, ALICE, [CAROL]), Arrival(HOUR - 1, ALICE, [CAROL, dave])])
        _, second = timeline.stories.values()
        self.assertEqual(self.told(second.recipients[str(CAROL)]), [(HOUR - 1, "delivered")])
        self.assertEqual(
            self.told(second.recipients[str(dave)]), [(HOUR - 1, "deferred"), (2 * HOUR - 1, "delivered")]
        )

    def test_rejected(self) -> None:
        timeline = self.run_one(conditions=("reject example.org",))
        self.assertEqual(self.told(self.first(timeline).recipients[str(CAROL)]), [(0.0, "failed!")])
        self.assertEqual(timeline.notifications.delivered, 1)

    def test_slow_destinations_are_used_as_far_as_their_lanes_go(self) -> None:
        arrivals = [Arrival(0.0, ALICE, [Address(f"u{n}", "example.org")]) for n in range(6)]
        timeline = Simulation(setup("slow example.org=10s")).run(arrivals)
        times = sorted(
            event.time - BEGIN
            for story in timeline.stories.values()
            for found in story.recipients.values()
            for event in found
        )
        self.assertEqual(times, [10.0, 10.0, 20.0, 20.0, 30.0, 30.0])
        self.assertEqual((timeline.peak, timeline.depths[:2]), (6, [6, 0]))

    def test_a_smarthost_is_what_counts(self) -> None:
        relay = Relay(smarthost=Route(host="smart.example.net", port=587))
        self.assertEqual(self.history("down example.org=1d", relay=relay), [(0.0, "delivered")])
        self.assertEqual(self.history("down smart.example.net=1m", relay=relay)[0], (30.0, "deferred"))

    def test_local_recipients(self) -> None:
        timeline = self.run_one(ALICE, Address("nobody", "example.test"))
        story = self.first(timeline)
        self.assertEqual(self.told(story.recipients["alice@example.test"]), [(0.0, "delivered")])
        self.assertEqual(self.told(story.recipients["nobody@example.test"]), [(0.0, "failed!")])

    def test_rules_of_a_user(self) -> None:
        """Replies are not simulated: whether one is due depends on the message."""
        rules = Rules(
            forward=(Address("carol", "example.org"),), keep=True, vacation=Vacation(text="I am away.")
        )
        directory = make_directory(user_rules={"alice@example.test": rules})
        recipients = self.first(self.run_one(ALICE, directory=directory)).recipients
        for name in ("alice@example.test", "carol@example.org"):
            self.assertEqual([text for _, text in self.told(recipients[name])][-1], "delivered", name)

    def test_a_list_becomes_a_post(self) -> None:
        lists = [
            make_list("team@example.test", ["alice@example.test", "carol@example.org"], "alice@example.test")
        ]
        timeline = self.run_one(
            Address("team", "example.test"),
            conditions=("tempfail example.org=30m",),
            directory=make_directory(lists=lists),
        )
        letter, post = timeline.stories.values()
        self.assertEqual(self.told(letter.recipients["team@example.test"]), [(0.0, "expanded")])
        self.assertEqual((post.parent, post.sender), (letter.queue_id, "team-bounces@example.test"))
        self.assertEqual(self.told(post.recipients[str(CAROL)]), [(0.0, "deferred"), (HOUR, "delivered")])

    def test_what_waits_already(self) -> None:
        simulation = Simulation(setup("down example.org=30h"))
        simulation.load(waiting("a", CAROL), MemoryBody(b""))
        simulation.load(waiting("b", CAROL, hold="for a look"), MemoryBody(b""))
        timeline = simulation.run()
        events = self.told(timeline.stories["a"].recipients[str(CAROL)])
        self.assertEqual(events[:2], [(30.0, "deferred"), (2 * HOUR + 60.0, "deferred")])
        self.assertEqual(events[-1][1], "failed!")
        self.assertEqual(timeline.stories["b"].recipients[str(CAROL)], [])
        self.assertEqual((timeline.total.waiting, timeline.depths[0], timeline.depths[-1]), (1, 2, 1))

    def test_what_still_waits_in_the_end(self) -> None:
        timeline = self.run_one(conditions=("down example.org=5d",), seconds=HOUR / 2)
        self.assertEqual((timeline.total.waiting, timeline.total.attempts), (1, 1))
        self.assertEqual(self.first(timeline).recipients[str(CAROL)][-1].what, What.DEFERRED)

    def test_an_attempt_under_way_in_the_end_counts_as_waiting(self) -> None:
        timeline = self.run_one(conditions=("slow example.org=1h",), seconds=HOUR / 2)
        self.assertEqual((timeline.total.waiting, timeline.total.attempts), (1, 0))

    def test_depth_through_time(self) -> None:
        arrivals = [Arrival(hour * HOUR, ALICE, [CAROL]) for hour in range(4)]
        timeline = Simulation(setup("down example.org=1d@1s", seconds=28 * HOUR)).run(arrivals)
        self.assertEqual(timeline.depths[:7], [0, 1, 2, 3, 3, 4, 4])  # with a warning, for a moment
        self.assertEqual(timeline.depths[-1], 0)

    def test_many_are_only_counted(self) -> None:
        count = 2 * DETAILED
        arrivals = (Arrival(n * 10.0, ALICE, [Address(f"u{n}", f"d{n % 10}.example")]) for n in range(count))
        timeline = Simulation(setup("tempfail d3.example=1d", detailed=False, resolution=10.0)).run(arrivals)
        self.assertEqual(timeline.stories, {})
        self.assertEqual((timeline.total.recipients, timeline.total.delivered), (count, count))
        self.assertEqual(timeline.domains["d4.example"].attempts, count // 10)
        self.assertGreater(timeline.domains["d3.example"].attempts, count // 2)
        self.assertEqual((timeline.total.delay(0.5), timeline.total.delay(0.0)), (0.0, 0.0))
        self.assertGreater(timeline.total.delay(1.0), 20 * HOUR)

    def test_no_delivery_has_no_delay(self) -> None:
        self.assertEqual(
            self.run_one(conditions=("reject example.org",)).domains["example.org"].delay(0.5), 0.0
        )

    def test_what_is_put_off_is_told_once_in_a_row(self) -> None:
        timeline = Timeline(BEGIN, DAY, True)
        (carol,) = waiting("a", CAROL).recipients
        message = waiting("a", CAROL).message
        timeline.queued(message, [str(CAROL)])
        for now, note in ((1.0, "not tried, since it is down"), (2.0, "not tried, since it is down")):
            timeline.postponed(BEGIN + now, message, carol, note)
        timeline.recorded(
            BEGIN + 3.0,
            [(message, carol, Update(row=carol.row, outcome=LATER, next_attempt=BEGIN + 4.0))],
            [],
        )
        timeline.postponed(BEGIN + 4.0, message, carol, "")
        events = timeline.stories["a"].recipients[str(CAROL)]
        self.assertEqual(self.told(events), [(1.0, "put off"), (3.0, "deferred"), (4.0, "put off")])
        self.assertEqual(events[2].reply, "not tried, since others had to have their turn")
        self.assertEqual(timeline.total.attempts, 1)
        Timeline(BEGIN, DAY, False).postponed(BEGIN, message, carol, "")

    def test_the_queue_in_memory_tells_what_it_postpones(self) -> None:
        told: list[tuple[str, float, str]] = []
        store = MemoryQueueStore(
            postponed=lambda message, was, note: told.append((message.id, was.next_attempt, note))
        )
        store.load(waiting("a", CAROL), MemoryBody(b""))

        async def postpone() -> None:
            (item,) = await store.claim_due(BEGIN, 10)
            await store.postpone([item.recipients[0].row], BEGIN + 60.0, "later")

        self.successResultOf(Deferred.fromCoroutine(postpone()))
        self.assertEqual(told, [("a", BEGIN, "later")])

"""Mail for one mailbox: delivered before its client is answered, and queued only where that does not work out."""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from tests.queue_manager import BUSY, DAY, DELIVERED, ORIGINAL, START, ManagerTestCase, remote, replies
from twisted_mta.core.envelope import DeliverBy, Notify
from twisted_mta.core.history import State
from twisted_mta.core.queue import Failed, NewMessage, Transport
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IQueueStore, StoreFull
from twisted_mta.service.gathering import WORTH
from twisted_mta.service.queue import QueueManager
from twisted_mta.service.straight import PATIENCE
from twisted_mta.store.queue import SQLiteQueueStore
from twisted_mta.store.queue.remembering import DELAY, MAX_WAITING
from twisted_mta.testing.deliveries import ScriptedBatchDelivery

BOB = remote("bob@example.test", transport=Transport.LOCAL)
CAROL = remote("carol@example.test", transport=Transport.LOCAL)


class StraightTestCase(ManagerTestCase):
    """A manager whose mailboxes take many messages at once."""

    def make_manager(self, **changes: Any) -> QueueManager:
        self.boxes = ScriptedBatchDelivery()
        deliveries = {Transport.LOCAL: self.boxes, Transport.SMTP: self.smtp}
        return super().make_manager(deliveries=deliveries, **changes)

    def send(self, message: NewMessage | None = None, data: bytes = ORIGINAL) -> Deferred[None]:
        """Hand a message in; what its client waits for."""
        body = self.manager.new_body()
        body.write(data)
        waiting: Any = self.manager.submit([message or self.message(BOB)], body)
        self.clock.advance(0)
        told: Deferred[None] = waiting
        return told


class DeliveredTests(StraightTestCase):
    """All is well."""

    def test_it_is_delivered_and_never_queued(self) -> None:
        self.boxes.each.hold()
        self.store.fail("add", AssertionError("it was queued"))
        waiting = self.send()
        self.assertNoResult(waiting)
        self.boxes.each.let_go()
        self.assertIsNone(self.successResultOf(waiting))
        (call,) = self.boxes.each.calls
        self.assertEqual(call.data, b"Received: by mx.example.test\r\n" + ORIGINAL)
        self.assertEqual((self.queue(), self.manager.active, self.clock.getDelayedCalls()), ([], 0, []))

    def test_the_log_tells_of_it_as_of_any_other(self) -> None:
        self.boxes.each.hold()
        self.send()
        self.clock.advance(2)
        self.boxes.each.let_go()
        (told,) = self.told("delivered")
        self.assertEqual(
            (told["recipient"], told["delay"], told["attempts"], told["reply"]),
            ("bob@example.test", 2.0, 1, "250 2.0.0 delivered"),
        )

    def test_the_client_is_answered_before_the_log_is_written(self) -> None:
        self.boxes.each.hold()
        heard: list[int] = []
        self.send().addCallback(lambda _: heard.append(len(self.told("delivered"))))
        self.boxes.each.let_go()
        self.assertEqual(heard, [0])

    def test_what_comes_meanwhile_goes_together(self) -> None:
        self.boxes.each.hold()
        waiting = [self.send() for _ in range(3)]
        self.boxes.each.let_go()
        self.assertEqual(self.boxes.sizes, [1, 2])
        for one in waiting:
            self.successResultOf(one)

    def test_a_client_that_does_not_wait_changes_nothing(self) -> None:
        self.boxes.each.hold()
        waiting = self.send()
        waiting.addErrback(lambda _: None)
        waiting.cancel()
        self.boxes.each.let_go()
        self.assertEqual(len(self.told("delivered")), 1)
        self.assertEqual(self.queue(), [])


class QueuedTests(StraightTestCase):
    """What is queued first, as it always was."""

    def assertQueuedFirst(self, message: NewMessage) -> None:
        adding = self.store.stall("add")
        waiting = self.send(message)
        self.assertEqual(self.boxes.sizes, [])
        adding.callback(None)
        self.successResultOf(waiting)

    def test_several_recipients(self) -> None:
        self.assertQueuedFirst(self.message(BOB, CAROL))

    def test_another_transport(self) -> None:
        self.assertQueuedFirst(self.message(remote("bob@example.org")))

    def test_who_wants_to_be_told(self) -> None:
        self.assertQueuedFirst(self.message(attrs.evolve(BOB, notify=Notify.SUCCESS | Notify.FAILURE)))

    def test_what_is_held_back(self) -> None:
        self.assertQueuedFirst(self.message(BOB, not_before=START + 60))

    def test_what_has_its_time(self) -> None:
        by = DeliverBy(START + 60, returns=True)
        self.assertQueuedFirst(self.message(BOB, deliver_by=by))

    def test_several_messages_over_one_body(self) -> None:
        adding = self.store.stall("add")
        body = self.manager.new_body()
        body.write(ORIGINAL)
        waiting: Any = self.manager.submit([self.message(BOB), self.message(CAROL)], body)
        self.assertEqual(self.boxes.sizes, [])
        adding.callback(None)
        self.successResultOf(waiting)

    def test_where_it_is_switched_off(self) -> None:
        settings = attrs.evolve(self.settings, straight=False)
        self.manager.reconfigure(settings, relay=self.relay, postmaster=self.postmaster)
        self.assertQueuedFirst(self.message(BOB))
        self.manager.reconfigure(self.settings, relay=self.relay, postmaster=self.postmaster)
        self.store.fail("add", AssertionError("it was queued"))
        self.successResultOf(self.send())

    def test_where_the_manager_does_not_run(self) -> None:
        self.result(self.manager.stopService())
        self.successResultOf(self.send())
        self.assertEqual((self.boxes.sizes, self.queue()), ([], ["bob@example.test"]))


class FailedTests(StraightTestCase):
    """The mailbox does not take it."""

    def test_what_can_not_be_delivered_now_is_tried_later(self) -> None:
        self.boxes.each.script = replies(BUSY, DELIVERED)
        self.successResultOf(self.send())
        (item,) = self.result(self.store.listing())
        (recipient,) = item.recipients
        self.assertEqual((recipient.attempts, recipient.next_attempt), (1, START + 600))
        self.assertEqual((self.manager.active, len(self.boxes.sizes)), (0, 1))
        self.run_until(START + 600)
        self.assertEqual((self.queue(), len(self.told("delivered"))), ([], 1))

    def test_what_fails_is_returned(self) -> None:
        refused = Failed(Reply(550, "5.1.1", "no such user here"))
        self.boxes.each.script = replies(refused, DELIVERED)
        self.successResultOf(self.send())
        self.run_until(START + 1)
        self.assertEqual(self.boxes.each.calls[-1].recipients, ("alice@example.test",))
        self.assertEqual(self.queue(), [])

    def test_the_client_hears_that_it_could_not_be_queued_either(self) -> None:
        self.boxes.each.script = replies(BUSY)
        self.store.fail("add", StoreFull("no room"))
        self.failureResultOf(self.send(), StoreFull)
        self.assertEqual((self.queue(), self.manager.active), ([], 0))

    def test_a_bug_of_the_delivery_loses_nothing(self) -> None:
        self.boxes.errors.append(ZeroDivisionError("a bug"))
        self.successResultOf(self.send())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        (item,) = self.result(self.store.listing())
        self.assertIn("internal error", item.recipients[0].last_reply)

    def test_a_wrong_number_of_outcomes_is_one_too(self) -> None:
        async def none(batch: Any) -> list[Any]:
            return []

        self.boxes.deliver_batch = none  # type: ignore[method-assign]
        self.successResultOf(self.send())
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.queue(), ["bob@example.test"])


class SlowTests(StraightTestCase):
    """The mailbox takes its time."""

    def setUp(self) -> None:
        super().setUp()
        self.boxes.each.hold()
        self.first, self.second = self.send(), self.send(self.message(CAROL))
        self.clock.advance(PATIENCE)

    def test_nobody_waits_for_long(self) -> None:
        self.successResultOf(self.first)
        self.successResultOf(self.second)
        self.assertEqual(sorted(self.queue()), ["bob@example.test", "carol@example.test"])
        (told,) = self.told("mailboxes_slow")
        self.assertEqual((told["patience"], told["count"]), (PATIENCE, 2))

    def test_what_comes_until_it_answers_is_queued(self) -> None:
        adding = self.store.stall("add")
        third = self.send()
        adding.callback(None)
        self.successResultOf(third)
        self.boxes.each.let_go()
        self.clock.advance(0)
        self.assertEqual(self.queue(), [])
        self.store.fail("add", AssertionError("it was queued"))
        self.successResultOf(self.send())

    def test_one_that_answers_does_not_speak_for_another(self) -> None:
        self.boxes.each.let_go()
        self.boxes.each.hold()
        waiting = [self.send() for _ in range(1 + WORTH)]
        self.assertEqual(self.boxes.sizes[-2:], [1, 5])
        self.clock.advance(PATIENCE)
        self.boxes.each.let_go(1)  # all of the first, one of the second
        adding = self.store.stall("add")
        later = self.send()
        adding.callback(None)
        for one in [*waiting, later]:
            self.successResultOf(one)
        self.boxes.each.let_go()
        self.clock.advance(0)
        self.assertEqual(self.queue(), [])
        self.store.fail("add", AssertionError("it was queued"))
        self.successResultOf(self.send())

    def test_each_is_delivered_once(self) -> None:
        self.boxes.each.let_go()
        self.run_until(START + DAY)
        to = sorted(address for call in self.boxes.each.calls for address in call.recipients)
        self.assertEqual(to, ["bob@example.test", "carol@example.test"])
        self.assertEqual((self.queue(), self.manager.active, self.manager._jobs), ([], 0, set()))

    def test_the_attempt_may_end_before_it_is_queued(self) -> None:
        self.boxes.each.let_go()
        self.boxes.each.hold()
        adding = self.store.stall("add")
        waiting = self.send()
        self.clock.advance(PATIENCE)
        self.boxes.each.let_go()
        self.assertNoResult(waiting)
        adding.callback(None)
        self.successResultOf(waiting)
        self.assertEqual((self.queue(), self.manager.active), ([], 0))

    def test_a_deleted_message_causes_no_bounce(self) -> None:
        (name,) = [item.message.id for item in self.result(self.store.listing(1))]
        self.result(self.store.delete([name]))
        self.manager.forget([name])
        self.boxes.each.script = replies(Failed(Reply(550, "5.2.0", "never")))
        self.boxes.each.let_go()
        self.run_until(START + 60)
        to = [address for call in self.boxes.each.calls for address in call.recipients]
        self.assertEqual(to.count("alice@example.test"), 1)


class StopTests(StraightTestCase):
    """The server stops."""

    def test_what_is_under_way_may_end(self) -> None:
        self.boxes.each.hold()
        waiting = self.send()
        stopping = self.manager.stopService()
        self.assertNoResult(stopping)
        self.boxes.each.let_go()
        self.successResultOf(stopping)
        self.successResultOf(waiting)
        self.assertEqual(self.queue(), [])

    def test_what_waits_is_queued_and_what_is_cut_off_too(self) -> None:
        self.boxes.each.hold()
        first, second = self.send(), self.send(self.message(CAROL))
        adding = self.store.stall("add")
        stopping = self.manager.stopService()
        self.clock.advance(5)
        self.assertNoResult(stopping)
        adding.callback(None)
        self.successResultOf(stopping)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(sorted(self.queue()), ["bob@example.test", "carol@example.test"])
        claimed = self.result(self.store.claim_due(START + DAY, 10))
        self.assertEqual(len(claimed), 2)


class HistoryTests(StraightTestCase):
    """What the queue remembers of messages that it never had."""

    def make_store(self) -> IQueueStore:
        self.directory = Path(mkdtemp(dir=self.mktemp_parent()))
        return SQLiteQueueStore.inline(self.directory, self.clock)

    def mktemp_parent(self) -> Path:
        parent = Path(self.mktemp())
        parent.mkdir(parents=True)
        return parent

    def tearDown(self) -> None:
        self.result(self.store.close())

    def test_it_tells_of_them_as_of_all_others(self) -> None:
        straight = self.message(attrs.evolve(BOB, via=("staff@example.test",)), origin="client [192.0.2.1]")
        self.successResultOf(self.send(straight))
        settings = attrs.evolve(self.settings, straight=False)
        self.manager.reconfigure(settings, relay=self.relay, postmaster=self.postmaster)
        queued = attrs.evolve(straight, id=self.ids())
        self.successResultOf(self.send(queued))
        one, other = self.result(self.store.recall([straight.id, queued.id]))
        (recipient,) = one.recipients
        self.assertEqual((recipient.state, recipient.attempts), (State.DELIVERED, 1))
        alike = [
            attrs.evolve(each, id="", recipients=[attrs.evolve(each.recipients[0], row=1)])
            for each in (one, other)
        ]
        self.assertEqual(alike[0], alike[1])
        for text in ("staff@example.test", "bob@example.test", "lunch@example.test"):
            self.assertIn(straight.id, self.result(self.store.mentions(text, 10)))

    def written(self) -> int:
        """Messages in the tables, whatever still waits."""
        found: int = self.store._reader.execute("SELECT count(*) FROM past_message").fetchone()[0]
        return found

    def test_it_is_written_after_a_second(self) -> None:
        self.successResultOf(self.send())
        self.successResultOf(self.send())
        self.assertEqual(self.written(), 0)
        self.clock.advance(DELAY)
        self.assertEqual((self.written(), self.clock.getDelayedCalls()), (2, []))

    def test_or_when_there_are_many(self) -> None:
        for _ in range(MAX_WAITING + 1):
            self.successResultOf(self.send())
        self.assertEqual(self.written(), MAX_WAITING)

    def test_or_at_the_end(self) -> None:
        message = self.message(BOB)
        self.successResultOf(self.send(message))
        self.result(self.manager.stopService())
        self.result(self.store.close())
        self.store = SQLiteQueueStore.inline(self.directory, self.clock)
        self.assertEqual([one.id for one in self.result(self.store.recall([message.id]))], [message.id])

    def test_who_wants_no_history_gets_none(self) -> None:
        self.store.history = attrs.evolve(self.store.history, keep=0.0)
        self.successResultOf(self.send())
        self.clock.advance(DELAY)
        self.assertEqual(self.written(), 0)

    def test_what_can_not_be_written_is_told(self) -> None:
        def fail(passed: Any) -> None:
            raise OSError("the disk is full")

        self.store._history.passed = fail
        self.successResultOf(self.send())
        self.clock.advance(DELAY)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertEqual(self.queue(), [])

    def test_a_large_body_is_queued_first(self) -> None:
        adding = self.message(BOB)
        waiting = self.send(adding, b"x" * 300_000)
        self.successResultOf(waiting)
        self.assertEqual((self.queue(), self.written()), ([], 1))

    def test_the_room_of_the_body_is_given_back(self) -> None:
        self.successResultOf(self.send())
        self.assertEqual(self.store.body_memory.used, 0)

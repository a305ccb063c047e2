"""The queue manager with a transport that takes many messages at once."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from zope.interface.verify import verifyObject

from tests.queue_manager import BUSY, DELIVERED, ORIGINAL, START, ManagerTestCase, remote
from twisted_mta.core.envelope import DeliverBy, Notify
from twisted_mta.core.queue import Failed, Transport
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import DamagedBody, IBatchDelivery, IStoredBody
from twisted_mta.service.queue import QueueManager
from twisted_mta.testing.deliveries import ScriptedBatchDelivery


class BatchTests(ManagerTestCase):
    # What is for one mailbox would not be queued: see test_straight.
    settings = attrs.evolve(ManagerTestCase.settings, straight=False)

    def make_manager(self, **changes: Any) -> QueueManager:
        self.batched = ScriptedBatchDelivery()
        deliveries = {Transport.LOCAL: self.batched, Transport.SMTP: self.smtp}
        return super().make_manager(deliveries=deliveries, **changes)

    def send(self, count: int = 1, **changes: Any) -> None:
        for number in range(count):
            recipient = remote(f"user{number}@example.test", transport=Transport.LOCAL, **changes)
            self.submit(recipient)

    def turn(self) -> None:
        """One turn of the reactor."""
        self.clock.advance(0)

    def test_interface(self) -> None:
        verifyObject(IBatchDelivery, self.batched)

    def test_what_comes_in_one_turn_goes_together(self) -> None:
        self.send(3)
        self.assertEqual(self.batched.sizes, [])
        self.turn()
        self.assertEqual(self.batched.sizes, [3])
        self.assertEqual(
            [call.data for call in self.batched.each.calls],
            [b"Received: by mx.example.test\r\n" + ORIGINAL] * 3,
        )
        self.assertEqual((self.queue(), self.manager.active, self.clock.getDelayedCalls()), ([], 0, []))

    def test_what_comes_meanwhile_goes_together_next(self) -> None:
        self.batched.each.hold()
        self.send()
        self.turn()
        self.send(4)
        self.turn()
        self.assertEqual(self.batched.sizes, [1])
        self.batched.each.let_go()
        self.assertEqual(self.batched.sizes, [1, 4])
        self.assertEqual(self.queue(), [])

    def test_a_batch_is_bounded(self) -> None:
        self.send(12)
        self.turn()
        self.assertEqual(self.batched.sizes, [5, 5, 2])

    def test_one_operation_of_the_store_for_all(self) -> None:
        calls: list[int] = []
        record = self.store.record

        async def counted(updates: Any, new: Any = ()) -> None:
            calls.append(len(updates))
            await record(updates, new)

        self.store.record = counted
        self.send(4)
        self.turn()
        self.assertEqual(calls, [4])

    def test_each_has_its_own_outcome(self) -> None:
        self.batched.each.script = lambda message, recipient: (
            {"user0": BUSY, "user1": Failed(Reply(550, "5.1.1", "no such user"))}.get(recipient.address.local)
            or DELIVERED
        )
        self.send(3)
        self.turn()
        self.assertEqual(len(self.told("bounced")), 1)
        self.turn()
        self.assertEqual([len(self.told(event)) for event in ("deferred", "delivered")], [1, 2])
        self.assertEqual(self.queue(), ["user0@example.test"])
        self.batched.each.script = lambda message, recipient: DELIVERED
        self.run_until(START + 600)
        self.assertEqual(self.queue(), [])

    def test_who_asked_for_it_is_told_of_success(self) -> None:
        self.send(1, notify=Notify.SUCCESS)
        self.send(2)
        self.turn()
        self.turn()
        self.assertEqual(len(self.told("delivered")), 4)
        self.assertEqual(self.batched.sizes, [3, 1])
        self.assertIn(b"user0@example.test", self.batched.each.calls[-1].data)

    def test_a_store_that_does_not_take_them_together_gets_each(self) -> None:
        self.store.fail("record", RuntimeError("all"), RuntimeError("one"))
        self.send(3)
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.queue(), ["user0@example.test"])
        self.clock.advance(5)
        self.assertEqual(self.queue(), [])

    def test_a_bug_keeps_the_mail(self) -> None:
        self.batched.errors.append(ZeroDivisionError())
        self.send(2)
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(self.queue()), 2)
        self.run_until(START + 600)
        self.assertEqual(self.queue(), [])

    def test_a_wrong_number_of_outcomes_is_a_bug_too(self) -> None:
        async def deliver_batch(batch: Any) -> Any:
            return [[] for _ in batch]

        self.batched.deliver_batch = deliver_batch  # type: ignore[method-assign]
        self.send(2)
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(len(self.queue()), 2)

    def test_cancelled_without_a_stop(self) -> None:
        self.batched.errors.append(CancelledError())
        self.send(1)
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)
        self.assertEqual(len(self.queue()), 1)

    def test_bodies_that_can_not_be_had_keep_nobody_else(self) -> None:
        bodies = iter([DamagedBody("it is short"), KeyError("gone"), None])
        read = self.store.body

        async def body(message: Any) -> IStoredBody:
            error = next(bodies)
            if error is not None:
                raise error
            found: IStoredBody = await read(message)
            return found

        self.store.body = body
        self.send(3)
        self.turn()
        self.assertEqual(self.batched.sizes, [1])
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual(self.queue(), ["user0@example.test", "user1@example.test"])
        held = [item.message.hold for item in self.result(self.store.listing())]
        self.assertEqual(held, ["damaged: it is short", ""])

    def test_what_is_out_of_time_is_not_tried(self) -> None:
        self.submit(
            remote("late@example.test", transport=Transport.LOCAL),
            deliver_by=DeliverBy(START - 1, True, False),
        )
        self.turn()
        self.assertEqual((len(self.told("bounced")), self.batched.each.calls[0].message.sender), (1, None))

    def test_a_stop_gives_back_what_waits(self) -> None:
        self.batched.each.hold()
        self.send(1)
        self.turn()
        self.send(2)
        stopped = self.manager.stopService()
        self.assertNoResult(stopped)
        self.batched.each.let_go()
        self.successResultOf(stopped)
        self.assertEqual((self.batched.sizes, len(self.queue())), ([1], 2))
        self.assertEqual(self.result(self.store.next_due()), START)

    def test_a_stop_before_the_turn_is_over(self) -> None:
        self.send(2)
        self.successResultOf(self.manager.stopService())
        self.assertEqual((self.batched.sizes, len(self.queue())), ([], 2))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_stop_cuts_a_batch_off(self) -> None:
        self.batched.each.hold()
        self.send(2)
        self.turn()
        stopped: Deferred[None] = self.manager.stopService()
        self.clock.advance(5.1)
        self.successResultOf(stopped)
        self.assertEqual(len(self.queue()), 2)
        self.assertEqual(self.result(self.store.next_due()), START)

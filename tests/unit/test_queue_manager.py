"""The queue manager on a Clock: retries, bounces, limits, and what a crash or a stop leaves."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import CancelledError
from zope.interface.verify import verifyObject

from tests.queue_manager import (
    ALICE,
    BUSY,
    DAY,
    DELIVERED,
    ORIGINAL,
    POSTMASTER,
    REFUSED,
    START,
    ManagerTestCase,
    remote,
    replies,
)
from twisted_mta.config.schema import Relay
from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Notify
from twisted_mta.core.queue import (
    Expanded,
    NewRecipient,
    Order,
    Outcome,
    QueuedMessage,
    QueuedRecipient,
    Transport,
    TryLater,
)
from twisted_mta.core.replies import Reply
from twisted_mta.core.selection import Selection
from twisted_mta.interfaces import IDelivery, IQueue, IQueueStore, StoreFull
from twisted_mta.service.queue import STORE_PAUSE
from twisted_mta.service.queue_admin import Named
from twisted_mta.store.queue import SQLiteQueueStore
from twisted_mta.testing.deliveries import ScriptedDelivery


class DeliveryTests(ManagerTestCase):
    def test_interfaces(self) -> None:
        verifyObject(IQueue, self.manager)
        verifyObject(IDelivery, self.smtp)

    def test_delivery_begins_at_once(self) -> None:
        self.submit()
        (call,) = self.smtp.calls
        self.assertEqual(call.data, b"Received: by mx.example.test\r\n" + ORIGINAL)
        self.assertEqual(self.queue(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_recipients_are_grouped_by_destination(self) -> None:
        self.submit(
            remote("a@example.org"),
            remote("b@example.com"),
            remote("c@example.org"),
            remote("d@example.org", transport=Transport.LOCAL),
        )
        self.assertEqual(
            [(call.destination, call.recipients) for call in self.smtp.calls],
            [("example.org", ("a@example.org", "c@example.org")), ("example.com", ("b@example.com",))],
        )
        self.assertEqual([call.recipients for call in self.local.calls], [("d@example.org",)])

    def test_recipients_with_a_sender_or_fields_of_their_own(self) -> None:
        owner, forward = Address("owner-team", "example.test"), b"Delivered-To: team@example.test\r\n"
        self.submit(
            remote("bob@example.org"),
            remote("carol@example.org", sender=owner, prefix=forward),
            remote("dave@example.org", sender=owner, prefix=forward),
            remote("erin@example.org", sender=owner),
        )
        received = b"Received: by mx.example.test\r\n"
        self.assertEqual(
            [(call.message.sender, call.message.prefix, call.recipients) for call in self.smtp.calls],
            [
                # On the way to another host senders may differ: the delivery sees to them.
                (ALICE, received, ("bob@example.org", "erin@example.org")),
                (ALICE, forward + received, ("carol@example.org", "dave@example.org")),
            ],
        )

    def test_copies_for_mailboxes_stay_together(self) -> None:
        own = remote("b@example.org", transport=Transport.LOCAL, sender=Address("o", "example.test"))
        self.submit(remote("a@example.org", transport=Transport.LOCAL), own)
        (call,) = self.local.calls
        self.assertEqual((call.message.sender, len(call.recipients)), (ALICE, 2))

    def test_451_twice_is_retried_on_schedule_and_succeeds(self) -> None:
        self.smtp.script = replies(BUSY, BUSY, DELIVERED)
        name = self.submit()
        self.run_until(START + 599)
        self.assertEqual(len(self.smtp.calls), 1)
        self.run_until(START + 600)
        self.assertEqual(len(self.smtp.calls), 2)
        self.run_until(START + 600 + 3599)
        self.assertEqual(len(self.smtp.calls), 2)
        self.run_until(START + 600 + 3600)
        self.assertEqual(len(self.smtp.calls), 3)
        self.assertEqual((self.queue(), self.local.calls), ([], []))
        first, second = self.told("deferred")
        self.assertEqual((first["queue_id"], first["next_attempt"]), (name, START + 600))
        self.assertEqual((second["attempts"], second["reply"]), (2, "451 4.3.2 come back later"))
        (delivered,) = self.told("delivered")
        self.assertEqual((delivered["attempts"], delivered["delay"]), (3, 4200.0))

    def test_a_bug_in_a_delivery_is_logged_and_tried_later(self) -> None:
        def broken(message: QueuedMessage, recipient: QueuedRecipient) -> Outcome:
            raise ZeroDivisionError

        self.smtp.script = broken
        self.submit(remote("a@example.org"), remote("b@example.com"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual(self.queue(), ["a@example.org", "b@example.com"])
        self.smtp.script = replies(DELIVERED)
        self.run_until(START + 600)
        self.assertEqual(self.queue(), [])

    def test_a_wrong_number_of_outcomes_is_a_bug_too(self) -> None:
        async def deliver(*_: object) -> list[Outcome]:
            return []

        self.smtp.deliver = deliver  # type: ignore[assignment]
        self.submit()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.queue(), ["bob@example.org"])

    def test_a_transport_that_is_not_there_keeps_the_mail(self) -> None:
        deliveries = {Transport.LOCAL: self.local}
        manager = self.make_manager(deliveries=deliveries)
        self.submit(manager=manager)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 2)
        self.assertEqual(self.queue(), ["bob@example.org"])

    def test_expanded_messages_start_at_once(self) -> None:
        def expand(message: QueuedMessage, recipient: QueuedRecipient) -> Outcome:
            child = self.message(
                remote("x@example.org"),
                remote("y@example.com"),
                parent=message.id,
                prefix=b"List-Id: <team>\r\n",
            )
            return Expanded((child,), Reply(250, "2.0.0", "to 2 members"))

        self.lists.script = expand
        self.submit(remote("team@example.test", transport=Transport.LIST))
        self.assertEqual([call.data for call in self.smtp.calls], [b"List-Id: <team>\r\n" + ORIGINAL] * 2)
        self.assertEqual((self.queue(), self.store.body_count), ([], 0))

    def test_a_full_store_is_told_to_the_client_and_leaves_nothing(self) -> None:
        body = self.manager.new_body()
        body.write(ORIGINAL)
        self.store.full = True
        self.failureResultOf(self.manager.submit([self.message()], body), StoreFull)  # type: ignore[arg-type]
        self.assertEqual((self.manager.active, self.smtp.calls), (0, []))
        self.store.full = False
        self.submit()
        self.assertEqual(len(self.smtp.calls), 1)

    def test_a_client_that_hangs_up_does_not_stop_what_is_committed(self) -> None:
        hold = self.store.stall("add")
        body = self.manager.new_body()
        body.write(ORIGINAL)
        waiting: Any = self.manager.submit([self.message()], body)
        waiting.addErrback(lambda _: None)
        waiting.cancel()
        hold.callback(None)
        self.assertEqual(len(self.smtp.calls), 1)
        self.assertEqual(self.queue(), [])

    def test_the_administrator(self) -> None:
        self.smtp.script = replies(BUSY, DELIVERED)
        name, other = self.submit(), self.submit(remote("x@example.com"))
        self.assertEqual([item.message.id for item in self.result(self.store.listing())], [name])
        self.assertEqual(self.result(self.admin.find(name)).message.id, name)
        self.assertIsNone(self.result(self.admin.find(other)))
        self.assertEqual(self.result(self.admin.order(Named(ids=(name,)), Order.RETRY)).recipients, 1)
        self.assertEqual(self.queue(), [])
        self.smtp.script = replies(BUSY)
        name = self.submit()
        self.assertEqual(self.result(self.admin.delete(Named(ids=(name,)))).messages, 1)
        self.run_until(START + 6 * DAY)
        self.assertEqual((self.queue(), self.local.calls), ([], []))

    def test_a_message_deleted_during_its_delivery_does_not_bounce(self) -> None:
        self.smtp.hold()
        self.smtp.script = replies(REFUSED)
        name = self.submit()
        self.assertEqual(self.result(self.admin.delete(Named(ids=(name,)))).messages, 1)
        self.smtp.let_go()
        self.assertEqual((self.queue(), self.local.calls), ([], []))

    def test_what_an_administrator_gives_up_bounces_untried(self) -> None:
        self.smtp.script = replies(BUSY, BUSY, DELIVERED)
        name = self.submit(remote("bob@example.org"), remote("carol@example.com"))
        calls = len(self.smtp.calls)
        self.result(self.admin.hold(Named(ids=(name,)), "why not"))
        chosen = Named(selection=Selection(domain="example.org"))
        self.assertEqual(self.result(self.admin.order(chosen, Order.EXPIRE)).recipients, 1)
        self.assertEqual((len(self.smtp.calls), self.queue()), (calls, ["carol@example.com"]))
        (bounce,) = self.local.calls
        self.assertIn(b"bob@example.org", bounce.data)
        self.assertIn(b"given up by the administrator", bounce.data)
        self.assertIn(b"come back later", bounce.data)
        self.assertNotIn(b"carol", bounce.data)
        self.result(self.admin.release(Named(ids=(name,))))
        self.run_until(START + DAY)
        self.assertEqual(self.queue(), [])

    def test_a_new_one_that_is_given_up(self) -> None:
        self.smtp.hold()
        held = [self.submit(remote("x@example.org")) for _ in range(5)]
        name = self.submit(remote("bob@example.org"), not_before=START + 50)
        self.result(self.admin.order(Named(ids=(name, held[0])), Order.EXPIRE))
        self.assertEqual(len(self.local.calls), 1)
        self.assertNotIn(b"last attempt", self.local.calls[0].data)

    def test_reconfigure(self) -> None:
        self.smtp.script = replies(BUSY)
        self.manager.reconfigure(attrs.evolve(self.settings, schedule=(60.0,)), Relay(), POSTMASTER)
        self.submit()
        self.run_until(START + 60)
        self.assertEqual(len(self.smtp.calls), 2)


class NotificationTests(ManagerTestCase):
    def test_550_bounces_to_the_sender_with_the_head_of_the_message(self) -> None:
        self.smtp.script = replies(REFUSED)
        name = self.submit()
        (call,) = self.local.calls
        self.assertIsNone(call.message.sender)
        self.assertEqual((call.recipients, call.message.parent), (("alice@example.test",), name))
        (bounce,) = self.notifications()
        self.assertEqual(bounce.get_content_type(), "multipart/report")
        words, status, original = bounce.iter_parts()
        self.assertIn("no such user here", words.get_content())
        self.assertEqual(status.get_payload()[1]["Action"], "failed")
        self.assertEqual(original.get_payload()[0]["Subject"], "lunch")
        self.assertEqual(self.queue(), [])
        (event,) = self.told("bounced")
        self.assertEqual((event["queue_id"], event["remote"]), (name, "mx.example.org [192.0.2.1]"))

    def test_five_days_down_yield_one_warning_and_one_bounce(self) -> None:
        self.smtp.script = replies(BUSY)
        self.submit()
        self.run_until(START + 4 * 3600 - 1)
        self.assertEqual(self.local.calls, [])
        self.run_until(START + 5 * 3600)
        self.assertEqual(len(self.local.calls), 1)
        self.run_until(START + 5 * DAY - 1)
        self.assertEqual(len(self.local.calls), 1)
        self.assertEqual(self.queue(), ["bob@example.org"])
        self.run_until(START + 5 * DAY)
        warning, bounce = self.notifications()
        self.assertEqual(warning["Subject"], "Your message is delayed")
        fields = list(warning.iter_parts())[1].get_payload()[1]
        self.assertEqual((fields["Action"], fields["Status"]), ("delayed", "4.3.2"))
        self.assertIn("Will-Retry-Until", fields)
        self.assertEqual(bounce["Subject"], "Your message could not be delivered")
        fields = list(bounce.iter_parts())[1].get_payload()[1]
        self.assertEqual((fields["Action"], fields["Status"]), ("failed", "4.3.2"))
        self.assertEqual(self.queue(), [])
        self.assertEqual(len(self.told("expired")), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_several_failures_make_one_bounce_when_all_is_over(self) -> None:
        self.smtp.script = replies(REFUSED)
        self.smtp.hold()
        self.submit(remote("a@example.org"), remote("b@example.com"), remote("c@example.net"))
        self.smtp.let_go(2)
        self.assertEqual(self.local.calls, [])
        self.smtp.script = replies(DELIVERED)
        self.smtp.let_go()
        (bounce,) = self.notifications()
        words = next(bounce.iter_parts()).get_content()
        self.assertIn("a@example.org", words)
        self.assertIn("b@example.com", words)
        self.assertNotIn("c@example.net", words)

    def test_each_sender_hears_of_its_own_copies(self) -> None:
        self.smtp.script = replies(REFUSED)
        owner = Address("owner-team", "example.test")
        self.submit(remote("bob@example.org"), remote("carol@example.org", sender=owner))
        told = {bounce["To"]: next(bounce.iter_parts()).get_content() for bounce in self.notifications()}
        self.assertEqual(sorted(told), [str(ALICE), str(owner)])
        self.assertIn("bob@example.org", told[str(ALICE)])
        self.assertNotIn("carol@example.org", told[str(ALICE)])
        self.assertIn("carol@example.org", told[str(owner)])

    def test_a_bounce_stays_one_wherever_it_goes_on_to(self) -> None:
        self.submit(remote("carol@example.org", sender=ALICE), sender=None)
        self.assertIsNone(self.smtp.calls[0].message.sender)

    def test_a_bounce_never_bounces(self) -> None:
        self.smtp.script = replies(REFUSED)
        self.local.script = replies(REFUSED)
        name = self.submit()
        bounce, double = self.local.calls
        self.assertEqual(
            (bounce.recipients, double.recipients), (("alice@example.test",), (str(POSTMASTER),))
        )
        self.assertEqual(
            [(call.message.parent, call.message.origin) for call in (bounce, double)],
            [(name, "notification"), (bounce.message.id, "double bounce")],
        )
        self.assertEqual(self.queue(), [])
        self.assertEqual([event["queue_id"] for event in self.told("dropped")], [double.message.id])

    def test_the_postmaster_need_not_hear_of_it(self) -> None:
        self.manager.reconfigure(attrs.evolve(self.settings, double_bounces="drop"), Relay(), POSTMASTER)
        self.smtp.script = replies(REFUSED)
        self.local.script = replies(REFUSED)
        self.submit()
        [bounce] = self.local.calls
        self.assertEqual([event["queue_id"] for event in self.told("dropped")], [bounce.message.id])

    def test_the_postmaster_hears_of_others_bounces_unless_they_forbid_it(self) -> None:
        self.smtp.script = replies(REFUSED)
        self.submit(remote("bob@example.org", notify=Notify.NEVER), sender=None)
        self.assertEqual((self.local.calls, len(self.told("dropped"))), ([], 1))
        self.submit(sender=None)
        (told,) = self.notifications()
        self.assertEqual((told["To"], told["Auto-Submitted"]), (str(POSTMASTER), "auto-replied"))
        self.assertEqual(list(told.iter_parts())[2].get_content_type(), "message/rfc822")

    def test_a_warning_about_a_bounce_is_not_sent_either(self) -> None:
        self.smtp.script = replies(BUSY)
        self.submit(sender=None)
        self.run_until(START + 5 * DAY - 1)
        self.assertEqual(self.local.calls, [])
        self.run_until(START + 6 * DAY)
        self.assertEqual([call.recipients for call in self.local.calls], [(str(POSTMASTER),)])
        self.assertEqual(self.queue(), [])

    def test_notify(self) -> None:
        self.smtp.script = replies(REFUSED)
        self.submit(remote("bob@example.org", notify=Notify.NEVER))
        self.submit(remote("bob@example.org", notify=Notify.DELAY | Notify.SUCCESS))
        self.assertEqual((self.local.calls, self.queue()), ([], []))
        self.smtp.script = replies(BUSY)
        self.submit(remote("bob@example.org", notify=Notify.FAILURE))
        self.run_until(START + 6 * DAY)
        (bounce,) = self.notifications()
        self.assertEqual(bounce["Subject"], "Your message could not be delivered")

    def test_success_is_told_if_asked_for(self) -> None:
        self.smtp.script = replies(attrs.evolve(DELIVERED, relayed=True))
        self.submit(remote("bob@example.org", notify=Notify.SUCCESS))
        self.submit(remote("x@example.test", notify=Notify.SUCCESS, transport=Transport.LOCAL))
        self.local.calls = [call for call in self.local.calls if call.message.sender is None]
        subjects = [notification["Subject"] for notification in self.notifications()]
        self.assertEqual(subjects, ["Your message was passed on", "Your message was delivered"])

    def test_success_is_left_to_a_next_host_that_tells_it(self) -> None:
        """RFC 3461 §5.2.1: it got the NOTIFY parameter."""
        self.smtp.script = replies(attrs.evolve(DELIVERED, relayed=True, confirms=True))
        self.submit(remote("bob@example.org", notify=Notify.SUCCESS))
        self.assertEqual((self.local.calls, self.queue()), ([], []))

    def test_where_the_sender_is_nowhere_the_postmaster_is_told(self) -> None:
        self.smtp.script = replies(REFUSED)
        self.submit(sender=Address("gone", "nowhere.test"))
        self.assertEqual([call.recipients for call in self.local.calls], [("postmaster@example.test",)])

    def test_with_no_route_at_all_it_is_logged(self) -> None:
        def route(address: Address) -> tuple[NewRecipient, ...]:
            raise LookupError(address)

        manager = self.make_manager(bounce_router=route)
        self.smtp.script = replies(REFUSED)
        self.submit(manager=manager)
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 2)
        self.assertEqual((self.queue(), self.local.calls), ([], []))
        self.assertTrue(any("nobody can be told" in (e.get("log_format") or "") for e in self.events))

    def test_a_notification_that_cannot_be_written_gives_nothing_up(self) -> None:
        self.smtp.script = replies(REFUSED)

        def broken() -> str:
            raise ZeroDivisionError

        manager = self.make_manager(ids=broken)
        self.submit(manager=manager)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.queue(), ["bob@example.org"])

    def test_a_body_that_cannot_be_read_is_not_quoted(self) -> None:
        class Broken:
            size = 26

            def open(self) -> Any:
                raise OSError("disk")

        async def body(_: QueuedMessage) -> Any:
            return Broken()

        async def deliver(*_: Any) -> list[Outcome]:
            return [REFUSED]

        self.patch(self.store, "body", body)
        self.smtp.deliver = deliver  # type: ignore[assignment]
        self.local.hold()
        self.submit()
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 2)
        (bounce,) = self.store.bodies
        self.assertIn(b"text/rfc822-headers\r\nContent-Transfer-Encoding: 7bit\r\n\r\nReceived: by", bounce)

    def test_a_body_that_is_gone_ends_in_a_bounce(self) -> None:
        self.store.fail("body", *[KeyError("gone")] * 1000)
        self.submit(expires=START + 60)
        self.run_until(START + 700)
        self.flushLoggedErrors(KeyError)
        self.store.errors.clear()
        self.result(self.admin.order(Named(), Order.RETRY))
        self.run_until(START + DAY)
        self.assertEqual(self.smtp.calls, [])
        self.assertEqual(len(self.notifications()), 1)


class WindowTests(ManagerTestCase):
    settings = attrs.evolve(ManagerTestCase.settings, active=8)

    def test_the_window_limits_what_is_worked_on(self) -> None:
        self.smtp.hold()
        for n in range(30):
            self.submit(remote(f"bob@{n}.example.org"))
        self.assertEqual((self.smtp.waiting, self.manager.active), (8, 8))
        seen = 8
        while self.smtp.waiting:
            self.smtp.let_go(1)
            self.assertLessEqual(self.manager.active, 8)
            seen = len(self.smtp.calls)
        self.assertEqual((seen, self.queue()), (30, []))

    def test_a_message_larger_than_the_window_goes_in_parts(self) -> None:
        self.smtp.hold()
        self.submit(*(remote(f"bob@{n}.example.org") for n in range(20)))
        self.assertEqual(self.smtp.waiting, 8)
        while self.smtp.waiting:
            self.smtp.let_go(1)
        self.assertEqual((len(self.smtp.calls), self.queue()), (20, []))

    def test_one_destination_gets_so_many_at_once(self) -> None:
        manager = self.make_manager(relay=Relay(concurrency=2))
        self.smtp.hold()
        for _ in range(5):
            self.submit(manager=manager)
        self.submit(remote("x@example.com"), manager=manager)
        self.assertEqual(
            [call.destination for call in self.smtp.calls], ["example.org"] * 2 + ["example.com"]
        )
        while self.smtp.waiting:
            self.smtp.let_go(1)
        self.assertEqual((self.smtp.most, len(self.smtp.calls), self.queue()), (2, 6, []))

    def test_a_destination_out_of_reach_does_not_fill_the_window(self) -> None:
        manager = self.make_manager(relay=Relay(concurrency=2))
        self.smtp.hold()
        self.smtp.script = replies(TryLater(Reply(451, "4.4.1", "connection timed out"), reached=False))
        for _ in range(6):
            self.submit(manager=manager)
        self.smtp.let_go(1)
        self.assertEqual((len(self.smtp.calls), manager.active), (2, 1))
        replies_seen = [item.recipients[0].last_reply for item in self.result(self.store.listing())]
        expected = "451 4.4.1 not tried, since example.org is out of reach: connection timed out"
        self.assertEqual(replies_seen, ["451 4.4.1 connection timed out", "", *[expected] * 4])
        self.smtp.script = replies(DELIVERED)
        self.smtp.let_go()
        self.run_until(START + 600)
        self.assertEqual(self.queue(), [])

    def test_a_host_that_speaks_is_tried_for_each_message(self) -> None:
        manager = self.make_manager(relay=Relay(concurrency=1))
        self.smtp.hold()
        self.smtp.script = replies(BUSY)
        for _ in range(3):
            self.submit(manager=manager)
        self.smtp.let_go(1)
        self.assertEqual(len(self.smtp.calls), 2)

    def test_mail_submitted_while_the_store_is_asked_for_work_is_not_forgotten(self) -> None:
        hold = self.store.stall("claim_due")
        self.manager.reconfigure(self.settings, Relay(), POSTMASTER)
        self.submit()
        hold.callback(None)
        self.assertEqual((len(self.smtp.calls), self.queue()), (1, []))


class TroubleTests(ManagerTestCase):
    def test_outcomes_are_recorded_until_the_store_takes_them(self) -> None:
        self.store.fail("record", StoreFull("no room"), StoreFull("no room"))
        self.smtp.script = replies(REFUSED)
        self.submit()
        self.assertEqual((self.queue(), self.local.calls), (["bob@example.org"], []))
        self.run_until(START + 2 * STORE_PAUSE)
        self.assertEqual(len(self.flushLoggedErrors(StoreFull)), 2)
        self.assertEqual((self.queue(), len(self.local.calls), len(self.smtp.calls)), ([], 1, 1))

    def test_a_store_that_gives_no_work_is_asked_again(self) -> None:
        self.smtp.script = replies(BUSY, DELIVERED)
        self.submit()
        self.store.fail("claim_due", OSError("disk"))
        self.run_until(START + 600)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.run_until(START + 600 + STORE_PAUSE)
        self.assertEqual(self.queue(), [])

    def test_an_earlier_attempt_sets_the_timer_forward(self) -> None:
        self.smtp.script = replies(BUSY)
        self.submit()
        self.manager.reconfigure(attrs.evolve(self.settings, schedule=(60.0,)), Relay(), POSTMASTER)
        self.submit(remote("x@example.com"))
        (call,) = self.clock.getDelayedCalls()
        self.assertEqual(call.getTime(), START + 60)
        self.successResultOf(self.manager.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_outcomes_that_cannot_be_recorded_at_a_stop_are_tried_again(self) -> None:
        self.smtp.hold()
        self.submit()
        self.store.fail("record", StoreFull("no room"))
        stopped = self.manager.stopService()
        self.smtp.let_go()
        self.successResultOf(stopped)
        self.assertEqual(len(self.flushLoggedErrors(StoreFull)), 1)
        self.assertEqual(self.result(self.store.next_due()), START)

    def test_a_stop_ends_the_wait_for_the_store(self) -> None:
        self.store.fail("record", *[StoreFull("no room")] * 9)
        self.submit()
        stopped = self.manager.stopService()
        self.run_until(START + 100)
        self.successResultOf(stopped)
        self.assertEqual(len(self.flushLoggedErrors(StoreFull)), 2)
        self.assertEqual(self.result(self.store.next_due()), START)

    def test_a_cancelled_delivery_is_tried_later(self) -> None:
        def cancelled(message: QueuedMessage, recipient: QueuedRecipient) -> Outcome:
            raise CancelledError

        self.smtp.script = cancelled
        self.submit()
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)
        self.assertEqual(
            (self.queue(), self.result(self.store.next_due())), (["bob@example.org"], START + 600)
        )

    def test_after_it_is_durable_the_client_is_told_so_whatever_happens(self) -> None:
        hold = self.store.stall("add")
        body = self.manager.new_body()
        body.write(ORIGINAL)
        submitted: Any = self.manager.submit([self.message()], body)
        self.successResultOf(self.manager.stopService())
        self.store.fail("release", ZeroDivisionError())
        hold.callback(None)
        self.successResultOf(submitted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_before_the_start_mail_is_only_stored(self) -> None:
        self.result(self.manager.stopService())
        self.submit()
        self.assertEqual((self.smtp.calls, self.queue()), ([], ["bob@example.org"]))
        self.manager.startService()
        self.assertEqual((len(self.smtp.calls), self.queue()), (1, []))

    def test_stop_waits_for_attempts_and_gives_the_others_back(self) -> None:
        manager = self.make_manager(relay=Relay(concurrency=1))
        self.smtp.hold()
        self.submit(manager=manager)
        self.submit(manager=manager)
        stopped = manager.stopService()
        self.assertNoResult(stopped)
        self.smtp.let_go()
        self.successResultOf(stopped)
        self.assertEqual((len(self.smtp.calls), self.queue()), (1, ["bob@example.org"]))
        self.assertEqual(self.result(self.store.next_due()), START)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_cuts_off_what_takes_too_long(self) -> None:
        self.smtp.hold()
        self.submit()
        stopped = self.manager.stopService()
        self.clock.advance(4.9)
        self.assertNoResult(stopped)
        self.clock.advance(0.2)
        self.successResultOf(stopped)
        self.assertEqual(self.queue(), ["bob@example.org"])
        self.assertEqual(self.result(self.store.next_due()), START)

    def test_stop_records_the_failures_that_waited_for_others(self) -> None:
        self.smtp.script = replies(REFUSED)
        manager = self.make_manager(relay=Relay(concurrency=1))
        self.smtp.hold()
        self.submit(remote("first@example.com"), manager=manager)
        self.submit(remote("a@example.org"), remote("b@example.com"), manager=manager)
        stopped = manager.stopService()
        self.smtp.let_go()
        self.successResultOf(stopped)
        left = self.queue()
        self.assertNotIn("a@example.org", left)
        self.assertIn("b@example.com", left)

    def test_work_claimed_while_stopping_is_given_back(self) -> None:
        hold = self.store.stall("add")
        body = self.manager.new_body()
        body.write(ORIGINAL)
        submitted: Any = self.manager.submit([self.message()], body)
        self.successResultOf(self.manager.stopService())
        hold.callback(None)
        self.successResultOf(submitted)
        self.assertEqual(self.smtp.calls, [])
        self.assertEqual(self.result(self.store.next_due()), START)


class CrashTests(ManagerTestCase):
    """On the disk: the process dies, and another one opens the same file."""

    def make_store(self) -> IQueueStore:
        if not hasattr(self, "directory"):
            self.directory = Path(tempfile.mkdtemp())
            self.addCleanup(shutil.rmtree, self.directory)
        store = SQLiteQueueStore.inline(self.directory, self.clock)
        self.addCleanup(store._writer.close)
        self.addCleanup(store._reader.close)
        return store

    def crash(self) -> None:
        """Forget everything but the disk."""
        self.store._writer.close()
        for call in self.clock.getDelayedCalls():
            call.cancel()
        self.manager = None  # type: ignore[assignment]
        self.store = self.make_store()
        self.smtp, self.local = ScriptedDelivery(), ScriptedDelivery()
        self.manager = self.make_manager()

    def test_claims_left_by_a_crash_are_delivered(self) -> None:
        self.smtp.hold()
        names = [self.submit(), self.submit(remote("x@example.com"))]
        self.crash()
        self.assertEqual([call.message.id for call in self.smtp.calls], names)
        self.assertEqual(self.smtp.calls[0].data, b"Received: by mx.example.test\r\n" + ORIGINAL)
        self.assertEqual(self.queue(), [])

    def test_what_was_recorded_is_not_done_again(self) -> None:
        self.smtp.script = lambda message, recipient: DELIVERED if recipient.address.local == "a" else BUSY
        self.submit(remote("a@example.org"), remote("b@example.org"))
        self.crash()
        self.assertEqual(self.smtp.calls, [])
        self.run_until(START + 600)
        self.assertEqual([call.recipients for call in self.smtp.calls], [("b@example.org",)])

    def test_a_bounce_survives(self) -> None:
        self.smtp.script = replies(REFUSED)
        self.local.hold()
        self.submit()
        self.assertEqual(self.local.waiting, 1)
        self.crash()
        self.assertEqual([call.recipients for call in self.local.calls], [("alice@example.test",)])
        self.assertEqual((self.queue(), self.smtp.calls), ([], []))

"""The filters of `mta queue`."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.trial import unittest

from twisted_mta.core.address import Address
from twisted_mta.core.queue import Order, WorkItem
from twisted_mta.core.selection import Selection, Status, same
from twisted_mta.interfaces import Update
from twisted_mta.service import queue_admin
from twisted_mta.service.queue_admin import Named, QueueAdmin
from twisted_mta.testing.contracts.queue import LATER, message, put, rows_of
from twisted_mta.testing.queue import MemoryQueueStore


class Base(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.store = MemoryQueueStore()
        self.forgotten: list[str] = []
        self.woken = 0
        self.admin = QueueAdmin(self.store, lambda: 2000.0, wake=self.wake, forget=self.forgotten.extend)

    def wake(self) -> None:
        self.woken += 1

    def wait(self, awaitable: Any) -> Any:
        async def run() -> Any:
            return await awaitable

        return self.successResultOf(Deferred.fromCoroutine(run()))

    def listing(self) -> list[WorkItem]:
        return list(self.wait(self.store.listing()))


class SelectionTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.wait(put(self.store, message("a", "bob", "carol"), body=b"x" * 100))
        (self.item,) = self.listing()
        bob, carol = self.item.recipients
        odd = Address('o "dd"', "b.example")
        bob = attrs.evolve(bob, attempts=1, last_reply="451 4.7.1 Greylisted", original=odd)
        self.item = attrs.evolve(self.item, recipients=(bob, carol))

    def chosen(self, **filters: Any) -> str:
        """The initials of the recipients that are chosen."""
        found = Selection(**filters).of(self.item, 2000.0)
        return "".join(one.address.local[0] for one in found)

    def test_each_filter(self) -> None:
        size = self.item.message.size
        for filters, expected in (
            ({}, "bc"),
            ({"sender": "<Alice@Example.test>"}, "bc"),
            ({"sender": "<>"}, ""),
            ({"recipient": "bob@example.org"}, "b"),
            ({"recipient": '"o \\"dd\\""@B.example'}, "b"),
            ({"domain": "EXAMPLE.org"}, "bc"),
            ({"domain": "b.example"}, ""),
            ({"older": 999}, "bc"),
            ({"older": 1000}, ""),
            ({"younger": 1001}, "bc"),
            ({"younger": 1000}, ""),
            ({"larger": size - 1}, "bc"),
            ({"larger": size}, ""),
            ({"smaller": size + 1}, "bc"),
            ({"smaller": size}, ""),
            ({"status": Status.NEW}, "c"),
            ({"status": Status.DEFERRED}, "b"),
            ({"status": Status.HELD}, ""),
            ({"reply": "greylisted"}, "b"),
            ({"reply": "greylisted", "status": Status.NEW}, ""),
        ):
            self.assertEqual(self.chosen(**filters), expected, filters)
        self.item = attrs.evolve(self.item, message=attrs.evolve(self.item.message, hold="x", sender=None))
        self.assertEqual((self.chosen(status=Status.HELD), self.chosen(sender="<>")), ("bc", "bc"))
        self.assertFalse(same("a@b", None))

    def test_empty(self) -> None:
        self.assertTrue(Selection().empty)
        self.assertFalse(Selection(older=0.0).empty)


class QueueAdminTests(Base):
    def test_goes_on_from_page_to_page(self) -> None:
        self.patch(queue_admin, "PAGE", 2)
        for name in "abcde":
            self.wait(put(self.store, message(name, "bob", "carol")))
        chosen = Named(selection=Selection(recipient="bob@example.org"))
        done = self.wait(self.admin.count(chosen))
        self.assertEqual((done.messages, done.recipients, done.ids), (5, 5, list("abcde")))
        self.patch(queue_admin, "MAX_IDS", 3)
        done = self.wait(self.admin.order(chosen, Order.RETRY))
        self.assertEqual((done.messages, done.recipients, done.ids), (5, 5, list("abc")))
        self.assertEqual(self.woken, 1)
        done = self.wait(self.admin.delete(chosen))
        self.assertEqual((done.messages, done.recipients, self.forgotten), (5, 5, []))
        self.assertEqual([len(item.recipients) for item in self.listing()], [1] * 5)
        done = self.wait(self.admin.delete(Named()))
        self.assertEqual((done.messages, self.forgotten, self.listing()), (5, list("abcde"), []))

    def test_what_is_delivered_meanwhile_is_not_counted(self) -> None:
        self.wait(put(self.store, message("a"), message("b", "x", "y"), claim=True))
        done = self.wait(self.admin.order(Named(), Order.EXPIRE))
        self.assertEqual((done.messages, done.recipients, done.ids), (0, 0, []))

    def test_hold_and_release_count_only_what_changes(self) -> None:
        self.wait(put(self.store, message("a"), message("b")))
        self.assertEqual(self.wait(self.admin.hold(Named(ids=("a", "x")), "1")).ids, ["a"])
        self.assertEqual(self.wait(self.admin.hold(Named(), "2")).ids, ["b"])
        self.assertEqual([item.message.hold for item in self.listing()], ["1", "2"])
        self.assertEqual(self.wait(self.admin.release(Named())).messages, 2)
        self.assertEqual(self.wait(self.admin.release(Named())).messages, 0)

    def test_only_the_deferred(self) -> None:
        first, second = rows_of(self.wait(put(self.store, message("a", "bob", "carol"), claim=True)))
        self.wait(self.store.record([Update(row=first, outcome=LATER, next_attempt=9000.0)]))
        self.wait(self.store.release([second]))
        done = self.wait(self.admin.order(Named(selection=Selection(reply="try later")), Order.RETRY))
        self.assertEqual(done.recipients, 1)
        self.assertEqual([one.next_attempt for one in self.listing()[0].recipients], [2000.0, 1000.0])

"""The part of the contract of IQueueStore that administrators need."""

from __future__ import annotations

from typing import Any

from twisted_mta.core.queue import (
    Order,
    Transport,
)
from twisted_mta.interfaces import Update
from twisted_mta.testing.contracts.queue_base import (
    DELIVERED,
    LATER,
    QueueContract,
    locals_of,
    message,
    put,
    recipient,
    rows_of,
)


class OrdersContract(QueueContract):
    """Listing, trying again, holding, rerouting, deleting."""

    def test_retry(self) -> Any:
        async def check() -> None:
            items = list(await put(self.store, message("a"), message("b"), message("c"), claim=True))
            rows = rows_of(items)
            await self.store.record([Update(row=row, outcome=LATER, next_attempt=5000.0) for row in rows[:2]])
            self.assertEqual(await self.store.retry(["b", "c", "unknown"], 2000.0), 1)
            self.assertEqual(await self.store.next_due(), 2000.0)
            self.assertEqual(await self.store.retry(None, 1500.0), 2)
            self.assertEqual(locals_of(await self.store.claim_due(1500.0, 10)), ["bob", "bob"])
            self.assertEqual(await self.store.retry([], 1500.0), 0)

        return self.run_async(check())

    def test_what_is_held_or_deleted_meanwhile_is_not_put_back(self) -> Any:
        async def check() -> None:
            items = list(await put(self.store, message("a"), message("b"), claim=True))
            rows = rows_of(items)
            await self.store.hold(["a"], "why not")
            await self.store.delete(["b"])
            await self.store.postpone(rows, 2000.0)
            self.assertEqual(await self.store.hasten(rows, 1000.0), 0)
            self.assertEqual(await self.store.claim_due(9e9, 10), [])
            self.assertEqual([item.message.id for item in await self.store.listing()], ["a"])

        return self.run_async(check())

    def test_hold(self) -> Any:
        async def check() -> None:
            await put(self.store, message("a", "bob", "carol"), message("b"))
            self.assertEqual(await self.store.hold(["a", "a", "unknown"], "it looks like spam — ask"), 1)
            self.assertEqual(await self.store.hold(["a"], "again"), 0)
            self.assertEqual([item.message.id for item in await self.store.claim_due(9e9, 10)], ["b"])
            self.assertIsNone(await self.store.next_due())
            first, second = await self.store.listing()
            self.assertEqual((first.message.hold, second.message.hold), ("it looks like spam — ask", ""))
            self.assertEqual(await self.store.retry(["a"], 2000.0), 0)
            self.assertEqual(await self.store.retry(None, 2000.0), 0)
            self.assertEqual(await self.store.let_go(["a", "b", "unknown"]), 1)
            self.assertEqual(await self.store.next_due(), 1000.0)
            (item,) = await self.store.claim_due(1000.0, 10)
            self.assertEqual((item.message.hold, locals_of([item])), ("", ["bob", "carol"]))

        return self.run_async(check())

    def test_hold_waits_for_a_delivery(self) -> Any:
        async def check() -> None:
            (item,) = await put(self.store, message("a", "bob", "carol", "dave"), claim=True)
            bob, carol, dave = rows_of([item])
            self.assertEqual(await self.store.hold(["a"], "why not"), 1)
            await self.store.record(
                [Update(row=bob, outcome=DELIVERED), Update(row=carol, outcome=LATER, next_attempt=2000.0)]
            )
            await self.store.release([dave])
            self.assertEqual(await self._remaining(), ["carol", "dave"])
            self.assertEqual(await self.store.claim_due(9e9, 10), [])
            self.assertIsNone(await self.store.next_due())
            self.assertEqual(await self.store.let_go(["a"]), 1)
            self.assertEqual(locals_of(await self.store.claim_due(9e9, 10)), ["dave", "carol"])

        return self.run_async(check())

    def test_what_is_held_can_be_deleted(self) -> Any:
        async def check() -> None:
            await put(self.store, message("a", "bob", "carol"))
            await self.store.hold(["a"], "why not")
            (item,) = await self.store.listing()
            self.assertEqual(await self.store.delete(["a"]), 1)
            self.assertEqual(await self.store.listing(), [])
            self.assertEqual(await self.store.hold(["a"], "gone"), 0)
            await self._raises(KeyError, self.store.body(item.message))

        return self.run_async(check())

    def test_orders_for_single_recipients(self) -> Any:
        async def check() -> None:
            await put(
                self.store, message("a", "bob", "carol", "dave", arrived=5000.0), message("b", arrived=5000.0)
            )
            first, second = await self.store.listing()
            bob, carol, dave = rows_of([first])
            (other,) = rows_of([second])
            order, both = self.store.order, [("a", bob), ("a", carol)]
            self.assertEqual(await order(Order.RETRY, [*both, ("b", bob), ("a", 12345)], 2000.0), 2)
            (item,) = await self.store.claim_due(2000.0, 10)
            self.assertEqual(locals_of([item]), ["bob", "carol"])
            for kind in (Order.RETRY, Order.EXPIRE, Order.DELETE):  # what is being delivered is left alone
                self.assertEqual(await order(kind, both, 2000.0), 0)
            self.assertEqual(await order(Order.REROUTE, [*both, ("a", dave)], 2500.0, "mx:25"), 3)
            self.assertEqual(await self.store.next_due(), 2500.0)
            await self.store.record([Update(row=bob, outcome=LATER, next_attempt=6000.0)])
            await self.store.release([carol])
            self.assertEqual(await order(Order.REROUTE, [("a", dave)], 2500.0), 1)
            self.assertEqual(await order(Order.DELETE, [("a", carol), ("b", other)], 3000.0), 2)
            found = await self.store.listing()
            self.assertEqual(locals_of(found), ["bob", "dave"])
            self.assertEqual([one.hop for one in found[0].recipients], ["mx:25", ""])
            await self.store.hold(["a"], "why not")
            self.assertEqual(await order(Order.RETRY, [("a", bob)], 3000.0), 0)
            self.assertEqual(await order(Order.EXPIRE, [("a", bob)], 3000.0), 1)
            self.assertEqual(await self.store.hold(["a"], "again"), 0)
            (item,) = await self.store.claim_due(9e9, 10)
            self.assertEqual([(one.row, one.given_up) for one in item.recipients], [(bob, True)])
            await self.store.release([bob])
            self.assertEqual(await self.store.next_due(), 3000.0)
            self.assertEqual(await order(Order.DELETE, [("a", bob), ("a", dave)], 3000.0), 2)
            self.assertEqual(await self.store.listing(), [])
            await self._raises(KeyError, self.store.body(item.message))

        return self.run_async(check())

    def test_only_smtp_is_rerouted(self) -> Any:
        async def check() -> None:
            await put(self.store, message("a", recipients=(recipient("bob", transport=Transport.LOCAL),)))
            (row,) = rows_of(await self.store.listing())
            self.assertEqual(await self.store.order(Order.REROUTE, [("a", row)], 1.0, "mx:25"), 0)

        return self.run_async(check())

    def test_delete(self) -> Any:
        async def check() -> None:
            await put(self.store, message("a"), message("b"))
            self.assertEqual(await self.store.delete(["a", "unknown"]), 1)
            self.assertEqual([item.message.id for item in await self.store.listing()], ["b"])
            self.assertEqual([item.message.id for item in await self.store.claim_due(9e9, 10)], ["b"])
            self.assertEqual(await self.store.delete(["a"]), 0)

        return self.run_async(check())

    def test_delete_waits_for_a_delivery(self) -> Any:
        async def check() -> None:
            for end in ("record", "release"):
                (item,) = await put(self.store, message("a", "bob", "carol"), claim=True)
                bob, carol = rows_of([item])
                await self.store.record([Update(row=bob, outcome=LATER, next_attempt=2000.0)])
                self.assertEqual(await self.store.delete(["a"]), 1)
                self.assertEqual(await self.store.delete(["a"]), 0)
                self.assertEqual(await self.store.listing(), [])
                self.assertIsNone(await self.store.find("a"))
                self.assertIsNone(await self.store.next_due())
                await self.store.body(item.message)
                if end == "record":
                    await self.store.record([Update(row=carol, outcome=LATER, next_attempt=2000.0)])
                else:
                    await self.store.release([carol])
                self.assertIsNone(await self.store.next_due())
                await self._raises(KeyError, self.store.body(item.message))

        return self.run_async(check())

    def test_listing_is_limited_and_oldest_first(self) -> Any:
        async def check() -> None:
            for name in ("c", "a", "b"):
                await put(self.store, message(name, "x", "y"))
            found = await self.store.listing(2)
            self.assertEqual(
                [(item.message.id, len(item.recipients)) for item in found], [("a", 2), ("b", 2)]
            )
            self.assertEqual([item.message.id for item in await self.store.listing(5, "a")], ["b", "c"])
            self.assertEqual(await self.store.listing(5, "c"), [])

        return self.run_async(check())

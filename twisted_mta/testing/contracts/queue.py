"""What every IQueueStore does. Mix `QueueStoreContract` into a TestCase and say how to make a store."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import DeliverBy, Notify, TlsWish
from twisted_mta.core.queue import (
    Delivered,
    Expanded,
    Failed,
    NewMessage,
    NewRecipient,
    Order,
    Status,
    Transport,
    TryLater,
    WorkItem,
)
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IBodyWriter, IQueueStore, IStoredBody, Update

if TYPE_CHECKING:
    from unittest import TestCase as _Base
else:
    _Base = object

T = TypeVar("T")

ALICE = Address("alice", "example.test")
DELIVERED = Delivered(Reply(250, "2.0.0", "delivered"))
FAILED = Failed(Reply(550, "5.1.1", "no such user"), "mx.example.org [192.0.2.1]")
LATER = TryLater(Reply(451, "4.3.0", "try later"))


def recipient(local: str, **changes: Any) -> NewRecipient:
    """A recipient at example.org."""
    address = Address(local, "example.org")
    return attrs.evolve(NewRecipient(address, Transport.SMTP, address), **changes)


def message(name: str, *locals_: str, **changes: Any) -> NewMessage:
    """A message from alice, arrived at 1000."""
    made = NewMessage(
        id=name,
        sender=ALICE,
        recipients=tuple(recipient(local) for local in locals_ or ("bob",)),
        prefix=b"Received: by example.test\r\n",
        arrived=1000.0,
        expires=433000.0,
    )
    return attrs.evolve(made, **changes)


def rows_of(items: Sequence[WorkItem]) -> list[int]:
    """The rows in WorkItems."""
    return [entry.row for item in items for entry in item.recipients]


def locals_of(items: Sequence[WorkItem]) -> list[str]:
    """The local parts of the recipients in WorkItems."""
    return [entry.address.local for item in items for entry in item.recipients]


def octets(body: IStoredBody) -> bytes:
    """All of a body."""
    with body.open() as file:
        return file.read()


async def write(store: IQueueStore, data: bytes, step: int = 1 << 20) -> IBodyWriter:
    """A body writer that has been given `data` in pieces."""
    body = store.new_body()
    for start in range(0, len(data), step):
        pending = body.write(data[start : start + step])
        if pending is not None:
            await pending
    return body


async def put(
    store: IQueueStore, *messages: NewMessage, body: bytes = b"Subject: x\r\n\r\nhi\r\n", claim: bool = False
) -> Sequence[WorkItem]:
    """Add messages over one body."""
    return await store.add(messages, await write(store, body), claim=claim)


class QueueStoreContract(_Base):
    """The contract. `make_store` returns an empty store; `run_async` may be overridden where a reactor is needed."""

    def make_store(self) -> IQueueStore:
        """A fresh, empty store; the test closes it."""
        raise NotImplementedError

    def run_async(self, coroutine: Coroutine[Any, Any, None]) -> Any:
        """Run a test to its end. This one wants everything to be done at once."""
        finished: list[object] = []
        Deferred.fromCoroutine(coroutine).addBoth(finished.append)
        if not finished:
            self.fail("the store waits for something")
        if finished[0] is not None:
            finished[0].raiseException()  # type: ignore[attr-defined]
        return None

    def setUp(self) -> None:
        self.store = self.make_store()

    async def _remaining(self) -> list[str]:
        return locals_of(await self.store.listing())

    async def _raises(self, kind: type[Exception], awaitable: Awaitable[Any]) -> None:
        try:
            await awaitable
        except kind:
            return
        self.fail(f"{kind.__name__} not raised")

    def test_interface(self) -> Any:
        verifyObject(IQueueStore, self.store)
        verifyObject(IBodyWriter, self.store.new_body())

        async def check() -> None:
            await put(self.store, message("a"))
            (item,) = await self.store.claim_due(1000.0, 10)
            verifyObject(IStoredBody, await self.store.body(item.message))

        return self.run_async(check())

    def test_everything_comes_back_as_it_was_put_in(self) -> Any:
        odd = (
            recipient("bob", notify=Notify.NEVER, orcpt="rfc822;Bob@example.org"),
            recipient("jörg", notify=Notify.SUCCESS | Notify.DELAY, transport=Transport.LOCAL),
            NewRecipient(Address('a "b"@c', "[IPv6:2001:db8::1]"), Transport.LIST, ALICE),
            recipient("robot", transport=Transport.COMMAND, target='/bin/robot "caf\udce9"'),
            NewRecipient(Address("postmaster", ""), Transport.LOCAL, Address("p@q", "[x-y:a@b]")),
            NewRecipient(Address("caf\udce9", "example.org"), Transport.SMTP, ALICE),
            recipient("own", sender=Address('b="é"@c', "example.test"), prefix=b"Delivered-To: \xff\r\n"),
        )
        new = message(
            "a1",
            recipients=odd,
            sender=Address("ünï", "example.test"),
            prefix=b"X: \xff\x00\r\n",
            body_type="8BITMIME",
            smtputf8=True,
            envid="id é",
            ret="HDRS",
            parent="zz",
            message_id="x\udcff@y",
            origin="192.0.2.1",
            not_before=1000.0,
            deliver_by=DeliverBy(2000.5, returns=True, trace=True),
            priority=-9,
            tls=TlsWish.REQUIRED,
        )
        null = message("a2", sender=None)

        async def check() -> None:
            for claim in (True, False):
                items = list(await put(self.store, new, null, body=b"\x00\xff\r\n", claim=claim))
                if not claim:
                    self.assertEqual(items, [])
                    items = list(await self.store.claim_due(1000.0, 10))
                first, second = items
                for field in attrs.fields(NewMessage):
                    if field.name not in ("recipients", "arrival"):
                        self.assertEqual(
                            getattr(first.message, field.name), getattr(new, field.name), field.name
                        )
                self.assertEqual(first.message.body_size, 4)
                self.assertEqual(first.message.size, 4 + len(new.prefix))
                self.assertIsNone(second.message.sender)
                self.assertEqual(first.message.body_id, second.message.body_id)
                for entry, given in zip(first.recipients, odd, strict=True):
                    for field in attrs.fields(NewRecipient):
                        if field.name == "via":
                            continue
                        self.assertEqual(getattr(entry, field.name), getattr(given, field.name), field.name)
                    self.assertEqual(
                        (entry.status, entry.attempts, entry.next_attempt, entry.last_reply),
                        (Status.QUEUED, 0, 1000.0, ""),
                    )
                    self.assertEqual((entry.warned, entry.late), (False, False))
                self.assertEqual(octets(await self.store.body(first.message)), b"\x00\xff\r\n")
                self.assertEqual(await self.store.listing(), items)
                self.assertEqual(await self.store.find("a1"), first)
                await self.store.record([Update(row=row, outcome=DELIVERED) for row in rows_of(items)])

        return self.run_async(check())

    def test_claimed_is_nobody_elses(self) -> Any:
        async def check() -> None:
            mine = await put(self.store, message("a", "bob", "carol"), claim=True)
            self.assertEqual(await self.store.claim_due(9e9, 10), [])
            self.assertIsNone(await self.store.next_due())
            await self.store.release([rows_of(mine)[0]])
            self.assertEqual(await self.store.next_due(), 1000.0)
            self.assertEqual(locals_of(await self.store.claim_due(1000.0, 10)), ["bob"])

        return self.run_async(check())

    def test_what_is_held_back_is_not_claimed_before_its_time(self) -> Any:
        held = message("b", "dave", "erin", not_before=5000.0, deliver_by=DeliverBy(6000.0, returns=False))

        async def check() -> None:
            mine = await put(self.store, message("a"), held, message("c", "frank"), claim=True)
            self.assertEqual(locals_of(mine), ["bob", "frank"])
            self.assertEqual(await self.store.claim_due(4999.0, 10), [])
            self.assertEqual(await self.store.next_due(), 5000.0)
            (item,) = await self.store.claim_due(5000.0, 10)
            self.assertEqual(locals_of([item]), ["dave", "erin"])
            self.assertEqual((item.message.not_before, item.message.deliver_by), (5000.0, held.deliver_by))
            self.assertEqual(octets(await self.store.body(item.message)), b"Subject: x\r\n\r\nhi\r\n")
            await self.store.record([Update(row=row, outcome=DELIVERED) for row in rows_of([*mine, item])])
            self.assertEqual(await self._remaining(), [])

        return self.run_async(check())

    def test_a_held_message_among_the_new_ones(self) -> Any:
        async def check() -> None:
            (item,) = await put(self.store, message("a"), claim=True)
            children = (message("b", "x", not_before=5000.0), message("c", "y"))
            expanded = Expanded(children, Reply(250, "2.0.0", "ok"))
            await self.store.record([Update(row=item.recipients[0].row, outcome=expanded)])
            self.assertEqual(locals_of(await self.store.claim_due(1000.0, 10)), ["y"])
            self.assertEqual(await self.store.next_due(), 5000.0)

        return self.run_async(check())

    def test_late_is_remembered(self) -> Any:
        async def check() -> None:
            (item,) = await put(self.store, message("a"), claim=True)
            for late in (True, False):
                row = item.recipients[0].row
                await self.store.record([Update(row=row, outcome=LATER, next_attempt=5.0, late=late)])
                (item,) = await self.store.claim_due(5.0, 1)
                self.assertEqual((item.recipients[0].late, item.recipients[0].warned), (True, False))

        return self.run_async(check())

    def test_due_in_order_and_limited(self) -> Any:
        async def check() -> None:
            await put(self.store, message("late", "x", "y", arrived=30.0))
            await put(self.store, message("early", "a", "b", "c", arrived=10.0))
            await put(self.store, message("never", "z", arrived=99.0))
            self.assertEqual(await self.store.next_due(), 10.0)
            self.assertEqual(await self.store.claim_due(9.9, 10), [])
            first = await self.store.claim_due(50.0, 2)
            self.assertEqual([(item.message.id, len(item.recipients)) for item in first], [("early", 2)])
            second = await self.store.claim_due(50.0, 10)
            self.assertEqual(
                [(item.message.id, len(item.recipients)) for item in second], [("early", 1), ("late", 2)]
            )
            self.assertEqual(await self.store.next_due(), 99.0)

        return self.run_async(check())

    def test_a_failed_attempt_waits_for_its_time(self) -> Any:
        async def check() -> None:
            items = await put(self.store, message("a"), claim=True)
            (row,) = rows_of(items)
            await self.store.record([Update(row=row, outcome=LATER, next_attempt=1300.0, warned=True)])
            self.assertEqual(await self.store.next_due(), 1300.0)
            self.assertEqual(await self.store.claim_due(1299.0, 10), [])
            (item,) = await self.store.claim_due(1300.0, 10)
            (entry,) = item.recipients
            self.assertEqual((entry.row, entry.attempts, entry.warned), (row, 1, True))
            self.assertEqual(entry.last_reply, "451 4.3.0 try later")
            await self.store.record([Update(row=row, outcome=LATER, next_attempt=1400.0)])
            found = await self.store.find("a")
            assert found is not None
            self.assertEqual((found.recipients[0].attempts, found.recipients[0].warned), (2, True))
            self.assertEqual(octets(await self.store.body(item.message)), b"Subject: x\r\n\r\nhi\r\n")

        return self.run_async(check())

    def test_done_recipients_leave_and_the_last_takes_the_message_along(self) -> Any:
        async def check() -> None:
            (item,) = await put(self.store, message("a", "bob", "carol"), claim=True)
            first, second = rows_of([item])
            await self.store.record([Update(row=first, outcome=DELIVERED)])
            self.assertEqual(await self._remaining(), ["carol"])
            await self.store.body(item.message)
            await self.store.record([Update(row=second, outcome=FAILED)])
            self.assertEqual(await self._remaining(), [])
            self.assertIsNone(await self.store.find("a"))
            await self._raises(KeyError, self.store.body(item.message))

        return self.run_async(check())

    def test_a_body_lasts_as_long_as_one_of_its_messages(self) -> Any:
        async def check() -> None:
            one, two = await put(self.store, message("a"), message("b"), claim=True)
            await self.store.record([Update(row=rows_of([one])[0], outcome=DELIVERED)])
            self.assertEqual(octets(await self.store.body(two.message)), b"Subject: x\r\n\r\nhi\r\n")
            await self.store.record([Update(row=rows_of([two])[0], outcome=DELIVERED)])
            await self._raises(KeyError, self.store.body(two.message))

        return self.run_async(check())

    def test_new_messages_come_with_the_outcome(self) -> Any:
        async def check() -> None:
            (item,) = await put(self.store, message("a"), claim=True)
            bounce = message("b", "alice", sender=None, parent="a", arrived=1001.0)
            await self.store.record(
                [Update(row=rows_of([item])[0], outcome=FAILED)], [(bounce, b"Subject: failed\r\n\r\n")]
            )
            self.assertIsNone(await self.store.find("a"))
            (claimed,) = await self.store.claim_due(1001.0, 10)
            self.assertEqual((claimed.message.id, claimed.message.parent), ("b", "a"))
            self.assertEqual(octets(await self.store.body(claimed.message)), b"Subject: failed\r\n\r\n")

        return self.run_async(check())

    def test_expanded_messages_share_the_body(self) -> Any:
        async def check() -> None:
            (item,) = await put(self.store, message("a", "list", "bob"), claim=True)
            first, second = rows_of([item])
            children = (message("c1", "x", "y", parent="a"), message("c2", "z", parent="a"))
            await self.store.record(
                [Update(row=first, outcome=Expanded(children, Reply(250, "2.0.0", "expanded")))]
            )
            claimed = await self.store.claim_due(1000.0, 10)
            self.assertEqual(locals_of(claimed), ["x", "y", "z"])
            self.assertEqual({found.message.body_id for found in claimed}, {item.message.body_id})
            await self.store.record([Update(row=second, outcome=DELIVERED)])
            await self.store.record([Update(row=row, outcome=DELIVERED) for row in rows_of(claimed)[:2]])
            self.assertEqual(octets(await self.store.body(claimed[1].message)), b"Subject: x\r\n\r\nhi\r\n")
            await self.store.record([Update(row=rows_of(claimed)[2], outcome=DELIVERED)])
            self.assertEqual(await self._remaining(), [])
            await self._raises(KeyError, self.store.body(claimed[1].message))

        return self.run_async(check())

    def test_expanding_the_only_recipient(self) -> Any:
        async def check() -> None:
            (item,) = await put(self.store, message("a", "list"), claim=True)
            child = message("c", "x", parent="a")
            await self.store.record(
                [Update(row=rows_of([item])[0], outcome=Expanded((child,), Reply(250, "2.0.0", "expanded")))]
            )
            self.assertIsNone(await self.store.find("a"))
            (claimed,) = await self.store.claim_due(1000.0, 10)
            self.assertEqual(octets(await self.store.body(claimed.message)), b"Subject: x\r\n\r\nhi\r\n")

        return self.run_async(check())

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

    def test_postpone_and_hasten(self) -> Any:
        async def check() -> None:
            (item,) = await put(self.store, message("a", *"bcde"), claim=True)
            b, c, d, e = rows_of([item])
            await self.store.postpone([b, c, 999_999], 3000.0, "451 4.4.1 out of reach")
            await self.store.postpone([d], 4000.0)
            await self.store.record([Update(row=e, outcome=LATER, next_attempt=5000.0)])
            self.assertEqual(await self.store.next_due(), 3000.0)
            (found,) = await self.store.listing()
            self.assertEqual(
                [(one.attempts, one.next_attempt, one.last_reply) for one in found.recipients],
                [
                    (0, 3000.0, "451 4.4.1 out of reach"),
                    (0, 3000.0, "451 4.4.1 out of reach"),
                    (0, 4000.0, ""),
                    (1, 5000.0, str(LATER.reply)),
                ],
            )
            self.assertEqual(await self.store.hasten([c, d, d, 999_999], 2000.0), 2)
            self.assertEqual(locals_of(await self.store.claim_due(2000.0, 10)), ["c", "d"])
            self.assertEqual(await self.store.hasten([b, c, d], 2000.0), 1)
            self.assertEqual(await self.store.hasten([b], 2500.0), 0)
            await self.store.postpone([c], 6000.0)
            (found,) = await self.store.listing()
            self.assertEqual(found.recipients[1].last_reply, "451 4.4.1 out of reach")
            self.assertEqual(await self.store.next_due(), 2000.0)

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

    def test_all_or_none(self) -> Any:
        async def check() -> None:
            await put(self.store, message("a"))
            await self._raises(Exception, put(self.store, message("b"), message("a")))
            self.assertEqual([item.message.id for item in await self.store.listing()], ["a"])
            await put(self.store, message("b"))
            self.assertEqual([item.message.id for item in await self.store.listing()], ["a", "b"])

        return self.run_async(check())

    def test_a_message_needs_recipients(self) -> Any:
        async def check() -> None:
            await self._raises(ValueError, put(self.store, message("a"), message("b", recipients=())))
            (item,) = await put(self.store, message("a", "list"), claim=True)
            empty = Expanded((message("b", recipients=()),), Reply(250, "2.0.0", "nobody"))
            await self.store.record([Update(row=rows_of([item])[0], outcome=empty)])
            self.assertEqual(await self.store.listing(), [])
            await self._raises(KeyError, self.store.body(item.message))

        return self.run_async(check())

    def test_unknown_rows_are_harmless(self) -> Any:
        async def check() -> None:
            await put(self.store, message("a"))
            await self.store.record([Update(row=12345, outcome=DELIVERED), Update(row=12346, outcome=LATER)])
            await self.store.release([12345])
            self.assertEqual(await self._remaining(), ["bob"])

        return self.run_async(check())

    def test_abort(self) -> Any:
        async def check() -> None:
            body = await write(self.store, b"x" * 100)
            self.assertEqual(body.size, 100)
            body.abort()
            body.abort()
            used = await write(self.store, b"y" * 100)
            (item,) = await self.store.add([message("a")], used, claim=True)
            used.abort()
            self.assertEqual(octets(await self.store.body(item.message)), b"y" * 100)

        return self.run_async(check())

    def test_the_header_of_a_body(self) -> Any:
        async def check() -> None:
            for rest in (b"", b"body\r\n", b"body\r\n" * 50_000):
                data = b"Subject: x\r\nTo: y\r\n\r\n" + rest
                body = await write(self.store, data, 7000)
                self.assertEqual(await body.header(1000), b"Subject: x\r\nTo: y\r\n\r\n")
                self.assertEqual(await body.header(5), b"Subje")
                (item,) = await self.store.add([message(f"a{len(rest)}")], body, claim=True)
                self.assertEqual(octets(await self.store.body(item.message)), data)

        return self.run_async(check())

    def test_a_body_before_it_is_added(self) -> Any:
        async def check() -> None:
            for size in (10, 400_000):
                data = b"x" * size
                body = await write(self.store, data, 7000)
                stored = await body.stored()
                self.assertEqual((stored.size, octets(stored), octets(stored)), (size, data, data))
                (item,) = await self.store.add([message(f"s{size}")], body, claim=True)
                self.assertEqual(octets(await self.store.body(item.message)), data)

        return self.run_async(check())

    def test_a_body_opens_any_number_of_times(self) -> Any:
        async def check() -> None:
            (item,) = await put(self.store, message("a"), body=b"12345", claim=True)
            body = await self.store.body(item.message)
            self.assertEqual(body.size, 5)
            with body.open() as one, body.open() as two:
                self.assertEqual((one.read(3), two.read(), one.read()), (b"123", b"12345", b"45"))

        return self.run_async(check())


__all__ = [
    "ALICE",
    "DELIVERED",
    "FAILED",
    "LATER",
    "QueueStoreContract",
    "locals_of",
    "message",
    "octets",
    "put",
    "recipient",
    "rows_of",
    "write",
]

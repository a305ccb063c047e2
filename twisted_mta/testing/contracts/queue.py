"""What every IQueueStore does. Mix `QueueStoreContract` into a TestCase and say how to make a store."""

from __future__ import annotations

from typing import Any

import attrs
from zope.interface.verify import verifyObject

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import DeliverBy, Notify, TlsWish
from twisted_mta.core.queue import (
    Expanded,
    NewMessage,
    NewRecipient,
    Status,
    Transport,
)
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IBodyWriter, IQueueStore, IStoredBody, Update
from twisted_mta.testing.contracts.queue_base import (
    ALICE,
    DELIVERED,
    FAILED,
    LATER,
    locals_of,
    message,
    octets,
    put,
    recipient,
    rows_of,
    write,
)
from twisted_mta.testing.contracts.queue_bodies import BodiesContract
from twisted_mta.testing.contracts.queue_orders import OrdersContract

#: Recipients with all that may be unusual in them.
_ODD = (
    recipient("bob", notify=Notify.NEVER, orcpt="rfc822;Bob@example.org"),
    recipient("jörg", notify=Notify.SUCCESS | Notify.DELAY, transport=Transport.LOCAL),
    NewRecipient(Address('a "b"@c', "[IPv6:2001:db8::1]"), Transport.LIST, ALICE),
    recipient("robot", transport=Transport.COMMAND, target='/bin/robot "caf\udce9"'),
    NewRecipient(Address("postmaster", ""), Transport.LOCAL, Address("p@q", "[x-y:a@b]")),
    NewRecipient(Address("caf\udce9", "example.org"), Transport.SMTP, ALICE),
    recipient("own", sender=Address('b="é"@c', "example.test"), prefix=b"Delivered-To: \xff\r\n"),
)


class QueueStoreContract(OrdersContract, BodiesContract):
    """The contract. `make_store` returns an empty store; `run_async` may be overridden where a reactor is needed."""

    def test_interface(self) -> Any:
        verifyObject(IQueueStore, self.store)
        verifyObject(IBodyWriter, self.store.new_body())

        async def check() -> None:
            await put(self.store, message("a"))
            (item,) = await self.store.claim_due(1000.0, 10)
            verifyObject(IStoredBody, await self.store.body(item.message))

        return self.run_async(check())

    def test_everything_comes_back_as_it_was_put_in(self) -> Any:
        new = message(
            "a1",
            recipients=_ODD,
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
                for entry, given in zip(first.recipients, _ODD, strict=True):
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

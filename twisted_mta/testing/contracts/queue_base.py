"""What the parts of the contract of IQueueStore share: messages to put in, and ways to look at what comes out."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
from twisted.internet.defer import Deferred

from twisted_mta.core.address import Address
from twisted_mta.core.queue import (
    Delivered,
    Failed,
    NewMessage,
    NewRecipient,
    Transport,
    TryLater,
    WorkItem,
)
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IBodyWriter, IQueueStore, IStoredBody

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


class QueueContract(_Base):
    """What the parts of the contract share. `make_store` returns an empty store; `run_async` may be overridden where a
    reactor is needed."""

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

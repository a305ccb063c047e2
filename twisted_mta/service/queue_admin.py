"""What an administrator does to the queue, whether or not a server is running."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

import attrs
from twisted.logger import Logger

from twisted_mta.core.queue import Order, QueuedMessage, QueuedRecipient, WorkItem
from twisted_mta.core.selection import Selection
from twisted_mta.core.values import value
from twisted_mta.interfaces import IQueueStore, IStoredBody

#: Messages that are looked at in one go.
PAGE = 500
#: Queue ids that are told.
MAX_IDS = 1000

#: A message, and the recipients that are meant.
Chosen = tuple[WorkItem, Sequence[QueuedRecipient]]


@value(kw_only=True)
class Named:
    """Which messages are meant: those with these ids (None: all), as far as the selection means them."""

    ids: tuple[str, ...] | None = None
    selection: Selection = attrs.field(factory=Selection)


@attrs.define
class Done:
    """What was done."""

    messages: int = 0
    recipients: int = 0
    #: The first of the messages.
    ids: list[str] = attrs.field(factory=list)


class QueueAdmin:
    """Works on the store. `seconds` gives Unix seconds.

    A running queue is told by `wake` that something may be due, and by `forget` that messages were deleted.
    """

    log = Logger()

    def __init__(
        self,
        store: IQueueStore,
        seconds: Callable[[], float],
        *,
        wake: Callable[[], None] = lambda: None,
        forget: Callable[[Collection[str]], None] = lambda queue_ids: None,
    ) -> None:
        self._store = store
        self._seconds = seconds
        self._wake = wake
        self._forget = forget

    # --- looking ---------------------------------------------------------------------------------

    async def find(self, queue_id: str) -> WorkItem | None:
        """See IQueueStore."""
        return await self._store.find(queue_id)

    async def body(self, message: QueuedMessage) -> IStoredBody:
        """See IQueueStore."""
        return await self._store.body(message)

    async def choose(self, named: Named, after: str = "") -> AsyncIterator[list[Chosen]]:
        """What is meant, a page at a time, by rising queue id from `after` on. Pages may be empty."""
        if named.ids is not None:
            found = [await self._store.find(name) for name in sorted(set(named.ids))]
            yield self._filter(named.selection, [item for item in found if item is not None])
            return
        while items := await self._store.listing(PAGE, after):
            yield self._filter(named.selection, items)
            after = items[-1].message.id

    def _filter(self, selection: Selection, items: Sequence[WorkItem]) -> list[Chosen]:
        now = self._seconds()
        return [(item, chosen) for item in items if (chosen := selection.of(item, now))]

    # --- acting ----------------------------------------------------------------------------------

    async def count(self, named: Named) -> Done:
        """What is meant; nothing is done."""
        done = Done()
        async for chosen in self.choose(named):
            _note(done, chosen, sum(len(recipients) for _, recipients in chosen))
        return done

    async def hold(self, named: Named, reason: str) -> Done:
        """Hold messages back, whole; those that are held already keep their reason."""
        return await self._to_messages(named, "held", False, lambda ids: self._store.hold(ids, reason))

    async def release(self, named: Named) -> Done:
        """Let them go."""
        return await self._to_messages(named, "released", True, self._store.let_go)

    async def _to_messages(
        self, named: Named, what: str, held: bool, act: Callable[[Sequence[str]], Awaitable[int]]
    ) -> Done:
        """`held`: whether it is for those that are."""
        done = Done()
        async for chosen in self.choose(named):
            there = [pair for pair in chosen if bool(pair[0].message.hold) is held]
            if there:
                await act([item.message.id for item, _ in there])
            _note(done, there, sum(len(item.recipients) for item, _ in there))
        self._tell(what, done)
        return done

    async def order(self, named: Named, order: Order, hop: str = "") -> Done:
        """Do that for recipients; `hop` is for REROUTE."""
        done = Done()
        async for chosen in self.choose(named):
            pairs = [(item.message.id, one.row) for item, recipients in chosen for one in recipients]
            count = await self._store.order(order, pairs, self._seconds(), hop) if pairs else 0
            _note(done, chosen if count else [], count)
        self._tell(order.value, done)
        return done

    async def delete(self, named: Named) -> Done:
        """Remove messages, or those of their recipients that are meant; nobody is told.

        What is being delivered is removed when that ends, if its whole message is meant.
        """
        done = Done()
        async for chosen in self.choose(named):
            whole = [pair for pair in chosen if len(pair[1]) == len(pair[0].recipients)]
            ids = [item.message.id for item, _ in whole]
            await self._store.delete(ids)
            self._forget(ids)
            _note(done, whole, sum(len(recipients) for _, recipients in whole))
            parts = [pair for pair in chosen if len(pair[1]) < len(pair[0].recipients)]
            pairs = [(item.message.id, one.row) for item, recipients in parts for one in recipients]
            count = await self._store.order(Order.DELETE, pairs, self._seconds()) if pairs else 0
            _note(done, parts if count else [], count)
        self._tell("deleted", done)
        return done

    def _tell(self, what: str, done: Done) -> None:
        self.log.info(
            "an administrator's order: {event}, {recipients} recipients of {messages} messages",
            event=what,
            recipients=done.recipients,
            messages=done.messages,
            queue_ids=done.ids,
        )
        self._wake()


def _note(done: Done, chosen: Sequence[Chosen], recipients: int) -> None:
    done.messages += len(chosen)
    done.recipients += recipients if chosen else 0
    done.ids += [item.message.id for item, _ in chosen][: MAX_IDS - len(done.ids)]

"""A queue in memory, with knobs for what can go wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Sequence

from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_mta.core.queue import NewMessage, Order, QueuedMessage, WorkItem
from twisted_mta.interfaces import IBodyWriter, IQueueStore, IStoredBody, StoreFull, Update
from twisted_mta.store.queue import memory


@implementer(IBodyWriter)
class MemoryBodyWriter:
    """Collects octets. While `store.full`, every write raises StoreFull."""

    def __init__(self, store: MemoryQueueStore) -> None:
        self._store = store
        self.written = memory.MemoryBodyWriter()
        self.aborted = False

    @property
    def size(self) -> int:
        """See IBodyWriter."""
        return self.written.size

    def write(self, data: bytes) -> Awaitable[None] | None:
        """Append, at once."""
        self._store.check_room(len(data))
        return self.written.write(data)

    def header(self, limit: int) -> Awaitable[bytes]:
        """See IBodyWriter."""
        return self.written.header(limit)

    def in_memory(self) -> IStoredBody | None:
        """See IBodyWriter."""
        return self.written.in_memory()

    def stored(self) -> Awaitable[IStoredBody]:
        """See IBodyWriter."""
        return self.written.stored()

    def abort(self) -> None:
        """Forget it."""
        self.aborted = True
        self.written.abort()


@implementer(IQueueStore)
class MemoryQueueStore:
    """`store.queue.memory.MemoryQueueStore` with knobs:

    - `full`: there is no room; `add`, and writing to a body, raise StoreFull.
    - `fail(method, *errors)`: exceptions for the next calls of that method, one each.
    - `stall(method)`: calls of that method wait until the Deferred that it returns is fired.
    """

    def __init__(self) -> None:
        self.full = False
        self.errors: dict[str, deque[Exception]] = {}
        self._stalls: dict[str, Deferred[None]] = {}
        self._store = memory.MemoryQueueStore()
        self.closed = False

    def fail(self, method: str, *errors: Exception) -> None:
        """The next calls of `method` raise these, one each."""
        self.errors.setdefault(method, deque()).extend(errors)

    def stall(self, method: str) -> Deferred[None]:
        """Calls of `method` take effect only when this is fired."""
        stall = self._stalls[method] = Deferred()
        return stall

    async def _enter(self, method: str) -> None:
        if method in self._stalls:
            released: Deferred[None] = Deferred()

            def release(result: None) -> None:
                self._stalls.pop(method, None)
                released.callback(None)

            self._stalls[method].addCallback(release)
            await released
        if self.errors.get(method):
            raise self.errors[method].popleft()

    # --- IQueueStore -----------------------------------------------------------------------------

    def check_room(self, octets: int) -> None:
        """Raises StoreFull when `full`."""
        if self.full:
            raise StoreFull("the test says that there is no room")

    def new_body(self) -> IBodyWriter:
        return MemoryBodyWriter(self)

    async def add(
        self, messages: Sequence[NewMessage], body: IBodyWriter, *, claim: bool = False
    ) -> Sequence[WorkItem]:
        self.check_room(0)
        await self._enter("add")
        assert isinstance(body, MemoryBodyWriter)
        return await self._store.add(messages, body.written, claim=claim)

    async def claim_due(self, now: float, limit: int) -> Sequence[WorkItem]:
        await self._enter("claim_due")
        return await self._store.claim_due(now, limit)

    async def next_due(self) -> float | None:
        await self._enter("next_due")
        return await self._store.next_due()

    async def body(self, message: QueuedMessage) -> IStoredBody:
        await self._enter("body")
        return await self._store.body(message)

    async def record(self, updates: Sequence[Update], new: Sequence[tuple[NewMessage, bytes]] = ()) -> None:
        await self._enter("record")
        await self._store.record(updates, new)

    def note_delivered(self, message: NewMessage, size: int, update: Update) -> None:
        self._store.note_delivered(message, size, update)

    async def release(self, rows: Sequence[int]) -> None:
        await self._enter("release")
        await self._store.release(rows)

    async def postpone(self, rows: Sequence[int], until: float, note: str = "") -> None:
        await self._enter("postpone")
        await self._store.postpone(rows, until, note)

    async def hasten(self, rows: Sequence[int], now: float) -> int:
        await self._enter("hasten")
        return await self._store.hasten(rows, now)

    async def listing(self, limit: int = 1000, after: str = "") -> Sequence[WorkItem]:
        await self._enter("listing")
        return await self._store.listing(limit, after)

    async def find(self, queue_id: str) -> WorkItem | None:
        await self._enter("find")
        return await self._store.find(queue_id)

    async def retry(self, queue_ids: Sequence[str] | None, now: float) -> int:
        await self._enter("retry")
        return await self._store.retry(queue_ids, now)

    async def hold(self, queue_ids: Sequence[str], reason: str) -> int:
        await self._enter("hold")
        return await self._store.hold(queue_ids, reason)

    async def let_go(self, queue_ids: Sequence[str]) -> int:
        await self._enter("let_go")
        return await self._store.let_go(queue_ids)

    async def order(
        self, order: Order, recipients: Sequence[tuple[str, int]], now: float, hop: str = ""
    ) -> int:
        await self._enter("order")
        return await self._store.order(order, recipients, now, hop)

    async def delete(self, queue_ids: Sequence[str]) -> int:
        await self._enter("delete")
        return await self._store.delete(queue_ids)

    async def close(self) -> None:
        await self._store.close()
        self.closed = True

    # --- for assertions --------------------------------------------------------------------------

    @property
    def bodies(self) -> list[bytes]:
        """The bodies that are stored."""
        return self._store.bodies

    @property
    def body_count(self) -> int:
        """How many."""
        return len(self._store.bodies)

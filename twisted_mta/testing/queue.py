"""A queue in memory, with knobs for what can go wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Sequence

import attrs
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_mta.core.queue import (
    Expanded,
    NewMessage,
    QueuedMessage,
    QueuedRecipient,
    Status,
    TryLater,
    WorkItem,
)
from twisted_mta.interfaces import IBodyWriter, IQueueStore, IStoredBody, StoreFull, Update
from twisted_mta.store.queue.bodies import MemoryBody


@implementer(IBodyWriter)
class MemoryBodyWriter:
    """Collects octets. While `store.full`, every write raises StoreFull."""

    def __init__(self, store: MemoryQueueStore) -> None:
        self._store = store
        self._chunks: list[bytes] = []
        self.size = 0
        self.aborted = False

    def write(self, data: bytes) -> Awaitable[None] | None:
        """Append, at once."""
        self._store.check_room()
        self._chunks.append(data)
        self.size += len(data)
        return None

    def abort(self) -> None:
        """Forget it."""
        self.aborted = True
        self._chunks.clear()

    def value(self) -> bytes:
        """What was written."""
        return b"".join(self._chunks)


@attrs.define
class _Row:
    message: str
    recipient: QueuedRecipient
    claimed: bool


@implementer(IQueueStore)
class MemoryQueueStore:
    """IQueueStore without a disk. Knobs:

    - `full`: there is no room; `add`, and writing to a body, raise StoreFull.
    - `errors[method]`: exceptions for the next calls of that method, one each.
    - `stall(method)`: calls of that method wait until the Deferred that it returns is fired.
    """

    def __init__(self) -> None:
        self.full = False
        self.errors: dict[str, deque[Exception]] = {}
        self._stalls: dict[str, Deferred[None]] = {}
        self._messages: dict[str, QueuedMessage] = {}
        self._rows: dict[int, _Row] = {}
        self._bodies: dict[int, bytes] = {}
        self._doomed: set[str] = set()
        self._last_row = self._last_body = 0
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

    # --- adding ----------------------------------------------------------------------------------

    def check_room(self) -> None:
        """Raises StoreFull when `full`."""
        if self.full:
            raise StoreFull("the test says that there is no room")

    def new_body(self) -> IBodyWriter:
        return MemoryBodyWriter(self)

    async def add(
        self, messages: Sequence[NewMessage], body: IBodyWriter, *, claim: bool = False
    ) -> Sequence[WorkItem]:
        self.check_room()
        await self._enter("add")
        assert isinstance(body, MemoryBodyWriter)
        if any(message.id in self._messages for message in messages):
            raise ValueError("a queue id came twice")
        if not all(message.recipients for message in messages):
            raise ValueError("a message without recipients would stay for ever")
        number = self._add_body(body.value())
        items = [self._add_message(message, number, claim) for message in messages]
        held = {message.id for message in messages if message.held}
        return [item for item in items if item.message.id not in held] if claim else ()

    def _add_body(self, data: bytes) -> int:
        self._last_body += 1
        self._bodies[self._last_body] = data
        return self._last_body

    def _add_message(self, message: NewMessage, body: int, claim: bool) -> WorkItem:
        fields = {field.name: getattr(message, field.name) for field in attrs.fields(NewMessage)}
        del fields["recipients"]
        queued = QueuedMessage(**fields, body_id=body, body_size=len(self._bodies[body]))
        self._messages[message.id] = queued
        recipients = []
        for recipient in message.recipients:
            self._last_row += 1
            entry = QueuedRecipient(
                row=self._last_row,
                **attrs.asdict(recipient, recurse=False),
                status=Status.QUEUED,
                attempts=0,
                next_attempt=message.released,
                last_reply="",
                warned=False,
            )
            self._rows[self._last_row] = _Row(message.id, entry, claim and not message.held)
            recipients.append(entry)
        return WorkItem(queued, tuple(recipients))

    # --- working ---------------------------------------------------------------------------------

    async def claim_due(self, now: float, limit: int) -> Sequence[WorkItem]:
        await self._enter("claim_due")
        due = sorted(
            (row for row in self._rows.values() if self._waits(row) and row.recipient.next_attempt <= now),
            key=lambda row: (row.recipient.next_attempt, row.recipient.row),
        )[:limit]
        for row in due:
            row.claimed = True
        return self._items(due)

    def _items(self, found: Sequence[_Row]) -> list[WorkItem]:
        grouped: dict[str, list[QueuedRecipient]] = {}
        for row in found:
            grouped.setdefault(row.message, []).append(row.recipient)
        return [WorkItem(self._messages[name], tuple(recipients)) for name, recipients in grouped.items()]

    async def next_due(self) -> float | None:
        await self._enter("next_due")
        return min(
            (row.recipient.next_attempt for row in self._rows.values() if self._waits(row)), default=None
        )

    def _waits(self, row: _Row) -> bool:
        return not row.claimed and not self._messages[row.message].hold

    async def body(self, message: QueuedMessage) -> IStoredBody:
        await self._enter("body")
        return MemoryBody(self._bodies[message.body_id])

    async def record(self, updates: Sequence[Update], new: Sequence[tuple[NewMessage, bytes]] = ()) -> None:
        await self._enter("record")
        for update in updates:
            row = self._rows.get(update.row)
            if row is None:
                continue
            match update.outcome:
                case TryLater(reply):
                    row.claimed = False
                    row.recipient = attrs.evolve(
                        row.recipient,
                        attempts=row.recipient.attempts + 1,
                        next_attempt=update.next_attempt,
                        last_reply=str(reply),
                        warned=row.recipient.warned or update.warned,
                        late=row.recipient.late or update.late,
                    )
                case Expanded(messages):
                    body = self._messages[row.message].body_id
                    for message in messages:
                        if message.recipients:
                            self._add_message(message, body, False)
                    del self._rows[update.row]
                case _:
                    del self._rows[update.row]
        for message, data in new:
            self._add_message(message, self._add_body(data), False)
        self._prune()

    async def release(self, rows: Sequence[int]) -> None:
        await self._enter("release")
        for number in rows:
            if number in self._rows:
                self._rows[number].claimed = False
        self._prune()

    def _prune(self) -> None:
        for number, row in list(self._rows.items()):
            if row.message in self._doomed and not row.claimed:
                del self._rows[number]
        messages = {row.message for row in self._rows.values()}
        self._messages = {name: found for name, found in self._messages.items() if name in messages}
        self._doomed &= messages
        bodies = {message.body_id for message in self._messages.values()}
        self._bodies = {number: data for number, data in self._bodies.items() if number in bodies}

    # --- the administrator -----------------------------------------------------------------------

    async def listing(self, limit: int = 1000) -> Sequence[WorkItem]:
        await self._enter("listing")
        names = sorted(name for name in self._messages if name not in self._doomed)[:limit]
        rows = [row for _, row in sorted(self._rows.items()) if row.message in names]
        return sorted(self._items(rows), key=lambda item: item.message.id)

    async def find(self, queue_id: str) -> WorkItem | None:
        await self._enter("find")
        found = self._items([row for row in self._rows.values() if row.message == queue_id])
        return found[0] if found and queue_id not in self._doomed else None

    async def retry(self, queue_ids: Sequence[str] | None, now: float) -> int:
        await self._enter("retry")
        count = 0
        for row in self._rows.values():
            if self._waits(row) and (queue_ids is None or row.message in queue_ids):
                row.recipient = attrs.evolve(row.recipient, next_attempt=now)
                count += 1
        return count

    async def hold(self, queue_ids: Sequence[str], reason: str) -> int:
        await self._enter("hold")
        return self._set_hold(queue_ids, "", reason)

    async def let_go(self, queue_ids: Sequence[str]) -> int:
        await self._enter("let_go")
        return self._set_hold(queue_ids, None, "")

    def _set_hold(self, queue_ids: Sequence[str], old: str | None, new: str) -> int:
        """`old` None: any but ""."""
        count = 0
        for name in dict.fromkeys(queue_ids):
            message = self._messages.get(name)
            if message is None or name in self._doomed:
                continue
            if bool(message.hold) if old is None else message.hold == old:
                self._messages[name] = attrs.evolve(message, hold=new)
                count += 1
        return count

    async def delete(self, queue_ids: Sequence[str]) -> int:
        await self._enter("delete")
        found = [
            name for name in dict.fromkeys(queue_ids) if name in self._messages and name not in self._doomed
        ]
        self._doomed.update(found)
        self._prune()
        return len(found)

    async def close(self) -> None:
        for row in self._rows.values():
            row.claimed = False
        self._prune()
        self.closed = True

    # --- for assertions --------------------------------------------------------------------------

    @property
    def body_count(self) -> int:
        """How many bodies are stored."""
        return len(self._bodies)

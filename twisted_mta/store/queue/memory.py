"""IQueueStore in memory: for simulations, and beneath the stand-in of the tests.

Nothing waits here, and nothing lasts. What is due is found by a heap, whose entries go stale when a recipient gets
another time or is claimed, and are passed over then.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Iterable, Sequence

import attrs
from zope.interface import implementer

from twisted_mta.core.message import header_length
from twisted_mta.core.queue import (
    Expanded,
    NewMessage,
    Order,
    QueuedMessage,
    QueuedRecipient,
    Transport,
    TryLater,
    WorkItem,
)
from twisted_mta.interfaces import IBodyWriter, IQueueStore, IStoredBody, Update
from twisted_mta.store.queue.bodies import MemoryBody

#: What `record` noted: the message, the recipient as it was, and what became of it; and the messages that came of it.
Recorded = Callable[
    [Sequence[tuple[QueuedMessage, QueuedRecipient, Update]], Sequence[tuple[NewMessage, bytes]]], None
]

#: What `postpone` was given: the message, the recipient as it was, and the note.
Postponed = Callable[[QueuedMessage, QueuedRecipient, str], None]


@implementer(IBodyWriter)
class MemoryBodyWriter:
    """Collects octets."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> Awaitable[None] | None:
        """Append, at once."""
        self._chunks.append(data)
        self.size += len(data)
        return None

    async def header(self, limit: int) -> bytes:
        """See IBodyWriter."""
        data = self.value()
        return data[: min(header_length(data), limit)]

    def in_memory(self) -> IStoredBody | None:
        """See IBodyWriter."""
        return MemoryBody(self.value())

    async def stored(self) -> IStoredBody:
        """See IBodyWriter."""
        return MemoryBody(self.value())

    def abort(self) -> None:
        """Forget it."""
        self._chunks.clear()

    def value(self) -> bytes:
        """What was written."""
        return b"".join(self._chunks)


@attrs.define(eq=False)
class _Entry:
    """A message, the rows of its recipients, and whether it goes when nobody works on it."""

    message: QueuedMessage
    rows: dict[int, _Row] = attrs.field(factory=dict)
    doomed: bool = False


@attrs.define(eq=False)
class _Row:
    entry: _Entry
    recipient: QueuedRecipient
    claimed: bool

    @property
    def waits(self) -> bool:
        """Whether it may be claimed when it is due."""
        return not self.claimed and (not self.entry.message.hold or self.recipient.given_up)


@attrs.define(eq=False)
class _Body:
    stored: MemoryBody
    #: Messages that have it.
    users: int = 0


@implementer(IQueueStore)
class MemoryQueueStore:
    """A queue for one process, gone with it. `recorded` is told what `record` notes, `postponed` what `postpone` does."""

    def __init__(self, recorded: Recorded | None = None, postponed: Postponed | None = None) -> None:
        self._recorded = recorded
        self._postponed = postponed
        self._entries: dict[str, _Entry] = {}
        self._rows: dict[int, _Row] = {}
        self._bodies: dict[int, _Body] = {}
        #: (next attempt, row): of every row that may be claimed, and stale ones.
        self._due: list[tuple[float, int]] = []
        self._last_row = self._last_body = 0

    @property
    def depth(self) -> int:
        """Recipients in the queue."""
        return len(self._rows)

    @property
    def bodies(self) -> list[bytes]:
        """The bodies that are stored."""
        return [body.stored.data for body in self._bodies.values()]

    # --- adding ----------------------------------------------------------------------------------

    def check_room(self, octets: int) -> None:
        """There is always room."""

    def new_body(self) -> IBodyWriter:
        return MemoryBodyWriter()

    async def add(
        self, messages: Sequence[NewMessage], body: IBodyWriter, *, claim: bool = False
    ) -> Sequence[WorkItem]:
        assert isinstance(body, MemoryBodyWriter), "the body is of another store"
        if any(message.id in self._entries for message in messages):
            raise ValueError("a queue id came twice")
        if not all(message.recipients for message in messages):
            raise ValueError("a message without recipients would stay for ever")
        number = self._add_body(MemoryBody(body.value()))
        items = [self._add_message(message, number, claim and not message.held) for message in messages]
        if not claim:
            return ()
        return [item for item, message in zip(items, messages, strict=True) if not message.held]

    def load(self, item: WorkItem, body: MemoryBody) -> None:
        """Put in a message as it stands in another queue. It gets new rows."""
        number = self._add_body(body)
        entry = self._enter(attrs.evolve(item.message, body_id=number))
        for recipient in item.recipients:
            self._add_row(entry, attrs.evolve(recipient, row=self._next_row()), False)

    def _add_body(self, body: MemoryBody) -> int:
        self._last_body += 1
        self._bodies[self._last_body] = _Body(body)
        return self._last_body

    def _add_message(self, message: NewMessage, body: int, claimed: bool) -> WorkItem:
        entry = self._enter(message.queued(body, self._bodies[body].stored.size))
        recipients = tuple(
            recipient.queued(self._next_row(), message.released) for recipient in message.recipients
        )
        for recipient in recipients:
            self._add_row(entry, recipient, claimed)
        return WorkItem(entry.message, recipients)

    def _enter(self, message: QueuedMessage) -> _Entry:
        entry = self._entries[message.id] = _Entry(message)
        self._bodies[message.body_id].users += 1
        return entry

    def _next_row(self) -> int:
        self._last_row += 1
        return self._last_row

    def _add_row(self, entry: _Entry, recipient: QueuedRecipient, claimed: bool) -> None:
        row = _Row(entry, recipient, claimed)
        entry.rows[recipient.row] = self._rows[recipient.row] = row
        if not claimed:
            self._schedule(row)

    # --- working ---------------------------------------------------------------------------------

    async def claim_due(self, now: float, limit: int) -> Sequence[WorkItem]:
        found: dict[str, tuple[QueuedMessage, list[QueuedRecipient]]] = {}
        while limit > 0 and (row := self._first_due()) is not None and row.recipient.next_attempt <= now:
            heapq.heappop(self._due)
            row.claimed = True
            message = row.entry.message
            found.setdefault(message.id, (message, []))[1].append(row.recipient)
            limit -= 1
        return [WorkItem(message, tuple(recipients)) for message, recipients in found.values()]

    async def next_due(self) -> float | None:
        row = self._first_due()
        return None if row is None else row.recipient.next_attempt

    def _first_due(self) -> _Row | None:
        """The row at the top of the heap, once the stale entries above it are gone."""
        while self._due:
            when, number = self._due[0]
            row = self._rows.get(number)
            if row is not None and row.waits and row.recipient.next_attempt == when:
                return row
            heapq.heappop(self._due)
        return None

    async def body(self, message: QueuedMessage) -> IStoredBody:
        return self._bodies[message.body_id].stored

    async def record(self, updates: Sequence[Update], new: Sequence[tuple[NewMessage, bytes]] = ()) -> None:
        noted = []
        for update in updates:
            row = self._rows.get(update.row)
            if row is None:
                continue
            noted.append((row.entry.message, row.recipient, update))
            match update.outcome:
                case TryLater():
                    self._put_off(row, update)
                case Expanded(messages):
                    for message in messages:
                        if message.recipients:
                            self._add_message(message, row.entry.message.body_id, False)
                    self._remove([row])
                case _:
                    self._remove([row])
        for message, data in new:
            self._add_message(message, self._add_body(MemoryBody(data)), False)
        if self._recorded is not None:
            self._recorded(noted, new)

    def note_delivered(self, message: NewMessage, size: int, update: Update) -> None:
        if self._recorded is not None:
            (recipient,) = message.recipients
            self._recorded([(message.queued(0, size), recipient.queued(0, message.released), update)], ())

    def _put_off(self, row: _Row, update: Update) -> None:
        was = row.recipient
        assert isinstance(update.outcome, TryLater)
        row.recipient = attrs.evolve(
            was,
            attempts=was.attempts + 1,
            next_attempt=update.next_attempt,
            last_reply=str(update.outcome.reply),
            warned=was.warned or update.warned,
            late=was.late or update.late,
        )
        self._give_back(row)

    def _give_back(self, row: _Row) -> None:
        row.claimed = False
        if row.entry.doomed:
            self._remove([row])
        else:
            self._schedule(row)

    def _schedule(self, row: _Row) -> None:
        heapq.heappush(self._due, (row.recipient.next_attempt, row.recipient.row))

    async def release(self, rows: Sequence[int]) -> None:
        for number in rows:
            row = self._rows.get(number)
            if row is not None and row.claimed:
                self._give_back(row)

    async def postpone(self, rows: Sequence[int], until: float, note: str = "") -> None:
        for number in rows:
            row = self._rows.get(number)
            if row is not None and row.claimed:
                was = row.recipient
                row.recipient = attrs.evolve(was, next_attempt=until, last_reply=note or was.last_reply)
                self._give_back(row)
                if self._postponed is not None:
                    self._postponed(row.entry.message, was, note)

    async def hasten(self, rows: Sequence[int], now: float) -> int:
        found = [self._rows[number] for number in dict.fromkeys(rows) if number in self._rows]
        chosen = [row for row in found if row.waits and row.recipient.next_attempt > now]
        self._make_due(chosen, now)
        return len(chosen)

    def _make_due(self, rows: Iterable[_Row], now: float) -> None:
        for row in rows:
            row.recipient = attrs.evolve(row.recipient, next_attempt=now)
            self._schedule(row)

    def _remove(self, rows: Iterable[_Row]) -> None:
        """Remove recipients, messages that have none left, and bodies that have no message left."""
        for row in rows:
            entry = row.entry
            del self._rows[row.recipient.row], entry.rows[row.recipient.row]
            if entry.rows:
                continue
            del self._entries[entry.message.id]
            body = self._bodies[entry.message.body_id]
            body.users -= 1
            if not body.users:
                del self._bodies[entry.message.body_id]

    # --- the administrator -----------------------------------------------------------------------

    async def listing(self, limit: int = 1000, after: str = "") -> Sequence[WorkItem]:
        waiting = (entry for entry in self._entries.values() if not entry.doomed and entry.message.id > after)
        first = heapq.nsmallest(limit, waiting, key=lambda entry: entry.message.id)
        return [_item(entry) for entry in first]

    async def find(self, queue_id: str) -> WorkItem | None:
        entry = self._entries.get(queue_id)
        return None if entry is None or entry.doomed else _item(entry)

    async def retry(self, queue_ids: Sequence[str] | None, now: float) -> int:
        wanted = None if queue_ids is None else set(queue_ids)
        chosen = [
            row
            for row in self._rows.values()
            if row.waits and (wanted is None or row.entry.message.id in wanted)
        ]
        self._make_due(chosen, now)
        return len(chosen)

    async def hold(self, queue_ids: Sequence[str], reason: str) -> int:
        found = [entry for entry in self._named(queue_ids) if not entry.message.hold]
        for entry in found:
            entry.message = attrs.evolve(entry.message, hold=reason)
        return len(found)

    async def let_go(self, queue_ids: Sequence[str]) -> int:
        found = [entry for entry in self._named(queue_ids) if entry.message.hold]
        for entry in found:
            entry.message = attrs.evolve(entry.message, hold="")
            for row in entry.rows.values():
                self._schedule(row)
        return len(found)

    async def order(
        self, order: Order, recipients: Sequence[tuple[str, int]], now: float, hop: str = ""
    ) -> int:
        chosen = [
            row
            for name, number in recipients
            if (row := self._rows.get(number)) is not None
            and row.entry.message.id == name
            and self._heeds(row, order)
        ]
        for row in chosen:
            match order:
                case Order.DELETE:
                    self._remove([row])
                    continue
                case Order.EXPIRE:
                    row.recipient = attrs.evolve(row.recipient, given_up=True, next_attempt=now)
                case Order.REROUTE:
                    row.recipient = attrs.evolve(row.recipient, hop=hop, next_attempt=now)
                case Order.RETRY:
                    row.recipient = attrs.evolve(row.recipient, next_attempt=now)
            if row.waits:
                self._schedule(row)
        return len(chosen)

    def _heeds(self, row: _Row, order: Order) -> bool:
        """Whether an order is for this row."""
        if order is Order.REROUTE:
            return row.recipient.transport is Transport.SMTP
        return row.waits if order is Order.RETRY else not row.claimed

    def _named(self, queue_ids: Sequence[str]) -> list[_Entry]:
        entries = (self._entries.get(name) for name in dict.fromkeys(queue_ids))
        return [entry for entry in entries if entry is not None and not entry.doomed]

    async def delete(self, queue_ids: Sequence[str]) -> int:
        found = self._named(queue_ids)
        for entry in found:
            entry.doomed = True
            self._remove([row for row in list(entry.rows.values()) if not row.claimed])
        return len(found)

    async def close(self) -> None:
        """See IQueueStore. It can still be looked at."""
        await self.release([number for number, row in self._rows.items() if row.claimed])


def _item(entry: _Entry) -> WorkItem:
    recipients = sorted(entry.rows.items())
    return WorkItem(entry.message, tuple(row.recipient for _, row in recipients))

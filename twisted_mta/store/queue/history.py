"""The history of messages in the queue's file: see `core.history`.

It is written in the very transactions that it tells of (but for mail that never was in the queue: see `remembering`), so it must
cost little: what leaves the queue is copied within the database, without a look at it, and there are no indexes but those
that a tree of messages needs. To find an address all of it is read, which takes a second or two for a million messages, in a
thread that nobody waits for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from twisted_mta.core.address import Address, AddressError
from twisted_mta.core.history import Event, Kind, PastMessage, PastRecipient, State, Transcript, word
from twisted_mta.core.queue import Contact, Delivered, Expanded, Failed, NewMessage, Outcome, TryLater
from twisted_mta.core.values import value
from twisted_mta.interfaces import Update
from twisted_mta.store.queue import rows
from twisted_mta.store.sqlite import first_row

#: Messages forgotten in one step.
STEP = 500
#: Events of one message that are told, and messages that came of it.
MAX_EVENTS = 10_000
MAX_CHILDREN = 1000

#: A tuple, for the union of two types is made anew wherever it is written.
_BAD = (TryLater, Failed)
_STATES: dict[type[Outcome], State] = {
    Delivered: State.DELIVERED,
    Failed: State.FAILED,
    Expanded: State.EXPANDED,
}
_END = (
    "INSERT OR REPLACE INTO past_recipient (message, row, address, transport, original, via, sender, target, attempts, "
    "state, ended, took, reply, remote, contacts) SELECT message, row, address, transport, original, via, sender, target, "
)
_NAMES = "address, original, via, sender, target"
# `contacts` stand in one row of those that share them: see HistoryTables.ended.
_ENDED = (
    _END + "attempts + 1, ?, ?, ?, ?, ?, CASE row WHEN ? THEN ? ELSE ? END FROM recipient "
    "WHERE row BETWEEN ? AND ?"
)
_DELETED = _END + f"attempts, '{State.DELETED}', ?, 0.0, last_reply, NULL, NULL FROM recipient WHERE "
_LEFT = (
    "INSERT OR REPLACE INTO past_message (id, sender, size, arrived, parent, message_id, origin, arrival) "
    "SELECT id, sender, size, arrived, parent, message_id, origin, arrival FROM message WHERE id = ? AND NOT EXISTS "
    "(SELECT 1 FROM recipient r WHERE r.row BETWEEN message.first AND message.last AND r.message = message.id)"
)


_PASSED = (
    "INSERT OR REPLACE INTO past_message (id, sender, size, arrived, parent, message_id, origin, arrival) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_PASSED_TO = (
    "INSERT OR REPLACE INTO past_recipient (message, row, address, transport, original, via, sender, target, attempts, "
    "state, ended, took, reply, remote) VALUES (?, 1, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?)"
)


@value
class Passed:
    """A message that was delivered and never was in the queue; see IQueueStore.note_delivered."""

    message: NewMessage
    size: int
    update: Update


@value(kw_only=True)
class HistoryRules:
    """What is kept."""

    #: Seconds from the arrival of a message; 0: nothing.
    keep: float = 1_209_600.0
    #: Messages that have left the queue.
    limit: int = 1_000_000
    #: The last transcripts of each message with each host.
    transcripts: int = 3


class HistoryTables:
    """The writing side: each method is part of a transaction."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor
        #: May be replaced at any time, from another thread too.
        self.rules = HistoryRules()
        #: Messages in the history, roughly; to be set before the first `tidy`.
        self.count = 0

    def ended(self, ended: Sequence[tuple[Update, str]]) -> None:
        """These recipients, each with its queue id, are done, and still in their table.

        Neighbours that fared alike are copied by one statement. Those who were in one attempt had the same contacts: these are
        kept with the first of them, and with the others is the row of that one.
        """
        if not self.rules.keep:
            return
        spans: list[_Span] = []
        for update, queue_id in sorted(ended, key=lambda pair: pair[0].row):
            outcome = update.outcome
            contacts = () if isinstance(outcome, Expanded) else outcome.contacts
            alike = (queue_id, type(outcome), update.at, update.took, id(outcome.reply), id(contacts))
            if spans and spans[-1].alike == alike and spans[-1].last + 1 == update.row:
                spans[-1].last = update.row
            else:
                spans.append(_Span(alike, update, contacts, update.row))
        holders: dict[tuple[str, int], int] = {}
        self._cursor.executemany(_ENDED, [_end(span, holders) for span in spans])

    def deleted(self, condition: str, values: Iterable[tuple[Any, ...]], now: float) -> None:
        """So are those for which the condition holds, since an administrator said so."""
        if self.rules.keep:
            self._cursor.executemany(_DELETED + condition, [(now, *each) for each in values])

    def left(self, names: Iterable[str]) -> None:
        """These messages go, if they have no recipients any more."""
        if self.rules.keep:
            self._cursor.executemany(_LEFT, [(name,) for name in names])
            self.count += max(self._cursor.rowcount, 0)

    def passed(self, passed: Sequence[Passed]) -> None:
        """These messages were delivered without having been in the queue."""
        if not self.rules.keep:
            return
        self._cursor.executemany(_PASSED, [rows.past_message_row(one.message, one.size) for one in passed])
        self._cursor.executemany(
            _PASSED_TO,
            [
                (one.message.id, *rows.past_recipient_row(one.message.recipients[0]), *_fate(one.update))
                for one in passed
            ],
        )
        self.count += len(passed)

    def attempted(self, ended: Iterable[tuple[Update, str]]) -> None:
        """Attempts failed, each with its queue id. What is the same for several recipients is told once."""
        if not self.rules.keep:
            return
        groups: dict[tuple[Any, ...], list[Update]] = {}
        for update, queue_id in ended:
            outcome = update.outcome
            assert isinstance(outcome, TryLater)
            key = (queue_id, update.at, outcome.reply, outcome.remote, id(outcome.contacts))
            groups.setdefault(key, []).append(update)
        for (queue_id, *_), updates in groups.items():
            self.note(
                queue_id, updates[0].at, Kind.DEFERRED, _deferral(updates), [one.row for one in updates]
            )

    def note(
        self, queue_id: str, time: float, kind: Kind, data: Mapping[str, Any], about: Sequence[int] = ()
    ) -> None:
        """Something happened to a message, or to its recipients in the rows `about`."""
        if self.rules.keep:
            self._cursor.execute(
                "INSERT INTO event (message, time, kind, rows, data) VALUES (?, ?, ?, ?, ?)",
                (queue_id, time, kind.value, rows.encode(list(about)), rows.encode(data)),
            )

    def transcribe(self, ended: Iterable[tuple[Update, str]]) -> None:
        """Keep what was said in the sessions that ended attempts badly, each with its queue id."""
        keep = self.rules.transcripts
        if not keep or not self.rules.keep:
            return
        told = {
            id(update.outcome.contacts): (queue_id, update.outcome.contacts)
            for update, queue_id in ended
            if isinstance(update.outcome, _BAD) and update.outcome.contacts
        }
        for queue_id, contacts in told.values():
            self._transcribe(queue_id, [one for one in contacts if one.transcript], keep)

    def _transcribe(self, queue_id: str, contacts: Sequence[Contact], keep: int) -> None:
        (last,) = first_row(
            self._cursor.execute("SELECT max(event) FROM transcript WHERE message = ?", (queue_id,))
        )
        event = (last or 0) + 1
        for number, one in enumerate(contacts):
            remote = rows.text(one.remote)
            self._cursor.execute(
                "INSERT INTO transcript (message, remote, event, number, time, text) VALUES (?, ?, ?, ?, ?, ?)",
                (queue_id, remote, event, number, one.began, rows.text(one.transcript)),
            )
            self._cursor.execute(
                "DELETE FROM transcript WHERE message = ? AND remote = ? AND event <= (SELECT event FROM transcript "
                "WHERE message = ? AND remote = ? ORDER BY event DESC LIMIT 1 OFFSET ?)",
                (queue_id, remote, queue_id, remote, keep),
            )

    def tidy(self, now: float) -> bool:
        """Forget what is too old or too much, a bounded step; whether there is more."""
        keep = self.rules.keep
        excess = self.count - self.rules.limit
        # Queue ids sort by arrival.
        oldest = self._cursor.execute(
            "SELECT id, arrived FROM past_message ORDER BY id LIMIT ?", (STEP,)
        ).fetchall()
        gone = [
            (name,)
            for number, (name, arrived) in enumerate(oldest)
            if number < excess or not keep or arrived < now - keep
        ]
        for statement in (
            "DELETE FROM past_recipient WHERE message = ?",
            "DELETE FROM event WHERE message = ?",
            "DELETE FROM transcript WHERE message = ?",
            "DELETE FROM past_message WHERE id = ?",
        ):
            self._cursor.executemany(statement, gone)
        self.count -= len(gone)
        return len(gone) == STEP or (not keep and self._sweep())

    def _sweep(self) -> bool:
        """Nothing is kept any more: remove what messages left behind that went since then; whether there may be more."""
        removed = 0
        for table in ("past_recipient", "event", "transcript"):
            self._cursor.execute(
                f"DELETE FROM {table} WHERE message IN (SELECT message FROM {table} t WHERE NOT EXISTS "  # noqa: S608  constants
                "(SELECT 1 FROM message WHERE id = t.message) LIMIT ?)",
                (STEP,),
            )
            removed = max(removed, self._cursor.rowcount)
        return removed >= STEP


@attrs.define
class _Span:
    """Rows of one message that follow on one another and fared alike."""

    #: What they have in common.
    alike: tuple[Any, ...]
    #: That of the first of them.
    update: Update
    contacts: tuple[Contact, ...]
    last: int


def _end(span: _Span, holders: dict[tuple[str, int], int]) -> tuple[Any, ...]:
    """The values for _ENDED. `holders` are the rows with which contacts are kept, by queue id and identity."""
    update = span.update
    first, text = None, None
    if span.contacts:
        key = span.alike[0], id(span.contacts)
        first = holders.setdefault(key, update.row)
        if first == update.row:
            text = rows.encode([_contact(one) for one in span.contacts])
    return (*_fate(update), first, text, first, update.row, span.last)


def _fate(update: Update) -> tuple[Any, ...]:
    """What became of a recipient: state, ended, took, reply, remote."""
    outcome = update.outcome
    return (
        _STATES[type(outcome)].value,
        update.at,
        update.took,
        rows.text(str(outcome.reply)[: rows.MAX_REPLY]),
        rows.text("" if isinstance(outcome, Expanded) else outcome.remote),
    )


def _deferral(updates: Sequence[Update]) -> dict[str, Any]:
    update = updates[0]
    outcome = update.outcome
    assert isinstance(outcome, TryLater)
    data: dict[str, Any] = {
        "reply": str(outcome.reply)[: rows.MAX_REPLY],
        "next": min(one.next_attempt for one in updates),
    }
    if outcome.remote:
        data["remote"] = outcome.remote
    if update.took:
        data["took"] = update.took
    if outcome.contacts:
        data["contacts"] = [_contact(one) for one in outcome.contacts]
    return data


def _contact(one: Contact) -> dict[str, Any]:
    said = {
        "remote": one.remote,
        "reply": str(one.reply)[: rows.MAX_REPLY],
        "began": one.began,
        "took": one.took,
    }
    if one.tls:
        said |= {"tls": one.tls, "verified": one.verified}
    return said


def _names(address: Any, original: Any, via: Any, sender: Any, target: Any) -> dict[str, Any]:
    """The fields that tell how a recipient came to be one, and who its copy is from."""
    there = str(rows.unpack_address(address))
    return {
        "address": there,
        "original": there if original is None else str(rows.unpack_address(original)),
        "via": tuple(rows.decode(via, [])),
        "sender": "" if sender is None else str(rows.unpack_address(sender)),
        "target": rows.read_text(target),
    }


def _stored(text: str) -> str | bytes:
    """An address or a Message-ID as it stands in the tables."""
    bare = word(text)
    try:
        return rows.pack_address(Address.parse(bare))
    except AddressError:
        return rows.text(bare)


class HistoryReader:
    """The reading side, on a connection of its own."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def count(self) -> int:
        """Messages that have left the queue."""
        count: int = self._query("SELECT count(*) FROM past_message")[0][0]
        return count

    def recall(self, queue_ids: Sequence[str]) -> list[PastMessage]:
        """See IQueueHistory."""
        found = (self._recall(queue_id) for queue_id in queue_ids)
        return [message for message in found if message is not None]

    def _recall(self, queue_id: str) -> PastMessage | None:
        columns = "id, sender, size, arrived, parent, message_id, origin, arrival"
        values = self._query(
            f"SELECT {columns}, 1, hold, first, last FROM message WHERE id = ? AND NOT doomed "  # noqa: S608  constants
            f"UNION ALL SELECT {columns}, 0, '', 1, 0 FROM past_message WHERE id = ?",
            *(queue_id, queue_id),
        )
        if not values:
            return None
        name, sender, size, arrived, parent, message_id, origin, arrival, queued, hold, first, last = values[
            0
        ]
        return PastMessage(
            id=name,
            sender="" if sender is None else str(rows.unpack_address(sender)),
            size=size,
            arrived=arrived,
            message_id=rows.read_text(message_id),
            origin=rows.read_text(origin),
            arrival=rows.read_arrival(arrival),
            queued=bool(queued),
            hold=rows.read_text(hold),
            parent=rows.read_text(parent),
            children=self._children(name),
            recipients=tuple(
                sorted((*self._done(name), *self._waiting(name, first, last)), key=lambda one: one.row)
            ),
            events=self._events(name),
        )

    def _children(self, queue_id: str) -> tuple[str, ...]:
        found = self._query(
            "SELECT id FROM message WHERE parent = ? AND parent != '' "
            "UNION SELECT id FROM past_message WHERE parent = ? AND parent != '' ORDER BY id LIMIT ?",
            *(queue_id, queue_id, MAX_CHILDREN),
        )
        return tuple(name for (name,) in found)

    def _done(self, queue_id: str) -> list[PastRecipient]:
        found = self._query(
            f"SELECT row, transport, attempts, state, ended, took, reply, remote, contacts, {_NAMES} "  # noqa: S608  a constant
            "FROM past_recipient WHERE message = ?",
            queue_id,
        )
        own = {values[0]: tuple(rows.decode(values[8], [])) for values in found}
        return [
            PastRecipient(
                row=row,
                transport=transport,
                state=State(state),
                attempts=attempts,
                ended=ended,
                took=took,
                reply=rows.read_text(reply),
                remote=rows.read_text(remote),
                contacts=own.get(contacts, own[row]),
                **_names(*names),
            )
            for row, transport, attempts, state, ended, took, reply, remote, contacts, *names in found
        ]

    def _waiting(self, queue_id: str, first: int, last: int) -> list[PastRecipient]:
        return [
            PastRecipient(
                row=row,
                transport=transport,
                state=State.QUEUED,
                attempts=attempts,
                reply=rows.read_text(reply),
                next_attempt=next_attempt,
                hop=rows.read_text(hop),
                **_names(*names),
            )
            for row, transport, attempts, reply, next_attempt, hop, *names in self._query(
                f"SELECT row, transport, attempts, last_reply, next_attempt, hop, {_NAMES} FROM recipient "  # noqa: S608  a constant
                "WHERE row BETWEEN ? AND ? AND message = ?",
                *(first, last, queue_id),
            )
        ]

    def _events(self, queue_id: str) -> tuple[Event, ...]:
        found = self._query(
            "SELECT time, kind, rows, data FROM event WHERE message = ? ORDER BY time, seq LIMIT ?",
            *(queue_id, MAX_EVENTS),
        )
        return tuple(
            Event(time=time, kind=Kind(kind), rows=tuple(rows.decode(about, [])), data=rows.decode(data, {}))
            for time, kind, about, data in found
        )

    def mentions(self, text: str, limit: int) -> list[str]:
        """See IQueueHistory."""
        # In the database's own terms, lest a million rows come up to Python.
        there = (
            "address = ?1 COLLATE NOCASE OR original = ?1 COLLATE NOCASE OR sender = ?1 COLLATE NOCASE "
            "OR instr(lower(via), ?2)"
        )
        here = "sender = ?1 COLLATE NOCASE OR message_id = ?1 COLLATE NOCASE"
        found = self._query(
            f"SELECT message FROM recipient WHERE {there} UNION SELECT message FROM past_recipient WHERE {there} "  # noqa: S608
            f"UNION SELECT id FROM message WHERE {here} UNION SELECT id FROM past_message WHERE {here} "
            "ORDER BY 1 DESC LIMIT ?3",
            *(_stored(text), rows.encode(word(text)), limit),
        )
        return [name for (name,) in found]

    def arrivals(self, start: float, end: float, limit: int) -> list[str]:
        """See IQueueHistory."""
        found = self._query(
            "SELECT id FROM message WHERE arrived BETWEEN ?1 AND ?2 AND NOT doomed "
            "UNION SELECT id FROM past_message WHERE arrived BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT ?3",
            *(start, end, limit),
        )
        return [name for (name,) in found]

    def transcripts(self, queue_id: str) -> list[Transcript]:
        """See IQueueHistory."""
        found = self._query(
            "SELECT time, remote, text FROM transcript WHERE message = ? ORDER BY event, number", queue_id
        )
        return [
            Transcript(time, rows.read_text(remote), rows.read_text(text)) for time, remote, text in found
        ]

    def _query(self, statement: str, *values: object) -> list[Any]:
        return self._connection.execute(statement, values).fetchall()

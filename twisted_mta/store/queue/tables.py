"""What is done to the tables: each method is part of a transaction of the one writing connection.

Runs in the writer's thread, and knows nothing of Twisted but its logger.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_mta.core.queue import Expanded, NewMessage, Order, TryLater, WorkItem
from twisted_mta.core.values import value
from twisted_mta.interfaces import Update
from twisted_mta.store.faults import fault
from twisted_mta.store.queue import rows
from twisted_mta.store.queue.errors import translate
from twisted_mta.store.queue.history import HistoryTables
from twisted_mta.store.queue.orders import IDLE, Orders
from twisted_mta.store.queue.reading import Reading, read
from twisted_mta.store.queue.rows import runs
from twisted_mta.store.queue.schema import HOLD, check, connect, decode, limit_size
from twisted_mta.store.sqlite import first_row, own_text_factory

#: Part of a transaction. Its result is its caller's once the commit is done.
Operation = Callable[["Tables"], Any]

_PRUNE_MESSAGE = (
    "DELETE FROM message WHERE id = ? AND NOT EXISTS "
    "(SELECT 1 FROM recipient r WHERE r.row BETWEEN message.first AND message.last AND r.message = message.id)"
)
_PRUNE_BODY = (
    "DELETE FROM body WHERE id = ? AND NOT EXISTS (SELECT 1 FROM message WHERE id = ?) "
    "AND NOT EXISTS (SELECT 1 FROM message m WHERE m.body = body.id AND m.shared)"
)
#: Whose a recipient is that nobody works on any more.
_FREE = f"(SELECT iif(hold IS NULL OR recipient.given_up, NULL, '{HOLD}') FROM message WHERE id = recipient.message)"  # noqa: S608  a constant
_POSTPONED = (
    f"UPDATE recipient SET owner = {_FREE}, attempts = attempts + 1, next_attempt = ?, last_reply = ?, "  # noqa: S608  as above
    "warned = max(warned, ?), late = max(late, ?) WHERE row = ?"
)
_IS_DOOMED = "row = ? AND (SELECT doomed FROM message WHERE id = recipient.message)"
_DOOMED = f"DELETE FROM recipient WHERE {_IS_DOOMED}"  # noqa: S608  a constant


@value
class Held:
    """What is remembered of a claimed row; rows of one message may share it."""

    message: str
    body: int
    #: The body's file, "" for a body in the database.
    file: str


@value
class BodyRow:
    """A body as it enters the tables: octets, or the name of a file that is on the disk."""

    size: int
    data: bytes | None
    file: str | None


class Tables:
    """The writing connection of one process, whose claims bear the name `owner`."""

    log = Logger()

    def __init__(self, path: Path, owner: str, quota: int = 0) -> None:
        self._connection = connect(path)
        self._quick_text = own_text_factory()
        if quota:
            limit_size(self._connection, quota)
        # One cursor for everything: nothing here keeps a result open over the next statement.
        self._cursor = self._connection.cursor()
        self.history = HistoryTables(self._cursor)
        self.orders = Orders(self._cursor, self.history)
        self._owner = owner
        self._next_body = self._next_row = 1
        #: Whether it is known, in the transaction under way, that these are free.
        self._numbered = False

    # --- transactions ----------------------------------------------------------------------------

    def commit(self, operations: Sequence[Operation]) -> list[Any]:
        """Do the operations in one transaction: their results, or Failures, in order.

        When the transaction fails, each is tried in one of its own, so that only those fail that can't be done.
        """
        try:
            return self._try(operations)
        except Exception as error:  # noqa: BLE001  handed to the caller; the writer goes on
            if len(operations) > 1:
                return [result for operation in operations for result in self.commit([operation])]
            failure: Any = Failure(translate(error))  # type: ignore[no-untyped-call]
            return [failure]

    def _try(self, operations: Sequence[Operation]) -> list[Any]:
        try:
            self._begin()
            results = [operation(self) for operation in operations]
            fault("queue.commit")
            self._cursor.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        fault("queue.committed")
        return results

    def _begin(self) -> None:
        fault("queue.begin")
        self._cursor.execute("BEGIN IMMEDIATE")
        self._numbered = False

    def _number(self) -> None:
        """To be called before rows are added or claimed: find the numbers for those to come."""
        if self._numbered:
            return
        self._numbered = True
        # Another process may have added rows. To go on behind all that were ever seen keeps a number from meaning two things
        # to one of us.
        body, row = first_row(
            self._cursor.execute("SELECT (SELECT max(id) FROM body), (SELECT max(row) FROM recipient)")
        )
        self._next_body = max(self._next_body, (body or 0) + 1)
        self._next_row = max(self._next_row, (row or 0) + 1)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # a full disk makes SQLite roll back by itself
            try:
                self._connection.rollback()
            except sqlite3.Error:
                self.log.failure("the queue can't roll a transaction back")

    def close(self) -> None:
        """Close the connection; SQLite folds the write-ahead log into the file."""
        self._connection.close()

    # --- adding ----------------------------------------------------------------------------------

    def add(self, messages: Sequence[NewMessage], body: BodyRow, claim: bool) -> tuple[int, int]:
        """Add messages over one body: (its id, the row of the first recipient); the other recipients follow on."""
        number = self._insert_body(body)
        first = self._next_row
        owner = self._owner if claim else None
        self._insert_messages(messages, number, body.size, len(messages) > 1, owner)
        return number, first

    def _insert_body(self, body: BodyRow) -> int:
        self._number()
        number = self._next_body
        self._next_body += 1
        self._cursor.execute(
            "INSERT INTO body (id, size, file, data) VALUES (?, ?, ?, ?)",
            (number, body.size, body.file, body.data),
        )
        return number

    def _insert_messages(
        self, messages: Sequence[NewMessage], body: int, size: int, shared: bool, owner: str | None
    ) -> None:
        """`size` is that of the body, octets."""
        row = self._next_row
        for message in messages:
            if not message.recipients:  # a list without members; nothing would ever remove it
                continue
            self._cursor.execute(rows.INSERT_MESSAGE, rows.message_row(message, body, size, shared, row))
            values = rows.recipient_rows(message, row, None if message.held else owner)
            self._cursor.executemany(rows.INSERT_RECIPIENT, values)
            row += len(values)
        self._next_row = row

    # --- claiming --------------------------------------------------------------------------------

    def claim_due(self, now: float, limit: int) -> tuple[list[WorkItem], dict[int, Held]]:
        """See IQueueStore.claim_due; also what to remember of the claimed rows."""
        self._number()
        found = self._fetch(
            f"SELECT {rows.RECIPIENT_COLUMNS} FROM recipient r WHERE owner IS NULL AND next_attempt <= ? "  # noqa: S608  only constants are put in
            "ORDER BY next_attempt, row LIMIT ?",
            (now, limit),
        )
        # Not joined: what a message has would come along with each of its recipients.
        messages = {
            values[0]: values
            for values in self._fetch(
                f"SELECT {rows.MESSAGE_COLUMNS}, b.file FROM message m LEFT JOIN body b ON b.id = m.body "  # noqa: S608  as above
                "WHERE m.id IN (SELECT value FROM json_each(?))",
                (rows.encode(list({values[0]: None for values in found})),),
            )
        }
        reading = read(messages, found)
        held: dict[int, Held] = {}
        for item in reading.items:
            one = Held(item.message.id, item.message.body_id, messages[item.message.id][-1] or "")
            held.update((recipient.row, one) for recipient in item.recipients)
        self._cursor.executemany(
            "UPDATE recipient SET owner = ? WHERE row BETWEEN ? AND ?",
            [(self._owner, *run) for run in runs(held)],
        )
        self._set_aside(reading, now)
        return reading.items, held

    def _fetch(self, query: str, values: Sequence[Any]) -> list[Any]:
        """The rows that a query finds. A call of `decode` for each text was a tenth of what claiming took."""
        self._connection.text_factory = self._quick_text
        try:
            return self._cursor.execute(query, values).fetchall()
        except sqlite3.OperationalError:  # perhaps a text that is no UTF-8; other trouble comes again
            self._connection.text_factory = decode
            return self._cursor.execute(query, values).fetchall()
        finally:
            self._connection.text_factory = decode

    def _set_aside(self, reading: Reading, now: float) -> None:
        """What can't be read waits for an administrator, and keeps nobody from the others."""
        for name, reason in reading.messages.items():
            self.log.error(
                "{queue_id} is damaged and held: {reason}", event="damaged", queue_id=name, reason=reason
            )
            self.orders.hold([name], f"damaged: {reason}", now)
        for row, reason in reading.recipients.items():
            self.log.error(
                "a recipient in the queue is damaged and set aside, row {row}: {reason}",
                event="damaged",
                row=row,
                reason=reason,
            )
            self._cursor.execute("UPDATE recipient SET owner = ? WHERE row = ?", (HOLD, row))

    def release(self, held: Iterable[tuple[int, Held]]) -> list[str]:
        """Give rows back; the files of bodies that this was the end of (of messages deleted meanwhile)."""
        held = list(held)
        self._cursor.executemany(
            f"UPDATE recipient SET owner = {_FREE} WHERE row = ? AND owner = ?",  # noqa: S608  a constant
            [(row, self._owner) for row, _ in held],
        )
        return self._drop_doomed(held)

    def postpone(self, held: Iterable[tuple[int, Held]], until: float, note: str) -> list[str]:
        """See IQueueStore.postpone; the files of bodies that this was the end of."""
        held = list(held)
        words = rows.text(note[: rows.MAX_REPLY])
        self._cursor.executemany(
            f"UPDATE recipient SET owner = {_FREE}, next_attempt = ?, "  # noqa: S608  a constant
            "last_reply = CASE WHEN ? = '' THEN last_reply ELSE ? END WHERE row = ? AND owner = ?",
            [(until, words, words, row, self._owner) for row, _ in held],
        )
        return self._drop_doomed(held)

    def hasten(self, numbers: Sequence[int], now: float) -> int:
        """See IQueueStore.hasten."""
        self._cursor.executemany(
            "UPDATE recipient SET next_attempt = ? WHERE +owner IS NULL AND row = ? AND next_attempt > ?",
            [(now, row, now) for row in numbers],
        )
        return max(self._cursor.rowcount, 0)

    def recover(self) -> int:
        """Take back the claims of an earlier process of our name: how many there were."""
        check(self._connection)
        self._cursor.execute(
            f"UPDATE recipient SET owner = {_FREE} WHERE owner = ?",  # noqa: S608  a constant
            (self._owner,),
        )
        count = self._cursor.rowcount
        # What was to be deleted when its delivery ended: it has.
        self._remove(
            self._cursor.execute(
                "SELECT m.id, m.body, coalesce(b.file, ''), m.first, m.last FROM message m "
                "LEFT JOIN body b ON b.id = m.body WHERE m.doomed"
            ).fetchall()
        )
        return count

    def look_up(self, row: int) -> Held | None:
        """What there is to know of a row that we did not claim in this life; None if it is gone."""
        found = first_row(
            self._cursor.execute(
                "SELECT m.id, m.body, coalesce(b.file, '') FROM recipient r JOIN message m ON m.id = r.message "
                "LEFT JOIN body b ON b.id = m.body WHERE r.row = ?",
                (row,),
            )
        )
        return Held(*found) if found else None

    # --- outcomes --------------------------------------------------------------------------------

    def record(
        self,
        updates: Sequence[tuple[Update, Held | None]],
        new: Sequence[tuple[NewMessage, BodyRow]],
    ) -> list[str]:
        """See IQueueStore.record: the files of bodies that are now gone."""
        later: list[tuple[Update, Held]] = []
        done: list[tuple[Update, Held]] = []
        values: list[tuple[Any, ...]] = []
        for update, held in updates:
            held = held or self.look_up(update.row)
            if held is None:
                self.log.warn("recipient {row} left the queue during its delivery", row=update.row)
                continue
            match update.outcome:
                case TryLater(reply):
                    words = rows.text(str(reply)[: rows.MAX_REPLY])
                    values.append(
                        (update.next_attempt, words, int(update.warned), int(update.late), update.row)
                    )
                    later.append((update, held))
                case Expanded(messages):
                    self._expand(held, messages)
                    done.append((update, held))
                case _:
                    done.append((update, held))
        self._record_history(done, later)
        for message, body in new:
            self._insert_messages([message], self._insert_body(body), body.size, False, None)
        # An executemany of nothing looks for its statement all the same.
        if values:
            self._cursor.executemany(_POSTPONED, values)
        self._cursor.executemany(
            "DELETE FROM recipient WHERE row BETWEEN ? AND ?", list(runs(update.row for update, _ in done))
        )
        return self._prune([held for _, held in done]) + self._drop_doomed(
            [(update.row, held) for update, held in later],
            max((update.at for update, _ in later), default=0.0),
        )

    def _record_history(
        self, done: Sequence[tuple[Update, Held]], later: Sequence[tuple[Update, Held]]
    ) -> None:
        self.history.ended([(update, held.message) for update, held in done])
        self.history.attempted([(update, held.message) for update, held in later])
        self.history.transcribe([(update, held.message) for update, held in (*done, *later)])

    def _expand(self, parent: Held, messages: Sequence[NewMessage]) -> None:
        self._cursor.execute("UPDATE message SET shared = 1 WHERE id = ?", (parent.message,))
        (size,) = first_row(self._cursor.execute("SELECT size FROM body WHERE id = ?", (parent.body,)))
        self._number()
        self._insert_messages(messages, parent.body, size, True, None)

    def _drop_doomed(self, held: Sequence[tuple[int, Held]], now: float = 0.0) -> list[str]:
        if not held:
            return []
        self.history.deleted(_IS_DOOMED, [(row,) for row, _ in held], now)
        self._cursor.executemany(_DOOMED, [(row,) for row, _ in held])
        return self._prune([item for _, item in held]) if self._cursor.rowcount else []

    def _prune(self, held: Iterable[Held]) -> list[str]:
        """Remove messages without recipients and bodies without messages: the files of the latter."""
        candidates = list({item.message: item for item in held}.values())
        self.history.left(item.message for item in candidates)
        self._cursor.executemany(_PRUNE_MESSAGE, [(item.message,) for item in candidates])
        self._cursor.executemany(
            _PRUNE_BODY, [(item.body, item.message) for item in candidates if not item.file]
        )
        gone = []
        for item in candidates:
            if item.file:
                self._cursor.execute(_PRUNE_BODY, (item.body, item.message))
                if self._cursor.rowcount:
                    gone.append(item.file)
        return gone

    # --- the administrator -----------------------------------------------------------------------

    def order(
        self, order: Order, recipients: Sequence[tuple[str, int]], now: float, hop: str
    ) -> tuple[int, list[str]]:
        """See IQueueStore.order; also the files of bodies that are gone."""
        if order is not Order.DELETE:
            return self.orders.give(order, recipients, now, hop), []
        pairs = [(row, name) for name, row in recipients]
        held = [self.look_up(row) for row, _ in pairs]
        self.history.deleted(IDLE, pairs, now)
        self._cursor.executemany(f"DELETE FROM recipient WHERE {IDLE}", pairs)  # noqa: S608  a constant
        count = max(self._cursor.rowcount, 0)
        return count, self._prune([one for one in held if one is not None])

    def delete(self, names: Sequence[str], now: float) -> tuple[int, list[str]]:
        """See IQueueStore.delete; also the files of bodies that are gone."""
        found = [
            row
            for name in names
            for row in self._cursor.execute(
                "SELECT m.id, m.body, coalesce(b.file, ''), m.first, m.last FROM message m "
                "LEFT JOIN body b ON b.id = m.body WHERE m.id = ? AND NOT m.doomed",
                (name,),
            ).fetchall()
        ]
        return len(found), self._remove(found, now)

    def _remove(self, found: Sequence[Sequence[Any]], now: float = 0.0) -> list[str]:
        """Remove messages, or mark those that are being delivered."""
        idle = "row BETWEEN ? AND ? AND message = ? AND (+owner IS NULL OR owner = ?)"
        for name, _, _, first, last in found:
            values = (first, last, name, HOLD)
            self.history.deleted(idle, [values], now)
            self._cursor.execute(f"DELETE FROM recipient WHERE {idle}", values)  # noqa: S608  a constant
            self._cursor.execute("UPDATE message SET doomed = 1 WHERE id = ?", (name,))
        return self._prune([Held(name, body, file) for name, body, file, _, _ in found])

    def files(self) -> set[str]:
        """The names of all body files that belong to the queue."""
        found = self._cursor.execute("SELECT file FROM body WHERE file IS NOT NULL").fetchall()
        return {name for (name,) in found}

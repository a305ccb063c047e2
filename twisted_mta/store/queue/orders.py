"""What an administrator changes in the tables: each method is part of a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from twisted_mta.core.history import Kind
from twisted_mta.core.queue import Order
from twisted_mta.store.queue import rows
from twisted_mta.store.queue.history import HistoryTables
from twisted_mta.store.queue.schema import HOLD

#: The condition for a recipient, by row and queue id, that nobody works on.
IDLE = f"row = ? AND message = ? AND (owner IS NULL OR owner = '{HOLD}')"
_CHANGES: Mapping[Order, str] = {
    Order.RETRY: "UPDATE recipient SET next_attempt = ?1 WHERE row = ?2 AND message = ?3 AND owner IS NULL",
    Order.EXPIRE: "UPDATE recipient SET given_up = 1, owner = NULL, next_attempt = ?1 WHERE row = ?2 AND message = ?3 "  # noqa: S608  a constant
    f"AND (owner IS NULL OR owner = '{HOLD}')",
    Order.REROUTE: "UPDATE recipient SET hop = ?4, next_attempt = ?1 WHERE row = ?2 AND message = ?3 AND transport = 'smtp'",
}
_TOLD: Mapping[Order, Kind] = {Order.EXPIRE: Kind.EXPIRED, Order.REROUTE: Kind.REROUTED}


class Orders:
    """All but what removes something, which is `Tables` to do."""

    def __init__(self, cursor: sqlite3.Cursor, history: HistoryTables) -> None:
        self._cursor = cursor
        self._history = history

    def retry(self, names: Sequence[str] | None, now: float) -> int:
        """See IQueueStore.retry."""
        if names is None:
            self._cursor.execute("UPDATE recipient SET next_attempt = ? WHERE owner IS NULL", (now,))
            return self._cursor.rowcount
        # Its rows come by number, not by the index of what is due, which this very statement changes.
        return self._change(
            "UPDATE recipient SET next_attempt = ? WHERE +owner IS NULL AND "
            "row BETWEEN (SELECT first FROM message WHERE id = ?) AND (SELECT last FROM message WHERE id = ?) "
            "AND message = ?",
            [(now, name, name, name) for name in names],
        )

    def hold(self, names: Sequence[str], reason: str, now: float) -> int:
        """See IQueueStore.hold."""
        new = [name for name in dict.fromkeys(names) if self._hold(name, reason)]
        self._change_owner(names, None, HOLD, given_up=False)
        for name in new:
            self._history.note(name, now, Kind.HELD, {"reason": reason})
        return len(new)

    def _hold(self, name: str, reason: str) -> int:
        values = [(rows.text(reason), name)]
        return self._change(
            "UPDATE message SET hold = ? WHERE id = ? AND hold IS NULL AND NOT doomed", values
        )

    def let_go(self, names: Sequence[str], now: float) -> int:
        """See IQueueStore.let_go."""
        freed = [name for name in dict.fromkeys(names) if self._let_go(name)]
        self._change_owner(names, HOLD, None, given_up=True)
        for name in freed:
            self._history.note(name, now, Kind.RELEASED, {})
        return len(freed)

    def _let_go(self, name: str) -> int:
        return self._change(
            "UPDATE message SET hold = NULL WHERE id = ? AND hold IS NOT NULL AND NOT doomed", [(name,)]
        )

    def _change_owner(
        self, names: Sequence[str], old: str | None, new: str | None, *, given_up: bool
    ) -> None:
        """`given_up`: whether that of recipients that were given up too."""
        # By number, as above.
        self._change(
            "UPDATE recipient SET owner = ? WHERE +owner IS ? AND given_up <= ? AND message = ? AND "
            "row BETWEEN (SELECT first FROM message WHERE id = ?) AND (SELECT last FROM message WHERE id = ?)",
            [(new, old, int(given_up), name, name, name) for name in names],
        )

    def give(self, order: Order, recipients: Sequence[tuple[str, int]], now: float, hop: str) -> int:
        """See IQueueStore.order."""
        extra = (hop or None,) if order is Order.REROUTE else ()
        count = self._change(_CHANGES[order], [(now, row, name, *extra) for name, row in recipients])
        if order in _TOLD:
            data = {"hop": hop} if hop else {}
            for name, found in groupby(recipients, lambda pair: pair[0]):
                self._history.note(name, now, _TOLD[order], data, [row for _, row in found])
        return count

    def _change(self, statement: str, values: Sequence[tuple[Any, ...]]) -> int:
        self._cursor.executemany(statement, values)
        return max(self._cursor.rowcount, 0)

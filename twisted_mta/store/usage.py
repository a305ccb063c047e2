"""What accounts sent of late, on disk: a small SQLite file, so that a restart does not begin to count anew.

Everything here blocks; one call at a time, from any thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

import attrs

from twisted_mta.core.rates import DAY, HOUR, Counter, Usage
from twisted_mta.store.side_file import SideFile

#: PRAGMA user_version of a file that this code writes.
VERSION = 1

_CREATE = """
CREATE TABLE IF NOT EXISTS usage (
    name TEXT PRIMARY KEY,      -- folded account name, or @domain
    told INTEGER NOT NULL,
    hour INTEGER NOT NULL, hour_messages INTEGER NOT NULL, hour_recipients INTEGER NOT NULL,
    hour_messages_before INTEGER NOT NULL, hour_recipients_before INTEGER NOT NULL,
    day INTEGER NOT NULL, day_messages INTEGER NOT NULL, day_recipients INTEGER NOT NULL,
    day_messages_before INTEGER NOT NULL, day_recipients_before INTEGER NOT NULL
) WITHOUT ROWID
"""
_COUNTER = 5
_LOSS = "it holds what accounts sent of late, and may be removed"


class UsageFile:
    """The file. Losing the last moments of it in a crash costs nothing."""

    def __init__(self, path: Path) -> None:
        """Opens it, or makes it. Raises SideFileError."""
        self._file = SideFile(path, VERSION, (_CREATE,), _LOSS)

    def load(self) -> dict[str, Usage]:
        """All entries by name. Raises SideFileError."""
        try:
            rows = self._file.connection.execute("SELECT * FROM usage").fetchall()
        except sqlite3.Error as error:
            raise self._file.error(error) from error
        return {
            name: Usage(Counter(HOUR, *row[:_COUNTER]), Counter(DAY, *row[_COUNTER:]), told)
            for name, told, *row in rows
        }

    def save(self, changed: Mapping[str, Usage | None]) -> None:
        """Write entries; None removes one. Raises sqlite3.Error, and then nothing is written."""
        gone = [(name,) for name, usage in changed.items() if usage is None]
        kept = [_row(name, usage) for name, usage in changed.items() if usage is not None]
        with self._file.change() as db:
            db.executemany("DELETE FROM usage WHERE name = ?", gone)
            db.executemany("INSERT OR REPLACE INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", kept)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _row(name: str, usage: Usage) -> tuple[str | int, ...]:
    return name, usage.told, *attrs.astuple(usage.hour)[1:], *attrs.astuple(usage.day)[1:]

"""What accounts sent of late, on disk: a small SQLite file, so that a restart does not begin to count anew.

Everything here blocks; one call at a time, from any thread.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import attrs

from twisted_mta.core.rates import DAY, HOUR, Counter, Usage

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
_REMOVABLE = "it holds what accounts sent of late, and may be removed"


class UsageFileError(Exception):
    """The file can't be used; the text says why and what to do."""


class UsageFile:
    """The file. Losing the last moments of it in a crash costs nothing, so it is not synced with each write."""

    def __init__(self, path: Path) -> None:
        """Opens it, or makes it with mode 0600. Raises UsageFileError."""
        self._path = path
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(
                path, timeout=10.0, isolation_level=None, check_same_thread=False
            )
        except (sqlite3.Error, OSError) as error:
            raise UsageFileError(f"{path}: {error}") from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._connection.close()
            raise UsageFileError(f"{path}: {error} ({_REMOVABLE})") from error
        except UsageFileError:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise UsageFileError(
                f"{self._path} was written by a newer twisted-mta: run that, or remove the file"
            )
        self._connection.execute(_CREATE)
        self._connection.execute(f"PRAGMA user_version={VERSION}")

    def load(self) -> dict[str, Usage]:
        """All entries by name. Raises UsageFileError."""
        try:
            rows = self._connection.execute("SELECT * FROM usage").fetchall()
        except sqlite3.Error as error:
            raise UsageFileError(f"{self._path}: {error} ({_REMOVABLE})") from error
        return {
            name: Usage(Counter(HOUR, *row[:_COUNTER]), Counter(DAY, *row[_COUNTER:]), told)
            for name, told, *row in rows
        }

    def save(self, changed: Mapping[str, Usage | None]) -> None:
        """Write entries; None removes one. Raises sqlite3.Error, and then nothing is written."""
        gone = [(name,) for name, usage in changed.items() if usage is None]
        kept = [_row(name, usage) for name, usage in changed.items() if usage is not None]
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany("DELETE FROM usage WHERE name = ?", gone)
            self._connection.executemany(
                "INSERT OR REPLACE INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", kept
            )
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _row(name: str, usage: Usage) -> tuple[str | int, ...]:
    return name, usage.told, *attrs.astuple(usage.hour)[1:], *attrs.astuple(usage.day)[1:]

"""What hosts said about addresses that they were asked about: a small SQLite file, of use to the next one who asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from twisted_mta.core.callout import Lifetimes, Word
from twisted_mta.store.side_file import SideFile
from twisted_mta.store.sqlite import first_row

#: PRAGMA user_version of a file that this code writes.
VERSION = 1
#: Addresses that are remembered; beyond it the oldest are forgotten.
MAX_ADDRESSES = 200_000
#: Answers between two looks for what is of no use any more.
_TIDY_AFTER = 1000

_CREATE = """
CREATE TABLE IF NOT EXISTS word (
    address TEXT PRIMARY KEY,   -- folded
    found INTEGER NOT NULL,
    time REAL NOT NULL,
    remote TEXT NOT NULL,
    text TEXT NOT NULL
) WITHOUT ROWID
"""
_LOSS = "it holds what callouts found out, and may be removed: then hosts are asked again"


class CalloutFile:
    """The file; opened when it is first needed. Everything blocks; one call at a time, from any thread.

    All methods may raise SideFileError and sqlite3.Error.
    """

    def __init__(self, path: Path, limit: int = MAX_ADDRESSES) -> None:
        self._path = path
        self._limit = limit
        self._file: SideFile | None = None
        self._noted = 0

    def _open(self) -> SideFile:
        if self._file is None:
            self._file = SideFile(self._path, VERSION, (_CREATE,), _LOSS)
        return self._file

    def word(self, address: str) -> Word | None:
        """What was said last about a folded address."""
        row = first_row(
            self._open().connection.execute(
                "SELECT found, time, remote, text FROM word WHERE address = ?", (address,)
            )
        )
        return None if row is None else _word(row)

    def note(self, address: str, word: Word, lifetimes: Lifetimes) -> None:
        """Remember it."""
        file = self._open()
        with file.change() as database:
            database.execute(
                "INSERT OR REPLACE INTO word VALUES (?, ?, ?, ?, ?)", (address, *attrs.astuple(word))
            )
        self._noted += 1
        if self._noted % _TIDY_AFTER == 0:
            self._tidy(file, word.time, lifetimes)

    def _tidy(self, file: SideFile, now: float, lifetimes: Lifetimes) -> None:
        kept = max(lifetimes.remember, lifetimes.known)
        with file.change() as database:
            database.execute("DELETE FROM word WHERE found = 0 AND time < ?", (now - lifetimes.unknown,))
            database.execute("DELETE FROM word WHERE time < ?", (now - kept,))
            (count,) = first_row(database.execute("SELECT count(*) FROM word"))
            if count > self._limit:
                # Guessed addresses go before those that exist.
                database.execute(
                    "DELETE FROM word WHERE address IN (SELECT address FROM word ORDER BY found, time LIMIT ?)",
                    (count - self._limit,),
                )

    def words(self, limit: int) -> Sequence[tuple[str, Word]]:
        """What is remembered, the latest first."""
        rows = self._open().connection.execute(
            "SELECT found, time, remote, text, address FROM word ORDER BY time DESC LIMIT ?", (limit,)
        )
        return [(row[4], _word(row[:4])) for row in rows]

    def forget(self, address: str) -> int:
        """Forget a folded address, or with "@domain" all of a domain; how many were known."""
        database = self._open().connection
        if address.startswith("@"):
            suffix = "%" + _escaped(address)
            return database.execute("DELETE FROM word WHERE address LIKE ? ESCAPE '!'", (suffix,)).rowcount
        return database.execute("DELETE FROM word WHERE address = ?", (address,)).rowcount

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _escaped(text: str) -> str:
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")


def _word(row: tuple[int, float, str, str]) -> Word:
    found, time, remote, text = row
    return Word(exists=bool(found), time=time, remote=remote, text=text)

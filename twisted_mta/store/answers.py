"""Who got a vacation reply of whom, and when: a small SQLite file, so that nobody gets two in a row."""

from __future__ import annotations

from pathlib import Path

from twisted_mta.core.rules import MAX_DAYS
from twisted_mta.store.side_file import SideFile
from twisted_mta.store.sqlite import first_row

#: PRAGMA user_version of a file that this code writes.
VERSION = 1

_CREATE = """
CREATE TABLE IF NOT EXISTS answer (
    account TEXT NOT NULL,
    correspondent TEXT NOT NULL,
    handle TEXT NOT NULL,       -- which reply it was
    time REAL NOT NULL,
    queue_id TEXT NOT NULL,     -- of the message that was answered
    PRIMARY KEY (account, correspondent)
) WITHOUT ROWID
"""
_LOSS = "it holds who got vacation replies, and may be removed: then some may get another one"


class AnswerFile:
    """The file. Everything blocks, and may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Opens it, or makes it. Raises SideFileError."""
        self._file = SideFile(path, VERSION, (_CREATE,), _LOSS)
        # What is noted is on the disk before the reply is queued.
        self._file.connection.execute("PRAGMA synchronous=FULL")

    def claim(
        self, account: str, correspondent: str, handle: str, queue_id: str, now: float, interval: float
    ) -> bool:
        """Whether to answer a message; if so, that is noted.

        The same message may be answered again: the delivery that asks is repeated only if its reply was never queued.
        Raises sqlite3.Error.
        """
        with self._file.change() as db:
            found = first_row(
                db.execute(
                    "SELECT handle, time, queue_id FROM answer WHERE account = ? AND correspondent = ?",
                    (account, correspondent),
                )
            )
            if found is not None:
                said, when, answered = found
                if answered != queue_id and said == handle and now < when + interval:
                    return False
            db.execute(
                "INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?, ?)",
                (account, correspondent, handle, now, queue_id),
            )
            db.execute(
                "DELETE FROM answer WHERE account = ? AND time < ?", (account, now - (MAX_DAYS + 1) * 86400.0)
            )
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

"""What a Maildir can't tell by itself: UIDs. One SQLite file an account.

It lies beside the messages by default, so that it moves, is backed up and dies with them; a directory of its own is for
Maildirs on network file systems, where SQLite's WAL must not be. It may be deleted at any time: mailboxes then get new
UIDs under a new UIDVALIDITY.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from twisted.logger import Logger

from twisted_mta.core.values import value
from twisted_mta.store.faults import fault
from twisted_mta.store.sqlite import first_row

FILE = "twisted-mta-index.sqlite"
_VERSION = 1
_SCHEMA = """
CREATE TABLE validity (last INTEGER NOT NULL);
INSERT INTO validity VALUES (0);
CREATE TABLE mailbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  directory TEXT NOT NULL UNIQUE,
  uid_validity INTEGER NOT NULL,
  uid_next INTEGER NOT NULL,
  -- Times of the directories, ns, when last read: -1 where a later change could have left the same time.
  cur_time INTEGER NOT NULL,
  new_time INTEGER NOT NULL
);
CREATE TABLE message (
  mailbox INTEGER NOT NULL,
  uid INTEGER NOT NULL,
  key TEXT NOT NULL,
  file TEXT NOT NULL,
  fresh INTEGER NOT NULL,
  size INTEGER NOT NULL,
  date REAL NOT NULL,
  recent INTEGER NOT NULL,
  PRIMARY KEY (mailbox, uid)
) WITHOUT ROWID;
"""


class IndexLost(Exception):
    """The file was damaged and has been set aside; begin again, and everything is as after a first look."""


@value
class Record:
    """One message as the index knows it."""

    uid: int
    key: str
    file: str
    #: Whether it lies in new/ rather than cur/.
    fresh: bool
    size: int
    date: float
    recent: bool


@attrs.define
class MailboxRow:
    """One mailbox."""

    id: int
    directory: str
    uid_validity: int
    uid_next: int
    cur_time: int = -1
    new_time: int = -1


class Index:
    """The file. Used in worker threads; `transaction` admits one at a time."""

    log = Logger()

    def __init__(self, path: str, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        #: Grows whenever what was read before may be wrong: another process wrote, or the file was lost.
        self.epoch = 0
        self._foreign = -1

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside is committed at the end, durably, or nothing is. Raises IndexLost."""
        with self._lock:
            try:
                db = self._connection()
                db.execute("BEGIN IMMEDIATE")
                try:
                    foreign = first_row(db.execute("PRAGMA data_version"))[0]
                    if foreign != self._foreign:
                        self._foreign = foreign
                        self.epoch += 1
                    yield db
                    fault("index.commit")
                except BaseException:
                    self._roll_back(db)
                    raise
                db.execute("COMMIT")
                fault("index.committed")
            except sqlite3.DatabaseError as error:
                # What memory holds may be ahead of what was rolled back.
                self.epoch += 1
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in (
                    sqlite3.SQLITE_CORRUPT,
                    sqlite3.SQLITE_NOTADB,
                ):
                    self._set_aside(error)
                    raise IndexLost from error
                raise

    def close(self) -> None:
        """Let go of the file; the next transaction opens it again."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            Path(self._path).touch(0o600)  # SQLite gives -wal and -shm the same mode
            db = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
            try:
                first_row(db.execute("PRAGMA journal_mode=WAL"))
                # A UID once told must never be given to another message, power cut or not.
                db.execute("PRAGMA synchronous=FULL")
                version = first_row(db.execute("PRAGMA user_version"))[0]
                if version != _VERSION:
                    self._create(db, version)
            except BaseException:
                db.close()
                raise
            self._db = db
            self._foreign = -1
        return self._db

    def _create(self, db: sqlite3.Connection, version: int) -> None:
        if version != 0:
            raise RuntimeError(
                f"{self._path} was written by another version ({version}); delete it to rebuild it"
            )
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")

    def _roll_back(self, db: sqlite3.Connection) -> None:
        self.epoch += 1
        if db.in_transaction:
            db.execute("ROLLBACK")

    def _set_aside(self, error: Exception) -> None:
        self.log.error(
            "mailbox index {path} is damaged ({error}): building a new one", path=self._path, error=str(error)
        )
        self.close()
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(self._path + suffix):
                os.replace(self._path + suffix, f"{self._path}{suffix}.damaged")

    # --- rows: all within a transaction ----------------------------------------------------------

    def mailbox(self, db: sqlite3.Connection, directory: str) -> MailboxRow:
        """The row of a mailbox, made if there is none."""
        columns = "id, directory, uid_validity, uid_next, cur_time, new_time"
        found = first_row(db.execute(f"SELECT {columns} FROM mailbox WHERE directory = ?", (directory,)))  # noqa: S608
        if found:
            return MailboxRow(*found)
        validity = max(int(self._now()), first_row(db.execute("SELECT last FROM validity"))[0] + 1)
        db.execute("UPDATE validity SET last = ?", (validity,))
        made = db.execute("INSERT INTO mailbox VALUES (NULL, ?, ?, 1, -1, -1)", (directory, validity))
        assert made.lastrowid is not None
        return MailboxRow(made.lastrowid, directory, validity, 1)

    def save(self, db: sqlite3.Connection, row: MailboxRow) -> None:
        """Write a changed row."""
        db.execute(
            "UPDATE mailbox SET uid_next = ?, cur_time = ?, new_time = ? WHERE id = ?",
            (row.uid_next, row.cur_time, row.new_time, row.id),
        )

    def forget(self, db: sqlite3.Connection, directory: str) -> None:
        """A mailbox is gone."""
        db.execute(
            "DELETE FROM message WHERE mailbox IN (SELECT id FROM mailbox WHERE directory = ?)", (directory,)
        )
        db.execute("DELETE FROM mailbox WHERE directory = ?", (directory,))

    def move(self, db: sqlite3.Connection, old: str, new: str) -> None:
        """A mailbox has another directory, and keeps its UIDs."""
        self.forget(db, new)
        db.execute("UPDATE mailbox SET directory = ? WHERE directory = ?", (new, old))

    def records(self, db: sqlite3.Connection, row: MailboxRow) -> list[Record]:
        """All messages, by rising UID."""
        found = db.execute(
            "SELECT uid, key, file, fresh, size, date, recent FROM message WHERE mailbox = ? ORDER BY uid",
            (row.id,),
        )
        return [
            Record(uid, key, file, bool(fresh), size, date, bool(recent))
            for uid, key, file, fresh, size, date, recent in found
        ]

    def put(self, db: sqlite3.Connection, row: MailboxRow, records: Iterable[Record]) -> None:
        """Add or replace messages."""
        db.executemany(
            "INSERT OR REPLACE INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            ((row.id, *attrs.astuple(record)) for record in records),
        )

    def drop(self, db: sqlite3.Connection, row: MailboxRow, uids: Iterable[int]) -> None:
        """Take messages out."""
        db.executemany("DELETE FROM message WHERE mailbox = ? AND uid = ?", ((row.id, uid) for uid in uids))

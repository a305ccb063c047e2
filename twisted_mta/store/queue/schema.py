"""The tables of the queue, and opening the file they are in.

What keeps a message cheap, since each one is inserted and soon deleted:

- The recipients of a message have consecutive rows, `first` to `last`, so no index from message to recipients is needed.
  Once one is gone its number may be given again, so who goes by the range must look at `recipient.message` too.
- The index of what is due leaves out what somebody has claimed; mail that is claimed as it comes in never enters it.
- The index from bodies to messages has only those that share a body.
- Texts are stored as str when they are ASCII, else as their octets: an envelope may carry octets that are no UTF-8.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

from twisted_mta.store.faults import fault
from twisted_mta.store.sqlite import first_row

# For each NULL and each BLOB that it is given sqlite3 asks the type whether it wants to be another one, and formats an
# AttributeError: 1,600 instructions each, twelve times a message. It does not ask where somebody has said so.
sqlite3.register_adapter(type(None), lambda _: None)
sqlite3.register_adapter(bytes, bytes)

#: Stands as the owner of recipients whose message is held, so that nobody claims them. No process has such a name.
HOLD = "!hold"

#: PRAGMA user_version of a file that this code writes.
VERSION = 4

_CREATE = """
CREATE TABLE body (
    id INTEGER PRIMARY KEY,
    size INTEGER NOT NULL,
    file TEXT,                  -- name under bodies/, or NULL: the octets are in data
    data BLOB
);
CREATE TABLE message (
    id TEXT PRIMARY KEY,
    body INTEGER NOT NULL,
    shared INTEGER NOT NULL,    -- 1: other messages may have the same body
    doomed INTEGER NOT NULL DEFAULT 0, -- 1: to be removed once nobody works on it
    first INTEGER NOT NULL,     -- the rows of its recipients
    last INTEGER NOT NULL,
    sender,                     -- NULL: the null reverse-path
    arrived REAL NOT NULL,
    expires REAL NOT NULL,
    body_type TEXT NOT NULL,
    smtputf8 INTEGER NOT NULL,
    envid, ret, parent, message_id, origin,
    prefix BLOB NOT NULL,
    not_before REAL NOT NULL DEFAULT 0,
    deliver_by REAL,            -- RFC 2852: the time, or NULL
    by_mode TEXT NOT NULL DEFAULT '', -- "R" or "N", with "T" behind for a trace
    priority INTEGER NOT NULL DEFAULT 0,
    tls INTEGER NOT NULL DEFAULT 0, -- core.envelope.TlsWish
    hold,                       -- why it is held; NULL: it is not
    size INTEGER NOT NULL DEFAULT 0, -- of the body, and
    arrival                     -- how it came in (JSON), both for the history
) WITHOUT ROWID;
CREATE INDEX message_body ON message (body) WHERE shared;
CREATE TABLE recipient (
    row INTEGER PRIMARY KEY,
    message TEXT NOT NULL,
    owner TEXT,                 -- the process that works on it, HOLD, or NULL
    next_attempt REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    warned INTEGER NOT NULL DEFAULT 0,
    transport TEXT NOT NULL,
    notify INTEGER NOT NULL,
    address NOT NULL,
    original,                   -- NULL: the same as address
    orcpt,
    last_reply DEFAULT '',
    late INTEGER NOT NULL DEFAULT 0, -- 1: the sender was told that deliver_by has passed
    given_up INTEGER NOT NULL DEFAULT 0, -- 1: it fails untried
    hop,                        -- where an administrator sends it; NULL: where it would go by itself
    via,                        -- what was between original and address (JSON), for the history
    sender,                     -- the envelope sender of its copy; NULL: the message's
    prefix BLOB,                -- header fields above those of the message; NULL: none
    target                      -- what the transport needs besides the address; NULL: nothing
);
CREATE INDEX recipient_due ON recipient (next_attempt, row) WHERE owner IS NULL;
"""
#: What is kept of messages for a while: see `history`.
_CREATE_HISTORY = """\
CREATE INDEX message_parent ON message (parent) WHERE parent != '';
CREATE TABLE past_message (
    id TEXT PRIMARY KEY,
    sender,
    size INTEGER NOT NULL,      -- of the body
    arrived REAL NOT NULL,
    parent, message_id, origin, arrival
) WITHOUT ROWID;
CREATE INDEX past_message_parent ON past_message (parent) WHERE parent != '';
CREATE TABLE past_recipient (
    message TEXT NOT NULL,      -- which may still be in the queue
    row INTEGER NOT NULL,
    address NOT NULL,
    transport TEXT NOT NULL,
    original,
    via,
    attempts INTEGER NOT NULL,
    state TEXT NOT NULL,
    ended REAL NOT NULL,
    took REAL NOT NULL,
    reply,
    remote,
    contacts,                   -- JSON, or the row of the same message that has them, or NULL
    sender,                     -- NULL: the message's
    target,
    PRIMARY KEY (message, row)
) WITHOUT ROWID;
CREATE TABLE event (
    seq INTEGER PRIMARY KEY,
    message TEXT NOT NULL,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    rows TEXT NOT NULL,         -- JSON, as data
    data TEXT NOT NULL
);
CREATE INDEX event_message ON event (message);
CREATE TABLE transcript (
    message TEXT NOT NULL,
    remote NOT NULL,
    event INTEGER NOT NULL,
    number INTEGER NOT NULL,    -- of several sessions with one host in one attempt
    time REAL NOT NULL,
    text NOT NULL,
    PRIMARY KEY (message, remote, event, number)
) WITHOUT ROWID"""

#: Made where they are missing, whatever the version: they are for the start, which must not read a long queue through.
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS recipient_claimed ON recipient (owner) WHERE owner IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS message_doomed ON message (doomed) WHERE doomed",
    "CREATE INDEX IF NOT EXISTS body_file ON body (file) WHERE file IS NOT NULL",
)


def _to_2(connection: sqlite3.Connection) -> None:
    """What the sender may ask for at MAIL (RFC 4865, 2852, 6710, 8689): nobody could before."""
    for table, column in (
        ("message", "not_before REAL NOT NULL DEFAULT 0"),
        ("message", "deliver_by REAL"),
        ("message", "by_mode TEXT NOT NULL DEFAULT ''"),
        ("message", "priority INTEGER NOT NULL DEFAULT 0"),
        ("message", "tls INTEGER NOT NULL DEFAULT 0"),
        ("recipient", "late INTEGER NOT NULL DEFAULT 0"),
    ):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {column}")


def _to_3(connection: sqlite3.Connection) -> None:
    """What an administrator may ask for, and the history, which begins here."""
    for table, column in (
        ("message", "hold"),
        ("message", "size INTEGER NOT NULL DEFAULT 0"),
        ("message", "arrival"),
        ("recipient", "given_up INTEGER NOT NULL DEFAULT 0"),
        ("recipient", "hop"),
        ("recipient", "via"),
    ):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
    connection.execute(
        "UPDATE message SET size = coalesce((SELECT size FROM body WHERE id = message.body), 0)"
    )
    for statement in _CREATE_HISTORY.split(";\n"):
        connection.execute(statement)


def _to_4(connection: sqlite3.Connection) -> None:
    """What a recipient's copy has of its own, and transports that go by more than an address."""
    for table, column in (("recipient", "sender"), ("recipient", "prefix BLOB"), ("recipient", "target")):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
    # One that came by `_to_3` has them.
    columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(past_recipient)")]
    for column in ("sender", "target"):
        if column not in columns:
            connection.execute(f"ALTER TABLE past_recipient ADD COLUMN {column}")


#: From version n to n + 1.
MIGRATIONS: Mapping[int, Callable[[sqlite3.Connection], None]] = {1: _to_2, 2: _to_3, 3: _to_4}


#: A file of no more pages is checked whole at a start: a tenth of a second for its 40 MB.
_CHECKED_PAGES = 10_000


class QueueFileError(Exception):
    """The queue's file can't be used; the text says why and what to do."""


def trouble(path: Path, error: Exception) -> str:
    """Why the queue can't be opened, and what to do."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return (
            f"{path}: the queue's database is damaged: {error} (move it away and get back what can be read as "
            'docs/operations.md tells under "The queue\'s database is damaged")'
        )
    if (
        getattr(error, "errno", None) == errno.EROFS
        or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY
    ):
        return f"{path}: the queue can't be written to: {error}"
    return f"{path}: can't open the queue: {error}"


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open the queue's file (mode 0600, made if need be). Transactions are the caller's. Raises QueueFileError."""
    try:
        if not read_only:
            # Before SQLite does, whose files would be readable as the umask allows; -wal and -shm take this one's mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path, read_only)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise QueueFileError(trouble(path, error)) from error
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, read_only: bool) -> None:
    # A damaged row must not keep its neighbours from being read.
    connection.text_factory = decode
    first_row(connection.execute("PRAGMA journal_mode=WAL"))
    # FULL: a commit is on the disk when it returns; NORMAL would leave the last ones to a power cut.
    connection.execute("PRAGMA synchronous=FULL")
    # The log must stay well under the free space that is kept in reserve: folding it into the file takes as much again.
    first_row(connection.execute("PRAGMA wal_autocheckpoint=1000"))
    connection.execute("PRAGMA cache_size=-16384")
    # Many builds of SQLite overwrite with zeros what is deleted, each page a write more: for a message of 4 kB the log
    # took 14.5 kB instead of 10.3. FAST does so where it costs no write. The file is ours alone, and mail lies in the
    # mailboxes as well.
    first_row(connection.execute("PRAGMA secure_delete=FAST"))
    if read_only:
        connection.execute("PRAGMA query_only=1")
    else:
        _migrate(connection, path)


def check(connection: sqlite3.Connection) -> None:
    """Look for damage before mail is taken in. Raises sqlite3.DatabaseError.

    Of a large file only the ways to what is due are looked at: all of it would hold up the start.
    """
    first_row(connection.execute("SELECT min(next_attempt) FROM recipient WHERE owner IS NULL"))
    (pages,) = first_row(connection.execute("PRAGMA page_count"))
    if pages > _CHECKED_PAGES:
        return
    (found,) = first_row(connection.execute("PRAGMA quick_check(1)"))
    if found != "ok":
        error = sqlite3.DatabaseError(found)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def decode(octets: bytes) -> str:
    """Texts as `rows.text` stores them, whatever their octets."""
    return octets.decode("utf-8", "surrogateescape")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = first_row(connection.execute("PRAGMA user_version"))
        if version > VERSION:
            raise QueueFileError(
                f"{path}: the queue was written by a newer twisted-mta (format {version}; "
                f"this one knows {VERSION}): run the newer one, or empty the queue with it first"
            )
        if version == 0:
            for statement in (_CREATE + _CREATE_HISTORY).split(";\n"):
                connection.execute(statement)
            version = VERSION
        while version < VERSION:
            MIGRATIONS[version](connection)
            version += 1
        for statement in _INDEXES:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={VERSION}")
        fault("queue.migrate")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    fault("queue.migrated")


def limit_size(connection: sqlite3.Connection, octets: int) -> None:
    """Let the database grow to at most `octets`."""
    (page_size,) = first_row(connection.execute("PRAGMA page_size"))
    first_row(connection.execute(f"PRAGMA max_page_count={max(octets // page_size, 1)}"))

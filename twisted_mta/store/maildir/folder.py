"""One mailbox directory and its rows in the index, kept in step. Blocking: everything here runs in worker threads.

The directory is the truth about which messages there are and their flags; the index adds UIDs, sizes and \\Recent.
A scan looks only where the time of a directory says that something may have changed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import attrs

from twisted_mta.core.values import value
from twisted_mta.interfaces import MailboxChanges, MailboxError, MailboxStatus, MessageEntry, NoSuchMailbox
from twisted_mta.store.faults import fault
from twisted_mta.store.maildir.files import (
    arrival_order,
    key_of,
    letters_of,
    sync_directory,
    to_wire,
    virtual_size_of,
    with_letters,
    with_sizes,
)
from twisted_mta.store.maildir.index import Index, MailboxRow, Record
from twisted_mta.store.maildir.keywords import SYSTEM, Keywords
from twisted_mta.store.maildir.layout import Layout

#: A directory changed less than this before it was read may change again without its time showing it: file systems
#: stamp with the clock's tick, or with whole seconds (ext3, NFS servers).
_GRANULARITY_NS = 2_000_000_000
T = TypeVar("T")
#: A link to a symbolic link, not to what that names. PyPy's os.link can't be asked for it, and does so by itself.
_LINK_ITSELF = {} if sys.implementation.name == "pypy" else {"follow_symlinks": False}
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)
_PLAIN_UNIQUE = re.compile(r"[!-~]{1,70}")


@value
class Incoming:
    """A complete file in the mailbox's tmp/, about to become a message."""

    path: str
    #: Key and sizes.
    name: str
    virtual: int
    flags: frozenset[str]
    date: float


@value
class View:
    """What a session sees of a mailbox; replaced whole by each look."""

    #: Differs for every mailbox the index ever had: another one under the same name is none of ours.
    uid_validity: int
    uid_next: int
    generation: int
    entries: list[MessageEntry]
    #: UIDs that were told to this session as \\Recent.
    recent: frozenset[int]


class Folder:
    """See the module. One object a directory in a process, shared by all sessions."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        directory: str,
        now: Callable[[], float],
        new_key: Callable[[], str],
    ) -> None:
        self.directory = directory
        self.path = layout.path(directory)
        self._layout = layout
        self._index = index
        self._now = now
        self._new_key = new_key
        self._keywords = Keywords(self.path)
        self._row: MailboxRow | None = None
        self._epoch = -1
        #: By rising UID.
        self._records: dict[int, Record] = {}
        self._entries: dict[int, MessageEntry] = {}
        self._generation = 0

    # --- what sessions ask -----------------------------------------------------------------------

    def open(self, claim: bool) -> View:
        """The first look. `claim` consumes \\Recent. Raises NoSuchMailbox."""
        with self._index.transaction() as db:
            row = self._sync(db)
            self._layout.sweep(self.directory, self._now())
            empty = View(row.uid_validity, row.uid_next, -1, [], frozenset())
            return self._look(db, empty, claim)[0]

    def look(self, view: View, claim: bool) -> tuple[View, MailboxChanges]:
        """What is there now, and what that changes in the view. A mailbox that was removed has lost all its messages."""
        with self._index.transaction() as db:
            try:
                self._sync(db)
            except NoSuchMailbox:
                return self._lost(view)
            return self._look(db, view, claim)

    def status(self) -> MailboxStatus:
        """The figures, from a fresh look. Raises NoSuchMailbox."""
        with self._index.transaction() as db:
            row = self._sync(db)
            return MailboxStatus(
                messages=len(self._records),
                recent=sum(record.recent for record in self._records.values()),
                uid_next=row.uid_next,
                uid_validity=row.uid_validity,
                unseen=sum("\\Seen" not in entry.flags for entry in self._entries.values()),
            )

    def read(self, view: View, uid: int) -> bytes:
        """A message with CRLF line ends. Raises MailboxError."""
        for again in (False, True):
            record = self._record(view, uid, again)
            with contextlib.suppress(FileNotFoundError):  # renamed since: look again
                return to_wire(_read_file(self._file(record)))
        raise MailboxError("the message is gone")

    def set_flags(
        self, view: View, uids: Iterable[int], flags: Sequence[str], mode: str
    ) -> dict[int, MessageEntry]:
        """As IMailbox.set_flags; entries by UID."""
        with self._index.transaction() as db:
            self._sync(db)
            mine = list(uids) if self._is(view) else []
            letters = self._keywords.letters(flags, create=mode != "remove")

            def change(record: Record) -> Record:
                return self._rename(record, self._merge(letters_of(record.file), letters, mode))

            changed = self._each(db, mine, change)
            self._update(
                db, [record for record in changed if record != self._records.get(record.uid, record)]
            )
            return {
                record.uid: self._shown(self._entries[record.uid], record.uid in view.recent)
                for record in changed
            }

    def remove(self, view: View, uids: Iterable[int], only_deleted: bool) -> list[int]:
        """Remove messages, durably; which ones were."""
        with self._index.transaction() as db:
            self._sync(db)

            def doomed(record: Record) -> bool:
                return not only_deleted or SYSTEM["\\Deleted"] in letters_of(record.file)

            def unlink(record: Record) -> Record | None:
                if not doomed(record):
                    return None
                fault("maildir.remove")
                os.unlink(self._file(record))
                fault("maildir.removed")
                return record

            mine = list(uids) if self._is(view) else []
            gone = [record.uid for record in self._each(db, mine, unlink) if record]
            if gone:
                sync_directory(os.path.join(self.path, "cur"))
                sync_directory(os.path.join(self.path, "new"))
                self._update(db, (), gone)
            return gone

    # --- messages coming in ----------------------------------------------------------------------

    def add(self, files: Sequence[Incoming]) -> tuple[int, list[int]]:
        """Make messages of files in tmp/, all or none; durable. (UIDVALIDITY, UIDs). Raises NoSuchMailbox."""
        placed: list[str] = []
        try:
            with self._index.transaction() as db:
                row = self._find_row(db)
                self._keywords.load()
                records = []
                for uid, file in enumerate(files, row.uid_next):
                    letters = self._keywords.letters(file.flags)
                    name = with_letters(file.name, letters) if letters else file.name
                    record = Record(uid, key_of(name), name, not letters, file.virtual, file.date, True)
                    fault("maildir.add")
                    os.rename(file.path, self._file(record))
                    placed.append(self._file(record))
                    records.append(record)
                for part in {os.path.dirname(path) for path in placed}:
                    sync_directory(part)
                row.uid_next += len(files)
                self._index.save(db, row)
                self._update(db, records)
        except BaseException:
            for path in (*placed, *(file.path for file in files)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            raise
        return row.uid_validity, [record.uid for record in records]

    def copy(self, view: View, uids: Sequence[int], target: Folder) -> tuple[int, list[int]]:
        """Copy messages, all or none: hard links, as the files never change. Raises NoSuchMailbox, MailboxError."""
        if not self._layout.exists(target.directory):
            raise NoSuchMailbox("there is no such mailbox")
        files: list[Incoming] = []
        try:
            for uid in uids:
                files.append(self._link(view, uid, target))
        except BaseException:
            for file in files:
                os.unlink(file.path)
            raise
        return target.add(files)

    def _link(self, view: View, uid: int, target: Folder) -> Incoming:
        key = self._new_key()
        copy = os.path.join(target.path, "tmp", key)
        for again in (False, True):
            record = self._record(view, uid, again)
            with contextlib.suppress(FileNotFoundError):
                _link_or_copy(self._file(record), copy)
                name = with_sizes(key, os.stat(copy).st_size, record.size)
                flags = self._keywords.flags(letters_of(record.file))
                return Incoming(copy, name, record.size, flags, record.date)
        raise MailboxError("some of the messages are gone")

    # --- watching --------------------------------------------------------------------------------

    def stale(self) -> bool:
        """Whether a look might find something; costs two stats."""
        row = self._row
        try:
            return row is None or self._times() != (row.cur_time, row.new_time)
        except OSError:
            return True

    def _times(self) -> tuple[int, int]:
        return (
            os.stat(os.path.join(self.path, "cur")).st_mtime_ns,
            os.stat(os.path.join(self.path, "new")).st_mtime_ns,
        )

    # --- keeping step; all within a transaction --------------------------------------------------

    def _is(self, view: View) -> bool:
        return self._row is not None and self._row.uid_validity == view.uid_validity

    def _find_row(self, db: sqlite3.Connection) -> MailboxRow:
        if not self._layout.exists(self.directory):
            self._index.forget(db, self.directory)
            self._row = None
            self._epoch = -1
            raise NoSuchMailbox("there is no such mailbox")
        self._row = self._index.mailbox(db, self.directory)
        return self._row

    def _load(self, db: sqlite3.Connection) -> MailboxRow:
        if self._row is not None and self._epoch == self._index.epoch and self._layout.exists(self.directory):
            return self._row
        row = self._find_row(db)
        self._keywords.load()
        self._records = {record.uid: record for record in self._index.records(db, row)}
        self._entries = {uid: self._entry(record) for uid, record in self._records.items()}
        self._epoch = self._index.epoch
        self._generation += 1
        return row

    def _sync(self, db: sqlite3.Connection, force: bool = False) -> MailboxRow:
        row = self._load(db)
        started = int(self._now() * 1_000_000_000)
        times = self._times()
        if not force and times == (row.cur_time, row.new_time):
            return row
        if self._keywords.load():
            self._entries = {uid: self._entry(record) for uid, record in self._records.items()}
            self._generation += 1
        found = self._scan()
        by_key = {record.key: record for record in self._records.values()}
        if by_key.keys() - found.keys():
            # A file that is renamed while the directory is read may be passed over: gone is what is missing twice.
            found = self._scan()
        gone = [record.uid for key, record in by_key.items() if key not in found]
        moved = [
            attrs.evolve(by_key[key], file=file, fresh=fresh)
            for key, (fresh, file) in found.items()
            if key in by_key and (by_key[key].file, by_key[key].fresh) != (file, fresh)
        ]
        unknown = [(key, fresh, file) for key, (fresh, file) in found.items() if key not in by_key]
        unknown.sort(key=lambda each: arrival_order(each[2]))
        added: list[Record] = []
        for key, fresh, file in unknown:
            measured = self._measure(fresh, file)
            if measured is not None:
                added.append(Record(row.uid_next, key, file, fresh, *measured, recent=fresh))
                row.uid_next += 1
        complete = len(added) == len(unknown)
        row.cur_time, row.new_time = (
            time if complete and started - time > _GRANULARITY_NS else -1 for time in times
        )
        self._index.save(db, row)
        self._update(db, [*moved, *added], gone)
        return row

    def _scan(self) -> dict[str, tuple[bool, str]]:
        """Key -> (in new/, file name). new/ is read first: a message that moves is seen twice rather than never."""
        found: dict[str, tuple[bool, str]] = {}
        for fresh in (True, False):
            names = sorted(os.listdir(os.path.join(self.path, "new" if fresh else "cur")))
            for name in names:
                if name.startswith("."):
                    continue
                key = key_of(name)
                twin = found.get(key)
                if twin and twin[0] == fresh and twin[1].partition(":")[0] != name.partition(":")[0]:
                    key = name.partition(":")[0]  # two messages of one key: told apart by all of their names
                found[key] = (fresh, name)
        return found

    def _measure(self, fresh: bool, file: str) -> tuple[int, float] | None:
        """(size as read, arrival) of a file not seen before; None if it has gone, or is no message."""
        path = os.path.join(self.path, "new" if fresh else "cur", file)
        try:
            found = os.lstat(path)
            if not stat.S_ISREG(found.st_mode):
                return None
            size = virtual_size_of(file)
            return len(to_wire(_read_file(path))) if size is None else size, found.st_mtime
        except FileNotFoundError:
            return None

    def _update(self, db: sqlite3.Connection, records: Iterable[Record], gone: Iterable[int] = ()) -> None:
        """Write changes to the index and to memory (if that holds this mailbox)."""
        records, gone = list(records), list(gone)
        assert self._row is not None
        if not records and not gone:
            return
        self._index.put(db, self._row, records)
        self._index.drop(db, self._row, gone)
        if self._epoch != self._index.epoch:
            return
        for record in records:
            self._records[record.uid] = record
            self._entries[record.uid] = self._entry(record)
        for uid in gone:
            del self._records[uid], self._entries[uid]
        self._generation += 1

    def _each(self, db: sqlite3.Connection, uids: Iterable[int], act: Callable[[Record], T]) -> list[T]:
        """Act on the files of messages; those renamed by others meanwhile are looked for once more."""
        done: list[T] = []
        missed: list[int] = []
        for uid in uids:
            record = self._records.get(uid)
            if record is not None:
                try:
                    done.append(act(record))
                except FileNotFoundError:
                    missed.append(uid)
        if missed:
            self._sync(db, force=True)
            for uid in missed:
                if uid in self._records:
                    with contextlib.suppress(FileNotFoundError):
                        done.append(act(self._records[uid]))
        return done

    # --- views -----------------------------------------------------------------------------------

    def _look(self, db: sqlite3.Connection, view: View, claim: bool) -> tuple[View, MailboxChanges]:
        row = self._row
        assert row is not None
        if not self._is(view):
            return self._lost(view)
        recent = [record for record in self._records.values() if record.recent]
        seen_recent = view.recent | {record.uid for record in recent}
        if claim:
            self._claim(db, recent)
        if self._generation == view.generation:
            return view, MailboxChanges()
        before = {entry.uid: entry for entry in view.entries}
        entries = [self._shown(entry, uid in seen_recent) for uid, entry in self._entries.items()]
        changes = MailboxChanges(
            expunged=tuple(uid for uid in before if uid not in self._entries),
            changed=tuple(
                entry for entry in entries if entry.uid in before and entry.flags != before[entry.uid].flags
            ),
            added=tuple(entry for entry in entries if entry.uid not in before),
        )
        now = View(row.uid_validity, row.uid_next, self._generation, entries, seen_recent)
        return now, changes

    def _claim(self, db: sqlite3.Connection, recent: Iterable[Record]) -> None:
        """Messages in new/ have now been seen by someone: they move to cur/, and are \\Recent to nobody else."""
        claimed = []
        for record in recent:
            try:
                moved = self._rename(record, letters_of(record.file)) if record.fresh else record
            except FileNotFoundError:
                continue  # someone was quicker: the next look finds it
            claimed.append(attrs.evolve(moved, recent=False))
        self._update(db, claimed)

    @staticmethod
    def _lost(view: View) -> tuple[View, MailboxChanges]:
        changes = MailboxChanges(expunged=tuple(entry.uid for entry in view.entries))
        return attrs.evolve(view, entries=[], generation=-1), changes

    @staticmethod
    def _shown(entry: MessageEntry, recent: bool) -> MessageEntry:
        return attrs.evolve(entry, recent=True) if recent else entry

    def _entry(self, record: Record) -> MessageEntry:
        unique = record.key
        if not _PLAIN_UNIQUE.fullmatch(unique):  # RFC 1939 §7
            unique = hashlib.sha256(unique.encode("utf-8", "surrogateescape")).hexdigest()
        return MessageEntry(
            uid=record.uid,
            flags=self._keywords.flags(letters_of(record.file)),
            size=record.size,
            internal_date=record.date,
            unique_name=unique,
        )

    # --- files -----------------------------------------------------------------------------------

    def _record(self, view: View, uid: int, again: bool) -> Record:
        """Where a message of a view lies. Raises MailboxError."""
        with self._index.transaction() as db:
            if again:
                self._sync(db, force=True)
            else:
                self._load(db)
            if not self._is(view) or uid not in self._records:
                raise MailboxError("the message is gone")
            return self._records[uid]

    def _file(self, record: Record) -> str:
        return os.path.join(self.path, "new" if record.fresh else "cur", record.file)

    def _rename(self, record: Record, letters: str) -> Record:
        """Move a message into cur/ under the name with these letters. Raises FileNotFoundError."""
        renamed = attrs.evolve(record, file=with_letters(record.file, letters), fresh=False)
        if renamed != record:
            fault("maildir.flags")
            os.rename(self._file(record), self._file(renamed))
        return renamed

    def _merge(self, old: str, given: str, mode: str) -> str:
        if mode == "add":
            return old + given
        if mode == "remove":
            return "".join(letter for letter in old if letter not in given)
        # Letters that mean nothing to us are other programs' (P, "passed"): they stay.
        return given + "".join(letter for letter in old if not self._keywords.flags(letter))


def _read_file(path: str) -> bytes:
    # A symbolic link is no message: whoever can write to a Maildir must not read other files through us.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        return file.read()


def _link_or_copy(source: str, copy: str) -> None:
    fault("maildir.link")
    try:
        os.link(source, copy, **_LINK_ITSELF)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, copy, follow_symlinks=False)
        os.chmod(copy, 0o600)
        fd = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

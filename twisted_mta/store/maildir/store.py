"""The mailboxes of accounts as Maildir++ trees: IMailboxes and IMailboxStore."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec, Protocol, TypeVar
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.interfaces import (
    Account,
    IMailboxes,
    IMailboxStore,
    MailboxError,
    MailboxExists,
    MailboxInfo,
    MailboxStatus,
    NoSuchMailbox,
    StoreFull,
)
from twisted_mta.store.faults import fault
from twisted_mta.store.maildir.files import MessageFile, UniqueKeys, sync_directory
from twisted_mta.store.maildir.folder import Folder, Incoming, View
from twisted_mta.store.maildir.index import FILE, Index, IndexLost
from twisted_mta.store.maildir.keywords import FILE as KEYWORDS
from twisted_mta.store.maildir.layout import Layout
from twisted_mta.store.maildir.mailbox import MaildirMailbox
from twisted_mta.store.maildir.names import directory_of, name_of, normalise, parents
from twisted_mta.store.maildir.watch import Watch
from twisted_mta.store.threads import InlineWorkers, Workers

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds between looks for what other programs did, while a session watches.
POLL_INTERVAL = 3.0
#: Accounts whose index stays open (a file descriptor or three each) when no session has them in use.
_KEPT_OPEN = 100
_FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoom(StoreFull, MailboxError):
    """The disk is full: what APPEND promises to say, and what every other operation may."""


class Elsewhere(Protocol):
    """Other processes that serve the same Maildirs."""

    def watching(self, root: str, on: bool) -> None:
        """Sessions here have that Maildir open, or none has it any more."""
        ...

    def changed(self, root: str, directory: str) -> None:
        """Something happened to a mailbox there."""
        ...


@implementer(IMailboxes)
class MaildirMailboxes:
    """All accounts' mailboxes.

    `index_directory`: where indexes lie instead of beside the messages (for Maildirs on a network file system). `now` is
    Unix seconds and must be the clock by which the file system stamps; `clock` drives the polling.
    """

    def __init__(
        self,
        workers: Workers | InlineWorkers,
        clock: IReactorTime,
        *,
        index_directory: str | None = None,
        now: Callable[[], float] = time.time,
        poll_interval: float = POLL_INTERVAL,
        new_key: Callable[[], str] | None = None,
    ) -> None:
        self._workers = workers
        self._clock = clock
        self._index_directory = index_directory
        self._now = now
        self._poll_interval = poll_interval
        self._new_key = UniqueKeys(now) if new_key is None else new_key
        #: Sessions of an account must share one object, to be told of each other's doings.
        self._stores: WeakValueDictionary[str, MaildirStore] = WeakValueDictionary()
        self._kept: OrderedDict[str, MaildirStore] = OrderedDict()
        self._elsewhere: Elsewhere | None = None

    def share(self, elsewhere: Elsewhere) -> None:
        """Tell these what happens here; to be called before the first session."""
        self._elsewhere = elsewhere

    def of(self, account: Account) -> MaildirStore:
        """The store of that account, the same object as long as anyone has it."""
        root = account.maildir
        store = self._stores.get(root)
        if store is None:
            index = Index(self._index_path(root), self._now)
            store = MaildirStore(
                Layout(root),
                index,
                self._workers,
                self._clock,
                self._now,
                self._new_key,
                self._poll_interval,
                self._elsewhere,
                lambda: self._keep(root),
            )
            self._stores[root] = store
        self._keep(root)
        return store

    def _keep(self, root: str) -> None:
        """Let that index stay open, and another one go for it: nobody else would ever close it where there's no
        reference counting."""
        self._kept[root] = self._stores[root]
        self._kept.move_to_end(root)
        if len(self._kept) > _KEPT_OPEN:
            _, oldest = self._kept.popitem(last=False)
            oldest.release()

    def delivered(self, account: Account, name: str = "INBOX") -> None:
        """A message was put into a mailbox from outside of its store: tell the sessions that watch it."""
        store = self._stores.get(account.maildir)
        if store is not None:
            store.changed(directory_of(name))
        elif self._elsewhere is not None:
            self._elsewhere.changed(account.maildir, directory_of(name))

    def changed_elsewhere(self, root: str, directory: str) -> None:
        """Another process has done something to a mailbox of the Maildir at `root`."""
        store = self._stores.get(root)
        if store is not None:
            store.changed_elsewhere(directory)

    async def close(self) -> None:
        """Close the indexes. Sessions must have ended."""
        for store in list(self._stores.values()):
            await store.release()
        self._kept.clear()

    def _index_path(self, root: str) -> str:
        if self._index_directory is None:
            return os.path.join(root, FILE)
        readable = os.path.basename(root.rstrip("/"))[:60]
        digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
        return os.path.join(self._index_directory, f"{readable}-{digest}.sqlite")


@implementer(IMailboxStore)
class MaildirStore:
    """See IMailboxStore. Made by MaildirMailboxes.of."""

    log = Logger()

    def __init__(
        self,
        layout: Layout,
        index: Index,
        workers: Workers | InlineWorkers,
        clock: IReactorTime,
        now: Callable[[], float],
        new_key: Callable[[], str],
        poll_interval: float,
        elsewhere: Elsewhere | None = None,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_idle` is called when no session has a mailbox open any more."""
        self._elsewhere = elsewhere
        self._on_idle = on_idle
        self._layout = layout
        self._index = index
        self._workers = workers
        self._clock = clock
        self._now = now
        self._new_key = new_key
        self._poll_interval = poll_interval
        #: One job an account: a slow one must not fill the pool with others that wait for the same index.
        self._turn = DeferredLock()
        #: Mailboxes that sessions have open.
        self._open: dict[str, _Opened] = {}

    # --- IMailboxStore ---------------------------------------------------------------------------

    async def list_mailboxes(self) -> Sequence[MailboxInfo]:
        directories, odd = await self.run(self._layout.directories)
        for directory in odd:
            self.log.warn(
                "a mailbox whose name is not modified UTF-7 is not shown: {directory!r} in {path}",
                directory=directory,
                path=self._layout.root,
            )
        names = {name for name in map(name_of, directories) if name}
        subscribed = set(await self.subscriptions())
        above = {parent for name in names for parent in parents(name)}
        return [
            MailboxInfo(
                name=name, selectable=name in names, has_children=name in above, subscribed=name in subscribed
            )
            for name in sorted(names | above, key=lambda name: (name != "INBOX", name))
        ]

    async def subscriptions(self) -> Sequence[str]:
        return await self.run(self._layout.subscriptions)

    async def subscribe(self, name: str, on: bool) -> None:
        await self.run(self._layout.subscribe, normalise(name), on)

    async def create(self, name: str) -> None:
        name = normalise(name)
        await self.run(self._create, name)

    async def delete(self, name: str) -> None:
        name = normalise(name)
        if name == "INBOX":
            raise MailboxError("INBOX can't be deleted")
        await self.run(self._delete, name)
        self.changed(directory_of(name))

    async def rename(self, old: str, new: str) -> None:
        old, new = normalise(old), normalise(new)
        if old == "INBOX":
            await self.run(self._move_inbox, new)
            self.changed("")
            return
        if f"{new}/".startswith(f"{old}/") and old != new:
            raise MailboxError("a mailbox can't be moved into itself")
        for directory in await self.run(self._rename, old, new):
            self.changed(directory)

    async def status(self, name: str) -> MailboxStatus:
        return await self.run(self._folder(normalise(name)).status)

    async def open(self, name: str, read_only: bool = False) -> MaildirMailbox:
        name = normalise(name)
        opened = self._opened(name)
        try:
            view = await self.run(opened.folder.open, not read_only)
        except BaseException:
            self.closed(opened.folder)
            raise
        return MaildirMailbox(self, opened.folder, opened.watch, name, read_only, view)

    async def append(
        self, name: str, message: bytes, flags: Iterable[str] = (), internal_date: float | None = None
    ) -> tuple[int, int]:
        name = normalise(name)
        given = frozenset(flag for flag in flags if flag.lower() != "\\recent")
        added = await self.run(self._append, self._folder(name), message, given, internal_date)
        self.changed(directory_of(name))
        return added

    # --- for the opened mailboxes ----------------------------------------------------------------

    async def copy(
        self, source: Folder, view: View, uids: Sequence[int], target: str
    ) -> tuple[int, Sequence[int]]:
        """See IMailbox.copy."""
        target = normalise(target)
        copied = await self.run(source.copy, view, uids, self._folder(target))
        self.changed(directory_of(target))
        return copied

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call something that blocks in a worker thread. What goes wrong with the disk comes back as a MailboxError."""
        try:
            async with self._turn:
                return await self._workers.run(lambda: self._job(function, *args, **kwargs))
        except (OSError, sqlite3.Error) as error:
            raise self._explain(error) from error

    def changed(self, directory: str, by: object = None) -> None:
        """Tell the sessions that have a mailbox open, but for the one whose own doing it was."""
        self.changed_elsewhere(directory, by)
        if self._elsewhere is not None:
            self._elsewhere.changed(self._layout.root, directory)

    def changed_elsewhere(self, directory: str, by: object = None) -> None:
        """As `changed`, where the other processes know of it."""
        opened = self._open.get(directory)
        if opened is not None:
            opened.watch.tell(by)

    def closed(self, folder: Folder) -> None:
        """A session has let go of a mailbox."""
        opened = self._open[folder.directory]
        opened.sessions -= 1
        if not opened.sessions:
            del self._open[folder.directory]
            if not self._open:
                self._on_idle()
                if self._elsewhere is not None:
                    self._elsewhere.watching(self._layout.root, False)

    def release(self) -> Deferred[None]:
        """Close the index until the next use, if any."""
        return self._workers.run(self._index.close)

    # --- in worker threads -----------------------------------------------------------------------

    def _job(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._layout.ensure()
        try:
            return function(*args, **kwargs)
        except IndexLost:
            return function(*args, **kwargs)

    def _create(self, name: str) -> None:
        directory = directory_of(name)
        if self._layout.exists(directory):
            raise MailboxExists(f"there already is a mailbox {name}")
        self._layout.create(directory)

    def _delete(self, name: str) -> None:
        directory = directory_of(name)
        if not self._layout.exists(directory):
            raise NoSuchMailbox(f"there is no mailbox {name}")
        with self._index.transaction() as db:
            self._index.forget(db, directory)
            self._layout.remove(directory, self._new_key())

    def _rename(self, old: str, new: str) -> list[str]:
        """The directories that are there no more."""
        names = [name for name in map(name_of, self._layout.directories()[0]) if name]
        moving = [name for name in names if f"{name}/".startswith(f"{old}/")]
        if any(new + name[len(old) :] in names for name in moving) or new in names:
            raise MailboxExists(f"there already is a mailbox {new}")
        if not moving:
            raise NoSuchMailbox(f"there is no mailbox {old}")
        targets = [
            normalise(new + name[len(old) :]) for name in moving
        ]  # all of them may be, before any is moved
        with self._index.transaction() as db:
            for name, target in zip(moving, targets, strict=True):
                self._layout.rename(directory_of(name), directory_of(target))
                self._index.move(db, directory_of(name), directory_of(target))
        return [directory_of(name) for name in moving]

    def _move_inbox(self, new: str) -> None:
        """RFC 3501 §6.3.5: the messages go, INBOX stays."""
        self._create(new)
        inbox, target = self._layout.path(""), self._layout.path(directory_of(new))
        keywords = os.path.join(inbox, KEYWORDS)
        if os.path.exists(keywords):  # the letters in the names go on meaning the same
            shutil.copyfile(keywords, os.path.join(target, KEYWORDS))
            os.chmod(os.path.join(target, KEYWORDS), 0o600)
        with self._index.transaction():  # no scan may look meanwhile
            for part in ("cur", "new"):
                for file in os.listdir(os.path.join(inbox, part)):
                    fault("maildir.rename")
                    os.rename(os.path.join(inbox, part, file), os.path.join(target, part, file))
                sync_directory(os.path.join(target, part))
                sync_directory(os.path.join(inbox, part))

    def _append(
        self, folder: Folder, message: bytes, flags: frozenset[str], date: float | None
    ) -> tuple[int, int]:
        if not self._layout.exists(folder.directory):
            raise NoSuchMailbox("there is no such mailbox")
        key = self._new_key()
        when = self._now() if date is None else date
        file = MessageFile(os.path.join(folder.path, "tmp", key))
        try:
            file.write(message)
            file.finish()
            os.utime(file.path, (when, when))
            file.sync()
            uid_validity, uids = folder.add([Incoming(file.path, file.named(key), file.virtual, flags, when)])
        except BaseException:
            file.abort()
            raise
        return uid_validity, uids[0]

    # ---------------------------------------------------------------------------------------------

    def _folder(self, name: str) -> Folder:
        """The shared object if a session has it open, else one for this use."""
        directory = directory_of(name)
        opened = self._open.get(directory)
        return opened.folder if opened else self._new_folder(directory)

    def _new_folder(self, directory: str) -> Folder:
        return Folder(self._layout, self._index, directory, self._now, self._new_key)

    def _opened(self, name: str) -> _Opened:
        directory = directory_of(name)
        opened = self._open.get(directory)
        if opened is None:
            folder = self._new_folder(directory)
            if not self._open and self._elsewhere is not None:
                self._elsewhere.watching(self._layout.root, True)
            watch = Watch(self._clock, self._poll_interval, lambda: self._workers.run(folder.stale))
            opened = self._open[directory] = _Opened(folder, watch)
        opened.sessions += 1
        return opened

    def _explain(self, error: OSError | sqlite3.Error) -> Exception:
        full = (
            error.errno in _FULL
            if isinstance(error, OSError)
            else getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        )
        if full:
            return NoRoom("there is no room on the disk")
        self.log.error("mailbox {path} can't be used: {error}", path=self._layout.root, error=str(error))
        return MailboxError("the mailbox can't be used just now")


class _Opened:
    """A mailbox that sessions have open."""

    def __init__(self, folder: Folder, watch: Watch) -> None:
        self.folder = folder
        self.watch = watch
        self.sessions = 0

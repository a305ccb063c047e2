"""An opened Maildir mailbox: the asynchronous side of a Folder, with the view of one session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec, Protocol, TypeVar

import attrs
from twisted.internet.defer import DeferredLock
from zope.interface import implementer

from twisted_mta.interfaces import IMailbox, MailboxChanges, MailboxError, MessageEntry
from twisted_mta.store.maildir.folder import Folder, View
from twisted_mta.store.maildir.watch import Watch

P = ParamSpec("P")
T = TypeVar("T")


class Owner(Protocol):
    """The part of MaildirStore that its mailboxes use."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call in a worker thread, one at a time for the account."""
        ...

    async def copy(
        self, source: Folder, view: View, uids: Sequence[int], target: str
    ) -> tuple[int, Sequence[int]]:
        """See IMailbox.copy."""
        ...

    def changed(self, directory: str, by: object = None) -> None:
        """Tell all who watch that mailbox but `by`."""
        ...

    def closed(self, folder: Folder) -> None:
        """One session less has that folder open."""
        ...


@implementer(IMailbox)
class MaildirMailbox:
    """See IMailbox. Made by MaildirStore.open."""

    def __init__(
        self, store: Owner, folder: Folder, watch: Watch, name: str, read_only: bool, view: View
    ) -> None:
        self.name = name
        self.read_only = read_only
        self._store = store
        self._folder = folder
        self._watch = watch
        self._view = view
        #: One look or change at a time: each starts from the view that the one before left.
        self._turn = DeferredLock()
        self._closed = False

    @property
    def uid_validity(self) -> int:
        return self._view.uid_validity

    @property
    def uid_next(self) -> int:
        return self._view.uid_next

    @property
    def entries(self) -> list[MessageEntry]:
        return self._view.entries

    async def refresh(self) -> MailboxChanges:
        async with self._turn:
            self._view, changes = await self._store.run(self._folder.look, self._view, not self.read_only)
            return changes

    async def read(self, uid: int) -> bytes:
        return await self._store.run(self._folder.read, self._view, uid)

    async def set_flags(self, uids: Sequence[int], flags: Iterable[str], mode: str) -> Sequence[MessageEntry]:
        self._writable()
        async with self._turn:
            changed = await self._store.run(self._folder.set_flags, self._view, uids, list(flags), mode)
            entries = [changed.get(entry.uid, entry) for entry in self._view.entries]
            self._view = attrs.evolve(self._view, entries=entries)
        if changed:
            self._store.changed(self._folder.directory, self)
        return list(changed.values())

    async def expunge(self, uids: Sequence[int] | None = None) -> Sequence[int]:
        chosen = None if uids is None else set(uids)
        # Only what this session was told of: it names messages by their place in its view.
        return await self._remove(
            lambda: [entry.uid for entry in self.entries if chosen is None or entry.uid in chosen], True
        )

    async def remove(self, uids: Sequence[int]) -> None:
        await self._remove(lambda: uids, False)

    async def _remove(self, choose: Callable[[], Sequence[int]], only_deleted: bool) -> list[int]:
        self._writable()
        async with self._turn:
            gone = await self._store.run(self._folder.remove, self._view, choose(), only_deleted)
            dropped = set(gone)
            entries = [entry for entry in self._view.entries if entry.uid not in dropped]
            self._view = attrs.evolve(self._view, entries=entries)
        if gone:
            self._store.changed(self._folder.directory, self)
        return gone

    async def copy(self, uids: Sequence[int], target: str) -> tuple[int, Sequence[int]]:
        return await self._store.copy(self._folder, self._view, uids, target)

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        return self._watch.add(self, changed)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._watch.forget(self)
            self._store.closed(self._folder)

    def _writable(self) -> None:
        if self.read_only:
            raise MailboxError("the mailbox is open for reading only")

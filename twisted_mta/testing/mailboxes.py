"""Mailboxes in memory: what the POP3 and IMAP servers are tested on.

They keep every promise of IMailboxStore and IMailbox (the contract suite runs on them too), and can be told to fail
or to be slow: see `Knobs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count

import attrs
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_mta.interfaces import (
    Account,
    IMailbox,
    IMailboxes,
    IMailboxStore,
    MailboxChanges,
    MailboxError,
    MailboxExists,
    MailboxInfo,
    MailboxStatus,
    MessageEntry,
    NoSuchMailbox,
)
from twisted_mta.store.maildir.names import normalise, parents


@attrs.define
class Knobs:
    """How the mailboxes misbehave. Keys are method names of IMailboxStore and IMailbox ("append", "read", "refresh").

    `errors`: raised by each call until taken out. `gates`: awaited by each call before it does anything, so that a
    test can look at the server while the disk is slow; callback the Deferred to go on. `calls` counts.
    """

    errors: dict[str, Exception] = attrs.field(factory=dict)
    gates: dict[str, Deferred[None]] = attrs.field(factory=dict)
    calls: dict[str, int] = attrs.field(factory=dict)

    async def enter(self, method: str) -> None:
        """Every method begins here."""
        self.calls[method] = self.calls.get(method, 0) + 1
        gate = self.gates.get(method)
        if gate is not None:
            waiter: Deferred[None] = Deferred()
            gate.chainDeferred(waiter)
            await waiter
        if method in self.errors:
            raise self.errors[method]


@attrs.define
class _Message:
    uid: int
    data: bytes
    flags: frozenset[str]
    date: float
    unique: str
    recent: bool = True

    def entry(self, recent: bool) -> MessageEntry:
        return MessageEntry(
            uid=self.uid,
            flags=self.flags,
            size=len(self.data),
            internal_date=self.date,
            recent=recent,
            unique_name=self.unique,
        )


@attrs.define(eq=False)
class _Box:
    uid_validity: int
    uid_next: int = 1
    messages: dict[int, _Message] = attrs.field(factory=dict)
    watchers: list[tuple[object, Callable[[], None]]] = attrs.field(factory=list)

    def add(self, data: bytes, flags: Iterable[str], date: float, unique: str) -> int:
        uid = self.uid_next
        self.uid_next += 1
        self.messages[uid] = _Message(uid, data, frozenset(flags) - {"\\Recent"}, date, unique)
        return uid

    def tell(self, by: object = None) -> None:
        """Tell every session but the one whose own doing it is."""
        for owner, changed in list(self.watchers):
            if owner is not by:
                changed()


@implementer(IMailboxes)
class MemoryMailboxes:
    """IMailboxes in memory. `now` gives the date of messages that come without one."""

    def __init__(self, now: Callable[[], float] = lambda: 1_700_000_000.0) -> None:
        self._now = now
        self._stores: dict[str, MemoryMailboxStore] = {}

    def of(self, account: Account) -> MemoryMailboxStore:
        """The store of that account, always the same object."""
        if account.name not in self._stores:
            self._stores[account.name] = MemoryMailboxStore(self._now)
        return self._stores[account.name]


@implementer(IMailboxStore)
class MemoryMailboxStore:
    """One account's mailboxes."""

    def __init__(self, now: Callable[[], float] = lambda: 1_700_000_000.0) -> None:
        self.knobs = Knobs()
        self._now = now
        self._validity = count(1_700_000_001)
        self._unique = count(1)
        self._boxes: dict[str, _Box] = {"INBOX": self._new_box()}
        self._subscribed: dict[str, None] = {}

    def deliver(self, message: bytes, name: str = "INBOX") -> int:
        """A message arrives from outside of any session; its UID."""
        box = self._boxes[name]
        uid = self._add(box, message)
        box.tell()
        return uid

    def change_flags(self, uid: int, flags: Iterable[str], name: str = "INBOX") -> None:
        """Another program sets the flags of a message."""
        self._boxes[name].messages[uid].flags = frozenset(flags)
        self._boxes[name].tell()

    def vanish(self, uid: int, name: str = "INBOX") -> None:
        """Another program removes a message."""
        del self._boxes[name].messages[uid]
        self._boxes[name].tell()

    async def list_mailboxes(self) -> Sequence[MailboxInfo]:
        await self.knobs.enter("list_mailboxes")
        above = {parent for name in self._boxes for parent in parents(name)}
        return [
            MailboxInfo(
                name=name,
                selectable=name in self._boxes,
                has_children=name in above,
                subscribed=name in self._subscribed,
            )
            for name in sorted(above | set(self._boxes), key=lambda name: (name != "INBOX", name))
        ]

    async def subscriptions(self) -> Sequence[str]:
        await self.knobs.enter("subscriptions")
        return list(self._subscribed)

    async def subscribe(self, name: str, on: bool) -> None:
        await self.knobs.enter("subscribe")
        name = normalise(name)
        if on:
            self._subscribed[name] = None
        else:
            self._subscribed.pop(name, None)

    async def create(self, name: str) -> None:
        await self.knobs.enter("create")
        name = normalise(name)
        if name in self._boxes:
            raise MailboxExists(f"there already is a mailbox {name}")
        self._boxes[name] = self._new_box()

    async def delete(self, name: str) -> None:
        await self.knobs.enter("delete")
        name, box = self._find(name)
        if name == "INBOX":
            raise MailboxError("INBOX can't be deleted")
        del self._boxes[name]
        box.messages.clear()
        box.tell()

    async def rename(self, old: str, new: str) -> None:
        await self.knobs.enter("rename")
        old, new = normalise(old), normalise(new)
        if new in self._boxes:
            raise MailboxExists(f"there already is a mailbox {new}")
        if old == "INBOX":
            self._move_inbox(new)
            return
        if f"{new}/".startswith(f"{old}/"):
            raise MailboxError("a mailbox can't be moved into itself")
        moving = [name for name in self._boxes if f"{name}/".startswith(f"{old}/")]
        if not moving:
            raise NoSuchMailbox(f"there is no mailbox {old}")
        if any(new + name[len(old) :] in self._boxes for name in moving):
            raise MailboxExists(f"there already are mailboxes below {new}")
        for name in moving:
            box = self._boxes.pop(name)
            moved = self._boxes[new + name[len(old) :]] = _Box(box.uid_validity, box.uid_next)
            moved.messages, box.messages = box.messages, {}
            box.tell()

    def _move_inbox(self, new: str) -> None:
        inbox, target = self._boxes["INBOX"], self._new_box()
        self._boxes[new] = target
        for message in inbox.messages.values():
            target.add(message.data, message.flags, message.date, message.unique)
        inbox.messages.clear()
        inbox.tell()

    async def status(self, name: str) -> MailboxStatus:
        await self.knobs.enter("status")
        _, box = self._find(name)
        messages = box.messages.values()
        return MailboxStatus(
            messages=len(messages),
            recent=sum(message.recent for message in messages),
            uid_next=box.uid_next,
            uid_validity=box.uid_validity,
            unseen=sum("\\Seen" not in message.flags for message in messages),
        )

    async def open(self, name: str, read_only: bool = False) -> MemoryMailbox:
        await self.knobs.enter("open")
        name, box = self._find(name)
        mailbox = MemoryMailbox(self, name, box, read_only)
        mailbox.look()
        return mailbox

    async def append(
        self, name: str, message: bytes, flags: Iterable[str] = (), internal_date: float | None = None
    ) -> tuple[int, int]:
        await self.knobs.enter("append")
        _, box = self._find(name)
        uid = self._add(box, message, flags, internal_date)
        box.tell()
        return box.uid_validity, uid

    def _new_box(self) -> _Box:
        return _Box(next(self._validity))

    def _find(self, name: str) -> tuple[str, _Box]:
        name = normalise(name)
        try:
            return name, self._boxes[name]
        except KeyError:
            raise NoSuchMailbox(f"there is no mailbox {name}") from None

    def _add(
        self, box: _Box, message: bytes, flags: Iterable[str] = (), internal_date: float | None = None
    ) -> int:
        date = self._now() if internal_date is None else internal_date
        return box.add(message, flags, date, f"m{next(self._unique)}")

    def copy_into(self, messages: Sequence[_Message], target: str) -> tuple[int, list[int]]:
        """What IMailbox.copy does."""
        _, box = self._find(target)
        uids = [self._add(box, message.data, message.flags, message.date) for message in messages]
        box.tell()
        return box.uid_validity, uids


@implementer(IMailbox)
class MemoryMailbox:
    """A session's view of one mailbox."""

    def __init__(self, store: MemoryMailboxStore, name: str, box: _Box, read_only: bool) -> None:
        self.name = name
        self.read_only = read_only
        self.entries: list[MessageEntry] = []
        self.closed = False
        self._store = store
        self._box = box
        self._recent: set[int] = set()

    @property
    def uid_validity(self) -> int:
        return self._box.uid_validity

    @property
    def uid_next(self) -> int:
        return self._box.uid_next

    def look(self) -> MailboxChanges:
        """What `refresh` does."""
        before = {entry.uid: entry for entry in self.entries}
        expunged = tuple(uid for uid in before if uid not in self._box.messages)
        changed: list[MessageEntry] = []
        added: list[MessageEntry] = []
        after: list[MessageEntry] = []
        for uid, message in self._box.messages.items():
            if message.recent and uid not in before:
                self._recent.add(uid)
                message.recent = self.read_only  # RFC 3501 §2.3.2: only one session is told
            entry = message.entry(uid in self._recent)
            after.append(entry)
            if uid not in before:
                added.append(entry)
            elif before[uid].flags != entry.flags:
                changed.append(entry)
        self.entries = after
        return MailboxChanges(expunged=expunged, changed=tuple(changed), added=tuple(added))

    async def refresh(self) -> MailboxChanges:
        await self._store.knobs.enter("refresh")
        return self.look()

    async def read(self, uid: int) -> bytes:
        await self._store.knobs.enter("read")
        message = self._box.messages.get(uid)
        if message is None:
            raise MailboxError("the message is gone")
        return message.data

    async def set_flags(self, uids: Sequence[int], flags: Iterable[str], mode: str) -> Sequence[MessageEntry]:
        await self._store.knobs.enter("set_flags")
        self._writable()
        given = frozenset(flags) - {"\\Recent"}
        changed: dict[int, MessageEntry] = {}
        for uid in uids:
            message = self._box.messages.get(uid)
            if message is None:
                continue
            old = message.flags
            message.flags = given if mode == "set" else old | given if mode == "add" else old - given
            changed[uid] = message.entry(uid in self._recent)
        self.entries = [changed.get(entry.uid, entry) for entry in self.entries]
        self._box.tell(self)
        return list(changed.values())

    async def expunge(self, uids: Sequence[int] | None = None) -> Sequence[int]:
        await self._store.knobs.enter("expunge")
        self._writable()
        chosen = {entry.uid for entry in self.entries} if uids is None else set(uids)
        gone = [
            entry.uid
            for entry in self.entries
            if entry.uid in chosen
            and entry.uid in self._box.messages
            and "\\Deleted" in self._box.messages[entry.uid].flags
        ]
        self._drop(gone)
        return gone

    async def remove(self, uids: Sequence[int]) -> None:
        await self._store.knobs.enter("remove")
        self._writable()
        self._drop(uids)

    async def copy(self, uids: Sequence[int], target: str) -> tuple[int, Sequence[int]]:
        await self._store.knobs.enter("copy")
        if any(uid not in self._box.messages for uid in uids):
            raise MailboxError("some of the messages are gone")
        return self._store.copy_into([self._box.messages[uid] for uid in uids], target)

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        watcher = (self, changed)
        self._box.watchers.append(watcher)

        def stop() -> None:
            if watcher in self._box.watchers:
                self._box.watchers.remove(watcher)

        return stop

    async def close(self) -> None:
        await self._store.knobs.enter("close")
        self.closed = True
        self._box.watchers[:] = [watcher for watcher in self._box.watchers if watcher[0] is not self]

    def _writable(self) -> None:
        if self.read_only:
            raise MailboxError("the mailbox is open for reading only")

    def _drop(self, uids: Iterable[int]) -> None:
        gone = set(uids)
        for uid in gone:
            self._box.messages.pop(uid, None)
        self.entries = [entry for entry in self.entries if entry.uid not in gone]
        self._box.tell(self)

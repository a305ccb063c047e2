"""Copies of messages on their way into Maildirs: the part of local delivery that blocks.

All copies of a batch take each step together: written into tmp/, synced, renamed into new/, and their directories synced.
So a message in new/ is whole, whatever happens, and what the disk has to do once it does once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from twisted_mta.core.address import Address
from twisted_mta.core.queue import Delivered, Failed, Outcome, QueuedMessage, TryLater
from twisted_mta.core.replies import Reply
from twisted_mta.delivery.body import CHUNK, looping, loops, read_header
from twisted_mta.interfaces import Account, IStoredBody
from twisted_mta.store.faults import fault
from twisted_mta.store.maildir.files import MessageFile, key_of, sync_directory
from twisted_mta.store.maildir.layout import Layout
from twisted_mta.store.maildir.names import directory_of
from twisted_mta.store.maildir.syncing import Batch, Syncs
from twisted_mta.store.threads import InlineWorkers, Workers

_FULL = (errno.ENOSPC, errno.EDQUOT)

_DELIVERED = Delivered(Reply(250, "2.0.0", "delivered to the mailbox"))
_FOUND = Delivered(Reply(250, "2.0.0", "found in the mailbox, delivered by an earlier attempt"))
_NO_ROOM = TryLater(Reply(452, "4.3.1", "there is no room on the mailbox's disk"))
_NOT_NOW = TryLater(Reply(451, "4.3.0", "the mailbox can't be written to just now"))


@attrs.define(kw_only=True, eq=False)
class Copy:
    """One message on its way into one mailbox. The methods block, and are called in this order until one sets `outcome`:
    `write`, `sync` (or `synced`), `place`, then `settle` when the directory was synced."""

    account: Account
    address: Address
    #: The name of the mailbox wanted, then of the one it went to.
    mailbox: str
    key: str
    #: What stands above `prefix` and `body`.
    head: bytes
    prefix: bytes
    body: IStoredBody
    #: Whether an earlier attempt may have delivered it.
    repeated: bool
    #: The copies of this message that already have a mailbox, by its path; shared by all of one message.
    placed: dict[str, Copy]
    #: The copy that went into the same mailbox and stands for this one too.
    twin: Copy | None = None
    outcome: Outcome | None = None
    #: What went wrong: an OSError, or a bug.
    error: Exception | None = None
    #: Whether the message is new in the mailbox.
    fresh: bool = False
    #: The directory that must be synced before it counts as delivered.
    where: str = ""
    file: MessageFile | None = None

    @property
    def pending(self) -> bool:
        """Whether there is more to do."""
        return self.outcome is None and self.twin is None

    def write(self) -> None:
        """Find the mailbox, and write the file into its tmp/."""
        layout = Layout(self.account.maildir)
        self.mailbox, path = find_mailbox(layout, self.mailbox)
        twin = self.placed.setdefault(path, self)
        if twin is not self:
            self.twin = twin
            return
        if self.repeated:
            layout.ensure()
            self.where = _find(self.key, dict.fromkeys([path, layout.path("")]))
            if self.where:
                return
        with self.body.open() as source:
            begin = self.prefix + read_header(source)
            if loops(begin, self.address):
                self.outcome = Failed(looping(self.address))
                return
            self.where = f"{path}/new"
            self.file = file = _create(layout, f"{path}/tmp/{self.key}")  # noqa: S108  the mailbox's own
            file.write(self.head + begin)
            while chunk := source.read(CHUNK):
                file.write(chunk)
            file.finish()

    def sync(self) -> None:
        """Wait until the file is on disk."""
        if self.file is not None:
            self.file.sync()

    def synced(self) -> None:
        """It is on disk."""
        if self.file is not None:
            self.file.close()

    def place(self) -> None:
        """Rename it into new/."""
        if self.file is not None:
            fault("maildir.deliver")
            os.rename(self.file.path, f"{self.where}/{self.file.named(self.key)}")
            self.fresh = True

    def settle(self) -> None:
        """Everything is on disk."""
        self.outcome = _DELIVERED if self.file is not None else _FOUND

    def fail(self, error: Exception) -> None:
        """Something could not be done: take away what there is of the file."""
        self.fresh = False
        self.error = error
        if self.file is not None:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                self.file.abort()
        full = isinstance(error, OSError) and error.errno in _FULL
        self.outcome = _NO_ROOM if full else _NOT_NOW


class Placer:
    """Has copies put into their mailboxes by threads."""

    def __init__(self, workers: Workers | InlineWorkers, syncs: Syncs | None = None) -> None:
        self._workers = workers
        self._syncs = syncs or Syncs()
        self._running: set[Deferred[None]] = set()

    def place(self, copies: Sequence[Copy]) -> Deferred[None]:
        """Fires when each of them has its outcome, or a twin that has. May be cancelled: then the work goes on."""
        work = self._workers.run(deliver_together, copies, self._syncs)
        self._running.add(work)
        done: Deferred[None] = Deferred()

        def ended(result: Failure | None) -> None:
            self._running.discard(work)
            done.callback(result)

        work.addBoth(ended)
        return done

    async def idle(self) -> None:
        """Wait for what is under way."""
        await DeferredList(list(self._running))


def delivery_key(message: QueuedMessage, name: str, host: str) -> str:
    """The key of a message's file in the mailbox of that name: the same whenever it is delivered. `host`: see safe_host."""
    return f"{int(message.arrived)}.Q{message.id}R{_mark(name)}.{host}"


@lru_cache(1000)
def _mark(name: str) -> str:
    return hashlib.sha256(name.casefold().encode("utf-8", "surrogateescape")).hexdigest()[:12]


def find_mailbox(layout: Layout, wanted: str) -> tuple[str, str]:
    """The mailbox that takes the mail for the one wanted, and its path. Blocks."""
    directory = directory_of(wanted)
    if directory and not layout.exists(directory):
        wanted, directory = "INBOX", ""
    return wanted, layout.path(directory)


def deliver_together(copies: Sequence[Copy], syncs: Syncs) -> None:
    """One batch: each step for all, then the next; in the end each has an outcome, or a twin that has. Blocks."""
    with syncs.batch(dict.fromkeys(copy.account.maildir for copy in copies), len(copies)) as batch:
        written = _each(copies, Copy.write)
        _sync_files([copy for copy in written if copy.file is not None], batch)
        placed = _each([copy for copy in written if copy.pending], Copy.place)
        _sync_directories(placed, batch)
    for copy in copies:
        copy.placed.clear()  # they know themselves by it: the bodies would stay until the garbage is collected


def _sync_files(copies: Iterable[Copy], batch: Batch) -> None:
    by_device: dict[int, list[Copy]] = {}
    for copy in copies:
        by_device.setdefault(batch.device(copy.where), []).append(copy)
    for device, group in by_device.items():
        _each(group, Copy.synced if batch.sync(device, len(group)) else Copy.sync)


def _sync_directories(copies: Iterable[Copy], batch: Batch) -> None:
    by_device: dict[int, dict[str, list[Copy]]] = {}
    for copy in copies:
        device = -1 if copy.file is None else batch.device(copy.where)
        by_device.setdefault(device, {}).setdefault(copy.where, []).append(copy)
    for device, by_directory in by_device.items():
        whole = batch.sync(device, len(by_directory))
        for directory, inside in by_directory.items():
            try:
                if whole:
                    fault("maildir.synced")
                else:
                    sync_directory(directory)
            except OSError as error:
                # The files stay: without a sync nobody knows whether they do, and the next attempt will look.
                for copy in inside:
                    copy.fail(error)
                continue
            for copy in inside:
                copy.settle()


def _each(copies: Sequence[Copy], step: Callable[[Copy], None]) -> list[Copy]:
    """Take a step with each; those for which there is another."""
    for copy in copies:
        try:
            step(copy)
        except Exception as error:  # noqa: BLE001  trouble, or a bug, with one is not that of the others
            copy.fail(error)
    return [copy for copy in copies if copy.pending]


def _create(layout: Layout, path: str) -> MessageFile:
    for _ in range(2):
        try:
            return MessageFile(path)
        except FileExistsError:
            os.unlink(path)  # of an attempt that was cut off: nobody else has this key
        except FileNotFoundError:
            layout.ensure()  # not before, since nearly always it is there
    return MessageFile(path)


def _find(key: str, mailboxes: Iterable[str]) -> str:
    """The directory in which the message already lies; "" if in none."""
    for mailbox in mailboxes:
        # Mail programs move it from new/ to cur/, so that is the order. One that renames a file just now may hide it
        # from one reading of the directory, not from two.
        for part in ("new", "cur", "cur"):
            directory = os.path.join(mailbox, part)
            if any(key_of(name) == key for name in os.listdir(directory)):
                return directory
    return ""

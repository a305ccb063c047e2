"""Local delivery: messages from the queue into Maildirs, durably and once.

A copy is written into tmp/, synced, renamed into new/, and the directory synced; only then is it Delivered. All copies
that wait at a moment go through these steps together, so that the syncs of one ride on the journal commit of another.
The name derives from the queue id and the account: an attempt that may be a repetition (after a crash, after a
failure halfway) finds its own earlier work.

Each copy is a file of its own, no hard link: Delivered-To, which stops loops, makes them differ.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_mta.core.address import Address
from twisted_mta.core.explanation import Finding, Note
from twisted_mta.core.queue import Delivered, Failed, Outcome, QueuedMessage, QueuedRecipient, TryLater
from twisted_mta.core.replies import Reply
from twisted_mta.delivery.body import CHUNK, final_fields, loops, read_header
from twisted_mta.interfaces import (
    Account,
    Foreseen,
    IDelivery,
    IDirectory,
    IForesight,
    IStoredBody,
    MailboxError,
)
from twisted_mta.store.faults import fault
from twisted_mta.store.maildir.files import MessageFile, key_of, safe_host, sync_directory
from twisted_mta.store.maildir.layout import Layout
from twisted_mta.store.maildir.names import directory_of, normalise
from twisted_mta.store.threads import InlineWorkers, Workers

#: Copies in one batch, each an open file.
_BATCH = 64
_FULL = (errno.ENOSPC, errno.EDQUOT)

_DELIVERED = Reply(250, "2.0.0", "delivered to the mailbox")
_FOUND = Reply(250, "2.0.0", "found in the mailbox, delivered by an earlier attempt")


@implementer(IDelivery, IForesight)
class LocalDelivery:
    """IDelivery for Transport.LOCAL."""

    log = Logger()

    def __init__(
        self,
        directory: IDirectory,
        workers: Workers | InlineWorkers,
        *,
        hostname: str,
        started: float,
        told: Callable[[Account, str], None] = lambda account, name: None,
    ) -> None:
        """`started`: Unix time of this process's start; messages from before may have been delivered by the one before.
        `told` hears of each new message (account, mailbox name)."""
        self._directory = directory
        self._workers = workers
        self._batches = Batches(workers)
        self._host = safe_host(hostname)
        self._started = started
        self._told = told

    def destination(self, recipient: QueuedRecipient) -> str:
        """One for all: the copies of a message are written together."""
        return "local"

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """See IDelivery. One mailbox gets one copy, however many of the recipients it is."""
        placed: dict[str, Copy] = {}
        copies = [self._copy(message, body, recipient, placed) for recipient in recipients]
        await self._batches.submit([copy for copy in copies if copy is not None])
        outcomes: list[Outcome] = []
        for recipient, copy in zip(recipients, copies, strict=True):
            if copy is None:
                outcomes.append(Failed(no_such_user(recipient.address)))
            else:
                outcomes.append(self._result(message, recipient, copy))
        return outcomes

    async def foresee(self, message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> Foreseen:
        """See IForesight."""
        account = self._directory.account(recipient.address)
        if account is None:
            reply = no_such_user(recipient.address)
            return Foreseen(Note("mailbox", str(reply), Finding.REFUSED), failure=reply)
        wanted = self._detail(account, recipient.address)
        mailbox, path = await self._workers.run(_find_mailbox, Layout(account.maildir), wanted)
        text = f"mailbox of {account.name}" + (f", {mailbox}" if mailbox != "INBOX" else "")
        data = {"account": account.name, "mailbox": mailbox, "path": path}
        children: tuple[Note, ...] = ()
        if mailbox != wanted:
            children = (Note("detail", f"there is no mailbox {wanted}: it goes to INBOX"),)
        note = Note("mailbox", f"{text}: {path}", where="accounts.maildir", data=data, children=children)
        return Foreseen(note, (path,))

    async def close(self) -> None:
        """Wait for the batches under way."""
        await self._batches.idle()

    def _copy(
        self, message: QueuedMessage, body: IStoredBody, recipient: QueuedRecipient, placed: dict[str, Copy]
    ) -> Copy | None:
        account = self._directory.account(recipient.address)
        if account is None:
            return None
        message = message.copy_for(recipient)
        return Copy(
            account=account,
            address=recipient.address,
            mailbox=self._detail(account, recipient.address),
            key=delivery_key(message, account.name, self._host),
            head=final_fields(message.sender, recipient.address),
            prefix=message.prefix,
            body=body,
            repeated=recipient.attempts > 0 or message.arrived < self._started,
            placed=placed,
        )

    def _detail(self, account: Account, address: Address) -> str:
        """The mailbox that alice+work@ names, if that can be one; "INBOX" otherwise."""
        base = self._directory.without_detail(address)
        if base is None or address.folded == account.name.casefold():
            return "INBOX"
        try:
            return normalise(address.local[len(base.local) + 1 :])
        except MailboxError:
            return "INBOX"

    def _result(self, message: QueuedMessage, recipient: QueuedRecipient, copy: Copy) -> Outcome:
        outcome = (copy.twin or copy).outcome
        assert outcome is not None  # each copy of a batch has one
        if copy.error is not None:
            self.log.error(
                "delivery to {recipient} failed: {error}",
                queue_id=message.id,
                recipient=str(recipient.address),
                maildir=copy.account.maildir,
                error=str(copy.error),
            )
        elif copy.fresh:
            self._told(copy.account, copy.mailbox)
        return outcome


def no_such_user(address: Address) -> Reply:
    """Why nothing is delivered."""
    return Reply(550, "5.1.1", f"<{address}>: there is no such user here")  # RFC 3463 §3.2


def _find_mailbox(layout: Layout, wanted: str) -> tuple[str, str]:
    """The mailbox that takes the mail for the one wanted, and its path. Blocks."""
    directory = directory_of(wanted)
    if directory and not layout.exists(directory):
        wanted, directory = "INBOX", ""
    return wanted, layout.path(directory)


@attrs.define(kw_only=True, eq=False)
class Copy:
    """One message on its way into one mailbox. The methods block, and are called in this order until one sets `outcome`:
    `write`, `sync`, `place`, then `settle` when the directory was synced."""

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
    #: The copies of this message that already have a mailbox, by its path; shared by all of one `deliver`.
    placed: dict[str, Copy]
    #: The copy that went into the same mailbox and stands for this one too.
    twin: Copy | None = None
    outcome: Outcome | None = None
    error: OSError | None = None
    #: Whether the message is new in the mailbox.
    fresh: bool = False
    #: The directory that must be synced before it counts as delivered.
    where: str = ""
    _file: MessageFile | None = None

    def write(self) -> None:
        """Find the mailbox, and write the file into its tmp/."""
        layout = Layout(self.account.maildir)
        layout.ensure()
        self.mailbox, path = _find_mailbox(layout, self.mailbox)
        self.twin = self.placed.setdefault(path, self)
        if self.twin is not self:
            return
        self.twin = None
        if self.repeated:
            self.where = _find(self.key, dict.fromkeys([path, layout.path("")]))
            if self.where:
                return
        with self.body.open() as source:
            begin = read_header(source)
            if loops(self.prefix + begin, self.address):
                text = f"<{self.address}>: mail forwarding loop, it was delivered here before"
                self.outcome = Failed(Reply(554, "5.4.6", text))  # RFC 3463 §3.5
                return
            self.where = os.path.join(path, "new")
            self._file = _create(os.path.join(path, "tmp", self.key))
            self._file.write(self.head + self.prefix + begin)
            while chunk := source.read(CHUNK):
                self._file.write(chunk)
            self._file.finish()

    def sync(self) -> None:
        """Wait until the file is on disk."""
        if self._file is not None:
            self._file.sync()

    def place(self) -> None:
        """Rename it into new/."""
        if self._file is not None:
            fault("maildir.deliver")
            os.rename(self._file.path, os.path.join(self.where, self._file.named(self.key)))
            self.fresh = True

    def settle(self) -> None:
        """Everything is on disk."""
        self.outcome = Delivered(_DELIVERED if self._file is not None else _FOUND)

    def fail(self, error: OSError) -> None:
        """Something could not be done: take away what there is of the file."""
        self.fresh = False
        self.error = error
        if self._file is not None:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                self._file.abort()
        if error.errno in _FULL:
            self.outcome = TryLater(Reply(452, "4.3.1", "there is no room on the mailbox's disk"))
        else:
            self.outcome = TryLater(Reply(451, "4.3.0", "the mailbox can't be written to just now"))


class Batches:
    """Puts the copies that wait at a moment into the mailboxes together, one batch at a time."""

    def __init__(self, workers: Workers | InlineWorkers, size: int = _BATCH) -> None:
        self._workers = workers
        self._size = size
        self._waiting: deque[tuple[Copy, Callable[[Failure | None], None]]] = deque()
        self._running = False
        self._idle: list[Deferred[None]] = []

    def submit(self, copies: Sequence[Copy]) -> Deferred[None]:
        """Fires when each copy has its outcome. Errs only for what nobody expected."""
        done: Deferred[None] = Deferred(lambda _: None)  # cancelled: the work goes on, nobody waits for it
        left = len(copies)
        problem: Failure | None = None

        def one(failure: Failure | None) -> None:
            nonlocal left, problem
            left -= 1
            problem = problem or failure
            if not left and not done.called:
                done.callback(None) if problem is None else done.errback(problem)

        self._waiting.extend((copy, one) for copy in copies)
        if not copies:
            done.callback(None)
        if not self._running:
            self._start()
        return done

    def idle(self) -> Deferred[None]:
        """Fires when nothing is under way."""
        done: Deferred[None] = Deferred()
        if self._running:
            self._idle.append(done)
        else:
            done.callback(None)
        return done

    def _start(self) -> None:
        self._running = bool(self._waiting)
        if not self._running:
            idle, self._idle = self._idle, []
            for done in idle:
                done.callback(None)
            return
        batch = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]

        def finished(result: Failure | None) -> None:
            for _, one in batch:
                one(result)
            self._start()

        self._workers.run(deliver_together, [copy for copy, _ in batch]).addBoth(finished)


def deliver_together(copies: Sequence[Copy]) -> None:
    """One batch: each step for all, then the next. Blocks."""
    _each(copies, Copy.write)
    _each(copies, Copy.sync)
    _each(copies, Copy.place)
    by_directory: dict[str, list[Copy]] = {}
    for copy in copies:
        if copy.outcome is None and copy.twin is None:
            by_directory.setdefault(copy.where, []).append(copy)
    for directory, inside in by_directory.items():
        try:
            sync_directory(directory)
        except OSError as error:
            # The files stay: without a sync nobody knows whether they do, and the next attempt will look.
            for copy in inside:
                copy.fail(error)
            continue
        for copy in inside:
            copy.settle()


def _each(copies: Iterable[Copy], step: Callable[[Copy], None]) -> None:
    for copy in copies:
        if copy.outcome is None and copy.twin is None:
            try:
                step(copy)
            except OSError as error:
                copy.fail(error)


def delivery_key(message: QueuedMessage, name: str, host: str) -> str:
    """The key of a message's file in the mailbox of that name: the same whenever it is delivered. `host`: see safe_host."""
    who = hashlib.sha256(name.casefold().encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{int(message.arrived)}.Q{message.id}R{who}.{host}"


def _create(path: str) -> MessageFile:
    try:
        return MessageFile(path)
    except FileExistsError:
        os.unlink(path)  # of an attempt that was cut off: nobody else has this key
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

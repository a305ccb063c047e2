"""Delivery into files that aliases name: "/path" is an mbox, "/path/" a Maildir, below the configured directories only."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.core.explanation import Finding, Note
from twisted_mta.core.queue import Delivered, Outcome, QueuedMessage, QueuedRecipient, TryLater
from twisted_mta.core.replies import Reply
from twisted_mta.delivery.body import final_fields, looping, loops
from twisted_mta.delivery.copies import Copy, Placer, delivery_key
from twisted_mta.interfaces import Account, Foreseen, IDelivery, IForesight, IStoredBody
from twisted_mta.store.below import NotAllowed, directory_below, root_of
from twisted_mta.store.maildir.files import safe_host
from twisted_mta.store.mbox import Letter, Locked, append
from twisted_mta.store.threads import InlineWorkers, Workers

#: Seconds for which a file may be locked until the message goes back to the queue, and between two looks at it.
_PATIENCE = 30.0
_PAUSE = 0.25
_FULL = (errno.ENOSPC, errno.EDQUOT)

_DELIVERED = Delivered(Reply(250, "2.0.0", "delivered to the file"))
_FOUND = Delivered(Reply(250, "2.0.0", "found in the file, delivered by an earlier attempt"))
_BUSY = TryLater(Reply(451, "4.2.0", "the file is locked by another program"))
_NO_ROOM = TryLater(Reply(452, "4.3.1", "there is no room on the file's disk"))
_BROKEN = TryLater(Reply(451, "4.3.0", "the file can't be written to just now"))
# The path is in the log; a sender has no business with it.
_NOT_ALLOWED = TryLater(
    Reply(451, "4.3.5", "delivery into that file is not allowed by this server's settings")
)


@implementer(IDelivery, IForesight)
class FileDelivery:
    """IDelivery for Transport.FILE. `recipient.target` is the path.

    One attempt at a time may be under way for each file: the queue manager sees to that. All recipients of a message
    that lead to one file are one copy in it.
    """

    log = Logger()

    def __init__(
        self,
        roots: Sequence[Path],
        workers: Workers | InlineWorkers,
        clock: IReactorTime,
        *,
        hostname: str,
        started: float,
    ) -> None:
        """`roots`: the directories below which files may be. `started`: Unix time of this process's start."""
        self._roots = tuple(roots)
        self._workers = workers
        self._placer = Placer(workers)
        self._clock = clock
        self._host = safe_host(hostname)
        self._started = started

    def reconfigure(self, roots: Sequence[Path]) -> None:
        """Allow files below these directories from now on."""
        self._roots = tuple(roots)

    def destination(self, recipient: QueuedRecipient) -> str:
        """See IDelivery: the path."""
        return recipient.target

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """See IDelivery."""
        outcome: Outcome
        try:
            outcome = await self._deliver(message, body, recipients[0], destination)
        except NotAllowed as why:
            self._complain(message, destination, str(why))
            outcome = _NOT_ALLOWED
        except OSError as error:
            self._complain(message, destination, str(error))
            outcome = _NO_ROOM if error.errno in _FULL else _BROKEN
        return [outcome] * len(recipients)

    async def foresee(self, message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> Foreseen:
        """See IForesight. Links on the way, and rights, show only when it is done."""
        path = recipient.target
        try:
            root_of(path.removesuffix("/"), self._roots)
        except NotAllowed as why:
            text = f"{_NOT_ALLOWED.reply}: {why}"
            note = Note("file", text, Finding.LATER, where="delivery.files", data={"path": path})
            return Foreseen(note, failure=_NOT_ALLOWED.reply)
        kind = "Maildir" if path.endswith("/") else "mbox"
        if kind == "Maildir" and loops(header, recipient.address):
            reply = looping(recipient.address)
            return Foreseen(Note("file", str(reply), Finding.REFUSED, data={"path": path}), failure=reply)
        note = Note("file", f"{kind} {path}", where="delivery.files", data={"path": path})
        return Foreseen(note, (path,))

    async def close(self) -> None:
        """Wait for the batches under way."""
        await self._placer.idle()

    async def _deliver(
        self, message: QueuedMessage, body: IStoredBody, recipient: QueuedRecipient, path: str
    ) -> Outcome:
        root = root_of(path.removesuffix("/"), self._roots)
        repeated = recipient.attempts > 0 or message.arrived < self._started
        head = final_fields(message.sender, recipient.address)
        if path.endswith("/"):
            await self._workers.run(_prepare, root, path)
            copy = Copy(
                account=Account(path, path.removesuffix("/")),
                address=recipient.address,
                mailbox="INBOX",
                key=delivery_key(message, path, self._host),
                head=head,
                prefix=message.prefix,
                body=body,
                repeated=repeated,
                placed={},
            )
            await self._placer.place([copy])
            assert copy.outcome is not None  # each copy of a batch has one
            if copy.error is not None:
                self._complain(message, path, str(copy.error))
            return copy.outcome
        letter = Letter(sender=message.sender, arrived=message.arrived, head=head + message.prefix, body=body)
        for _ in range(round(_PATIENCE / _PAUSE)):
            try:
                fresh = await self._workers.run(
                    append, root, path, letter, self._clock.seconds(), repeated=repeated
                )
            except Locked as locked:
                self.log.debug("{path}: {why}", path=path, why=str(locked), queue_id=message.id)
                await deferLater(self._clock, _PAUSE)
            else:
                return _DELIVERED if fresh else _FOUND
        return _BUSY

    def _complain(self, message: QueuedMessage, path: str, why: str) -> None:
        self.log.error(
            "{queue_id}: can't deliver into {path}: {why}", queue_id=message.id, path=path, why=why
        )


def _prepare(root: Path, path: str) -> None:
    """See that a Maildir may be used, and make the way to it."""
    with directory_below(root, Path(path).relative_to(root).parts, private=True) as maildir:
        for part in ("tmp", "new", "cur"):
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.stat(part, dir_fd=maildir, follow_symlinks=False).st_mode):
                    raise NotAllowed(f'"{part}" in it is a link, or no directory')

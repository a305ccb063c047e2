"""Local delivery: messages into Maildirs, from the queue or on their way in, durably and once.

A copy is written into tmp/, synced, renamed into new/, and the directory synced; only then is it Delivered. All copies
of a batch go through these steps together: see `copies`. The name derives from the queue id and the account: an attempt
that may be a repetition (after a crash, after a failure halfway) finds its own earlier work.

Each copy is a file of its own, no hard link: Delivered-To, which stops loops, makes them differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_mta.core.address import Address
from twisted_mta.core.explanation import Finding, Note
from twisted_mta.core.queue import Failed, Outcome, QueuedMessage, QueuedRecipient
from twisted_mta.core.replies import Reply
from twisted_mta.delivery.body import final_fields, looping, loops
from twisted_mta.delivery.copies import Copy, Placer, delivery_key, find_mailbox
from twisted_mta.interfaces import (
    Account,
    Consignment,
    Foreseen,
    IBatchDelivery,
    IDirectory,
    IForesight,
    IStoredBody,
    MailboxError,
)
from twisted_mta.store.maildir.files import safe_host
from twisted_mta.store.maildir.layout import Layout
from twisted_mta.store.maildir.names import normalise
from twisted_mta.store.maildir.syncing import Syncs
from twisted_mta.store.threads import InlineWorkers, Workers


@implementer(IBatchDelivery, IForesight)
class LocalDelivery:
    """IBatchDelivery for Transport.LOCAL."""

    log = Logger()

    #: Messages in one batch: each of their copies is an open file for a while.
    limit = 100

    def __init__(
        self,
        directory: IDirectory,
        workers: Workers | InlineWorkers,
        *,
        hostname: str,
        started: float,
        told: Callable[[Account, str], None] = lambda account, name: None,
        syncs: Syncs | None = None,
    ) -> None:
        """`started`: Unix time of this process's start; messages from before may have been delivered by the one before.
        `told` hears of each new message (account, mailbox name)."""
        self._directory = directory
        self._workers = workers
        self._placer = Placer(workers, syncs)
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
        (outcomes,) = await self.deliver_batch([Consignment(message, body, recipients)])
        return outcomes

    async def deliver_batch(self, batch: Sequence[Consignment]) -> Sequence[Sequence[Outcome]]:
        """See IBatchDelivery."""
        found = [self._copies(consignment) for consignment in batch]
        copies = [copy for each in found for copy in each if copy is not None]
        if copies:
            await self._placer.place(copies)
        return [
            [
                self._outcome(consignment.message, recipient, copy)
                for recipient, copy in zip(consignment.recipients, each, strict=True)
            ]
            for consignment, each in zip(batch, found, strict=True)
        ]

    async def foresee(self, message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> Foreseen:
        """See IForesight."""
        account = self._directory.account(recipient.address)
        if account is None:
            reply = no_such_user(recipient.address)
            return Foreseen(Note("mailbox", str(reply), Finding.REFUSED), failure=reply)
        if loops(header, recipient.address):
            reply = looping(recipient.address)
            return Foreseen(Note("mailbox", str(reply), Finding.REFUSED), failure=reply)
        wanted = self._detail(account, recipient.address)
        mailbox, path = await self._workers.run(find_mailbox, Layout(account.maildir), wanted)
        text = f"mailbox of {account.name}" + (f", {mailbox}" if mailbox != "INBOX" else "")
        data = {"account": account.name, "mailbox": mailbox, "path": path}
        children: tuple[Note, ...] = ()
        if mailbox != wanted:
            children = (Note("detail", f"there is no mailbox {wanted}: it goes to INBOX"),)
        note = Note("mailbox", f"{text}: {path}", where="accounts.maildir", data=data, children=children)
        return Foreseen(note, (path,))

    async def close(self) -> None:
        """Wait for the batches under way."""
        await self._placer.idle()

    def _copies(self, consignment: Consignment) -> list[Copy | None]:
        """One for each recipient, None for those that do not exist."""
        placed: dict[str, Copy] = {}
        copies: list[Copy | None] = []
        for recipient in consignment.recipients:
            account = self._directory.account(recipient.address)
            if account is None:
                copies.append(None)
                continue
            message = consignment.message.copy_for(recipient)
            copy = Copy(
                account=account,
                address=recipient.address,
                mailbox=self._detail(account, recipient.address),
                key=delivery_key(message, account.name, self._host),
                head=final_fields(message.sender, recipient.address),
                prefix=message.prefix,
                body=consignment.body,
                repeated=recipient.attempts > 0 or message.arrived < self._started,
                placed=placed,
            )
            copies.append(copy)
        return copies

    def _detail(self, account: Account, address: Address) -> str:
        """The mailbox that alice+work@ names, if that can be one; "INBOX" otherwise."""
        base = None
        if address.folded != account.name.casefold():
            base = self._directory.without_detail(address)
        if base is None:
            return "INBOX"
        try:
            return normalise(address.local[len(base.local) + 1 :])
        except MailboxError:
            return "INBOX"

    def _outcome(self, message: QueuedMessage, recipient: QueuedRecipient, copy: Copy | None) -> Outcome:
        if copy is None:
            return Failed(no_such_user(recipient.address))
        outcome = (copy.twin or copy).outcome
        assert outcome is not None  # each copy of a batch has one
        if copy.error is not None:
            self._tell(message, recipient, copy.account, copy.error)
        elif copy.fresh:
            self._told(copy.account, copy.mailbox)
        return outcome

    def _tell(
        self, message: QueuedMessage, recipient: QueuedRecipient, account: Account, error: Exception
    ) -> None:
        found: dict[str, Any] = {"queue_id": message.id, "recipient": str(recipient.address)}
        if isinstance(error, OSError):
            text = "delivery to {recipient} failed: {error}"
            self.log.error(text, maildir=account.maildir, error=str(error), **found)
        else:
            bug: Any = Failure(error)  # type: ignore[no-untyped-call]
            self.log.failure("delivery to {recipient} failed because of a bug", bug, **found)


def no_such_user(address: Address) -> Reply:
    """Why nothing is delivered."""
    return Reply(550, "5.1.1", f"<{address}>: there is no such user here")  # RFC 3463 §3.2

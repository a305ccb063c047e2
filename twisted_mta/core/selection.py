"""Which messages and recipients an administrator means: the filters of `mta queue`."""

from __future__ import annotations

import enum

from twisted_mta.core.address import Address
from twisted_mta.core.queue import QueuedMessage, QueuedRecipient, WorkItem
from twisted_mta.core.values import value


class Status(enum.StrEnum):
    """How a recipient stands."""

    #: An administrator or a quarantine holds the message, or this recipient of it.
    HELD = "held"
    #: Not tried yet.
    NEW = "new"
    #: Tried, and to be tried again.
    DEFERRED = "deferred"


@value(kw_only=True)
class Selection:
    """All that is given must hold. Addresses ignore case; "" and None stand for what is not given."""

    #: "<>" for the null reverse-path.
    sender: str = ""
    recipient: str = ""
    #: That of the recipient.
    domain: str = ""
    #: Seconds since the arrival: more, or less.
    older: float | None = None
    younger: float | None = None
    #: Octets: more, or less.
    larger: int | None = None
    smaller: int | None = None
    status: Status | None = None
    #: What stands in the last reply, whatever its case.
    reply: str = ""

    @property
    def empty(self) -> bool:
        """Whether it leaves nothing out."""
        return self == Selection()

    def of(self, item: WorkItem, now: float) -> tuple[QueuedRecipient, ...]:
        """The recipients that it means; () if it is not the message."""
        if not self._means(item.message, now):
            return ()
        return tuple(one for one in item.recipients if self._means_recipient(item.message, one))

    def _means(self, message: QueuedMessage, now: float) -> bool:
        age = now - message.arrived
        return (
            (not self.sender or same(self.sender, message.sender))
            and (self.older is None or age > self.older)
            and (self.younger is None or age < self.younger)
            and (self.larger is None or message.size > self.larger)
            and (self.smaller is None or message.size < self.smaller)
        )

    def _means_recipient(self, message: QueuedMessage, recipient: QueuedRecipient) -> bool:
        return (
            (
                not self.recipient
                or same(self.recipient, recipient.address)
                or same(self.recipient, recipient.original)
            )
            and (not self.domain or self.domain.casefold() == recipient.address.domain.casefold())
            and (not self.reply or self.reply.casefold() in recipient.last_reply.casefold())
            and (self.status is None or self.status is status(message, recipient))
        )


def status(message: QueuedMessage, recipient: QueuedRecipient) -> Status:
    """How a recipient stands."""
    if message.hold or recipient.damaged:
        return Status.HELD
    return Status.DEFERRED if recipient.attempts else Status.NEW


def same(text: str, address: Address | None) -> bool:
    """Whether a text is that address, in angle brackets or without; "<>" is None."""
    bare = text.strip().removeprefix("<").removesuffix(">")
    return bare == "" if address is None else bare.casefold() in (str(address).casefold(), address.folded)

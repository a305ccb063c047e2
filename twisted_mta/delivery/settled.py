"""Recipients whose outcome is settled when they enter the queue: nothing is delivered, and the reports and the history go
the way of all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zope.interface import implementer

from twisted_mta.core.explanation import Finding, Note
from twisted_mta.core.queue import (
    Delivered,
    Failed,
    Outcome,
    QueuedMessage,
    QueuedRecipient,
    Transport,
    TryLater,
)
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import Foreseen, IDelivery, IForesight, IStoredBody

_EXPANDED = Delivered(Reply(250, "2.1.5", "the alias leads to several addresses"), expanded=True)
_DISCARDED = Delivered(Reply(250, "2.1.5", "discarded, as the alias says"))


@implementer(IDelivery, IForesight)
class SettledDelivery:
    """IDelivery for a transport of which `settle` tells the outcome."""

    def __init__(self, settle: Callable[[QueuedRecipient], Outcome]) -> None:
        self._settle = settle

    def destination(self, recipient: QueuedRecipient) -> str:
        """See IDelivery."""
        return ""

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """See IDelivery."""
        return [self._settle(recipient) for recipient in recipients]

    async def foresee(self, message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> Foreseen:
        """See IForesight."""
        outcome = self._settle(recipient)
        if isinstance(outcome, TryLater):
            return Foreseen(Note("settled", str(outcome.reply), Finding.LATER), failure=outcome.reply)
        if isinstance(outcome, Failed):
            return Foreseen(Note("settled", str(outcome.reply), Finding.REFUSED), failure=outcome.reply)
        return Foreseen(Note("settled", outcome.reply.text))

    async def close(self) -> None:
        """See IDelivery."""


def expanded(recipient: QueuedRecipient) -> Outcome:
    """Transport.ALIAS: the alias itself, whose sender wants to hear of success. RFC 3461 §5.2.7.3 (c)."""
    return _EXPANDED


def discarded(recipient: QueuedRecipient) -> Outcome:
    """Transport.DISCARD."""
    return _DISCARDED


def refused(recipient: QueuedRecipient) -> Outcome:
    """Transport.REFUSE: the reply that is in `target`."""
    code, status, text = recipient.target.split(" ", 2)
    reply = Reply(int(code), status, text)
    return TryLater(reply) if reply.transient else Failed(reply)


def settled() -> dict[Transport, IDelivery]:
    """The deliveries that every server has."""
    return {
        Transport.ALIAS: SettledDelivery(expanded),
        Transport.DISCARD: SettledDelivery(discarded),
        Transport.REFUSE: SettledDelivery(refused),
    }

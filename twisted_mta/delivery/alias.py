"""The alias itself, as a recipient whose sender wants to hear of success. RFC 3461 §5.2.7.3 (c)."""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import implementer

from twisted_mta.core.queue import Delivered, Outcome, QueuedMessage, QueuedRecipient
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IDelivery, IStoredBody

_EXPANDED = Delivered(Reply(250, "2.1.5", "the alias leads to several addresses"), expanded=True)


@implementer(IDelivery)
class AliasDelivery:
    """IDelivery for Transport.ALIAS: there is nothing left to do, and so the report goes the way of all others."""

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
        return [_EXPANDED] * len(recipients)

    async def close(self) -> None:
        """See IDelivery."""

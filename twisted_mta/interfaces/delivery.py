"""Delivery: one transport."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from zope.interface import Interface

from twisted_mta.core.queue import Outcome, QueuedMessage, QueuedRecipient
from twisted_mta.interfaces.queue import IStoredBody


class IDelivery(Interface):
    """One transport. Attempts never raise for what goes wrong with a message: that is an Outcome."""

    def destination(recipient: QueuedRecipient) -> str:
        """The key by which recipients of one message share a transaction ("example.org"); fast, no I/O."""

    def deliver(
        message: QueuedMessage, body: IStoredBody, recipients: Sequence[QueuedRecipient], destination: str
    ) -> Awaitable[Sequence[Outcome]]:
        """Try once: one outcome for each recipient, in order. `recipients` share `destination`, and `message` is as they
        get it (`QueuedMessage.copy_for`); for those of transport LOCAL it is as queued, since copies may differ there.

        May be called again for the same (queue id, recipient) after a crash; a local delivery then finds its own
        earlier work. An exception is a bug: the manager logs it and treats it as "try later".
        """

    def close() -> Awaitable[None]:
        """Finish or cut off what is under way, close cached connections."""

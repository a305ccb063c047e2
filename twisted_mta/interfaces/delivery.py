"""Delivery: one transport."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from zope.interface import Attribute, Interface

from twisted_mta.core.explanation import Note
from twisted_mta.core.queue import NewMessage, Outcome, QueuedMessage, QueuedRecipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value
from twisted_mta.interfaces.queue import IStoredBody


@value
class Foreseen:
    """What would become of a recipient."""

    note: Note
    #: The Maildirs, files and commands that would get a copy.
    places: tuple[str, ...] = ()
    #: The new messages that would enter the queue.
    messages: tuple[NewMessage, ...] = ()
    #: Set where it is certain that the first attempt fails: permanent where the sender would get a bounce at once.
    failure: Reply | None = None


class IForesight(Interface):
    """What a delivery provides besides IDelivery if it can tell beforehand what `deliver` would do: for `mta explain`.

    It must come from the same code as `deliver`.
    """

    def foresee(message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> Awaitable[Foreseen]:
        """What `deliver` would do for one recipient, without doing anything. `header` is the header section of the message;
        neither `message` nor `recipient` is in the queue."""


class IDelivery(Interface):
    """One transport. Attempts never raise for what goes wrong with a message: that is an Outcome."""

    def destination(recipient: QueuedRecipient) -> str:
        """The key by which recipients of one message share a transaction ("example.org"); fast, no I/O."""

    def deliver(
        message: QueuedMessage, body: IStoredBody, recipients: Sequence[QueuedRecipient], destination: str
    ) -> Awaitable[Sequence[Outcome]]:
        """Try once: one outcome for each recipient, in order. `recipients` share `destination`, and `message` is as they
        get it (`QueuedMessage.copy_for`); but for those of transport LOCAL it is as queued, since copies may differ there,
        and for SMTP each may have a sender of its own (`QueuedMessage.sender_for`).

        May be called again for the same (queue id, recipient) after a crash; a local delivery then finds its own
        earlier work. An exception is a bug: the manager logs it and treats it as "try later".
        """

    def close() -> Awaitable[None]:
        """Finish or cut off what is under way, close cached connections."""


@value
class Consignment:
    """Recipients of one message that go to one destination."""

    message: QueuedMessage
    body: IStoredBody
    recipients: Sequence[QueuedRecipient]


class IBatchDelivery(IDelivery):
    """A transport to which it costs less to deliver many messages together."""

    limit = Attribute("Messages in one batch at most.")

    def deliver_batch(batch: Sequence[Consignment]) -> Awaitable[Sequence[Sequence[Outcome]]]:
        """As `deliver` for each of them: their outcomes, in order. The next batch comes when this one has ended."""

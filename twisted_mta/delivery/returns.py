"""Bounces of forwarded mail whose sender was too long to be written into another: the history knows it by the queue id."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from twisted_mta.core.address import Address, AddressError
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.expand import route
from twisted_mta.core.explanation import Finding, Note
from twisted_mta.core.queue import Expanded, Failed, NewMessage, Outcome, QueuedMessage, QueuedRecipient
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import Foreseen, IDelivery, IDirectory, IForesight, IQueueHistory, IStoredBody

_FORGOTTEN = Failed(
    Reply(550, "5.1.1", "the sender of that forwarded message is not known any more")  # RFC 3463 §3.2
)


@implementer(IDelivery, IForesight)
class ReturnDelivery:
    """IDelivery for Transport.RETURN. `ids` gives a new queue id."""

    def __init__(
        self, history: IQueueHistory, directory: IDirectory, ids: Callable[[], str], clock: IReactorTime
    ) -> None:
        self._history = history
        self._directory = directory
        self._ids = ids
        self._clock = clock

    def destination(self, recipient: QueuedRecipient) -> str:
        """See IDelivery: the message that bounced."""
        return recipient.target

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """See IDelivery: each becomes a message to the sender, over the same body."""
        return [await self._outcome(message, recipient) for recipient in recipients]

    async def foresee(self, message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> Foreseen:
        """See IForesight."""
        outcome = await self._outcome(message, recipient)
        if isinstance(outcome, Expanded):
            return Foreseen(
                Note("return", outcome.reply.text, where="forward.srs"), messages=outcome.messages
            )
        note = Note("return", outcome.reply.text, Finding.REFUSED, "forward.srs")
        return Foreseen(note, failure=outcome.reply)

    async def _outcome(self, message: QueuedMessage, recipient: QueuedRecipient) -> Expanded | Failed:
        found = await self._history.recall([recipient.target])
        try:
            sender = Address.parse(found[0].sender) if found else None
        except AddressError:  # the null sender
            sender = None
        return _FORGOTTEN if sender is None else self._passed_on(message, recipient, sender)

    def _passed_on(self, message: QueuedMessage, recipient: QueuedRecipient, sender: Address) -> Expanded:
        now = self._clock.seconds()
        routed = route([Recipient(sender, recipient.notify, recipient.orcpt)], self._directory)
        letter = NewMessage(
            id=self._ids(),
            sender=message.sender,
            recipients=routed.recipients,
            prefix=message.prefix,
            arrived=now,
            expires=now + max(0.0, message.expires - message.released),
            body_type=message.body_type,
            smtputf8=message.smtputf8,
            parent=message.id,
            message_id=message.message_id,
            origin=f"bounce of {recipient.target}",
            priority=message.priority,
            tls=message.tls,
        )
        return Expanded((letter,), Reply(250, "2.1.5", f"returned to {sender} as {letter.id}"))

    async def close(self) -> None:
        """See IDelivery: there is nothing to let go of."""

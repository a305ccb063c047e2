"""Handlers that are called before a message is acknowledged (`twisted_mta.handlers.rcpt` with inline)."""

from __future__ import annotations

import attrs

from twisted_mta.core.envelope import Envelope
from twisted_mta.core.queue import Delivered, NewMessage, NewRecipient, Transport
from twisted_mta.core.replies import Reply
from twisted_mta.delivery.handler import HandlerCalls, HandlerDelivery, Letter
from twisted_mta.interfaces import IBodyWriter


class InlineHandlers:
    """Asks the handlers of a message on its way in.

    There is one answer to DATA for all recipients. Where all of them went to handlers that refused, it is their refusal.
    Otherwise the message is taken, and enters the queue with what the handlers said, so that the sender is told of those
    that refused as of any other failure, and the history has them all.
    """

    def __init__(self, calls: HandlerCalls, delivery: HandlerDelivery) -> None:
        self._calls = calls
        self._delivery = delivery

    def concerns(self, message: NewMessage) -> bool:
        """Whether there is anybody to ask."""
        return any(self._is_inline(recipient) for recipient in message.recipients)

    async def ask(self, message: NewMessage, envelope: Envelope, body: IBodyWriter) -> Reply | None:
        """The refusal to answer with, None to go on: then what was said is remembered until the delivery."""
        asked = [recipient for recipient in message.recipients if self._is_inline(recipient)]
        stored = await body.stored()
        refusals: list[Reply] = []
        for recipient in asked:
            match = self._calls.find(recipient.address)
            if match is None:  # a reload took it away just now
                continue
            letter = Letter(
                queue_id=message.id,
                envelope=attrs.evolve(envelope, sender=recipient.sender or envelope.sender),
                prefix=recipient.prefix + message.prefix,
                body=stored,
            )
            outcome = await self._calls.call(match, letter, recipient.address, recipient.original, 1)
            self._delivery.remember(message.id, recipient.address, outcome)
            if not isinstance(outcome, Delivered):
                refusals.append(outcome.reply)
        if len(refusals) < len(message.recipients):
            return None
        self._delivery.forget(message.id)
        return next((reply for reply in refusals if reply.transient), refusals[0])

    def _is_inline(self, recipient: NewRecipient) -> bool:
        if recipient.transport is not Transport.HANDLER:
            return False
        match = self._calls.find(recipient.address)
        return match is not None and match.handler.inline

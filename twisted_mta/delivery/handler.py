"""Delivery to functions of an application (`twisted_mta.handlers`), in this process."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, TimeoutError, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.config.handlers import HandlerTable, Match
from twisted_mta.config.schema import Handlers
from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.explanation import Finding, Note
from twisted_mta.core.queue import Delivered, Failed, Outcome, QueuedMessage, QueuedRecipient, TryLater
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value
from twisted_mta.handlers import Defer, Handler, Mail, Refusal
from twisted_mta.interfaces import Foreseen, IDelivery, IForesight, IStoredBody
from twisted_mta.store.threads import InlineWorkers, Workers

#: Answers of inline handlers that are remembered. Most are asked for at once; some never, as the queue was full just then.
_MAX_SAID = 10_000

_LATE = TryLater(
    Reply(451, "4.3.0", "the application took too long with this message; it will be tried again")
)
_BUG = TryLater(Reply(451, "4.3.0", "an error in the application; it will be tried again"))
_BUSY = TryLater(Reply(451, "4.3.2", "the application is busy; try again later"))


@value(kw_only=True)
class Letter:
    """A message for handlers, whether it is in the queue already or still on its way in."""

    queue_id: str
    envelope: Envelope
    prefix: bytes
    body: IStoredBody

    def open(self) -> BinaryIO:
        """All of it. The prefix is in memory, the body maybe not."""
        if not self.prefix:
            return self.body.open()
        return io.BufferedReader(_Joined(self.prefix, self.body.open()))


class _Joined(io.RawIOBase):
    """Octets in memory, and a file behind them."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head = io.BytesIO(head)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._rest.close()
        super().close()


class HandlerCalls:
    """Calls handlers: so many at a time, for so long, and whatever they raise."""

    log = Logger()

    def __init__(
        self,
        settings: Handlers,
        table: Callable[[], HandlerTable],
        workers: Workers | InlineWorkers,
        clock: IReactorTime,
    ) -> None:
        """`table` gives those in force; `workers` are threads for those that may block, and for parsing."""
        self._settings = settings
        self._table = table
        self._workers = workers
        self._clock = clock
        self._places: dict[str, DeferredSemaphore] = {}

    def reconfigure(self, settings: Handlers) -> None:
        """Limits from now on."""
        self._settings = settings

    def find(self, address: Address) -> Match | None:
        """The handler for an address, now."""
        return self._table().find(address)

    def concurrency(self, handler: Handler) -> int:
        """How many calls of it there may be at a time."""
        return handler.concurrency or self._settings.concurrency

    async def call(
        self, match: Match, letter: Letter, recipient: Address, original: Address, attempt: int
    ) -> Outcome:
        """Call the handler, and say what came of it. Cancelling cancels the call."""
        handler = match.handler
        timeout = handler.timeout or self._settings.timeout
        place = self._place(handler)
        try:
            await place.acquire().addTimeout(timeout, self._clock)
        except TimeoutError:
            return _BUSY
        mail = Mail(
            envelope=letter.envelope,
            queue_id=letter.queue_id,
            recipient=str(recipient),
            original=str(original),
            captures=match.captures,
            attempt=attempt,
            size=len(letter.prefix) + letter.body.size,
            opener=letter.open,
            in_thread=self._workers.run,
        )
        began = self._clock.seconds()
        outcome = await self._outcome(handler, mail, self._run(handler, mail, timeout, place.release))
        self.log.info(
            "{queue_id}: {recipient} by handler {handler}: {reply}",
            queue_id=letter.queue_id,
            recipient=str(recipient),
            handler=handler.name,
            reply=str(outcome.reply),
            took=self._clock.seconds() - began,
        )
        return outcome

    def _place(self, handler: Handler) -> DeferredSemaphore:
        limit = self.concurrency(handler)
        place = self._places.get(handler.name)
        if place is None or place.limit != limit:
            place = self._places[handler.name] = DeferredSemaphore(limit)
        return place

    def _run(self, handler: Handler, mail: Mail, timeout: float, release: Callable[[], Any]) -> Deferred[Any]:
        """The call's result; TimeoutError after so many seconds. `release` is called when it is over, which may be later:
        a thread can't be ended."""
        work: Deferred[Any]
        if handler.thread:
            work = self._workers.run(handler.function, mail, **mail.captures)
        else:
            work = maybeDeferred(handler.function, mail, **mail.captures)

        def give_up(_: object = None) -> None:
            if not handler.thread:
                work.cancel()

        done: Deferred[Any] = Deferred(give_up)

        def expire() -> None:
            if not done.called:
                done.errback(TimeoutError())
            give_up()

        timer = self._clock.callLater(timeout, expire)

        def ended(result: Any) -> None:
            if timer.active():
                timer.cancel()
            release()
            if not done.called:
                done.callback(result)

        work.addBoth(ended)
        return done

    async def _outcome(self, handler: Handler, mail: Mail, work: Deferred[Any]) -> Outcome:
        try:
            await work
        except Refusal as refusal:
            reply = Reply(refusal.code, refusal.status, refusal.text)
            return TryLater(reply) if isinstance(refusal, Defer) else Failed(reply)
        except TimeoutError:
            self.log.error(
                "{queue_id}: handler {handler} took too long",
                queue_id=mail.queue_id,
                handler=handler.name,
                recipient=mail.recipient,
            )
            return _LATE
        except CancelledError:  # the server stops
            raise
        except Exception:  # noqa: BLE001  a bug of the application must not lose the message
            self.log.failure(
                "{queue_id}: handler {handler} failed",
                queue_id=mail.queue_id,
                handler=handler.name,
                recipient=mail.recipient,
            )
            return _BUG
        return Delivered(Reply(250, "2.0.0", f"taken by {handler.name}"))


def _gone(address: Address) -> Reply:
    """A reload took the handler away since the message was queued."""
    return Reply(550, "5.1.1", f"<{address}>: there is no such user here (any more)")


@implementer(IDelivery, IForesight)
class HandlerDelivery:
    """IDelivery for Transport.HANDLER. `recipient.target` is not looked at: the address says which handler it is.

    What inline handlers said before a message entered the queue is remembered until its attempt, which comes at once.
    A crash in between has them called again, with the same key.
    """

    def __init__(self, calls: HandlerCalls) -> None:
        self._calls = calls
        self._said: dict[tuple[str, str], Outcome] = {}

    def remember(self, queue_id: str, recipient: Address, outcome: Outcome) -> None:
        """An inline handler was called already for a message that is about to enter the queue."""
        if len(self._said) >= _MAX_SAID:
            self._said.pop(next(iter(self._said)))  # it will be called again
        self._said[queue_id, recipient.folded] = outcome

    def forget(self, queue_id: str) -> None:
        """That message did not enter the queue."""
        for key in [key for key in self._said if key[0] == queue_id]:
            del self._said[key]

    def destination(self, recipient: QueuedRecipient) -> str:
        """See IDelivery: the handler."""
        match = self._calls.find(recipient.address)
        return match.handler.name if match else ""

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """See IDelivery. One call for each recipient, one after another."""
        return [await self._deliver(message, body, recipient) for recipient in recipients]

    async def _deliver(
        self, message: QueuedMessage, body: IStoredBody, recipient: QueuedRecipient
    ) -> Outcome:
        said = self._said.pop((message.id, recipient.address.folded), None)
        if said is not None:
            return said
        match = self._calls.find(recipient.address)
        if match is None:
            return Failed(_gone(recipient.address))
        envelope = Envelope(
            sender=message.sender,
            recipients=(Recipient(recipient.original, recipient.notify, recipient.orcpt),),
            body=message.body_type,
            smtputf8=message.smtputf8,
            envid=message.envid,
            ret=message.ret,
            deliver_by=message.deliver_by,
            priority=message.priority,
        )
        letter = Letter(queue_id=message.id, envelope=envelope, prefix=message.prefix, body=body)
        return await self._calls.call(
            match, letter, recipient.address, recipient.original, recipient.attempts + 1
        )

    async def foresee(self, message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> Foreseen:
        """See IForesight. What the handler will say, only the handler knows."""
        match = self._calls.find(recipient.address)
        if match is None:
            reply = _gone(recipient.address)
            return Foreseen(Note("handler", str(reply), Finding.REFUSED), failure=reply)
        when = ", before the message is acknowledged" if match.handler.inline else ""
        text = f'{match.handler.name}, by "{match.handler.pattern.text}"{when}'
        data = {"handler": match.handler.name, "captures": dict(match.captures)}
        return Foreseen(Note("handler", text, where="handlers.modules", data=data), (match.handler.name,))

    async def close(self) -> None:
        """See IDelivery: the queue manager has ended the attempts."""

"""A delivery that does as a test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_mta.core.queue import Delivered, Outcome, QueuedMessage, QueuedRecipient
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import Consignment, IBatchDelivery, IDelivery, IStoredBody

#: Decides about one recipient; an exception is raised by `deliver`.
Script = Callable[[QueuedMessage, QueuedRecipient], Outcome]


def succeed(message: QueuedMessage, recipient: QueuedRecipient) -> Outcome:
    """The script that delivers everything."""
    return Delivered(Reply(250, "2.0.0", "delivered"))


@attrs.frozen
class Call:
    """One call of `deliver`."""

    message: QueuedMessage
    recipients: tuple[str, ...]
    destination: str
    #: Prefix and body.
    data: bytes


@implementer(IDelivery)
class ScriptedDelivery:
    """Destinations are domains. `script` decides; `hold()` makes calls wait, `let_go()` ends the oldest ones."""

    def __init__(self, script: Script = succeed) -> None:
        self.script = script
        self.calls: list[Call] = []
        #: Calls under way by destination, and the most there were at a time.
        self.running: dict[str, int] = {}
        self.most = 0
        self.closed = False
        self._holding = False
        self._held: list[Deferred[None]] = []

    def hold(self) -> None:
        """From now on calls wait for `let_go`."""
        self._holding = True

    def let_go(self, count: int | None = None) -> None:
        """End the `count` oldest waiting calls; None: all of them, and hold no more."""
        if count is None:
            self._holding = False
            count = len(self._held)
        held, self._held = self._held[:count], self._held[count:]
        for waiting in held:
            waiting.callback(None)

    @property
    def waiting(self) -> int:
        """How many calls wait for `let_go`."""
        return len(self._held)

    def destination(self, recipient: QueuedRecipient) -> str:
        """Its domain."""
        return recipient.address.domain

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """Note the call, wait if told so, and ask the script."""
        with body.open() as file:
            data = message.prefix + file.read()
        addresses = tuple(str(recipient.address) for recipient in recipients)
        self.calls.append(Call(message, addresses, destination, data))
        self.running[destination] = self.running.get(destination, 0) + 1
        self.most = max(self.most, self.running[destination])
        try:
            if self._holding:
                held: Deferred[None] = Deferred(self._forget)
                self._held.append(held)
                await held
            return [self.script(message, recipient) for recipient in recipients]
        finally:
            self.running[destination] -= 1

    def _forget(self, held: Deferred[None]) -> None:
        if held in self._held:
            self._held.remove(held)

    async def close(self) -> None:
        """Note that it was called."""
        self.closed = True


@implementer(IBatchDelivery)
class ScriptedBatchDelivery:
    """A transport for many messages at once: each is a call of the ScriptedDelivery `each`, one after the other."""

    def __init__(self, script: Script = succeed, limit: int = 5) -> None:
        self.each = ScriptedDelivery(script)
        self.limit = limit
        #: How many messages each batch had.
        self.sizes: list[int] = []
        #: Raised by the next batches, one each.
        self.errors: list[BaseException] = []

    def destination(self, recipient: QueuedRecipient) -> str:
        """The same for all."""
        return ""

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """See IDelivery."""
        return await self.each.deliver(message, body, recipients, destination)

    async def deliver_batch(self, batch: Sequence[Consignment]) -> Sequence[Sequence[Outcome]]:
        """See IBatchDelivery."""
        self.sizes.append(len(batch))
        if self.errors:
            raise self.errors.pop(0)
        return [await self.deliver(one.message, one.body, one.recipients, "") for one in batch]

    async def close(self) -> None:
        """Note that it was called."""
        await self.each.close()

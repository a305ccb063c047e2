"""Attempts: recipients are given to the deliveries, and whatever goes wrong there becomes an outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twisted_mta.core.queue import (
    Failed,
    Outcome,
    QueuedRecipient,
    Transport,
    TryLater,
    WorkItem,
)
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import (
    Consignment,
    DamagedBody,
    IBatchDelivery,
    IDelivery,
    IQueueStore,
    IStoredBody,
)
from twisted_mta.service.jobs import Attempt, Job, copy_key
from twisted_mta.service.outcomes import out_of_time
from twisted_mta.service.settling import BUG


def _too_late(recipient: QueuedRecipient) -> Outcome:
    """What becomes of a recipient whose time is up before the attempt."""
    text = "not delivered in the time that the sender asked for"
    if recipient.last_reply:
        text += f"; the last attempt ended with: {recipient.last_reply}"
    return Failed(Reply(550, "5.4.7", text))  # RFC 2852 §4.1.3


def _given_up(recipient: QueuedRecipient) -> Outcome:
    """What becomes of a recipient that an administrator does not want to be tried again."""
    text = "given up by the administrator of this server"
    if recipient.last_reply:
        text += f"; the last attempt ended with: {recipient.last_reply}"
    return Failed(Reply(550, "5.4.7", text))  # RFC 3463 §3.5: delivery time expired


class Attempts:
    """Makes attempts, one or many at a time."""

    log = Logger()

    def __init__(
        self,
        store: IQueueStore,
        deliveries: Mapping[Transport, IDelivery],
        clock: IReactorTime,
        running: Callable[[], bool],
    ) -> None:
        """What is cancelled while `running` is an outcome, too; afterwards it is the end."""
        self._store = store
        self._deliveries = deliveries
        self._clock = clock
        self._running = running

    def group(self, item: WorkItem) -> list[Attempt]:
        """The attempts that the recipients of a message make up."""
        job = Job(item.message)
        groups: dict[tuple[Transport, str, bool, tuple[object, ...]], list[QueuedRecipient]] = {}
        for recipient in item.recipients:
            where = self._destination(recipient)
            key = (recipient.transport, where, recipient.given_up, copy_key(recipient))
            groups.setdefault(key, []).append(recipient)
        job.attempts = len(groups)
        return [
            Attempt(job, tuple(found), transport, destination, given_up)
            for (transport, destination, given_up, _), found in groups.items()
        ]

    def _destination(self, recipient: QueuedRecipient) -> str:
        try:
            return self._deliveries[recipient.transport].destination(recipient)
        except Exception:  # noqa: BLE001  `deliver` will fail in its turn, and be tried later
            self.log.failure("no destination for {recipient}", recipient=str(recipient.address))
            return ""

    async def make(self, attempt: Attempt) -> Sequence[Outcome]:
        """One attempt: an outcome for each of its recipients, in order."""
        message = attempt.message
        known = self._known(attempt)
        if known is not None:
            return known
        try:
            delivery = self._deliveries[attempt.transport]
            body = await self._store.body(message)
            outcomes = await delivery.deliver(message, body, attempt.recipients, attempt.destination)
            return _checked(attempt, outcomes)
        except CancelledError:
            if not self._running():
                raise
            self.log.failure("delivery of {queue_id} was cancelled", queue_id=message.id)
        except DamagedBody as error:
            return await self._set_aside(attempt, str(error))
        except Exception:  # noqa: BLE001  a bug of one delivery must not lose the message
            self.log.failure("delivery of {queue_id} failed because of a bug", queue_id=message.id)
        return [BUG] * len(attempt.recipients)

    async def make_together(
        self, delivery: IBatchDelivery, attempts: Sequence[Attempt]
    ) -> list[Sequence[Outcome]]:
        """Several of one transport: the outcomes of each, in order."""
        found: list[Sequence[Outcome]] = []
        batch: list[tuple[int, Consignment]] = []
        for number, attempt in enumerate(attempts):
            body = await self._body(attempt)
            if isinstance(body, list):
                found.append(body)
            else:
                found.append([BUG] * len(attempt.recipients))
                batch.append((number, Consignment(attempt.message, body, attempt.recipients)))
        if not batch:
            return found
        try:
            outcomes = await delivery.deliver_batch([consignment for _, consignment in batch])
            for (number, _), each in zip(batch, outcomes, strict=True):
                found[number] = _checked(attempts[number], each)
        except CancelledError:
            if not self._running():
                raise
            self.log.failure("delivery of {messages} messages was cancelled", messages=len(batch))
        except Exception:  # noqa: BLE001  a bug of one delivery must not lose the messages
            self.log.failure("delivery of {messages} messages failed because of a bug", messages=len(batch))
        return found

    async def _body(self, attempt: Attempt) -> IStoredBody | list[Outcome]:
        """What to deliver, or the outcomes if nothing is to be."""
        known = self._known(attempt)
        if known is not None:
            return known
        try:
            return await self._store.body(attempt.job.message)
        except CancelledError:
            raise
        except DamagedBody as error:
            return await self._set_aside(attempt, str(error))
        except Exception:  # noqa: BLE001  trouble with one is not that of the others
            self.log.failure("can't get the body of {queue_id}", queue_id=attempt.job.message.id)
            return [BUG] * len(attempt.recipients)

    def _known(self, attempt: Attempt) -> list[Outcome] | None:
        """The outcomes of an attempt that is not to be made."""
        if attempt.given_up:
            return [_given_up(recipient) for recipient in attempt.recipients]
        if out_of_time(attempt.job.message, self._clock.seconds()):
            return [_too_late(recipient) for recipient in attempt.recipients]
        return None

    async def _set_aside(self, attempt: Attempt, reason: str) -> list[Outcome]:
        """A message that can't be delivered as it was received waits for an administrator; the others go on."""
        queue_id = attempt.job.message.id
        self.log.error(
            "{queue_id} is damaged and held: {reason}", event="damaged", queue_id=queue_id, reason=reason
        )
        try:
            await self._store.hold([queue_id], f"damaged: {reason}")
        except Exception:  # noqa: BLE001  then the next attempt comes here again
            self.log.failure("can't hold {queue_id}", queue_id=queue_id)
        reply = Reply(451, "4.3.0", f"the message is damaged and held: {reason}")
        return [TryLater(reply)] * len(attempt.recipients)


def _checked(attempt: Attempt, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    if len(outcomes) != len(attempt.recipients):
        raise RuntimeError(f"{len(outcomes)} outcomes for {len(attempt.recipients)} recipients")
    return outcomes

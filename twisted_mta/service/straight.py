"""Mail for a mailbox here goes straight into it: it is delivered before its client is answered, and never queued.

What is durable in a mailbox need not be durable in the queue before. That saves two commits, and most of what the disk
has to write for a message. Whatever is not delivered in a moment is queued, along with what the attempt came to, as if it
had been there from the start.

Only mail for one recipient: it is in the mailbox or it is not, by one rename. With two, a crash, or a full disk, might leave
one of them served and the client without an answer, and that one would get it again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_mta.core.envelope import Notify
from twisted_mta.core.queue import Delivered, NewMessage, Outcome, Transport, WorkItem
from twisted_mta.interfaces import Consignment, IBatchDelivery, IBodyWriter, IQueueStore, IStoredBody
from twisted_mta.service.gathering import Gathering
from twisted_mta.service.jobs import Job
from twisted_mta.service.outcomes import Judge
from twisted_mta.service.settling import BUG

#: Seconds for which clients wait for mailboxes; then their mail is queued, and so is what comes until that attempt ends.
PATIENCE = 5.0

#: Batches at a time: one is written while the disk syncs another. With three the disk has more to do than there is to win.
_PARALLEL = 2


@attrs.define(eq=False)
class _Passage:
    """One message on its way."""

    message: NewMessage
    body: IBodyWriter
    consignment: Consignment
    #: Who waits for it to be durable.
    told: Deferred[None]
    #: Whether it is queued, or about to be; and what it is then.
    given_up: bool = False
    queued: tuple[Job, WorkItem] | None = None
    #: What its attempt came to, and when that began.
    outcome: Outcome | None = None
    began: float = 0.0


class Straight:
    """Takes messages to `delivery`, and to `store` what that does not deliver."""

    log = Logger()

    def __init__(
        self,
        delivery: IBatchDelivery,
        store: IQueueStore,
        judge: Judge,
        clock: IReactorTime,
        *,
        enqueue: Callable[[Sequence[NewMessage], IBodyWriter], Deferred[None]],
        watch: Callable[[Awaitable[None]], None],
        queued: Callable[[WorkItem], Job],
        settle: Callable[[Job, WorkItem, Outcome, float], Awaitable[None]],
        enabled: bool = True,
    ) -> None:
        """`enqueue` is the way of all other mail, `watch` runs in the background what a stop waits for; `queued` hears of what is
        claimed in the queue though its attempt has begun, and `settle` what that, begun at the time, came to."""
        #: May be changed at any time.
        self.enabled = enabled
        self._delivery = delivery
        self._store = store
        self._judge = judge
        self._clock = clock
        self._enqueue = enqueue
        self._watch = watch
        self._queued = queued
        self._settle = settle
        self._gathering: Gathering[_Passage] = Gathering(
            clock, delivery.limit, self._start, parallel=_PARALLEL
        )
        #: Batches under way that take too long.
        self._overdue = 0
        self._queueing: set[Deferred[None]] = set()

    def submit(self, messages: Sequence[NewMessage], body: IBodyWriter) -> Deferred[None] | None:
        """See IQueue.submit; None, and nothing has happened, if they are to be queued."""
        if not self.enabled or self._overdue or len(messages) != 1 or not _is_plain(messages[0]):
            return None
        stored = body.in_memory()
        if stored is None:  # a large one: its client need not wait until it is copied
            return None
        # Who waits may lose interest (the client hangs up) and cancel; it is delivered all the same.
        told: Deferred[None] = Deferred()
        self._gathering.add(_Passage(messages[0], body, _consignment(messages[0], stored), told))
        return told

    def stop(self) -> None:
        """Queue what waits. No more may be submitted."""
        self._forward(self._gathering.clear())

    async def idle(self) -> None:
        """Wait for what is being queued, after `stop` and the end of what was watched."""
        await DeferredList(list(self._queueing))

    # --- one batch -------------------------------------------------------------------------------

    def _start(self, batch: list[_Passage]) -> None:
        self._watch(self._deliver(batch))

    async def _deliver(self, batch: Sequence[_Passage]) -> None:
        began = self._clock.seconds()
        patience = self._clock.callLater(PATIENCE, self._lose_patience, batch)
        try:
            found = await self._delivery.deliver_batch([one.consignment for one in batch])
            outcomes = [outcome for (outcome,) in found]
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} outcomes for {len(batch)} messages")
        except CancelledError:  # by a stop: it may or may not come about, and the next start looks
            self._give_way(batch)
            raise
        except Exception:  # noqa: BLE001  a bug of the delivery must not lose the messages
            self.log.failure("delivery of {messages} messages failed because of a bug", messages=len(batch))
            outcomes = [BUG] * len(batch)
        finally:
            if patience.active():
                patience.cancel()
            else:
                self._overdue -= 1
            self._gathering.ended()
        for passage, outcome in zip(batch, outcomes, strict=True):
            passage.outcome, passage.began = outcome, began
            if passage.queued is not None:
                self._settle_queued(passage)
            elif isinstance(outcome, Delivered) and not passage.given_up:
                self._done(passage, outcome)
            else:
                self._give_way([passage])

    def _done(self, passage: _Passage, outcome: Delivered) -> None:
        message, size, now = passage.consignment.message, passage.body.size, self._clock.seconds()
        passage.body.abort()
        passage.told.callback(None)
        took = max(now - passage.began, 0.0)
        (recipient,) = passage.consignment.recipients
        update, _ = self._judge.judge(message, recipient, outcome, now, took)
        self._store.note_delivered(passage.message, size, update)

    # --- what is queued after all ----------------------------------------------------------------

    def _lose_patience(self, batch: Sequence[_Passage]) -> None:
        self._overdue += 1
        waiting = self._gathering.clear()
        self.log.warn(
            "mailboxes take longer than {patience} s: {count} messages, and what comes until they answer, are queued",
            event="mailboxes_slow",
            patience=PATIENCE,
            count=len(batch) + len(waiting),
        )
        self._give_way(batch)
        self._forward(waiting)

    def _forward(self, passages: Sequence[_Passage]) -> None:
        """Those that nobody has tried to deliver."""
        for passage in passages:
            self._enqueue([passage.message], passage.body).chainDeferred(passage.told)

    def _give_way(self, passages: Sequence[_Passage]) -> None:
        """Those that somebody tries to deliver, or has tried."""
        for passage in passages:
            if not passage.given_up:
                passage.given_up = True
                # Not watched: a stop cuts that off, and this must come to its end.
                queueing = Deferred.fromCoroutine(self._queue(passage))
                self._queueing.add(queueing)
                queueing.addBoth(lambda _, this: self._queueing.discard(this), queueing)

    async def _queue(self, passage: _Passage) -> None:
        try:
            (item,) = await self._store.add([passage.message], passage.body, claim=True)
        except Exception:  # noqa: BLE001  the client hears of it, and keeps its message
            passage.told.errback(Failure())  # type: ignore[no-untyped-call]
            return
        passage.queued = self._queued(item), item
        passage.told.callback(None)
        if passage.outcome is not None:
            self._settle_queued(passage)

    def _settle_queued(self, passage: _Passage) -> None:
        assert passage.queued is not None
        assert passage.outcome is not None
        self._watch(self._settle(*passage.queued, passage.outcome, passage.began))


def _is_plain(message: NewMessage) -> bool:
    """Whether it is for one mailbox, now, and nobody is to be told when it is there."""
    if len(message.recipients) != 1 or message.held or message.deliver_by is not None:
        return False
    (recipient,) = message.recipients
    # `in` is a call of Python for a flag.
    return recipient.transport is Transport.LOCAL and not recipient.notify._value_ & Notify.SUCCESS._value_


def _consignment(message: NewMessage, body: IStoredBody) -> Consignment:
    (recipient,) = message.recipients
    # It has no row, nor has its body a number: nobody looks for them.
    return Consignment(message.queued(0, body.size), body, [recipient.queued(0, message.released)])

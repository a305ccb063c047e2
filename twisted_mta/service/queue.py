"""The queue manager: takes messages in, hands them to the deliveries, and acts on how that ends.

What is in memory here may be lost at any time; the store has it all. A recipient is worked on only while it is claimed,
and its claim ends with the very commit that records the outcome, and with it the notification that the outcome causes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_mta.config.destinations import Destinations
from twisted_mta.config.schema import Queue, Relay
from twisted_mta.core.address import Address
from twisted_mta.core.dsn import Reporter
from twisted_mta.core.pace import Sign, sign
from twisted_mta.core.queue import (
    NewMessage,
    NewRecipient,
    Outcome,
    QueuedMessage,
    QueuedRecipient,
    Transport,
    WorkItem,
)
from twisted_mta.core.replies import Reply
from twisted_mta.core.schedule import Schedule
from twisted_mta.interfaces import IBatchDelivery, IBodyWriter, IDelivery, IQueue, IQueueStore
from twisted_mta.service.attempts import Attempts
from twisted_mta.service.gathering import Gathering
from twisted_mta.service.jobs import Attempt, Job, lane, rank
from twisted_mta.service.notices import Notices
from twisted_mta.service.outcomes import Judge, Outlook
from twisted_mta.service.pacing import Limits, Pacing
from twisted_mta.service.settling import STORE_PAUSE, Settled, Settler
from twisted_mta.service.straight import Straight

#: Recipients claimed in one go.
_CLAIM = 250
#: Seconds until a destination that is slow makes room for others, while there is none.
_RELIEF = 5.0


@implementer(IQueue)
class QueueManager(Service):
    """Runs the queue in `store`. Does not close the store or the deliveries: stop it first, then close those.

    `random` gives 0 <= x < 1, `ids` a new queue id; `bounce_router` tells where mail to a sender goes; `relay` how
    it goes to each destination; `at_once` how many attempts there may be at a time where a recipient by another transport
    than SMTP goes; `grace` is how many seconds attempts may go on at a stop.
    """

    log = Logger()

    def __init__(
        self,
        store: IQueueStore,
        deliveries: Mapping[Transport, IDelivery],
        clock: IReactorTime,
        *,
        random: Callable[[], float],
        ids: Callable[[], str],
        settings: Queue,
        hostname: str,
        postmaster: Address,
        bounce_router: Callable[[Address], tuple[NewRecipient, ...]],
        relay: Relay,
        at_once: Callable[[QueuedRecipient], int] = lambda recipient: 1,
        grace: float = 5.0,
        rewritten: Callable[[Address], bool] = lambda address: False,
    ) -> None:
        self._store = store
        self._clock = clock
        self._grace = grace
        self._at_once = at_once
        self._notices = Notices(
            reporter=Reporter(hostname=hostname, postmaster=postmaster, quote=settings.bounce_quote),
            ids=ids,
            route=bounce_router,
            expire=settings.expire,
            double_bounces=settings.double_bounces == "postmaster",
            rewritten=rewritten,
        )
        self._destinations = Destinations(relay)
        schedule = Schedule(settings.schedule, settings.expire, settings.warn_after)
        self._judge = Judge(schedule, random, self._destinations)
        self._settler = Settler(store, self._judge, self._notices, clock, self._is_running, self._settled)
        self._attempts = Attempts(store, deliveries, clock, self._is_running)
        self._gatherings: dict[Transport, Gathering[Attempt]] = {}
        for transport, delivery in deliveries.items():
            if IBatchDelivery.providedBy(delivery):
                start = partial(self._start_batch, transport, delivery)
                self._gatherings[transport] = Gathering(clock, IBatchDelivery(delivery).limit, start)
        self._straight = self._make_straight(deliveries.get(Transport.LOCAL), settings.straight)
        self._pacing: Pacing[Attempt] = Pacing(
            clock,
            start=self._start_attempt,
            put_off=self._put_off,
            call_back=self._call_back,
            rank=rank,
            random=random,
        )
        self._relief: IDelayedCall | None = None
        self._limit = settings.active
        #: Rows that are claimed, and room taken by those about to be.
        self._rows: set[int] = set()
        self._reserved = 0
        self._jobs: set[Job] = set()
        self._live: set[Deferred[None]] = set()
        self._timer: IDelayedCall | None = None
        self._pumping = self._again = False
        #: Whether more may be due than there was room for.
        self._backlog = False

    def _make_straight(self, local: IDelivery | None, enabled: bool) -> Straight | None:
        """None where mailboxes take only one message at a time: clients would wait for each other's."""
        if local is None or not IBatchDelivery.providedBy(local):
            return None
        return Straight(
            IBatchDelivery(local),
            self._store,
            self._judge,
            self._clock,
            enqueue=self._enqueue,
            watch=self._watch,
            queued=self._adopt,
            settle=self._settle_straight,
            enabled=enabled,
        )

    def reconfigure(self, settings: Queue, relay: Relay, postmaster: Address) -> None:
        """Take over changed settings; what is scheduled already keeps its time."""
        self._destinations = self._judge.destinations = Destinations(relay)
        self._pacing.probe_now()  # a route may lead elsewhere now
        self._judge.schedule = Schedule(settings.schedule, settings.expire, settings.warn_after)
        self._limit = settings.active
        if self._straight is not None:
            self._straight.enabled = settings.straight
        self._notices.expire = settings.expire
        self._notices.double_bounces = settings.double_bounces == "postmaster"
        self._notices.reporter = attrs.evolve(
            self._notices.reporter, quote=settings.bounce_quote, postmaster=postmaster
        )
        self._pump()

    @property
    def active(self) -> int:
        """Recipients worked on now."""
        return len(self._rows) + self._reserved

    # --- IQueue ----------------------------------------------------------------------------------

    def check_room(self, octets: int) -> None:
        self._store.check_room(octets)

    def new_body(self) -> IBodyWriter:
        return self._store.new_body()

    def submit(self, messages: Sequence[NewMessage], body: IBodyWriter) -> Deferred[None]:
        if self._straight is not None and self.running:
            delivered = self._straight.submit(messages, body)
            if delivered is not None:
                return delivered
        return self._enqueue(messages, body)

    def _enqueue(self, messages: Sequence[NewMessage], body: IBodyWriter) -> Deferred[None]:
        count = sum(len(message.recipients) for message in messages)
        claim = bool(self.running) and self.active + count <= self._limit
        reserved = count if claim else 0
        self._reserved += reserved
        # Who waits may lose interest (the client hangs up) and cancel; what is committed must be delivered all the same.
        told: Deferred[None] = Deferred()
        add: Callable[..., Any] = self._store.add
        maybeDeferred(add, messages, body, claim=claim).addBoth(self._added, messages, reserved, told)
        return told

    def _added(
        self,
        items: Sequence[WorkItem] | Failure,
        messages: Sequence[NewMessage],
        reserved: int,
        told: Deferred[None],
    ) -> None:
        self._reserved -= reserved
        if isinstance(items, Failure):
            told.errback(items)
            return
        try:
            if reserved:
                self._take(items)
                for message in messages:
                    if message.held:
                        self._wake_at(message.not_before)
            else:
                self._backlog = True
                self._refill()
        except Exception:  # noqa: BLE001  it is durable: whatever is wrong here, the client must not send it again
            self.log.failure("messages stay claimed until the next start, because of a bug")
        told.callback(None)

    # --- the administrator -----------------------------------------------------------------------

    def wake(self) -> None:
        """Something in the store may be due that was not before, and an administrator wants it tried."""
        self._pacing.probe_now()
        self._pump()

    def destinations(self) -> list[dict[str, Any]]:
        """See `Pacing.status`."""
        return self._pacing.status()

    def standing(self, transport: Transport, destination: str) -> dict[str, Any] | None:
        """One of `destinations`; None where nothing is known of it."""
        return self._pacing.standing(lane(transport, destination))

    def shut(self, transport: Transport, destination: str) -> Reply | None:
        """See `Pacing.shut`."""
        return self._pacing.shut(lane(transport, destination))

    def outlook(self, message: QueuedMessage, recipient: QueuedRecipient) -> Outlook:
        """See Judge."""
        return self._judge.outlook(message, recipient)

    def forget(self, queue_ids: Collection[str]) -> None:
        """These messages were deleted: nor is there to be a bounce from an attempt under way."""
        for job in self._jobs:
            job.deleted |= job.message.id in queue_ids

    def _is_running(self) -> bool:
        return bool(self.running)

    # --- the service -----------------------------------------------------------------------------

    def startService(self) -> None:
        Service.startService(self)  # type: ignore[no-untyped-call]
        self._pump()

    def stopService(self) -> Deferred[None]:
        """Stop starting, let attempts end for `grace` seconds, cut off the rest, and give their recipients back."""
        Service.stopService(self)  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._relief is not None and self._relief.active():
            self._relief.cancel()
        self._timer = self._relief = None
        if self._straight is not None:
            self._straight.stop()
        waiting = [each for gathering in self._gatherings.values() for each in gathering.clear()]
        for attempt in (*self._pacing.clear(), *waiting):
            self._watch(self._settle(attempt, self._settler.settle(attempt.job, [])))
        if self._live:
            ended = DeferredList(list(self._live))
            force = self._clock.callLater(self._grace, self._cut_off)
            await ended
            if force.active():
                force.cancel()
        if self._straight is not None:
            await self._straight.idle()
        rows = sorted(self._rows)
        self._rows.clear()
        if rows:
            await self._store.release(rows)

    def _cut_off(self) -> None:
        for live in list(self._live):
            live.cancel()

    def _watch(self, work: Awaitable[None]) -> None:
        """Run in the background, so that a stop can wait for it."""

        async def run() -> None:
            try:
                await work
            except CancelledError:
                self.log.info("an attempt was cut off by the stop")
            except Exception:  # noqa: BLE001  the other messages go on
                self.log.failure("a message stays claimed until the next start, because of a bug")

        live = Deferred.fromCoroutine(run())
        if not live.called:
            self._live.add(live)
            live.addBoth(lambda _: self._live.discard(live))

    # --- finding work ----------------------------------------------------------------------------

    def _refill(self) -> None:
        """There may be room now for what waits in the store. Not for every single place: claims go in batches."""
        if self._backlog and (self._pumping or self.active * 4 <= self._limit * 3):
            self._pump()
        elif self._backlog:
            self._seek_relief()

    def _wake_at(self, when: float) -> None:
        """Have a look at the store at `when`, or earlier."""
        if not self.running:
            return
        delay = max(when - self._clock.seconds(), 0.0)
        if self._timer is None or not self._timer.active():
            self._timer = self._clock.callLater(delay, self._pump)
        elif self._timer.getTime() > when:
            self._timer.reset(delay)

    def _pump(self) -> None:
        """Claim and start what is due."""
        if not self.running:
            return
        if self._pumping:
            self._again = True
            return
        self._pumping = True
        self._watch(self._claim())

    async def _claim(self) -> None:
        try:
            self._again = True
            while self._again and self.running:
                self._again = False
                room = min(self._limit - self.active, _CLAIM)
                self._backlog = room <= 0
                if room > 0:
                    self._reserved += room
                    try:
                        items = await self._store.claim_due(self._clock.seconds(), room)
                    finally:
                        self._reserved -= room
                    self._take(items)
                    self._again |= bool(items)
            if self._backlog:
                self._seek_relief()
            elif self.running:
                due = await self._store.next_due()
                if due is not None:
                    self._wake_at(due)
        except Exception:  # noqa: BLE001  a store that fails now may work again
            self.log.failure(
                "can't get work from the queue's store; trying again in {seconds} s", seconds=STORE_PAUSE
            )
            self._wake_at(self._clock.seconds() + STORE_PAUSE)
        finally:
            self._pumping = False
            if self._again:
                self._pump()

    # --- attempts --------------------------------------------------------------------------------

    def _take(self, items: Sequence[WorkItem]) -> None:
        """Start on recipients that now are ours."""
        if not self.running:  # stopped while they were being claimed
            rows = [recipient.row for item in items for recipient in item.recipients]
            self._watch(self._store.release(rows))
            return
        for item in items:
            self._rows.update([recipient.row for recipient in item.recipients])
        for item in items:
            attempts = self._attempts.group(item)
            self._jobs.add(attempts[0].job)
            for attempt in attempts:
                if (where := attempt.lane) is not None:
                    _, name = where
                    self._pacing.enter(where, name, self._limits(attempt), attempt)
                elif attempt.transport in self._gatherings:
                    self._gatherings[attempt.transport].add(attempt)
                else:
                    self._start_attempt(attempt)

    def _limits(self, attempt: Attempt) -> Limits:
        recipient = attempt.recipients[0]
        if attempt.transport is not Transport.SMTP:
            return Limits(self._at_once(recipient))
        manner = self._destinations.of(recipient.address.domain, recipient.hop).manner
        return Limits(manner.concurrency, manner.rate, manner.schedule or self._judge.schedule.delays)

    def _start_attempt(self, attempt: Attempt) -> None:
        self._watch(self._attempt(attempt))

    async def _attempt(self, attempt: Attempt) -> None:
        began = self._clock.seconds()
        told, reply = Sign.NONE, None
        try:
            outcomes = await self._attempts.make(attempt)
            told, reply = sign(outcomes), outcomes[0].reply
        finally:
            if attempt.lane is not None:
                self._pacing.leave(attempt.lane, attempt, told, reply)
        await self._settle(
            attempt,
            self._settler.settle(attempt.job, list(zip(attempt.recipients, outcomes, strict=True)), began),
        )

    def _start_batch(
        self, transport: Transport, delivery: IBatchDelivery, attempts: Sequence[Attempt]
    ) -> None:
        self._watch(self._attempt_together(transport, delivery, attempts))

    async def _attempt_together(
        self, transport: Transport, delivery: IBatchDelivery, attempts: Sequence[Attempt]
    ) -> None:
        began = self._clock.seconds()
        try:
            outcomes = await self._attempts.make_together(delivery, attempts)
        finally:
            self._gatherings[transport].ended()
        ended = [
            (attempt.job, list(zip(attempt.recipients, each, strict=True)))
            for attempt, each in zip(attempts, outcomes, strict=True)
        ]
        await self._settler.settle_together(ended, began)
        self._jobs.difference_update([attempt.job for attempt in attempts if attempt.job.attempts <= 0])

    def _adopt(self, item: WorkItem) -> Job:
        """A message that was on its way into mailboxes is queued after all; it is ours, and that attempt its first."""
        self._rows.update([recipient.row for recipient in item.recipients])
        job = Job(item.message, attempts=1)
        self._jobs.add(job)
        return job

    async def _settle_straight(self, job: Job, item: WorkItem, outcome: Outcome, began: float) -> None:
        (recipient,) = item.recipients
        await self._settler.settle(job, [(recipient, outcome)], began)
        self._jobs.discard(job)

    def _put_off(self, attempt: Attempt, until: float, reply: Reply | None) -> None:
        self._watch(self._settle(attempt, self._settler.put_off(attempt, until, reply)))

    async def _settle(self, attempt: Attempt, settling: Awaitable[None]) -> None:
        await settling
        if attempt.job.attempts <= 0:
            self._jobs.discard(attempt.job)

    def _call_back(self, rows: Sequence[int]) -> None:
        """A destination has room for what was put off."""
        self._watch(self._hasten(rows))

    async def _hasten(self, rows: Sequence[int]) -> None:
        await self._store.hasten(rows, self._clock.seconds())
        self._pump()

    def _seek_relief(self) -> None:
        """There is no room: if it stays so, those destinations that take theirs for long make some."""
        if not self.running:
            return
        if self._relief is None or not self._relief.active():
            self._relief = self._clock.callLater(_RELIEF, self._relieve)

    def _relieve(self) -> None:
        if self._backlog and self.active * 4 > self._limit * 3:
            self._pacing.relieve(self._limit)
            self._seek_relief()

    # --- outcomes --------------------------------------------------------------------------------

    def _settled(self, settled: Settled) -> None:
        self._rows.difference_update(settled.rows)
        if settled.due is not None:
            self._wake_at(settled.due)
        if settled.more:
            self._pump()
        else:
            self._refill()

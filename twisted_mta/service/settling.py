"""What comes of an attempt: rows are brought up to date, and the sender is told, in one commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twisted_mta.core.address import Address
from twisted_mta.core.dsn import Action, Report
from twisted_mta.core.queue import (
    Delivered,
    Expanded,
    Failed,
    NewMessage,
    Outcome,
    QueuedMessage,
    QueuedRecipient,
    TryLater,
)
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value
from twisted_mta.interfaces import IQueueStore, IStoredBody, Update
from twisted_mta.service.jobs import Attempt, Job
from twisted_mta.service.notices import Notices
from twisted_mta.service.outcomes import Judge

#: Seconds after which a store that failed is asked again.
STORE_PAUSE = 5.0
#: The outcome where the fault is this program's.
BUG = TryLater(Reply(451, "4.3.0", "internal error of this server; it will be tried again"))


@value(kw_only=True)
class Settled:
    """What the queue manager is to do next."""

    #: Rows that are no longer claimed.
    rows: Sequence[int]
    #: When the first of them is due again; None: none is.
    due: float | None = None
    #: Whether there is new work in the store.
    more: bool = False


class Settler:
    """Records outcomes, until the store takes them."""

    log = Logger()

    def __init__(
        self,
        store: IQueueStore,
        judge: Judge,
        notices: Notices,
        clock: IReactorTime,
        running: Callable[[], bool],
        told: Callable[[Settled], None],
    ) -> None:
        """`told` hears of everything that is recorded. When no longer `running`, a store that fails is given up on."""
        self._store = store
        self._judge = judge
        self._notices = notices
        self._clock = clock
        self._running = running
        self._told = told

    async def settle(
        self, job: Job, outcomes: Sequence[tuple[QueuedRecipient, Outcome]], began: float | None = None
    ) -> None:
        """An attempt of a job is over. With the last one, the sender is told what failed.

        `began`: when the attempt did; None if it was not made.
        """
        now = self._clock.seconds()
        updates, reports = self._judge_all(job, outcomes, now, began)
        if updates:
            await self._record(job.message, updates, reports, now)

    async def settle_together(
        self, ended: Sequence[tuple[Job, Sequence[tuple[QueuedRecipient, Outcome]]]], began: float
    ) -> None:
        """Attempts of several jobs are over: `settle` for each, in one operation of the store."""
        now = self._clock.seconds()
        together: list[tuple[QueuedMessage, list[Update]]] = []
        single: list[Coroutine[Any, Any, None]] = []
        for job, outcomes in ended:
            updates, reports = self._judge_all(job, outcomes, now, began)
            if reports:
                single.append(self._record(job.message, updates, reports, now))
            elif updates:
                together.append((job.message, updates))
        if together and not await self._record_together([one for _, updates in together for one in updates]):
            single += [self._record(message, updates, [], now) for message, updates in together]
        if single:
            await gatherResults([Deferred.fromCoroutine(one) for one in single])

    async def _record_together(self, updates: Sequence[Update]) -> bool:
        """Whether they were recorded. If not, it may be the fault of one of them."""
        try:
            await self._store.record(updates)
        except Exception:  # noqa: BLE001  each is tried by itself now, and that tells what is wrong
            return False
        self._tell(updates, False)
        return True

    def _judge_all(
        self,
        job: Job,
        outcomes: Sequence[tuple[QueuedRecipient, Outcome]],
        now: float,
        began: float | None,
    ) -> tuple[list[Update], list[Report]]:
        """What is to be recorded now, and what the sender is to be told along with that."""
        message = job.message
        took = 0.0 if began is None else max(now - began, 0.0)
        updates: list[Update] = []
        reports: list[Report] = []
        for recipient, outcome in outcomes:
            update, report = self._judge.judge(message, recipient, outcome, now, took)
            if report is None:
                updates.append(update)
            elif not self._notices.wanted(message, report):
                updates.append(attrs.evolve(update, warned=False) if update.warned else update)
                if report.action is Action.FAILED and message.sender is None:
                    self.log.warn(
                        "dropped {queue_id} to {recipient}: it has no sender, and nobody is told",
                        event="dropped",
                        queue_id=message.id,
                        recipient=str(recipient.address),
                    )
            elif isinstance(outcome, Delivered | Expanded):
                # What has arrived is recorded at once, lest it arrives twice.
                updates.append(update)
                reports.append(report)
            else:
                job.held.append((update, report))
        job.attempts -= 1
        if job.attempts <= 0:
            updates += [update for update, _ in job.held]
            reports += [report for _, report in job.held]
        return updates, [] if job.deleted else reports

    async def put_off(self, attempt: Attempt, until: float, reply: Reply | None) -> None:
        """Give an attempt back to the store, not made. But whose time is up, or who is to be told something, is judged:
        as if `reply` had been heard."""
        message, now = attempt.job.message, self._clock.seconds()
        outcome = TryLater(reply or BUG.reply, reached=False)
        due = [
            recipient
            for recipient in attempt.recipients
            if reply is not None and self._has_a_word(message, recipient, outcome, now)
        ]
        rows = [recipient.row for recipient in attempt.recipients if recipient not in due]
        if rows:
            when = min([until, *(self._judge.next_word(message, one, now) for one in attempt.recipients)])
            note = "" if reply is None else str(reply)
            if await self._insist(message, lambda: self._store.postpone(rows, when, note)):
                self._told(Settled(rows=rows, due=when))
        await self.settle(attempt.job, [(recipient, outcome) for recipient in due])

    def _has_a_word(
        self, message: QueuedMessage, recipient: QueuedRecipient, outcome: TryLater, now: float
    ) -> bool:
        """Whether the sender is to be told something now."""
        if self._judge.is_over(message, recipient, now):
            return True
        report = self._judge.warning(message, recipient, outcome, now)
        return report is not None and self._notices.wanted(message, report)

    async def _record(
        self, message: QueuedMessage, updates: Sequence[Update], reports: Sequence[Report], now: float
    ) -> None:
        """Record until the store takes it; then see to what came of it."""
        caused = [
            one
            for update in updates
            if isinstance(update.outcome, Delivered) and update.outcome.caused
            for one in update.outcome.caused
        ]
        new: list[tuple[NewMessage, bytes]] = []
        if reports:
            try:
                body = await self._quotable(message)
                told: dict[Address | None, list[Report]] = {}
                for report in reports:
                    told.setdefault(self._notices.addressee(message, report.recipient), []).append(report)
                for sender, those in told.items():
                    new += self._notices.write(attrs.evolve(message, sender=sender), body, those, now)
            except Exception:  # noqa: BLE001  then nothing is given up, lest it is lost without a word
                self.log.failure("can't write the notification about {queue_id}", queue_id=message.id)
                new = []
                updates = [self._unless_failed(update, now) for update in updates]
        new += caused
        if not await self._insist(message, lambda: self._store.record(updates, new)):
            return
        self._tell(updates, bool(new))

    def _tell(self, updates: Sequence[Update], more: bool) -> None:
        later = [update.next_attempt for update in updates if isinstance(update.outcome, TryLater)]
        self._told(
            Settled(
                rows=[update.row for update in updates],
                due=min(later, default=None),
                more=more or any(isinstance(update.outcome, Expanded) for update in updates),
            )
        )

    async def _insist(self, message: QueuedMessage, change: Callable[[], Awaitable[None]]) -> bool:
        """Until the store takes it; False if the server stops before."""
        while True:
            try:
                await change()
                return True
            except Exception:  # noqa: BLE001  a full disk may get room; the claims are ours until then
                self.log.failure("can't record outcomes of {queue_id}", queue_id=message.id)
                if not self._running():
                    return False
            await deferLater(self._clock, STORE_PAUSE)

    def _unless_failed(self, update: Update, now: float) -> Update:
        if not isinstance(update.outcome, Failed):
            return update
        return Update(row=update.row, outcome=BUG, next_attempt=now + self._judge.schedule.delays[-1])

    async def _quotable(self, message: QueuedMessage) -> IStoredBody | None:
        try:
            return await self._store.body(message)
        except Exception:  # noqa: BLE001  then the notification quotes what we have
            self.log.failure("can't read {queue_id} to quote it", queue_id=message.id)
            return None

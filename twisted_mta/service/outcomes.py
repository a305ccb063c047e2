"""What the outcome of an attempt means, for the recipient's row and for the sender."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice

import attrs
from twisted.logger import Logger

from twisted_mta.config.destinations import Destinations
from twisted_mta.config.schema import Relay
from twisted_mta.core.dsn import Action, Report
from twisted_mta.core.envelope import Notify
from twisted_mta.core.queue import (
    Delivered,
    Expanded,
    Failed,
    Outcome,
    QueuedMessage,
    QueuedRecipient,
    Transport,
    TryLater,
)
from twisted_mta.core.schedule import Schedule
from twisted_mta.core.values import value
from twisted_mta.interfaces import Update
from twisted_mta.store.log_events import LogEvent

_TEXT = "{queue_id}: {event}, <{recipient}> by {by}: {reply}"
_ENDED = LogEvent(f"{__name__}.Judge", _TEXT)
_DEFERRED = LogEvent(f"{__name__}.Judge", _TEXT + " (next attempt in {next_in:.0f} s)")
#: Seconds for which nothing is sent again that the next host may have.
DOUBT = 1800.0
#: Attempts that are foretold.
MAX_FORESEEN = 100


@value(kw_only=True)
class Outlook:
    """What becomes of a recipient that is never delivered, as Unix seconds: the first attempts, the warning, the end."""

    attempts: tuple[float, ...]
    warning: float | None
    expires: float


@attrs.define
class Judge:
    """Decides by the schedule. `random` gives 0 <= x < 1."""

    log = Logger()

    #: As [queue] says.
    schedule: Schedule
    random: Callable[[], float]
    destinations: Destinations = attrs.field(factory=lambda: Destinations(Relay()))

    def schedule_of(self, recipient: QueuedRecipient) -> Schedule:
        """The schedule of the recipient's destination."""
        if recipient.transport is not Transport.SMTP:
            return self.schedule
        manner = self.destinations.of(recipient.address.domain, recipient.hop).manner
        return attrs.evolve(self.schedule, delays=manner.schedule) if manner.schedule else self.schedule

    def expires(self, message: QueuedMessage, recipient: QueuedRecipient) -> float:
        """When a recipient is given up."""
        expire = None
        if recipient.transport is Transport.SMTP:
            expire = self.destinations.of(recipient.address.domain, recipient.hop).manner.expire
        return message.expires if expire is None else message.released + expire

    def outlook(self, message: QueuedMessage, recipient: QueuedRecipient) -> Outlook:
        """When it is tried, and when the sender is told, if nobody ever takes it."""
        expires = self.expires(message, recipient)
        warning = self._warned_at(message, recipient)
        times = self.schedule_of(recipient).forecast(message.released, expires, warning)
        return Outlook(
            attempts=tuple(islice(times, MAX_FORESEEN)),
            warning=warning or None,
            expires=expires,
        )

    def _warned_at(self, message: QueuedMessage, recipient: QueuedRecipient) -> float:
        """When the sender is told that a recipient is late; 0.0: never, or it was."""
        after = self.schedule.warn_after
        asked = message.sender is not None and Notify.DELAY in recipient.notify
        return message.released + after if after and asked and not recipient.warned else 0.0

    def is_over(self, message: QueuedMessage, recipient: QueuedRecipient, now: float) -> bool:
        """Whether a recipient that is not delivered now is given up."""
        return out_of_time(message, now) or now >= self.expires(message, recipient)

    def next_word(self, message: QueuedMessage, recipient: QueuedRecipient, now: float) -> float:
        """The next time at which the sender may have to be told something; never before `now`."""
        times = [self.expires(message, recipient)]
        if message.deliver_by is not None:
            times.append(message.deliver_by.time)
        if self.schedule.warn_after:
            times.append(message.released + self.schedule.warn_after)
        return min((time for time in times if time > now), default=now)

    def warning(
        self, message: QueuedMessage, recipient: QueuedRecipient, outcome: TryLater, now: float
    ) -> Report | None:
        """What the sender is to be told of a recipient that is late."""
        by = message.deliver_by
        # RFC 2852 §4.1.3: told at the time, whether or not it had been told before that the message is late.
        late = by is not None and now >= by.time and not recipient.late
        warn = not recipient.warned and self.schedule.warning_due(now, message.released)
        if not warn and not late:
            return None
        until = self.expires(message, recipient)
        return _report(recipient, outcome, Action.DELAYED, now, by_passed=late, until=until)

    def judge(
        self,
        message: QueuedMessage,
        recipient: QueuedRecipient,
        outcome: Outcome,
        now: float,
        took: float = 0.0,
    ) -> tuple[Update, Report | None]:
        """What the outcome of an attempt that took so many seconds means: for the row, and for the sender."""
        if isinstance(outcome, Delivered):  # nearly all
            return self._judge_delivered(message, recipient, outcome, now, took)
        update = partial(Update, row=recipient.row, at=now, took=took)
        match outcome:
            case Expanded():
                self._tell("expanded", message, recipient, outcome, now)
                # RFC 3464 §2.3.3: delivery to a mailing list is delivery.
                return update(outcome=outcome), _report(recipient, outcome, Action.DELIVERED, now)
            case Failed():
                self._tell("bounced", message, recipient, outcome, now)
                return update(outcome=outcome), _report(recipient, outcome, Action.FAILED, now)
        if out_of_time(message, now):
            self._tell("expired", message, recipient, outcome, now)
            failed = Failed(outcome.reply, outcome.remote, contacts=outcome.contacts)
            return update(outcome=failed), _report(
                recipient, outcome, Action.FAILED, now, expired=True, by_passed=True
            )
        expires, schedule = self.expires(message, recipient), self.schedule_of(recipient)
        if schedule.expired(now, expires):
            self._tell("expired", message, recipient, outcome, now)
            failed = Failed(outcome.reply, outcome.remote, contacts=outcome.contacts)
            return update(outcome=failed), _report(recipient, outcome, Action.FAILED, now, expired=True)
        word = self._warned_at(message, recipient)
        following = schedule.next_attempt(now, recipient.attempts + 1, expires, self.random, word)
        if outcome.doubtful:
            # RFC 1047: that host may well be busy with what it has. Then it would get the message twice.
            following = max(following, min(now + DOUBT, expires))
            self.log.warn(
                "{queue_id} may arrive twice: {remote} got all of it for {recipient} and said nothing more",
                event="doubtful",
                queue_id=message.id,
                recipient=str(recipient.address),
                remote=outcome.remote,
            )
        by = message.deliver_by
        if by is not None and now < by.time:
            following = min(following, by.time)  # RFC 2852 §4.1.3: then something is due
        self._tell("deferred", message, recipient, outcome, now, following)
        warning = self.warning(message, recipient, outcome, now)
        warned, late = warning is not None, warning is not None and warning.by_passed
        return update(outcome=outcome, next_attempt=following, warned=warned, late=late), warning

    def _judge_delivered(
        self, message: QueuedMessage, recipient: QueuedRecipient, outcome: Delivered, now: float, took: float
    ) -> tuple[Update, Report | None]:
        self._tell("delivered", message, recipient, outcome, now)
        update = Update(row=recipient.row, outcome=outcome, at=now, took=took)
        # RFC 3461 §5.2.1: a next host that got the NOTIFY parameter sends the notice.
        asked = not outcome.confirms and Notify.SUCCESS in recipient.notify
        if not asked and not outcome.traced:
            return update, None
        action = Action.DELIVERED
        if outcome.relayed:
            action = Action.RELAYED
        elif outcome.expanded:
            action = Action.EXPANDED
        return update, _report(recipient, outcome, action, now, traced=outcome.traced)

    def _tell(
        self,
        event: str,
        message: QueuedMessage,
        recipient: QueuedRecipient,
        outcome: Outcome,
        now: float,
        following: float = 0.0,
    ) -> None:
        """The line in the log."""
        remote = "" if isinstance(outcome, Expanded) else outcome.remote
        tell = _DEFERRED if following else _ENDED
        tell(
            event=event,
            queue_id=message.id,
            recipient=str(recipient.address),
            original=str(recipient.original),
            transport=str(recipient.transport),
            reply=str(outcome.reply),
            by=remote or "this server",
            remote=remote,
            delay=now - message.released,
            attempts=recipient.attempts + 1,
            next_attempt=following,
            next_in=following - now,
        )


def out_of_time(message: QueuedMessage, now: float) -> bool:
    """Whether no more attempts may be made, since the sender wants the message back by now."""
    by = message.deliver_by
    return by is not None and by.returns and now >= by.time  # RFC 2852 §4.1.3


def _report(
    recipient: QueuedRecipient,
    outcome: Outcome,
    action: Action,
    now: float,
    *,
    expired: bool = False,
    by_passed: bool = False,
    traced: bool = False,
    until: float | None = None,
) -> Report:
    return Report(
        recipient=recipient,
        action=action,
        reply=outcome.reply,
        remote="" if isinstance(outcome, Expanded) else outcome.remote,
        contacts=() if isinstance(outcome, Expanded) else outcome.contacts,
        doubtful=isinstance(outcome, TryLater) and outcome.doubtful,
        attempted=now,
        expired=expired,
        by_passed=by_passed,
        traced=traced,
        until=until,
    )

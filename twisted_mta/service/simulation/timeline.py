"""What happened in a simulation: to each message, to each destination, and to the queue as a whole."""

from __future__ import annotations

import enum
from array import array
from collections.abc import Sequence

import attrs

from twisted_mta.core.queue import (
    Delivered,
    Expanded,
    Failed,
    NewMessage,
    QueuedMessage,
    QueuedRecipient,
    TryLater,
    WorkItem,
)
from twisted_mta.core.values import value
from twisted_mta.interfaces import Update

#: Recipients up to which each single event is kept.
DETAILED = 500
#: Stretches of time for which the depth of the queue is kept.
STRETCHES = 28


class What(enum.StrEnum):
    """How an attempt ended, or that none was made."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"
    EXPANDED = "expanded"
    PUT_OFF = "put off"


_WHAT: dict[type, What] = {
    Delivered: What.DELIVERED,
    TryLater: What.DEFERRED,
    Failed: What.FAILED,
    Expanded: What.EXPANDED,
}


@value(kw_only=True)
class Event:
    """One attempt for one recipient, or what it was put off for, once or several times. Times are Unix seconds."""

    time: float
    what: What
    reply: str
    #: When the next attempt is due; 0: there is none.
    next_attempt: float = 0.0
    #: Whether the sender was told with it: warned, or given the message back.
    told: bool = False


@attrs.define(kw_only=True)
class Story:
    """One message: who sent it when, and what happened to it, by recipient."""

    queue_id: str
    sender: str
    arrived: float
    #: The queue id of the message that a notification tells of, or a list's post comes from; "" for others.
    parent: str
    recipients: dict[str, list[Event]] = attrs.field(factory=dict)


@attrs.define
class Tally:
    """Sums."""

    recipients: int = 0
    attempts: int = 0
    delivered: int = 0
    failed: int = 0
    #: Notifications to senders: that a message is late, and that it failed.
    warnings: int = 0
    bounces: int = 0
    #: Recipients still in the queue in the end.
    waiting: int = 0
    #: Seconds that each delivered recipient had waited.
    delays: array[float] = attrs.field(factory=lambda: array("d"), repr=False)

    def delay(self, share: float) -> float:
        """Seconds within which this share (0 to 1) of what was delivered had arrived; 0 if nothing was."""
        if not self.delays:
            return 0.0
        ordered = sorted(self.delays)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class Timeline:
    """Takes notes. `depths` has the most recipients that were in the queue in each stretch of the time."""

    def __init__(self, begin: float, seconds: float, detailed: bool) -> None:
        self.begin = begin
        self.seconds = seconds
        #: All but notifications, which have sums of their own.
        self.total = Tally()
        self.notifications = Tally()
        self.domains: dict[str, Tally] = {}
        #: By queue id, in the order of their first event; empty where there are too many for it.
        self.stories: dict[str, Story] = {}
        self.peak = 0
        self.peak_at = begin
        self._detailed = detailed
        self._stretch = seconds / STRETCHES
        self.depths = [0] * STRETCHES
        self._last = 0
        self._depth = 0

    def queued(self, message: NewMessage | QueuedMessage, recipients: Sequence[str]) -> None:
        """A message is in the queue, for so many."""
        for address in recipients:
            for tally in self._tallies(message, address):
                tally.recipients += 1
        if self._detailed:
            self.stories[message.id] = Story(
                queue_id=message.id,
                sender=str(message.sender or ""),
                arrived=message.arrived,
                parent=message.parent,
                recipients={address: [] for address in recipients},
            )

    def recorded(
        self,
        now: float,
        noted: Sequence[tuple[QueuedMessage, QueuedRecipient, Update]],
        new: Sequence[NewMessage],
    ) -> None:
        """The outcomes that the queue has recorded, and the notifications that they caused."""
        for message, recipient, update in noted:
            what = _WHAT[type(update.outcome)]
            told = bool(new) and (what is What.FAILED or update.warned)
            address = str(recipient.address)
            for tally in self._tallies(message, address):
                _count(tally, what, told, now - message.released)
            if self._detailed:
                event = Event(
                    time=now,
                    what=what,
                    reply=_words(update),
                    next_attempt=update.next_attempt,
                    told=told,
                )
                self.stories[message.id].recipients.setdefault(address, []).append(event)
            if isinstance(update.outcome, Expanded):
                for post in update.outcome.messages:
                    self.queued(post, [str(each.address) for each in post.recipients])
        for notice in new:
            self.queued(notice, [str(each.address) for each in notice.recipients])

    def postponed(self, now: float, message: QueuedMessage, recipient: QueuedRecipient, note: str) -> None:
        """A recipient was put off without an attempt; only the first time in a row is kept."""
        if self._detailed:
            events = self.stories[message.id].recipients.setdefault(str(recipient.address), [])
            if not events or events[-1].what is not What.PUT_OFF:
                reply = note or "not tried, since others had to have their turn"
                events.append(Event(time=now, what=What.PUT_OFF, reply=reply))

    def _tallies(self, message: NewMessage | QueuedMessage, address: str) -> tuple[Tally, ...]:
        if message.sender is None:
            return (self.notifications,)
        domain = address.rpartition("@")[2]
        found = self.domains.get(domain)
        if found is None:
            found = self.domains[domain] = Tally()
        return self.total, found

    def depth(self, now: float, recipients: int) -> None:
        """So many recipients are in the queue from now on."""
        stretch = min(int((now - self.begin) / self._stretch), STRETCHES - 1)
        for passed in range(self._last + 1, stretch + 1):
            self.depths[passed] = self._depth
        self._last, self._depth = stretch, recipients
        self.depths[stretch] = max(self.depths[stretch], recipients)
        if recipients > self.peak:
            self.peak, self.peak_at = recipients, now

    def finish(self, waiting: Sequence[WorkItem]) -> None:
        """The end of the time, with this in the queue."""
        self.depth(self.begin + self.seconds, self._depth)
        for item in waiting:
            for recipient in item.recipients:
                for tally in self._tallies(item.message, str(recipient.address)):
                    tally.waiting += 1


def _count(tally: Tally, what: What, told: bool, delay: float) -> None:
    tally.attempts += 1
    match what:
        case What.DELIVERED:
            tally.delivered += 1
            tally.delays.append(delay)
        case What.FAILED:
            tally.failed += 1
            tally.bounces += told
        case What.DEFERRED:
            tally.warnings += told


def _words(update: Update) -> str:
    outcome = update.outcome
    remote = "" if isinstance(outcome, Expanded) else outcome.remote
    return f"{remote}: {outcome.reply}" if remote else str(outcome.reply)

"""Where messages go from the queue: asks each delivery what it would do, and follows what comes of lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
from twisted.internet.interfaces import IReactorTime

from twisted_mta.core.explanation import Finding, Note
from twisted_mta.core.queue import (
    NewMessage,
    NewRecipient,
    QueuedMessage,
    QueuedRecipient,
    Transport,
)
from twisted_mta.core.replies import Reply
from twisted_mta.core.schedule import format_duration
from twisted_mta.interfaces import Foreseen, IDelivery, IForesight
from twisted_mta.service.outcomes import Outlook

#: Recipients that are followed; how many are shown of each message; lists within lists.
MAX_FOLLOWED = 20_000
MAX_SHOWN = 50
MAX_DEPTH = 20
#: Seconds for looking up hosts: what takes longer is left out.
PATIENCE = 60.0
#: Attempts that are shown one by one.
_ATTEMPTS = 6


#: Of each message that leaves.
_NOT_SIGNED = Note("dkim", "no DKIM signature of ours: this server does not sign yet", data={"key": None})


class Queue(Protocol):
    """What is asked of the queue manager."""

    def outlook(self, message: QueuedMessage, recipient: QueuedRecipient) -> Outlook: ...
    def shut(self, transport: Transport, destination: str) -> Reply | None: ...
    def standing(self, transport: Transport, destination: str) -> Mapping[str, Any] | None: ...


@attrs.define
class Ends:
    """Where copies end up, each once, in the order in which they were met."""

    #: Maildirs, files and commands.
    places: dict[str, None] = attrs.field(factory=dict)
    #: Recipients at other hosts -> the destination.
    remote: dict[str, str] = attrs.field(factory=dict)
    #: Recipients that fail at the first attempt, with the reply.
    failures: list[tuple[str, Reply]] = attrs.field(factory=list)
    #: Whether not everything was followed.
    cut: bool = False


class Onward:
    """One look ahead. `body_size` is the size of the message that is explained."""

    def __init__(
        self, deliveries: Mapping[Transport, IDelivery], queue: Queue, clock: IReactorTime, body_size: int
    ) -> None:
        self.ends = Ends()
        self._deliveries = deliveries
        self._queue = queue
        self._clock = clock
        self._until = clock.seconds() + PATIENCE
        self._size = body_size
        self._followed = 0
        #: (transport, destination, sender's domain) -> what was found out about it.
        self._known: dict[tuple[Transport, str, str], Foreseen] = {}

    async def follow(self, message: NewMessage, header: bytes, depth: int = 0) -> Sequence[Note]:
        """A note for each recipient, up to MAX_SHOWN. `header` is the header section below the message's prefix."""
        queued = message.queued(0, self._size)
        notes: list[Note] = []
        for recipient in message.recipients:
            if self._followed >= MAX_FOLLOWED or depth > MAX_DEPTH:
                self.ends.cut = True
                break
            self._followed += 1
            note = await self._recipient(queued, recipient, header, depth)
            if len(notes) < MAX_SHOWN or note.finding is not Finding.FACT:
                notes.append(note)
        left = len(message.recipients) - len(notes)
        if left:
            notes.append(Note("more", f"and {left} more recipients", data={"recipients": left}))
        return notes

    async def _recipient(self, message: QueuedMessage, new: NewRecipient, header: bytes, depth: int) -> Note:
        recipient = new.queued(0, message.released)
        message = message.copy_for(recipient)
        foreseen = await self._foresee(message, recipient, message.prefix + header)
        name = str(new.address)
        self.ends.places.update(dict.fromkeys(foreseen.places))
        children = list(foreseen.note.children)
        if new.sender is not None:
            children.insert(0, Note("sender", f"sent from <{message.sender or ''}>"))
        if new.transport is Transport.SMTP:
            children.append(_NOT_SIGNED)
            destination = self._deliveries[new.transport].destination(recipient)
            self.ends.remote[name] = destination
            shut = self._queue.shut(new.transport, destination)
            if shut is not None:
                foreseen = attrs.evolve(foreseen, failure=shut)
            if foreseen.failure is None or foreseen.failure.transient:
                children += self._times(message, recipient, destination)
        if foreseen.failure is not None:
            self.ends.failures.append((name, foreseen.failure))
        finding = foreseen.note.finding
        if foreseen.failure is not None:
            finding = Finding.REFUSED if foreseen.failure.permanent else Finding.LATER
        for child in foreseen.messages:
            children += await self.follow(child, header, depth + 1)
        text = f"{name}: {foreseen.note.text}"
        data = {"address": name, "transport": new.transport.value, "via": list(new.via), **foreseen.note.data}
        return attrs.evolve(foreseen.note, text=text, finding=finding, data=data, children=tuple(children))

    async def _foresee(self, message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> Foreseen:
        delivery = self._deliveries.get(recipient.transport)
        if delivery is None or not IForesight.providedBy(delivery):
            return Foreseen(Note("delivery", f"{recipient.transport} {recipient.target}".rstrip()))
        remote = recipient.transport is Transport.SMTP
        sender = message.sender.domain if message.sender is not None else ""
        key = (recipient.transport, delivery.destination(recipient), sender)
        if remote and key in self._known:
            known = self._known[key]
            return attrs.evolve(known, note=attrs.evolve(known.note, children=()))
        if remote and self._clock.seconds() > self._until:
            self.ends.cut = True
            return Foreseen(
                Note("destination", f"remote, destination {key[1]}: not looked up, it took too long")
            )
        foreseen: Foreseen = await IForesight(delivery).foresee(message, recipient, header)
        if remote:
            self._known[key] = foreseen
        return foreseen

    def _times(self, message: QueuedMessage, recipient: QueuedRecipient, destination: str) -> list[Note]:
        """When it would be tried, where it is not known already."""
        outlook = self._queue.outlook(message, recipient)
        start = message.released
        delays = [time - start for time in outlook.attempts]
        shown = ", ".join(format_duration(delay) for delay in delays[1 : _ATTEMPTS + 1])
        more = ", ..." if len(delays) > _ATTEMPTS + 1 else ""
        text = f"if it can't be delivered: tried again after {shown}{more}"
        if outlook.warning is not None:
            text += f"; the sender is warned after {format_duration(outlook.warning - start)}"
        text += f", and told that it failed after {format_duration(outlook.expires - start)}"
        data = {"attempts": delays, "expires": outlook.expires - start}
        notes = [Note("schedule", text, where="queue.schedule", data=data)]
        standing = self._queue.standing(recipient.transport, destination)
        if standing is not None:
            notes.append(self._pace(standing))
        return notes

    def _pace(self, standing: Mapping[str, Any]) -> Note:
        state, reply = standing["state"], standing["last_reply"]
        running, waiting = standing["running"], standing["waiting"] + standing["put_off"]
        text = f"just now {state}: {running} attempts under way (at most {standing['concurrency']}), {waiting} wait"
        finding = Finding.FACT
        if standing["down_since"]:
            away = format_duration(max(standing["next_probe"] - self._clock.seconds(), 0.0))
            text += f"; it is out of reach, and tried again in {away}"
            finding = Finding.LATER
        if reply:
            text += f"; the last thing heard was {reply}"
        return Note("pace", text, finding, "relay.concurrency", dict(standing))

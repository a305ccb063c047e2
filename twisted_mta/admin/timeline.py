"""A simulation's timeline as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted_mta.core.message import format_date
from twisted_mta.core.schedule import format_duration
from twisted_mta.service.simulation.timeline import Event, Story, Tally, Timeline, What

#: Destinations that are listed, those with the most attempts first.
MAX_DOMAINS = 20
#: Characters of the longest bar.
_BAR = 50


def as_text(timeline: Timeline, seed: int) -> Iterator[str]:
    """Lines for people."""
    length = format_duration(timeline.seconds)
    yield f"{length} from {format_date(timeline.begin)}, seed {seed}. Nothing was sent, and nothing has changed."
    for story in timeline.stories.values():
        yield ""
        yield from _story(timeline, story)
    yield ""
    yield from _sums(timeline)
    yield from _domains(timeline)
    yield ""
    yield from _depths(timeline)


def _story(timeline: Timeline, story: Story) -> Iterator[str]:
    about = f", about {story.parent}" if story.parent else ""
    yield f"{story.queue_id} from <{story.sender}>{about}, in at {_at(timeline, story.arrived)}"
    for address, events in story.recipients.items():
        yield f"  <{address}>"
        for event in events:
            yield f"    {_at(timeline, event.time)}  {_event(timeline, event)}"
        if not events:
            yield "    not tried"
        elif events[-1].what in (What.DEFERRED, What.PUT_OFF):
            yield "    still waiting in the end"


def _event(timeline: Timeline, event: Event) -> str:
    text = f"{event.what:<9}  {event.reply}"
    if event.what is What.DEFERRED:
        text += f"; next attempt {_at(timeline, event.next_attempt).strip()}"
    if event.told:
        text += "; the sender is warned" if event.what is What.DEFERRED else "; the sender gets a bounce"
    return text


def _at(timeline: Timeline, when: float) -> str:
    """Days, hours, minutes and seconds since the beginning: "+3d 02:14:05"."""
    seconds = round(when - timeline.begin)
    sign = "-" if seconds < 0 else "+"
    days, rest = divmod(abs(seconds), 86400)
    return f"{sign}{days}d {rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"


def _sums(timeline: Timeline) -> Iterator[str]:
    tally, told = timeline.total, timeline.notifications
    yield f"{'Recipients':<10} {tally.recipients:>10,}   {tally.attempts:,} attempts"
    late = ""
    if tally.delays:
        half, most, last = (format_duration(tally.delay(share)) for share in (0.5, 0.99, 1.0))
        late = f"   half within {half}, 99 % within {most}, the last after {last}"
    yield f"{'Delivered':<10} {tally.delivered:>10,}{late}"
    yield f"{'Failed':<10} {tally.failed:>10,}   {tally.bounces:,} with a bounce"
    yield f"{'Warned of':<10} {tally.warnings:>10,}"
    yield f"{'Waiting':<10} {tally.waiting:>10,}"
    if told.recipients:
        yield (
            f"Notifications: {told.recipients:,}, {told.delivered:,} of them delivered, {told.failed:,} failed, "
            f"{told.waiting:,} waiting"
        )


def _domains(timeline: Timeline) -> Iterator[str]:
    """Those where not everything was delivered at the first attempt."""
    troubled = [
        (name, tally)
        for name, tally in timeline.domains.items()
        if tally.attempts != tally.delivered or tally.waiting
    ]
    if not troubled:
        return
    troubled.sort(key=lambda pair: (-pair[1].attempts, pair[0]))
    width = max(len(name) for name, _ in troubled[:MAX_DOMAINS])
    yield ""
    yield f"{'Destination':<{width}} recipients   attempts  delivered     failed   warnings    waiting  the last after"
    for name, tally in troubled[:MAX_DOMAINS]:
        counts = (
            tally.recipients,
            tally.attempts,
            tally.delivered,
            tally.failed,
            tally.warnings,
            tally.waiting,
        )
        last = format_duration(tally.delay(1.0)) if tally.delays else "-"
        yield f"{name:<{max(width, 11)}} " + " ".join(f"{count:>10,}" for count in counts) + f"  {last}"
    if len(troubled) > MAX_DOMAINS:
        yield f"... and {len(troubled) - MAX_DOMAINS} more"


def _depths(timeline: Timeline) -> Iterator[str]:
    stretch = timeline.seconds / len(timeline.depths)
    yield f"Recipients in the queue, the most in each {format_duration(stretch)} (peak: {timeline.peak:,})"
    shown = len(timeline.depths)
    while shown > 1 and not any(timeline.depths[shown - 2 :]):  # an empty queue stays so: one line says it
        shown -= 1
    for number, depth in enumerate(timeline.depths[:shown]):
        bar = "#" * -(-depth * _BAR // max(timeline.peak, 1))
        yield f"  {_at(timeline, timeline.begin + number * stretch)} {depth:>10,} {bar}".rstrip()


def as_json(timeline: Timeline, seed: int) -> dict[str, Any]:
    """For programs: times in Unix seconds, durations in seconds."""
    stretch = timeline.seconds / len(timeline.depths)
    return {
        "begin": timeline.begin,
        "seconds": timeline.seconds,
        "seed": seed,
        "total": _tally(timeline.total),
        "notifications": _tally(timeline.notifications),
        "destinations": {name: _tally(tally) for name, tally in sorted(timeline.domains.items())},
        "peak": {"recipients": timeline.peak, "time": timeline.peak_at},
        "depth": [
            {"time": timeline.begin + number * stretch, "recipients": depth}
            for number, depth in enumerate(timeline.depths)
        ],
        "messages": [
            {
                "id": story.queue_id,
                "sender": story.sender,
                "arrived": story.arrived,
                "parent": story.parent,
                "recipients": [
                    {"address": address, "events": [_event_json(event) for event in events]}
                    for address, events in story.recipients.items()
                ],
            }
            for story in timeline.stories.values()
        ],
    }


def _event_json(event: Event) -> dict[str, Any]:
    return {
        "time": event.time,
        "event": event.what.value,
        "reply": event.reply,
        "next_attempt": event.next_attempt,
        "sender_told": event.told,
    }


def _tally(tally: Tally) -> dict[str, Any]:
    return {
        "recipients": tally.recipients,
        "attempts": tally.attempts,
        "delivered": tally.delivered,
        "failed": tally.failed,
        "bounces": tally.bounces,
        "warnings": tally.warnings,
        "waiting": tally.waiting,
        "delay": {name: tally.delay(share) for name, share in (("half", 0.5), ("p99", 0.99), ("last", 1.0))},
    }

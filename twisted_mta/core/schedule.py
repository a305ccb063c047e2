"""When to try again, when to warn, when to give up: RFC 5321 §4.5.4.1. And how people write durations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from twisted_mta.core.values import value

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(s|m|h|d|w)")
_COUNT = re.compile(r"[0-9]{1,4}")
#: No duration that a mail server needs is longer.
MAX_DURATION = 10 * 366 * 86400.0
#: Nor is a schedule.
MAX_STEPS = 1000


def parse_duration(text: str) -> float:
    """Seconds of "90s", "15m", "4h", "5d", "2w", "1h30m"; "0" alone needs no unit. Raises ValueError, fit for a user."""
    compact = text.strip().lower().replace(" ", "")
    if compact == "0":
        return 0.0
    total, position = 0.0, 0
    while position < len(compact):
        match = _PART.match(compact, position)
        if match is None:
            break
        total += float(match[1]) * _UNITS[match[2]]
        position = match.end()
    if not compact or position < len(compact):
        raise ValueError(f'{text!r} is no duration: write a number and a unit (s, m, h, d, w), such as "30m"')
    if total > MAX_DURATION:
        raise ValueError(f"{text!r} is longer than ten years")
    return total


def parse_schedule(text: str) -> tuple[float, ...]:
    """Seconds of each step of "5m, 15m, 30m*4, 4h"; ``*n`` repeats a step. Raises ValueError, fit for a user."""
    delays: list[float] = []
    for step in text.split(","):
        duration, star, times = (part.strip() for part in step.partition("*"))
        try:
            delay = parse_duration(duration)
        except ValueError as error:
            raise ValueError(f"step {len(delays) + 1}: {error}") from None
        if star and not _COUNT.fullmatch(times):
            raise ValueError(
                f'{step.strip()!r}: behind the * stands how often the step repeats, as in "30m*4"'
            )
        count = int(times) if star else 1
        if delay <= 0 or count < 1:
            raise ValueError(
                f"{step.strip()!r} in a schedule must be longer than 0 seconds, and repeat at least once"
            )
        if len(delays) + count > MAX_STEPS:
            raise ValueError(f"the schedule has more than {MAX_STEPS} steps")
        delays.extend([delay] * count)
    return tuple(delays)


def format_duration(seconds: float) -> str:
    """For people: "4 hours", "5 days", "90 minutes"; rounded to the unit."""
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or (seconds >= length and seconds % length == 0):
            count = round(seconds / length)
            return f"{count} {name}" + ("" if count == 1 else "s")
    count = round(seconds)
    return f"{count} second" + ("" if count == 1 else "s")


@value
class Schedule:
    """The delays between attempts, in seconds; the last one repeats.

    `jitter` is the fraction by which a delay may be longer or shorter, so that what failed together does not come
    back together.
    """

    delays: tuple[float, ...]
    expire: float
    warn_after: float = 0.0
    jitter: float = 0.1

    def next_attempt(
        self, now: float, attempts: int, expires: float, random: Callable[[], float], warning: float = 0.0
    ) -> float:
        """The time of the next attempt after `attempts` (1 or more) failed ones. `random` gives 0 <= x < 1.

        Never behind `expires`: the last attempt is made when the message's time is up, then it bounces. Nor behind
        `warning`, if that is to come: then the sender is told, and what the last attempt found should be fresh.
        """
        delay = self.delays[min(max(attempts, 1), len(self.delays)) - 1]
        delay *= 1.0 + self.jitter * (2.0 * random() - 1.0)
        if now >= expires:
            return now + delay
        following = min(now + delay, expires)
        return min(following, warning) if now < warning else following

    def forecast(self, start: float, expires: float, warning: float = 0.0) -> Iterator[float]:
        """The times of all attempts of a message that never gets through, without jitter; the last one is at `expires`."""
        now, attempts = start, 0
        yield now
        while now < expires:
            attempts += 1
            now = self.next_attempt(now, attempts, expires, lambda: 0.5, warning)
            yield now

    def expired(self, now: float, expires: float) -> bool:
        """Whether a message that could not be delivered is now given up (RFC 5321 §4.5.4.1: after 4 to 5 days)."""
        return now >= expires

    def warning_due(self, now: float, arrived: float) -> bool:
        """Whether the sender should now be told that the message is late; never if `warn_after` is 0."""
        return self.warn_after > 0 and now >= arrived + self.warn_after

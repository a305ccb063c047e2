"""How hard a destination is pressed: more at a time while it takes the mail well, less when it minds, and where nobody
answers one message as a probe for all."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import attrs

from twisted_mta.core.queue import Failed, Outcome, TryLater

#: Attempts at once to a destination that nothing is known of.
START = 5.0
#: Turned away so many times in a row, with one attempt at a time, and a destination is left in peace.
PATIENCE = 3
#: Seconds between two probes at most, whatever the schedule says: mail that comes in meanwhile waits for the next one.
MAX_PROBE_DELAY = 1800.0
#: The part of a delay after which a probe may come: the message that failed is back by then, whatever its jitter.
EARLY = 0.85


class Sign(enum.Enum):
    """What the end of an attempt says of the destination."""

    #: It says nothing: a bug, or the end of the server.
    NONE = "none"
    #: A host spoke, whatever it thought of the message.
    WELL = "well"
    #: It has something against us for now; maybe against this message only, as greylisting has.
    RELUCTANT = "reluctant"
    #: It has no room for us now, or stopped in the middle.
    BUSY = "busy"
    #: No host could be reached.
    GONE = "gone"


def sign(outcomes: Sequence[Outcome]) -> Sign:
    """What the outcomes of one attempt say together: the worst, but that a destination is gone only if nobody got through."""
    found = {_sign(outcome) for outcome in outcomes}
    for one in (Sign.BUSY, Sign.RELUCTANT, Sign.WELL, Sign.GONE):
        if one in found:
            return one
    return Sign.NONE


def _sign(outcome: Outcome) -> Sign:
    if isinstance(outcome, TryLater) and not outcome.reached:
        return Sign.GONE
    if isinstance(outcome, TryLater | Failed) and not outcome.remote:
        return Sign.NONE  # it was not even tried, or the DNS has no place for it
    if not isinstance(outcome, TryLater):
        return Sign.WELL
    # RFC 5321 §3.8: 421 closes the channel; RFC 3463 §3.5: X.4.2 bad connection.
    if outcome.reply.code == 421 or outcome.reply.enhanced == "4.4.2":
        return Sign.BUSY
    # RFC 3463 §3.8: X.7.x security or policy, in which hosts put the limits that they set for each client.
    return Sign.RELUCTANT if outcome.reply.enhanced.startswith("4.7.") else Sign.WELL


class State(enum.StrEnum):
    """For people."""

    OPEN = "open"
    #: Fewer attempts at once than allowed, since it minded.
    SLOWED = "slowed"
    #: One message is the probe.
    DOWN = "down"


@attrs.define
class Pace:
    """What is known of one destination. Times are seconds of one clock."""

    #: Attempts at once, and in a minute (0: any number), at most.
    limit: int
    rate: int = 0
    #: Attempts at once for now, not rounded.
    allowed: float = START
    running: int = 0
    #: When nobody answered first, when a message may try again, how many have tried in vain; None while it is not down.
    down_since: float | None = None
    probe_at: float = 0.0
    probes: int = 0
    #: The number of the attempt that is the probe.
    _probe: int = 0
    _count: int = 0
    _turned_away: int = 0
    #: Whether it ever had something against us.
    _minded: bool = False
    _next_start: float = 0.0

    @property
    def width(self) -> int:
        """Attempts at once, now."""
        return 1 if self.down_since is not None else max(1, min(int(self.allowed), self.limit))

    @property
    def state(self) -> State:
        """For people."""
        if self.down_since is not None:
            return State.DOWN
        return State.SLOWED if self.allowed < min(START, self.limit) else State.OPEN

    def shuts_out(self, now: float) -> bool:
        """Whether a message is not to wait here: the destination is down, and it is not time for a probe."""
        return self.down_since is not None and (self._probe != 0 or now < self.probe_at)

    def wait(self, now: float) -> float | None:
        """Seconds until one more attempt may begin; None: not before another one ends."""
        if self._probe or (self.down_since is None and self.running >= self.width):
            return None
        return max(self._next_start - now, 0.0)

    def begin(self, now: float) -> int:
        """An attempt begins: its number, for `end`."""
        self.running += 1
        self._count += 1
        if self.down_since is not None:
            self._probe = self._count
        if self.rate:
            self._next_start = max(self._next_start, now) + 60.0 / self.rate
        return self._count

    def end(self, number: int, sign: Sign, now: float, delays: Sequence[float]) -> None:
        """An attempt has ended. `delays` is the schedule, by which probes follow each other."""
        was_wide = self.running >= self.width
        self.running -= 1
        was_probe = self._probe == number
        if was_probe:
            self._probe = 0
        if self.down_since is not None:
            if sign in (Sign.WELL, Sign.RELUCTANT):
                self._revive()
            elif was_probe and sign is not Sign.NONE:
                self._stay_away(now, delays)
            return
        if sign is Sign.WELL:
            self._turned_away = 0
            if was_wide:  # more would have gone
                # One more for each that goes well; once it minded, one more for a whole round.
                step = 1.0 / max(self.allowed, 1.0) if self._minded else 1.0
                self.allowed = min(self.allowed + step, max(self.limit, 1.0))
        elif sign is Sign.GONE:
            self.down_since = now
            self._stay_away(now, delays)
        elif sign is not Sign.NONE:
            self._slow_down(sign, now, delays)

    def _slow_down(self, sign: Sign, now: float, delays: Sequence[float]) -> None:
        alone = self.width == 1
        self._minded = True
        self.allowed = max(min(self.allowed, self.limit) / 2.0, 1.0)
        self._turned_away = self._turned_away + 1 if sign is Sign.BUSY and alone else 0
        if self._turned_away >= PATIENCE:
            self.down_since = now
            self._stay_away(now, delays)

    def _stay_away(self, now: float, delays: Sequence[float]) -> None:
        self.probes += 1
        self.probe_at = now + EARLY * min(delays[min(self.probes, len(delays)) - 1], MAX_PROBE_DELAY)

    def _revive(self) -> None:
        self.down_since = None
        self.probes = self._turned_away = 0
        self.allowed = 1.0
        self._minded = True

    def probe_now(self) -> None:
        """An administrator wants it tried: the next message is a probe."""
        self.probe_at = 0.0

"""How long a session still waits for its peer."""

from __future__ import annotations

import math
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from twisted_mta.core.effects import Pace

#: Seconds between two looks at most; the shortest time that is usual.
_LOOK_EVERY = 60.0


class Patience:
    """The time that a peer has by a `Pace`. It passes only while it is the peer's turn; `over` is called at its end.

    The timer is left alone when the peer moves: it comes too early then, looks how much time is left, and goes on. To set
    it anew for each command cost as much as to parse one; and to bring one forward, in Twisted, is a search through all
    there are. So it looks now and then even where nothing is due for long.
    """

    __slots__ = ("_clock", "_count", "_doing", "_end", "_left", "_over", "_since", "_timer", "_wakes")

    def __init__(self, clock: IReactorTime, over: Callable[[], None]) -> None:
        self._clock = clock
        self._over = over
        #: When the time is over; infinite when it does not pass.
        self._end = math.inf
        self._timer: IDelayedCall | None = None
        #: When the timer looks; infinite without one.
        self._wakes = math.inf
        #: What the peer is doing, the seconds that are left for all of it, and since when they pass.
        self._doing = ""
        self._count = -1
        self._left = 0.0
        self._since: float | None = None

    def peer_turn(self, pace: Pace, count: int = 0) -> None:
        """The peer has just moved, or we are done: it is its turn. `count` tells one thing that it does from the next."""
        now = self._clock.seconds()
        left = self._left
        if count != self._count or pace.doing != self._doing:
            self._doing, self._count, left = pace.doing, count, pace.whole
        elif self._since is not None:
            left -= now - self._since
        self._since, self._left = now, left
        silence = pace.silence
        self._end = end = now + (silence if silence < left else max(0.0, left))
        if end < self._wakes:
            self._look_earlier(now)

    def our_turn(self) -> None:
        """The peer may be silent."""
        self._stand_still()
        self._end = math.inf

    def at_most(self, seconds: float) -> None:
        """The peer has to take what we sent, or to close its side. Does not count as time of what it is doing."""
        self._stand_still()
        now = self._clock.seconds()
        self._end = now + seconds
        if self._end < self._wakes:
            self._look_earlier(now)

    def stop(self) -> None:
        """The session is over. It is let go of, so that nobody has to look for what only knows each other."""
        self._over = _nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._wakes = None, math.inf

    def _stand_still(self) -> None:
        if self._since is not None:
            self._left -= self._clock.seconds() - self._since
        self._since = None

    def _look_earlier(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake(now)

    def _wake(self, now: float) -> None:
        delay = min(self._end - now, _LOOK_EVERY)
        self._wakes = now + delay
        self._timer = self._clock.callLater(delay, self._look)

    def _look(self) -> None:
        self._timer, self._wakes = None, math.inf
        now = self._clock.seconds()
        if self._end <= now:
            self._end = math.inf
            self._over()
        elif self._end < math.inf:
            self._wake(now)


def _nothing() -> None:
    pass

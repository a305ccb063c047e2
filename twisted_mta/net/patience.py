"""How long a session still waits for its peer."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from twisted_mta.core.effects import Pace


class Patience:
    """The time that a peer has by a `Pace`. It passes only while it is the peer's turn; `over` is called at its end."""

    __slots__ = ("_clock", "_doing", "_left", "_over", "_since", "_timer")

    def __init__(self, clock: IReactorTime, over: Callable[[], None]) -> None:
        self._clock = clock
        self._over = over
        self._timer: IDelayedCall | None = None
        #: What the peer is doing, the seconds that are left for all of it, and since when they pass.
        self._doing: tuple[str, int] | None = None
        self._left = 0.0
        self._since: float | None = None

    def peer_turn(self, pace: Pace) -> None:
        """The peer has just moved, or we are done: it is its turn."""
        now = self._clock.seconds()
        if self._doing != (pace.doing, pace.count):
            self._doing, self._left = (pace.doing, pace.count), pace.whole
        elif self._since is not None:
            self._left -= now - self._since
        self._since = now
        self._start(max(0.0, min(pace.silence, self._left)))

    def our_turn(self) -> None:
        """The peer may be silent."""
        self._stand_still()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def at_most(self, seconds: float) -> None:
        """The peer has to take what we sent, or to close its side. Does not count as time of what it is doing."""
        self._stand_still()
        self._start(seconds)

    def _stand_still(self) -> None:
        if self._since is not None:
            self._left -= self._clock.seconds() - self._since
        self._since = None

    def _start(self, seconds: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.reset(seconds)
        else:
            self._timer = self._clock.callLater(seconds, self._over)

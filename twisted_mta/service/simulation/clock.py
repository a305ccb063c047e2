"""A clock that jumps from one thing to do to the next."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer


@implementer(IReactorTime)
class SimulatedClock:
    """IReactorTime without waiting. A call costs O(log n), where `twisted.internet.task.Clock` sorts for each.

    With a `resolution` (seconds) the clock moves in steps of that length: what falls into one is done together, at its
    end. 0: everything is done at its very time.
    """

    def __init__(self, begin: float, resolution: float = 0.0) -> None:
        self._now = self._begin = begin
        self._resolution = resolution
        self._count = count()
        self._calls: list[tuple[float, int, DelayedCall]] = []

    def seconds(self) -> float:
        """See IReactorTime."""
        return self._now

    def callLater(
        self, delay: float, callable: Callable[..., Any], *args: object, **kw: object
    ) -> DelayedCall:
        """See IReactorTime."""
        call = DelayedCall(
            self._now + max(delay, 0.0), callable, args, kw, _forget, self._enter, self.seconds
        )
        self._enter(call)
        return call

    def getDelayedCalls(self) -> list[DelayedCall]:
        """See IReactorTime."""
        return list({id(call): call for _, _, call in self._calls if call.active()}.values())

    def _enter(self, call: DelayedCall) -> None:
        """Put a call, or one that was made earlier, where it belongs; its old entry becomes stale."""
        heapq.heappush(self._calls, (call.getTime(), next(self._count), call))

    def run_until(self, end: float) -> None:
        """Do all that is due before `end` or then, and be there."""
        while self._calls and self._calls[0][0] <= end:
            when = self._calls[0][0]
            if self._resolution:
                steps = math.ceil((when - self._begin) / self._resolution)
                when = min(self._begin + steps * self._resolution, end)
            self._now = max(self._now, when)
            self._do_due()
        self._now = max(self._now, end)

    def _do_due(self) -> None:
        while self._calls and self._calls[0][0] <= self._now:
            when, _, call = heapq.heappop(self._calls)
            if not call.active() or call.getTime() < when:
                continue  # done, or cancelled, or moved forward: it had another entry
            if call.getTime() > when:
                self._enter(call)
                continue
            call.called = 1
            call.func(*call.args, **call.kw)


def _forget(call: DelayedCall) -> None:
    """A cancelled call is passed over when its time comes."""

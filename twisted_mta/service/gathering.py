"""What is done together, since that costs less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

T = TypeVar("T")

#: So many attempts that wait are worth a batch beside one that is under way.
WORTH = 8


class Gathering(Generic[T]):
    """Attempts that are made together: those of one turn of the reactor, then those that came while they were made.

    So one that comes alone is made at once, and the batches grow with the load.
    """

    def __init__(
        self, clock: IReactorTime, limit: int, start: Callable[[list[T]], None], *, parallel: int = 1
    ) -> None:
        """`start` is given `limit` attempts at most; `ended` must be called when they are over. With `parallel` batches at a time
        one is made while others wait for the disk."""
        self._clock = clock
        self._limit = limit
        self._start = start
        self._parallel = parallel
        self._waiting: list[T] = []
        #: Batches under way.
        self._running = 0
        self._call: IDelayedCall | None = None

    def add(self, attempt: T) -> None:
        """To be made in the next batch."""
        self._waiting.append(attempt)
        if self._call is None and self._may_begin():
            # The callbacks of a whole commit come in one turn, and each may bring an attempt.
            self._call = self._clock.callLater(0, self._begin)

    def ended(self) -> None:
        """The batch is over."""
        self._running -= 1
        if self._waiting and self._call is None and self._may_begin():
            self._begin()

    def clear(self) -> list[T]:
        """Take out what waits."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        waiting, self._waiting = self._waiting, []
        return waiting

    def _may_begin(self) -> bool:
        return not self._running or (self._running < self._parallel and len(self._waiting) >= WORTH)

    def _begin(self) -> None:
        self._call = None
        batch, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
        self._running += 1
        self._start(batch)

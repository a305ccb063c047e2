"""What is done together, since that costs less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

T = TypeVar("T")


class Gathering(Generic[T]):
    """Attempts that are made together: those of one turn of the reactor, then those that came while they were made.

    So one that comes alone is made at once, and the batches grow with the load.
    """

    def __init__(self, clock: IReactorTime, limit: int, start: Callable[[list[T]], None]) -> None:
        """`start` is given `limit` attempts at most; `ended` must be called when they are over."""
        self._clock = clock
        self._limit = limit
        self._start = start
        self._waiting: list[T] = []
        self._running = False
        self._call: IDelayedCall | None = None

    def add(self, attempt: T) -> None:
        """To be made in the next batch."""
        self._waiting.append(attempt)
        if not self._running and self._call is None:
            # The callbacks of a whole commit come in one turn, and each may bring an attempt.
            self._call = self._clock.callLater(0, self._begin)

    def ended(self) -> None:
        """The batch is over."""
        self._running = False
        if self._waiting:
            self._begin()

    def clear(self) -> list[T]:
        """Take out what waits."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        waiting, self._waiting = self._waiting, []
        return waiting

    def _begin(self) -> None:
        self._call = None
        batch, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
        self._running = True
        self._start(batch)

"""So many attempts at once to one destination, the others wait their turn, the most urgent first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Lanes(Generic[T]):
    """Starts jobs, at most `limit` under one key at a time; the rest wait, the least `rank` first, then in order."""

    def __init__(
        self, limit: int, start: Callable[[T], None], rank: Callable[[T], Any] = lambda _: 0
    ) -> None:
        self.limit = limit
        self._start = start
        self._rank = rank
        self._count = count()
        self._running: dict[Hashable, int] = {}
        self._waiting: dict[Hashable, list[tuple[Any, int, T]]] = {}

    def enter(self, key: Hashable, job: T) -> None:
        """Start the job, now or when there is room. Its end must be told by `leave`."""
        running = self._running.get(key, 0)
        if running >= self.limit:
            heapq.heappush(self._waiting.setdefault(key, []), (self._rank(job), next(self._count), job))
            return
        self._running[key] = running + 1
        self._start(job)

    def leave(self, key: Hashable) -> None:
        """A job that was started has ended: the next one may start."""
        waiting = self._waiting.get(key)
        if waiting and self._running[key] <= self.limit:
            _, _, job = heapq.heappop(waiting)
            if not waiting:
                del self._waiting[key]
            self._start(job)
            return
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]

    def drain(self, key: Hashable) -> list[T]:
        """Take out the jobs that wait under this key, and return them."""
        return [job for _, _, job in sorted(self._waiting.pop(key, ()))]

    def clear(self) -> list[T]:
        """Take out the jobs that wait, and return them."""
        jobs = [job for waiting in self._waiting.values() for _, _, job in sorted(waiting)]
        self._waiting.clear()
        return jobs

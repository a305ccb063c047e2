"""Bounded thread pools: everything that may block (fsync, password hashing) runs in one of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """A pool of at most `size` threads that starts with its first job."""

    def __init__(self, reactor: IReactorFromThreads, size: int, name: str) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(minthreads=0, maxthreads=size, name=name)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `function` in a thread; its result or exception comes back in the reactor's."""
        if not self._pool.started:
            self._pool.start()
        reactor: Any = self._reactor
        return deferToThreadPool(reactor, self._pool, function, *args, **kwargs)

    def close(self) -> None:
        """Wait for the jobs under way and end the threads."""
        if self._pool.started:
            self._pool.stop()


class InlineWorkers:
    """The same surface without threads, for tests under a Clock: jobs run at once in the caller's thread."""

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `function` now."""
        result: Deferred[T] = Deferred()
        try:
            result.callback(function(*args, **kwargs))
        except Exception:  # noqa: BLE001  handed to the errback, as the real pool does
            result.errback()
        return result

    def close(self) -> None:
        """Nothing to end."""

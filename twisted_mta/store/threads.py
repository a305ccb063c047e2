"""Bounded thread pools: everything that may block (fsync, password hashing) runs in one of these."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

P = ParamSpec("P")
T = TypeVar("T")

_Job = tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Workers:
    """A pool of at most `size` threads, each of which starts when there is a job for it. `run` and `close` are for the
    reactor's thread.

    In place of Twisted's ThreadPool, which hands each job over by way of a coordinator and copies a context for it: there
    and back it took 51 us of processor time, here 30.
    """

    def __init__(self, reactor: IReactorFromThreads, size: int, name: str) -> None:
        self._reactor = reactor
        self._size = size
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        #: Jobs that wait or are under way.
        self._unfinished = 0
        self._closed = False

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `function` in a thread; its result or exception comes back in the reactor's."""
        done: Deferred[T] = Deferred()
        if self._closed:
            done.errback(RuntimeError(f"the threads of {self._name} have ended"))
            return done
        self._unfinished += 1
        if len(self._threads) < min(self._unfinished, self._size):
            name = f"{self._name}-{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._work, name=name))
            self._threads[-1].start()
        self._jobs.put((done, function, args, kwargs))
        return done

    def close(self) -> None:
        """Wait for the jobs, also those that no thread has begun, and end the threads."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        while self._threads:
            self._threads.pop().join()

    def _ended(self, done: Deferred[Any], result: Any) -> None:
        self._unfinished -= 1
        done.callback(result)  # a Failure takes the errback chain

    # --- in the threads ------------------------------------------------------------------------

    def _work(self) -> None:
        while job := self._jobs.get():
            done, function, args, kwargs = job
            try:
                result: Any = function(*args, **kwargs)
            except BaseException:  # noqa: BLE001  handed to the errback
                result = Failure()  # type: ignore[no-untyped-call]
            self._reactor.callFromThread(self._ended, done, result)
            # While it waits for the next job it must not keep what this one had, a password perhaps.
            del job, done, function, args, kwargs, result


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

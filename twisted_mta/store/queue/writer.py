"""Group commit: one thread turns whatever waits into one transaction, one fsync."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads

from twisted_mta.store.queue.tables import Operation, Tables

#: Operations in one transaction at most: what comes later should not wait for ever.
MAX_BATCH = 1000

_Waiting = tuple[Operation, Deferred[Any]]


class Writer(Protocol):
    """Where the store hands its operations in; all methods are for the reactor's thread."""

    def submit(self, operation: Operation) -> Deferred[Any]:
        """Its result once it is durable, or its failure. Operations are done in the order of submission."""
        ...

    def close(self) -> Deferred[None]:
        """Finish what was submitted, then close the tables."""
        ...


class GroupCommitWriter:
    """A thread that drains a queue and commits all of it at a time, and then completes all the callers."""

    def __init__(self, reactor: IReactorFromThreads, tables: Tables) -> None:
        self._reactor = reactor
        self._tables = tables
        #: None is the last of all.
        self._waiting: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._closed: Deferred[None] | None = None
        # A daemon: a process that ends without `close` loses nothing, its claims are taken back at the next start.
        self._thread = threading.Thread(target=self._run, name="queue-writer", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        if self._closed is not None:
            done.errback(RuntimeError("the queue is closed"))
            return done
        self._waiting.put((operation, done))
        return done

    def close(self) -> Deferred[None]:
        if self._closed is None:
            self._closed = Deferred()
            self._waiting.put(None)
        return self._closed

    # --- in the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while self._commit(self._take()):
            pass
        self._tables.close()
        assert self._closed is not None
        self._call(self._closed.callback, None)

    def _take(self) -> list[_Waiting | None]:
        """Wait for an operation; it, and those that are there by then."""
        found = [self._waiting.get()]
        found += [self._waiting.get() for _ in range(min(self._waiting.qsize(), MAX_BATCH - 1))]
        return found

    def _commit(self, found: Sequence[_Waiting | None]) -> bool:
        """Whether there is more to come."""
        batch = [each for each in found if each is not None]
        if batch:
            results = self._tables.commit([operation for operation, _ in batch])
            self._call(_complete, [done for _, done in batch], results)
        return len(batch) == len(found)

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        self._reactor.callFromThread(function, *args)


class InlineWriter:
    """The same without a thread: commits at once. For tests under a Clock, and for programs without a reactor."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._closed = False

    def submit(self, operation: Operation) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        if self._closed:
            done.errback(RuntimeError("the queue is closed"))
        else:
            _complete([done], self._tables.commit([operation]))
        return done

    def close(self) -> Deferred[None]:
        if not self._closed:
            self._closed = True
            self._tables.close()
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done


def _complete(waiting: Sequence[Deferred[Any]], results: Sequence[Any]) -> None:
    for done, result in zip(waiting, results, strict=True):
        done.callback(result)  # a Failure takes the errback chain

"""Several ways to one aim: the next is begun while the former still tries, and the first to get there wins. RFC 8305 §5."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from twisted_mta.core.values import value

T = TypeVar("T")


@value
class Result(Generic[T]):
    """How a race ended: the number of the winner and what it got (None: nobody won), and who failed before, and why."""

    winner: int | None
    prize: T | None
    failures: dict[int, Exception]


def race(
    clock: IReactorTime,
    contenders: Sequence[Callable[[], Coroutine[Deferred[Any], Any, T]]],
    stagger: float,
    discard: Callable[[T], None],
) -> Deferred[Result[T]]:
    """Start the contenders in order, each `stagger` seconds after the one before or as soon as that has failed.

    The first to succeed ends it: the others are cancelled, and `discard` gets what one of them may have had by then.
    Those neither won nor failed can be tried again. Can be cancelled.
    """
    return _Race(clock, contenders, stagger, discard).done


class _Race(Generic[T]):
    def __init__(
        self,
        clock: IReactorTime,
        contenders: Sequence[Callable[[], Coroutine[Deferred[Any], Any, T]]],
        stagger: float,
        discard: Callable[[T], None],
    ) -> None:
        self._clock = clock
        self._waiting = deque(enumerate(contenders))
        self._stagger = stagger
        self._discard = discard
        self._running: dict[int, Deferred[Any]] = {}
        self._failures: dict[int, Exception] = {}
        self._timer: IDelayedCall | None = None
        self._over = False
        self.done: Deferred[Result[T]] = Deferred(lambda _: self._stop())
        self._start_next()

    def _start_next(self) -> None:
        if not self._waiting:
            if not self._running:
                self._end(None, None)
            return
        number, contender = self._waiting.popleft()
        if self._waiting:
            self._timer = self._clock.callLater(self._stagger, self._start_next)
        running = Deferred.fromCoroutine(contender())
        self._running[number] = running
        running.addCallbacks(self._succeeded, self._failed, callbackArgs=(number,), errbackArgs=(number,))

    def _succeeded(self, prize: T, number: int) -> None:
        self._running.pop(number, None)
        if self._over:
            self._discard(prize)
        else:
            self._end(number, prize)

    def _failed(self, failure: Failure, number: int) -> None:
        self._running.pop(number, None)
        if self._over:
            return
        assert isinstance(failure.value, Exception)
        self._failures[number] = failure.value
        self._rest_timer()
        self._start_next()

    def _end(self, winner: int | None, prize: T | None) -> None:
        self._stop()
        self.done.callback(Result(winner, prize, self._failures))

    def _stop(self) -> None:
        self._over = True
        self._rest_timer()
        for running in list(self._running.values()):
            running.cancel()

    def _rest_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

"""Tells the sessions of a mailbox that something happened: at once what this process did, by polling what others did."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure


class Watch:
    """The watchers of one mailbox. The disk is asked only while there are any."""

    def __init__(self, clock: IReactorTime, interval: float, stale: Callable[[], Deferred[bool]]) -> None:
        """`stale` is asked every `interval` seconds."""
        self._clock = clock
        self._interval = interval
        self._stale = stale
        self._watchers: list[tuple[object, Callable[[], None]]] = []
        self._timer: IDelayedCall | None = None
        self._asking = False

    def add(self, owner: object, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` from now on; returns what stops it."""
        watcher = (owner, changed)
        self._watchers.append(watcher)
        self._arm()

        def stop() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)
                self._rest()

        return stop

    def forget(self, owner: object) -> None:
        """Drop the watchers of one session."""
        self._watchers = [watcher for watcher in self._watchers if watcher[0] is not owner]
        self._rest()

    def tell(self, by: object = None) -> None:
        """Tell everybody but `by`, whose own doing it was."""
        for watcher in list(self._watchers):
            if watcher[0] is not by and watcher in self._watchers:
                watcher[1]()

    def _arm(self) -> None:
        if self._watchers and self._timer is None and not self._asking:
            self._timer = self._clock.callLater(self._interval, self._poll)

    def _rest(self) -> None:
        if not self._watchers and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _poll(self) -> None:
        self._timer = None
        self._asking = True

        def answered(stale: bool | Failure) -> None:
            self._asking = False
            self._arm()
            if stale:  # a Failure too: the look that follows will say what is wrong
                self.tell()

        self._stale().addBoth(answered)

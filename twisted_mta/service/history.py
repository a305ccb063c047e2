"""Forgets the history of messages that has become too old, a little at a time."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twisted_mta.interfaces import IQueueHistory

#: Seconds between two looks, and between two steps while there is something to do.
INTERVAL = 60.0
PAUSE = 0.5


class HistoryKeeper:
    """Calls `IQueueHistory.tidy` from `start` to `stop`."""

    log = Logger()

    def __init__(self, history: IQueueHistory, clock: IReactorTime) -> None:
        self._history = history
        self._clock = clock
        self._running: Deferred[None] | None = None

    def start(self) -> None:
        """Look now and then, for the first time in a minute."""
        self._running = Deferred.fromCoroutine(self._run())

    def stop(self) -> None:
        """No more."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    async def _run(self) -> None:
        more = False
        try:
            while True:
                await deferLater(self._clock, PAUSE if more else INTERVAL)
                more = await self._step()
        except CancelledError:
            return

    async def _step(self) -> bool:
        try:
            return await self._history.tidy(self._clock.seconds())
        except CancelledError:
            raise
        except Exception:  # noqa: BLE001  a full disk, say; the next look may find it better
            self.log.failure("can't tidy up the history of the queue")
            return False

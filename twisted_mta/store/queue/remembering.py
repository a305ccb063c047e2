"""The history of mail that never was in the queue: nobody waits for it, so it is written a second's worth at a time."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_mta.store.queue.history import Passed
from twisted_mta.store.queue.writer import Writer

#: Seconds until it is written.
DELAY = 1.0
#: Messages that are written at a time: whoever waits for a commit meanwhile waits some milliseconds longer.
MAX_WAITING = 250


class Remembering:
    """Gathers what is to be written. A crash loses what has gathered, but for the lines of the log."""

    log = Logger()

    def __init__(self, writer: Writer, clock: IReactorTime) -> None:
        self._writer = writer
        self._clock = clock
        self._waiting: list[Passed] = []
        self._timer: IDelayedCall | None = None

    def note(self, passed: Passed) -> None:
        """To be written."""
        self._waiting.append(passed)
        if len(self._waiting) >= MAX_WAITING:
            self.write()
        elif self._timer is None:
            self._timer = self._clock.callLater(DELAY, self._due)

    def _due(self) -> None:
        self._timer = None
        self.write()

    def write(self) -> Deferred[None]:
        """Write what waits; fires when it is there, or when that has failed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        done: Deferred[None] = Deferred()
        if waiting:
            writing = self._writer.submit(lambda tables: tables.history.passed(waiting))
            writing.addErrback(self._failed, len(waiting))
            writing.addBoth(done.callback)
        else:
            done.callback(None)
        return done

    def _failed(self, failure: Failure, count: int) -> None:
        # The mail itself is in its mailboxes.
        self.log.failure("can't write the history of {count} delivered messages", failure, count=count)

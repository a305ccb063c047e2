"""Keeps idle SMTP sessions for a while, for the next message to the same destination."""

from __future__ import annotations

from collections.abc import Hashable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from twisted_mta.net.smtp_client import SmtpConnection

#: Idle sessions kept in all.
MAX_IDLE = 200
#: Seconds for the sessions to say goodbye when the server stops.
GRACE = 5.0


class ConnectionCache:
    """All sessions that are open, those idle by what they are good for (`line`: anything that can be a key)."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        #: Seconds; 0 keeps none.
        self.keep_open = 0.0
        self._idle: dict[Hashable, list[SmtpConnection]] = {}
        #: The line of an idle session, and when it ends; the next to end first.
        self._lines: dict[SmtpConnection, tuple[Hashable, float]] = {}
        #: For the first of them, or for one that was used meanwhile.
        self._timer: IDelayedCall | None = None
        self._open: set[SmtpConnection] = set()
        self._empty: Deferred[None] | None = None
        self._closing = False

    def opened(self, connection: SmtpConnection) -> None:
        """A new session exists: it is known here until its end."""
        self._open.add(connection)
        connection.on_end = self._ended

    def take(self, line: Hashable) -> SmtpConnection | None:
        """An idle session, the one used last; None if there is none."""
        waiting = self._idle.get(line, [])
        while waiting:
            connection = waiting[-1]
            self._forget(connection)
            if connection.idle:
                return connection
        return None

    def give_back(self, line: Hashable, connection: SmtpConnection, max_messages: int) -> None:
        """A session that is not needed now: it is kept, or told to quit, after so many messages at least."""
        full = connection.transactions >= max_messages or len(self._lines) >= MAX_IDLE
        if self._closing or full or self.keep_open <= 0 or not connection.idle:
            connection.quit()
            return
        self._idle.setdefault(line, []).append(connection)
        self._lines[connection] = (line, self._clock.seconds() + self.keep_open)
        if self._timer is None:
            self._timer = self._clock.callLater(self.keep_open, self._expire_due)

    def _expire_due(self) -> None:
        """One timer for all: most sessions are used again long before they end, and a timer for each would cost more than
        that use."""
        self._timer = None
        now = self._clock.seconds()
        for connection, (_, until) in list(self._lines.items()):
            if until > now:
                self._timer = self._clock.callLater(until - now, self._expire_due)
                return
            self._expire(connection)

    def _expire(self, connection: SmtpConnection) -> None:
        self._forget(connection)
        connection.quit()

    def _forget(self, connection: SmtpConnection) -> None:
        """It is no longer idle."""
        if connection not in self._lines:
            return
        line, _ = self._lines.pop(connection)
        waiting = self._idle[line]
        waiting.remove(connection)
        if not waiting:
            del self._idle[line]

    def _ended(self, connection: SmtpConnection) -> None:
        self._forget(connection)
        self._open.discard(connection)
        if not self._open and self._empty is not None:
            empty, self._empty = self._empty, None
            empty.callback(None)

    def quit_idle(self) -> None:
        """End all idle sessions (the routes may have changed)."""
        for connection in list(self._lines):
            self._expire(connection)
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    async def close(self) -> None:
        """End all sessions: idle ones with QUIT, those at work at once. None is open afterwards."""
        self._closing = True
        self._stop_timer()
        for connection in list(self._open):
            self._forget(connection)
            connection.quit()
        if not self._open:
            return
        empty: Deferred[None] = Deferred()
        self._empty = empty
        force = self._clock.callLater(GRACE, self._abort_all)
        await empty
        if force.active():
            force.cancel()

    def _abort_all(self) -> None:
        for connection in list(self._open):
            connection.abort()

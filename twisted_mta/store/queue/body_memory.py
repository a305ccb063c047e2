"""How much of the bodies on their way in is in memory, all of them together, and what happens when that is too much."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred


class Holder(Protocol):
    """A body that has octets in memory which could be on the disk."""

    def spill(self) -> None:
        """Begin to write them. It has withdrawn, and they are `leaving`, when this returns."""
        ...


class BodyMemory:
    """What the bodies on their way in have in memory.

    Over the limit those are brought to the disk that have waited longest (a client that sends fast is done soon, one
    that is slow has time for the disk), and whoever has brought more waits until it is there: `room`. So the limit is
    exceeded by no more than what each peer has sent before it was held back, one read of its socket.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Octets that wait for more to come.
        self.held = 0
        #: Octets that leave without anybody's doing: they are being written, or committed, or looked at.
        self.leaving = 0
        self._holders: dict[Holder, None] = {}
        self._waiting: list[Deferred[None]] = []

    @property
    def limit(self) -> int:
        """Octets."""
        return self._limit

    def reconfigure(self, limit: int) -> None:
        """Keep to another limit from now on."""
        self._limit = limit
        self._settle()

    @property
    def used(self) -> int:
        """Octets in memory."""
        return self.held + self.leaving

    def room(self) -> Deferred[None] | None:
        """None, or what to wait for before more is brought."""
        self._settle()
        if self.used <= self._limit:
            return None
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    # --- the bodies' side ----------------------------------------------------------------------

    def offer(self, holder: Holder) -> None:
        """This one could spill."""
        self._holders.setdefault(holder)

    def withdraw(self, holder: Holder) -> None:
        """It can't, or has nothing to spill, for now."""
        self._holders.pop(holder, None)

    def take(self, octets: int) -> None:
        """So much more is held."""
        self.held += octets

    def leave(self, octets: int) -> None:
        """So much of what was held leaves."""
        self.held -= octets
        self.leaving += octets

    def look(self, octets: int) -> None:
        """So much was read again, or will be, and leaves in a while; below 0: it was less."""
        self.leaving += octets
        self._settle()

    def give_back(self, octets: int) -> None:
        """So much of what left is gone."""
        self.leaving -= octets
        self._settle()

    def _settle(self) -> None:
        while self.held > self._limit and self._holders:
            next(iter(self._holders)).spill()
        if self._waiting and self.used <= self._limit:
            waiting, self._waiting = self._waiting, []
            for done in waiting:
                done.callback(None)

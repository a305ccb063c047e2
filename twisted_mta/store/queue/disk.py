"""Room on the disk of the queue: mail is refused before there is none."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twisted_mta.core.values import value
from twisted_mta.interfaces import StoreFull

#: Seconds for which an answer about the free space holds.
_LIFETIME = 1.0
#: A body takes its room in the log and in the file.
_FACTOR = 2


@value
class DiskStatus:
    """What the disk is like; all octets. `refusal` says why no mail is taken, "" where it is."""

    free: int
    reserve: int
    refusal: str


class DiskRoom:
    """Keeps `reserve` octets of the disk that `directory` is on free of new mail; 0 turns it off.

    The disk is asked once a second, and whenever what came since then may have used up what there was.
    """

    log = Logger()

    def __init__(self, directory: Path, clock: IReactorTime, reserve: int) -> None:
        self._directory = directory
        self._clock = clock
        self._reserve = reserve
        self._looked = float("-inf")
        self._free = 0
        #: Octets that may still come, as far as we know.
        self._left = 0
        self._refusal = ""

    def reconfigure(self, reserve: int) -> None:
        """Keep so many octets free from now on."""
        self._reserve = reserve
        self._looked = float("-inf")

    def use(self, octets: int) -> None:
        """So many octets come. Raises StoreFull when less than the reserve is free, or would be with them."""
        self._left -= _FACTOR * octets
        self._judge(octets)

    def check(self, octets: int) -> None:
        """Raises StoreFull when so many octets, of which none has come, would not fit; nothing changes by asking."""
        self._judge(0)
        if self._reserve and octets > self._left:
            self._look(0)  # what was counted since the last time was a guess
            self._raise()
            if octets > self._left:
                raise StoreFull(
                    f"{self._free} octets are free on the disk of the queue, too few for {octets} more"
                )

    def status(self) -> DiskStatus:
        """What there is just now."""
        self._look(0)
        return DiskStatus(self._free, self._reserve, self._refusal)

    def _judge(self, octets: int) -> None:
        if not self._reserve:
            return
        stale = not 0 <= self._clock.seconds() - self._looked < _LIFETIME
        if stale or (self._left < 0 and not self._refusal):
            self._look(octets)
        self._raise()

    def _raise(self) -> None:
        if self._refusal:
            raise StoreFull(self._refusal)

    def _look(self, octets: int) -> None:
        before = self._refusal
        self._looked = self._clock.seconds()
        self._refusal = self._ask(octets)
        if self._refusal and not before:
            self.log.error("mail is refused for lack of room: {why}", why=self._refusal)
        elif before and not self._refusal:
            self.log.info("there is room for mail again, {free} octets are free", free=self._free)

    def _ask(self, octets: int) -> str:
        try:
            disk = os.statvfs(self._directory)
        except OSError as error:
            return f"can't tell the free space: {error}"
        self._free = disk.f_bavail * disk.f_frsize
        self._left = self._free - self._reserve - octets
        if not self._reserve or self._left >= 0:
            return ""
        return (
            f"{self._free} octets are free on the disk of the queue, of which {self._reserve} must stay free"
        )

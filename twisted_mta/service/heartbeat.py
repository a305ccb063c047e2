"""Whether a worker hangs. A timer of its reactor says now and then that this turns; the parent counts how long it heard nothing.

Only the reactor is watched: threads that wait for a disk are the business of the deadlines of whoever waits for them.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twisted_mta.service.channel import Channel

#: Seconds between two beats of a worker, and between two looks of the parent.
BEAT = 5.0
#: Seconds without a beat after which a worker counts as hung. A busy machine may take its time.
SILENCE = 60.0
#: Seconds that a start may take. It may have to bring a long queue up to date, and one that is cut off begins anew.
START = 600.0
#: Seconds of silence that an administrator is told of.
NOTEWORTHY = 20.0


def every_beat(act: Any, clock: Any) -> LoopingCall:
    """Call `act` every BEAT seconds, from now on."""
    loop = LoopingCall(act)
    loop.clock = clock
    done = loop.start(BEAT)
    done.addErrback(lambda failure: Logger().failure("workers are not watched any more", failure))
    return loop


def beat(channel: Channel, clock: Any) -> LoopingCall:
    """A worker's end: tell the parent from now on that the reactor turns."""
    return every_beat(lambda: channel.tell("alive"), clock)


class Silence:
    """The parent's end: for how long one process has not been heard.

    It is counted in looks of the parent, not by the clock: while the machine sleeps, or the parent itself can't run, nobody
    is heard and no time passes here. A timer that is late by an hour makes one look.
    """

    def __init__(self) -> None:
        self._looks = 0
        self._limit = START

    @property
    def seconds(self) -> float:
        """How long it is at least: the first look may have come at once."""
        return max(self._looks - 1, 0) * BEAT

    def begin(self) -> None:
        """A process was started."""
        self._looks = 0
        self._limit = START

    def end(self) -> None:
        """It is up, or was heard again."""
        self._looks = 0
        self._limit = SILENCE

    def look(self) -> bool:
        """One more look; whether that is enough."""
        self._looks += 1
        return self.seconds >= self._limit

"""Files that are taken up when they change, without a reload: one look at all of them every few seconds.

What is broken leaves in force what was there, and is told in the log once and in `mta status` as long as it lasts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twisted_mta.store.stamps import Stamps, look_at
from twisted_mta.store.threads import InlineWorkers, Workers

#: Seconds between looks.
INTERVAL = 2.0
#: Problems of one change that are told.
MAX_TOLD = 10


class Unusable(Exception):
    """Files can't be used; each text names its file and says why."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@attrs.define(eq=False)
class Watched:
    """Files that are read together."""

    #: For people: "the certificates".
    what: str
    #: How the files looked before what is in force was read.
    in_force: Callable[[], Stamps]
    #: Reads them and puts them in force, at once and as a whole; what of it was left as it was, and why. Raises Unusable or
    #: OSError, and then nothing has changed.
    read: Callable[[], Awaitable[Sequence[str]]]
    #: Why they are not, or not all, in force as they are now.
    problems: tuple[str, ...] = attrs.field(default=(), init=False)
    #: How they looked when that was found, and how at the last look.
    bad: Stamps | None = attrs.field(default=None, init=False)
    seen: Stamps | None = attrs.field(default=None, init=False)


class FileWatch:
    """Looks at all that were added."""

    log = Logger()

    def __init__(self, workers: Workers | InlineWorkers, clock: Any) -> None:
        self._workers = workers
        self._watched: list[Watched] = []
        self._lock = DeferredLock()
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock
        #: Why the last reload changed nothing.
        self.refused: Sequence[str] = ()

    def add(self, *watched: Watched) -> None:
        """Look at these, too."""
        self._watched += watched

    def start(self) -> None:
        """Begin to look."""
        self._loop.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Stop looking."""
        if self._loop.running:
            self._loop.stop()

    def problems(self) -> list[str]:
        """What is not in force as it is in the files, for an administrator."""
        return [*self.refused, *(problem for watched in self._watched for problem in watched.problems)]

    async def refresh(self, only: Watched | None = None) -> None:
        """Take up now what has changed: whoever changed it says that it is complete. `only`: nothing else is looked at."""
        await self._look_at_all(self._watched if only is None else [only], at_once=True)

    def forget(self) -> None:
        """Everything was read by other means (a reload), whatever was wrong with it before."""
        self.refused = ()
        for watched in self._watched:
            watched.problems, watched.bad, watched.seen = (), None, None

    def _look(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._look_at_all(self._watched, at_once=False))

    async def _look_at_all(self, these: Sequence[Watched], *, at_once: bool) -> None:
        await self._lock.acquire()
        try:
            for watched in these:
                await self._look_at(watched, at_once)
        finally:
            self._lock.release()

    async def _look_at(self, watched: Watched, at_once: bool) -> None:
        stamps = await self._workers.run(look_at, list(watched.in_force()))
        if stamps == watched.bad:
            return
        if stamps == watched.in_force():
            watched.problems, watched.bad, watched.seen = (), None, None
        elif at_once or stamps == watched.seen:
            await self._read(watched, stamps)
        else:
            # Whoever writes them may not have come to the end, or to the second of two: wait until they rest.
            watched.seen = stamps

    async def _read(self, watched: Watched, stamps: Stamps) -> None:
        watched.seen = None
        try:
            problems = tuple(await watched.read())
            stamps = watched.in_force()  # perhaps of other files than before
        except Unusable as error:
            problems = error.problems
        except OSError as error:
            problems = (str(error),)
        except Exception:  # noqa: BLE001  a bug: the other files are looked at all the same, and these when they change
            self.log.failure("{what} could not be read because of a bug", what=watched.what)
            problems = ("an internal error: see the log",)
        kept = listed(f"{watched.what} stay as they were", problems)
        watched.problems, watched.bad = kept, stamps if kept else None
        for text in kept:
            self.log.error("{text}", text=text)
        if not kept:
            self.log.info("{what} were read again", what=watched.what)


def listed(what: str, problems: Sequence[str]) -> tuple[str, ...]:
    """The problems as an administrator sees them, each behind what they have led to; of many the first."""
    shown = tuple(f"{what}: {problem}" for problem in problems[:MAX_TOLD])
    more = len(problems) - MAX_TOLD
    return (*shown, f"and {more} more") if more > 0 else shown

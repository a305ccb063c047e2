"""Whose turn it is at each destination: so many attempts at once and in a minute, the most urgent first, and where nobody
answers one message in place of all. What is here may be lost at any time."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import count, islice
from typing import Any, Generic, Protocol, TypeVar

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from twisted_mta.core.pace import Pace, Sign, State
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value

#: Destinations that are remembered while nothing goes on there.
MAX_KNOWN = 10_000
#: Recipients put off that a destination remembers, to let them come as soon as it can be reached. More come by themselves.
MAX_PARKED = 10_000
#: How many of them come at a time.
CHUNK = 100
#: Seconds until the next ones come although the former have not shown up (they were held, or deleted).
COMING = 5.0
#: What was put off comes back spread over so many seconds.
SPREAD = 30.0
#: And at a destination that is down over so many for each that is remembered, up to a limit: to read a million
#: recipients at each probe, and put them off again, would keep the server busy, and one of them is enough.
SPREAD_EACH = 5.0
MAX_SPREAD = 14400.0
#: Seconds for which messages are put off while a probe is under way: at its end they come at once, or go for longer.
SETTLE = 60.0
#: Seconds that an attempt may wait before it has to make room for other destinations, and how long it then goes.
SLOW = 10.0
AWAY = 300.0
#: Seconds for which a destination that had to make room gets no more than its share.
CROWDED = 60.0


class Paced(Protocol):
    """An attempt to be made."""

    @property
    def rows(self) -> Sequence[int]:
        """The recipients' rows in the queue."""
        ...


J = TypeVar("J", bound=Paced)


@value
class Limits:
    """What the configuration says of a destination: attempts at once and in a minute; the schedule, for probes."""

    concurrency: int
    rate: int = 0
    schedule: tuple[float, ...] = (1800.0,)


@attrs.define(eq=False)
class _Place(Generic[J]):
    """One destination."""

    key: Hashable
    name: str
    pace: Pace
    delays: tuple[float, ...]
    #: A heap of (rank, number, waiting since, job).
    waiting: list[tuple[Any, int, float, J]] = attrs.field(factory=list)
    #: The jobs under way, with their numbers in `pace`.
    running: dict[J, int] = attrs.field(factory=dict)
    #: Rows put off, in order; and those of them that were called back.
    parked: dict[int, None] = attrs.field(factory=dict)
    coming: set[int] = attrs.field(factory=set)
    called: float = 0.0
    #: How many may wait, until then.
    share: int = 0
    crowded_until: float = 0.0
    timer: IDelayedCall | None = None
    advancing: bool = False
    reply: Reply | None = None
    heard: float = 0.0

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running and not self.parked


class Pacing(Generic[J]):
    """Starts attempts. `enter` takes one, which is started now or later, or put off; `leave` tells its end."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        *,
        start: Callable[[J], None],
        put_off: Callable[[J, float, Reply | None], None],
        call_back: Callable[[Sequence[int]], None],
        rank: Callable[[J], Any],
        random: Callable[[], float],
    ) -> None:
        """`put_off` gives an attempt back to the queue until a time, with the reason (None: others must have their turn);
        `call_back` makes rows due that were put off. The least `rank` goes first. `random` gives 0 <= x < 1."""
        self._clock = clock
        self._start = start
        self._put_off = put_off
        self._call_back = call_back
        self._rank = rank
        self._random = random
        self._count = count()
        self._places: OrderedDict[Hashable, _Place[J]] = OrderedDict()

    def enter(self, key: Hashable, name: str, limits: Limits, job: J) -> None:
        """An attempt for a destination; `name` is what people call it. Its end must be told by `leave` once it starts."""
        now = self._clock.seconds()
        place = self._place(key, name)
        place.pace.limit, place.pace.rate, place.delays = limits.concurrency, limits.rate, limits.schedule
        for row in job.rows:
            place.parked.pop(row, None)
            place.coming.discard(row)
        if place.pace.shuts_out(now):
            self._park(place, [job])
            return
        if now < place.crowded_until and len(place.waiting) >= place.share:
            self._send_away(place, [job])
            return
        heapq.heappush(place.waiting, (self._rank(job), next(self._count), now, job))
        self._advance(place)

    def leave(self, key: Hashable, job: J, sign: Sign, reply: Reply | None = None) -> None:
        """A started attempt has ended, with a reply that says how."""
        place = self._places[key]
        now = self._clock.seconds()
        before = place.pace.state
        place.pace.end(place.running.pop(job), sign, now, place.delays)
        if sign is not Sign.NONE:
            place.reply, place.heard = reply, now
        self._tell(place, before, now)
        if place.pace.state is State.DOWN:
            if sign in (Sign.GONE, Sign.BUSY):  # it waits for the same as the others
                self._remember(place, job.rows)
            self._park(place, self._drain(place))
        else:
            self._advance(place)
            self._fetch(place)

    def probe_now(self) -> None:
        """Whatever comes next for a destination that is down is tried: an administrator wants it, or the network changed."""
        for place in self._places.values():
            place.pace.probe_now()

    def relieve(self, room: int) -> None:
        """There is no room for other destinations: those that are slow keep their share of `room`, and put off the rest."""
        now = self._clock.seconds()
        crowded = [place for place in self._places.values() if place.waiting]
        share = max(room // (2 * len(crowded)), 1) if crowded else 0
        for place in crowded:
            if len(place.waiting) <= share or now - min(since for _, _, since, _ in place.waiting) < SLOW:
                continue
            keep, rest = heapq.nsmallest(share, place.waiting), self._drain(place)[share:]
            place.waiting = keep  # in order, which a heap may be
            place.share, place.crowded_until = share, now + CROWDED
            self._advance(place)
            self._send_away(place, rest)

    def clear(self) -> list[J]:
        """Take out the jobs that wait, and start no more."""
        jobs: list[J] = []
        for place in self._places.values():
            jobs += self._drain(place)
        return jobs

    def status(self) -> list[dict[str, Any]]:
        """The destinations for an administrator, those with most to do first. Times are Unix seconds, 0.0 for none."""
        places = sorted(
            self._places.values(), key=lambda place: (-len(place.waiting) - len(place.parked), place.name)
        )
        return [_status(place) for place in places]

    def standing(self, key: Hashable) -> dict[str, Any] | None:
        """One of these; None where nothing is known of it."""
        place = self._places.get(key)
        return None if place is None else _status(place)

    def shut(self, key: Hashable) -> Reply | None:
        """The reply with which an attempt that came now would be put off; None if it would be made."""
        place = self._places.get(key)
        return _told(place) if place is not None and place.pace.shuts_out(self._clock.seconds()) else None

    # --- one destination -------------------------------------------------------------------------

    def _place(self, key: Hashable, name: str) -> _Place[J]:
        place = self._places.get(key)
        if place is None:
            for old, known in list(islice(self._places.items(), 2 if len(self._places) >= MAX_KNOWN else 0)):
                if known.idle:
                    del self._places[old]
            place = self._places[key] = _Place(key, name, Pace(1), ())
        self._places.move_to_end(key)
        return place

    def _advance(self, place: _Place[J]) -> None:
        """Start what may start."""
        if place.advancing:  # a job that ended at once: the loop below goes on
            return
        place.advancing = True
        try:
            while place.waiting and self._may_start(place):
                _, _, _, job = heapq.heappop(place.waiting)
                place.running[job] = place.pace.begin(self._clock.seconds())
                self._start(job)
        finally:
            place.advancing = False

    def _may_start(self, place: _Place[J]) -> bool:
        """Whether the next attempt may start now; where it is only a matter of time, it will be looked at again then."""
        wait = place.pace.wait(self._clock.seconds())
        if wait is not None and wait > 0 and (place.timer is None or not place.timer.active()):
            place.timer = self._clock.callLater(wait, self._advance, place)
        return wait is not None and wait <= 0

    def _drain(self, place: _Place[J]) -> list[J]:
        jobs = [job for _, _, _, job in sorted(place.waiting, key=lambda entry: entry[:2])]
        place.waiting.clear()
        if place.timer is not None and place.timer.active():
            place.timer.cancel()
        return jobs

    def _park(self, place: _Place[J], jobs: Iterable[J]) -> None:
        """The destination is down: these are not tried before it is time for a probe."""
        now = self._clock.seconds()
        told = _told(place)
        until = place.pace.probe_at if place.pace.probe_at > now else now + SETTLE
        for job in jobs:
            self._remember(place, job.rows)
            spread = min(max(SPREAD, SPREAD_EACH * len(place.parked)), MAX_SPREAD)
            self._put_off(job, until + spread * self._random(), told)

    def _send_away(self, place: _Place[J], jobs: Iterable[J]) -> None:
        """Others must have their turn; these come back as there is room."""
        now = self._clock.seconds()
        for job in jobs:
            self._remember(place, job.rows)
            self._put_off(job, now + AWAY + SPREAD * self._random(), None)

    def _remember(self, place: _Place[J], rows: Iterable[int]) -> None:
        for row in islice(rows, max(MAX_PARKED - len(place.parked), 0)):
            place.parked[row] = None

    def _fetch(self, place: _Place[J]) -> None:
        """Call back what was put off, as there is room for it."""
        now = self._clock.seconds()
        if place.coming and now - place.called < COMING:
            return
        if place.parked and len(place.waiting) <= place.pace.width:
            rows = list(islice(place.parked, CHUNK))
            for row in rows:
                del place.parked[row]
            place.coming, place.called = set(rows), now
            self._call_back(rows)

    def _tell(self, place: _Place[J], before: State, now: float) -> None:
        pace = place.pace
        if pace.state is before:
            return
        if pace.state is State.DOWN:
            self.log.warn(
                "{destination} is out of reach: one message tries again in {next_in:.0f} s, the others wait: {reply}",
                destination=place.name,
                next_in=pace.probe_at - now,
                reply=str(place.reply),
            )
        elif before is State.DOWN:
            self.log.info(
                "{destination} can be reached again; {waiting} recipients were put off",
                destination=place.name,
                waiting=len(place.parked),
            )
        elif pace.state is State.SLOWED:
            self.log.info(
                "{destination} gets fewer connections at once: {reply}",
                destination=place.name,
                reply=str(place.reply),
            )


def _told(place: _Place[Any]) -> Reply:
    """Why what comes for a destination that is down is not tried."""
    reply = place.reply or Reply(451, "4.4.1", "")
    why = "is out of reach" if reply.code != 421 else "turns us away"
    return Reply(reply.code, reply.enhanced, f"not tried, since {place.name} {why}: {reply.text}")


def _status(place: _Place[Any]) -> dict[str, Any]:
    return {
        "destination": place.name,
        "state": str(place.pace.state),
        "running": len(place.running),
        "waiting": len(place.waiting),
        "put_off": len(place.parked),
        "concurrency": place.pace.width,
        "limit": place.pace.limit,
        "rate": place.pace.rate,
        "down_since": place.pace.down_since or 0.0,
        "next_probe": place.pace.probe_at if place.pace.state is State.DOWN else 0.0,
        "last_reply": str(place.reply) if place.reply is not None else "",
        "last_heard": place.heard,
    }

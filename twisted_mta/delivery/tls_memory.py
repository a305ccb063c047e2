"""What is remembered of others' TLS, for the reactor's thread: `store.tls_policies` behind a worker."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from twisted_mta.core.tls_policy.cache import StsEntry
from twisted_mta.core.tls_policy.seen import Seen, Sighting
from twisted_mta.core.tls_report import PolicyCount, Session
from twisted_mta.store.threads import InlineWorkers, Workers
from twisted_mta.store.tls_policies import TlsFile

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds until a note is written: what a crash may forget of sightings and counts.
INTERVAL = 5.0
#: Sightings, and counted sessions, that wait for a write; more are dropped, with a word in the log.
MAX_WAITING = 10_000


class TlsMemory:
    """Takes note at once and writes a little later."""

    log = Logger()

    def __init__(self, file: TlsFile, workers: Workers | InlineWorkers, clock: Any) -> None:
        """`workers` has one thread, and this for its only user."""
        self._file = file
        self._workers = workers
        self._clock = clock
        self._sightings: list[Sighting] = []
        self._sessions: list[Session] = []
        self._timer: IDelayedCall | None = None
        self._writing: Deferred[None] | None = None

    async def stop(self) -> None:
        """Write what is left and close the file."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._writing is not None:
            await self._writing
        await self._save()
        await self._workers.run(self._file.close)
        self._workers.close()

    def seconds(self) -> float:
        """The Unix time."""
        now: float = self._clock.seconds()
        return now

    # --- policies --------------------------------------------------------------------------------

    async def policy(self, domain: str) -> StsEntry:
        """What is known of a domain's MTA-STS policy: an empty entry if nothing is."""
        nothing = StsEntry(domain=domain)
        return await self._tried(nothing, self._file.policy, domain) or nothing

    async def policies(self) -> Sequence[StsEntry]:
        """Those of all domains."""
        return await self._tried((), self._file.policies)

    async def save_policy(self, entry: StsEntry) -> None:
        """Returns when it is on the disk (or could not be written, which is logged)."""
        await self._tried(None, self._file.save_policy, entry)

    async def forget(self) -> None:
        """Remove what is of no use any more."""
        await self._tried(None, self._file.forget, self.seconds())

    # --- sightings and counts --------------------------------------------------------------------

    def see(self, sighting: Sighting) -> None:
        """Note what a session was like."""
        if len(self._sightings) < MAX_WAITING:
            self._sightings.append(sighting)
        self._arm()

    def count(self, session: Session) -> None:
        """Count a session for the reports."""
        if len(self._sessions) < MAX_WAITING:
            self._sessions.append(session)
        self._arm()

    async def sightings(self, limit: int) -> Sequence[Seen]:
        """The domains seen last, the latest first."""
        await self._save()
        return await self._tried((), self._file.sightings, limit)

    async def reportable(self, before: int) -> Sequence[tuple[int, str]]:
        """(day, domain) with counts of days before `before`, the oldest first."""
        await self._save()
        return await self._tried((), self._file.reportable, before)

    async def counts(self, day: int, domain: str) -> tuple[PolicyCount, ...]:
        """What was counted for a domain on a day."""
        return await self._tried((), self._file.counts, day, domain)

    async def reported(self, day: int, domain: str) -> None:
        """Forget the counts of a domain and a day."""
        await self._tried(None, self._file.reported, day, domain)

    def _arm(self) -> None:
        if self._timer is None or not self._timer.active():
            self._timer = self._clock.callLater(INTERVAL, self._write)

    def _write(self) -> None:
        self._writing = Deferred.fromCoroutine(self._save())

    async def _save(self) -> None:
        sightings, self._sightings = self._sightings, []
        sessions, self._sessions = self._sessions, []
        if len(sightings) == MAX_WAITING or len(sessions) == MAX_WAITING:
            self.log.warn("more sessions than could be noted: some are missing in `mta tls` and in reports")
        if sightings:
            for fall in await self._tried((), self._file.see, sightings):
                self.log.warn(
                    "{domain}: {host} had TLS before, now mail goes to it in plaintext: {problem}",
                    event="tls-lost",
                    domain=fall.domain,
                    host=fall.host,
                    problem=fall.problem or "it does not offer TLS",
                )
        if sessions:
            await self._tried(None, self._file.count, sessions)

    async def _tried(self, otherwise: T, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Mail does not stop because this file can't be used: a policy can be fetched anew."""
        try:
            return await self._workers.run(function, *args, **kwargs)
        except (sqlite3.Error, OSError) as error:
            self.log.error("what is known of others' TLS can't be read or written: {error}", error=error)
            return otherwise

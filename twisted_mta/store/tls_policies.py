"""What is known of others' TLS, on disk: MTA-STS policies, what the last sessions were like, and counts for reports.

One SQLite file of its own. Everything here blocks; one call at a time, from any thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from twisted_mta.core.tls_policy.cache import StsEntry
from twisted_mta.core.tls_policy.seen import Seen, Sighting, after, is_fall
from twisted_mta.core.tls_policy.sts import PolicyError, StsPolicy, parse_policy
from twisted_mta.core.tls_report import MAX_CODE, Applied, FailureCount, PolicyCount, Session
from twisted_mta.store.faults import fault
from twisted_mta.store.side_file import SideFile
from twisted_mta.store.sqlite import first_row

#: PRAGMA user_version of a file that this code writes.
VERSION = 1
#: Different failures of one domain on one day that are counted each by itself.
MAX_DETAILS = 200
#: Seconds after which a domain that got no mail is forgotten.
FORGET = 180 * 86400.0

_CREATE = (
    """
    CREATE TABLE IF NOT EXISTS sts (
        domain TEXT PRIMARY KEY,
        policy TEXT NOT NULL,       -- as fetched, "" for none
        id TEXT NOT NULL, fetched REAL NOT NULL,
        failed REAL NOT NULL, failed_id TEXT NOT NULL, problem TEXT NOT NULL,
        used REAL NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS seen (
        domain TEXT PRIMARY KEY,
        time REAL NOT NULL, host TEXT NOT NULL, tls TEXT NOT NULL, source TEXT NOT NULL,
        verified INTEGER NOT NULL, problem TEXT NOT NULL, usable INTEGER NOT NULL,
        tls_at REAL NOT NULL, plaintext_at REAL NOT NULL, plaintext_count INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS session (
        day INTEGER NOT NULL, domain TEXT NOT NULL, applied TEXT NOT NULL,  -- JSON of tls_report.Applied
        successes INTEGER NOT NULL, failures INTEGER NOT NULL,
        PRIMARY KEY (day, domain, applied)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS failure (
        day INTEGER NOT NULL, domain TEXT NOT NULL, applied TEXT NOT NULL,
        result TEXT NOT NULL, host TEXT NOT NULL, address TEXT NOT NULL, source TEXT NOT NULL, code TEXT NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (day, domain, applied, result, host, address, source, code)
    ) WITHOUT ROWID
    """,
)
_LOSS = "it holds what is known of others' TLS; without it, that must be found out anew"


class TlsFile:
    """The file. A policy is synced when it is stored; of the rest a crash may lose the last moments."""

    def __init__(self, path: Path) -> None:
        """Opens it, or makes it. Raises SideFileError."""
        self._file = SideFile(path, VERSION, _CREATE, _LOSS)
        self._connection = self._file.connection

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # --- policies: all may raise sqlite3.Error ---------------------------------------------------

    def policy(self, domain: str) -> StsEntry | None:
        """What is remembered of a domain's MTA-STS policy."""
        row = first_row(self._connection.execute("SELECT * FROM sts WHERE domain = ?", (domain,)))
        return None if row is None else _entry(row)

    def policies(self) -> Sequence[StsEntry]:
        """Those of all domains."""
        return [_entry(row) for row in self._connection.execute("SELECT * FROM sts ORDER BY domain")]

    def save_policy(self, entry: StsEntry) -> None:
        """Remember a domain's policy, or that it could not be fetched."""
        text = "\n".join(entry.policy.lines) if entry.policy is not None else ""
        # A policy that was forgotten after a power cut could be kept from us at the next fetch: RFC 8461 §10.
        self._connection.execute("PRAGMA synchronous=FULL")
        try:
            fault("tls.policy")
            self._connection.execute(
                "INSERT OR REPLACE INTO sts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    entry.domain,
                    text,
                    entry.id,
                    entry.fetched,
                    entry.failed,
                    entry.failed_id,
                    entry.problem,
                    entry.used,
                ),
            )
        finally:
            self._connection.execute("PRAGMA synchronous=NORMAL")

    def forget(self, now: float) -> None:
        """Remove what is of no use any more: policies that expired, domains that got no mail for half a year, old counts."""
        gone = [(each.domain,) for each in self.policies() if now > max(each.expires, each.failed) + 86400]
        with self._file.change():
            self._connection.executemany("DELETE FROM sts WHERE domain = ?", gone)
            self._connection.execute("DELETE FROM seen WHERE time < ?", (now - FORGET,))
            for table in ("session", "failure"):
                self._connection.execute(f"DELETE FROM {table} WHERE day < ?", (now // 86400 - 3,))  # noqa: S608

    # --- sightings -------------------------------------------------------------------------------

    def see(self, sightings: Iterable[Sighting]) -> Sequence[Sighting]:
        """Take note of sessions, in order. Returns those in which a domain that had TLS had none. May raise sqlite3.Error."""
        falls: list[Sighting] = []
        with self._file.change():
            for sighting in sightings:
                before = self._seen(sighting.domain)
                if is_fall(before, sighting):
                    falls.append(sighting)
                seen = after(before, sighting)
                self._connection.execute(
                    "INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*attrs.astuple(seen.last), seen.tls_at, seen.plaintext_at, seen.plaintext_count),
                )
        return falls

    def _seen(self, domain: str) -> Seen | None:
        row = first_row(self._connection.execute("SELECT * FROM seen WHERE domain = ?", (domain,)))
        return None if row is None else _seen(row)

    def sightings(self, limit: int) -> Sequence[Seen]:
        """The domains seen last, the latest first. May raise sqlite3.Error."""
        rows = self._connection.execute("SELECT * FROM seen ORDER BY time DESC LIMIT ?", (limit,))
        return [_seen(row) for row in rows]

    # --- counts ----------------------------------------------------------------------------------

    def count(self, sessions: Iterable[Session]) -> None:
        """Count sessions for reports. May raise sqlite3.Error."""
        with self._file.change():
            for session in sessions:
                self._count(session)

    def _count(self, session: Session) -> None:
        applied = json.dumps(attrs.astuple(session.applied))
        key = session.day, session.domain, applied
        failed = int(session.failure is not None)
        self._connection.execute(
            "INSERT INTO session VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
            "SET successes = successes + excluded.successes, failures = failures + excluded.failures",
            (*key, 1 - failed, failed),
        )
        if session.failure is None:
            return
        details = (
            *key,
            session.failure.result.value,
            session.host,
            session.address,
            session.source,
            session.failure.code[:MAX_CODE],
        )
        changed = self._connection.execute(
            "UPDATE failure SET count = count + 1 WHERE day = ? AND domain = ? AND applied = ? AND result = ? "
            "AND host = ? AND address = ? AND source = ? AND code = ?",
            details,
        ).rowcount
        if changed:
            return
        (known,) = first_row(
            self._connection.execute("SELECT count(*) FROM failure WHERE day = ? AND domain = ?", key[:2])
        )
        if known < MAX_DETAILS:
            self._connection.execute("INSERT INTO failure VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1)", details)

    def reportable(self, before: int) -> Sequence[tuple[int, str]]:
        """(day, domain) with counts of days before `before`, the oldest first. May raise sqlite3.Error."""
        rows = self._connection.execute(
            "SELECT DISTINCT day, domain FROM session WHERE day < ? ORDER BY day, domain", (before,)
        )
        return rows.fetchall()

    def counts(self, day: int, domain: str) -> tuple[PolicyCount, ...]:
        """What was counted for a domain on a day. May raise sqlite3.Error."""
        rows = self._connection.execute(
            "SELECT applied, successes, failures FROM session WHERE day = ? AND domain = ?", (day, domain)
        ).fetchall()
        return tuple(
            PolicyCount(
                applied=_applied(applied),
                successes=successes,
                failures=failures,
                details=tuple(self._details(day, domain, applied)),
            )
            for applied, successes, failures in rows
        )

    def _details(self, day: int, domain: str, applied: str) -> Iterator[FailureCount]:
        rows = self._connection.execute(
            "SELECT result, host, address, source, code, count FROM failure "
            "WHERE day = ? AND domain = ? AND applied = ?",
            (day, domain, applied),
        )
        for result, host, address, source, code, count in rows:
            yield FailureCount(
                result=result, host=host, address=address, source=source, code=code, count=count
            )

    def reported(self, day: int, domain: str) -> None:
        """Forget the counts of a domain and a day: they were sent, or nobody wants them. May raise sqlite3.Error."""
        with self._file.change():
            for table in ("session", "failure"):
                self._connection.execute(
                    f"DELETE FROM {table} WHERE day = ? AND domain = ?",  # noqa: S608
                    (day, domain),
                )


def _entry(row: tuple[str, str, str, float, float, str, str, float]) -> StsEntry:
    domain, text, identifier, fetched, failed, failed_id, problem, used = row
    policy: StsPolicy | None
    try:
        policy = parse_policy(text.encode("utf-8")) if text else None
    except PolicyError:  # of another version of this code: as if there were none, so it is fetched again
        policy = None
    return StsEntry(
        domain=domain,
        policy=policy,
        id=identifier,
        fetched=fetched,
        failed=failed,
        failed_id=failed_id,
        problem=problem,
        used=used,
    )


def _seen(row: Sequence[object]) -> Seen:
    domain, time, host, tls, source, verified, problem, usable, *rest = row
    last: dict[str, object] = {
        "domain": domain,
        "time": time,
        "host": host,
        "tls": tls,
        "source": source,
        "verified": bool(verified),
        "problem": problem,
        "usable": bool(usable),
    }
    names = ("tls_at", "plaintext_at", "plaintext_count")
    known: dict[str, object] = dict(zip(names, rest, strict=True))
    return Seen(last=Sighting(**last), **known)  # type: ignore[arg-type]


def _applied(text: str) -> Applied:
    kind, lines, hosts = json.loads(text)
    return Applied(kind, tuple(lines), tuple(hosts))

"""Keeps what accounts sent of late on disk, and tells the postmaster who sends too much."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Notify, Recipient
from twisted_mta.core.expand import route
from twisted_mta.core.message import format_date
from twisted_mta.core.queue import NewMessage
from twisted_mta.core.rates import Ledger
from twisted_mta.interfaces import IDirectory, IQueue, StoreFull
from twisted_mta.policy.rates import LocalMeter, Meter
from twisted_mta.store.threads import InlineWorkers, Workers
from twisted_mta.store.usage import UsageFile

#: Seconds between writes: what a crash may forget.
INTERVAL = 5.0
#: Entries that `mta status` shows.
SHOWN = 10


class Usages(Protocol):
    """What knows how much was sent: a UsageKeeper here, or `service.common` in a worker, whose parent keeps it."""

    @property
    def meter(self) -> Meter:
        """For the check."""
        ...

    def start(self) -> None:
        """Begin to keep it."""
        ...

    async def stop(self) -> None:
        """Keep what is left."""
        ...

    def status(self) -> list[dict[str, object]]:
        """Who sent most in the last day."""
        ...


class UsageKeeper:
    """Holds the ledger and writes what changed every few seconds, outside of the reactor's thread."""

    log = Logger()

    def __init__(self, file: UsageFile, workers: Workers | InlineWorkers, clock: Any) -> None:
        """Reads the file, blocking. Raises SideFileError."""
        self._file = file
        self._workers = workers
        self._clock = clock
        self.ledger = Ledger(file.load())
        self.meter = LocalMeter(self.ledger, self.seconds)
        self._loop = LoopingCall(self._write)
        self._loop.clock = clock
        self._writing: Deferred[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._loop.start(INTERVAL, now=False)

    async def stop(self) -> None:
        """Write what is left and close the file."""
        if self._loop.running:
            self._loop.stop()
        if self._writing is not None:
            await self._writing
        await self._save()
        self._file.close()

    def seconds(self) -> float:
        """The Unix time."""
        now: float = self._clock.seconds()
        return now

    def status(self) -> list[dict[str, object]]:
        """Who sent most in the last day, for `mta status`."""
        now = self.seconds()
        shown: list[dict[str, object]] = []
        for name, usage in self.ledger.busiest(now, SHOWN):
            messages, recipients = usage.day.used(now)
            shown.append({"name": name, "messages": round(messages), "recipients": round(recipients)})
        return shown

    def _write(self) -> Deferred[None]:
        self._writing = Deferred.fromCoroutine(self._save())
        return self._writing

    async def _save(self) -> None:
        changed = self.ledger.take_changed(self.seconds())
        if not changed:
            return
        try:
            await self._workers.run(self._file.save, changed)
        except sqlite3.Error as error:
            self.ledger.give_back(changed)
            self.log.error("what accounts sent of late can't be written: {error}", error=error)


class Alarms:
    """Mails the postmaster that an account reached its limit."""

    log = Logger()

    def __init__(
        self,
        queue: IQueue,
        directory: IDirectory,
        ids: Callable[[], str],
        seconds: Callable[[], float],
        hostname: str,
        expire: float,
    ) -> None:
        self._queue = queue
        self._directory = directory
        self._ids = ids
        self._seconds = seconds
        self._hostname = hostname
        self._expire = expire

    def __call__(self, name: str, what: str) -> None:
        """Say in the log, and queue a message to the postmaster, that `name` wanted to send more than `what`."""
        self.log.warn("{name} reached its limit of {what}", name=name, what=what)
        Deferred.fromCoroutine(self._send(name, what))

    async def _send(self, name: str, what: str) -> None:
        now, queue_id = self._seconds(), self._ids()
        postmaster = self._directory.postmaster()
        message_id = f"{int(now)}.{queue_id}@{self._hostname}"
        text = warning(name, what, postmaster, message_id, now, self._hostname)
        body = self._queue.new_body()
        try:
            pending = body.write(text)
            if pending is not None:
                await pending
            message = NewMessage(
                id=queue_id,
                sender=None,  # nobody waits for a bounce of it
                recipients=route([Recipient(postmaster, Notify.NEVER)], self._directory).recipients,
                arrived=now,
                expires=now + self._expire,
                body_type="8BITMIME",
                smtputf8=not text.isascii(),
                message_id=message_id,
                origin="notification",
            )
            await self._queue.submit([message], body)
        except StoreFull:
            body.abort()
            self.log.error("no room on the disk to tell the postmaster of {name}", name=name)
        except Exception:  # noqa: BLE001  nobody waits for this
            body.abort()
            self.log.failure("could not tell the postmaster of {name}", name=name)


def warning(name: str, what: str, postmaster: Address, message_id: str, now: float, hostname: str) -> bytes:
    """The message to the postmaster."""
    who = f"All accounts of {name[1:]} together" if name.startswith("@") else f"The account {name}"
    lines = (
        f"From: Mail Server <postmaster@{hostname}>",
        f"To: {postmaster}",
        f"Subject: {name} reached its limit of {what}",
        f"Date: {format_date(now)}",
        f"Message-ID: <{message_id}>",
        "Auto-Submitted: auto-generated",  # RFC 3834 §5
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        "",
        f"{who} wanted to send more than {what}, and was refused.",
        "",
        "If that is not what somebody meant to do, the password may be known to others: set a",
        f"new one (mta user passwd {name})" if "@" in name[1:] else "new one (mta user passwd)",
        "and look at what waits in the queue (mta queue list).",
        "If it was meant, the limits are in [submission] of the configuration.",
        "",
        "This is said once a day. What else the account tries is in the log.",
        "",
    )
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")

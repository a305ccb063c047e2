"""Sends TLS reports, once a day, to the domains that ask for them. RFC 8460."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from twisted_mta.config.schema import TlsReports
from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Notify, Recipient, TlsWish
from twisted_mta.core.queue import NewMessage, NewRecipient
from twisted_mta.core.route import LookupFailed, NoSuchDomain
from twisted_mta.core.tls_report import DAY, Report, Reporter, places, record_name
from twisted_mta.delivery.tls_memory import TlsMemory
from twisted_mta.interfaces import IMailResolver, IQueue, StoreFull
from twisted_mta.net.https import HttpsError, Requests

#: NewMessage.origin of reports: sessions that carry them are not counted.
ORIGIN = "tls report"
#: RFC 8460 §4.1: reports go out up to so many seconds after midnight, so that not all the world's do at once.
SPREAD = 4 * 3600.0
#: RFC 8460 §5.5: a report that can't be delivered for a day is given up.
EXPIRE = float(DAY)
#: Seconds for one POST, and octets of an answer that nobody reads.
POST_TIMEOUT = 60.0
POST_ANSWER = 65536
#: Reports a day at most; more domains are passed over, with a word in the log.
MAX_REPORTS = 10_000


@attrs.define(kw_only=True)
class TlsReporter:
    """Wakes once a day. `settings` may be replaced at any time."""

    log = Logger()

    memory: TlsMemory
    resolver: IMailResolver
    queue: IQueue
    web: Requests
    ids: Callable[[], str]
    #: Where mail to an address goes; () if nowhere.
    route: Callable[[Iterable[Recipient]], tuple[NewRecipient, ...]]
    clock: Any
    #: Gives 0 <= x < 1.
    random: Callable[[], float]
    settings: TlsReports
    _timer: IDelayedCall | None = None
    _running: Deferred[None] | None = None

    def start(self) -> None:
        """What was counted on former days is sent within hours."""
        self._arm(self.random() * SPREAD)

    def stop(self) -> None:
        """No more reports; what was counted waits for the next start."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._running is not None:
            self._running.cancel()

    def _arm(self, delay: float) -> None:
        self._timer = self.clock.callLater(delay, self._wake)

    def _wake(self) -> None:
        running = self._running = Deferred.fromCoroutine(self.send())
        running.addErrback(lambda failure: self.log.failure("sending TLS reports", failure))
        now = self.clock.seconds()
        self._arm((now // DAY + 1) * DAY - now + self.random() * SPREAD)

    async def send(self) -> None:
        """Report on all days that are over."""
        today = int(self.clock.seconds() // DAY)
        waiting = await self.memory.reportable(today)
        if len(waiting) > MAX_REPORTS:
            self.log.warn("TLS reports: {count} domains are passed over", count=len(waiting) - MAX_REPORTS)
        for number, (day, domain) in enumerate(waiting):
            if self.settings.enabled and number < MAX_REPORTS:
                await self._report(day, domain)
            await self.memory.reported(day, domain)

    async def _report(self, day: int, domain: str) -> None:
        try:
            wanted = places(await self.resolver.txt(record_name(domain)))
        except (NoSuchDomain, LookupFailed):
            return
        if not wanted:
            return
        assert self.settings.contact is not None  # config.checks sees to it
        queue_id = self.ids()
        report = Report(
            reporter=Reporter(organization=self.settings.organization, contact=self.settings.contact),
            domain=domain,
            day=day,
            id=queue_id,
            policies=await self.memory.counts(day, domain),
        )
        for place in wanted:  # RFC 8460 §3: the first that takes it is enough
            if isinstance(place, Address):
                sent = await self._mail(report, place)
            else:
                sent = await self._upload(report, place)
            if sent:
                return
        self.log.warn("the TLS report for {domain} could be sent nowhere", domain=domain)

    async def _upload(self, report: Report, url: str) -> bool:
        try:
            answer = await self.web.request(
                "POST",
                url,
                timeout=POST_TIMEOUT,
                limit=POST_ANSWER,
                body=report.compressed(),
                media_type="application/tlsrpt+gzip",  # RFC 8460 §5.4
            )
        except HttpsError as error:
            self.log.warn(
                "TLS report for {domain}: {url}: {error}", domain=report.domain, url=url, error=str(error)
            )
            return False
        self.log.info(
            "TLS report for {domain}: {url}: {status}", domain=report.domain, url=url, status=answer.status
        )
        return 200 <= answer.status < 300

    async def _mail(self, report: Report, to: Address) -> bool:
        recipients = self.route([Recipient(to, Notify.NEVER)])
        if not recipients:
            return False
        now = self.clock.seconds()
        body = self.queue.new_body()
        try:
            pending = body.write(report.message(to, now))
            if pending is not None:
                await pending
            message = NewMessage(
                id=report.id,
                sender=None,  # nobody waits for a bounce of it
                recipients=recipients,
                arrived=now,
                expires=now + EXPIRE,
                message_id=f"{report.id}@{report.reporter.contact.domain}",
                origin=ORIGIN,
                tls=TlsWish.OPTIONAL,  # RFC 8460 §3: delivered despite failures of TLS
            )
            await self.queue.submit([message], body)
        except StoreFull:
            body.abort()
            self.log.error("no room on the disk for the TLS report for {domain}", domain=report.domain)
            return False
        self.log.info("TLS report for {domain}: to {recipient}", domain=report.domain, recipient=str(to))
        return True

"""TLS with other mail servers, joined together: policies, what is remembered of them, and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs

from twisted_mta.config.schema import Config, TlsReports
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.queue import NewRecipient
from twisted_mta.delivery.sts import StsPolicies
from twisted_mta.delivery.tls_memory import TlsMemory
from twisted_mta.delivery.tls_policy import Check, TlsPolicies
from twisted_mta.delivery.tls_steps import TlsSteps
from twisted_mta.interfaces import IMailResolver, IQueue
from twisted_mta.net.https import Requests
from twisted_mta.net.sts_fetch import PolicyFetcher
from twisted_mta.service.tls_reports import TlsReporter


@attrs.define(kw_only=True)
class OutgoingTls:
    """Made by `outgoing_tls`; `reporter` is there once the queue is."""

    memory: TlsMemory
    sts: StsPolicies
    steps: TlsSteps
    web: Requests
    resolver: IMailResolver
    reporter: TlsReporter | None = None

    def start(self) -> None:
        """Begin to refresh and to report."""
        self.sts.start()
        if self.reporter is not None:
            self.reporter.start()

    def stop_work(self) -> None:
        """No more fetches and reports."""
        self.sts.stop()
        if self.reporter is not None:
            self.reporter.stop()

    async def close(self) -> None:
        """Write what is left. Sessions have ended before."""
        await self.memory.stop()

    def report(
        self,
        config: Config,
        queue: IQueue,
        ids: Callable[[], str],
        route: Callable[[Iterable[Recipient]], tuple[NewRecipient, ...]],
        clock: Any,
        random: Callable[[], float],
    ) -> None:
        """Make the reporter."""
        self.reporter = TlsReporter(
            memory=self.memory,
            resolver=self.resolver,
            queue=queue,
            web=self.web,
            ids=ids,
            route=route,
            clock=clock,
            random=random,
            settings=report_settings(config),
        )

    def reconfigure(self, config: Config) -> None:
        """Take on new settings."""
        if self.reporter is not None:
            self.reporter.settings = report_settings(config)


def outgoing_tls(
    memory: TlsMemory, resolver: IMailResolver, web: Requests, check: Check, clock: Any
) -> OutgoingTls:
    """Join the parts; starts nothing."""
    sts = StsPolicies(memory, resolver, PolicyFetcher(web), clock)
    steps = TlsSteps(TlsPolicies(resolver, sts.policy), check, memory)
    return OutgoingTls(memory=memory, sts=sts, steps=steps, web=web, resolver=resolver)


def report_settings(config: Config) -> TlsReports:
    """[tls_reports] with the defaults that come from elsewhere."""
    given = config.tls_reports
    return attrs.evolve(
        given,
        contact=given.contact or config.postmaster,
        organization=given.organization or config.hostname,
    )

"""What a server stands on: the machine, or a simulation."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from twisted_mta.config.schema import Config, Dns
from twisted_mta.core.smtp.client import Login
from twisted_mta.core.values import value
from twisted_mta.delivery.smtp import SmtpDelivery
from twisted_mta.delivery.tls_policy import Check
from twisted_mta.delivery.tls_steps import TlsSteps
from twisted_mta.interfaces import IMailResolver
from twisted_mta.net.commands import CommandRunner, NoCommands
from twisted_mta.net.dns import StubResolver
from twisted_mta.net.https import Https, Requests
from twisted_mta.net.own_addresses import OwnSockets, is_local
from twisted_mta.net.smtp_client import opportunistic_context
from twisted_mta.net.tls_verify import CertificateCheck, system_authorities
from twisted_mta.service.settings import dns_servers
from twisted_mta.store.queue import SQLiteQueueStore
from twisted_mta.store.threads import InlineWorkers, Workers


@value(kw_only=True)
class Platform:
    """What a server stands on: the real thing, or a simulation (`twisted_mta.testing.world`)."""

    reactor: Any
    chance: random.Random
    #: (how many threads, their name) -> a pool.
    workers: Callable[[int, str], Workers | InlineWorkers]
    #: (directory, disk_reserve) -> the queue, opened.
    open_queue: Callable[[Path, int], SQLiteQueueStore]
    resolver: Callable[[Dns], IMailResolver]
    #: Whether an IP address is this machine's own.
    is_local: Callable[[str], bool]
    web: Callable[[IMailResolver], Requests]
    #: Looks at the certificates of other mail hosts.
    certificates: Check
    #: Runs the commands of aliases.
    commands: CommandRunner = attrs.field(factory=NoCommands)


def real_platform(reactor: Any, commands: CommandRunner) -> Platform:
    """Threads, sockets, chance and processes of this machine."""
    chance = random.SystemRandom()
    return Platform(
        reactor=reactor,
        chance=chance,
        workers=lambda size, name: Workers(reactor, size, name),
        open_queue=lambda directory, reserve: SQLiteQueueStore.open(directory, reactor, disk_reserve=reserve),
        resolver=lambda dns: StubResolver(
            reactor, chance, dns_servers(dns), dns.timeout, validating=dns.validating
        ),
        is_local=is_local,
        web=lambda resolver: Https(reactor, resolver),
        certificates=CertificateCheck(system_authorities()),
        commands=commands,
    )


def smtp_delivery(
    platform: Platform,
    config: Config,
    resolver: IMailResolver,
    workers: Workers | InlineWorkers,
    login: Login | None,
    tls: TlsSteps,
) -> SmtpDelivery:
    """Delivery to other hosts; `login` is for the smarthost."""
    return SmtpDelivery(
        platform.reactor,
        resolver,
        platform.chance,
        config.relay,
        config.hostname,
        workers,
        opportunistic_context(),
        login,
        is_own=OwnSockets(config.listen, platform.is_local),
        tls=tls,
    )

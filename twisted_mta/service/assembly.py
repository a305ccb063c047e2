"""Makes the parts of a server from a configuration and joins them. Nothing here runs yet: see `service.server`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from twisted_mta.config.handlers import load_handlers
from twisted_mta.config.schema import Config, Dns, Queue, Route
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.expand import route
from twisted_mta.core.queue import Transport
from twisted_mta.core.queueids import QueueIds
from twisted_mta.core.smtp.client import Login
from twisted_mta.delivery.callouts import Callouts
from twisted_mta.delivery.list import ListDelivery
from twisted_mta.delivery.local import LocalDelivery
from twisted_mta.delivery.returns import ReturnDelivery
from twisted_mta.delivery.rules import RulesDelivery
from twisted_mta.delivery.settled import settled
from twisted_mta.delivery.smtp import SmtpDelivery
from twisted_mta.delivery.tls_memory import TlsMemory
from twisted_mta.delivery.tls_policy import Check
from twisted_mta.delivery.vacation import VacationDelivery
from twisted_mta.interfaces import IDelivery, IDirectory, IMailResolver, IPolicyCheck
from twisted_mta.net.commands import CommandRunner, NoCommands
from twisted_mta.net.dns import StubResolver, system_servers
from twisted_mta.net.dns_exchange import Server
from twisted_mta.net.https import Https, Requests
from twisted_mta.net.own_addresses import OwnSockets, is_local
from twisted_mta.net.smtp_client import opportunistic_context
from twisted_mta.net.tls import ServerTls
from twisted_mta.net.tls_verify import CertificateCheck, system_authorities
from twisted_mta.policy.callout import CalloutCheck
from twisted_mta.policy.helo import HeloCheck
from twisted_mta.policy.rates import Alarm, Meter, RateCheck
from twisted_mta.policy.relay import LoopCheck, RecipientCheck, RelayCheck
from twisted_mta.policy.reverse_dns import ReverseDnsCheck
from twisted_mta.policy.submission import HeaderMender, SenderCheck, SenderRules
from twisted_mta.service.accounts import Accounts
from twisted_mta.service.control import AlreadyRunning
from twisted_mta.service.history import HistoryKeeper
from twisted_mta.service.incoming import Intake
from twisted_mta.service.lock import DataLock
from twisted_mta.service.outgoing_tls import OutgoingTls, outgoing_tls
from twisted_mta.service.outlets import Outlets
from twisted_mta.service.queue import QueueManager
from twisted_mta.service.queue_admin import QueueAdmin
from twisted_mta.service.reception import Reception
from twisted_mta.service.rules import Rules
from twisted_mta.service.shards import Place, directory_of, places
from twisted_mta.service.start import StartError
from twisted_mta.service.usage import Alarms, UsageKeeper, Usages
from twisted_mta.service.user_rules import UserRules
from twisted_mta.service.watched import FileWatch
from twisted_mta.store.answers import AnswerFile
from twisted_mta.store.callouts import CalloutFile
from twisted_mta.store.maildir import MaildirMailboxes
from twisted_mta.store.queue import SQLiteQueueStore
from twisted_mta.store.queue.history import HistoryRules
from twisted_mta.store.queue.schema import QueueFileError
from twisted_mta.store.side_file import SideFileError
from twisted_mta.store.threads import InlineWorkers, Workers
from twisted_mta.store.tls_policies import TlsFile
from twisted_mta.store.usage import UsageFile

#: Threads for mailboxes and their files, for password hashes, and for the rest.
_DISK_THREADS = 8
_HASH_THREADS = 2
#: Calls at a time of handlers that may block.
_HANDLER_THREADS = 16
#: Things that are passed over in files, in `mta status`.
MAX_WARNINGS = 20
_CANNOT_START = (AlreadyRunning, QueueFileError, SideFileError, OSError, UnicodeDecodeError)


@attrs.frozen(kw_only=True)
class Shard:
    """A part of the queue, and what works on it."""

    store: SQLiteQueueStore
    history: HistoryKeeper
    queue: QueueManager
    admin: QueueAdmin

    def start(self) -> None:
        """Begin to deliver."""
        self.queue.startService()
        self.history.start()

    async def stop(self) -> None:
        """Let what is under way come to an end."""
        self.history.stop()
        await self.queue.stopService()


@attrs.define(kw_only=True)
class Parts:
    """What a running server is made of."""

    lock: DataLock
    disk: Workers | InlineWorkers
    hashing: Workers | InlineWorkers
    accounts: Accounts
    watch: FileWatch
    resolver: IMailResolver
    store: SQLiteQueueStore
    mailboxes: MaildirMailboxes
    local: LocalDelivery
    smtp: SmtpDelivery
    outlets: Outlets
    deliveries: Mapping[Transport, IDelivery]
    history: HistoryKeeper
    queue: QueueManager
    admin: QueueAdmin
    reception: Reception
    usage: Usages
    tls: OutgoingTls
    callouts: Callouts
    alarms: Alarms
    place: Place
    #: Parts of the queue that are emptied and not filled: those of workers that there were once.
    former: Sequence[Shard] = ()

    @property
    def shards(self) -> Sequence[Shard]:
        """All parts of the queue that this process has, its own first."""
        own = Shard(store=self.store, history=self.history, queue=self.queue, admin=self.admin)
        return (own, *self.former)

    def warnings(self) -> list[str]:
        """What is wrong with the files that the server reads, for an administrator."""
        passed_over = [f"passed over: {problem}" for problem in self.accounts.problems]
        more = len(passed_over) - MAX_WARNINGS
        return self.watch.problems() + passed_over[:MAX_WARNINGS] + ([f"and {more} more"] if more > 0 else [])

    async def close(self) -> None:
        """Let what is under way come to an end, and close everything, in the reverse order of its use."""
        self.watch.stop()
        self.accounts.stop()
        for stopping in [Deferred.fromCoroutine(shard.stop()) for shard in self.shards]:  # all at once
            await stopping
        await self.usage.stop()
        self.tls.stop_work()
        for delivery in self.deliveries.values():
            await delivery.close()
        self.outlets.close()
        await self.callouts.close()
        await self.tls.close()
        if isinstance(self.resolver, StubResolver):
            self.resolver.close()
        for shard in self.shards:
            await shard.store.close()
        await self.mailboxes.close()
        self.hashing.close()
        self.disk.close()
        self.lock.release()


def tls_options(config: Config) -> ServerTls | None:
    """The context for the servers; None without a certificate. Raises TlsError."""
    tls = config.tls
    if tls.certificate is None or tls.key is None:
        return None
    return ServerTls(
        tls.certificate, tls.key, [(pair.certificate, pair.key) for pair in tls.sni], tls.minimum
    )


def stranger_checks(config: Config, resolver: IMailResolver, clock: Any) -> tuple[IPolicyCheck, ...]:
    """The checks of what other mail servers are like."""
    trusted, checks = config.relay.networks, config.checks
    found: list[IPolicyCheck] = []
    if checks.helo != "off":
        found.append(HeloCheck(config.hostname, resolver, trusted, require=checks.helo == "require"))
    if checks.reverse_dns != "off":
        found.append(ReverseDnsCheck(resolver, clock, trusted, require=checks.reverse_dns == "require"))
    return tuple(found)


def rules(
    config: Config,
    directory: IDirectory,
    meter: Meter,
    alarm: Alarm,
    resolver: IMailResolver,
    clock: Any,
    callouts: Callouts,
) -> Rules:
    """What a configuration says about receiving."""
    senders = SenderRules(directory, config.submission.grants)
    checks: tuple[IPolicyCheck, ...] = (
        *((SenderCheck(senders),) if config.submission.check_sender else ()),
        RelayCheck(directory, config.relay.networks),
        RecipientCheck(directory),
        *_callout_checks(config, directory, callouts),
        LoopCheck(config.limits.received_headers),
        *stranger_checks(config, resolver, clock),
        RateCheck(
            meter=meter,
            account=config.submission.rates,
            domain=config.submission.domain,
            alarm=alarm,
        ),
    )
    mend = HeaderMender(hostname=config.hostname, directory=directory, rules=senders)
    return Rules(hostname=config.hostname, expire=config.queue.expire, checks=checks, mend=mend)


def _callout_checks(config: Config, directory: IDirectory, callouts: Callouts) -> tuple[IPolicyCheck, ...]:
    """None where nobody is to be asked: most servers."""
    if not any(block.callout for block in config.domain_blocks):
        return ()
    return (CalloutCheck(directory, callouts.verify, config.relay.networks),)


def history_rules(queue: Queue) -> HistoryRules:
    """What is remembered of messages."""
    return HistoryRules(keep=queue.history, limit=queue.history_limit, transcripts=queue.transcripts)


def dns_servers(dns: Dns) -> tuple[Server, ...]:
    """The configured name servers, else those of the system."""
    return tuple(Server.parse(text) for text in dns.servers) or system_servers()


def smarthost_login(smarthost: Route | None) -> Login | None:
    """What to log in with at the smarthost. Raises OSError or ValueError where the password can't be read."""
    if smarthost is None or not smarthost.username or smarthost.password_file is None:
        return None
    lines = smarthost.password_file.read_text(encoding="utf-8").splitlines()
    password = lines[0] if lines else ""
    return Login(smarthost.username, password)


@attrs.frozen(kw_only=True)
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


def _callouts(config: Config, smtp: SmtpDelivery, platform: Platform) -> Callouts:
    file, workers = CalloutFile(config.callouts_file), platform.workers(1, "callouts")
    return Callouts(smtp.ask, file, workers, platform.reactor, config.callout)


def _queue_ids(platform: Platform, place: Place) -> QueueIds:
    # The end is no secret: not worth a call of the system, and a chance for other threads to take over, for each message.
    ends = random.Random(platform.chance.getrandbits(64))  # noqa: S311
    return QueueIds(platform.reactor.seconds, ends.random, place.worker if place.workers > 1 else None)


def assemble(
    config: Config, platform: Platform, place: Place | None = None, usage: Usages | None = None
) -> Parts:
    """Open what lasts and join the parts; blocks, and starts nothing. Raises StartError.

    `place` is that of a worker, whose parent holds the lock and keeps the usage; None is the whole server.
    """
    reactor, chance = platform.reactor, platform.chance
    _, troubles = load_handlers(config)
    if troubles:
        raise StartError("\n".join(f"handlers.modules: {trouble.text}" for trouble in troubles))
    lock = place.lock if place is not None and place.lock is not None else DataLock(config.data)
    stores: list[SQLiteQueueStore] = []
    try:
        if place is None:
            lock.acquire()
            (place,) = places(1, config.data, lock)
        config = place.share(config)
        for number in (place.worker, *place.former):
            one = platform.open_queue(directory_of(config.data, number), config.limits.disk_reserve)
            one.history = history_rules(config.queue)
            one.reconfigure(config.limits.disk_reserve, config.limits.memory)
            stores.append(one)
        login = smarthost_login(config.relay.smarthost)
        disk = platform.workers(_DISK_THREADS, "disk")
        hashing = platform.workers(_HASH_THREADS, "hashing")
        accounts = Accounts(config, hashing, reactor, os.urandom)
        if usage is None:
            usage = UsageKeeper(UsageFile(config.usage_file), disk, reactor)
        memory, answers = (
            TlsMemory(TlsFile(config.tls_file), platform.workers(1, "tls"), reactor),
            AnswerFile(config.answers_file),
        )
    except BaseException as error:
        lock.release()  # the next one to try may be in this process
        if isinstance(error, _CANNOT_START):
            raise StartError(str(error)) from error
        raise
    watch = FileWatch(disk, reactor)
    watch.add(accounts.watched, accounts.watched_rules)
    directory = accounts.directory
    ids = _queue_ids(platform, place)
    mailboxes = MaildirMailboxes(disk, reactor)
    resolver = platform.resolver(config.dns)
    tls = outgoing_tls(memory, resolver, platform.web(resolver), platform.certificates, reactor)
    smtp = SmtpDelivery(
        reactor,
        resolver,
        chance,
        config.relay,
        config.hostname,
        disk,
        opportunistic_context(),
        login,
        is_own=OwnSockets(config.listen, platform.is_local),
        tls=tls.steps,
    )
    local = LocalDelivery(
        directory,
        disk,
        hostname=config.hostname,
        started=reactor.seconds(),
        told=mailboxes.delivered,
    )
    outlets = Outlets(
        config,
        lambda: directory.current.handlers,
        disk,
        platform.workers(_HANDLER_THREADS, "handlers"),
        platform.commands,
        reactor,
    )
    deliveries: Mapping[Transport, IDelivery] = {
        Transport.LOCAL: local,
        Transport.LIST: ListDelivery(directory, ids, reactor, disk),
        Transport.SMTP: smtp,
        Transport.VACATION: VacationDelivery(directory, answers, ids, reactor, disk, config.hostname),
        Transport.RULES: RulesDelivery(
            UserRules(accounts, watch, disk).change, directory, ids, reactor, disk, config.hostname
        ),
        Transport.RETURN: ReturnDelivery(stores[0], directory, ids, reactor),
        **settled(),
        **outlets.deliveries,
    }

    def shard(store: SQLiteQueueStore) -> Shard:
        queue = QueueManager(
            store,
            deliveries,
            reactor,
            random=chance.random,
            ids=ids,
            settings=config.queue,
            hostname=config.hostname,
            postmaster=config.postmaster,
            bounce_router=lambda sender: route([Recipient(sender)], directory).recipients,
            relay=config.relay,
            at_once=outlets.at_once,
            rewritten=lambda sender: directory.returns(sender) is not None,
        )
        admin = QueueAdmin(store, reactor.seconds, wake=queue.wake, forget=queue.forget)
        return Shard(store=store, history=HistoryKeeper(store, reactor), queue=queue, admin=admin)

    own, *former = map(shard, stores)
    queue = own.queue
    if place.worker == 0:  # one of them reports, on what all have counted
        tls.report(
            config, queue, ids, lambda given: route(given, directory).recipients, reactor, chance.random
        )
    alarms = Alarms(queue, directory, ids, reactor.seconds, config.hostname, config.queue.expire)
    callouts = _callouts(config, smtp, platform)
    receiving = rules(config, directory, usage.meter, alarms, resolver, reactor, callouts)
    intake = Intake(queue=queue, directory=directory, ids=ids, seconds=reactor.seconds, inline=outlets.inline)
    return Parts(
        lock=lock,
        disk=disk,
        hashing=hashing,
        accounts=accounts,
        watch=watch,
        resolver=resolver,
        store=own.store,
        mailboxes=mailboxes,
        local=local,
        smtp=smtp,
        outlets=outlets,
        deliveries=deliveries,
        history=own.history,
        queue=queue,
        admin=own.admin,
        reception=Reception(receiving, intake, accounts, disk),
        usage=usage,
        tls=tls,
        callouts=callouts,
        alarms=alarms,
        place=place,
        former=former,
    )

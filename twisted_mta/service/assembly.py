"""Makes the parts of a server from a configuration and joins them. Nothing here runs yet: see `service.server`."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence

from twisted_mta.config.handlers import load_handlers
from twisted_mta.config.schema import Config
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.expand import route
from twisted_mta.core.queue import Transport
from twisted_mta.core.queueids import QueueIds
from twisted_mta.core.smtp.client import Login
from twisted_mta.core.values import value
from twisted_mta.delivery.callouts import Callouts
from twisted_mta.delivery.list import ListDelivery
from twisted_mta.delivery.local import LocalDelivery
from twisted_mta.delivery.returns import ReturnDelivery
from twisted_mta.delivery.rules import RulesDelivery
from twisted_mta.delivery.settled import settled
from twisted_mta.delivery.tls_memory import TlsMemory
from twisted_mta.delivery.vacation import VacationDelivery
from twisted_mta.interfaces import IDelivery
from twisted_mta.service.accounts import Accounts
from twisted_mta.service.checks import rules
from twisted_mta.service.control import AlreadyRunning
from twisted_mta.service.history import HistoryKeeper
from twisted_mta.service.incoming import Intake
from twisted_mta.service.lock import DataLock
from twisted_mta.service.outgoing_tls import outgoing_tls
from twisted_mta.service.outlets import Outlets
from twisted_mta.service.parts import Parts, Shard
from twisted_mta.service.platform import Platform, smtp_delivery
from twisted_mta.service.queue import QueueManager
from twisted_mta.service.queue_admin import QueueAdmin
from twisted_mta.service.reception import Reception
from twisted_mta.service.settings import history_rules, smarthost_login
from twisted_mta.service.shards import Place, directory_of, places
from twisted_mta.service.start import StartError
from twisted_mta.service.usage import Alarms, UsageKeeper, Usages
from twisted_mta.service.user_rules import UserRules
from twisted_mta.service.watched import FileWatch
from twisted_mta.store.answers import AnswerFile
from twisted_mta.store.callouts import CalloutFile
from twisted_mta.store.directory import DirectoryHolder
from twisted_mta.store.maildir import MaildirMailboxes
from twisted_mta.store.queue import SQLiteQueueStore
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
_CANNOT_START = (AlreadyRunning, QueueFileError, SideFileError, OSError, UnicodeDecodeError)


@value(kw_only=True)
class _Opened:
    """What lasts, opened, and the threads that work on it."""

    config: Config
    place: Place
    lock: DataLock
    stores: Sequence[SQLiteQueueStore]
    login: Login | None
    disk: Workers | InlineWorkers
    hashing: Workers | InlineWorkers
    accounts: Accounts
    usage: Usages
    memory: TlsMemory
    answers: AnswerFile
    callouts: CalloutFile


def assemble(
    config: Config, platform: Platform, place: Place | None = None, usage: Usages | None = None
) -> Parts:
    """Open what lasts and join the parts; blocks, and starts nothing. Raises StartError.

    `place` is that of a worker, whose parent holds the lock and keeps the usage; None is the whole server.
    """
    _, troubles = load_handlers(config)
    if troubles:
        raise StartError("\n".join(f"handlers.modules: {trouble.text}" for trouble in troubles))
    lock = place.lock if place is not None and place.lock is not None else DataLock(config.data)
    try:
        opened = _open(config, platform, lock, place, usage)
    except BaseException as error:
        lock.release()  # the next one to try may be in this process
        if isinstance(error, _CANNOT_START):
            raise StartError(str(error)) from error
        raise
    return _join(opened, platform)


def _open(
    config: Config, platform: Platform, lock: DataLock, place: Place | None, usage: Usages | None
) -> _Opened:
    if place is None:
        lock.acquire()
        (place,) = places(1, config.data, lock)
    config = place.share(config)
    stores: list[SQLiteQueueStore] = []
    for number in (place.worker, *place.former):
        one = platform.open_queue(directory_of(config.data, number), config.limits.disk_reserve)
        one.history = history_rules(config.queue)
        one.reconfigure(config.limits.disk_reserve, config.limits.memory)
        stores.append(one)
    disk = platform.workers(_DISK_THREADS, "disk")
    hashing = platform.workers(_HASH_THREADS, "hashing")
    return _Opened(
        config=config,
        place=place,
        lock=lock,
        stores=stores,
        login=smarthost_login(config.relay.smarthost),
        disk=disk,
        hashing=hashing,
        accounts=Accounts(config, hashing, platform.reactor, os.urandom),
        usage=usage or UsageKeeper(UsageFile(config.usage_file), disk, platform.reactor),
        memory=TlsMemory(TlsFile(config.tls_file), platform.workers(1, "tls"), platform.reactor),
        answers=AnswerFile(config.answers_file),
        callouts=CalloutFile(config.callouts_file),
    )


def _join(opened: _Opened, platform: Platform) -> Parts:
    config, reactor, chance = opened.config, platform.reactor, platform.chance
    disk, accounts, place = opened.disk, opened.accounts, opened.place
    directory = accounts.directory
    watch = FileWatch(disk, reactor)
    watch.add(accounts.watched, accounts.watched_rules)
    ids = _queue_ids(platform, place)
    mailboxes = MaildirMailboxes(disk, reactor)
    resolver = platform.resolver(config.dns)
    tls = outgoing_tls(opened.memory, resolver, platform.web(resolver), platform.certificates, reactor)
    smtp = smtp_delivery(platform, config, resolver, disk, opened.login, tls.steps)
    local = LocalDelivery(
        directory, disk, hostname=config.hostname, started=reactor.seconds(), told=mailboxes.delivered
    )
    outlets = Outlets(
        config,
        lambda: directory.current.handlers,
        disk,
        platform.workers(_HANDLER_THREADS, "handlers"),
        platform.commands,
        reactor,
    )
    deliveries = {**_deliveries(opened, platform, ids, watch), Transport.LOCAL: local, Transport.SMTP: smtp}
    deliveries.update(outlets.deliveries)
    own, *former = (
        _shard(store, deliveries, config, platform, ids, directory, outlets) for store in opened.stores
    )
    queue = own.queue
    if place.worker == 0:  # one of them reports, on what all have counted
        tls.report(
            config, queue, ids, lambda given: route(given, directory).recipients, reactor, chance.random
        )
    alarms = Alarms(queue, directory, ids, reactor.seconds, config.hostname, config.queue.expire)
    callouts = Callouts(smtp.ask, opened.callouts, platform.workers(1, "callouts"), reactor, config.callout)
    receiving = rules(config, directory, opened.usage.meter, alarms, resolver, reactor, callouts)
    intake = Intake(queue=queue, directory=directory, ids=ids, seconds=reactor.seconds, inline=outlets.inline)
    return Parts(
        lock=opened.lock,
        disk=disk,
        hashing=opened.hashing,
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
        usage=opened.usage,
        tls=tls,
        callouts=callouts,
        alarms=alarms,
        place=place,
        former=former,
    )


def _deliveries(
    opened: _Opened, platform: Platform, ids: QueueIds, watch: FileWatch
) -> dict[Transport, IDelivery]:
    """Those that nothing else needs by name."""
    accounts, disk, reactor, hostname = opened.accounts, opened.disk, platform.reactor, opened.config.hostname
    directory = accounts.directory
    change = UserRules(accounts, watch, disk).change
    return {
        Transport.LIST: ListDelivery(directory, ids, reactor, disk),
        Transport.VACATION: VacationDelivery(directory, opened.answers, ids, reactor, disk, hostname),
        Transport.RULES: RulesDelivery(change, directory, ids, reactor, disk, hostname),
        Transport.RETURN: ReturnDelivery(opened.stores[0], directory, ids, reactor),
        **settled(),
    }


def _shard(
    store: SQLiteQueueStore,
    deliveries: Mapping[Transport, IDelivery],
    config: Config,
    platform: Platform,
    ids: QueueIds,
    directory: DirectoryHolder,
    outlets: Outlets,
) -> Shard:
    queue = QueueManager(
        store,
        deliveries,
        platform.reactor,
        random=platform.chance.random,
        ids=ids,
        settings=config.queue,
        hostname=config.hostname,
        postmaster=config.postmaster,
        bounce_router=lambda sender: route([Recipient(sender)], directory).recipients,
        relay=config.relay,
        at_once=outlets.at_once,
        rewritten=lambda sender: directory.returns(sender) is not None,
    )
    admin = QueueAdmin(store, platform.reactor.seconds, wake=queue.wake, forget=queue.forget)
    return Shard(store=store, history=HistoryKeeper(store, platform.reactor), queue=queue, admin=admin)


def _queue_ids(platform: Platform, place: Place) -> QueueIds:
    # The end is no secret: not worth a call of the system, and a chance for other threads to take over, for each message.
    ends = random.Random(platform.chance.getrandbits(64))  # noqa: S311
    return QueueIds(platform.reactor.seconds, ends.random, place.worker if place.workers > 1 else None)

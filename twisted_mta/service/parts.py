"""What a running server is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
from twisted.internet.defer import Deferred

from twisted_mta.core.queue import Transport
from twisted_mta.core.values import value
from twisted_mta.delivery.callouts import Callouts
from twisted_mta.delivery.local import LocalDelivery
from twisted_mta.delivery.smtp import SmtpDelivery
from twisted_mta.interfaces import IDelivery, IMailResolver
from twisted_mta.net.dns import StubResolver
from twisted_mta.service.accounts import Accounts
from twisted_mta.service.history import HistoryKeeper
from twisted_mta.service.lock import DataLock
from twisted_mta.service.outgoing_tls import OutgoingTls
from twisted_mta.service.outlets import Outlets
from twisted_mta.service.queue import QueueManager
from twisted_mta.service.queue_admin import QueueAdmin
from twisted_mta.service.reception import Reception
from twisted_mta.service.shards import Place
from twisted_mta.service.usage import Alarms, Usages
from twisted_mta.service.watched import FileWatch
from twisted_mta.store.maildir import MaildirMailboxes
from twisted_mta.store.queue import SQLiteQueueStore
from twisted_mta.store.threads import InlineWorkers, Workers

#: Things that are passed over in files, in `mta status`.
MAX_WARNINGS = 20


@value(kw_only=True)
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

"""Runs the queue in memory, on a simulated clock, against described conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_mta.config.destinations import Destinations
from twisted_mta.config.schema import Queue, Relay
from twisted_mta.core.address import Address
from twisted_mta.core.conditions import Conditions
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.expand import route
from twisted_mta.core.queue import NewMessage, QueuedMessage, QueuedRecipient, Transport, WorkItem
from twisted_mta.core.queueids import QueueIds
from twisted_mta.core.values import value
from twisted_mta.delivery.list import ListDelivery
from twisted_mta.delivery.settled import SettledDelivery, discarded, expanded, refused
from twisted_mta.interfaces import IDirectory, IStoredBody, Update
from twisted_mta.service.queue import QueueManager
from twisted_mta.service.simulation.clock import SimulatedClock
from twisted_mta.service.simulation.delivery import SimulatedLocal, SimulatedSmtp, kept
from twisted_mta.service.simulation.timeline import Timeline
from twisted_mta.store.queue.bodies import MemoryBody
from twisted_mta.store.queue.memory import MemoryQueueStore
from twisted_mta.store.threads import InlineWorkers


@value(kw_only=True)
class Setup:
    """The server that is simulated, and the world around it. `random` gives 0 <= x < 1; times are Unix seconds."""

    queue: Queue
    relay: Relay
    directory: IDirectory
    hostname: str
    postmaster: Address
    conditions: Conditions
    random: Callable[[], float]
    begin: float
    seconds: float
    #: Seconds by which the clock moves at least; 0: everything happens at its very time.
    resolution: float = 0.0
    #: Whether single events are kept.
    detailed: bool = True


@value
class Arrival:
    """A message that comes in."""

    #: Seconds after the beginning.
    at: float
    sender: Address | None
    recipients: Sequence[Address]
    data: bytes = b""


class Simulation:
    """Once made: `load` what waits already, and `run`."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._clock = SimulatedClock(setup.begin, setup.resolution)
        self._store = MemoryQueueStore(self._recorded, self._postponed)
        self._ids = QueueIds(self._clock.seconds, setup.random)
        self.timeline = Timeline(setup.begin, setup.seconds, setup.detailed)
        self._over = False
        directory = setup.directory
        self._manager = QueueManager(
            self._store,
            {
                Transport.LOCAL: SimulatedLocal(directory),
                Transport.LIST: ListDelivery(directory, self._ids, self._clock, InlineWorkers()),
                Transport.ALIAS: SettledDelivery(expanded),
                **dict.fromkeys(
                    (
                        *(Transport.FILE, Transport.COMMAND, Transport.HANDLER),
                        *(Transport.VACATION, Transport.RULES, Transport.RETURN),
                    ),
                    SettledDelivery(kept),
                ),
                Transport.DISCARD: SettledDelivery(discarded),
                Transport.REFUSE: SettledDelivery(refused),
                Transport.SMTP: SimulatedSmtp(setup.conditions, Destinations(setup.relay), self._clock),
            },
            self._clock,
            random=setup.random,
            ids=self._ids,
            settings=setup.queue,
            hostname=setup.hostname,
            postmaster=setup.postmaster,
            bounce_router=lambda sender: route([Recipient(sender)], directory).recipients,
            relay=setup.relay,
        )

    def load(self, item: WorkItem, body: IStoredBody) -> None:
        """Put in a message that waits in another queue."""
        with body.open() as file:
            self._store.load(item, MemoryBody(file.read()))
        self.timeline.queued(item.message, [str(recipient.address) for recipient in item.recipients])
        self.timeline.depth(self._setup.begin, self._store.depth)

    def run(self, arrivals: Iterable[Arrival] = ()) -> Timeline:
        """Let the time pass; `arrivals` come in the order of their times."""
        self._manager.startService()
        self._arrive(iter(arrivals), None)
        end = self._setup.begin + self._setup.seconds
        self._clock.run_until(end)
        self._over = True
        self.timeline.finish(self._waiting())
        stopped = self._manager.stopService()
        self._clock.run_until(end + 60.0)
        assert stopped.called
        return self.timeline

    def _waiting(self) -> list[WorkItem]:
        found: list[WorkItem] = []
        _done(Deferred.fromCoroutine(self._listing(found)))
        return found

    async def _listing(self, found: list[WorkItem]) -> None:
        found += await self._store.listing(self._store.depth)

    def _arrive(self, arrivals: Iterator[Arrival], first: Arrival | None) -> None:
        """Take in what has arrived by now; the next one comes at its time."""
        now = self._clock.seconds() - self._setup.begin
        arrival = first or next(arrivals, None)
        while arrival is not None and arrival.at <= now:
            _done(Deferred.fromCoroutine(self._submit(arrival)))
            arrival = next(arrivals, None)
        if arrival is not None:
            self._clock.callLater(arrival.at - now, self._arrive, arrivals, arrival)

    async def _submit(self, arrival: Arrival) -> None:
        recipients = [Recipient(address) for address in arrival.recipients]
        now = self._clock.seconds()
        message = NewMessage(
            id=self._ids(),
            sender=arrival.sender,
            recipients=route(recipients, self._setup.directory).recipients,
            arrived=now,
            expires=now + self._setup.queue.expire,
            origin="the simulation",
        )
        self.timeline.queued(message, [str(recipient.address) for recipient in message.recipients])
        body = self._manager.new_body()
        body.write(arrival.data)
        await self._manager.submit([message], body)
        self.timeline.depth(now, self._store.depth)

    def _recorded(
        self,
        noted: Sequence[tuple[QueuedMessage, QueuedRecipient, Update]],
        new: Sequence[tuple[NewMessage, bytes]],
    ) -> None:
        if not self._over:
            now = self._clock.seconds()
            self.timeline.recorded(now, noted, [message for message, _ in new])
            self.timeline.depth(now, self._store.depth)

    def _postponed(self, message: QueuedMessage, recipient: QueuedRecipient, note: str) -> None:
        if not self._over:
            self.timeline.postponed(self._clock.seconds(), message, recipient, note)


def _done(work: Deferred[None]) -> None:
    """The queue in memory does everything at once; what went wrong is raised."""
    failures: list[Failure] = []
    work.addErrback(failures.append)
    for failure in failures:
        failure.raiseException()
    assert work.called

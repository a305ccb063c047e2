"""A queue manager on a Clock, over a store in memory and scripted deliveries."""

from __future__ import annotations

import email
import email.policy
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial import unittest

from twisted_mta.config.schema import Queue, Relay
from twisted_mta.core.address import Address
from twisted_mta.core.queue import (
    Delivered,
    Failed,
    NewMessage,
    NewRecipient,
    Outcome,
    Transport,
    TryLater,
)
from twisted_mta.core.queueids import QueueIds
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IQueueStore
from twisted_mta.service.queue import QueueManager
from twisted_mta.service.queue_admin import QueueAdmin
from twisted_mta.testing.deliveries import ScriptedDelivery
from twisted_mta.testing.queue import MemoryQueueStore

ALICE = Address("alice", "example.test")
POSTMASTER = Address("postmaster", "example.test")
START = 1_000_000.0
DAY = 86400.0
ORIGINAL = b"Subject: lunch\r\n\r\nAt noon?\r\n"
DELIVERED = Delivered(Reply(250, "2.0.0", "ok"))
REFUSED = Failed(Reply(550, "5.1.1", "no such user here"), "mx.example.org [192.0.2.1]")
BUSY = TryLater(Reply(451, "4.3.2", "come back later"), "mx.example.org [192.0.2.1]")


def remote(text: str, **changes: Any) -> NewRecipient:
    address = Address.parse(text)
    return attrs.evolve(NewRecipient(address, Transport.SMTP, address), **changes)


def by_domain(address: Address) -> tuple[NewRecipient, ...]:
    """The routing of the tests: example.test is local, nowhere.test is nowhere."""
    if address.domain == "nowhere.test":
        return ()
    transport = Transport.LOCAL if address.domain == "example.test" else Transport.SMTP
    return (NewRecipient(address, transport, address),)


def replies(*outcomes: Outcome) -> Any:
    """A script that gives these outcomes in turn; the last one repeats."""
    left = list(outcomes)
    return lambda message, recipient: left.pop(0) if len(left) > 1 else left[0]


class ManagerTestCase(unittest.SynchronousTestCase):
    """A manager over a store in memory, two scripted deliveries, and a Clock."""

    settings = Queue(schedule=(600.0, 3600.0), expire=5 * DAY, warn_after=4 * 3600.0)
    relay = Relay()
    postmaster = POSTMASTER

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(START)
        self.store: Any = self.make_store()
        self.local, self.smtp, self.lists = ScriptedDelivery(), ScriptedDelivery(), ScriptedDelivery()
        self.ids = QueueIds(self.clock.seconds, lambda: 0.5)
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.manager = self.make_manager()

    def make_store(self) -> IQueueStore:
        return MemoryQueueStore()

    def make_manager(self, **changes: Any) -> QueueManager:
        options: dict[str, Any] = {
            "deliveries": {
                Transport.LOCAL: self.local,
                Transport.SMTP: self.smtp,
                Transport.LIST: self.lists,
            },
            "random": lambda: 0.5,
            "ids": self.ids,
            "settings": self.settings,
            "hostname": "mx.example.test",
            "postmaster": self.postmaster,
            "bounce_router": by_domain,
            "relay": self.relay,
        }
        manager = QueueManager(self.store, clock=self.clock, **(options | changes))
        manager.startService()
        return manager

    @property
    def admin(self) -> QueueAdmin:
        manager = self.manager
        return QueueAdmin(self.store, self.clock.seconds, wake=manager.wake, forget=manager.forget)

    def result(self, awaitable: Any) -> Any:
        async def run() -> Any:
            return await awaitable

        return self.successResultOf(Deferred.fromCoroutine(run()))

    def message(self, *recipients: NewRecipient, **changes: Any) -> NewMessage:
        now = self.clock.seconds()
        made = NewMessage(
            id=self.ids(),
            sender=ALICE,
            recipients=recipients or (remote("bob@example.org"),),
            prefix=b"Received: by mx.example.test\r\n",
            arrived=now,
            expires=now + self.settings.expire,
            message_id="lunch@example.test",
        )
        return attrs.evolve(made, **changes)

    def submit(self, *recipients: NewRecipient, manager: QueueManager | None = None, **changes: Any) -> str:
        message = self.message(*recipients, **changes)
        manager = manager or self.manager
        body = manager.new_body()
        body.write(ORIGINAL)
        self.result(manager.submit([message], body))
        return message.id

    def run_until(self, when: float) -> None:
        """Let the time pass call by call, so that each sees the time it is due at."""
        while True:
            due = [call.getTime() for call in self.clock.getDelayedCalls()]
            if not due or min(due) > when:
                break
            self.clock.advance(max(min(due) - self.clock.seconds(), 0))
        self.clock.advance(when - self.clock.seconds())

    def queue(self) -> list[str]:
        return [str(r.address) for item in self.result(self.store.listing()) for r in item.recipients]

    def told(self, event: str) -> list[dict[str, Any]]:
        return [logged for logged in self.events if logged.get("event") == event]

    def notifications(self) -> list[Any]:
        parse = email.message_from_bytes
        return [parse(call.data, policy=email.policy.default) for call in self.local.calls]

"""Tests for twisted_mta.service.outcomes that need no queue around it."""

from __future__ import annotations

import attrs
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import DEFAULT_NOTIFY
from twisted_mta.core.queue import QueuedMessage, QueuedRecipient, Status, Transport, TryLater
from twisted_mta.core.replies import Reply
from twisted_mta.core.schedule import Schedule
from twisted_mta.service.outcomes import DOUBT, Judge

BOB = Address("b", "x.test")
MESSAGE = QueuedMessage(
    id="q1",
    sender=Address("s", "a.test"),
    prefix=b"",
    body_id=1,
    body_size=1,
    arrived=0.0,
    expires=86400.0,
    body_type="7BIT",
    smtputf8=False,
    envid="",
    ret="",
    parent="",
    message_id="",
    origin="",
)
RECIPIENT = QueuedRecipient(
    row=1,
    address=BOB,
    transport=Transport.SMTP,
    original=BOB,
    notify=DEFAULT_NOTIFY,
    orcpt="",
    status=Status.QUEUED,
    attempts=0,
    next_attempt=0.0,
    last_reply="",
    warned=False,
)
LOST = Reply(451, "4.4.2", "lost the connection, waiting for end of message")


class DoubtTests(SynchronousTestCase):
    """RFC 1047: what may have arrived waits."""

    judge = Judge(Schedule((60.0, 7200.0), 86400.0, 0.0), lambda: 0.5)

    def next_attempt(self, *, doubtful: bool, attempts: int = 0, expires: float = 86400.0) -> float:
        message = attrs.evolve(MESSAGE, expires=expires)
        recipient = attrs.evolve(RECIPIENT, attempts=attempts)
        outcome = TryLater(LOST, "mx.x.test [192.0.2.1]", doubtful=doubtful)
        update, _ = self.judge.judge(message, recipient, outcome, 100.0)
        return update.next_attempt - 100.0

    def test_at_least_half_an_hour(self) -> None:
        self.assertEqual(self.next_attempt(doubtful=False), 60.0)
        self.assertEqual(self.next_attempt(doubtful=True), DOUBT)
        self.assertEqual(self.next_attempt(doubtful=True, attempts=1), 7200.0)

    def test_but_not_beyond_its_time(self) -> None:
        self.assertEqual(self.next_attempt(doubtful=True, expires=400.0), 300.0)

    def test_the_log_says_so(self) -> None:
        events: list[dict[str, object]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.next_attempt(doubtful=False)
        self.next_attempt(doubtful=True)
        [told] = [event for event in events if event.get("event") == "doubtful"]
        self.assertEqual(
            (told["queue_id"], told["recipient"], told["remote"]),
            ("q1", "b@x.test", "mx.x.test [192.0.2.1]"),
        )

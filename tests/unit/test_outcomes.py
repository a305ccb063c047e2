"""Tests for twisted_mta.service.outcomes that need no queue around it."""

from __future__ import annotations

import attrs
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.queue import TryLater
from twisted_mta.core.replies import Reply
from twisted_mta.core.schedule import Schedule
from twisted_mta.service.outcomes import DOUBT, Judge
from twisted_mta.testing.queued import queued_message, queued_recipient

LOST = Reply(451, "4.4.2", "lost the connection, waiting for end of message")


class WarningTests(SynchronousTestCase):
    """The sender is told at the time that the configuration says, not with an attempt that happens to come later."""

    judge = Judge(Schedule((3600.0, 7200.0, 14400.0), 86400.0, warn_after=15000.0), lambda: 0.5)

    def attempts(self, **changes: object) -> list[float]:
        message = queued_message(
            **{"arrived": 0.0, "expires": 86400.0, "sender": Address("a", "b.test")} | changes
        )
        recipient = queued_recipient("b@x.test")
        self.warned: list[float] = []
        now, times = 0.0, []
        for attempts in range(5):
            recipient = attrs.evolve(recipient, attempts=attempts)
            update, report = self.judge.judge(message, recipient, TryLater(LOST), now)
            if report is not None:
                self.warned.append(now)
                recipient = attrs.evolve(recipient, warned=True)
            now = update.next_attempt
            times.append(now)
        self.foreseen = self.judge.outlook(message, queued_recipient("b@x.test"))
        return times

    def test_an_attempt_is_made_then(self) -> None:
        self.assertEqual(self.attempts(), [3600.0, 10800.0, 15000.0, 29400.0, 43800.0])
        self.assertEqual(self.warned, [15000.0])
        self.assertEqual(self.foreseen.warning, 15000.0)
        self.assertEqual(self.foreseen.attempts[:5], (0.0, 3600.0, 10800.0, 15000.0, 29400.0))

    def test_none_where_nobody_is_told(self) -> None:
        self.assertEqual(self.attempts(sender=None)[2:4], [25200.0, 39600.0])
        self.assertIsNone(self.foreseen.warning)


class DoubtTests(SynchronousTestCase):
    """RFC 1047: what may have arrived waits."""

    judge = Judge(Schedule((60.0, 7200.0), 86400.0, 0.0), lambda: 0.5)

    def next_attempt(self, *, doubtful: bool, attempts: int = 0, expires: float = 86400.0) -> float:
        message = queued_message(arrived=0.0, expires=expires)
        recipient = queued_recipient("b@x.test", attempts=attempts)
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

"""Recipients whose outcome is settled when they enter the queue."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Action, Special
from twisted_mta.core.expand.lookup import refusal
from twisted_mta.core.queue import Delivered, Failed, Outcome, Transport, TryLater
from twisted_mta.delivery.settled import SettledDelivery, discarded, expanded, refused
from twisted_mta.interfaces import IDelivery
from twisted_mta.testing.queued import queued_message, queued_recipient


class SettledTests(SynchronousTestCase):
    def outcome(self, delivery: SettledDelivery, target: str = "") -> Outcome:
        self.assertTrue(verifyObject(IDelivery, delivery))
        one = queued_recipient("a@b", transport=Transport.REFUSE, target=target)
        self.assertEqual(delivery.destination(one), "")
        attempt = delivery.deliver(queued_message(), None, [one, one], "")  # type: ignore[arg-type]
        first, second = self.successResultOf(Deferred.fromCoroutine(attempt))
        self.assertEqual(first, second)
        self.successResultOf(Deferred.fromCoroutine(delivery.close()))
        return first

    def test_success(self) -> None:
        for settle, is_expanded in ((discarded, False), (expanded, True)):
            outcome = self.outcome(SettledDelivery(settle))
            assert isinstance(outcome, Delivered)
            self.assertEqual(outcome.expanded, is_expanded)

    def test_refusals_are_what_expansion_found(self) -> None:
        for action, kind in ((Action.FAIL, Failed), (Action.DEFER, TryLater)):
            problem = refusal(Special(action, "Not here: moved", "aliases:1"), Address("a", "b"))
            assert problem is not None
            outcome = self.outcome(SettledDelivery(refused), str(problem.reply))
            assert isinstance(outcome, kind)
            self.assertEqual(outcome.reply, problem.reply)

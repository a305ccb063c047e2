"""Requests by HTTPS that get no answer."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.net.https import Https, HttpsError
from twisted_mta.testing.dns import FakeResolver


class DeadlineTests(SynchronousTestCase):
    """A host whose addresses swallow all that is sent to them."""

    def setUp(self) -> None:
        self.reactor: Any = MemoryReactorClock()  # type: ignore[no-untyped-call]
        addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
        https = Https(self.reactor, FakeResolver(addresses={"mta-sts.x.test": addresses}))
        request = https.request("GET", "https://mta-sts.x.test/", timeout=10.0, limit=10)
        self.answer = Deferred.fromCoroutine(request)

    def test_it_is_for_all_addresses_together(self) -> None:
        self.reactor.advance(10.0)
        error = self.failureResultOf(self.answer, HttpsError).value
        self.assertEqual(str(error), "no answer within 10 seconds")
        self.assertEqual([host for host, *_ in self.reactor.tcpClients], ["192.0.2.1"])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

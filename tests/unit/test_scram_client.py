"""Tests for twisted_mta.net.scram_client."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.sasl.client import Derive
from twisted_mta.net.scram_client import REMEMBERED, ScramHelper
from twisted_mta.store.threads import InlineWorkers


class CountingWorkers(InlineWorkers):
    jobs = 0

    def run(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.jobs += 1
        return super().run(function, *args, **kwargs)


class ScramHelperTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.workers = CountingWorkers()
        self.helper = ScramHelper(self.workers, lambda size: bytes(size))

    def derive(self, salt: bytes) -> bytes:
        wish = Derive("pencil", salt, 1)
        return self.successResultOf(Deferred.fromCoroutine(self.helper.derive(wish)))

    def test_nonce(self) -> None:
        self.assertEqual(self.helper.nonce(), b"A" * 24)
        self.assertNotEqual(ScramHelper(self.workers).nonce(), ScramHelper(self.workers).nonce())

    def test_keys_are_remembered(self) -> None:
        first = self.derive(b"a")
        self.assertEqual(first.hex()[:8], "170821b7")
        self.assertEqual(self.derive(b"a"), first)
        self.assertNotEqual(self.derive(b"b"), first)
        self.assertEqual(self.workers.jobs, 2)

    def test_but_not_for_ever(self) -> None:
        for number in range(REMEMBERED):
            self.derive(b"%d" % number)
        self.derive(b"0")
        self.derive(b"new")
        self.derive(b"0")
        self.assertEqual(self.workers.jobs, REMEMBERED + 1)
        self.derive(b"1")
        self.assertEqual(self.workers.jobs, REMEMBERED + 2)

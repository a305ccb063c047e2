"""Tests for `mta tls` and for the commands of the control socket behind it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.admin.tls import lines
from twisted_mta.core.tls_policy.cache import StsEntry
from twisted_mta.core.tls_policy.seen import Sighting
from twisted_mta.core.tls_policy.sts import parse_policy
from twisted_mta.delivery.tls_memory import TlsMemory
from twisted_mta.service.control import ControlError
from twisted_mta.service.tls_control import tls_handlers
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.store.tls_policies import TlsFile

NOW = 1_800_000_000.0
POLICY = parse_policy(b"version: STSv1\nmode: enforce\nmx: *.x.test\nmax_age: 86400")


class TlsListTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.file = TlsFile(Path(self.mktemp()).absolute())
        self.memory = TlsMemory(self.file, InlineWorkers(), self.clock)
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(self.memory.stop())))

    def ask(self, **arguments: Any) -> Deferred[Any]:
        async def go() -> Any:
            return await tls_handlers(self.memory)["tls.list"](arguments)

        return Deferred.fromCoroutine(go())

    def shown(self, **arguments: Any) -> list[str]:
        return list(lines(self.successResultOf(self.ask(**arguments)), NOW + 7200))

    def see(self, domain: str, tls: str = "TLSv1.3 X", **more: Any) -> None:
        known: Mapping[str, Any] = {"domain": domain, "time": NOW, "host": f"mx.{domain}", "tls": tls}
        self.memory.see(Sighting(**(known | more)))

    def test_nothing_yet(self) -> None:
        self.assertEqual(self.shown(), ["No mail has gone to other domains yet, or none that this asks for."])

    def test_each_state(self) -> None:
        self.see("a.test")
        self.see("b.test", source="dane", verified=True)
        self.see("c.test", problem="one")
        self.see("c.test", "", time=NOW + 60, problem="no shared\x1b cipher")
        self.see("d.test", "", usable=False, problem="expired", source="sts")
        self.file.save_policy(StsEntry(domain="x.test").with_policy(POLICY, "7", NOW))
        self.file.save_policy(StsEntry(domain="y.test").with_failure("8", "status 500", NOW))
        self.assertEqual(
            self.shown(),
            [
                "c.test: PLAINTEXT (119 minutes ago, mx.c.test)",
                "    had TLS until 2 hours ago; 1 sessions in plaintext since",
                "    because: no shared\ufffd cipher",
                "a.test: TLSv1.3 X, not proven (2 hours ago, mx.a.test)",
                "b.test: TLSv1.3 X, proven by DANE (2 hours ago, mx.b.test)",
                "d.test: no mail could be sent (2 hours ago, mx.d.test)",
                "    because: expired",
                "x.test: no session yet",
                "    MTA-STS: enforce, id 7, for 22 hours more: *.x.test",
                "y.test: no session yet",
                "    MTA-STS could not be fetched: status 500",
            ],
        )

    def test_selections(self) -> None:
        for domain in ("a.test", "b.test", "c.test"):
            self.see(domain, "" if domain == "b.test" else "TLSv1.3 X")
        self.assertEqual(
            self.shown(domain="A.test"), ["a.test: TLSv1.3 X, not proven (2 hours ago, mx.a.test)"]
        )
        self.assertEqual(self.shown(plaintext=True), ["b.test: PLAINTEXT (2 hours ago, mx.b.test)"])
        self.assertEqual(self.shown(limit=1)[1:], ["and 2 more (see --limit)"])

    def test_wrong_arguments(self) -> None:
        for arguments in ({"limit": 0}, {"limit": "1"}, {"domain": 5}):
            self.failureResultOf(self.ask(**arguments), ControlError)

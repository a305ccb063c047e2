"""Tests for delivery.tls_policy, delivery.sts and delivery.tls_memory: what is asked of a host, and how that is found out."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.route import LookupFailed
from twisted_mta.core.smtp.client import TlsUse
from twisted_mta.core.tls_policy.cache import REFRESH, RETRY, StsEntry
from twisted_mta.core.tls_policy.decision import Require
from twisted_mta.core.tls_policy.results import Failure, FetchFailed, Result
from twisted_mta.core.tls_policy.seen import Sighting
from twisted_mta.core.tls_policy.sts import StsPolicy, parse_policy
from twisted_mta.core.tls_policy.tlsa import TlsaRecord
from twisted_mta.core.tls_report import NO_POLICY, Session
from twisted_mta.delivery import sts as sts_module
from twisted_mta.delivery import tls_memory
from twisted_mta.delivery.sts import StsPolicies
from twisted_mta.delivery.tls_memory import TlsMemory
from twisted_mta.delivery.tls_policy import Demand, Need, Next, Pin, TlsPolicies, lookup_failed
from twisted_mta.delivery.tls_steps import TlsSteps
from twisted_mta.net.smtp_client import SessionError
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.store.tls_policies import TlsFile
from twisted_mta.testing.dns import FakeResolver

NOW = 1_800_000_000.0
WEEK = 7 * 86400
TEXT = "version: STSv1\nmode: {mode}\nmx: mx.x.test\nmax_age: 604800\n"
ENFORCE = parse_policy(TEXT.format(mode="enforce").encode())
TESTING = parse_policy(TEXT.format(mode="testing").encode())
ONE = TlsaRecord(3, 1, 1, b"\xab" * 32)
USELESS = TlsaRecord(0, 1, 1, b"\xab" * 32)


class LogCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def logged(self, text: str) -> list[dict[str, Any]]:
        return [event for event in self.events if text in str(event.get("log_format"))]

    def get(self, awaitable: Awaitable[Any]) -> Any:
        async def go() -> Any:
            return await awaitable

        return self.successResultOf(Deferred.fromCoroutine(go()))


class MemoryCase(LogCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.clock.advance(NOW)
        self.path = Path("tls.sqlite").absolute()
        self.file = TlsFile(self.path)
        self.memory = TlsMemory(self.file, InlineWorkers(), self.clock)

    def tearDown(self) -> None:
        self.get(self.memory.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])


class TlsMemoryTests(MemoryCase):
    def sight(self, tls: str, **more: Any) -> None:
        self.memory.see(
            Sighting(
                **({"domain": "x.test", "time": self.clock.seconds(), "host": "mx.x.test", "tls": tls} | more)
            )
        )

    def test_notes_are_written_a_little_later(self) -> None:
        self.sight("TLSv1.3 X")
        self.memory.count(Session(time=NOW, domain="x.test", applied=NO_POLICY))
        self.assertEqual(self.file.sightings(10), [])
        self.clock.advance(tls_memory.INTERVAL)
        self.assertEqual(len(self.file.sightings(10)), 1)
        self.assertEqual(len(self.file.reportable(99999)), 1)

    def test_a_fall_back_to_plaintext_is_told(self) -> None:
        self.sight("TLSv1.3 X")
        self.sight("", problem="no shared cipher")
        [seen] = self.get(self.memory.sightings(10))
        self.assertEqual(seen.plaintext_count, 1)
        [event] = self.logged("had TLS before")
        self.assertEqual((event["domain"], event["problem"]), ("x.test", "no shared cipher"))

    def test_what_waits_is_bounded(self) -> None:
        self.patch(tls_memory, "MAX_WAITING", 2)
        for domain in ("a.test", "b.test", "c.test"):
            self.sight("", domain=domain)
            self.memory.count(Session(time=NOW, domain=domain, applied=NO_POLICY))
        self.assertEqual(len(self.get(self.memory.sightings(10))), 2)
        self.assertEqual(len(self.file.reportable(99999)), 2)
        self.assertEqual(len(self.logged("some are missing")), 1)

    def test_what_is_left_is_written_at_the_end(self) -> None:
        self.sight("TLSv1.3 X")
        self.clock.advance(tls_memory.INTERVAL)
        self.sight("")
        self.get(self.memory.stop())
        self.file = TlsFile(self.path)
        self.assertEqual(self.file.sightings(10)[0].last.tls, "")
        self.memory = TlsMemory(self.file, InlineWorkers(), self.clock)

    def test_mail_goes_on_without_the_file(self) -> None:
        broken = sqlite3.OperationalError("disk I/O error")

        def fail(*_: Any) -> Any:
            raise broken

        for name in ("policy", "policies", "save_policy", "see", "count", "sightings"):
            self.patch(self.file, name, fail)
        self.assertEqual(self.get(self.memory.policy("x.test")), StsEntry(domain="x.test"))
        self.get(self.memory.save_policy(StsEntry(domain="x.test")))
        self.sight("")
        self.memory.count(Session(time=NOW, domain="x.test", applied=NO_POLICY))
        self.assertEqual(self.get(self.memory.sightings(10)), ())
        self.assertEqual(self.get(self.memory.policies()), ())
        self.assertEqual(len(self.logged("can't be read or written")), 6)


class PolicyHost:
    """Fetches what it is told."""

    def __init__(self) -> None:
        self.policies: dict[str, StsPolicy | Exception] = {}
        self.asked: list[str] = []
        self.late: list[Deferred[None]] | None = None

    async def __call__(self, domain: str) -> StsPolicy:
        self.asked.append(domain)
        if self.late is not None:
            waiting: Deferred[None] = Deferred()
            self.late.append(waiting)
            await waiting
        policy = self.policies[domain]
        if isinstance(policy, Exception):
            raise policy
        return policy


DOWN = FetchFailed(Failure(Result.STS_POLICY_FETCH_ERROR, "https://mta-sts.x.test: status 500", "status 500"))


class StsCase(MemoryCase):
    def setUp(self) -> None:
        super().setUp()
        self.host = PolicyHost()
        self.host.policies = {"x.test": ENFORCE}
        self.resolver = FakeResolver(txt={"_mta-sts.x.test": [b"v=STSv1; id=1;"]})
        self.sts = StsPolicies(self.memory, self.resolver, self.host, self.clock)

    def tearDown(self) -> None:
        self.sts.stop()
        super().tearDown()

    def publish(self, identifier: str, policy: StsPolicy | Exception) -> None:
        self.resolver.data["txt"]["_mta-sts.x.test"] = [f"v=STSv1; id={identifier};".encode()]
        self.host.policies["x.test"] = policy

    def policy(self) -> StsPolicy | None:
        found: StsPolicy | None = self.successResultOf(self.sts.policy("x.test"))
        return found


class StsPolicyTests(StsCase):
    def test_fetched_once_and_remembered(self) -> None:
        self.assertEqual(self.policy(), ENFORCE)
        self.assertEqual(self.policy(), ENFORCE)
        again = StsPolicies(self.memory, self.resolver, self.host, self.clock)
        self.assertEqual(self.successResultOf(again.policy("x.test")), ENFORCE)
        self.assertEqual(self.host.asked, ["x.test"])

    def test_no_record_no_policy(self) -> None:
        del self.resolver.data["txt"]["_mta-sts.x.test"]
        self.assertIsNone(self.policy())
        self.resolver.failing.add("_mta-sts.x.test")
        self.assertIsNone(self.policy())
        self.assertEqual(self.host.asked, [])

    def test_a_policy_outlives_the_record_and_a_dns_that_fails(self) -> None:
        self.policy()
        del self.resolver.data["txt"]["_mta-sts.x.test"]
        self.assertEqual(self.policy(), ENFORCE)
        self.resolver.failing.add("_mta-sts.x.test")
        self.clock.advance(WEEK - 1)
        self.assertEqual(self.policy(), ENFORCE)
        self.clock.advance(1)
        self.assertIsNone(self.policy())

    def test_a_new_id(self) -> None:
        self.policy()
        self.publish("2", TESTING)
        self.assertEqual(self.policy(), TESTING)

    def test_a_fetch_that_fails_leaves_the_old_policy_and_is_not_repeated_at_once(self) -> None:
        self.policy()
        self.publish("2", DOWN)
        self.assertEqual([self.policy(), self.policy()], [ENFORCE, ENFORCE])
        self.assertEqual(len(self.host.asked), 2)
        self.clock.advance(RETRY)
        self.policy()
        self.assertEqual(len(self.host.asked), 3)
        [event, _] = self.logged("can't be fetched")
        self.assertEqual((event["log_level"].name, event["id"]), ("warn", "2"))
        [count] = self.get(self.memory.reportable(99999)) and self.file.counts(int(NOW // 86400), "x.test")
        self.assertEqual((count.applied.type, count.failures), ("sts", 2))
        self.assertEqual(count.details[0].result, "sts-policy-fetch-error")

    def test_a_first_fetch_that_fails_is_as_if_there_were_no_policy(self) -> None:
        self.publish("1", DOWN)
        self.assertIsNone(self.policy())
        self.assertEqual(self.logged("can't be fetched")[0]["log_level"].name, "info")

    def test_those_who_ask_together_wait_together(self) -> None:
        self.host.late = []
        first, second, third = (self.sts.policy("x.test") for _ in range(3))
        self.assertNoResult(first)
        second.addErrback(lambda _: None)
        second.cancel()
        self.host.late[0].callback(None)
        self.assertEqual(self.successResultOf(first), ENFORCE)
        self.assertEqual(self.successResultOf(third), ENFORCE)
        self.assertEqual(self.host.asked, ["x.test"])

    def test_stop_ends_the_wait(self) -> None:
        self.host.late = []
        waiting = self.sts.policy("x.test")
        self.sts.stop()
        self.assertIn("stopping", str(self.failureResultOf(waiting, LookupFailed).value))

    def test_a_bug_is_not_taken_for_a_domain_without_a_policy(self) -> None:
        self.publish("1", ZeroDivisionError("bug"))
        self.assertIn("internal", str(self.failureResultOf(self.sts.policy("x.test"), LookupFailed).value))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_what_is_kept_in_memory_is_bounded(self) -> None:
        self.patch(sts_module, "CACHE_SIZE", 1)
        self.policy()
        self.successResultOf(self.sts.policy("y.test"))
        self.assertEqual(len(self.sts._entries), 1)
        self.assertEqual(self.policy(), ENFORCE)
        self.assertEqual(self.host.asked, ["x.test"])

    def test_that_it_is_used_is_written_down_once_a_day(self) -> None:
        self.policy()
        self.clock.advance(3600)
        self.policy()
        entry = self.get(self.memory.policy("x.test"))
        self.assertEqual(entry.used, NOW)
        self.clock.advance(86400)
        self.policy()
        self.assertEqual(self.get(self.memory.policy("x.test")).used, NOW + 90000)


class RefreshTests(StsCase):
    def test_refreshed_while_nobody_waits(self) -> None:
        self.policy()
        self.sts.start()
        self.assertEqual(len(self.host.asked), 1)
        for _ in range(int(REFRESH // sts_module.INTERVAL)):
            self.clock.advance(sts_module.INTERVAL)
        self.assertEqual(len(self.host.asked), 2)
        entry = self.get(self.memory.policy("x.test"))
        self.assertEqual(entry.fetched, NOW + REFRESH)

    def test_a_record_that_vanished_does_not_stop_that(self) -> None:
        self.policy()
        self.clock.advance(REFRESH)
        del self.resolver.data["txt"]["_mta-sts.x.test"]
        self.get(self.sts.refresh())
        entry = self.get(self.memory.policy("x.test"))
        self.assertEqual((entry.fetched, entry.id), (NOW + REFRESH, "1"))

    def test_old_entries_go(self) -> None:
        self.publish("1", DOWN)
        self.policy()
        self.clock.advance(2 * 86400)
        self.get(self.sts.refresh())
        self.assertEqual(self.get(self.memory.policies()), [])

    def test_a_bug_is_logged(self) -> None:
        self.policy()
        self.clock.advance(REFRESH)
        self.publish("1", ZeroDivisionError("bug"))
        self.sts.start()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class StepTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.resolver = FakeResolver(addresses={"smart.test": ["192.0.2.1"]})
        check: Any = None
        self.steps = TlsSteps(TlsPolicies(self.resolver, None), check, None)

    def plan(self, need: Need = Need.NONE, pin: Require | None = None, **given: Any) -> Deferred[Any]:
        to = Next(**({"domain": "", "host": "smart.test", "port": 587, "fixed": True} | given))
        return Deferred.fromCoroutine(self.steps.plan(to, Pin(require=pin), need, login=True))

    def test_a_password_needs_a_proven_name(self) -> None:
        for need in Need:
            [step] = self.successResultOf(self.plan(need))
            self.assertEqual((step.use, step.demand.policy.pkix_names), (TlsUse.REQUIRED, ("smart.test",)))
        [step] = self.successResultOf(self.plan(host="192.0.2.1", literal=True))
        self.assertEqual((step.demand.policy.pkix_names, step.demand.policy.sni), (("192.0.2.1",), ""))

    def test_a_login_overrides_no_refusal(self) -> None:
        error = self.failureResultOf(self.plan(pin=Require.DANE), SessionError).value
        self.assertIn('require = "dane"', error.reply.text)

    def test_what_can_not_be_found_out(self) -> None:
        self.resolver.failing.add("x.test")
        error = self.failureResultOf(self.plan(domain="x.test"), SessionError).value
        self.assertEqual(error.reply.enhanced, "4.4.3")


class DemandTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.resolver = FakeResolver(
            mx={"x.test": [(10, "mx.x.test")]},
            addresses={"mx.x.test": ["192.0.2.1"], "real.y.test": ["192.0.2.1"], "x.test": ["192.0.2.1"]},
        )
        self.policies: dict[str, StsPolicy] = {}
        self.tls = TlsPolicies(self.resolver, self._sts)

    async def _sts(self, domain: str) -> StsPolicy | None:
        return self.policies.get(domain)

    def tlsa(self, name: str, *records: TlsaRecord) -> None:
        self.resolver.data["tlsa"][name] = list(records)
        self.resolver.secure.add(name)

    def demand(self, pin: Require | None = None, need: Need = Need.NONE, **given: Any) -> Demand:
        to = Next(**({"domain": "x.test", "host": "mx.x.test", "port": 25} | given))
        asking = Deferred.fromCoroutine(self.tls.demand(to, Pin(require=pin), need))
        found: Demand = self.successResultOf(asking)
        return found

    def test_nothing(self) -> None:
        demand = self.demand()
        self.assertFalse(demand.policy.tls)
        self.assertEqual(
            (demand.applied, demand.domain, demand.policy.sni), (NO_POLICY, "x.test", "mx.x.test")
        )

    def test_mta_sts(self) -> None:
        self.policies["x.test"] = ENFORCE
        demand = self.demand()
        self.assertEqual(demand.policy.pkix_names, ("mx.x.test",))
        self.assertEqual((demand.applied.type, demand.applied.hosts), ("sts", ("mx.x.test",)))
        refused = self.demand(host="evil.test")
        self.assertIsNotNone(refused.policy.refusal)
        self.assertEqual(refused.applied.type, "sts")
        self.tls.mta_sts = False
        self.assertFalse(self.demand().policy.tls)

    def test_mta_sts_in_testing(self) -> None:
        self.policies["x.test"] = TESTING
        demand = self.demand()
        assert demand.trial is not None
        self.assertFalse(demand.policy.tls)
        self.assertEqual((demand.trial.pkix_names, demand.applied.type), (("mx.x.test",), "sts"))
        wrong = self.demand(host="evil.test")
        assert wrong.trial_failure is not None
        self.assertEqual(wrong.trial_failure.code, "mx-mismatch")

    def test_dane(self) -> None:
        self.tlsa("_25._tcp.mx.x.test", ONE)
        self.resolver.secure |= {"x.test", "mx.x.test"}
        demand = self.demand()
        self.assertEqual(demand.policy.records, (ONE,))
        self.assertEqual(demand.policy.dane_names, ("mx.x.test", "x.test"))
        self.assertEqual((demand.applied.type, demand.applied.lines), ("tlsa", (str(ONE),)))
        self.tls.dane = False
        self.assertEqual(self.demand().policy.records, ())

    def test_dane_on_another_port(self) -> None:
        self.tlsa("_2525._tcp.mx.x.test", ONE)
        self.resolver.secure |= {"x.test", "mx.x.test"}
        self.assertEqual(self.demand().policy.records, ())
        self.assertEqual(self.demand(port=2525).policy.records, (ONE,))

    def test_dane_with_mx_records_that_are_not_signed(self) -> None:
        """RFC 7672 §3.2.2: then the host's own name is the only one."""
        self.tlsa("_25._tcp.mx.x.test", ONE)
        self.resolver.secure.add("mx.x.test")
        self.assertEqual(self.demand().policy.dane_names, ("mx.x.test",))
        self.assertIsNotNone(self.demand(pin=Require.DANE).policy.refusal)

    def test_hosts_that_are_not_signed_are_not_asked_for_records(self) -> None:
        """RFC 7672 §2.2.2: there are name servers that fail at that."""
        self.resolver.secure.add("x.test")
        self.resolver.failing.add("_25._tcp.mx.x.test")
        self.assertFalse(self.demand().policy.tls)
        self.assertEqual([kind for kind, _ in self.resolver.asked], ["mx", "addresses"])

    def test_records_that_cannot_be_looked_up(self) -> None:
        self.resolver.secure |= {"x.test", "mx.x.test"}
        self.resolver.failing.add("_25._tcp.mx.x.test")
        demand = self.demand()
        assert demand.policy.refusal is not None
        self.assertIn("told to fail", demand.policy.refusal.text)
        self.assertEqual(demand.applied.type, "tlsa")

    def test_records_of_no_use(self) -> None:
        self.tlsa("_25._tcp.mx.x.test", USELESS)
        self.resolver.secure |= {"x.test", "mx.x.test"}
        policy = self.demand().policy
        self.assertEqual((policy.tls, policy.verified), (True, False))

    def test_host_that_is_an_alias(self) -> None:
        """RFC 7672 §2.2.2: first the name at the end, then the one in the MX record."""
        self.resolver.aliases["mx.x.test"] = "real.y.test"
        self.resolver.secure |= {"x.test", "mx.x.test", "real.y.test"}
        self.assertFalse(self.demand().policy.tls)
        self.tlsa("_25._tcp.mx.x.test", USELESS)
        self.assertTrue(self.demand().policy.tls)
        self.tlsa("_25._tcp.real.y.test", ONE)
        policy = self.demand().policy
        self.assertEqual((policy.dane_names, policy.sni), (("real.y.test", "x.test"), "real.y.test"))

    def test_signed_alias_of_a_host_that_is_not_signed(self) -> None:
        self.resolver.aliases["mx.x.test"] = "real.y.test"
        self.resolver.secure |= {"x.test", "mx.x.test"}
        self.tlsa("_25._tcp.mx.x.test", ONE)
        self.tlsa("_25._tcp.real.y.test", USELESS)
        self.assertEqual(self.demand().policy.dane_names, ("mx.x.test", "x.test"))

    def test_domain_that_is_an_alias(self) -> None:
        self.resolver.aliases["x.test"] = "hosted.test"
        self.resolver.secure |= {"x.test", "hosted.test", "mx.x.test"}
        self.tlsa("_25._tcp.mx.x.test", ONE)
        self.assertEqual(self.demand().policy.dane_names, ("mx.x.test", "x.test", "hosted.test"))

    def test_domain_that_is_its_own_host(self) -> None:
        policy = self.demand(host="x.test", need=Need.PROOF).policy
        self.assertEqual((policy.refusal, policy.pkix_names), (None, ("x.test",)))

    def test_host_without_addresses(self) -> None:
        self.assertFalse(self.demand(host="nowhere.test").policy.tls)

    def test_mx_records_that_can_not_be_proven_or_not(self) -> None:
        self.resolver.failing.add("x.test")
        to = Next(domain="x.test", host="mx.x.test", port=25)
        asking = Deferred.fromCoroutine(self.tls.demand(to, Pin(), Need.NONE))
        error = self.failureResultOf(asking, LookupFailed).value
        self.assertEqual(lookup_failed(to, error).enhanced, "4.4.3")

    def test_configured_host(self) -> None:
        self.policies["smart.test"] = parse_policy(
            TEXT.format(mode="enforce").replace("mx.x", "smart").encode()
        )
        demand = self.demand(domain="", host="smart.test", fixed=True)
        self.assertEqual((demand.domain, demand.policy.pkix_names), ("smart.test", ("smart.test",)))

    def test_ip_addresses(self) -> None:
        demand = self.demand(domain="", host="192.0.2.1", literal=True)
        self.assertEqual((demand.policy.tls, demand.policy.sni), (False, ""))
        self.assertIsNotNone(
            self.demand(domain="", host="192.0.2.1", literal=True, need=Need.PROOF).policy.refusal
        )
        self.assertEqual(
            self.demand(domain="", host="192.0.2.1", literal=True, need=Need.IGNORE).policy.sni, ""
        )
        self.assertEqual(self.resolver.asked, [])

    def test_what_the_message_asks(self) -> None:
        self.policies["x.test"] = ENFORCE
        self.assertFalse(self.demand(need=Need.IGNORE).policy.tls)
        self.policies["x.test"] = TESTING
        self.assertEqual(self.demand(need=Need.PROOF).policy.pkix_names, ("mx.x.test",))
        self.assertEqual(self.demand(need=Need.PROOF_IF_POSSIBLE).policy.pkix_names, ("mx.x.test",))

    def test_nobody_to_ask_for_policies(self) -> None:
        self.tls = TlsPolicies(self.resolver, None)
        self.assertFalse(self.demand().policy.tls)
        self.assertIsNotNone(self.demand(pin=Require.STS).policy.refusal)

    def test_demand_is_a_value(self) -> None:
        self.assertEqual(self.demand(), attrs.evolve(self.demand()))

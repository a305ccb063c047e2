"""policy.reverse_dns and policy.helo: what other mail servers must be like."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import Account, Peer
from twisted_mta.policy.base import is_stranger
from twisted_mta.policy.helo import HeloCheck
from twisted_mta.policy.reverse_dns import MAX_NAMES, PATIENCE, Finding, Host, ReverseDnsCheck, find_host
from twisted_mta.testing.dns import FakeResolver

ENVELOPE = Envelope(Address("dave", "example.org"))
BOB = Recipient(Address("bob", "example.test"))
TRUSTED = [ip_network("198.51.100.0/24")]


def good(**more: Any) -> FakeResolver:
    """A DNS in which 192.0.2.1 has a name that leads back."""
    return FakeResolver(
        ptr={"192.0.2.1": ["mail.example.org"]}, addresses={"mail.example.org": ["192.0.2.1"]}, **more
    )


def stranger(address: str = "192.0.2.1", helo: str = "mail.example.org") -> Peer:
    return Peer(address=address, port=1, helo=helo, esmtp=True)


class StrangerTests(SynchronousTestCase):
    def test_who_is_one(self) -> None:
        self.assertTrue(is_stranger(stranger(), TRUSTED))
        known = stranger()
        known.account = Account("alice@example.test", "/mail/alice")
        others = [known, *map(stranger, ("127.0.0.1", "::1", "198.51.100.7"))]
        others += [Peer(address="192.0.2.1", port=1, role=role) for role in ("submission", "lmtp")]
        others.append(Peer(address="", port=0, role="local"))
        self.assertEqual([is_stranger(peer, TRUSTED) for peer in others], [False] * len(others))


class FindHostTests(SynchronousTestCase):
    def find(self, resolver: FakeResolver, address: str = "192.0.2.1") -> Host:
        return self.successResultOf(ensureDeferred(find_host(resolver, address)))

    def test_a_name_that_leads_back(self) -> None:
        self.assertEqual(self.find(good()), Host(Finding.NAME, "mail.example.org"))

    def test_an_ipv6_address_in_another_spelling(self) -> None:
        resolver = FakeResolver(
            ptr={"2001:db8::1": ["Mail.Example.ORG"]}, addresses={"mail.example.org": ["2001:DB8:0::1"]}
        )
        self.assertEqual(self.find(resolver, "2001:db8::1"), Host(Finding.NAME, "mail.example.org"))

    def test_no_name(self) -> None:
        self.assertEqual(self.find(FakeResolver()), Host(Finding.NONE))
        self.assertEqual(self.find(FakeResolver(ptr={"192.0.2.1": []})), Host(Finding.NONE))

    def test_a_name_of_somebody_else(self) -> None:
        for addresses in (["192.0.2.99"], [], None):
            resolver = good()
            resolver.data["addresses"] = {} if addresses is None else {"mail.example.org": addresses}
            self.assertEqual(self.find(resolver), Host(Finding.NONE, "mail.example.org"))

    def test_no_answer(self) -> None:
        for failing in ("192.0.2.1", "mail.example.org"):
            resolver = good()
            resolver.failing.add(failing)
            self.assertIs(self.find(resolver).finding, Finding.TEMPORARY)

    def test_one_of_several(self) -> None:
        resolver = good()
        resolver.data["ptr"]["192.0.2.1"] = ["a.test", "mail.example.org", "b.test"]
        resolver.failing.add("a.test")
        self.assertEqual(self.find(resolver), Host(Finding.NAME, "mail.example.org"))

    def test_more_names_than_we_ask_for(self) -> None:
        resolver = FakeResolver(ptr={"192.0.2.1": [f"h{n}.test" for n in range(1000)]})
        self.assertIs(self.find(resolver).finding, Finding.NONE)
        self.assertEqual(len(resolver.asked), 1 + MAX_NAMES)

    def test_what_is_no_host_name(self) -> None:
        long = "x" * 64 + ".test", ("x" * 60 + ".") * 5 + "test"
        for name in ("", "a b", "x\r\ny", "(x)", "a..b", "-a.b", "\xfc.test", *long):
            resolver = FakeResolver(ptr={"192.0.2.1": [name]}, addresses={name: ["192.0.2.1"]})
            self.assertEqual(self.find(resolver), Host(Finding.NONE), name)


class ReverseDnsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.resolver = good(clock=self.clock)
        self.peer = stranger()

    def check(self, require: bool = True) -> ReverseDnsCheck:
        return ReverseDnsCheck(self.resolver, self.clock, TRUSTED, require=require)

    def judge(self, check: ReverseDnsCheck, recipient: Recipient = BOB) -> Any:
        check.on_connect(self.peer)
        verdict: Any = check.on_rcpt(self.peer, ENVELOPE, recipient)
        return verdict if verdict is None or isinstance(verdict, Reply) else ensureDeferred(verdict)

    def test_a_good_client(self) -> None:
        self.assertIsNone(self.judge(self.check()))
        self.assertEqual((self.peer.host, self.peer.host_verified), ("mail.example.org", True))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refused(self) -> None:
        self.resolver.data["addresses"]["mail.example.org"] = ["192.0.2.99"]
        self.assertEqual(
            str(self.judge(self.check())),
            "550 5.7.25 Your address 192.0.2.1 needs a host name in the DNS (PTR) that leads back to it (A, AAAA)",
        )
        self.assertEqual((self.peer.host, self.peer.host_verified), ("mail.example.org", False))

    def test_postponed(self) -> None:
        self.resolver.failing.add("192.0.2.1")
        self.assertTrue(str(self.judge(self.check())).startswith("450 4.7.25 The DNS does not tell"))

    def test_exempt(self) -> None:
        self.resolver.data["ptr"].clear()
        for domain in ("", "example.test"):
            self.assertIsNone(self.judge(self.check(), Recipient(Address("Postmaster", domain))))
        for address in ("198.51.100.7", "127.0.0.1"):
            self.peer = stranger(address)
            self.assertIsNone(self.judge(self.check()))
        self.peer = stranger()
        self.peer.account = Account("alice@example.test", "/mail/alice")
        self.assertIsNone(self.judge(self.check()))
        self.peer = stranger()
        self.assertIsNotNone(self.judge(self.check()))

    def test_nobody_is_asked_about_this_machine_or_submission(self) -> None:
        for peer in (stranger("127.0.0.1"), Peer(address="192.0.2.1", port=1, role="submission")):
            self.check().on_connect(peer)
        self.assertEqual(self.resolver.asked, [])

    def test_the_session_waits_only_where_it_must(self) -> None:
        self.resolver.delay = 1.0
        check = self.check()
        self.assertIsNone(check.on_connect(self.peer))
        self.assertIsNone(check.on_mail(self.peer, ENVELOPE))
        waiting = self.judge(check)
        self.assertNoResult(waiting)
        self.clock.pump([1.0, 1.0])
        self.assertIsNone(self.successResultOf(waiting))
        self.assertIsNone(self.judge(check), "now it is known")
        self.assertEqual(len(self.resolver.asked), 2)

    def test_and_never_for_long(self) -> None:
        self.resolver.delay = 3600.0
        check = self.check()
        waiting = self.judge(check)
        self.clock.advance(PATIENCE)
        self.assertEqual(self.successResultOf(waiting).code, 450)
        self.clock.pump([3600, 3600])
        self.assertEqual(self.judge(check).code, 450, "an answer that comes later changes nothing")
        self.assertEqual(self.peer.host, "")

    def test_another_client_behind_the_connection(self) -> None:
        """XCLIENT names another address."""
        check = self.check()
        self.assertIsNone(self.judge(check))
        self.peer.address = "192.0.2.2"
        self.assertEqual(self.judge(check).code, 550)
        self.assertEqual((self.peer.host, self.peer.host_verified), ("", False))

    def test_an_answer_for_the_client_before(self) -> None:
        self.resolver.delay = 1.0
        self.check().on_connect(self.peer)
        self.peer.address = "192.0.2.2"
        self.clock.pump([1.0, 1.0])
        self.assertEqual(self.peer.host, "")

    def test_a_bug_in_the_resolver(self) -> None:
        for kind, name in (("ptr", "192.0.2.1"), ("addresses", "mail.example.org")):
            self.resolver = good()
            self.resolver.data[kind][name] = RuntimeError("bug")
            self.peer = stranger()
            self.assertEqual(self.judge(self.check()).code, 450)
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def told(self, check: ReverseDnsCheck) -> list[str]:
        """What is logged about two messages of one session."""
        with capturedLogs() as logs:
            for _ in range(2):
                verdict: Any = check.on_message(self.peer, ENVELOPE, b"")
                if verdict is not None:
                    waiting = ensureDeferred(verdict)
                    self.clock.advance(PATIENCE)
                    self.assertIsNone(self.successResultOf(waiting))
        return [str(formatEvent(event)) for event in logs]

    def test_log_only(self) -> None:
        self.resolver.data["ptr"].clear()
        check = self.check(require=False)
        self.assertIsNone(self.judge(check))
        (line,) = self.told(check)
        self.assertIn(
            '192.0.2.1 (no name) would be refused with checks.reverse_dns = "require": 550 5.7.25 ', line
        )

    def test_before_the_message_is_taken_the_name_is_there(self) -> None:
        self.resolver.delay = 1.0
        check = self.check(require=False)
        check.on_connect(self.peer)
        pending: Any = check.on_message(self.peer, ENVELOPE, b"")
        waiting: Deferred[Any] = ensureDeferred(pending)
        self.assertNoResult(waiting)
        self.clock.pump([1.0, 1.0])
        self.assertIsNone(self.successResultOf(waiting))
        self.assertTrue(self.peer.host_verified)

    def test_nothing_is_said_of_good_and_of_known_clients(self) -> None:
        self.assertEqual(self.told(self.check(require=False)), [])
        self.resolver.data["ptr"].clear()
        self.peer = stranger("198.51.100.1")
        self.assertEqual(self.told(self.check(require=False)), [])
        self.peer = stranger("192.0.2.3")
        self.assertEqual(self.told(self.check(require=True)), [], "the recipients were refused before")

    def test_patience_while_a_message_waits(self) -> None:
        self.resolver.delay = 3600.0
        (line,) = self.told(self.check(require=False))
        self.assertIn("450 4.7.25", line)


class HeloTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.resolver = FakeResolver(addresses={"mx.example.test": ["203.0.113.1", "2001:db8::25"]})

    def judge(self, helo: str, address: str = "192.0.2.1") -> Reply | None:
        check = HeloCheck("mx.example.test", self.resolver, TRUSTED, require=True)
        verdict: Any = check.on_mail(stranger(address, helo), ENVELOPE)
        if verdict is None or isinstance(verdict, Reply):
            return verdict
        waiting: Deferred[Any] = ensureDeferred(verdict)
        result: Reply | None = self.successResultOf(waiting)
        return result

    def test_good(self) -> None:
        for helo in (
            "mail.example.org", "localhost", "WIN-1_2", "[192.0.2.1]", "[192.0.2.99]", "[IPv6:2001:db8::1]",
            "example.test", "m\xfcller.example", "[tag:x]",
        ):  # fmt: skip
            with self.subTest(helo):
                self.assertIsNone(self.judge(helo))

    def test_bad(self) -> None:
        for helo, problem in {
            "192.0.2.1": "is an address without brackets: send a host name, or [192.0.2.1]",
            "2001:db8::1": "is neither a host name nor an address literal",
            "a_client!": "is neither a host name nor an address literal",
            "[300.1.1.1]": "is neither a host name nor an address literal",
            "-": "is neither a host name nor an address literal",
            "mx.example.test": "is our own name",
            "MX.Example.Test.": "is our own name",
            "[203.0.113.1]": "is our own address",
            "[IPv6:2001:db8:0::25]": "is our own address",
        }.items():
            with self.subTest(helo):
                self.assertEqual(self.judge(helo), Reply(550, "5.7.1", f"Your EHLO {problem}"))

    def test_the_dns_does_not_answer(self) -> None:
        self.resolver.failing.add("mx.example.test")
        self.assertIsNotNone(self.judge("mx.example.test"))
        self.assertIsNone(self.judge("[203.0.113.1]"))

    def test_we_ourselves_and_those_we_trust(self) -> None:
        for address in ("203.0.113.1", "127.0.0.1", "198.51.100.9"):
            self.assertIsNone(self.judge("mx.example.test", address))

    def test_log_only(self) -> None:
        check = HeloCheck("mx.example.test", self.resolver, TRUSTED, require=False)
        peer = stranger(helo="192.0.2.1")
        with capturedLogs() as logs:
            for _ in range(2):
                self.assertIsNone(check.on_mail(peer, ENVELOPE))
        (event,) = logs
        line = str(formatEvent(event))
        self.assertIn('192.0.2.1 would be refused with checks.helo = "require", it said ', line)

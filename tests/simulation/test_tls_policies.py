"""TLS as other domains want it, on a simulated network: MTA-STS, DANE, pins, REQUIRETLS, what is remembered, and reports."""

from __future__ import annotations

import gzip
import json
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.tls_policy.results import Failure, Result
from twisted_mta.core.tls_policy.tlsa import TlsaRecord
from twisted_mta.net.https import Answer
from twisted_mta.service.tls_control import tls_handlers
from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.world import World

HOUR, DAY = 3600.0, 86400.0
MESSAGE = b"Subject: hello\r\n\r\nthe body\r\n"
RELAY = '\n[relay]\nnetworks = ["127.0.0.0/8"]\n'
VALIDATING = RELAY + "\n[dns]\nvalidating = true\n"
ONE = TlsaRecord(3, 1, 1, b"\xab" * 32)
HOST = "192.0.2.1"
EXPIRED = Failure(
    Result.CERTIFICATE_EXPIRED, "its certificate can't be trusted (certificate has expired)", "expired"
)


class TlsCase(SynchronousTestCase):
    config = RELAY

    def setUp(self) -> None:
        self.world = World(Path(self.mktemp()), self.config)
        self.addCleanup(self.world.close)
        self.peer = self.world.host("example.org", HOST, SmtpPeer(tls=object()))
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def publish(self, mode: str, *hosts: str, identifier: str = "1", age: int = 604800) -> None:
        """An MTA-STS policy of example.org."""
        lines = ["version: STSv1", f"mode: {mode}", *(f"mx: {host}" for host in hosts), f"max_age: {age}"]
        self.world.web.policy("example.org", "\r\n".join(lines))
        self.world.resolver.data["txt"]["_mta-sts.example.org"] = [f"v=STSv1; id={identifier};".encode()]

    def sign(self, *names: str) -> None:
        self.world.resolver.secure |= {"example.org", "mx.example.org", *names}

    def tlsa(self, record: TlsaRecord = ONE) -> None:
        """A signed TLSA record of its host."""
        self.world.resolver.data["tlsa"]["_25._tcp.mx.example.org"] = [record]
        self.sign("_25._tcp.mx.example.org")

    def send(self, *recipients: str, message: bytes = MESSAGE, **wishes: Any) -> None:
        to = tuple(Recipient(Address.parse(each)) for each in recipients or ("carol@example.org",))
        self.assertEqual(
            self.world.submit(Envelope(Address("alice", "example.test"), to, **wishes), message).code, 250
        )
        self.world.advance(1)

    def delivered(self, peer: SmtpPeer | None = None) -> list[bool]:
        """Whether there was TLS, for each message that arrived."""
        return [message.tls for message in (peer or self.peer).messages]

    def why(self) -> str:
        """What is known of the one recipient that waits."""
        items: list[Any] = []

        async def look() -> Any:
            return await self.world.parts.store.listing()

        Deferred.fromCoroutine(look()).addCallback(items.extend)
        [recipient] = [each for item in items for each in item.recipients]
        reply: str = recipient.last_reply
        return reply

    def known(self, **arguments: Any) -> list[dict[str, Any]]:
        """What `mta tls` shows."""
        found: list[Any] = []

        async def look() -> Any:
            return await tls_handlers(self.world.parts.tls.memory)["tls.list"](arguments)

        Deferred.fromCoroutine(look()).addCallback(found.append)
        domains: list[dict[str, Any]] = found[0]["domains"]
        return domains

    def logged(self, text: str) -> list[dict[str, Any]]:
        return [event for event in self.events if text in str(event.get("log_format"))]


class OpportunisticTests(TlsCase):
    def test_with_any_certificate(self) -> None:
        self.world.network.distrusted[HOST] = EXPIRED
        self.send()
        self.assertEqual(self.delivered(), [True])

    def test_a_fall_back_to_plaintext_is_remembered_and_told(self) -> None:
        self.send()
        [before] = self.known()
        self.assertEqual(
            (before["domain"], before["tls"], before["verified"]),
            ("example.org", "TLSv1.3 TLS_PLAYED", False),
        )
        self.world.advance(HOUR)
        self.world.network.broken_tls.add(HOST)
        self.send()
        self.world.advance(10)
        self.assertEqual(self.delivered(), [True, False])
        [after] = self.known(plaintext=True)
        self.assertEqual((after["tls"], after["plaintext_count"]), ("", 1))
        self.assertIn("no shared cipher", after["problem"])
        self.assertEqual(after["tls_at"], before["seen_at"])
        [event] = self.logged("had TLS before")
        self.assertEqual((event["domain"], event["host"]), ("example.org", "mx.example.org"))
        self.world.network.broken_tls.clear()
        self.world.advance(HOUR)
        self.send()
        self.assertEqual(self.known(plaintext=True), [])
        self.assertEqual(self.known()[0]["plaintext_count"], 0)

    def test_it_is_remembered_over_a_restart(self) -> None:
        self.send()
        self.world.restart()
        self.assertEqual(self.known()[0]["tls"], "TLSv1.3 TLS_PLAYED")

    def test_a_host_without_tls(self) -> None:
        self.peer.tls = None
        self.send()
        self.assertEqual(self.delivered(), [False])
        self.assertEqual(self.known()[0]["tls"], "")
        self.assertEqual(self.logged("had TLS before"), [])


class MtaStsTests(TlsCase):
    def test_enforced(self) -> None:
        self.publish("enforce", "mx.example.org")
        self.send()
        self.assertEqual(self.delivered(), [True])
        self.assertEqual(self.world.network.checked[-1].pkix_names, ("mx.example.org",))
        [known] = self.known()
        self.assertEqual(
            (known["source"], known["verified"], known["policy"]["mode"]), ("sts", True, "enforce")
        )

    def test_a_certificate_that_is_not_good_delays(self) -> None:
        self.publish("enforce", "mx.example.org")
        self.world.network.distrusted[HOST] = EXPIRED
        self.send()
        self.assertEqual(self.delivered(), [])
        self.assertEqual(
            self.why(),
            "451 4.7.5 TLS: its certificate can't be trusted (certificate has expired); the MTA-STS policy of "
            "example.org requires it",
        )
        self.assertFalse(self.known()[0]["usable"])
        self.world.network.distrusted.clear()
        self.world.advance(HOUR)
        self.assertEqual(self.delivered(), [True])

    def test_nothing_is_said_to_a_host_that_is_not_trusted(self) -> None:
        self.publish("enforce", "mx.example.org")
        self.world.network.distrusted[HOST] = EXPIRED
        self.send()
        self.assertEqual(self.peer.commands, ["EHLO mx.example.test", "STARTTLS"])

    def test_no_tls_delays(self) -> None:
        self.publish("enforce", "mx.example.org")
        self.peer.tls = None
        self.send()
        self.assertEqual(self.delivered(), [])
        self.assertIn("offers no TLS", self.why())
        self.assertIn("MTA-STS policy of example.org", self.why())

    def test_broken_tls_is_not_done_without(self) -> None:
        self.publish("enforce", "mx.example.org")
        self.world.network.broken_tls.add(HOST)
        self.send()
        self.world.advance(HOUR)
        self.assertEqual(self.delivered(), [])

    def test_hosts_that_the_policy_does_not_name_are_passed_over(self) -> None:
        other = self.world.host("other.test", "192.0.2.2", SmtpPeer(tls=object()))
        self.world.resolver.data["mx"]["example.org"] = [(5, "mx.other.test"), (10, "mx.example.org")]
        self.publish("enforce", "mx.example.org")
        self.send()
        self.assertEqual((self.delivered(), other.connections), ([True], 0))

    def test_none_of_the_hosts_is_named(self) -> None:
        self.publish("enforce", "*.elsewhere.test")
        self.send()
        self.assertEqual(self.peer.connections, 0)
        self.assertIn(
            "none of the mail hosts in the MTA-STS policy of example.org (*.elsewhere.test)", self.why()
        )
        # RFC 8461 §5: a new policy is looked for before the message is given up.
        self.publish("enforce", "mx.example.org", identifier="2")
        self.world.advance(HOUR)
        self.assertEqual(self.delivered(), [True])

    def test_the_policy_stays_in_force_when_the_dns_forgets_it(self) -> None:
        self.publish("enforce", "mx.example.org")
        self.send()
        del self.world.resolver.data["txt"]["_mta-sts.example.org"]
        self.world.web.pages.clear()
        self.world.network.distrusted[HOST] = EXPIRED
        self.world.restart()
        self.world.advance(3 * DAY, step=HOUR)
        self.send()
        self.assertEqual(self.delivered(), [True])
        self.assertTrue(self.why())

    def test_refreshed_daily(self) -> None:
        self.publish("enforce", "mx.example.org")
        self.send()
        self.world.advance(10 * DAY, step=HOUR)
        self.assertGreaterEqual(len(self.world.web.requests), 9)
        self.assertEqual(self.known()[0]["policy"]["mode"], "enforce")

    def test_in_testing_mail_goes_on(self) -> None:
        self.publish("testing", "mx.example.org")
        self.world.network.distrusted[HOST] = EXPIRED
        self.send()
        self.assertEqual(self.delivered(), [True])

    def test_turned_off(self) -> None:
        self.world.config_text("[relay]\nmta_sts = false\n" + 'networks = ["127.0.0.0/8"]\n')
        self.publish("enforce", "mx.example.org")
        self.world.network.broken_tls.add(HOST)
        self.send()
        self.assertEqual(self.delivered(), [False])

    def test_tls_required_no(self) -> None:
        """RFC 8689 §4.2.2: the sender would rather have it delivered."""
        self.publish("enforce", "mx.example.org")
        self.world.network.broken_tls.add(HOST)
        self.send(message=b"TLS-Required: No\r\n" + MESSAGE)
        self.assertEqual(self.delivered(), [False])
        self.send()
        self.assertEqual(self.delivered(), [False])


class DaneTests(TlsCase):
    config = VALIDATING

    def test_enforced(self) -> None:
        self.tlsa()
        self.send()
        self.assertEqual(self.delivered(), [True])
        self.assertEqual(self.world.network.checked[-1].records, (ONE,))
        self.assertEqual((self.known()[0]["source"], self.known()[0]["verified"]), ("dane", True))

    def test_no_match_delays(self) -> None:
        self.tlsa()
        self.world.network.distrusted[HOST] = Failure(
            Result.CERTIFICATE_HOST_MISMATCH, "its certificate matches none of its TLSA records"
        )
        self.send()
        self.assertEqual(self.delivered(), [])
        self.assertIn("none of its TLSA records; its TLSA records require it (DANE)", self.why())

    def test_records_of_no_use_want_tls_at_least(self) -> None:
        self.tlsa(TlsaRecord(0, 0, 1, b"x" * 32))
        self.world.network.distrusted[HOST] = EXPIRED
        self.send()
        self.assertEqual(self.delivered(), [True])
        self.world.network.broken_tls.add(HOST)
        self.world.advance(HOUR)
        self.send()
        self.assertEqual(self.delivered(), [True])

    def test_records_that_cannot_be_looked_up_delay(self) -> None:
        self.tlsa()
        self.world.resolver.failing.add("_25._tcp.mx.example.org")
        self.send()
        self.assertEqual(self.peer.connections, 0)
        self.assertIn("its TLSA records can't be looked up", self.why())

    def test_the_next_host(self) -> None:
        other = self.world.host("other.test", "192.0.2.2", SmtpPeer(tls=object()))
        self.world.resolver.data["mx"]["example.org"] = [(10, "mx.example.org"), (20, "mx.other.test")]
        self.tlsa()
        self.world.network.distrusted[HOST] = EXPIRED
        self.send()
        self.assertEqual((self.delivered(), self.delivered(other)), ([], [True]))


class PinTests(TlsCase):
    config = VALIDATING.replace(
        "\n[dns]",
        '\n[[relay.domain]]\nnames = ["example.org"]\nrequire = "any"\n'
        '\n[[relay.domain]]\nnames = ["pkix.test"]\nrequire = "pkix"\nhosts = ["*.pkix.test"]\n'
        '\n[[relay.domain]]\nnames = ["sts.test"]\nrequire = "sts"\n'
        '\n[[relay.domain]]\nnames = ["dane.test"]\nrequire = "dane"\n\n[dns]',
    )

    def test_any(self) -> None:
        self.world.network.distrusted[HOST] = EXPIRED
        self.send()
        self.assertEqual(self.delivered(), [True])
        self.world.network.broken_tls.add(HOST)
        self.world.advance(HOUR)
        self.send()
        self.assertEqual(self.delivered(), [True])
        self.assertIn("the configuration requires it", self.why())

    def test_pkix(self) -> None:
        peer = self.world.host("pkix.test", "192.0.2.2", SmtpPeer(tls=object()))
        self.send("x@pkix.test")
        self.assertEqual(self.delivered(peer), [True])
        self.world.network.distrusted["192.0.2.2"] = EXPIRED
        self.world.advance(HOUR)
        self.send("x@pkix.test")
        self.assertEqual(self.delivered(peer), [True])

    def test_sts(self) -> None:
        peer = self.world.host("sts.test", "192.0.2.2", SmtpPeer(tls=object()))
        self.send("x@sts.test")
        self.assertEqual(peer.connections, 0)
        self.assertIn("there is no MTA-STS policy that could be had", self.why())

    def test_dane(self) -> None:
        peer = self.world.host("dane.test", "192.0.2.2", SmtpPeer(tls=object()))
        self.send("x@dane.test")
        self.assertEqual(peer.connections, 0)
        self.assertIn("no TLSA records that DNSSEC proves", self.why())


class RequireTlsTests(TlsCase):
    """RFC 8689 §4.2.1, with hosts from the DNS."""

    config = VALIDATING

    def setUp(self) -> None:
        super().setUp()
        self.peer.extensions.append("REQUIRETLS")

    def bounced(self) -> list[bytes]:
        return [
            line for mail in self.world.mail("alice") for line in mail.splitlines() if b"Status: " in line
        ]

    def test_proven_by_dnssec(self) -> None:
        self.sign()
        self.send(require_tls=True)
        self.assertEqual(self.delivered(), [True])
        self.assertIn("REQUIRETLS", self.peer.messages[0].commands[0])
        self.assertEqual(self.world.network.checked[-1].pkix_names, ("mx.example.org",))

    def test_proven_by_dane(self) -> None:
        self.tlsa()
        self.send(require_tls=True)
        self.assertEqual(self.delivered(), [True])
        self.assertEqual(self.world.network.checked[-1].records, (ONE,))

    def test_proven_by_mta_sts(self) -> None:
        self.publish("testing", "mx.example.org")
        self.send(require_tls=True)
        self.assertEqual(self.delivered(), [True])

    def test_a_certificate_that_is_not_good_is_final(self) -> None:
        self.publish("enforce", "mx.example.org")
        self.world.network.distrusted[HOST] = EXPIRED
        self.send(require_tls=True)
        self.assertEqual((self.delivered(), self.bounced()), ([], [b"Status: 5.7.10"]))

    def test_a_dns_that_fails_is_not(self) -> None:
        self.tlsa()
        self.world.resolver.failing.add("_25._tcp.mx.example.org")
        self.send(require_tls=True)
        self.assertEqual(self.bounced(), [])
        self.assertTrue(self.why())

    def test_each_host_is_asked_whether_it_keeps_the_promise(self) -> None:
        """RFC 8689 §4.2.1: steps 2 to 5 are repeated with each host."""
        backup = SmtpPeer(tls=object())
        self.world.resolver.data["mx"]["example.org"] = [(10, "mx.example.org"), (20, "mx2.example.org")]
        self.world.resolver.data["addresses"]["mx2.example.org"] = ["192.0.2.3"]
        self.world.network.servers["192.0.2.3", 25] = backup
        self.publish("testing", "*.example.org")
        self.peer.extensions.remove("REQUIRETLS")
        self.send(require_tls=True)
        self.assertEqual((self.delivered(), self.bounced()), ([], [b"Status: 5.7.30"]))
        self.assertEqual(backup.connections, 1)
        backup.extensions.append("REQUIRETLS")
        self.world.advance(10)
        self.send(require_tls=True)
        self.assertEqual((self.delivered(), self.delivered(backup)), ([], [True]))

    def test_nothing_proves_it(self) -> None:
        self.send(require_tls=True)
        self.assertEqual((self.peer.connections, self.bounced()), (0, [b"Status: 5.7.30"]))

    def test_a_bounce_goes_without_proof_if_there_is_none(self) -> None:
        self.world.host("example.com", "192.0.2.2", SmtpPeer(replies={"RCPT": "550 5.1.1 No"}))
        self.sign("example.com", "mx.example.com")
        envelope = Envelope(
            Address("carol", "example.org"), (Recipient(Address("x", "example.com")),), require_tls=True
        )
        self.world.network.distrusted[HOST] = EXPIRED
        self.assertEqual(self.world.submit(envelope, MESSAGE).code, 250)
        self.world.advance(1)
        [bounce] = self.peer.messages
        self.assertTrue(bounce.commands[0].startswith("MAIL FROM:<>"))
        self.assertNotIn("REQUIRETLS", bounce.commands[0])


class ReportTests(TlsCase):
    config = RELAY + '\n[tls_reports]\nenabled = true\ncontact = "tls@example.test"\n'

    def ask(self, *places: str) -> None:
        record = f"v=TLSRPTv1; rua={','.join(places)}".encode()
        self.world.resolver.data["txt"]["_smtp._tls.example.org"] = [record]

    def tomorrow(self) -> None:
        self.world.advance(DAY + 5 * HOUR, step=600)

    def test_by_mail(self) -> None:
        self.ask("mailto:reports@example.org")
        self.publish("enforce", "mx.example.org")
        self.send()
        self.world.network.distrusted[HOST] = EXPIRED
        self.world.advance(10)
        self.send("dave@example.org")
        self.tomorrow()
        # Delivered though the certificate is not good: RFC 8460 §3.
        report: Any = message_from_bytes(self.peer.messages[-1].data, policy=policy.default)
        self.assertEqual(self.peer.messages[-1].recipients, ["reports@example.org"])
        self.assertEqual(report["TLS-Report-Domain"], "example.org")
        [sts] = json.loads(gzip.decompress(list(report.iter_parts())[1].get_content()))["policies"]
        self.assertEqual(sts["policy"]["policy-type"], "sts")
        self.assertEqual(sts["summary"]["total-successful-session-count"], 1)
        [detail] = sts["failure-details"]
        self.assertEqual(
            (detail["result-type"], detail["receiving-mx-hostname"], detail["receiving-ip"]),
            ("certificate-expired", "mx.example.org", HOST),
        )

    def test_reports_are_not_reported_on(self) -> None:
        self.ask("mailto:reports@example.org")
        self.send()
        self.tomorrow()
        self.tomorrow()
        self.tomorrow()
        self.assertEqual(
            [message.recipients for message in self.peer.messages].count(["reports@example.org"]), 1
        )

    def test_by_https(self) -> None:
        self.ask("https://broken.example.org/", "https://example.org/tls", "mailto:reports@example.org")
        self.world.web.pages["https://example.org/tls"] = Answer(201, "", b"")
        self.peer.tls = None
        self.send()
        self.tomorrow()
        self.assertEqual(len(self.peer.messages), 1)
        [_, request] = [each for each in self.world.web.requests if each.method == "POST"]
        self.assertEqual(request.media_type, "application/tlsrpt+gzip")
        facts = json.loads(gzip.decompress(request.body))
        self.assertEqual(
            (facts["organization-name"], facts["contact-info"]), ("mx.example.test", "tls@example.test")
        )
        [count] = facts["policies"]
        self.assertEqual(count["policy"]["policy-type"], "no-policy-found")
        self.assertEqual(count["failure-details"][0]["result-type"], "starttls-not-supported")

    def test_policies_in_testing_are_what_they_are_for(self) -> None:
        self.ask("https://example.org/tls")
        self.world.web.pages["https://example.org/tls"] = Answer(200, "", b"")
        self.publish("testing", "mx.example.org")
        self.world.network.distrusted[HOST] = EXPIRED
        self.send()
        self.publish("testing", "elsewhere.test", identifier="2")
        self.world.advance(10)
        self.send()
        self.tomorrow()
        self.assertEqual(self.delivered(), [True, True])
        [request] = [each for each in self.world.web.requests if each.method == "POST"]
        results = {
            detail["result-type"]
            for count in json.loads(gzip.decompress(request.body))["policies"]
            for detail in count["failure-details"]
        }
        self.assertEqual(results, {"certificate-expired", "validation-failure"})

    def test_nobody_asks(self) -> None:
        self.send()
        self.tomorrow()
        self.assertEqual(len(self.peer.messages), 1)

    def test_nowhere_to_send_it(self) -> None:
        self.ask("https://example.org/tls")
        self.world.web.pages["https://example.org/tls"] = Answer(500, "", b"")
        self.send()
        self.tomorrow()
        self.assertEqual(len(self.logged("could be sent nowhere")), 1)

    def test_off_by_default(self) -> None:
        self.world.config_text(RELAY)
        self.ask("mailto:reports@example.org")
        self.send()
        self.tomorrow()
        self.assertEqual(len(self.peer.messages), 1)

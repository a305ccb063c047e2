"""MTA-STS and DANE over real sockets: a name server, a web server with the policy, a mail host with TLS, all on loopback."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

from OpenSSL import crypto
from twisted.internet import ssl
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.names import dns
from twisted.web.resource import Resource
from twisted.web.server import Site

from tests.certificates import Authority, Certificate, TlsServer
from tests.integration.test_remote_delivery import HOST, PATIENCE, NameServerCase, deliver_to, reactor
from twisted_mta.config.schema import Relay
from twisted_mta.core.queue import Delivered, TryLater
from twisted_mta.core.tls_policy.tlsa import public_key_info
from twisted_mta.delivery.smtp import SmtpDelivery
from twisted_mta.delivery.sts import StsPolicies
from twisted_mta.delivery.tls_memory import TlsMemory
from twisted_mta.delivery.tls_policy import TlsPolicies
from twisted_mta.delivery.tls_steps import TlsSteps
from twisted_mta.net.dns_message import TLSA
from twisted_mta.net.https import Https
from twisted_mta.net.smtp_client import opportunistic_context
from twisted_mta.net.sts_fetch import PolicyFetcher
from twisted_mta.net.tls_verify import CertificateCheck
from twisted_mta.store.threads import Workers
from twisted_mta.store.tls_policies import TlsFile
from twisted_mta.testing.smtp_peer import SmtpPeer

ROOT = Authority()
OTHER = Authority("Other CA")


class Page(Resource):
    isLeaf = True
    body = b"version: STSv1\r\nmode: enforce\r\nmx: mx.x.test\r\nmax_age: 86400\r\n"

    def render_GET(self, request: Any) -> bytes:
        request.setHeader(b"content-type", b"text/plain")
        return self.body


class PolicyCase(NameServerCase):
    async def setUp(self) -> None:  # type: ignore[override]
        super().setUp()
        self.names.authentic = True
        self.resolver.reconfigure(self.resolver._servers, PATIENCE, validating=True)
        self.peer = SmtpPeer()
        listening = reactor.listenTCP(0, self.peer, interface=HOST)
        self.addCleanup(listening.stopListening)
        self.mail_port = listening.getHost().port
        self.web = TlsServer(ROOT.issue("mta-sts.x.test"))
        web = await SSL4ServerEndpoint(reactor, 0, self.web, interface=HOST).listen(Site(Page()))  # type: ignore[arg-type]
        self.addCleanup(web.stopListening)
        https = Https(
            reactor,
            self.resolver,
            port=web.getHost().port,  # type: ignore[attr-defined]
            authorities=ssl.trustRootFromCertificates(
                [ssl.Certificate(crypto.X509.from_cryptography(ROOT.certificate))]
            ),
        )
        self.memory = TlsMemory(TlsFile(Path(self.mktemp())), Workers(reactor, 1, "tls"), reactor)
        sts = StsPolicies(self.memory, self.resolver, PolicyFetcher(https), reactor)
        self.delivery = SmtpDelivery(
            reactor,
            self.resolver,
            random.Random(1),
            Relay(port=self.mail_port),
            "me.test",
            Workers(reactor, 1, "disk"),
            opportunistic_context(),
            tls=TlsSteps(
                TlsPolicies(self.resolver, sts.policy), CertificateCheck(ROOT.context()), self.memory
            ),
        )

    async def deliver(self) -> Any:
        [outcome] = await deliver_to(self.delivery, "b@x.test")
        return outcome

    async def tearDown(self) -> None:  # type: ignore[override]
        await self.delivery.close()
        self.delivery._workers.close()
        await self.memory.stop()

    def mail_host(self, certificate: Certificate) -> TlsServer:
        self.peer.tls = TlsServer(Certificate(certificate.certificate, certificate.key, certificate.chain))
        return self.peer.tls  # type: ignore[no-any-return]

    def tlsa(self, usage: int, certificate: Certificate, host: str = "mx.x.test") -> None:
        digest = hashlib.sha256(public_key_info(certificate.der())).digest()
        self.names.records[f"_{self.mail_port}._tcp.{host}", TLSA] = [
            dns.UnknownRecord(bytes([usage, 1, 1]) + digest, ttl=60)
        ]


class DaneTests(PolicyCase):
    async def test_its_own_key(self) -> None:
        """Whatever else is wrong with the certificate."""
        certificate = OTHER.issue("elsewhere.test", days=(-3, -2))
        self.mail_host(certificate)
        self.tlsa(3, certificate)
        self.assertIsInstance(await self.deliver(), Delivered)
        self.assertTrue(self.peer.messages[0].tls)
        [seen] = await self.memory.sightings(10)
        self.assertEqual((seen.last.source, seen.last.verified), ("dane", True))

    async def test_another_key(self) -> None:
        self.mail_host(ROOT.issue("mx.x.test"))
        self.tlsa(3, ROOT.issue("mx.x.test"))
        outcome = await self.deliver()
        self.assertIsInstance(outcome, TryLater)
        self.assertEqual(
            outcome.reply.text,
            "TLS: its certificate matches none of its TLSA records; its TLSA records require it (DANE)",
        )
        self.assertEqual(self.peer.commands, ["EHLO me.test", "STARTTLS"])

    async def test_an_authority(self) -> None:
        self.tlsa(2, OTHER)
        self.mail_host(OTHER.issue("x.test", root=True))
        self.assertIsInstance(await self.deliver(), Delivered)

    async def test_the_name_behind_an_alias_is_asked_for(self) -> None:
        """RFC 7672 §8.1: the TLSA base domain is what SNI names."""
        self.names.records["mx.x.test", dns.CNAME] = [dns.Record_CNAME("real.y.test", ttl=60)]
        self.names.records["real.y.test", dns.A] = [dns.Record_A(HOST, ttl=60)]
        certificate = OTHER.issue("real.y.test", root=True)
        server = self.mail_host(ROOT.issue("mx.x.test"))
        server.by_name[b"real.y.test"] = TlsServer(certificate).context
        self.tlsa(2, OTHER, "real.y.test")
        self.assertIsInstance(await self.deliver(), Delivered)
        self.assertEqual(server.asked, [b"real.y.test"])

    async def test_records_that_nobody_signed(self) -> None:
        certificate = ROOT.issue("mx.x.test")
        self.mail_host(certificate)
        self.tlsa(3, ROOT.issue("mx.x.test"))
        self.names.insecure = {"mx.x.test"}
        self.assertIsInstance(await self.deliver(), Delivered)


class MtaStsTests(PolicyCase):
    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.names.records["_mta-sts.x.test", dns.TXT] = [dns.Record_TXT(b"v=STSv1; id=1;", ttl=60)]
        self.names.records["mta-sts.x.test", dns.A] = [dns.Record_A(HOST, ttl=60)]

    async def test_a_good_certificate(self) -> None:
        server = self.mail_host(Authority("Intermediate", ROOT).issue("mx.x.test"))
        self.assertIsInstance(await self.deliver(), Delivered)
        self.assertEqual((self.web.asked, server.asked), ([b"mta-sts.x.test"], [b"mx.x.test"]))

    async def test_an_expired_certificate(self) -> None:
        self.mail_host(ROOT.issue("mx.x.test", days=(-2, -1)))
        outcome = await self.deliver()
        self.assertEqual(
            (type(outcome), outcome.reply.text),
            (
                TryLater,
                "TLS: its certificate can't be trusted (certificate has expired); the MTA-STS policy of x.test "
                "requires it",
            ),
        )

    async def test_a_policy_host_that_proves_nothing(self) -> None:
        """It is as if there were no policy: RFC 8461 §3.3."""
        self.web.by_name[b"mta-sts.x.test"] = TlsServer(OTHER.issue("mta-sts.x.test")).context
        self.mail_host(ROOT.issue("mx.x.test", days=(-2, -1)))
        self.assertIsInstance(await self.deliver(), Delivered)
        self.assertIn("certificate", (await self.memory.policy("x.test")).problem)

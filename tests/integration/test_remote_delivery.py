"""Remote delivery over real sockets on loopback: TLS, a name server over UDP and TCP, a message that streams."""

from __future__ import annotations

import contextlib
import datetime
import io
import random
import socket
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.ssl import ContextFactory
from twisted.names import dns
from twisted.trial.unittest import TestCase

from twisted_mta.config.schema import Relay, Route
from twisted_mta.core.queue import (
    Delivered,
    Failed,
    TryLater,
)
from twisted_mta.core.route import LookupFailed, NoSuchDomain
from twisted_mta.core.smtp.client import Login
from twisted_mta.delivery.smtp import SmtpDelivery
from twisted_mta.net.dns import StubResolver
from twisted_mta.net.dns_exchange import Server
from twisted_mta.net.smtp_client import opportunistic_context
from twisted_mta.store.threads import InlineWorkers, Workers
from twisted_mta.testing.dns import FakeNameServer, NameServerDatagrams, NameServerFactory
from twisted_mta.testing.queued import queued_message, queued_recipient
from twisted_mta.testing.smtp_peer import SmtpPeer

reactor: Any = real_reactor
HOST = "127.0.0.1"
#: Seconds that a busy machine may need for an answer, or from one message to the next.
PATIENCE = 60.0


class FileBody:
    """IStoredBody on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size

    def open(self) -> Any:
        return self.path.open("rb")


class MemoryBody:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def open(self) -> Any:
        return io.BytesIO(self.data)


class Tls(ContextFactory):
    """A server's side of TLS."""

    def __init__(self, directory: Path) -> None:
        self.context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self.context.use_certificate_file(str(directory / "cert.pem"))
        self.context.use_privatekey_file(str(directory / "key.pem"))

    def getContext(self) -> SSL.Context:
        return self.context


def certificate(directory: Path) -> Tls:
    """A server's TLS with a self-signed certificate, as many mail servers have."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.x.test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("mx.x.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir()
    (directory / "cert.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return Tls(directory)


class NameServerCase(TestCase):
    def setUp(self) -> None:
        self.names = FakeNameServer()
        self.names.records = {
            ("x.test", dns.MX): [dns.Record_MX(10, "mx.x.test", ttl=60)],
            ("mx.x.test", dns.A): [dns.Record_A(HOST, ttl=60)],
        }
        port = self.serve_names()
        self.resolver = StubResolver(reactor, random.SystemRandom(), [Server(HOST, port)], PATIENCE)

    def serve_names(self) -> int:
        """One port for both; somebody else may have the one of UDP, and then it is another one."""
        while True:
            stream = reactor.listenTCP(0, NameServerFactory(self.names), interface=HOST)
            self.addCleanup(stream.stopListening)
            port: int = stream.getHost().port
            with contextlib.suppress(CannotListenError):
                datagrams = reactor.listenUDP(port, NameServerDatagrams(self.names), interface=HOST)
                self.addCleanup(datagrams.stopListening)
                return port

    def bound(self, kind: int) -> socket.socket:
        """A socket that has a port, at which nobody else can be, and does not listen."""
        taken = socket.socket(type=kind)
        self.addCleanup(taken.close)
        taken.bind((HOST, 0))
        return taken


class ResolverTests(NameServerCase):
    async def test_datagram(self) -> None:
        self.assertEqual(await self.resolver.mx("x.test"), [(10, "mx.x.test")])
        self.assertEqual(await self.resolver.addresses("mx.x.test"), [HOST])

    async def test_tcp_when_truncated(self) -> None:
        self.names.records["long.test", dns.TXT] = [dns.Record_TXT(b"x" * 200, ttl=60) for _ in range(100)]
        self.names.truncate = True
        self.assertEqual(len(await self.resolver.txt("long.test")), 100)

    async def test_no_such_name(self) -> None:
        with self.assertRaises(NoSuchDomain):
            await self.resolver.mx("nowhere.test")

    async def test_nobody_answers_there(self) -> None:
        taken = self.bound(socket.SOCK_DGRAM)
        taken.connect((HOST, 9))  # what others send to its port is for nobody
        self.resolver.reconfigure([Server(HOST, taken.getsockname()[1])], PATIENCE)
        with self.assertRaises(LookupFailed) as caught:  # by ICMP, at once
            await self.resolver.mx("x.test")
        self.assertIn("no name server there", str(caught.exception))


def deliver_to(delivery: SmtpDelivery, *addresses: str, body: Any = None) -> Deferred[Any]:
    """Attempt to deliver a message to some addresses of one destination."""
    body = body or MemoryBody(b"Subject: hi\r\n\r\n.\r\nend\r\n")
    message = queued_message(
        sender=None, prefix=b"Received: here\r\n", body_size=body.size, arrived=0.0, expires=1e9
    )
    recipients = [queued_recipient(address, row=row) for row, address in enumerate(addresses)]
    destination = delivery.destination(recipients[0])
    return Deferred.fromCoroutine(delivery.deliver(message, body, recipients, destination))


class DeliveryTests(NameServerCase):
    workers: Any = InlineWorkers()

    def setUp(self) -> None:
        super().setUp()
        self.peer = SmtpPeer()
        port = reactor.listenTCP(0, self.peer, interface=HOST)
        self.addCleanup(port.stopListening)
        self.delivery = SmtpDelivery(
            reactor,
            self.resolver,
            random.Random(1),
            Relay(port=port.getHost().port, keep_open=PATIENCE),
            "me.test",
            self.workers,
            opportunistic_context(),
        )

    def deliver(self, *addresses: str, body: Any = None) -> Deferred[Any]:
        return deliver_to(self.delivery, *addresses, body=body)

    async def test_plain_and_reused(self) -> None:
        self.peer.replies = {"RCPT no@x.test": "550 5.1.1 no", "RCPT later@x.test": "450 4.2.1 later"}
        outcomes = await self.deliver("b@x.test", "no@x.test", "later@x.test")
        self.assertEqual([type(one) for one in outcomes], [Delivered, Failed, TryLater])
        self.assertEqual(outcomes[0].remote, f"mx.x.test [{HOST}]")
        await self.deliver("b@x.test")
        self.assertEqual(self.peer.connections, 1)
        self.assertEqual(self.peer.messages[1].data, b"Received: here\r\nSubject: hi\r\n\r\n.\r\nend\r\n")
        await self.delivery.close()
        self.assertEqual(self.peer.commands[-1], "QUIT")

    async def test_starttls_without_a_look_at_the_certificate(self) -> None:
        self.peer.tls = certificate(Path(self.mktemp()))
        [outcome] = await self.deliver("b@x.test")
        await self.deliver("b@x.test")
        await self.delivery.close()
        self.assertIsInstance(outcome, Delivered)
        self.assertEqual([one.tls for one in self.peer.messages], [True, True])
        self.assertEqual(self.peer.connections, 1)
        self.assertEqual(self.peer.commands.count("EHLO me.test"), 2)

    async def test_broken_tls_is_done_without(self) -> None:
        options = certificate(Path(self.mktemp()))
        # A server that can't agree on anything: no cipher in common.
        options.context.set_max_proto_version(SSL.TLS1_1_VERSION)
        options.context.set_min_proto_version(SSL.TLS1_VERSION)
        self.peer.tls = options
        [outcome] = await self.deliver("b@x.test")
        await self.delivery.close()
        self.assertIsInstance(outcome, Delivered)
        self.assertFalse(self.peer.messages[0].tls)
        self.assertEqual(self.peer.connections, 2)

    async def test_password_is_not_given_to_whoever_cannot_prove_its_name(self) -> None:
        self.peer.tls = certificate(Path(self.mktemp()))
        self.peer.extensions.append("AUTH PLAIN")
        port = reactor.listenTCP(0, self.peer, interface=HOST)
        self.addCleanup(port.stopListening)
        smarthost = Route(host="mx.x.test", port=port.getHost().port)
        self.delivery = SmtpDelivery(
            reactor,
            self.resolver,
            random.Random(1),
            Relay(smarthost=smarthost),
            "me.test",
            self.workers,
            opportunistic_context(),
            Login("me", "secret"),
        )
        [outcome] = await self.deliver("b@y.test")
        await self.delivery.close()
        self.assertIsInstance(outcome, TryLater)
        self.assertEqual(
            outcome.reply.text,
            "TLS: its certificate can't be trusted (self-signed certificate); the login requires it",
        )
        self.assertEqual(self.peer.commands, ["EHLO me.test", "STARTTLS"])

    async def test_helo(self) -> None:
        self.peer.replies = {"EHLO": "500 what"}
        [outcome] = await self.deliver("b@x.test")
        await self.delivery.close()
        self.assertIsInstance(outcome, Delivered)

    async def test_nobody_listens(self) -> None:
        self.delivery.reconfigure(Relay(port=self.bound(socket.SOCK_STREAM).getsockname()[1]))
        [outcome] = await self.deliver("b@x.test")
        self.assertIsInstance(outcome, TryLater)
        self.assertEqual(outcome.reply.enhanced, "4.4.1")
        await self.delivery.close()


class LargeDeliveryTests(DeliveryTests):
    """The same with real threads reading files, and 20 MB through TLS."""

    def setUp(self) -> None:
        self.workers = Workers(reactor, 2, "test")
        self.addCleanup(self.workers.close)
        super().setUp()

    async def test_large_over_tls(self) -> None:
        path = Path(self.mktemp())
        line = b"." + b"x" * 75 + b"\r\n"
        path.write_bytes(line * 260_000)
        self.peer.tls = certificate(Path(self.mktemp()))
        self.peer.keep = False
        [outcome] = await self.deliver("b@x.test", body=FileBody(path))
        await self.delivery.close()
        self.assertIsInstance(outcome, Delivered)
        stuffed = 260_000 * (len(line) + 1)
        self.assertEqual(self.peer.size, 2 + len(b"Received: here\r\n") + stuffed)

"""net.tls: what is said of files that can't be used, and what is spoken with those that can."""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.admin.init import self_signed
from twisted_mta.net.tls import ServerTls, TlsError
from twisted_mta.service.certificates import watched_certificates
from twisted_mta.service.watched import INTERVAL, FileWatch
from twisted_mta.store.threads import InlineWorkers


class ServerTlsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.certificate, self.key = (self.directory / name for name in ("cert.pem", "key.pem"))
        certificate, key = self_signed("mx.example.test", ())
        self.certificate.write_text(certificate)
        self.key.write_text(key)

    def problem(self) -> str:
        with self.assertRaises(TlsError) as caught:
            ServerTls(self.certificate, self.key)
        return str(caught.exception)

    def test_missing(self) -> None:
        self.key.unlink()
        self.assertEqual(self.problem(), f"{self.key}: No such file or directory")

    def test_no_certificate(self) -> None:
        self.certificate.write_text("hello")
        self.assertEqual(self.problem(), f"{self.certificate}: no PEM certificate in it that can be read")

    def test_no_key(self) -> None:
        self.key.write_text("hello")
        self.assertEqual(self.problem(), f"{self.key}: no PEM private key in it that can be read")

    def test_key_of_another(self) -> None:
        self.key.write_text(self_signed("other.example.test", ())[1])
        # OpenSSL compares them when the second is read.
        self.assertIn(f"{self.key}: ", self.problem())

    def handshake(
        self, client_context: SSL.Context, name: bytes | None = None, tls: ServerTls | None = None
    ) -> SSL.Connection:
        """Pass octets between a client and our server until both are done."""
        server = (tls or ServerTls(self.certificate, self.key)).new_connection()
        self.server = server
        client = SSL.Connection(client_context, None)
        if name is not None:
            client.set_tlsext_host_name(name)
        server.set_accept_state()
        client.set_connect_state()
        for _ in range(10):
            for one, other in ((client, server), (server, client)):
                with contextlib.suppress(SSL.WantReadError):
                    one.do_handshake()
                with contextlib.suppress(SSL.WantReadError):
                    other.bio_write(one.bio_read(65536))
        return client

    def test_handshake(self) -> None:
        client = self.handshake(SSL.Context(SSL.TLS_CLIENT_METHOD))
        self.assertEqual(client.get_protocol_version_name(), "TLSv1.3")

    def test_old_versions_are_refused(self) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        context.set_max_proto_version(SSL.TLS1_1_VERSION)
        with self.assertRaises(SSL.Error):
            self.handshake(context)

    def test_minimum(self) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        self.assertEqual(self.handshake(context).get_protocol_version_name(), "TLSv1.2")
        tls = ServerTls(self.certificate, self.key, minimum="1.3")
        with self.assertRaises(SSL.Error):
            self.handshake(context, tls=tls)

    # --- several certificates ------------------------------------------------------------------

    def pair(self, name: str, *more: str) -> tuple[Path, Path]:
        found = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        for path, content in zip(found, self_signed(name, more), strict=True):
            path.write_text(content)
        return found

    def served(self, tls: ServerTls, name: bytes | None) -> str:
        """The subject of the certificate that a client sees who asks for a name."""
        found = set()
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            context.set_max_proto_version(version)
            certificate = self.handshake(context, name, tls).get_peer_certificate(as_cryptography=True)
            # What SCRAM binds a login to.
            self.assertEqual(self.server.get_certificate(as_cryptography=True), certificate)
            assert certificate is not None
            found.add(str(certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value))
        return "/".join(found)

    def test_certificates_by_name(self) -> None:
        tls = ServerTls(
            self.certificate,
            self.key,
            [
                self.pair("mail.a.test", "*.wild.test"),
                self.pair("mail.b.test", "mail.a.test", "exact.wild.test"),
            ],
        )
        for name, subject in {
            None: "mx.example.test",
            b"mx.example.test": "mx.example.test",
            b"unknown.test": "mx.example.test",
            b"localhost": "mx.example.test",
            b"mail.a.test": "mail.a.test",
            b"MAIL.A.test": "mail.a.test",
            b"mail.b.test": "mail.b.test",
            b"one.wild.test": "mail.a.test",
            b"exact.wild.test": "mail.b.test",
            b"two.labels.wild.test": "mx.example.test",
            b"wild.test": "mx.example.test",
            b"*.wild.test": "mail.a.test",
        }.items():
            with self.subTest(name):
                self.assertEqual(self.served(tls, name), subject)

    def test_one_of_several_is_bad(self) -> None:
        pair = self.pair("mail.a.test")
        pair[1].write_text("no key")
        with self.assertRaises(TlsError) as caught:
            ServerTls(self.certificate, self.key, [pair])
        self.assertIn(f"{pair[1]}: ", str(caught.exception))

    def test_a_certificate_without_names(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old.test")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + datetime.timedelta(1))
            .sign(key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        paths = self.directory / "old.pem", self.directory / "old.key"
        paths[0].write_bytes(certificate)
        paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
        ServerTls(*paths)
        with self.assertRaises(TlsError) as caught:
            ServerTls(self.certificate, self.key, [paths])
        self.assertIn("there is no host name in it", str(caught.exception))


class CertificateWatchTests(SynchronousTestCase):
    """service.certificates"""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.paths = self.directory / "cert.pem", self.directory / "key.pem"
        self.write()
        self.clock = Clock()
        self.loads = 0
        self.serving: Any = SimpleNamespace(tls=self.load(None), config=None)
        self.first = self.serving.tls
        self.watch = self.watching(self.load)

    def watching(self, load: Any) -> FileWatch:
        watch = FileWatch(InlineWorkers(), self.clock)
        watch.add(watched_certificates(self.serving, load, InlineWorkers()))
        watch.start()
        return watch

    def load(self, config: Any) -> ServerTls:
        self.loads += 1
        return ServerTls(*self.paths)

    def write(self) -> None:
        for path, content in zip(self.paths, self_signed("mx.example.test", ()), strict=True):
            path.write_text(content)

    def looks(self, times: int) -> None:
        self.clock.pump([INTERVAL] * times)

    def test_nothing_changed(self) -> None:
        self.looks(5)
        self.assertEqual((self.serving.tls, self.loads), (self.first, 1))

    def test_new_files(self) -> None:
        self.write()
        self.looks(1)
        self.assertIs(self.serving.tls, self.first, "they may still be written")
        self.looks(1)
        self.assertIsNot(self.serving.tls, self.first)
        self.looks(5)
        self.assertEqual(self.loads, 2)

    def test_files_that_do_not_rest(self) -> None:
        for _ in range(3):
            self.write()
            self.looks(1)
        self.assertEqual(self.loads, 1)

    def test_broken_files_leave_the_old_ones_in_force(self) -> None:
        for spoil in (lambda path: path.write_text("half a cer"), Path.unlink):
            spoil(self.paths[0])
            with capturedLogs() as logs:
                self.looks(5)
            (line,) = [event for event in logs if event["log_level"] is LogLevel.error]
            self.assertIn(f"the certificates stay as they were: {self.paths[0]}: ", formatEvent(line))
            self.assertIs(self.serving.tls, self.first)
            (problem,) = self.watch.problems()
            self.assertIn(str(self.paths[0]), problem)
        self.write()
        self.looks(2)
        self.assertIsNot(self.serving.tls, self.first)
        self.assertEqual(self.watch.problems(), [])

    def test_the_old_files_come_back(self) -> None:
        away = self.paths[0].with_name("away")
        self.paths[0].rename(away)
        self.looks(3)
        away.rename(self.paths[0])
        self.looks(3)
        self.assertEqual((self.serving.tls, self.loads), (self.first, 2))
        self.assertEqual(self.watch.problems(), [])

    def test_a_reload_was_quicker(self) -> None:
        def load(config: Any) -> ServerTls:
            self.serving.tls = by_reload
            return ServerTls(*self.paths)

        self.watch.stop()
        self.write()
        by_reload = ServerTls(*self.paths)
        self.watching(load)
        self.looks(2)
        self.assertIs(self.serving.tls, by_reload)

    def test_no_tls_and_stop(self) -> None:
        self.serving.tls = None
        self.looks(2)
        self.watch.stop()
        self.watch.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

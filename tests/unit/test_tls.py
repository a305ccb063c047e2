"""net.tls: what is said of files that can't be used, and what is spoken with those that can."""

from __future__ import annotations

import contextlib
from pathlib import Path

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.admin.init import self_signed
from twisted_mta.net.tls import ServerTls, TlsError


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

    def handshake(self, client_context: SSL.Context) -> SSL.Connection:
        """Pass octets between a client and our server until both are done."""
        server = ServerTls(self.certificate, self.key).serverConnectionForTLS(None)
        client = SSL.Connection(client_context, None)
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

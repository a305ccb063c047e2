"""net.bindings: which certificates have a tls-server-end-point. Real connections are in tests/integration/test_scram.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256, sha384
from typing import Any
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.net.bindings import ChannelBindings

NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mx.example.test")])


def certificate(key: Any, algorithm: Any) -> x509.Certificate:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    builder = x509.CertificateBuilder(NAME, NAME, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, algorithm)


def end_point(found: x509.Certificate | None) -> bytes | None:
    connection: Any = mock.Mock()
    connection.get_protocol_version_name.return_value = "TLSv1.2"
    connection.get_certificate.return_value = found
    return ChannelBindings(connection).get("tls-server-end-point")


class EndPointTests(SynchronousTestCase):
    """RFC 5929 §4.1."""

    def test_the_hash_is_that_of_the_signature(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        for algorithm, digest in ((hashes.SHA256(), sha256), (hashes.SHA384(), sha384)):
            made = certificate(key, algorithm)
            self.assertEqual(end_point(made), digest(made.public_bytes(Encoding.DER)).digest())

    def test_weak_hashes_are_replaced(self) -> None:
        for weak in (hashes.MD5(), hashes.SHA1()):
            seen = mock.Mock(spec=x509.Certificate, signature_hash_algorithm=weak)
            seen.public_bytes.return_value = b"certificate"
            self.assertEqual(end_point(seen), sha256(b"certificate").digest())

    def test_a_signature_without_a_hash_has_none(self) -> None:
        self.assertIsNone(end_point(certificate(ed25519.Ed25519PrivateKey.generate(), None)))

    def test_no_certificate(self) -> None:
        self.assertIsNone(end_point(None))

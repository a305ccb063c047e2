"""Tests for twisted_mta.net.tls_verify: real handshakes in memory."""

from __future__ import annotations

import hashlib
import os
import unittest
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

from tests.certificates import Authority, Certificate, TlsServer, self_signed
from twisted_mta.core.tls_policy.decision import HostPolicy
from twisted_mta.core.tls_policy.results import Failure, Result
from twisted_mta.core.tls_policy.tlsa import BadDer, TlsaRecord, public_key_info
from twisted_mta.net.smtp_client import OpportunisticTls, opportunistic_context
from twisted_mta.net.tls_verify import CertificateCheck, system_authorities

ROOT = Authority()
OTHER = Authority("Other CA")
MIDDLE = Authority("Intermediate", ROOT)
CONTEXT = opportunistic_context()


def handshake(certificate: Certificate, sni: str = "mx.x.test") -> SSL.Connection:
    """The client's side of a handshake that is done."""
    any_protocol: Any = None
    client = OpportunisticTls(CONTEXT, sni).clientConnectionForTLS(any_protocol)
    server = TlsServer(certificate).serverConnectionForTLS(None)
    client.set_connect_state()
    server.set_accept_state()
    for _ in range(4):
        for one, other in ((client, server), (server, client)):
            with suppress(SSL.WantReadError):
                one.do_handshake()
            with suppress(SSL.WantReadError):
                other.bio_write(one.bio_read(65536))
    return client


def tlsa(usage: int, certificate: Certificate, selector: int = 1) -> TlsaRecord:
    octets = public_key_info(certificate.der()) if selector else certificate.der()
    return TlsaRecord(usage, selector, 1, hashlib.sha256(octets).digest())


def pkix(*names: str) -> HostPolicy:
    return HostPolicy(tls=True, pkix_names=names)


def dane(*records: TlsaRecord, names: tuple[str, ...] = ("mx.x.test", "x.test"), **more: Any) -> HostPolicy:
    return HostPolicy(tls=True, records=records, dane_names=names, **more)


class CheckCase(unittest.TestCase):
    def check(self, certificate: Certificate, policy: HostPolicy) -> Failure | None:
        return CertificateCheck(ROOT.context())(handshake(certificate), policy)

    def good(self, certificate: Certificate, policy: HostPolicy) -> None:
        self.assertIsNone(self.check(certificate, policy))

    def bad(self, result: Result, certificate: Certificate, policy: HostPolicy) -> str:
        failure = self.check(certificate, policy)
        assert failure is not None
        self.assertEqual(failure.result, result)
        return failure.text


class PkixTests(CheckCase):
    def test_good(self) -> None:
        self.good(ROOT.issue("mx.x.test"), pkix("mx.x.test"))
        self.good(MIDDLE.issue("other.test", "*.x.test"), pkix("mx.x.test"))
        self.good(ROOT.issue("x.test"), pkix("mx.x.test", "x.test"))

    def test_nothing_is_asked(self) -> None:
        self.good(self_signed("y.test"), HostPolicy(tls=True))

    def test_wrong_name(self) -> None:
        text = self.bad(
            Result.CERTIFICATE_HOST_MISMATCH, ROOT.issue("mx.y.test"), pkix("mx.x.test", "x.test")
        )
        self.assertEqual(text, "its certificate is for mx.y.test, and not for mx.x.test or x.test")
        text = self.bad(Result.CERTIFICATE_HOST_MISMATCH, ROOT.issue("*.x.test"), pkix("x.test"))

    def test_the_common_name_does_not_count(self) -> None:
        """RFC 8461 §4.2 wants a DNS-ID."""
        text = self.bad(
            Result.CERTIFICATE_HOST_MISMATCH, ROOT.issue(common_name="mx.x.test"), pkix("mx.x.test")
        )
        self.assertEqual(text, "its certificate is for no host, and not for mx.x.test")

    def test_dates(self) -> None:
        for days in ((-2, -1), (1, 2)):
            certificate = ROOT.issue("mx.x.test", days=days)
            self.assertIn(
                "can't be trusted (", self.bad(Result.CERTIFICATE_EXPIRED, certificate, pkix("mx.x.test"))
            )

    def test_unknown_authority(self) -> None:
        for certificate in (OTHER.issue("mx.x.test", root=True), self_signed("mx.x.test")):
            self.bad(Result.CERTIFICATE_NOT_TRUSTED, certificate, pkix("mx.x.test"))

    def test_an_intermediate_certificate_that_is_not_sent(self) -> None:
        issued = MIDDLE.issue("mx.x.test")
        alone = Certificate(issued.certificate, issued.key, ())
        self.bad(Result.CERTIFICATE_NOT_TRUSTED, alone, pkix("mx.x.test"))

    def test_a_server_is_no_authority(self) -> None:
        """A chain over somebody's server certificate would let everybody be everybody."""
        server: Any = ROOT.issue("y.test")
        impostor = Authority("Impostor")
        impostor.key, impostor.subject = server.key, server.certificate.subject
        impostor.chain = (server.certificate,)
        self.bad(Result.CERTIFICATE_NOT_TRUSTED, impostor.issue("mx.x.test"), pkix("mx.x.test"))

    def test_certificate_of_a_client(self) -> None:
        text = self.bad(
            Result.CERTIFICATE_NOT_TRUSTED, ROOT.issue("mx.x.test", client=True), pkix("mx.x.test")
        )
        self.assertEqual(text, "its certificate is not meant for servers")

    def test_system_authorities_trust_nobody_of_ours(self) -> None:
        failure = CertificateCheck(system_authorities())(
            handshake(ROOT.issue("mx.x.test")), pkix("mx.x.test")
        )
        assert failure is not None
        self.assertEqual(failure.result, Result.CERTIFICATE_NOT_TRUSTED)

    def test_no_certificate_at_all(self) -> None:
        unconnected = SSL.Connection(CONTEXT, None)
        failure = CertificateCheck(ROOT.context())(unconnected, pkix("mx.x.test"))
        assert failure is not None
        self.assertEqual(failure.text, "it has no certificate")


class SystemAuthoritiesTests(unittest.TestCase):
    """A directory as Debian has it: a file with all authorities, and each under the hash of its name."""

    def setUp(self) -> None:
        found = TemporaryDirectory()
        self.addCleanup(found.cleanup)
        self.directory = Path(found.name)
        self.write("ca-certificates.crt", ROOT, OTHER)
        for one in (ROOT, OTHER):
            self.write(self.hashed(one), one)
        self.environment = mock.patch.dict(os.environ)
        self.environment.start()
        self.addCleanup(self.environment.stop)
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            os.environ.pop(name, None)

    def write(self, name: str, *authorities: Authority) -> None:
        pem = b"".join(one.certificate.public_bytes(Encoding.PEM) for one in authorities)
        (self.directory / name).write_bytes(pem)

    def hashed(self, authority: Authority) -> str:
        return f"{crypto.X509.from_cryptography(authority.certificate).subject_name_hash():08x}.0"

    def trusted(self) -> bool:
        check = CertificateCheck(system_authorities(self.directory))
        return check(handshake(OTHER.issue("mx.x.test")), pkix("mx.x.test")) is None

    def test_they_are_found_by_their_hash(self) -> None:
        self.assertTrue(self.trusted())

    def test_one_that_is_new_needs_no_restart(self) -> None:
        (self.directory / self.hashed(OTHER)).rename(self.directory / "away.0")
        self.write("ca-certificates.crt", ROOT)
        check = CertificateCheck(system_authorities(self.directory))
        connection = handshake(OTHER.issue("mx.x.test"))
        self.assertIsNotNone(check(connection, pkix("mx.x.test")))
        (self.directory / "away.0").rename(self.directory / self.hashed(OTHER))
        self.assertIsNone(check(connection, pkix("mx.x.test")))

    def test_a_directory_without_all_of_them_is_not_used(self) -> None:
        self.write("ca-certificates.crt", ROOT, OTHER, MIDDLE)
        self.assertFalse(self.trusted())

    def test_a_directory_without_a_bundle_is_not_used(self) -> None:
        (self.directory / "ca-certificates.crt").unlink()
        self.assertFalse(self.trusted())

    def test_what_the_administrator_says_counts(self) -> None:
        os.environ["SSL_CERT_FILE"] = str(self.directory / self.hashed(ROOT))
        self.assertFalse(self.trusted())
        os.environ["SSL_CERT_FILE"] = str(self.directory / self.hashed(OTHER))
        self.assertTrue(self.trusted())


class MalformedTests(CheckCase):
    def test_certificates_that_can_not_be_read(self) -> None:
        certificate = ROOT.issue("mx.x.test")
        for broken, policy in (
            ("matching_end", dane(tlsa(3, certificate))),
            ("_check_names", pkix("mx.x.test")),
        ):
            with mock.patch(f"twisted_mta.net.tls_verify.{broken}", side_effect=BadDer("it ends early")):
                text = self.bad(Result.VALIDATION_FAILURE, certificate, policy)
            self.assertEqual(text, "its certificate is malformed (it ends early)")


class DaneTests(CheckCase):
    def test_end_entity_whatever_name_and_date(self) -> None:
        for selector in (0, 1):
            expired = OTHER.issue("y.test", days=(-2, -1), client=True)
            self.good(expired, dane(tlsa(3, expired, selector)))

    def test_one_of_several_records_is_enough(self) -> None:
        one, other = self_signed("mx.x.test"), self_signed("mx.x.test")
        self.good(one, dane(tlsa(3, other), tlsa(3, one)))

    def test_no_match(self) -> None:
        text = self.bad(
            Result.CERTIFICATE_HOST_MISMATCH, ROOT.issue("mx.x.test"), dane(tlsa(3, self_signed("mx.x.test")))
        )
        self.assertEqual(text, "its certificate matches none of its TLSA records")

    def test_trust_anchor(self) -> None:
        for selector in (0, 1):
            # A root, and an intermediate one whose own issuer nobody knows.
            self.good(OTHER.issue("mx.x.test", root=True), dane(tlsa(2, OTHER, selector)))
            self.good(MIDDLE.issue("x.test"), dane(tlsa(2, MIDDLE, selector)))

    def test_trust_anchor_that_is_not_sent(self) -> None:
        self.bad(Result.CERTIFICATE_HOST_MISMATCH, OTHER.issue("mx.x.test"), dane(tlsa(2, OTHER)))

    def test_trust_anchor_that_issued_something_else(self) -> None:
        issued = ROOT.issue("mx.x.test")
        beside = Certificate(issued.certificate, issued.key, (OTHER.certificate,))
        self.bad(Result.CERTIFICATE_NOT_TRUSTED, beside, dane(tlsa(2, OTHER)))

    def test_names_and_dates_count_below_an_anchor(self) -> None:
        policy = dane(tlsa(2, OTHER))
        self.bad(Result.CERTIFICATE_HOST_MISMATCH, OTHER.issue("y.test", root=True), policy)
        self.bad(Result.CERTIFICATE_EXPIRED, OTHER.issue("mx.x.test", root=True, days=(-2, -1)), policy)

    def test_common_name_without_any_other(self) -> None:
        policy = dane(tlsa(2, OTHER))
        self.good(OTHER.issue(common_name="mx.x.test", root=True), policy)
        self.bad(
            Result.CERTIFICATE_HOST_MISMATCH,
            OTHER.issue("y.test", common_name="mx.x.test", root=True),
            policy,
        )

    def test_dane_and_pkix_together(self) -> None:
        good = ROOT.issue("mx.x.test")
        self.good(good, dane(tlsa(3, good), pkix_names=("mx.x.test",)))
        unknown = OTHER.issue("mx.x.test")
        self.bad(Result.CERTIFICATE_NOT_TRUSTED, unknown, dane(tlsa(3, unknown), pkix_names=("mx.x.test",)))
        self.bad(Result.CERTIFICATE_HOST_MISMATCH, good, dane(tlsa(3, unknown), pkix_names=("mx.x.test",)))

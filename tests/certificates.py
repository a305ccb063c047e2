"""A certificate authority for tests, and TLS servers with what it issues."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

DAY = datetime.timedelta(days=1)


class Certificate:
    """A certificate and its key. `chain` is what a server sends behind its own certificate."""

    def __init__(self, certificate: x509.Certificate, key: Any, chain: Sequence[x509.Certificate]) -> None:
        self.certificate = certificate
        self.key = key
        self.chain = tuple(chain)

    def der(self) -> bytes:
        return crypto.dump_certificate(crypto.FILETYPE_ASN1, crypto.X509.from_cryptography(self.certificate))


class Authority(Certificate):
    """Issues certificates; one that another has issued is an intermediate one."""

    def __init__(self, name: str = "Test CA", issuer: Authority | None = None) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        made = _build(
            name, key, issuer or _Own(name, key), [x509.BasicConstraints(ca=True, path_length=None)], (-1, 1)
        )
        super().__init__(made, key, [*((made,) if issuer else ()), *(issuer.chain if issuer else ())])
        self.subject = made.subject

    def issue(
        self,
        *names: str,
        days: tuple[int, int] = (-1, 1),
        common_name: str = "",
        client: bool = False,
        root: bool = False,
    ) -> Certificate:
        """For a server of these names. `root`: the chain has this authority's own certificate too."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        extensions: list[Any] = [x509.ExtendedKeyUsage([usage])]
        if names:
            extensions.append(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]))
        made = _build(common_name or "server", key, self, extensions, days)
        return Certificate(made, key, [*self.chain, *((self.certificate,) if root else ())])

    def context(self) -> SSL.Context:
        """A context that trusts this authority alone."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        store = context.get_cert_store()
        assert store is not None
        store.add_cert(crypto.X509.from_cryptography(self.certificate))
        return context


class _Own:
    """Signs itself."""

    def __init__(self, name: str, key: Any) -> None:
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = key


def self_signed(*names: str) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    san = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    return Certificate(_build(names[0], key, _Own(names[0], key), [san], (-1, 1)), key, ())


def self_signed_files(path: Path) -> None:
    """A certificate and its key in one file."""
    made = self_signed("mx.example.test")
    key = made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.touch(mode=0o600)
    path.write_bytes(made.certificate.public_bytes(Encoding.PEM) + key)


def _build(name: str, key: Any, issuer: Any, extensions: Sequence[Any], days: tuple[int, int]) -> Any:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * DAY)
        .not_valid_after(now + days[1] * DAY)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(issuer.key, hashes.SHA256())


@implementer(IOpenSSLServerConnectionCreator)
class TlsServer:
    """The server's side of TLS with one certificate, or with one for each name that clients ask for."""

    def __init__(self, default: Certificate, by_name: dict[bytes, Certificate] | None = None) -> None:
        self.context = _context(default)
        self.by_name = {name: _context(each) for name, each in (by_name or {}).items()}
        self.context.set_tlsext_servername_callback(self._choose)
        #: The names that clients asked for.
        self.asked: list[bytes | None] = []

    def _choose(self, connection: SSL.Connection) -> None:
        name = connection.get_servername()
        self.asked.append(name)
        if name in self.by_name:
            connection.set_context(self.by_name[name])

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        return SSL.Connection(self.context, None)


def _context(certificate: Certificate) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(certificate.certificate)
    context.use_privatekey(certificate.key)
    for each in certificate.chain:
        context.add_extra_chain_cert(each)
    return context

"""Whether the certificate of a mail host is what its policy asks for, looked at after the handshake and before any mail.

The handshake itself takes any certificate: only so can it be said precisely what is wrong with one, and whether there is
TLS at all is known in any case.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto

from twisted_mta.core.tls_policy.decision import HostPolicy
from twisted_mta.core.tls_policy.names import any_matches
from twisted_mta.core.tls_policy.results import Failure, Result
from twisted_mta.core.tls_policy.tlsa import BadDer, matching_anchors, matching_end

#: X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_EXPIRED = (9, 10)
#: Certificates of a chain that are looked at.
MAX_CHAIN = 20


#: Where Debian and others keep all authorities twice: in one file, and each under the hash of its name.
_DIRECTORY = Path("/etc/ssl/certs")
_BUNDLE = "ca-certificates.crt"
_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")


def system_authorities(directory: Path = _DIRECTORY) -> SSL.Context:
    """A context with the certificate authorities that this machine trusts.

    OpenSSL reads each from a `directory` when it is needed, if there is one with all of them: to read the file costs 0.5 MB.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    named = os.environ.keys() & {"SSL_CERT_FILE", "SSL_CERT_DIR"}  # by the administrator
    if not named and _has_all(directory):
        context.load_verify_locations(None, os.fspath(directory))
    else:
        context.set_default_verify_paths()
    return context


def _has_all(directory: Path) -> bool:
    """Is each authority of the bundle there under its hash?"""
    try:
        listed = (directory / _BUNDLE).read_bytes().count(b"BEGIN CERTIFICATE")
        hashed = sum(1 for name in os.listdir(directory) if _HASHED.fullmatch(name))
    except OSError:
        return False
    return 0 < listed <= hashed


class CertificateCheck:
    """Checks the certificates of peers. Made once."""

    def __init__(self, authorities: SSL.Context) -> None:
        """The authorities are those in the store of the context."""
        # The store lives no longer than its context: pyOpenSSL does not see to that.
        self._context = authorities

    def __call__(self, connection: SSL.Connection, policy: HostPolicy) -> Failure | None:
        """What is wrong with the peer of a connection whose handshake is done; None: it is as the policy wants it."""
        if not policy.verified:
            return None
        chain = (connection.get_peer_cert_chain() or [])[:MAX_CHAIN]
        if not chain:
            return Failure(Result.CERTIFICATE_NOT_TRUSTED, "it has no certificate")
        try:
            failure = self._dane(chain, policy) if policy.records else None
            if failure is None and policy.pkix_names:
                failure = self._pkix(chain, policy.pkix_names)
        except (
            BadDer,
            ValueError,
        ) as error:  # the second from cryptography, for extensions that are malformed
            return Failure(Result.VALIDATION_FAILURE, f"its certificate is malformed ({error})", "malformed")
        return failure

    def _pkix(self, chain: Sequence[crypto.X509], names: Sequence[str]) -> Failure | None:
        store = self._context.get_cert_store()
        assert store is not None  # every context has one
        failure = _verify(store, chain[0], chain[1:])
        if failure is not None:
            return failure
        return _check_names(chain[0].to_cryptography(), names)

    def _dane(self, chain: Sequence[crypto.X509], policy: HostPolicy) -> Failure | None:
        octets = [crypto.dump_certificate(crypto.FILETYPE_ASN1, one) for one in chain]
        if matching_end(policy.records, octets[0]):
            return None  # RFC 7672 §3.1.1: neither names nor dates count
        failure = Failure(
            Result.CERTIFICATE_HOST_MISMATCH,
            "its certificate matches none of its TLSA records",
            "tlsa-mismatch",
        )
        for depth in matching_anchors(policy.records, octets):
            store = crypto.X509Store()
            store.add_cert(chain[depth])
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)  # the anchor need not be a root
            found = _verify(store, chain[0], chain[1:depth])
            if found is None:
                # RFC 7672 §3.2.2
                found = _check_names(chain[0].to_cryptography(), policy.dane_names, common_name=True)
            if found is None:
                return None
            failure = found
        return failure


def _verify(store: crypto.X509Store, end: crypto.X509, between: Sequence[crypto.X509]) -> Failure | None:
    """Whether a chain leads from a certificate to one in the store, none of them expired, and serves for TLS."""
    try:
        crypto.X509StoreContext(store, end, list(between)).verify_certificate()
    except crypto.X509StoreContextError as error:
        code, _, text = error.errors
        result = Result.CERTIFICATE_EXPIRED if code in _EXPIRED else Result.CERTIFICATE_NOT_TRUSTED
        return Failure(result, f"its certificate can't be trusted ({text})", str(text))
    try:
        usage = end.to_cryptography().extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None
    if {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}.isdisjoint(usage):
        return Failure(
            Result.CERTIFICATE_NOT_TRUSTED, "its certificate is not meant for servers", "extended key usage"
        )
    return None


def _check_names(
    certificate: x509.Certificate, references: Sequence[str], *, common_name: bool = False
) -> Failure | None:
    presented = _names(certificate, common_name)
    if any_matches(presented, references):
        return None
    told = ", ".join(presented[:10]) or "no host"
    text = f"its certificate is for {told}, and not for {' or '.join(references)}"
    return Failure(Result.CERTIFICATE_HOST_MISMATCH, text)


def _names(certificate: x509.Certificate, common_name: bool) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = found.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = []
    if names or not common_name:
        return list(names)
    # RFC 7672 §3.2.3: the common name counts only where there is no other.
    return [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]

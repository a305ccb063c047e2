"""Channel bindings: what only the two ends of one TLS connection know, or have in common. RFC 5056."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate
from OpenSSL import SSL

_EXPORTER = b"EXPORTER-Channel-Binding"


class ChannelBindings(Mapping[str, bytes]):
    """The bindings of a connection after its handshake, by type, the best first; `client`: we are that side of it.

    Computed when they are asked for: most logins use none, and to read and hash a certificate costs 50 us.
    """

    def __init__(self, connection: SSL.Connection, *, client: bool = False) -> None:
        self._connection = connection
        self._client = client

    def __getitem__(self, kind: str) -> bytes:
        return self._found[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    @cached_property
    def _found(self) -> Mapping[str, bytes]:
        connection = self._connection
        found: dict[str, bytes] = {}
        if connection.get_protocol_version_name() == "TLSv1.3":
            # RFC 9266 §2. Not with older versions, where two connections can be made to share their keys.
            found["tls-exporter"] = connection.export_keying_material(_EXPORTER, 32, b"")
        # RFC 5929 §4.1: that of the server, on both sides.
        certificate = (
            connection.get_peer_certificate(as_cryptography=True)
            if self._client
            else connection.get_certificate(as_cryptography=True)
        )
        if isinstance(certificate, Certificate) and (digest := _end_point(certificate)):
            found["tls-server-end-point"] = digest
        return found


def _end_point(certificate: Certificate) -> bytes:
    """RFC 5929 §4.1: the certificate under the hash of its signature; b"" where the signature has none of its own."""
    algorithm = certificate.signature_hash_algorithm
    if algorithm is None:
        return b""
    if isinstance(algorithm, hashes.MD5 | hashes.SHA1):
        algorithm = hashes.SHA256()
    digest = hashes.Hash(algorithm)
    digest.update(certificate.public_bytes(Encoding.DER))
    return digest.finalize()

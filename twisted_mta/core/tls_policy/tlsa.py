"""TLSA records, and whether a certificate matches one. RFC 6698, RFC 7672.

Certificates are DER throughout. Chains are verified elsewhere (`net.tls_verify`).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256, sha512

from twisted_mta.core.values import value

#: Certificate usages that mail can use: RFC 7672 §3.1.
DANE_TA, DANE_EE = 2, 3
#: Selectors: RFC 6698 §2.1.2.
CERT, SPKI = 0, 1
#: Matching types: RFC 6698 §2.1.3.
FULL, SHA2_256, SHA2_512 = 0, 1, 2

_DIGESTS = {SHA2_256: sha256, SHA2_512: sha512}
_LENGTHS = {SHA2_256: 32, SHA2_512: 64}
#: Records of one host that are looked at.
MAX_RECORDS = 50


class BadDer(ValueError):
    """The octets are no certificate."""


@value
class TlsaRecord:
    """One record."""

    usage: int
    selector: int
    matching: int
    data: bytes

    @classmethod
    def from_wire(cls, rdata: bytes) -> TlsaRecord | None:
        """RFC 6698 §2.1; None for what is too short to be one."""
        return cls(rdata[0], rdata[1], rdata[2], rdata[3:]) if len(rdata) > 3 else None

    @property
    def usable(self) -> bool:
        """Whether we can do with it what it asks for: RFC 6698 §4.1."""
        # RFC 7672 §3.1.3: PKIX-TA(0) and PKIX-EE(1) mean nothing for mail.
        if self.usage not in (DANE_TA, DANE_EE) or self.selector not in (CERT, SPKI):
            return False
        if self.matching == FULL:
            return len(self.data) > 0
        return len(self.data) == _LENGTHS.get(self.matching)

    def matches(self, certificate: bytes) -> bool:
        """Whether a certificate is the one, or has the key, that the record is about. Raises BadDer."""
        selected = certificate if self.selector == CERT else public_key_info(certificate)
        if self.matching == FULL:
            return selected == self.data
        return _DIGESTS[self.matching](selected).digest() == self.data

    def __str__(self) -> str:
        """As in a zone file: RFC 6698 §2.2."""
        return f"{self.usage} {self.selector} {self.matching} {self.data.hex()}"


def strongest(records: Sequence[TlsaRecord]) -> tuple[TlsaRecord, ...]:
    """The usable records, without those whose digest is weaker than another's of the same usage and selector."""
    usable = [record for record in records[:MAX_RECORDS] if record.usable]
    # RFC 7672 §5: an attacker who can break the weaker digest must not gain by it.
    best: dict[tuple[int, int], int] = {}
    for record in usable:
        key = record.usage, record.selector
        best[key] = max(best.get(key, FULL), record.matching)
    return tuple(
        record for record in usable if record.matching in (FULL, best[record.usage, record.selector])
    )


def matching_end(records: Sequence[TlsaRecord], certificate: bytes) -> bool:
    """Whether the server's own certificate matches a record of usage DANE-EE: RFC 7672 §3.1.1. Raises BadDer."""
    return any(record.usage == DANE_EE and record.matches(certificate) for record in records)


def matching_anchors(records: Sequence[TlsaRecord], chain: Sequence[bytes]) -> list[int]:
    """Which certificates of the chain, the server's own being the first, are trust anchors by records of usage DANE-TA.

    RFC 7672 §3.1.2. Raises BadDer.
    """
    anchors = [record for record in records if record.usage == DANE_TA]
    return [
        depth
        for depth, certificate in enumerate(chain)
        if depth and any(r.matches(certificate) for r in anchors)
    ]


def public_key_info(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a certificate, octet for octet: RFC 6698 §1.3. Raises BadDer."""
    start, end, _ = _element(certificate, 0)  # Certificate
    start, end, _ = _element(certificate, start)  # tbsCertificate
    position = start
    if certificate[position : position + 1] == b"\xa0":  # version, where it is not 1
        _, position, _ = _element(certificate, position)
    for _ in range(5):  # serialNumber, signature, issuer, validity, subject
        _, position, _ = _element(certificate, position)
    _, after, first = _element(certificate, position)
    if after > end:
        raise BadDer("the certificate ends before its key")
    return certificate[first:after]


def _element(der: bytes, position: int) -> tuple[int, int, int]:
    """(where the contents of the element at `position` begin, where it ends, `position`). Raises BadDer."""
    if position + 2 > len(der):
        raise BadDer("the certificate ends early")
    length, start = der[position + 1], position + 2
    if length & 0x80:
        octets = length & 0x7F
        if not 1 <= octets <= 4:
            raise BadDer("an element of the certificate has no usable length")
        length = int.from_bytes(der[start : start + octets], "big")
        start += octets
    if start + length > len(der):
        raise BadDer("an element of the certificate is longer than the certificate")
    return start, start + length, position

"""DNS as mail needs it."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from zope.interface import Interface

from twisted_mta.core.tls_policy.tlsa import TlsaRecord
from twisted_mta.core.values import value


@value(kw_only=True)
class Proof:
    """What DNSSEC says of a look-up."""

    #: Whether the answer, and every alias that led to it, was validated. A proven absence of records is secure too.
    secure: bool = False
    #: The name at the end of the aliases, in lower case.
    name: str
    #: The answer is not secure, but the first of the aliases is.
    alias_secure: bool = False


class IMailResolver(Interface):
    """DNS as mail needs it. Answers are cached for their TTL; each look-up has a deadline of its own.

    Methods raise `twisted_mta.core.route.NoSuchDomain` (NXDOMAIN) or `LookupFailed` (SERVFAIL, timeout);
    an existing name without such records gives an empty sequence.
    """

    def mx(domain: str) -> Awaitable[Sequence[tuple[int, str]]]:
        """(preference, host) pairs, unordered, hosts in lower case without the final dot; the null MX is (0, "")."""

    def addresses(host: str) -> Awaitable[Sequence[str]]:
        """The A and AAAA addresses of a host as text."""

    def txt(name: str) -> Awaitable[Sequence[bytes]]:
        """TXT records, each with its strings joined."""

    def ptr(address: str) -> Awaitable[Sequence[str]]:
        """The host names of an IP address."""

    def mx_proof(domain: str) -> Awaitable[Proof]:
        """Whether the answer of `mx` is proven. Nothing is, without a resolver that validates and is trusted to."""

    def address_proof(host: str) -> Awaitable[Proof]:
        """Whether the answer of `addresses` is proven."""

    def tlsa(name: str) -> Awaitable[Sequence[TlsaRecord]]:
        """The TLSA records of a name ("_25._tcp.mx.example.org"); those that DNSSEC does not prove are none."""

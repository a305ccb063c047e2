"""What the checks share: one that objects to nothing, for those that look at one stage only, and who is trusted."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import ClassVar

from zope.interface import implementer

from twisted_mta.config.schema import Network
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IPolicyCheck, Peer

Verdict = Awaitable[Reply | None] | Reply | None


#: IP addresses that are remembered: each command of a session asks for that of its client.
_CACHED = 4096


@lru_cache(_CACHED)
def _parse(address: str) -> IPv4Address | IPv6Address:
    return ip_address(address)


@lru_cache(_CACHED)
def is_loopback(address: str) -> bool:
    """Whether an IP address is this machine's own, of the kind that nobody else can have."""
    return ip_address(address).is_loopback


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """Whether an IP address belongs to one of the networks."""
    if not networks:
        return False
    parsed = _parse(address)
    return any(parsed in network for network in networks)


def is_stranger(peer: Peer, trusted: Sequence[Network]) -> bool:
    """Whether this is another mail server: nobody who logged in, may relay, or is on this machine."""
    return (
        peer.role == "mx"
        and peer.account is None
        and not is_loopback(peer.address)
        and not is_within(peer.address, trusted)
    )


@implementer(IPolicyCheck)
class Accepting:
    """Lets everything pass."""

    settings: ClassVar[tuple[str, ...]] = ()
    needs_address: ClassVar[bool] = False

    def on_connect(self, peer: Peer) -> Verdict:
        """See IPolicyCheck."""
        return None

    def on_helo(self, peer: Peer) -> Verdict:
        """See IPolicyCheck."""
        return None

    def on_mail(self, peer: Peer, envelope: Envelope) -> Verdict:
        """See IPolicyCheck."""
        return None

    def on_rcpt(self, peer: Peer, envelope: Envelope, recipient: Recipient) -> Verdict:
        """See IPolicyCheck."""
        return None

    def on_message(self, peer: Peer, envelope: Envelope, header: bytes) -> Verdict:
        """See IPolicyCheck."""
        return None

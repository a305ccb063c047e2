"""What the checks share: one that objects to nothing, for those that look at one stage only, and who is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from zope.interface import implementer

from twisted_mta.config.schema import Network
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IPolicyCheck, Peer


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """Whether an IP address belongs to one of the networks."""
    if not networks:
        return False
    parsed = ip_address(address)
    return any(parsed in network for network in networks)


@implementer(IPolicyCheck)
class Accepting:
    """Lets everything pass."""

    def on_connect(self, peer: Peer) -> Reply | None:
        """See IPolicyCheck."""
        return None

    def on_helo(self, peer: Peer) -> Reply | None:
        """See IPolicyCheck."""
        return None

    def on_mail(self, peer: Peer, envelope: Envelope) -> Reply | None:
        """See IPolicyCheck."""
        return None

    def on_rcpt(self, peer: Peer, envelope: Envelope, recipient: Recipient) -> Reply | None:
        """See IPolicyCheck."""
        return None

    def on_message(self, peer: Peer, envelope: Envelope, header: bytes) -> Reply | None:
        """See IPolicyCheck."""
        return None

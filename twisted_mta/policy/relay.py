"""Who may send where: no open relay, and no mail for users that do not exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from zope.interface import implementer

from twisted_mta.config.schema import Network
from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.expand import canonical, home, resolves, too_large
from twisted_mta.core.lists import refuse_sender
from twisted_mta.core.message import count_fields
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IDirectory, IPolicyCheck, Peer
from twisted_mta.policy.base import Accepting, is_within

_DENIED = Reply(550, "5.7.1", "Relaying denied: we do not take mail for that domain from you")

_NO_LOGIN = Reply(550, "5.7.1", "Rules are changed by users alone, who log in to send the mail")
_BOUNCES = Reply(550, "5.7.1", "Only bounces are taken for that address: it is the sender of forwarded mail")


@implementer(IPolicyCheck)
class RelayCheck(Accepting):
    """Mail for other domains is taken from users who logged in and from the configured networks only."""

    settings: ClassVar[tuple[str, ...]] = ("domains", "domain", "relay.networks")

    def __init__(self, directory: IDirectory, networks: Sequence[Network]) -> None:
        self._directory = directory
        self._networks = tuple(networks)

    def on_rcpt(self, peer: Peer, envelope: Envelope, recipient: Recipient) -> Reply | None:
        """See IPolicyCheck."""
        domain = recipient.address.domain
        # RFC 5321 §4.1.1.3: a bare postmaster is ours.
        ours = not domain or self._directory.domain(domain) is not None
        if ours or peer.account is not None or self._trusts(peer):
            if peer.remarks is not None:
                peer.remarks.append(self._why(peer, domain))
            return None
        return _DENIED  # RFC 5321 §3.6.2, RFC 3463 §3.8

    def _why(self, peer: Peer, domain: str) -> str:
        found = self._directory.domain(domain)
        if found is not None and found.relay:
            return f"we are a relay for {domain} ({found.source})"
        if not domain or found is not None:
            return f"{domain or 'postmaster'} is ours"
        if peer.account is not None:
            return f"{peer.account.name} has logged in and may send anywhere"
        return f"{peer.address} is in relay.networks and may send anywhere"

    def _trusts(self, peer: Peer) -> bool:
        return is_within(peer.address, self._networks)


@implementer(IPolicyCheck)
class RecipientCheck(Accepting):
    """Mail for a domain of ours is taken only where it can be delivered, and for a list only from who may post."""

    settings: ClassVar[tuple[str, ...]] = ("accounts.file", "aliases", "domain", "virtual", "list")

    def __init__(self, directory: IDirectory) -> None:
        self._directory = directory

    def on_rcpt(self, peer: Peer, envelope: Envelope, recipient: Recipient) -> Reply | None:
        """See IPolicyCheck."""
        address = recipient.address
        domain = self._directory.domain(address.domain)
        if address.domain and domain is None:
            return None
        # RFC 1870 §6.1: said now, where the client told the size, the message need not be sent for nothing.
        large = too_large(address, envelope.declared_size, self._directory)
        if large is not None:
            return large.reply
        if self._directory.is_mailbox(address):
            return None
        # RFC 5321 §3.3: said now, the sender learns it from its own server and no bounce is needed.
        problem = resolves(address, self._directory)
        if problem is not None:
            return problem.reply
        if peer.account is None and self._directory.takes_rules(address):
            return _NO_LOGIN
        if envelope.sender is not None and self._takes_bounces_only(address):
            return _BOUNCES
        address = canonical(address, self._directory)
        if domain is not None and domain.alias_of:
            address = home(address, self._directory)
        settings = self._directory.mailing_list(address)
        if settings is None:
            return None
        return refuse_sender(settings, envelope.sender, self._directory.posters(settings.address))

    def _takes_bounces_only(self, address: Address) -> bool:
        directory = self._directory
        return directory.forwarding().bounces_only and directory.returns(address) is not None


@implementer(IPolicyCheck)
class LoopCheck(Accepting):
    """A message that passed too many servers goes round in circles: RFC 5321 §6.3."""

    settings: ClassVar[tuple[str, ...]] = ("limits.received_headers",)

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def on_message(self, peer: Peer, envelope: Envelope, header: bytes) -> Reply | None:
        """See IPolicyCheck."""
        hops = count_fields(header, "Received")
        if hops <= self._limit:
            return None
        return Reply(
            554, "5.4.6", f"Routing loop: the message has {hops} Received fields, the limit is {self._limit}"
        )

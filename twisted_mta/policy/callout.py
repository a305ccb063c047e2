"""Mail for domains that we relay for is taken only for addresses that their own servers know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Protocol

from zope.interface import implementer

from twisted_mta.config.schema import Network
from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.expand import is_relayed
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IDirectory, IPolicyCheck, Peer
from twisted_mta.policy.base import Accepting, Verdict, is_within


class Answer(Protocol):
    """As `delivery.callouts.Answer`."""

    @property
    def refusal(self) -> Reply | None: ...
    @property
    def remark(self) -> str: ...


#: Finds out whether an address exists at the servers of its domain.
Verify = Callable[[Address], Awaitable[Answer]]


@implementer(IPolicyCheck)
class CalloutCheck(Accepting):
    """Asks about addresses of relay domains with `callout`. Users who logged in and the networks that may relay are not kept
    waiting: bounces reach them."""

    settings: ClassVar[tuple[str, ...]] = ("domain.callout",)

    def __init__(self, directory: IDirectory, verify: Verify, trusted: Sequence[Network]) -> None:
        self._directory = directory
        self._verify = verify
        self._trusted = tuple(trusted)

    def on_rcpt(self, peer: Peer, envelope: Envelope, recipient: Recipient) -> Verdict:
        """See IPolicyCheck."""
        address = recipient.address
        domain = self._directory.domain(address.domain)
        if domain is None or not domain.callout or not is_relayed(address, self._directory):
            return None
        # RFC 5321 §4.5.1: the postmaster exists.
        if address.local.casefold() == "postmaster":
            return None
        if peer.account is not None or is_within(peer.address, self._trusted):
            if peer.remarks is not None:
                peer.remarks.append("nobody is asked for a client that may relay: bounces reach it")
            return None
        return self._ask(peer, address)

    async def _ask(self, peer: Peer, address: Address) -> Reply | None:
        answer = await self._verify(address)
        if peer.remarks is not None:
            peer.remarks.append(answer.remark)
        return answer.refusal

"""Whether what a client says at HELO or EHLO can be its name: the form, and that it is not ours."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import ClassVar

from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.config.schema import Network
from twisted_mta.core.address import AddressError, literal_ip, parse_domain
from twisted_mta.core.envelope import Envelope
from twisted_mta.core.replies import Reply
from twisted_mta.core.route import LookupFailed, NoSuchDomain
from twisted_mta.interfaces import IMailResolver, IPolicyCheck, Peer
from twisted_mta.policy.base import Accepting, Verdict, is_stranger

_NOTE = "helo"


@implementer(IPolicyCheck)
class HeloCheck(Accepting):
    """Looks at the names of strangers when they begin to send; with `require` those that can't be true are refused.

    Whether a name fits its address is not looked at: RFC 5321 §4.1.4 forbids to refuse mail for that.
    """

    log = Logger()
    settings: ClassVar[tuple[str, ...]] = ("checks.helo",)

    def __init__(
        self, hostname: str, resolver: IMailResolver, trusted: Sequence[Network], *, require: bool
    ) -> None:
        """`hostname` is ours, and so are the addresses that the DNS has for it."""
        self._hostname = hostname
        self._resolver = resolver
        self._trusted = tuple(trusted)
        self._require = require

    def on_mail(self, peer: Peer, envelope: Envelope) -> Verdict:
        """See IPolicyCheck. At MAIL, because a refused EHLO makes some clients go on with HELO."""
        if not is_stranger(peer, self._trusted):
            return None
        try:
            name = parse_domain(peer.helo)
        except AddressError:
            return self._judge(peer, "is neither a host name nor an address literal")
        if _is_ip(name):
            return self._judge(peer, f"is an address without brackets: send a host name, or [{name}]")
        literal = literal_ip(name)
        if name == self._hostname or (literal and ip_address(literal) != ip_address(peer.address)):
            return self._judge_ours(peer, literal)
        return None

    async def _judge_ours(self, peer: Peer, literal: str) -> Reply | None:
        """The client says that it is us, or at some other address than its own: it may be us after all."""
        try:
            found = await self._resolver.addresses(self._hostname)
        except (NoSuchDomain, LookupFailed):
            found = ()
        own = {ip_address(address) for address in found}
        if ip_address(peer.address) in own:
            return None
        if literal:
            return self._judge(peer, "is our own address") if ip_address(literal) in own else None
        return self._judge(peer, "is our own name")

    def _judge(self, peer: Peer, problem: str) -> Reply | None:
        refusal = Reply(550, "5.7.1", f"Your {'EHLO' if peer.esmtp else 'HELO'} {problem}")
        if self._require:
            return refusal
        if peer.remarks is not None:
            peer.remarks.append(f'would be refused with checks.helo = "require": {refusal}')
        elif peer.notes.get(_NOTE) != peer.helo:  # once a session
            peer.notes[_NOTE] = peer.helo
            self.log.info(
                '{peer} would be refused with checks.helo = "require", it said {helo!r}: {reply}',
                peer=peer.address,
                session=peer.session_id,
                helo=peer.helo,
                reply=str(refusal),
            )
        return None


def _is_ip(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True

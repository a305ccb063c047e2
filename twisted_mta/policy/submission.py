"""As whom a login may send: its own addresses and those granted to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from zope.interface import implementer

from twisted_mta.config.schema import Grant
from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Envelope
from twisted_mta.core.expand import canonical, expand, resolves
from twisted_mta.core.queue import Transport
from twisted_mta.core.replies import Reply
from twisted_mta.core.submission import Facts, authors, fix_header
from twisted_mta.core.values import value
from twisted_mta.interfaces import Account, IDirectory, IPolicyCheck, Peer
from twisted_mta.policy.base import Accepting


class SenderRules:
    """Which addresses belong to an account, by the directory as it is now, and by the grants of the configuration."""

    def __init__(self, directory: IDirectory, grants: Sequence[Grant]) -> None:
        self._directory = directory
        found: dict[str, set[str]] = {}
        for grant in grants:
            found.setdefault(grant.account.folded, set()).update(
                address.casefold() for address in grant.addresses
            )
        #: Folded account -> folded addresses and "@domain"s.
        self._granted: Mapping[str, frozenset[str]] = {
            name: frozenset(addresses) for name, addresses in found.items()
        }

    def own(self, account: Account, address: Address) -> bool:
        """Whether the address leads to the account: its name, with a detail too, or an alias. A list does not.

        Nor do rules of users: who has his mail sent on keeps his address, and gives it to nobody.
        """
        address = canonical(address, self._directory)
        if not self._directory.is_local(address.domain):
            return False
        return any(
            found.transport is Transport.LOCAL and self._is(account, found.address)
            for found in expand(address, self._directory, rules=False).recipients
        )

    def _is(self, account: Account, address: Address) -> bool:
        found = self._directory.account(address)
        return found is not None and found.name.casefold() == account.name.casefold()

    def may_send(self, account: Account, address: Address) -> bool:
        """Whether the account may send as this address."""
        granted = self._granted.get(account.name.casefold(), frozenset())
        if address.folded in granted or f"@{address.domain}".casefold() in granted:
            return True
        return self.own(account, address)


@implementer(IPolicyCheck)
@value
class SenderCheck(Accepting):
    """RFC 6409 §6.1: a login sends as itself, so that nobody writes in another's name, and a bounce reaches who sent."""

    rules: SenderRules

    settings: ClassVar[tuple[str, ...]] = ("submission.check_sender", "submission.grant")

    def on_mail(self, peer: Peer, envelope: Envelope) -> Reply | None:
        """See IPolicyCheck. The null reverse-path is for receipts, RFC 8098 §3."""
        if peer.account is None or envelope.sender is None:
            if peer.remarks is not None:
                peer.remarks.append(
                    "any sender: nobody has logged in" if peer.account is None else "a receipt"
                )
            return None
        return self._judge(peer.account, envelope.sender, "")

    def on_message(self, peer: Peer, envelope: Envelope, header: bytes) -> Reply | None:
        """See IPolicyCheck."""
        if peer.account is None:
            if peer.remarks is not None:
                peer.remarks.append("any author: nobody has logged in")
            return None
        for author in authors(header):
            refusal = self._judge(peer.account, author, " in the From field")
            if refusal is not None:
                return refusal
        return None

    def _judge(self, account: Account, address: Address, where: str) -> Reply | None:
        if self.rules.may_send(account, address):
            return None
        return Reply(553, "5.7.1", f"Sender address <{address}>{where} is not owned by {account.name}")


@value(kw_only=True)
class HeaderMender:
    """`service.rules.Rules.mend`: puts the header of what users submit right, see `core.submission`."""

    hostname: str
    directory: IDirectory
    rules: SenderRules

    def __call__(self, header: bytes, peer: Peer, queue_id: str, now: float) -> bytes:
        """The header section to store. The peer has logged in. Raises SubmissionError."""
        account = peer.account
        assert account is not None  # nobody else's mail is mended
        facts = Facts(
            hostname=self.hostname,
            queue_id=queue_id,
            now=now,
            account=self._address(account),
            own=lambda address: self.rules.own(account, address),
            may_send=lambda address: self.rules.may_send(account, address),
            exists=lambda address: resolves(address, self.directory) is None,
        )
        return fix_header(header, facts)

    def _address(self, account: Account) -> Address:
        name = account.name
        return Address.parse(name if "@" in name else f"{name}@{self.directory.first_domain()}")

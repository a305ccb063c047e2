"""What one address is.

For an address in one of our domains the first of these that exists decides:

0. a sender that was rewritten here (`core.srs`), which only bounces come to: the old one;
1. a mailing list, or its NAME-owner, NAME-bounces or NAME-request;
2. an alias of the full address, else of the local part, where the domain has users of its own;
3. an account of exactly this name;
4. a handler of an application;
5. an alias of the address without its +detail: who forwards alice forwards alice+lists too;
6. an account without the +detail (which stays in the address, for the folder);
7. a pattern of [virtual], the first that matches;
8. the same address in the domain that this one is an alias of; or, if we are a relay for it, the domain's own servers;
9. postmaster, abuse and mailer-daemon: the configured postmaster;
10. the catch-all of the domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Action, Alias, Special, Target
from twisted_mta.core.domains import Domain
from twisted_mta.core.expand.plan import Kind, Problem
from twisted_mta.core.lists import MailingList
from twisted_mta.core.rules import Rules
from twisted_mta.core.srs import SrsError, Ticket
from twisted_mta.core.values import value

#: RFC 5321 §4.5.1: postmaster exists in every domain. RFC 2142 §4 asks for abuse; mailer-daemon is where people
#: answer bounces to.
ROLES = frozenset({"postmaster", "abuse", "mailer-daemon"})


class Lookups(Protocol):
    """What expansion needs of a directory: see `twisted_mta.interfaces.IDirectory`."""

    def snapshot(self) -> Lookups: ...
    def domain(self, name: str) -> Domain | None: ...
    def is_local(self, domain: str) -> bool: ...
    def first_domain(self) -> str: ...
    def postmaster(self) -> Address: ...
    def account(self, address: Address) -> object | None: ...
    def without_detail(self, address: Address) -> Address | None: ...
    def alias(self, address: Address) -> Alias | None: ...
    def pattern(self, address: Address) -> Alias | None: ...
    def catch_all(self, domain: str) -> Alias | None: ...
    def include(self, path: str) -> Sequence[Target]: ...
    def mailing_list(self, address: Address) -> MailingList | None: ...
    def list_owner(self, address: Address) -> MailingList | None: ...
    def handler(self, address: Address) -> str: ...
    def rules(self, address: Address) -> Rules | None: ...
    def additional(self, address: Address) -> Address | None: ...
    def takes_rules(self, address: Address) -> bool: ...
    def returns(self, address: Address) -> Address | Ticket | SrsError | None: ...
    def is_mailbox(self, address: Address) -> bool: ...


@value
class Found:
    """What an address is."""

    kind: Kind
    targets: tuple[Target | Address, ...] = ()
    #: Where the targets are written, for those that don't say so themselves.
    source: str = ""
    #: The name of an alias, as it is written, in the domain that was asked for.
    name: Address | None = None
    #: The name of a handler.
    handler: str = ""
    #: Why it takes no mail.
    problem: Problem | None = None
    #: Whose sender gets it; see `Transport.RETURN`.
    ticket: Ticket | None = None
    #: The account that replies.
    answering: Address | None = None


NOTHING: frozenset[Kind] = frozenset()
#: What an address can be that is found by another name than its own.
INDIRECT = frozenset(
    {
        Kind.LIST,
        Kind.LIST_OWNER,
        Kind.ALIAS,
        Kind.HANDLER,
        Kind.RULES,
        Kind.PATTERN,
        Kind.POSTMASTER,
        Kind.CATCH_ALL,
    }
)
_REMOTE = Found(Kind.REMOTE)
_LIST = Found(Kind.LIST)
_ACCOUNT = Found(Kind.ACCOUNT)


def canonical(address: Address, directory: Lookups) -> Address:
    """The address with one of our domains in place of none (``<postmaster>``) or of a literal of ours."""
    # RFC 5321 §4.1.1.3: a bare postmaster is ours; §4.1.3: so is whoever is named at our own address.
    if not address.domain or (address.is_literal and directory.is_local(address.domain)):
        return Address(address.local, directory.first_domain())
    return address


def find(address: Address, directory: Lookups, skip: frozenset[Kind] = NOTHING) -> Found | None:
    """What a canonical address is, kinds in `skip` left aside; None if nobody has it."""
    domain = directory.domain(address.domain)
    if domain is None:
        return _REMOTE
    returned = directory.returns(address)
    if returned is not None:
        return _returned(returned, address)
    return _by_name(address, domain, directory, skip) or _by_rule(address, domain, directory, skip)


def _by_name(address: Address, domain: Domain, directory: Lookups, skip: frozenset[Kind]) -> Found | None:
    """What bears this very name, with a detail or without."""
    if Kind.LIST not in skip and directory.mailing_list(address):
        return _LIST
    owned = directory.list_owner(address)
    if owned and Kind.LIST_OWNER not in skip:
        return Found(Kind.LIST_OWNER, (owned.owner,), f"list {owned.address}")
    aliased = Kind.ALIAS not in skip
    alias = directory.alias(address) if aliased else None
    if alias:
        return Found(Kind.ALIAS, alias.targets, name=address.with_local(alias.name.local))
    base = directory.without_detail(address)
    account = directory.account(address) if domain.is_own else None
    exact = account is not None and (base is None or directory.account(base) != account)
    handler = "" if exact or Kind.HANDLER in skip else directory.handler(address)
    if handler:
        return Found(Kind.HANDLER, handler=handler)
    alias = directory.alias(base) if base and aliased and not exact else None
    if alias:
        return Found(Kind.ALIAS, alias.targets, name=address.with_local(alias.name.local))
    if account is not None:
        return _account(address, base if base and not exact else address, directory, skip)
    if directory.takes_rules(address):
        return Found(Kind.ORDERS)
    owner = directory.additional(base or address) if domain.is_own else None
    return Found(Kind.EXTRA, (owner,), f"rules of {owner}") if owner else None


def _account(address: Address, user: Address, directory: Lookups, skip: frozenset[Kind]) -> Found:
    """A mailbox, or what its user has made of it. With a detail or without, it is one user, who replies once."""
    rules = directory.rules(address) if Kind.RULES not in skip else None
    if rules is None or not (rules.forward or rules.vacation):
        return _ACCOUNT
    kept = () if rules.forward and not rules.keep else (address,)
    return Found(
        Kind.RULES,
        (*rules.forward, *kept),
        f"rules of {user}",
        answering=user if rules.vacation is not None else None,
    )


def _by_rule(address: Address, domain: Domain, directory: Lookups, skip: frozenset[Kind]) -> Found | None:
    """What holds for many addresses of the domain."""
    alias = directory.pattern(address) if Kind.PATTERN not in skip else None
    if alias:
        return Found(Kind.PATTERN, alias.targets)
    if domain.relay:
        return _relayed(address, domain, directory)
    if domain.alias_of:
        return Found(Kind.DOMAIN_ALIAS, (Address(address.local, domain.alias_of),), domain.source)
    base = directory.without_detail(address) or address
    if Kind.POSTMASTER not in skip and base.local.casefold() in ROLES:
        if domain.postmaster is not None:
            return Found(Kind.POSTMASTER, (domain.postmaster,), domain.source)
        return Found(Kind.POSTMASTER, (directory.postmaster(),), "postmaster")
    rest = directory.catch_all(address.domain) if Kind.CATCH_ALL not in skip else None
    return Found(Kind.CATCH_ALL, rest.targets) if rest else None


def _returned(found: Address | Ticket | SrsError, address: Address) -> Found:
    if isinstance(found, SrsError):
        return Found(Kind.FORGED, problem=Problem(Kind.FORGED, address, str(found), "forward.srs"))
    if isinstance(found, Ticket):
        return Found(Kind.RETURN, ticket=found)
    return Found(Kind.RETURN, (found,), "forward.srs")


def _relayed(address: Address, domain: Domain, directory: Lookups) -> Found | None:
    """RFC 5321 §3.6.2: a relay may check whether the recipient exists, and then need not write the bounce."""
    if domain.unreadable:
        text = f"Can't tell for now whether {address} exists, try again later"
        return Found(Kind.RELAY, (Special(Action.DEFER, text, domain.source),))
    if domain.recipients is None:
        return Found(Kind.RELAY)
    base = directory.without_detail(address)
    known = address.folded in domain.recipients or (base and base.folded in domain.recipients)
    # RFC 5321 §4.5.1: the postmaster exists, whatever a list says.
    return Found(Kind.RELAY) if known or address.local.casefold() == "postmaster" else None


def is_relayed(address: Address, directory: Lookups) -> bool:
    """Whether mail for a canonical address goes on to the servers of its domain, for which we are a relay."""
    found = find(address, directory)
    return found is not None and found.kind is Kind.RELAY and not found.targets


def home(address: Address, directory: Lookups) -> Address:
    """A canonical address in the domain that has it: not in one that is an alias of another, but for what exists there."""
    found = find(address, directory)
    if found is not None and found.kind is Kind.DOMAIN_ALIAS:
        (target,) = found.targets
        assert isinstance(target, Address)
        return target
    return address


def is_elsewhere(address: Address, directory: Lookups) -> bool:
    """Whether an address is in no domain of ours, as most members of a list are: then `expand` would give nothing but the
    address itself, in twice the time of everything else that is done to route it."""
    return directory.domain(address.domain) is None and canonical(address, directory) is address


def leads_to_mailbox(address: Address, directory: Lookups) -> bool:
    """Whether mail for an address goes into the mailbox of that very account and nowhere else, whoever sends it: then
    `expand` would give nothing but the address itself, and `resolves` nothing."""
    if canonical(address, directory) is not address or directory.takes_rules(address):
        return False
    return find(address, directory) is _ACCOUNT


def resolves(address: Address, directory: Lookups) -> Problem | None:
    """Whether there is anybody behind an address, at the cost of a few look-ups: None, or the reason to refuse it at RCPT.

    Remote addresses always resolve. What an alias leads to is not followed: that is `expand`. An alias that is nothing
    but ``:fail:`` or ``:defer:`` is such a reason.
    """
    directory = directory.snapshot()
    address = canonical(address, directory)
    found = find(address, directory)
    if found is not None and found.kind is Kind.DOMAIN_ALIAS:
        found = find(home(address, directory), directory)
    if found is None:
        return unknown(address, "")
    if found.problem is not None:
        return found.problem
    if len(found.targets) == 1 and isinstance(found.targets[0], Special):
        return refusal(found.targets[0], address)
    return None


def unknown(address: Address, source: str) -> Problem:
    """Nobody has the address."""
    return Problem(Kind.UNKNOWN, address, f"there is no user {address} here", source)


def too_large(address: Address, size: int, directory: Lookups) -> Problem | None:
    """Whether a message of so many octets (0: not known) is larger than its domain takes.

    A domain that is an alias of another takes no more than that, if nothing is said of it itself.
    """
    domain = directory.domain(address.domain) if size else None
    if domain is not None and domain.alias_of and not domain.message_size:
        domain = directory.domain(domain.alias_of)
    if domain is None or not 0 < domain.message_size < size:
        return None
    text = f"messages for {address.domain} may have {domain.message_size} octets at most"
    return Problem(Kind.SIZE, address, text, domain.source)


def refusal(target: Special, address: Address) -> Problem | None:
    """What a target says that takes no mail; None for one that takes it and loses it."""
    if target.action is Action.FAIL:
        return Problem(Kind.FAIL, address, target.text or f"{address} takes no mail", target.source)
    if target.action is Action.DEFER:
        text = target.text or f"{address} takes no mail for now, try again later"
        return Problem(Kind.DEFER, address, text, target.source)
    return None

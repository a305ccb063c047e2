"""Where mail for an address goes: mailboxes, lists and other hosts, behind however many aliases.

For a local address the first of these that exists decides:

1. a mailing list, or its NAME-owner, NAME-bounces or NAME-request;
2. an alias of the full address, else of the local part;
3. an account of exactly this name;
4. an alias of the address without its +detail: who forwards alice forwards alice+lists too;
5. an account without the +detail (which stays in the address, for the folder);
6. postmaster, abuse and mailer-daemon: the configured postmaster;
7. the catch-all alias of the domain.

An alias that names itself (``alice: alice, bob``) means there the mailbox. A target without a domain belongs to the
domain of the alias as it was looked up, or, where it does not exist there, to the first local domain.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Alias, Include, Target
from twisted_mta.core.envelope import Notify, Recipient
from twisted_mta.core.lists import MailingList
from twisted_mta.core.queue import NewRecipient, Transport
from twisted_mta.core.replies import Reply

#: Aliases behind aliases; recipients of one address; targets looked at for one address.
MAX_DEPTH = 20
MAX_RECIPIENTS = 10_000
MAX_STEPS = 50_000

#: RFC 5321 §4.5.1: postmaster exists in every domain. RFC 2142 §4 asks for abuse; mailer-daemon is where people
#: answer bounces to.
ROLES = frozenset({"postmaster", "abuse", "mailer-daemon"})


class Lookups(Protocol):
    """What expansion needs of a directory: see `twisted_mta.interfaces.IDirectory`."""

    def is_local(self, domain: str) -> bool: ...
    def first_domain(self) -> str: ...
    def postmaster(self) -> Address: ...
    def account(self, address: Address) -> object | None: ...
    def without_detail(self, address: Address) -> Address | None: ...
    def alias(self, address: Address) -> Alias | None: ...
    def catch_all(self, domain: str) -> Alias | None: ...
    def include(self, path: str) -> Sequence[Target]: ...
    def mailing_list(self, address: Address) -> MailingList | None: ...
    def list_owner(self, address: Address) -> MailingList | None: ...


class Kind(enum.StrEnum):
    """What an address turned out to be, or why it leads nowhere."""

    REMOTE = "remote"
    ACCOUNT = "account"
    LIST = "list"
    LIST_OWNER = "list owner"
    ALIAS = "alias"
    INCLUDE = "include"
    POSTMASTER = "postmaster"
    CATCH_ALL = "catch-all"
    DUPLICATE = "duplicate"
    UNKNOWN = "unknown user"
    LOOP = "alias loop"
    LIMIT = "limit"


@attrs.frozen
class Step:
    """One node of the tree that shows how an address was expanded."""

    #: The address, or ":include:/path".
    name: str
    kind: Kind
    #: What led here: "aliases:12", or "" for the address asked for.
    source: str = ""
    children: tuple[Step, ...] = ()


@attrs.frozen
class Destination:
    """One place where a copy goes. `original` is the address asked for."""

    address: Address
    transport: Transport
    original: Address
    #: The aliases and :include: files on the way; see `NewRecipient.via`.
    via: tuple[str, ...] = attrs.field(default=(), eq=False)


@attrs.frozen
class Problem:
    """An address that leads nowhere. `text` is a sentence for the sender, `source` where it was written ("aliases:12")."""

    kind: Kind
    address: Address
    text: str
    source: str = ""

    @property
    def reply(self) -> Reply:
        """As an answer to RCPT."""
        return Reply(550, _STATUS[self.kind], self.text)


_STATUS = {
    Kind.UNKNOWN: "5.1.1",  # RFC 3463 §3.2: bad destination mailbox address
    Kind.LOOP: "5.4.6",  # RFC 3463 §3.5: routing loop detected
    Kind.LIMIT: "5.2.4",  # RFC 3463 §3.3: mailing list expansion problem
}


@attrs.frozen
class Plan:
    """Where mail for one address goes: without duplicates, in the order of the files. Where there are problems the
    rest still goes on."""

    recipients: tuple[Destination, ...]
    problems: tuple[Problem, ...]
    root: Step


def render(step: Step, depth: int = 0) -> Iterator[str]:
    """The lines of a tree of steps for a person, two spaces a level."""
    source = f"  ({step.source})" if step.source else ""
    yield f"{'  ' * depth}{step.name}: {step.kind}{source}"
    for child in step.children:
        yield from render(child, depth + 1)


def canonical(address: Address, directory: Lookups) -> Address:
    """The address with one of our domains in place of none (``<postmaster>``) or of a literal of ours."""
    # RFC 5321 §4.1.1.3: a bare postmaster is ours; §4.1.3: so is whoever is named at our own address.
    if not address.domain or (address.is_literal and directory.is_local(address.domain)):
        return Address(address.local, directory.first_domain())
    return address


@attrs.frozen
class _Found:
    kind: Kind
    targets: tuple[Target | Address, ...] = ()
    #: Where the targets are written, for those that don't say so themselves.
    source: str = ""


_NOTHING: frozenset[Kind] = frozenset()


def _find(address: Address, directory: Lookups, skip: frozenset[Kind] = _NOTHING) -> _Found | None:
    """What a canonical address is, kinds in `skip` left aside; None if nobody has it."""
    if not directory.is_local(address.domain):
        return _Found(Kind.REMOTE)
    if directory.mailing_list(address):
        return _Found(Kind.LIST)
    owned = directory.list_owner(address)
    if owned and Kind.LIST_OWNER not in skip:
        return _Found(Kind.LIST_OWNER, (owned.owner,), f"list {owned.address}")
    aliased = Kind.ALIAS not in skip
    alias = directory.alias(address) if aliased else None
    if alias:
        return _Found(Kind.ALIAS, alias.targets)
    base = directory.without_detail(address)
    account = directory.account(address)
    exact = account is not None and (base is None or directory.account(base) != account)
    alias = directory.alias(base) if base and aliased and not exact else None
    if alias:
        return _Found(Kind.ALIAS, alias.targets)
    if account is not None:
        return _Found(Kind.ACCOUNT)
    if Kind.POSTMASTER not in skip and (base or address).local.casefold() in ROLES:
        return _Found(Kind.POSTMASTER, (directory.postmaster(),), "postmaster")
    rest = directory.catch_all(address.domain) if Kind.CATCH_ALL not in skip else None
    return _Found(Kind.CATCH_ALL, rest.targets) if rest else None


def resolves(address: Address, directory: Lookups) -> Problem | None:
    """Whether there is anybody behind an address, at the cost of a few look-ups: None, or the reason to refuse it at RCPT.

    Remote addresses always resolve. What an alias leads to is not followed: that is `expand`.
    """
    address = canonical(address, directory)
    return None if _find(address, directory) else _unknown(address, "")


def expand(address: Address, directory: Lookups) -> Plan:
    """Follow an address to where its mail goes. Never raises; ends on any directory."""
    expansion = _Expansion(directory, address)
    root = expansion.address(canonical(address, directory), "", _Trail())
    return Plan(tuple(expansion.recipients.values()), tuple(expansion.problems), root)


@attrs.frozen
class Routed:
    """What recipients of an envelope become. `problems` are for the log: each of them is also in `recipients`, as a
    local address that delivery will refuse, so that the sender is told the usual way."""

    recipients: tuple[NewRecipient, ...]
    problems: tuple[Problem, ...]


def route(recipients: Iterable[Recipient], directory: Lookups) -> Routed:
    """Expand the recipients of a message for the queue. A place that several of them lead to gets one copy, for the first."""
    routed: dict[object, NewRecipient] = {}
    problems: list[Problem] = []
    for recipient in recipients:
        plan = expand(recipient.address, directory)
        problems += plan.problems
        places = [(found.address, found.transport, found.via) for found in plan.recipients]
        places += [(bad.address, Transport.LOCAL, ()) for bad in plan.problems]
        notify = recipient.notify
        if len(places) > 1 and Notify.SUCCESS in notify:
            # RFC 3461 §5.2.7.3 (c): "expanded" is the success of the alias.
            notify &= ~Notify.SUCCESS
            alias = NewRecipient(
                recipient.address, Transport.ALIAS, recipient.address, Notify.SUCCESS, recipient.orcpt
            )
            routed.setdefault((Transport.ALIAS, recipient.address.folded), alias)
        for address, transport, via in places:
            new = NewRecipient(address, transport, recipient.address, notify, recipient.orcpt, via)
            routed.setdefault(_key(address, transport), new)
    return Routed(tuple(routed.values()), tuple(problems))


def members(settings: MailingList, directory: Lookups) -> Routed:
    """Who gets the posts of a list: each place once, the list itself left out.

    RFC 3461 §5.2.7.1 (b): what the author asked for with NOTIFY and ORCPT does not reach the members; the owner hears of
    failures, and of nothing else.
    """
    return without_list(
        settings, route((Recipient(member, Notify.FAILURE) for member in settings.members), directory)
    )


def without_list(settings: MailingList, routed: Routed) -> Routed:
    """The same without what leads back to a list."""
    ours = settings.address.folded
    kept = (
        one for one in routed.recipients if one.transport is not Transport.LIST or one.address.folded != ours
    )
    return Routed(tuple(kept), routed.problems)


def posters(settings: MailingList, directory: Lookups) -> frozenset[str]:
    """The folded addresses of the members of a list: as written in it, and those that they lead to."""
    found = [one.address for one in members(settings, directory).recipients]
    return frozenset(address.folded for address in (*settings.members, *found))


# --- The walk ------------------------------------------------------------------------------------


def _key(address: Address, transport: Transport) -> object:
    """What makes two destinations the same: the case of a remote local part is not ours to ignore (RFC 5321 §2.4)."""
    return address if transport is Transport.SMTP else address.folded


def _unknown(address: Address, source: str) -> Problem:
    return Problem(Kind.UNKNOWN, address, f"there is no user {address} here", source)


@attrs.frozen
class _Trail:
    """The way from the address asked for to the one looked at."""

    #: Folded addresses and ":include:" paths.
    names: tuple[str, ...] = ()
    #: The address whose targets are being followed, and what it was found to be (more than once if it named itself).
    last: str = ""
    seen_as: frozenset[Kind] = _NOTHING
    domain: str = ""

    def skip(self, address: Address) -> frozenset[Kind]:
        """What an address must not be taken for again: a name within its own alias means something else."""
        return self.seen_as if address.folded == self.last else _NOTHING


class _Expansion:
    """One run of `expand`."""

    def __init__(self, directory: Lookups, original: Address) -> None:
        self.recipients: dict[object, Destination] = {}
        self.problems: list[Problem] = []
        self._directory = directory
        self._original = original
        self._followed: set[str] = set()
        self._steps = 0
        self._full = False

    def address(self, address: Address, source: str, trail: _Trail) -> Step:
        """Look at one canonical address."""
        name = str(address)
        key = address.folded
        skip = trail.skip(address)
        if key in trail.names and not skip:
            return self._problem(Kind.LOOP, address, _cycle(trail.names, key), source)
        found = _find(address, self._directory, skip)
        if found is None and skip:
            text = f"{address} leads only to itself, and there is no such mailbox"
            return self._problem(Kind.LOOP, address, text, source)
        if found is None:
            self.problems.append(_unknown(address, source))
            return Step(name, Kind.UNKNOWN, source)
        transport = _FINAL.get(found.kind)
        if transport:
            return self._arrive(address, transport, found.kind, source, trail)
        if key in self._followed and not skip:
            return Step(name, Kind.DUPLICATE, source)
        self._followed.add(key)
        below = _Trail((*trail.names, key), key, skip | {found.kind}, address.domain)
        return self._follow(Step(name, found.kind, source), address, found, below)

    def _arrive(self, address: Address, transport: Transport, kind: Kind, source: str, trail: _Trail) -> Step:
        place = _key(address, transport)
        if place in self.recipients:
            return Step(str(address), Kind.DUPLICATE, source)
        if len(self.recipients) >= MAX_RECIPIENTS:
            return self._limit(address, source, f"more than {MAX_RECIPIENTS} recipients")
        via = trail.names[trail.names[:1] == (self._original.folded,) :]
        self.recipients[place] = Destination(address, transport, self._original, via)
        return Step(str(address), kind, source)

    def _follow(self, step: Step, address: Address, found: _Found, trail: _Trail) -> Step:
        """Look at the targets of an address, or of a file included in them."""
        if len(trail.names) > MAX_DEPTH:
            text = f"there are more than {MAX_DEPTH} aliases behind one another at {step.name}"
            return self._problem(Kind.LIMIT, address, text, step.source)
        children: list[Step] = []
        for target in found.targets:
            if self._full:
                break
            self._steps += 1
            if self._steps > MAX_STEPS:
                children.append(self._limit(address, step.source, f"more than {MAX_STEPS} targets"))
                break
            children.append(self._target(target, address, found.source, trail))
        return attrs.evolve(step, children=tuple(children))

    def _target(self, target: Target | Address, address: Address, source: str, trail: _Trail) -> Step:
        if isinstance(target, Include):
            return self._include(target, address, trail)
        if isinstance(target, Address):
            return self.address(self._qualify(target, trail), source, trail)
        return self.address(self._qualify(target.address, trail), target.source, trail)

    def _include(self, include: Include, address: Address, trail: _Trail) -> Step:
        name = str(include)
        if name in trail.names:
            return self._problem(Kind.LOOP, address, _cycle(trail.names, name), include.source)
        step = Step(name, Kind.INCLUDE, include.source)
        once = f"{trail.last} {name}"  # the same file means other mailboxes within another alias
        if once in self._followed:
            return attrs.evolve(step, kind=Kind.DUPLICATE)
        self._followed.add(once)
        found = _Found(Kind.INCLUDE, tuple(self._directory.include(include.path)))
        return self._follow(step, address, found, attrs.evolve(trail, names=(*trail.names, name)))

    def _qualify(self, target: Address, trail: _Trail) -> Address:
        """Complete a name with the domain in which somebody has it."""
        if target.domain:
            return canonical(target, self._directory)
        here = Address(target.local, trail.domain)
        for candidate in (here, Address(target.local, self._directory.first_domain())):
            # A catch-all would take any name, and so hide the right domain.
            if _find(candidate, self._directory, trail.skip(candidate) | {Kind.CATCH_ALL}):
                return candidate
        return here

    def _problem(self, kind: Kind, address: Address, text: str, source: str) -> Step:
        self.problems.append(Problem(kind, address, text, source))
        return Step(str(address), kind, source)

    def _limit(self, address: Address, source: str, what: str) -> Step:
        """Too much: nothing further is looked at."""
        self._full = True
        return self._problem(Kind.LIMIT, address, f"{self._original} leads to {what}", source)


_FINAL = {
    Kind.REMOTE: Transport.SMTP,
    Kind.ACCOUNT: Transport.LOCAL,
    Kind.LIST: Transport.LIST,
}


def _cycle(names: tuple[str, ...], key: str) -> str:
    """Name a cycle: the part of the way that begins with what it came back to."""
    return "alias loop: " + " -> ".join((*names[names.index(key) :], key))

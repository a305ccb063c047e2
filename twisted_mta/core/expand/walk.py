"""Following an address through aliases, however many, to the places where copies go.

An alias that names itself (``alice: alice, bob``) means there the mailbox. A target without a domain belongs to the
domain of the alias as it was looked up, or, where it does not exist there, to the first local domain.
"""

from __future__ import annotations

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Command, File, Include, Name, Special, Target
from twisted_mta.core.expand.lookup import (
    INDIRECT,
    NOTHING,
    Found,
    Lookups,
    canonical,
    find,
    refusal,
    unknown,
)
from twisted_mta.core.expand.plan import Destination, Kind, Plan, Problem, Step
from twisted_mta.core.queue import Transport
from twisted_mta.core.values import value

#: Aliases behind aliases; recipients of one address; targets looked at for one address.
MAX_DEPTH = 20
MAX_RECIPIENTS = 10_000
MAX_STEPS = 50_000

_FINAL = {
    Kind.REMOTE: Transport.SMTP,
    Kind.RELAY: Transport.SMTP,
    Kind.ACCOUNT: Transport.LOCAL,
    Kind.LIST: Transport.LIST,
    Kind.ORDERS: Transport.RULES,
    Kind.HANDLER: Transport.HANDLER,
}


def expand(address: Address, directory: Lookups, *, rules: bool = True) -> Plan:
    """Follow an address to where its mail goes. Never raises; ends on any directory.

    Without `rules` those of users are not followed: whose mailboxes the address means, wherever their mail is sent on to.
    """
    directory = directory.snapshot()
    expansion = _Expansion(directory, address, NOTHING if rules else frozenset((Kind.RULES,)))
    root = expansion.address(canonical(address, directory), "", _Trail())
    if not expansion.recipients and not expansion.problems:
        # Nothing but empty or missing :include: files: neither lost without a word, nor sent back before somebody looks.
        expansion.problems.append(Problem(Kind.NOBODY, address, f"{address} leads to nobody for now"))
    return Plan(tuple(expansion.recipients.values()), tuple(expansion.problems), root)


def place(address: Address, transport: Transport, target: str) -> object:
    """What makes two destinations the same."""
    if transport is Transport.SMTP:
        return address  # the case of a remote local part is not ours to ignore (RFC 5321 §2.4)
    if transport in (Transport.FILE, Transport.COMMAND):
        return transport, target  # whichever alias it was that led there
    return transport, address.folded, target


@value
class _Trail:
    """The way from the address asked for to the one looked at."""

    #: Folded addresses and ":include:" paths.
    names: tuple[str, ...] = ()
    #: The address whose targets are being followed, and what it was found to be (more than once if it named itself).
    last: str = ""
    seen_as: frozenset[Kind] = NOTHING
    domain: str = ""
    #: The owner-NAME of the last alias that has one.
    sender: Address | None = None
    #: The last user whose rules were followed, and which of the names that is.
    user: Address | None = None
    user_at: int = 0

    def skip(self, address: Address) -> frozenset[Kind]:
        """What an address must not be taken for again: a name within its own alias means something else."""
        return self.seen_as if address.folded == self.last else NOTHING


class _Expansion:
    """One run of `expand`."""

    def __init__(self, directory: Lookups, original: Address, never: frozenset[Kind]) -> None:
        self.recipients: dict[object, Destination] = {}
        self.problems: list[Problem] = []
        self._directory = directory
        self._original = original
        #: What no address is taken for.
        self._never = never
        #: Addresses and includes whose targets have been looked at, each with the sender that they got.
        self._followed: set[tuple[str, Address | None]] = set()
        self._steps = 0
        self._full = False

    def address(self, address: Address, source: str, trail: _Trail) -> Step:
        """Look at one canonical address."""
        key = address.folded
        skip = trail.skip(address)
        if key in trail.names and not skip:
            return self._loop(key, address, source, trail)
        found = find(address, self._directory, skip | self._never)
        if found is None and skip:
            text = f"{address} leads only to itself, and there is no such mailbox"
            return self._problem(Kind.LOOP, address, text, source, trail)
        if found is None:
            return self._note(unknown(address, source), str(address), trail)
        if found.problem is not None:
            return self._note(found.problem, str(address), trail)
        if found.ticket is not None:
            step = Step(str(address), found.kind, source)
            return self._arrive(step, address, Transport.RETURN, trail, found.ticket.queue_id)
        transport = _FINAL.get(found.kind)
        if transport and not found.targets:
            step = Step(str(address), found.kind, source)
            return self._arrive(step, address, transport, trail, found.handler)
        sender = self._owner(found) or trail.sender
        if (key, sender) in self._followed and not skip:
            return Step(str(address), Kind.DUPLICATE, source)
        self._followed.add((key, sender))
        user, user_at = (
            (address, len(trail.names)) if found.kind is Kind.RULES else (trail.user, trail.user_at)
        )
        below = _Trail((*trail.names, key), key, skip | {found.kind}, address.domain, sender, user, user_at)
        return self._follow(Step(str(address), found.kind, source), address, found, below)

    def _loop(self, key: str, address: Address, source: str, trail: _Trail) -> Step:
        """A name that leads back to itself."""
        if trail.user is not None and trail.user_at >= trail.names.index(key):
            # Users who forward to one another did nothing wrong: what would go round stays with the last of them.
            return self._arrive(
                Step(str(trail.user), Kind.ACCOUNT, source), trail.user, Transport.LOCAL, trail
            )
        return self._problem(Kind.LOOP, address, _cycle(trail.names, key), source, trail)

    def _owner(self, found: Found) -> Address | None:
        """The owner-NAME of an alias, who gets the bounces of what it leads to."""
        if found.name is None:
            return None
        owner = found.name.with_local(f"owner-{found.name.local}")
        return owner if self._directory.alias(owner) else None

    def _arrive(
        self, step: Step, address: Address, transport: Transport, trail: _Trail, target: str = ""
    ) -> Step:
        key = place(address, transport, target)
        known = self.recipients.get(key)
        if known is not None:
            # Whichever way is found first, the sender is the same.
            if _comes_before(trail.sender, known.sender):
                self.recipients[key] = attrs.evolve(known, sender=trail.sender)
            return attrs.evolve(step, kind=Kind.DUPLICATE)
        if len(self.recipients) >= MAX_RECIPIENTS:
            return self._limit(address, step.source, f"more than {MAX_RECIPIENTS} recipients", trail)
        via = trail.names[trail.names[:1] == (self._original.folded,) :]
        self.recipients[key] = Destination(address, transport, self._original, via, target, trail.sender)
        return step

    def _follow(self, step: Step, address: Address, found: Found, trail: _Trail) -> Step:
        """Look at the targets of an address, or of a file included in them."""
        if len(trail.names) > MAX_DEPTH:
            text = f"there are more than {MAX_DEPTH} aliases behind one another at {step.name}"
            return self._problem(Kind.LIMIT, address, text, step.source, trail)
        children: list[Step] = []
        for target in found.targets:
            if self._full:
                break
            self._steps += 1
            if self._steps > MAX_STEPS:
                children.append(self._limit(address, step.source, f"more than {MAX_STEPS} targets", trail))
                break
            children.append(self._target(target, address, found.source, trail))
        if found.answering is not None and not self._full:
            answer = Step(str(found.answering), Kind.VACATION, found.source)
            # To the sender, not to the owner of an alias on the way.
            own = attrs.evolve(trail, sender=None)
            children.append(self._arrive(answer, found.answering, Transport.VACATION, own))
        return Step(step.name, step.kind, step.source, tuple(children))

    def _target(self, target: Target | Address, address: Address, source: str, trail: _Trail) -> Step:
        match target:
            case Name(final=True):
                return self._mailbox(target, trail)
            case Name():
                return self.address(self._qualify(target.address, trail), target.source, trail)
            case Address():
                return self.address(self._qualify(target, trail), source, trail)
            case Include():
                return self._include(target, address, trail)
            case File():
                step = Step(str(target), Kind.FILE, target.source)
                return self._arrive(step, address, Transport.FILE, trail, str(target))
            case Command():
                step = Step(str(target), Kind.COMMAND, target.source)
                return self._arrive(step, address, Transport.COMMAND, trail, target.text)
        return self._special(target, address, trail)

    def _mailbox(self, target: Name, trail: _Trail) -> Step:
        r"""``\name``: an account, whatever aliases of that name there are; or an address elsewhere."""
        address = self._qualify(target.address, trail, INDIRECT)
        if self._directory.is_local(address.domain):
            address = address.with_domain(self._home(address.domain))
        found = find(address, self._directory, INDIRECT)
        transport = _FINAL.get(found.kind) if found else None
        if found is None or transport is None:
            return self._note(unknown(address, target.source), str(target), trail)
        step = Step(str(target), found.kind, target.source)
        return self._arrive(step, address, transport, trail)

    def _home(self, name: str) -> str:
        """The domain that has the users of a domain."""
        domain = self._directory.domain(name)
        assert domain is not None  # nothing leads on but in a domain of ours
        # Who is in a domain that we relay for only its own servers know: names alone are ours.
        return self._directory.first_domain() if domain.relay else domain.alias_of or name

    def _special(self, target: Special, address: Address, trail: _Trail) -> Step:
        problem = refusal(target, address)
        if problem is not None:
            return self._note(problem, str(target), trail)
        step = Step(str(target), Kind.BLACKHOLE, target.source)
        return self._arrive(step, address, Transport.DISCARD, trail)

    def _include(self, include: Include, address: Address, trail: _Trail) -> Step:
        name = str(include)
        if name in trail.names:
            return self._problem(Kind.LOOP, address, _cycle(trail.names, name), include.source, trail)
        step = Step(name, Kind.INCLUDE, include.source)
        once = (
            f"{trail.last} {name}",
            trail.sender,
        )  # the same file means other mailboxes within another alias
        if once in self._followed:
            return attrs.evolve(step, kind=Kind.DUPLICATE)
        self._followed.add(once)
        found = Found(Kind.INCLUDE, tuple(self._directory.include(include.path)))
        return self._follow(step, address, found, attrs.evolve(trail, names=(*trail.names, name)))

    def _qualify(self, target: Address, trail: _Trail, skip: frozenset[Kind] = NOTHING) -> Address:
        """Complete a name with the domain in which somebody has it."""
        if target.domain:
            return canonical(target, self._directory)
        here = Address(target.local, self._home(trail.domain))
        for candidate in (here, Address(target.local, self._directory.first_domain())):
            # A catch-all would take any name, and so hide the right domain.
            if find(candidate, self._directory, trail.skip(candidate) | skip | {Kind.CATCH_ALL}):
                return candidate
        return here

    def _problem(self, kind: Kind, address: Address, text: str, source: str, trail: _Trail) -> Step:
        return self._note(Problem(kind, address, text, source), str(address), trail)

    def _note(self, problem: Problem, name: str, trail: _Trail) -> Step:
        if trail.sender is not None:
            problem = attrs.evolve(problem, sender=trail.sender)
        self.problems.append(problem)
        return Step(name, problem.kind, problem.source)

    def _limit(self, address: Address, source: str, what: str, trail: _Trail) -> Step:
        """Too much: nothing further is looked at."""
        self._full = True
        return self._problem(Kind.LIMIT, address, f"{self._original} leads to {what}", source, trail)


def _comes_before(one: Address | None, other: Address | None) -> bool:
    """Of two senders for one copy: that of the message itself, else the first by name."""
    if one is None or other is None:
        return other is not None
    return one < other


def _cycle(names: tuple[str, ...], key: str) -> str:
    """Name a cycle: the part of the way that begins with what it came back to."""
    return "alias loop: " + " -> ".join((*names[names.index(key) :], key))

"""Looks through a whole directory for what leads nowhere."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from twisted_mta.config.schema import Delivery
from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Alias, Command, File, Name, Target
from twisted_mta.core.commands import CommandError, split_command
from twisted_mta.core.expand import Kind, Problem, expand
from twisted_mta.core.virtual import Template
from twisted_mta.store.below import NotAllowed, root_of
from twisted_mta.store.directory import Directory

#: What is meant as it is written.
_INTENDED = frozenset({Kind.FAIL, Kind.DEFER})
#: No account or alias begins with a space, so such a name meets the catch-all.
_NOBODY = " "


def check_directory(directory: Directory, delivery: Delivery) -> tuple[Problem, ...]:
    """What is written down but leads nowhere, or is never looked at: for an administrator, not for the running server,
    which reports such things when mail meets them. Blocks for about a second where there are 20,000 aliases.

    `delivery` says which files and commands aliases may name.
    """
    check = _Check(directory, delivery)
    check.follow(directory.postmaster(), "postmaster")
    check.lists()
    for alias, address in _aliases(directory):
        check.alias(alias, address)
    check.rules()
    check.accounts()
    check.orders()
    return tuple(check.found.values())


def _aliases(directory: Directory) -> Iterator[tuple[Alias, Address]]:
    """All aliases, each with an address that has it."""
    table, first = directory.aliases, directory.first_domain()
    for alias in (*table.full.values(), *table.bare.values(), *table.catch_all.values()):
        yield alias, Address(alias.name.local or _NOBODY, alias.name.domain or first)
    for domain in directory.special:
        # For a wildcard any subdomain will do.
        name = f"any{domain.name}" if domain.name.startswith(".") else domain.name
        for alias in domain.aliases.values():
            yield alias, Address(alias.name.local, name)
        if domain.catch_all:
            yield domain.catch_all, Address(_NOBODY, name)


def _command_trouble(command: Command, delivery: Delivery) -> str:
    """Why it can't be run; "" if it can."""
    settings = delivery.command
    if not settings.user or settings.directory is None:
        return 'commands are off without "user" and "directory" in [delivery.command]'
    try:
        split_command(command.text, shell=settings.shell)
    except CommandError as error:
        return f"it can't be run: {error}"
    return ""


class _Check:
    """Collects what is wrong, each once."""

    def __init__(self, directory: Directory, delivery: Delivery) -> None:
        self._delivery = delivery
        self.found: dict[tuple[str, str], Problem] = {}
        self._directory = directory

    def _note(self, problem: Problem, source: str) -> None:
        source = problem.source or source
        self.found.setdefault((source, problem.text), attrs.evolve(problem, source=source))

    def follow(self, address: Address, source: str) -> Kind:
        """Note what is wrong behind an address, and tell what it is."""
        plan = expand(address, self._directory)
        for problem in plan.problems:
            if problem.kind not in _INTENDED:
                self._note(problem, source)
        return plan.root.kind

    def _is_used(self, address: Address, source: str) -> bool:
        if self._directory.domain(address.domain) is not None:
            return True
        text = f"{address.domain} is not a local domain, so nothing is ever looked up there"
        self._note(Problem(Kind.UNKNOWN, address, text), source)
        return False

    def alias(self, alias: Alias, address: Address) -> None:
        """An alias, and an address that has it."""
        kind = self.follow(address, alias.source) if self._is_used(address, alias.source) else Kind.ALIAS
        for target in alias.targets:
            self._outlet(target, address)
        if kind in (Kind.LIST, Kind.LIST_OWNER):
            text = f"{address} belongs to a mailing list, so its alias is never looked up"
            self._note(Problem(Kind.UNKNOWN, address, text), alias.source)

    def _outlet(self, target: Target | Template, address: Address) -> None:
        """A file or a command that mail would wait for in vain."""
        why = ""
        if isinstance(target, File):
            try:
                root_of(str(target).removesuffix("/"), self._delivery.files)
            except NotAllowed as error:
                why = str(error)
        elif isinstance(target, Command):
            why = _command_trouble(target, self._delivery)
        if why:
            text = f"{target} gets no mail: {why}"
            self._note(Problem(Kind.UNKNOWN, address, text, target.source), target.source)

    def lists(self) -> None:
        """The members and owners of lists."""
        for settings in self._directory.lists:
            source = f"list {settings.address}"
            if self._is_used(settings.address, source):
                for address in (settings.owner, *settings.members):
                    self.follow(address, source)

    def rules(self) -> None:
        """Postmasters of domains, and addresses that patterns lead to whatever they match."""
        for domain in self._directory.special:
            if domain.postmaster is not None:
                self.follow(domain.postmaster, domain.source)
        for rule in self._directory.patterns:
            for target in rule.targets:
                self._outlet(target, self._directory.postmaster())
                if isinstance(target, Name) and (target.address.domain or rule.pattern.domain):
                    address = target.address
                    domain_name = address.domain or rule.pattern.domain
                    self.follow(address.with_domain(domain_name), rule.source)

    def accounts(self) -> None:
        """Accounts whose mail goes elsewhere."""
        for account in self._directory.accounts.values():
            name = Address.parse(account.name)
            domain = self._directory.domain(name.domain)
            if domain is None or not domain.is_own:
                why = "no local domain" if domain is None else "an alias of another domain, or relayed"
                text = f"{name.domain} is {why}, so the account never gets mail"
                self._note(Problem(Kind.UNKNOWN, name, text), f"account {account.name}")

    def orders(self) -> None:
        """Where users change their rules."""
        address = self._directory.rules_address
        if address is not None:
            kind = expand(address, self._directory).root.kind
            if kind is not Kind.ORDERS:
                text = f"{address} is another thing already ({kind}), so nobody can change rules there"
                self._note(Problem(Kind.UNKNOWN, address, text), "rules.address")

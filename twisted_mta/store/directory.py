"""The directory: accounts, aliases and lists as one snapshot in memory, built from the configuration and the alias files.

Loading reads files and so runs in a thread; a snapshot never changes, and a reload puts another in its place.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import attrs
from zope.interface import implementer

from twisted_mta.config.handlers import HandlerTable, load_handlers
from twisted_mta.config.own_addresses import own_literals
from twisted_mta.config.schema import Config
from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Alias, AliasFile, AliasProblem, AliasTable, Target, merge
from twisted_mta.core.domains import Domain, Domains
from twisted_mta.core.expand import leads_to_mailbox, posters
from twisted_mta.core.forward import Forwarding
from twisted_mta.core.lists import MailingList, bounced_member, check_address, owner_addresses
from twisted_mta.core.rules import Rules
from twisted_mta.core.srs import SrsError, Ticket
from twisted_mta.core.values import value
from twisted_mta.core.virtual import Rule
from twisted_mta.interfaces import Account, IDirectory
from twisted_mta.store.alias_files import Loader, load_domain
from twisted_mta.store.srs import load_forwarding

#: Addresses that a snapshot knows to be mailboxes, at most.
MAX_REMEMBERED = 10_000


class Users(Protocol):
    """Where the accounts come from: `twisted_mta.store.users.PasswdFile`, or anything like it."""

    def names(self) -> Iterable[str]:
        """The names of all accounts ("alice@example.test")."""
        ...

    def account(self, name: str) -> Account | None:
        """The account of that name."""
        ...


def account_table(users: Users) -> Mapping[str, Account]:
    """All accounts by their folded names."""
    found = ((name, users.account(name)) for name in users.names())
    return {name.casefold(): account for name, account in found if account is not None}


@implementer(IDirectory)
@value(kw_only=True)
class Directory:
    """One snapshot. Every look-up is a few dictionary accesses."""

    #: Those with users of their own, lower-case; the first completes bare names.
    domains: tuple[str, ...]
    postmaster_address: Address
    accounts: Mapping[str, Account]
    separator: str = "+"
    aliases: AliasTable = attrs.field(factory=lambda: AliasTable({}, {}, {}))
    includes: Mapping[str, tuple[Target, ...]] = attrs.field(factory=dict)
    lists: tuple[MailingList, ...] = ()
    #: Domains about which more is said than that their mail ends here.
    special: tuple[Domain, ...] = ()
    #: In their order, which decides.
    patterns: tuple[Rule, ...] = ()
    #: Our own address literals ("[192.0.2.1]"), mail to which is local (RFC 5321 §4.1.3).
    literals: frozenset[str] = frozenset()
    handlers: HandlerTable = attrs.field(factory=HandlerTable)
    forward: Forwarding = attrs.field(factory=Forwarding)
    #: By folded account name.
    user_rules: Mapping[str, Rules] = attrs.field(factory=dict)
    #: Where users change them; None: nowhere.
    rules_address: Address | None = None
    #: The Unix time, for what expires.
    seconds: Callable[[], float] = attrs.field(default=time.time, eq=False)
    _domains: Domains = attrs.field(init=False, eq=False, repr=False)
    _rules: Mapping[str, tuple[Rule, ...]] = attrs.field(init=False, eq=False, repr=False)
    _posting: Mapping[str, MailingList] = attrs.field(init=False)
    _owning: Mapping[str, MailingList] = attrs.field(init=False)
    _extra: Mapping[str, Address] = attrs.field(init=False)

    #: Folded posting address -> who may post; filled when first asked for, since only some lists need it.
    _posters: dict[str, frozenset[str]] = attrs.field(init=False, eq=False, repr=False, factory=dict)

    #: Folded addresses for which `is_mailbox` was found to hold: asked at RCPT and again at the end of DATA, it was a tenth
    #: of what the reactor's thread does for a message.
    _mailboxes: set[str] = attrs.field(init=False, eq=False, repr=False, factory=set)

    @_domains.default
    def _make_domains(self) -> Domains:
        plain = (Domain(name=name, separator=self.separator) for name in (*self.domains, *self.literals))
        return Domains((*self.special, *plain))

    @_rules.default
    def _make_rules(self) -> Mapping[str, tuple[Rule, ...]]:
        """The patterns that can match in a domain; those of "" in any other."""
        named = {rule.pattern.domain for rule in self.patterns} | {""}
        return {
            name: tuple(rule for rule in self.patterns if rule.pattern.domain in (name, "")) for name in named
        }

    @_posting.default
    def _make_posting(self) -> Mapping[str, MailingList]:
        return {settings.address.folded: settings for settings in self.lists}

    @_owning.default
    def _make_owning(self) -> Mapping[str, MailingList]:
        return {
            owner.folded: settings for settings in self.lists for owner in owner_addresses(settings.address)
        }

    @_extra.default
    def _make_extra(self) -> Mapping[str, Address]:
        """Of two users with one address the first by name has it."""
        found: dict[str, Address] = {}
        for name, rules in sorted(self.user_rules.items()):
            local, _, domain = name.rpartition("@")
            for address in rules.addresses:
                found.setdefault(address.folded, Address(local, domain))
        return found

    def snapshot(self) -> Directory:
        """See IDirectory."""
        return self

    def domain(self, name: str) -> Domain | None:
        """See IDirectory."""
        return self._domains.find(name)

    def is_local(self, domain: str) -> bool:
        """See IDirectory."""
        found = self._domains.find(domain)
        return found is not None and found.is_local

    def first_domain(self) -> str:
        """See IDirectory."""
        return self.domains[0]

    def postmaster(self) -> Address:
        """See IDirectory."""
        return self.postmaster_address

    def account(self, address: Address) -> Account | None:
        """See IDirectory."""
        account = self.accounts.get(address.folded)
        if account is None:
            base = self.without_detail(address)
            account = self.accounts.get(base.folded) if base else None
        return account

    def without_detail(self, address: Address) -> Address | None:
        """See IDirectory. The detail begins at the first separator, RFC 5233 §4; a name does not begin with one."""
        domain = self._domains.find(address.domain)
        separator = self.separator if domain is None else domain.separator
        if not separator:
            return None
        name, found, _ = address.local.partition(separator)
        return address.with_local(name) if name and found else None

    def alias(self, address: Address) -> Alias | None:
        """See IDirectory."""
        domain = self._domains.find(address.domain)
        if domain is None or (domain.is_own and not domain.aliases):
            return self.aliases.find(address)
        found = self.aliases.full.get(address.folded) or domain.aliases.get(address.local.casefold())
        if found is None and domain.is_own:
            found = self.aliases.bare.get(address.local.casefold())
        return found

    def pattern(self, address: Address) -> Alias | None:
        """See IDirectory."""
        rules = self._rules.get(address.domain, self._rules[""])
        return next((alias for rule in rules if (alias := rule.apply(address))), None)

    def catch_all(self, domain: str) -> Alias | None:
        """See IDirectory."""
        found = self.aliases.catch_all.get(domain)
        if found is None:
            settings = self._domains.find(domain)
            found = settings.catch_all if settings else None
        return found

    def include(self, path: str) -> Sequence[Target]:
        """See IDirectory."""
        return self.includes.get(path, ())

    def mailing_list(self, address: Address) -> MailingList | None:
        """See IDirectory."""
        return self._posting.get(address.folded)

    def list_owner(self, address: Address) -> MailingList | None:
        """See IDirectory."""
        found = self._owning.get(address.folded)
        if found is None and (bounced := bounced_member(address)) is not None:
            # Whether or not the list has `verp` now: a bounce may come days after the post.
            found = self._owning.get(bounced[0].folded)
        return found

    def handler(self, address: Address) -> str:
        """See IDirectory."""
        match = self.handlers.find(address)
        return match.handler.name if match else ""

    def rules(self, address: Address) -> Rules | None:
        """See IDirectory."""
        if not self.user_rules:
            return None
        account = self.account(address)
        return self.user_rules.get(account.name.casefold()) if account is not None else None

    def additional(self, address: Address) -> Address | None:
        """See IDirectory."""
        return self._extra.get(address.folded)

    def takes_rules(self, address: Address) -> bool:
        """See IDirectory."""
        return self.rules_address is not None and address.folded == self.rules_address.folded

    def returns(self, address: Address) -> Address | Ticket | SrsError | None:
        """See IDirectory."""
        srs = self.forward.srs
        if srs is None or not srs.claims(address):
            return None
        try:
            return srs.reverse(address, self.seconds())
        except SrsError as error:
            return error

    def is_mailbox(self, address: Address) -> bool:
        """See IDirectory."""
        key = address.folded
        if key in self._mailboxes:
            return True
        found = leads_to_mailbox(address, self)
        if found:
            if len(self._mailboxes) >= MAX_REMEMBERED:  # details have no end
                self._mailboxes.clear()
            self._mailboxes.add(key)
        return found

    def forwarding(self) -> Forwarding:
        """See IDirectory."""
        return self.forward

    def posters(self, address: Address) -> frozenset[str]:
        """See IDirectory."""
        key = address.folded
        found = self._posters.get(key)
        if found is None:
            settings = self._posting.get(key)
            if settings is None:  # not remembered: such addresses have no end
                return frozenset()
            found = self._posters[key] = posters(settings, self)
        return found

    def with_users(self, users: Users) -> Directory:
        """The same snapshot with accounts read anew (after the passwd-file changed)."""
        return attrs.evolve(self, accounts=account_table(users))

    def with_rules(self, rules: Mapping[str, Rules]) -> Directory:
        """The same snapshot with other rules of users."""
        return attrs.evolve(self, user_rules=rules)


@implementer(IDirectory)
class DirectoryHolder:
    """The directory that the server's parts hold on to: each call goes to the current snapshot."""

    def __init__(self, directory: Directory) -> None:
        self.current = directory

    def replace(self, directory: Directory) -> None:
        """Let look-ups from now on see another snapshot."""
        self.current = directory

    def snapshot(self) -> Directory:
        """See IDirectory."""
        return self.current

    def domain(self, name: str) -> Domain | None:
        """See IDirectory."""
        return self.current.domain(name)

    def is_local(self, domain: str) -> bool:
        """See IDirectory."""
        return self.current.is_local(domain)

    def first_domain(self) -> str:
        """See IDirectory."""
        return self.current.first_domain()

    def postmaster(self) -> Address:
        """See IDirectory."""
        return self.current.postmaster()

    def account(self, address: Address) -> Account | None:
        """See IDirectory."""
        return self.current.account(address)

    def without_detail(self, address: Address) -> Address | None:
        """See IDirectory."""
        return self.current.without_detail(address)

    def alias(self, address: Address) -> Alias | None:
        """See IDirectory."""
        return self.current.alias(address)

    def pattern(self, address: Address) -> Alias | None:
        """See IDirectory."""
        return self.current.pattern(address)

    def catch_all(self, domain: str) -> Alias | None:
        """See IDirectory."""
        return self.current.catch_all(domain)

    def include(self, path: str) -> Sequence[Target]:
        """See IDirectory."""
        return self.current.include(path)

    def mailing_list(self, address: Address) -> MailingList | None:
        """See IDirectory."""
        return self.current.mailing_list(address)

    def list_owner(self, address: Address) -> MailingList | None:
        """See IDirectory."""
        return self.current.list_owner(address)

    def handler(self, address: Address) -> str:
        """See IDirectory."""
        return self.current.handler(address)

    def rules(self, address: Address) -> Rules | None:
        """See IDirectory."""
        return self.current.rules(address)

    def additional(self, address: Address) -> Address | None:
        """See IDirectory."""
        return self.current.additional(address)

    def takes_rules(self, address: Address) -> bool:
        """See IDirectory."""
        return self.current.takes_rules(address)

    def returns(self, address: Address) -> Address | Ticket | SrsError | None:
        """See IDirectory."""
        return self.current.returns(address)

    def is_mailbox(self, address: Address) -> bool:
        """See IDirectory."""
        return self.current.is_mailbox(address)

    def forwarding(self) -> Forwarding:
        """See IDirectory."""
        return self.current.forwarding()

    def posters(self, address: Address) -> Container[str]:
        """See IDirectory."""
        return self.current.posters(address)


# --- Loading -------------------------------------------------------------------------------------


def load_directory(
    config: Config, users: Users, rules: Mapping[str, Rules], seconds: Callable[[], float] = time.time
) -> tuple[Directory, tuple[AliasProblem, ...]]:
    """Build a snapshot; `rules` are those of the users (`store.rules.load_rules`). Blocks: call it in a thread.

    Never raises for what is in alias files, or for those that can't be read: that is told in the problems (`line` 0 where a
    whole file is missing), and the rest is used. What `users` raises comes through.
    """
    with _no_collection():
        return _load_directory(config, users, rules, seconds)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Let nobody look for garbage meanwhile: what is made here stays, and to go through it again and again costs a third of
    the time for 100,000 aliases."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load_directory(
    config: Config, users: Users, rules: Mapping[str, Rules], seconds: Callable[[], float]
) -> tuple[Directory, tuple[AliasProblem, ...]]:
    loader = Loader()
    problems: list[AliasProblem] = []
    files = [AliasFile(tuple(one for one in config.virtual if isinstance(one, Alias)), ())]
    files += [loader.aliases(path) for path in config.aliases]
    special = []
    for block in config.domain_blocks:
        domain, owned = load_domain(block, config, loader)
        special.append(domain)
        files.append(owned)
    table, clashes = merge(files)
    problems += [problem for file in files for problem in file.problems]
    lists = []
    for settings in config.lists:
        why = check_address(settings.address)
        if why:
            problems.append(AliasProblem(str(config.path), 0, str(settings.address), why))
        else:
            lists.append(settings)
    accounts = account_table(users)
    forwarding, trouble = load_forwarding(config)
    if trouble:
        loader.problems.append(AliasProblem(str(config.srs_secret_file), 0, "", trouble))
    directory = Directory(
        domains=config.own_domains,
        postmaster_address=config.postmaster,
        accounts=accounts,
        separator=config.accounts.separator,
        aliases=table,
        includes=loader.includes,
        lists=tuple(lists),
        special=tuple(special),
        patterns=tuple(one for one in config.virtual if isinstance(one, Rule)),
        literals=own_literals(config),
        handlers=load_handlers(config)[0],
        forward=forwarding,
        user_rules=rules,
        rules_address=config.rules.address,
        seconds=seconds,
    )
    for settings in lists:
        if settings.members_only:
            directory.posters(settings.address)  # here, in a thread, rather than at the first RCPT
    return directory, (*problems, *clashes, *loader.problems)

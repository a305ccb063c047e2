"""The directory: accounts, aliases and lists as one snapshot in memory, built from the configuration and the alias files.

Loading reads files and so runs in a thread; a snapshot never changes, and a reload puts another in its place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import attrs
from zope.interface import implementer

from twisted_mta.config.handlers import HandlerTable, load_handlers
from twisted_mta.config.own_addresses import own_literals
from twisted_mta.config.schema import Config
from twisted_mta.core.address import Address
from twisted_mta.core.aliases import (
    Alias,
    AliasFile,
    AliasProblem,
    AliasTable,
    Include,
    Target,
    merge,
    parse_aliases,
    parse_include,
)
from twisted_mta.core.expand import Kind, Problem, expand, posters
from twisted_mta.core.lists import MailingList, check_address, owner_addresses
from twisted_mta.interfaces import Account, IDirectory

#: Octets of an alias or include file that is read at all.
MAX_FILE = 64 << 20
#: Include files within include files, and include files in all.
MAX_INCLUDE_DEPTH = 10
MAX_INCLUDES = 1000


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
@attrs.frozen(kw_only=True)
class Directory:
    """One snapshot. Every look-up is a few dictionary accesses."""

    #: Lower-case; the first completes bare names.
    domains: tuple[str, ...]
    postmaster_address: Address
    accounts: Mapping[str, Account]
    separator: str = "+"
    aliases: AliasTable = attrs.field(factory=lambda: AliasTable({}, {}, {}))
    includes: Mapping[str, tuple[Target, ...]] = attrs.field(factory=dict)
    lists: tuple[MailingList, ...] = ()
    #: Our own address literals ("[192.0.2.1]"), mail to which is local (RFC 5321 §4.1.3).
    literals: frozenset[str] = frozenset()
    handlers: HandlerTable = attrs.field(factory=HandlerTable)
    _local: frozenset[str] = attrs.field(init=False)
    _posting: Mapping[str, MailingList] = attrs.field(init=False)
    _owning: Mapping[str, MailingList] = attrs.field(init=False)

    #: Folded posting address -> who may post; filled when first asked for, since only some lists need it.
    _posters: dict[str, frozenset[str]] = attrs.field(init=False, eq=False, repr=False, factory=dict)

    @_local.default
    def _make_local(self) -> frozenset[str]:
        return frozenset(self.domains) | self.literals

    @_posting.default
    def _make_posting(self) -> Mapping[str, MailingList]:
        return {settings.address.folded: settings for settings in self.lists}

    @_owning.default
    def _make_owning(self) -> Mapping[str, MailingList]:
        return {
            owner.folded: settings for settings in self.lists for owner in owner_addresses(settings.address)
        }

    def is_local(self, domain: str) -> bool:
        """See IDirectory."""
        return domain in self._local

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
        if not self.separator:
            return None
        name, found, _ = address.local.partition(self.separator)
        return address.with_local(name) if name and found else None

    def alias(self, address: Address) -> Alias | None:
        """See IDirectory."""
        return self.aliases.find(address)

    def catch_all(self, domain: str) -> Alias | None:
        """See IDirectory."""
        return self.aliases.catch_all.get(domain)

    def include(self, path: str) -> Sequence[Target]:
        """See IDirectory."""
        return self.includes.get(path, ())

    def mailing_list(self, address: Address) -> MailingList | None:
        """See IDirectory."""
        return self._posting.get(address.folded)

    def list_owner(self, address: Address) -> MailingList | None:
        """See IDirectory."""
        return self._owning.get(address.folded)

    def handler(self, address: Address) -> str:
        """See IDirectory."""
        match = self.handlers.find(address)
        return match.handler.name if match else ""

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


@implementer(IDirectory)
class DirectoryHolder:
    """The directory that the server's parts hold on to: each call goes to the current snapshot."""

    def __init__(self, directory: Directory) -> None:
        self.current = directory

    def replace(self, directory: Directory) -> None:
        """Let look-ups from now on see another snapshot. For one look at several things take `current` once."""
        self.current = directory

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

    def posters(self, address: Address) -> Container[str]:
        """See IDirectory."""
        return self.current.posters(address)


# --- Loading -------------------------------------------------------------------------------------


def load_directory(config: Config, users: Users) -> tuple[Directory, tuple[AliasProblem, ...]]:
    """Build a snapshot. Blocks: call it in a thread. Never raises for what is in alias files, or for those that
    can't be read: that is told in the problems (`line` 0 where a whole file is missing), and the rest is used.

    What `users` raises comes through.
    """
    loader = _Loader()
    files = [loader.aliases(path) for path in config.aliases]
    table, clashes = merge(files)
    problems = [problem for file in files for problem in file.problems]
    lists = []
    for settings in config.lists:
        why = check_address(settings.address)
        if why:
            problems.append(AliasProblem(str(config.path), 0, str(settings.address), why))
        else:
            lists.append(settings)
    directory = Directory(
        domains=tuple(dict.fromkeys(domain.lower() for domain in config.domains)),
        postmaster_address=config.postmaster,
        accounts=account_table(users),
        separator=config.accounts.separator,
        aliases=table,
        includes=loader.includes,
        lists=tuple(lists),
        literals=own_literals(config),
        handlers=load_handlers(config)[0],
    )
    for settings in lists:
        if settings.members_only:
            directory.posters(settings.address)  # here, in a thread, rather than at the first RCPT
    return directory, (*problems, *clashes, *loader.problems)


def check_directory(directory: Directory) -> tuple[Problem, ...]:
    """What is written down but leads nowhere, or is never looked at: for an administrator, not for the running server,
    which reports such things when mail meets them. Blocks for about a second where there are 20,000 aliases."""
    found: dict[tuple[str, str], Problem] = {}

    def note(problem: Problem, source: str) -> None:
        source = problem.source or source
        found.setdefault((source, problem.text), attrs.evolve(problem, source=source))

    def follow(address: Address, source: str) -> Kind:
        plan = expand(address, directory)
        for problem in plan.problems:
            note(problem, source)
        return plan.root.kind

    def is_used(address: Address, source: str) -> bool:
        if directory.is_local(address.domain):
            return True
        text = f"{address.domain} is not a local domain, so nothing is ever looked up there"
        note(Problem(Kind.UNKNOWN, address, text), source)
        return False

    follow(directory.postmaster(), "postmaster")
    for settings in directory.lists:
        source = f"list {settings.address}"
        if is_used(settings.address, source):
            for address in (settings.owner, *settings.members):
                follow(address, source)
    table = directory.aliases
    for alias in (*table.full.values(), *table.bare.values(), *table.catch_all.values()):
        name = alias.name
        # No account or alias begins with a space, so such a name meets the catch-all.
        address = Address(name.local or " ", name.domain or directory.first_domain())
        kind = follow(address, alias.source) if is_used(address, alias.source) else Kind.ALIAS
        if kind in (Kind.LIST, Kind.LIST_OWNER):
            text = f"{address} belongs to a mailing list, so its alias is never looked up"
            note(Problem(Kind.UNKNOWN, address, text), alias.source)
    return tuple(found.values())


class _Unusable(Exception):
    """A file must not or can't be read; the text says why."""


class _Loader:
    """Reads alias files and the files that they include, each once."""

    def __init__(self) -> None:
        self.includes: dict[str, tuple[Target, ...]] = {}
        self.problems: list[AliasProblem] = []

    def aliases(self, path: Path) -> AliasFile:
        try:
            text = _read(path)
        except _Unusable as error:
            return AliasFile((), (AliasProblem(str(path), 0, "", f"the aliases are not used: {error}"),))
        parsed = parse_aliases(text, str(path))
        entries = tuple(
            attrs.evolve(entry, targets=self._resolve(entry.targets, path.parent, 1))
            if any(isinstance(target, Include) for target in entry.targets)
            else entry
            for entry in parsed.entries
        )
        return attrs.evolve(parsed, entries=entries)

    def _resolve(self, targets: tuple[Target, ...], folder: Path, depth: int) -> tuple[Target, ...]:
        """The targets with absolute paths in their includes, which are read."""
        return tuple(
            self._include(target, folder, depth) if isinstance(target, Include) else target
            for target in targets
        )

    def _include(self, include: Include, folder: Path, depth: int) -> Include:
        # A path is compared as text, so that one file read by two ways is one file, but links are left alone.
        path = os.path.normpath(folder / include.path)
        if path in self.includes:
            return attrs.evolve(include, path=path)
        self.includes[path] = ()  # also ends an include that leads to itself; expansion names that loop
        file, _, line = include.source.rpartition(":")
        try:
            if depth > MAX_INCLUDE_DEPTH:
                raise _Unusable(f"more than {MAX_INCLUDE_DEPTH} files include one another")
            if len(self.includes) > MAX_INCLUDES:
                raise _Unusable(f"there are more than {MAX_INCLUDES} files to include")
            parsed = parse_include(_read(Path(path)), path)
        except _Unusable as error:
            why = f"the included file is not used: {error}"
            self.problems.append(AliasProblem(file, int(line), include.path, why))
            return attrs.evolve(include, path=path)
        self.problems += parsed.problems
        self.includes[path] = self._resolve(parsed.targets, Path(path).parent, depth + 1)
        return attrs.evolve(include, path=path)


def _read(path: Path) -> str:
    """The text of a file that only its owner and group can change."""
    try:
        # O_NONBLOCK: a FIFO must not hold up the load.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _Unusable("it is not a regular file")
            if status.st_mode & stat.S_IWOTH:
                raise _Unusable("everybody can write to it (chmod o-w)")
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise _Unusable(error.strerror or str(error)) from None
    except ValueError as error:  # a NUL in the path
        raise _Unusable(str(error)) from None
    if len(data) > MAX_FILE:
        raise _Unusable(f"it is larger than {MAX_FILE} octets")
    return data.decode("utf-8", "surrogateescape")

"""A directory from plain dictionaries, for tests and for trying things out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from twisted_mta.config.schema import MailingList
from twisted_mta.core.address import Address
from twisted_mta.core.aliases import merge, parse_aliases, parse_include
from twisted_mta.core.domains import Domain
from twisted_mta.core.forward import Forwarding
from twisted_mta.core.patterns import Pattern
from twisted_mta.core.rules import Rules
from twisted_mta.core.virtual import Rule, read_target
from twisted_mta.interfaces import Account
from twisted_mta.store.directory import Directory, account_table


class MemoryUsers:
    """A source of accounts (`twisted_mta.store.directory.Users`): names become accounts with a Maildir each."""

    def __init__(self, names: Iterable[str] = (), maildirs: str = "/var/mail") -> None:
        self._accounts = {name: Account(name, f"{maildirs}/{name}") for name in names}

    def names(self) -> Sequence[str]:
        """See Users."""
        return tuple(self._accounts)

    def account(self, name: str) -> Account | None:
        """See Users."""
        return self._accounts.get(name)


def make_list(
    address: str,
    members: Iterable[str] = (),
    owner: str = "postmaster@example.test",
    *,
    description: str = "",
    members_only: bool = False,
    verp: bool = False,
) -> MailingList:
    """Settings of a mailing list from text."""
    return MailingList(
        address=Address.parse(address),
        members=tuple(Address.parse(member) for member in members),
        owner=Address.parse(owner),
        description=description,
        members_only=members_only,
        verp=verp,
    )


def make_rule(pattern: str, target: str, source: str = "virtual:1") -> Rule:
    """An entry of [virtual] with one target. Raises ValueError."""
    parsed = Pattern.parse(pattern)
    return Rule(parsed, (read_target(target, source, parsed.groups),), source)


def make_directory(
    accounts: Iterable[str] = ("alice", "bob"),
    aliases: Mapping[str, str] | str = "",
    *,
    domains: Sequence[str] = ("example.test",),
    includes: Mapping[str, str] | None = None,
    lists: Sequence[MailingList] = (),
    postmaster: str = "alice@example.test",
    separator: str = "+",
    literals: Iterable[str] = (),
    special: Iterable[Domain] = (),
    virtual: Mapping[str, str] | None = None,
    maildirs: str = "/var/mail",
    forward: Forwarding | None = None,
    seconds: Callable[[], float] = time.time,
    user_rules: Mapping[str, Rules] | None = None,
    rules_address: Address | None = None,
) -> Directory:
    """A directory that is like one loaded from files.

    `accounts` without a domain belong to the first; `aliases` is a file's text or {"name": "target, target"}; `includes` is
    {path: text}; `virtual` is {"pattern": "target"}, the source of the rules is "virtual:1" and so on. Raises ValueError for
    what can't be read.
    """
    names = [name if "@" in name else f"{name}@{domains[0]}" for name in accounts]
    if not isinstance(aliases, str):
        aliases = "".join(f"{name}: {targets}\n" for name, targets in aliases.items())
    file = parse_aliases(aliases, "aliases")
    table, clashes = merge([file])
    included = {path: parse_include(text, path) for path, text in (includes or {}).items()}
    problems = [*file.problems, *clashes]
    problems += [problem for content in included.values() for problem in content.problems]
    if problems:
        raise ValueError("; ".join(str(problem) for problem in problems))
    return Directory(
        domains=tuple(domains),
        postmaster_address=Address.parse(postmaster),
        accounts=account_table(MemoryUsers(names, maildirs)),
        separator=separator,
        aliases=table,
        includes={path: content.targets for path, content in included.items()},
        lists=tuple(lists),
        special=tuple(special),
        patterns=tuple(
            make_rule(pattern, target, f"virtual:{number}")
            for number, (pattern, target) in enumerate((virtual or {}).items(), 1)
        ),
        literals=frozenset(literals),
        forward=forward or Forwarding(),
        seconds=seconds,
        user_rules=user_rules or {},
        rules_address=rules_address,
    )

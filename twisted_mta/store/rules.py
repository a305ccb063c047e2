"""The rules of users (`core.rules`) on the disk: a text file for each account that has some, below the data directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import attrs

from twisted_mta.config.reading import read_at_most
from twisted_mta.core.address import Address
from twisted_mta.core.expand import Kind
from twisted_mta.core.expand.lookup import find
from twisted_mta.core.rules import NONE, Limits, Rules, RulesError, format_rules, parse_rules, within
from twisted_mta.core.values import value
from twisted_mta.interfaces import IDirectory
from twisted_mta.store.durable import make_directories, sync_directory
from twisted_mta.store.edits import replace, sweep
from twisted_mta.store.stamps import Stamps, look_at

#: Octets of a file that is read at all.
MAX_FILE = 1 << 20


@value(kw_only=True)
class RuleFiles:
    """The rules of all accounts."""

    #: By folded account name.
    rules: Mapping[str, Rules] = attrs.field(factory=dict)
    #: How the files looked before they were read.
    stamps: Stamps = attrs.field(factory=dict)
    #: What can't be read, for an administrator.
    problems: tuple[str, ...] = ()


def check_rules(rules: Rules, before: Rules, account: str, limits: Limits, directory: IDirectory) -> None:
    """Raises RulesError for what the user of an account may not change `before` into."""
    user = _address(account)
    within(rules, before, user, limits)
    new = [address for address in rules.addresses if address not in before.addresses]
    taken = [address for address in new if not _is_free(address, user, directory)]
    if taken:
        raise RulesError(*(f"addresses: {address} can't be had" for address in taken))


def _is_free(address: Address, user: Address, directory: IDirectory) -> bool:
    if directory.without_detail(address) is not None:
        return False
    found = find(address, directory)
    if found is None or found.kind is Kind.CATCH_ALL:
        return True
    return found.kind is Kind.EXTRA and found.targets == (attrs.evolve(user, local=user.local.casefold()),)


def rules_file(directory: Path, account: str) -> Path:
    """The file of an account."""
    return directory / quote(account.casefold(), safe="@+ ", errors="surrogateescape")


def _address(account: str) -> Address:
    local, _, domain = account.rpartition("@")
    return Address(local, domain)


def load_rules(
    directory: Path, accounts: Iterable[str], before: Mapping[str, Rules] | None = None
) -> RuleFiles:
    """The rules of these accounts. Blocks. Whose file can't be read keeps the rules that he had `before`."""
    known = before or {}
    stamps = look_at([directory])
    try:
        present = {entry.name for entry in os.scandir(directory)}
    except FileNotFoundError:
        return RuleFiles(stamps=stamps)
    except OSError as error:
        return RuleFiles(rules=known, stamps=stamps, problems=(f"{directory}: {error.strerror}",))
    found: dict[str, Rules] = {}
    problems: list[str] = []
    for account in accounts:
        path, key = rules_file(directory, account), account.casefold()
        if path.name not in present:
            continue
        # A file that is written in place does not change its directory's time.
        stamps |= look_at([path])
        try:
            found[key] = read_rules(path)
        except (OSError, RulesError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            problems.append(f"{path}: {why}")
            if key in known:
                found[key] = known[key]
    return RuleFiles(rules=found, stamps=stamps, problems=tuple(problems))


def read_rules(path: Path) -> Rules:
    """The rules in a file; none where there is no file. Blocks. Raises OSError and RulesError."""
    try:
        with path.open("rb") as file:
            data = read_at_most(file, MAX_FILE)
    except FileNotFoundError:
        return NONE
    return parse_rules(data.decode("utf-8", "replace")).rules


@contextlib.contextmanager
def changing(directory: Path) -> Iterator[None]:
    """Whoever reads rules to change them does so in here: one at a time, of all processes. Blocks. Raises OSError."""
    make_directories(directory)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def write_rules(directory: Path, account: str, rules: Rules) -> None:
    """Write the rules of an account, mode 0600, within `changing`. Blocks, durable. Raises OSError."""
    path = rules_file(directory, account)
    if rules == NONE:
        path.unlink(missing_ok=True)
        sync_directory(directory)
        return
    sweep(path)
    replace(path, format_rules(rules))

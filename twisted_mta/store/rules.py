"""The rules of users (`core.rules`) on the disk: a text file for each account that has some, below the data directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.expand import Kind
from twisted_mta.core.expand.lookup import find
from twisted_mta.core.rules import NONE, Limits, Rules, RulesError, format_rules, parse_rules, within
from twisted_mta.interfaces import IDirectory
from twisted_mta.store.durable import make_directories
from twisted_mta.store.edits import replace

#: Octets of a file that is read at all.
MAX_FILE = 1 << 20


def check_rules(rules: Rules, account: str, limits: Limits, directory: IDirectory) -> None:
    """Raises RulesError for what the user of an account may not have."""
    local, _, domain = account.rpartition("@")
    user = Address(local, domain)
    within(rules, user, limits)
    taken = [address for address in rules.addresses if not _is_free(address, user, directory)]
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


def load_rules(
    directory: Path, accounts: Iterable[str], note: Callable[[Path, str], None]
) -> Mapping[str, Rules]:
    """The rules of these accounts by their folded names. Blocks. What can't be read is noted, with the reason."""
    try:
        present = {entry.name for entry in os.scandir(directory)}
    except FileNotFoundError:
        return {}
    except OSError as error:
        note(directory, f"the rules of users are not used: {error.strerror}")
        return {}
    found: dict[str, Rules] = {}
    for account in accounts:
        path = rules_file(directory, account)
        if path.name in present:
            try:
                found[account.casefold()] = read_rules(path)
            except (OSError, RulesError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                note(path, f"the rules of {account} are not used: {why}")
    return found


def read_rules(path: Path) -> Rules:
    """The rules in a file; none where there is no file. Blocks. Raises OSError and RulesError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE)
    except FileNotFoundError:
        return NONE
    return parse_rules(data.decode("utf-8", "replace")).rules


def write_rules(directory: Path, account: str, rules: Rules, owner: os.stat_result | None = None) -> None:
    """Write the rules of an account, mode 0600; `owner`: whom the file is given to. Blocks, durable. Raises OSError."""
    path = rules_file(directory, account)
    if rules == NONE:
        path.unlink(missing_ok=True)
        return
    make_directories(directory)
    if owner is not None:
        os.chown(directory, owner.st_uid, owner.st_gid)
    replace(path, format_rules(rules), owner)

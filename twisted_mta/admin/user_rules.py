"""`mta user rules`: what users have decided about their mail."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from twisted_mta.admin.accounts import known, opened, tell_server
from twisted_mta.admin.errors import EX_DATAERR, EX_IOERR, EX_USAGE, AdminError
from twisted_mta.admin.identity import as_owner
from twisted_mta.config.schema import Config
from twisted_mta.core.rules import NONE, Rules, RulesError, format_rules, parse_rules
from twisted_mta.store.rules import MAX_FILE, changing, load_rules, read_rules, rules_file, write_rules
from twisted_mta.store.users import PasswdFile


def rules(options: argparse.Namespace) -> int:
    """mta user rules [NAME]"""
    config, users = opened(options)
    if options.name is None:
        if options.clear or options.set is not None:
            raise AdminError("whose rules? Name the account", EX_USAGE)
        return _list(config, users, options.json)
    known(users, options.name)
    account = users.account(options.name)
    assert account is not None  # known() has seen it
    path = rules_file(config.rules_directory, account.name)
    try:
        if options.clear or options.set is not None:
            made = _changed(config, account.name, path, None if options.clear else _text(options.set))
            tell_server(config)
        else:
            made = read_rules(path)
    except RulesError as error:
        raise AdminError("\n".join(error.problems), EX_DATAERR) from None
    except OSError as error:
        raise AdminError(f"the rules of {account.name}: {error.strerror}") from None
    if options.json:
        print(json.dumps(_plain(account.name, made)))
    else:
        print(format_rules(made), end="")
    return 0


def _changed(config: Config, account: str, path: Path, order: str | None) -> Rules:
    """`order`: None takes all away, whatever is in the file. Raises RulesError and OSError."""
    directory = config.rules_directory
    with as_owner(config.data), changing(directory):
        made = NONE if order is None else parse_rules(order, read_rules(path)).rules
        write_rules(directory, account, made)
    return made


def _list(config: Config, users: PasswdFile, as_json: bool) -> int:
    """All that have some: a forward that nobody asked for is seen here."""
    if users.path.exists():
        users.refresh()
    names = tuple(users.names())
    found = load_rules(config.rules_directory, names)
    rows = [(name, found.rules[name.casefold()]) for name in names if name.casefold() in found.rules]
    if as_json:
        print(json.dumps([_plain(name, made) for name, made in rows]))
    for name, made in rows if not as_json else ():
        # The words of a reply are for those who get it.
        lines = format_rules(made).partition("vacation:\n")[0].splitlines()
        if made.vacation is not None:
            lines.append("vacation")
        print(f"{name}\t{'; '.join(lines)}")
    for problem in found.problems:
        print(f"warning: {problem}", file=sys.stderr)
    return 0


def _plain(name: str, made: Rules) -> dict[str, object]:
    """For programs."""
    vacation = made.vacation
    return {
        "account": name,
        "forward": [str(address) for address in made.forward],
        "keep": made.keep,
        "addresses": [str(address) for address in made.addresses],
        "vacation": None
        if vacation is None
        else {
            "text": vacation.text,
            "subject": vacation.subject,
            "name": vacation.name,
            "from": str(vacation.sender or ""),
            "start": vacation.start.isoformat() if vacation.start else "",
            "end": vacation.end.isoformat() if vacation.end else "",
            "days": vacation.days,
        },
    }


def _text(name: str) -> str:
    try:
        data = sys.stdin.buffer.read(MAX_FILE) if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise AdminError(f"{name}: {error.strerror}", EX_IOERR) from None
    return data.decode("utf-8", "replace")

"""`mta user rules`: what the user of an account has decided about its mail."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from twisted_mta.admin.accounts import known, opened, tell_server
from twisted_mta.admin.errors import EX_DATAERR, EX_IOERR, AdminError
from twisted_mta.core.rules import NONE, RulesError, format_rules, parse_rules
from twisted_mta.store.rules import MAX_FILE, read_rules, rules_file, write_rules


def rules(options: argparse.Namespace) -> int:
    """mta user rules NAME"""
    config, users = opened(options)
    known(users, options.name)
    account = users.account(options.name)
    assert account is not None  # known() has seen it
    try:
        made = read_rules(rules_file(config.rules_directory, account.name))
        if options.clear or options.set is not None:
            made = NONE if options.clear else parse_rules(_text(options.set), made).rules
            owner = config.data.stat() if os.geteuid() == 0 and config.data.exists() else None
            write_rules(config.rules_directory, account.name, made, owner)
            tell_server(config)
    except RulesError as error:
        raise AdminError("\n".join(error.problems), EX_DATAERR) from None
    except OSError as error:
        raise AdminError(f"the rules of {account.name}: {error.strerror}") from None
    print(format_rules(made), end="")
    return 0


def _text(name: str) -> str:
    try:
        data = sys.stdin.buffer.read(MAX_FILE) if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise AdminError(f"{name}: {error.strerror}", EX_IOERR) from None
    return data.decode("utf-8", "replace")

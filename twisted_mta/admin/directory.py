"""`mta check-config` and `mta expand`: what the configuration, the aliases, the lists and the accounts come to."""

from __future__ import annotations

import argparse
import sys

from twisted_mta.admin.errors import EX_DATAERR, EX_NOUSER, AdminError
from twisted_mta.admin.paths import config_path
from twisted_mta.config.handlers import left_out
from twisted_mta.config.loader import load, load_with_warnings
from twisted_mta.config.schema import Config
from twisted_mta.core.address import Address, AddressError
from twisted_mta.core.expand import expand as expand_address
from twisted_mta.core.expand import render
from twisted_mta.store.directory import Directory, load_directory
from twisted_mta.store.directory_check import check_directory
from twisted_mta.store.rules import load_rules
from twisted_mta.store.users import PasswdFile


def check_config(options: argparse.Namespace) -> int:
    """Errors come out of the loader as an exception that main prints; what leads nowhere is only a warning."""
    path = options.file or config_path(options)
    config, problems = load_with_warnings(path)
    warnings = [str(problem) for problem in problems]
    try:
        directory, told = read_directory(config)
    except PermissionError:
        pass  # the loader has warned that the accounts are not for this user to read
    else:
        warnings += [f"warning: {text}" for text in told]
        found = check_directory(directory, config.delivery)
        warnings += [f"warning: {problem.source}: {problem.text}" for problem in found]
    for warning in warnings:
        print(warning, file=sys.stderr)
    count = {0: "", 1: ", with a warning"}.get(len(warnings), f", with {len(warnings)} warnings")
    print(f"{path}: good{count}")
    return 0


def expand(options: argparse.Namespace) -> int:
    """mta expand ADDRESS..."""
    config = load(config_path(options))
    directory, told = read_directory(config)
    for text in told:
        print(f"warning: {text}", file=sys.stderr)
    status = 0
    for text in options.addresses:
        try:
            address = Address.parse(text if "@" in text else f"{text}@{config.domains[0]}")
        except AddressError as error:
            raise AdminError(f"{text!r} is no address: {error}", EX_DATAERR) from None
        plan = expand_address(address, directory)
        for line in render(plan.root):
            print(line)
        for problem in plan.problems:
            print(f"{problem.address}: {problem.reply}", file=sys.stderr)
            status = EX_NOUSER
    return status


def read_directory(config: Config) -> tuple[Directory, list[str]]:
    """Who exists, and what was passed over in the files."""
    users = PasswdFile(config.accounts.file, config.domains[0], config.accounts.maildir)
    users.refresh()
    rules = load_rules(config.rules_directory, users.names())
    directory, problems = load_directory(config, users, rules.rules)
    return directory, [*users.problems, *map(str, problems), *rules.problems, *left_out(config)]

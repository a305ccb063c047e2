"""`mta user`: accounts in the passwd-file."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import pwd
import secrets
import sys
from pathlib import Path

from twisted_mta.admin.client import ServerDown, UnknownCommand, call
from twisted_mta.admin.errors import EX_CONFIG, EX_DATAERR, EX_NOUSER, AdminError
from twisted_mta.admin.identity import as_owner
from twisted_mta.admin.paths import config_path
from twisted_mta.config.loader import load
from twisted_mta.config.schema import Config
from twisted_mta.core.rules import NONE
from twisted_mta.core.sasl import ScramKeys
from twisted_mta.store.app_passwords import AppPasswordFile
from twisted_mta.store.passwords import MAX_PASSWORD, hash_password, scram_keys
from twisted_mta.store.rules import changing, write_rules
from twisted_mta.store.users import PasswdFile, UserError

#: Without those that are mistaken for each other.
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


def random_password() -> str:
    """Four groups of four, 79 bits: "k3fd-9xzq-..."."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(4)) for _ in range(4))


def add(options: argparse.Namespace) -> int:
    """mta user add NAME"""
    config, users = opened(options)
    _refuse_other_domains(options.name, config)
    password, text = _password(options)
    stored, scram = stored_password(password, config)
    try:
        name = users.add(options.name, stored, scram)
    except UserError as error:
        raise AdminError(str(error)) from None
    give_to_server(users.path, config)
    print(f"added {name}{text}")
    tell_server(config)
    return 0


def passwd(options: argparse.Namespace) -> int:
    """mta user passwd NAME"""
    config, users = opened(options)
    known(users, options.name)
    password, text = _password(options)
    name = _edited(users.set_password, options.name, *stored_password(password, config))
    print(f"changed the password of {name}{text}")
    tell_server(config)
    return 0


def remove(options: argparse.Namespace) -> int:
    """mta user remove NAME"""
    config, users = opened(options)
    account = known(users, options.name)
    name = _edited(users.remove, options.name)
    # First the account, or a server that looks just now could make nothing of it: without one they are good for nothing.
    AppPasswordFile.beside(users.path).revoke(name)
    # Or whoever gets the name next would have his mail go where this one wanted hers.
    if config.rules_directory.exists():
        with as_owner(config.data), changing(config.rules_directory):
            write_rules(config.rules_directory, name, NONE)
    print(f"removed {name}; its mail stays in {account}")
    tell_server(config)
    return 0


def list_accounts(options: argparse.Namespace) -> int:
    """mta user list"""
    _, users = opened(options)
    if users.path.exists():
        users.refresh()
    accounts = [account for name in users.names() if (account := users.account(name))]
    if options.json:
        print(json.dumps([{"name": account.name, "maildir": account.maildir} for account in accounts]))
    for account in accounts if not options.json else ():
        print(f"{account.name}\t{account.maildir}")
    for problem in users.problems:
        print(f"warning: {problem}", file=sys.stderr)
    return 0


def opened(options: argparse.Namespace) -> tuple[Config, PasswdFile]:
    """The configuration, and the accounts, which are not read yet."""
    config = load(config_path(options), check_files=False)
    return config, PasswdFile(config.accounts.file, config.domains[0], config.accounts.maildir)


def known(users: PasswdFile, name: str) -> str:
    """The Maildir of an account that must exist."""
    if users.path.exists():
        users.refresh()
    account = users.account(name)
    if account is None:
        raise AdminError(f"there is no account {name} in {users.path}", EX_NOUSER)
    return account.maildir


def stored_password(password: bytes, config: Config) -> tuple[str, ScramKeys | None]:
    """The hash of a password, and its keys for SCRAM."""
    stored = hash_password(password, os.urandom)
    if config.accounts.scram == "never":
        return stored, None
    try:
        return stored, scram_keys(password, stored, config.accounts.scram_iterations)
    except ValueError as error:
        print(f"note: SCRAM can't be used with this password: {error}", file=sys.stderr)
        return stored, None


def _edited(edit: object, *arguments: object) -> str:
    assert callable(edit)
    try:
        return str(edit(*arguments))
    except UserError as error:
        raise AdminError(str(error), EX_NOUSER) from None


def _refuse_other_domains(name: str, config: Config) -> None:
    domain = name.rpartition("@")[2].lower() if "@" in name else config.domains[0]
    if not config.has_users(domain):
        raise AdminError(
            f"{domain} is no local domain: mail for {name} would not end here; "
            f"valid: {', '.join(config.own_domains)}",
            EX_DATAERR,
        )


def _password(options: argparse.Namespace) -> tuple[bytes, str]:
    """The new password, and what is said about it."""
    if options.random:
        made = random_password()
        return made.encode(), f", password {made}"
    if sys.stdin.isatty():
        typed = getpass.getpass("New password: ")
        if typed != getpass.getpass("Again: "):
            raise AdminError("the two are not the same; nothing was changed", EX_DATAERR)
    else:
        typed = sys.stdin.readline().rstrip("\r\n")
    password = typed.encode("utf-8", "surrogateescape")
    if not password:
        raise AdminError("the password is empty; nothing was changed", EX_DATAERR)
    if len(password) > MAX_PASSWORD or b"\0" in password:
        raise AdminError(f"a password has at most {MAX_PASSWORD} octets, none of them NUL", EX_DATAERR)
    return password, ""


def give_to_server(path: Path, config: Config) -> None:
    """A file made by root must be readable for the server, which runs as somebody else."""
    if os.geteuid() != 0 or path.stat().st_uid != 0:
        return
    if config.user:
        try:
            entry = pwd.getpwnam(config.user)
        except KeyError:
            raise AdminError(f"there is no user {config.user} to give {path} to", EX_CONFIG) from None
        os.chown(path, entry.pw_uid, entry.pw_gid)
    elif config.data.exists():
        status = config.data.stat()
        os.chown(path, status.st_uid, status.st_gid)
    else:
        print(
            f"note: {path} is root's; if the server runs as another user, give it to that user",
            file=sys.stderr,
        )


def tell_server(config: Config) -> None:
    """A running server learns of it at once; one that is down, or does not know the command, looks at the file itself."""
    try:
        call(config.control_socket, "accounts.refresh")
    except (ServerDown, UnknownCommand):
        return
    except AdminError as error:
        print(f"warning: the running server did not take it up ({error}): mta reload", file=sys.stderr)

"""`mta user app-password`: passwords for single programs of a user."""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime

from twisted_mta.admin.accounts import give_to_server, known, opened, tell_server
from twisted_mta.admin.errors import EX_DATAERR, EX_NOUSER, AdminError
from twisted_mta.config.schema import Config
from twisted_mta.store.app_passwords import SERVICES, AppPasswordFile, LastUse, used_file
from twisted_mta.store.users import PasswdFile, UserError


def add(options: argparse.Namespace) -> int:
    """mta user app-password add NAME LABEL"""
    config, users, apps, name = _files(options)
    services = tuple(word for word in (options.only or "").split(",") if word)
    wrong = sorted(set(services) - set(SERVICES))
    if wrong:
        raise AdminError(f"{wrong[0]!r} is no service; valid: {', '.join(SERVICES)}", EX_DATAERR)
    user = users.find(name)
    if user is not None and user.locked:
        raise AdminError(
            f"{name} is locked (it has no password), and so would its app passwords be", EX_DATAERR
        )
    today = datetime.now(UTC).date()
    try:
        secret = apps.add(name, options.label, services, today, os.urandom)
    except UserError as error:
        raise AdminError(str(error), EX_DATAERR) from None
    give_to_server(apps.path, config)
    print(f"{secret}\nis the app password {options.label!r} of {name}; it is not shown again")
    tell_server(config)
    return 0


def revoke(options: argparse.Namespace) -> int:
    """mta user app-password revoke NAME LABEL"""
    config, _, apps, name = _files(options)
    try:
        apps.revoke(name, options.label)
    except UserError as error:
        raise AdminError(str(error), EX_NOUSER) from None
    print(f"revoked the app password {options.label!r} of {name}; sessions that are open stay open")
    tell_server(config)
    return 0


def list_app_passwords(options: argparse.Namespace) -> int:
    """mta user app-password list NAME"""
    config, _, apps, name = _files(options)
    apps.refresh()
    uses = LastUse(used_file(config.data))
    found = [
        {
            "label": app.label,
            "created": app.created,
            "used": uses.when(app),
            "services": list(app.services or SERVICES),
        }
        for app in apps.of(name)
    ]
    if options.json:
        print(json.dumps(found))
        return 0
    for app in found:
        used = f"used {app['used']}" if app["used"] else "never used"
        print(f"{app['label']}\tcreated {app['created']}\t{used}\t{','.join(app['services'])}")
    return 0


def _files(options: argparse.Namespace) -> tuple[Config, PasswdFile, AppPasswordFile, str]:
    """The configuration, the accounts, the app passwords, and the full name of the user."""
    config, users = opened(options)
    known(users, options.name)
    account = users.account(options.name)
    assert account is not None  # known() has seen it
    return config, users, AppPasswordFile.beside(users.path), account.name

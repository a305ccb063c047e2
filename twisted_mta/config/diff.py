"""What a reload changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from twisted_mta.config.lines import join_key
from twisted_mta.config.schema import (
    Accounts,
    Callout,
    Checks,
    Commands,
    Config,
    Delivery,
    Dns,
    Forward,
    Handlers,
    Limits,
    Queue,
    Rates,
    Relay,
    Route,
    Submission,
    Tls,
    TlsReports,
    UserRules,
)
from twisted_mta.config.tables import KEYS

#: The keys that a reload can't change, with the reason.
NEEDS_RESTART = {
    "hostname": "open sessions have greeted with it",
    "data": "the queue is open there",
    "user": "privileges are given up once",
    "group": "privileges are given up once",
    "workers": "each has a part of the queue since the start",
    "listen": "sockets are bound before privileges are given up",
    "log_format": "the log is open",
    "delivery.command.user": "the helper that runs commands is started before privileges are given up",
}


_TABLES = (
    Accounts,
    Callout,
    Checks,
    Commands,
    Config,
    Delivery,
    Dns,
    Forward,
    Handlers,
    Limits,
    Queue,
    Rates,
    Relay,
    Route,
    Submission,
    Tls,
    TlsReports,
    UserRules,
)


def changes(old: Config, new: Config) -> list[str]:
    """The paths of the keys that differ, in the order of the schema: ["queue.expire", "relay.routes.\\"a.example\\""].

    Arrays are named as a whole.
    """
    found: list[str] = []
    _compare(old, new, "", found)
    return found


def restart_needed(changed: list[str]) -> dict[str, str]:
    """Those of the changed keys that a reload leaves as they were, each with the reason."""
    return {key: NEEDS_RESTART[key] for key in changed if key in NEEDS_RESTART}


def keep(running: Config, config: Config, keys: Iterable[str]) -> Config:
    """The new configuration with the old values of what only a restart can change."""
    for key in keys:
        config = _with(config, running, key.split("."))
    return config


def _with(new: Any, old: Any, names: list[str]) -> Any:
    """The new settings with one of the old: that in a table in a table, as `names` say."""
    name, *rest = names
    value = getattr(old, name)
    return attrs.evolve(new, **{name: _with(getattr(new, name), value, rest) if rest else value})


def _compare(old: Any, new: Any, key: str, found: list[str]) -> None:
    if old == new:
        return
    if type(old) is type(new) and type(old) in _TABLES:
        for field in attrs.fields(type(old)):
            place = join_key(key, KEYS.get(field.name, field.name))
            if place != "path":
                _compare(getattr(old, field.name), getattr(new, field.name), place, found)
    elif isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            _compare(old.get(name), new.get(name), join_key(key, name), found)
    else:
        found.append(key)

"""`mta reload` and `mta status`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from twisted_mta.admin.client import call
from twisted_mta.admin.errors import EX_CONFIG
from twisted_mta.admin.paths import config_path
from twisted_mta.config.loader import load_data_directory
from twisted_mta.config.schema import CONTROL
from twisted_mta.core.schedule import format_duration


def reload(options: argparse.Namespace) -> int:
    """The file is checked by the server: what it says counts, and its old configuration stays if that is bad."""
    result = call(load_data_directory(config_path(options)) / CONTROL, "reload")
    for problem in result.get("problems", ()):
        print(problem, file=sys.stderr)
    if result.get("failed"):
        print("nothing was changed: the server goes on with its old configuration", file=sys.stderr)
        return EX_CONFIG
    changed = result.get("changed", ())
    print(
        f"reloaded; changed: {', '.join(changed)}" if changed else "reloaded; the configuration is the same"
    )
    for key, reason in result.get("restart", {}).items():
        print(f"{key} takes effect when the server is restarted ({reason})", file=sys.stderr)
    return 0


def status(options: argparse.Namespace) -> int:
    """What the server tells, one line a fact."""
    result = call(load_data_directory(config_path(options)) / CONTROL, "status")
    if options.json:
        print(json.dumps(result))
        return 0
    for line in _lines(result, time.time()):
        print(line)
    return 0


def _lines(facts: dict[str, Any], now: float, prefix: str = "") -> Iterator[str]:
    for name, value in facts.items():
        label = f"{prefix}{name}"
        if name == "started" and isinstance(value, int | float):
            yield f"running for: {format_duration(max(0.0, now - value))}"
        elif isinstance(value, dict):
            yield from _lines(value, now, f"{label}.")
        elif isinstance(value, list):
            for entry in value:
                yield f"{label}: {_words(entry, now)}"
        else:
            yield f"{label}: {value}"


def _words(entry: object, now: float) -> str:
    if isinstance(entry, dict):
        return ", ".join(_word(name, value, now) for name, value in entry.items())
    return str(entry)


def _word(name: str, value: Any, now: float) -> str:
    if name == "since":
        return f"for {format_duration(max(0.0, now - value))}"
    if name == "last end":
        return f"the one before ended {format_duration(max(0.0, now - value['at']))} ago {value['how']}"
    return f"{name} {value}"

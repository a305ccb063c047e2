"""`mta callouts`: what the servers of relay domains said about addresses, as the running server knows it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from twisted_mta.admin.client import call
from twisted_mta.admin.paths import config_path
from twisted_mta.config.loader import load_data_directory
from twisted_mta.config.schema import CONTROL
from twisted_mta.core.schedule import format_duration


def callouts(options: argparse.Namespace) -> int:
    """mta callouts [--limit N] [--json], mta callouts --forget ADDRESS: exit code 1 if nothing was known of it."""
    socket = load_data_directory(config_path(options)) / CONTROL
    if options.forget is not None:
        count = call(socket, "callout.forget", {"address": options.forget})["forgotten"]
        print(f"forgotten: {count}")
        return 0 if count else 1
    result = call(socket, "callout.list", {"limit": options.limit})
    if options.json:
        print(json.dumps(result))
    else:
        for line in lines(result, time.time()):
            print(line)
    return 0


def lines(result: Mapping[str, Any], now: float) -> Iterator[str]:
    """For people."""
    if not result["words"]:
        yield "No server was asked about an address yet (see callout in [[domain]])."
    for word in result["words"]:
        ago = format_duration(max(0.0, now - word["time"]))
        found = "exists" if word["exists"] else "does not exist"
        yield f"{_visible(word['address'])} {found}: {_visible(word['remote'])} said {_visible(word['text'])}, {ago} ago"


def _visible(text: str) -> str:
    return "".join(character if character.isprintable() else "�" for character in text)

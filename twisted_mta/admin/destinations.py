"""`mta queue destinations`: how the running server gets on with other hosts."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from twisted_mta.admin.client import call
from twisted_mta.admin.paths import config_path
from twisted_mta.admin.queue import visible
from twisted_mta.config.loader import load_data_directory
from twisted_mta.config.schema import CONTROL
from twisted_mta.core.schedule import format_duration


def list_destinations(options: argparse.Namespace) -> int:
    """mta queue destinations"""
    data = load_data_directory(config_path(options))
    result = call(data / CONTROL, "queue.destinations", {})
    if options.json:
        print(json.dumps(result))
    else:
        for line in destination_lines(result["destinations"], time.time()):
            print(line)
    return 0


def destination_lines(destinations: list[dict[str, Any]], now: float) -> Iterator[str]:
    """For people: a line a destination, and below it what it said last."""
    if not destinations:
        yield "No other host was asked for anything since the server started."
    for one in destinations:
        yield f"{visible(one['destination'])}: {_state(one, now)}"
        counts = f"    {one['running']} under way, {one['waiting']} wait, {one['put_off']} recipients put off"
        rate = f", {one['rate']} a minute" if one["rate"] else ""
        yield f"{counts}; {one['concurrency']} of {one['limit']} connections at a time{rate}"
        if one["last_reply"]:
            yield f"    {format_duration(max(now - one['last_heard'], 0))} ago: {visible(one['last_reply'])}"


def _state(one: Mapping[str, Any], now: float) -> str:
    if one["state"] == "down":
        since = format_duration(max(now - one["down_since"], 0))
        probe = one["next_probe"] - now
        when = f"in {format_duration(probe)}" if probe > 0 else "with the next message"
        return f"out of reach for {since}, tried again {when}"
    return "fewer connections, since it minded" if one["state"] == "slowed" else "well"

"""Messages a second: accepted, durable in the queue, and delivered to a Maildir. Against Postfix on the same machine.

    python -m benchmarks.receive [--messages 2000] [--rounds 3] [--json FILE]

Both servers get the same load from Postfix's smtp-source (4 kB messages over 20 sessions, with a connection kept and
with one a message), in turn, round by round, so that both see the same noise. The clock stops when the last message
is in the Maildir. Needs root, as Postfix does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from tests.peers import Postfix, wait_for
from twisted_mta.testing.site import Site

MODES = {"connections kept": ["-d"], "a connection a message": []}


@attrs.frozen
class Server:
    """One of those compared: where it listens, and how many messages it has delivered."""

    name: str
    port: int
    delivered: Callable[[], int]


def measure(server: Server, options: argparse.Namespace, flags: list[str]) -> float:
    """Messages a second of one run."""
    goal = server.delivered() + options.messages
    command = [
        "smtp-source", "-s", str(options.sessions), "-m", str(options.messages), "-l", str(options.size), *flags,
        "-f", "sender@example.org", "-t", "bob@example.test", f"127.0.0.1:{server.port}",
    ]  # fmt: skip
    began = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"})
    wait_for(lambda: server.delivered() >= goal, f"{server.name} to deliver {options.messages} messages", 120)
    return options.messages / (time.perf_counter() - began)


def compare(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Mode -> server -> rates, round by round."""
    results: dict[str, dict[str, list[float]]] = {mode: {} for mode in MODES}
    limits = "[limits]\nconnections_per_address = 1000\n"
    with Postfix() as postfix, Site(limits, roles=("mx",)) as site:
        new = site.directory / "mail" / "bob@example.test" / "new"
        servers = [
            Server("postfix", postfix.port, postfix.delivered),
            Server("twisted_mta", site.port("mx"), lambda: len(os.listdir(new)) if new.is_dir() else 0),
        ]
        for round_number in range(options.rounds + 1):
            for mode, flags in MODES.items():
                for server in servers:
                    rate = measure(server, options, flags)
                    if round_number:  # the first warms up
                        results[mode].setdefault(server.name, []).append(rate)
                        print(f"round {round_number}, {mode}: {server.name} {rate:.0f}/s", flush=True)
    return results


def main() -> None:
    """Run, print the medians, and write them as JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--size", type=int, default=4096, help="octets of a message")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    results = compare(options)
    for mode, rates in results.items():
        medians = {name: statistics.median(values) for name, values in rates.items()}
        ratios = [ours / theirs for ours, theirs in zip(rates["twisted_mta"], rates["postfix"], strict=True)]
        shown = ", ".join(f"{name} {median:.0f}/s" for name, median in medians.items())
        print(f"{mode}: {shown}, ratio {statistics.median(ratios):.2f}")
    if options.json:
        facts = {"python": platform.python_version(), "cores": os.cpu_count(), "messages": options.messages}
        options.json.write_text(
            json.dumps({"machine": facts, "rates": results}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()

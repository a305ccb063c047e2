"""The whole table: every goal for speed and memory, measured against its peer in one run.

    make bench                          # some twenty minutes, and 2.5 GB of disk for the long queue
    make bench ARGS=--quick             # a few minutes, for a first look
    python -m benchmarks [--quick] [--only NAME ...] [--workers N] [--json FILE] [--plots DIRECTORY]

Prints a table of ratios (the median of the ratios round by round) beside the goals; writes JSON, and redraws the plots
of `docs/benchmarks.md`, where told; those of another interpreter than CPython have its name in theirs. Needs root, since
Postfix does.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks import connections, crowd, list_post, plot, queue_scale
from benchmarks.common import Rates, add_server_options, apart, memory, server_python, write_json
from benchmarks.receive import receive
from benchmarks.relay import relay
from benchmarks.submission import submission
from twisted_mta.testing.site import Site


@attrs.frozen
class Comparison:
    """Rates of two servers in turn. `goals` has the ratio to reach for each mode."""

    run: Callable[[argparse.Namespace], Mapping[str, Rates]]
    goals: Mapping[str, float]
    #: Whose rate is divided by whose.
    ours: str = "twisted_mta"
    theirs: str = "postfix"


def _crowd(options: argparse.Namespace) -> Mapping[str, Rates]:
    return {"10,000 other connections": asyncio.run(crowd.crowd(options))}


def _long_queue(options: argparse.Namespace) -> Mapping[str, Rates]:
    return {"accepted beside what is queued": queue_scale.growth_of(options.queued, options)}


COMPARISONS: Mapping[str, Comparison] = {
    "receive": Comparison(receive, {"connections kept": 3.0, "a connection a message": 2.0}),
    "relay": Comparison(relay, {"connections kept": 3.0, "a connection a message": 3.0}),
    "list post": Comparison(
        lambda options: list_post.beside_postfix(options, options.members),
        dict.fromkeys(list_post.MODES, 3.0),
    ),
    "submission": Comparison(submission, {"TLS and a login for each message": 2.0}),
    "long queue": Comparison(_long_queue, {"accepted beside what is queued": 0.85}, "full", "empty"),
    "crowd": Comparison(_crowd, {"10,000 other connections": 0.7}, "crowd", "alone"),
}


def _idle_memory() -> int:
    with Site() as site:
        return memory(site, "VmRSS")


def _sizes(options: argparse.Namespace) -> Mapping[str, tuple[float, float]]:
    """What is measured -> octets, and the goal."""
    count = options.idle
    plain, tls = (asyncio.run(connections.idle(count, role)) for role in ("mx", "submissions"))
    return {
        "memory of an idle server": (_idle_memory(), 60e6),
        "memory of an idle connection": (plain["octets a connection"], 20e3),
        "memory of an idle connection with TLS": (tls["octets a connection"], 60e3),
    }


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _ratios(rates: Rates, comparison: Comparison) -> Sequence[float]:
    pairs = zip(rates[comparison.ours], rates[comparison.theirs], strict=True)
    return [ours / theirs for ours, theirs in pairs]


def measure(options: argparse.Namespace) -> tuple[Sequence[str], Mapping[str, Any]]:
    """The lines of the table, and what was measured, by name."""
    table = [_row("What", "Peer", "twisted_mta", "Ratio", "Goal"), _row(*["---"] * 5)]
    results: dict[str, Any] = {}
    interpreter = server_python()
    for name, comparison in COMPARISONS.items():
        if name not in options.only:
            continue
        found = results[name] = comparison.run(options)
        for mode, rates in found.items():
            theirs, ours = (statistics.median(rates[who]) for who in (comparison.theirs, comparison.ours))
            ratio = statistics.median(_ratios(rates, comparison))
            goal = comparison.goals[mode]
            table.append(
                _row(f"{name}, {mode}", f"{theirs:.0f}/s", f"{ours:.0f}/s", f"{ratio:.2f}", f"{goal:.2f}")
            )
        if options.plots is not None:
            drawing = plot.document(list(plot.rates(found, comparison.ours)))
            options.plots.mkdir(parents=True, exist_ok=True)
            (options.plots / plot.file_name(name, interpreter)).write_text(drawing, encoding="utf-8")
    if "memory" in options.only:
        results["memory"] = _sizes(options)
        for what, (octets, goal) in results["memory"].items():
            table.append(_row(what, "", f"{octets / 1e3:,.0f} kB", "", f"{goal / 1e3:,.0f} kB"))
    return table, results


def main() -> None:
    """Measure what was asked for, print the table, write the rest."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*COMPARISONS, "memory"]
    parser.add_argument("--quick", action="store_true", help="fewer rounds and messages")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--rounds", type=int, help="of each comparison (5; quick: 2)")
    parser.add_argument("--messages", type=int, help="of a round (4000; quick: 1000)")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes of twisted_mta that receive, relay and take submissions",
    )
    add_server_options(parser)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument(
        "--plots", type=Path, help="draw a plot of each comparison there: receive.svg, receive-pypy.svg"
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.messages = options.messages or (1000 if options.quick else 4000)
    options.sessions, options.size, options.idle = 20, 4096, 1000 if options.quick else 10_000
    options.members = 2000 if options.quick else 10_000
    options.queued = 20_000 if options.quick else 1_000_000
    connections.allow_files(options.idle + 500)
    with apart():
        table, results = measure(options)
    print("\n".join(table))
    write_json(options.json, results, messages=options.messages, rounds=options.rounds)


if __name__ == "__main__":
    main()

"""What a second worker brings: messages a second, and processor time a message, beside the same server with one.

    python -m benchmarks.workers [--workers 2] [--messages 2000] [--rounds 3] [--json FILE]

The load is that of `benchmarks.receive`. On a machine that does other things too the rates say little; the processor time says
what a message costs more because each worker has fewer at a time to write in one go.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections import defaultdict
from pathlib import Path

from benchmarks.common import MODES, Rates, Server, load_options, measure, rounds_of, summary, write_json
from benchmarks.receive import LIMITS
from twisted_mta.testing.site import Site

_TICKS = os.sysconf("SC_CLK_TCK")


def processor_time(pid: int) -> float:
    """Seconds that a process and its children have used so far, in all their threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / _TICKS + sum(processor_time(int(one)) for one in children)


def workers(options: argparse.Namespace) -> tuple[dict[str, Rates], dict[str, Rates]]:
    """Mode -> "one" or "several" -> messages a second, and milliseconds a message, round by round."""
    rates: dict[str, Rates] = {mode: defaultdict(list) for mode in MODES}
    times: dict[str, Rates] = {mode: defaultdict(list) for mode in MODES}
    with (
        Site(LIMITS, roles=("mx",)) as one,
        Site(LIMITS, roles=("mx",), workers=options.workers) as several,
    ):
        for number in rounds_of(options, options.messages):
            for mode, flags in MODES.items():
                for name, site in (("one", one), ("several", several)):
                    assert site.process is not None  # it was started
                    before = processor_time(site.process.pid)
                    rate = measure(_server(name, site), "bob@example.test", options, flags)
                    took = (processor_time(site.process.pid) - before) * 1000 / options.messages
                    if number > 0:
                        rates[mode][name].append(rate)
                        times[mode][name].append(took)
                        print(f"round {number}, {mode}: {name} {rate:.0f}/s, {took:.2f} ms", flush=True)
    return rates, times


def _server(name: str, site: Site) -> Server:
    new = site.directory / "mail" / "bob@example.test" / "new"
    return Server(name, site.port("mx"), lambda: len(os.listdir(new)) if new.is_dir() else 0)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = load_options(__doc__)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    rates, times = workers(options)
    for mode in MODES:
        cost = ", ".join(f"{name} {statistics.median(found):.2f} ms" for name, found in times[mode].items())
        print(f"{mode}: {summary(rates[mode], 'several', 'one')}; processor time a message: {cost}")
    write_json(options.json, {"rates": rates, "milliseconds": times}, workers=options.workers)


if __name__ == "__main__":
    main()

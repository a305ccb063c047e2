"""Messages a second with very many other connections open, beside the same server with hardly any.

    python -m benchmarks.crowd [--idle 10000] [--messages 2000] [--rounds 3] [--json FILE]

The load is that of `benchmarks.receive`, connections kept; the others have said EHLO and are silent, as the sessions of
slow peers and IMAP's IDLE are. They are opened and closed again for each round, so that both see the same noise.
"""

from __future__ import annotations

import argparse
import asyncio

from benchmarks.common import Rates, Server, load_options, measure, rounds_of, summary, write_json
from benchmarks.connections import LIMITS, Connection, allow_files, connect
from twisted_mta.testing.site import Site

_FLAGS = ["-d"]


async def crowd(options: argparse.Namespace) -> Rates:
    """Rates with a crowd and without one, round by round."""
    rates: Rates = {"alone": [], "crowd": []}
    with Site(LIMITS, roles=("mx",)) as site:
        new = site.directory / "mail" / "bob@example.test" / "new"
        server = Server("twisted_mta", site.port("mx"), lambda: len([*new.glob("*")]))
        for number in rounds_of(options, options.messages):
            for name in rates:
                others: list[Connection] = []
                if name == "crowd":
                    others = await connect(options.idle, server.port)
                rate = await asyncio.to_thread(measure, server, "bob@example.test", options, _FLAGS)
                for other in others:
                    other.writer.transport.abort()
                if number > 0:
                    rates[name].append(rate)
                    print(f"round {number}: {name} {rate:.0f}/s", flush=True)
    return rates


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = load_options(__doc__)
    parser.add_argument("--idle", type=int, default=10_000)
    options = parser.parse_args()
    allow_files(options.idle + 500)
    rates = asyncio.run(crowd(options))
    print(summary(rates, "crowd", "alone"))
    write_json(options.json, {"rates": {"receive": rates}}, messages=options.messages, idle=options.idle)


if __name__ == "__main__":
    main()

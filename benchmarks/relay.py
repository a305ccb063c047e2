"""Messages a second: accepted, durable in the queue, and handed on to another host. Against Postfix on the same machine.

    python -m benchmarks.relay [--messages 2000] [--rounds 3] [--json FILE]

Both servers get the same load from Postfix's smtp-source (4 kB messages over 20 sessions, with a connection kept and
with one a message), in turn, round by round, so that both see the same noise, and hand it on to a smtp-sink each. Both
may open 20 connections to it, which is Postfix's default, and keep them for the next message. The clock stops when the
sink has the last message. Needs root, as Postfix does.
"""

from __future__ import annotations

import argparse

from benchmarks.common import Rates, Server, Sink, compare, run_comparison
from tests.peers import Postfix
from twisted_mta.testing.site import Site

_CONFIG = """\
[limits]
connections_per_address = 1000

[relay]
networks = ["127.0.0.0/8"]
smarthost = "127.0.0.1:{port}"
concurrency = 20
"""


def relay(options: argparse.Namespace) -> dict[str, Rates]:
    """Mode -> server -> rates, round by round."""
    with (
        Sink() as one,
        Sink() as other,
        Postfix(relayhost=f"[127.0.0.1]:{one.port}") as postfix,
        Site(_CONFIG.format(port=other.port), roles=("mx",), workers=options.workers) as site,
    ):
        servers = [
            Server("postfix", postfix.port, lambda: one.taken),
            Server("twisted_mta", site.port("mx"), lambda: other.taken),
        ]
        return compare(servers, "carol@example.net", options)


if __name__ == "__main__":
    run_comparison(__doc__, relay)

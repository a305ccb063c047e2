"""Messages a second: accepted, durable in the queue, and delivered to a Maildir. Against Postfix on the same machine.

    python -m benchmarks.receive [--messages 2000] [--rounds 3] [--workers 1] [--json FILE]

Both servers get the same load from Postfix's smtp-source (4 kB messages over 20 sessions, with a connection kept and
with one a message), in turn, round by round, so that both see the same noise. The clock stops when the last message
is in the Maildir. Needs root, as Postfix does.
"""

from __future__ import annotations

import argparse
import os

from benchmarks.common import Rates, Server, compare, run_comparison
from tests.peers import Postfix
from twisted_mta.testing.site import Site

#: So many clients from one address.
LIMITS = "[limits]\nconnections_per_address = 1000\n"


def receive(options: argparse.Namespace) -> dict[str, Rates]:
    """Mode -> server -> rates, round by round."""
    with Postfix() as postfix, Site(LIMITS, roles=("mx",), workers=options.workers) as site:
        new = site.directory / "mail" / "bob@example.test" / "new"
        servers = [
            Server("postfix", postfix.port, postfix.delivered),
            Server("twisted_mta", site.port("mx"), lambda: len(os.listdir(new)) if new.is_dir() else 0),
        ]
        return compare(servers, "bob@example.test", options)


if __name__ == "__main__":
    run_comparison(__doc__, receive)

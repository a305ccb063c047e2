"""One message to very many recipients: a post to a list, relayed to smtp-sink.

    python -m benchmarks.list_post [--members 100000] [--size 1000000] [--domains 1] [--json FILE]

The members are behind one smarthost (--domains 1), or in so many domains, each with a route of its own to the same sink.
Tells how long the list takes, how many bodies the queue ever holds, its size on the disk, and the memory of the server.
"""

from __future__ import annotations

import argparse
import smtplib
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.common import Sink, memory, write_json
from twisted_mta.testing.site import Site

#: Seconds until it is given up.
_PATIENCE = 1800.0


def waiting(queue: Path) -> tuple[int, int]:
    """Recipients and bodies in the queue."""
    with closing(sqlite3.connect(f"file:{queue}?mode=ro", uri=True)) as database:
        (recipients,) = database.execute("SELECT count(*) FROM recipient").fetchone()
        (bodies,) = database.execute("SELECT count(*) FROM body").fetchone()
    return recipients, bodies


def configuration(options: argparse.Namespace, port: int) -> str:
    """The list and the way to the sink."""
    members = ",\n".join(
        f'"member{number}@d{number % options.domains}.example.org"' for number in range(options.members)
    )
    relay = f'[relay]\nsmarthost = "127.0.0.1:{port}"\n'
    if options.domains > 1:
        routes = "".join(
            f'"d{number}.example.org" = {{ host = "127.0.0.1", port = {port} }}\n'
            for number in range(options.domains)
        )
        relay = f"[relay.routes]\n{routes}"
    return (
        f"[limits]\nmessage_size = {options.size * 2}\n{relay}\n"
        f'[[list]]\naddress = "all@example.test"\nowner = "alice@example.test"\nmembers = [{members}]\n'
    )


def drain(site: Site, options: argparse.Namespace) -> dict[str, Any]:
    """Send the post and watch the queue until nothing is left."""
    queue = site.directory / "data" / "queue" / "queue.sqlite"
    line = b"x" * 70 + b"\r\n"
    message = b"From: alice@example.test\r\nSubject: to all\r\n\r\n" + line * (options.size // len(line))
    before = memory(site, "VmRSS")
    began = time.perf_counter()
    with smtplib.SMTP("127.0.0.1", site.port("mx")) as client:
        client.sendmail("alice@example.test", ["all@example.test"], message)
    accepted = time.perf_counter() - began
    most_bodies = most_recipients = 0
    slowest = 0.0
    while True:
        recipients, bodies = waiting(queue)
        most_recipients, most_bodies = max(most_recipients, recipients), max(most_bodies, bodies)
        asked = time.perf_counter()
        site.control("status")
        slowest = max(slowest, time.perf_counter() - asked)
        if not recipients:
            break
        if time.perf_counter() - began > _PATIENCE:
            raise TimeoutError(f"{recipients} recipients still wait")
        time.sleep(0.05)
    took = time.perf_counter() - began
    files = sum(path.is_file() for path in (queue.parent / "bodies").rglob("*"))
    return {
        "seconds": round(took, 1),
        "recipients a second": round(options.members / took),
        "accepted after, s": round(accepted, 2),
        "slowest answer, s": round(slowest, 2),
        "most recipients in the queue": most_recipients,
        "most bodies in the queue": most_bodies,
        "body files left": files,
        "database, MB": queue.stat().st_size >> 20,
        "MB before": before >> 20,
        "MB at most": memory(site, "VmHWM") >> 20,
    }


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=1_000_000, help="octets of the message")
    parser.add_argument("--domains", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    with Sink() as sink, Site(configuration(options, sink.port), roles=("mx",)) as site:
        results = drain(site, options)
    print(results)
    write_json(options.json, results, members=options.members, size=options.size, domains=options.domains)


if __name__ == "__main__":
    main()

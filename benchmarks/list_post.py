"""One message to very many recipients: a post to a list, relayed to smtp-sink.

    python -m benchmarks.list_post [--members 100000] [--size 1000000] [--domains 1] [--json FILE]
    python -m benchmarks.list_post --postfix [--rounds 3] [--members 10000] [--size 4096]

The members are behind one smarthost (--domains 1), or in so many domains, each with a route of its own to the same sink.
Tells how long the list takes, how many bodies the queue ever holds, its size on the disk, and the memory of the server.

With --postfix two servers take turns, round by round: this one, and Postfix with an alias that is an :include: of the members,
either with 50 recipients to a transaction and with one (`verp`, and default_destination_recipient_limit = 1). The clock
runs from the post until the queue is empty. Needs root, as Postfix does.
"""

from __future__ import annotations

import argparse
import smtplib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import attrs

from benchmarks.common import (
    Rates,
    Sink,
    add_server_options,
    memory,
    rounds_of,
    summary,
    whose_turn,
    write_json,
)
from tests.peers import Postfix
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


# --- beside Postfix ------------------------------------------------------------------------------

#: Mode -> whether each member has a transaction of its own.
MODES = {"50 recipients to a transaction": False, "one recipient to a transaction": True}
#: Members of the list, and octets of the post.
_MEMBERS, _SIZE = 10_000, 4096


@attrs.frozen
class _Poster:
    """A server with the list all@example.test."""

    name: str
    port: int
    #: Whether nothing is left in its queue.
    empty: Callable[[], bool]

    def post(self, message: bytes) -> float:
        """Seconds until the last member has it."""
        began = time.perf_counter()
        with smtplib.SMTP("127.0.0.1", self.port) as client:
            client.sendmail("alice@example.test", ["all@example.test"], message)
        while not self.empty():
            if time.perf_counter() - began > _PATIENCE:
                raise TimeoutError(f"{self.name} still has mail in its queue")
            time.sleep(0.02)
        return time.perf_counter() - began


@contextmanager
def _ours(members: int, each: bool) -> Iterator[_Poster]:
    listed = ",\n".join(f'"member{number}@example.org"' for number in range(members))
    with Sink() as sink:
        config = (
            f'[relay]\nsmarthost = "127.0.0.1:{sink.port}"\nconcurrency = 20\nmax_recipients = 50\n\n'
            f'[[list]]\naddress = "all@example.test"\nowner = "alice@example.test"\nmembers = [{listed}]\n'
            f"verp = {str(each).lower()}\n"
        )
        with Site(config, roles=("mx",)) as site:
            queue = site.directory / "data" / "queue" / "queue.sqlite"
            yield _Poster("twisted_mta", site.port("mx"), lambda: waiting(queue)[0] == 0)


@contextmanager
def _theirs(members: int, each: bool) -> Iterator[_Poster]:
    with Sink() as sink:
        postfix = Postfix(relayhost=f"[127.0.0.1]:{sink.port}", domains="")
        listed = postfix.config / "members"
        listed.write_text("".join(f"member{number}@example.org\n" for number in range(members)))
        aliases = postfix.config / "aliases"
        aliases.write_text(f"all :include:{listed}\nowner-all postmaster\n")
        settings = {
            "mydestination": "example.test",
            "local_recipient_maps": "",
            "alias_maps": f"texthash:{aliases}",
            "default_destination_recipient_limit": "1" if each else "50",
        }
        for name, value in settings.items():
            postfix.command("postconf", "-e", f"{name}={value}")
        with postfix:
            yield _Poster("postfix", postfix.port, lambda: postfix.queued() == 0)


def beside_postfix(
    options: argparse.Namespace, members: int = _MEMBERS, size: int = _SIZE
) -> Mapping[str, Rates]:
    """Mode -> server -> members served in a second, round by round, the servers in turn."""
    line = b"x" * 70 + b"\r\n"
    message = b"From: alice@example.test\r\nSubject: to all\r\n\r\n" + line * (size // len(line))
    results: dict[str, Rates] = {}
    for mode, each in MODES.items():
        with ExitStack() as stack:
            servers = [stack.enter_context(one(members, each)) for one in (_theirs, _ours)]
            for number in rounds_of(options, members):
                for server in whose_turn(servers, number):
                    rate = members / server.post(message)
                    if number > 0:
                        results.setdefault(mode, {}).setdefault(server.name, []).append(rate)
                        print(f"round {number}, {mode}: {server.name} {rate:.0f}/s", flush=True)
    return results


def _compare(options: argparse.Namespace) -> None:
    results = beside_postfix(options, options.members or _MEMBERS, options.size or _SIZE)
    for mode, rates in results.items():
        print(f"{mode}: {summary(rates, 'twisted_mta', 'postfix')}")
    write_json(options.json, {"rates": results}, rounds=options.rounds)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, help="100000, beside Postfix 10000")
    parser.add_argument("--size", type=int, help="octets of the message: 1000000, beside Postfix 4096")
    parser.add_argument("--postfix", action="store_true", help="compare with Postfix")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison")
    parser.add_argument("--domains", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the results there")
    add_server_options(parser)
    options = parser.parse_args()
    if options.postfix:
        _compare(options)
        return
    options.members, options.size = options.members or 100_000, options.size or 1_000_000
    with Sink() as sink, Site(configuration(options, sink.port), roles=("mx",)) as site:
        results = drain(site, options)
    print(results)
    write_json(options.json, results, members=options.members, size=options.size, domains=options.domains)


if __name__ == "__main__":
    main()

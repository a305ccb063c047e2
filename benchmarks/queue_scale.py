"""What a long queue costs: a million messages to ten thousand domains, beside an empty queue.

    python -m benchmarks.queue_scale [--recipients 1000000] [--domains 10000] [--directory DIR] [--json FILE]

Fills a queue through the store's own code, then measures the start of a server on it, its memory and how fast it accepts
mail (by smtp-source, in turn with a server on an empty queue), single operations of the store in both, and at last the
server with everything due and nobody to be reached. Needs some 2.5 kB of disk a recipient, in --directory. A queue that
was kept there (--keep) is used again.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from benchmarks.common import Rates, add_server_options, memory, rounds_of, source, summary, write_json
from tests.peers import free_port
from twisted_mta.core.address import Address
from twisted_mta.core.queue import NewMessage, NewRecipient, Transport
from twisted_mta.core.queueids import QueueIds
from twisted_mta.store.queue import SQLiteQueueStore
from twisted_mta.store.queue.tables import BodyRow, Tables
from twisted_mta.testing.site import Site

#: Messages in one commit while the queue is filled.
_BATCH = 1000
_WEEK = 7 * 86400.0
#: Seconds that the server is watched while everything is due.
_DEAD_WORLD = 60.0


def fill(queue: Path, recipients: int, domains: int, size: int, due: float, first: int = 0) -> float:
    """Put messages with one recipient each into a queue, all due at `due`: seconds that it took.

    They are numbered from `first` to `recipients`.
    """
    began = time.perf_counter()
    Deferred.fromCoroutine(SQLiteQueueStore.inline(queue, Clock()).close())  # makes the directories
    tables = Tables(queue / "queue.sqlite", "benchmark")
    ids = QueueIds(lambda: due, lambda: 0.5)
    body = (b"Subject: one of very many\r\n\r\n" + b"x" * 70 + b"\r\n" * (size // 72 + 1))[:size]

    def batch(start: int) -> Iterator[Callable[[Tables], Any]]:
        for number in range(start, min(start + _BATCH, recipients)):
            address = Address(f"user{number}", f"d{number % domains}.example.net")
            message = NewMessage(
                id=ids(),
                sender=Address("sender", "example.test"),
                recipients=(NewRecipient(address, Transport.SMTP, address),),
                prefix=b"Received: from client by mx.example.test; Sun, 22 Nov 2026 00:00:00 +0000\r\n",
                arrived=due,
                expires=due + _WEEK,
                message_id=f"{number}@example.test",
                origin="192.0.2.1",
            )
            yield lambda those, one=message: those.add([one], BodyRow(size, body, None), False)  # type: ignore[misc]

    for start in range(first, recipients, _BATCH):
        tables.commit(list(batch(start)))
    tables.close()
    return time.perf_counter() - began


def operations(queue: Path) -> dict[str, float]:
    """Milliseconds of single operations of the store, the median of some."""
    store = SQLiteQueueStore.inline(queue, Clock(), owner="benchmark")
    far = time.time() + 2 * _WEEK

    def timed(times: int, work: Callable[[], Any]) -> float:
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            outcome: list[Any] = []
            Deferred.fromCoroutine(work()).addBoth(outcome.append)
            taken.append(time.perf_counter() - began)
            if isinstance(outcome[0], Failure):
                outcome[0].raiseException()
        return round(1000 * statistics.median(taken), 3)

    async def add() -> None:
        body = store.new_body()
        body.write(b"Subject: x\r\n\r\nhi\r\n")
        address = Address("bob", "example.test")
        message = NewMessage(
            id=f"Z{time.perf_counter_ns()}",
            sender=None,
            recipients=(NewRecipient(address, Transport.LOCAL, address),),
            arrived=far,
            expires=far,
        )
        await store.add([message], body)

    async def claim_and_release() -> None:
        items = await store.claim_due(far, 250)
        await store.release([recipient.row for item in items for recipient in item.recipients])

    found = {
        "add one message": timed(50, add),
        "claim and release 250 recipients": timed(20, claim_and_release),
        "next due": timed(50, store.next_due),
        "list 1000 messages": timed(5, store.listing),
    }
    Deferred.fromCoroutine(store.close())
    return found


def growth(directory: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Single operations, in a queue that becomes ten times as long each time: recipients -> operation -> milliseconds."""
    found: dict[str, dict[str, float]] = {}
    length, filled = 1000, 0
    later = time.time() + _WEEK / 7
    while length <= options.recipients:
        fill(directory / "growing", length, options.domains, options.body, later, filled)
        filled = length
        found[str(length)] = operations(directory / "growing")
        print(f"{length}: {found[str(length)]}", flush=True)
        length *= 10
    return found


def site(directory: Path, nameserver: int) -> Site:
    """A server whose name server does not answer."""
    directory.mkdir(exist_ok=True)
    config = f'[limits]\nconnections_per_address = 1000\n[dns]\nservers = ["127.0.0.1:{nameserver}"]\ntimeout = "5s"\n'
    return Site(config, roles=("mx",), directory=directory)


def start(server: Site) -> dict[str, float]:
    """Start it: how long until it answers, and its memory then."""
    began = time.perf_counter()
    server.start()
    took = time.perf_counter() - began
    return {"seconds": round(took, 2), "MB": memory(server, "VmRSS") >> 20}


def accept(server: Site, options: argparse.Namespace) -> float:
    """Messages a second that it accepts for a local mailbox."""
    began = time.perf_counter()
    source(server.port("mx"), "bob@example.test", options)
    return options.messages / (time.perf_counter() - began)


def in_turn(servers: Mapping[str, Site], options: argparse.Namespace) -> Rates:
    """Server -> messages that it accepts in a second, round by round."""
    rates: Rates = {name: [] for name in servers}
    for number in rounds_of(options, options.messages):
        for name, server in servers.items():
            rate = accept(server, options)
            if number > 0:
                rates[name].append(rate)
                print(f"round {number}, queue {name}: {rate:.0f}/s", flush=True)
    return rates


def growth_of(length: int, options: argparse.Namespace) -> Rates:
    """How fast mail is accepted with so many messages queued ("full"), and with few ("empty")."""
    with tempfile.TemporaryDirectory(prefix="mta-scale-") as name, ExitStack() as running:
        directory, nameserver = Path(name), free_port()
        servers = {}
        for which, count in (("full", length), ("empty", 1000)):
            queue = directory / which / "data" / "queue"
            fill(queue, count, min(count, 10_000), 1000, time.time() + _WEEK / 7)
            servers[which] = site(directory / which, nameserver)
            running.callback(servers[which].stop)
            servers[which].start()
        return in_turn(servers, options)


def shift(queue: Path, due: float) -> None:
    """Make all that waits due at another time."""
    store = SQLiteQueueStore.inline(queue, Clock(), owner="benchmark")
    Deferred.fromCoroutine(store.retry(None, due))
    Deferred.fromCoroutine(store.close())


def dead_world(server: Site, seconds: float) -> dict[str, Any]:
    """Everything is due, nobody can be reached: whether the server still answers and delivers, and its memory."""
    waits = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        server.control("status")
        waits.append(time.perf_counter() - began)
        time.sleep(0.2)
    log = server.log()
    return {
        "attempts": log.count(": deferred, <"),
        "slowest answer, s": round(max(waits), 2),
        "MB": memory(server, "VmRSS") >> 20,
        "MB at most": memory(server, "VmHWM") >> 20,
    }


def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    nameserver = free_port()
    full, empty = site(directory / "full", nameserver), site(directory / "empty", nameserver)
    queues = {"full": directory / "full/data/queue", "empty": directory / "empty/data/queue"}
    results: dict[str, Any] = {}
    later = time.time() + _WEEK / 7
    if not queues["full"].exists():
        results["fill, s"] = round(
            fill(queues["full"], options.recipients, options.domains, options.body, later), 1
        )
        print(f"filled in {results['fill, s']} s", flush=True)
    else:
        shift(queues["full"], later)
    fill(queues["empty"], 1000, 1000, options.body, later)
    results["database, MB"] = (queues["full"] / "queue.sqlite").stat().st_size >> 20
    for name, queue in queues.items():
        results[f"operations, {name}, ms"] = operations(queue)
        print(f"{name}: {results[f'operations, {name}, ms']}", flush=True)
    servers = {"full": full, "empty": empty}
    try:
        for name, server in servers.items():
            results[f"start, {name}"] = start(server)
            print(f"start, {name}: {results[f'start, {name}']}", flush=True)
        rates = results["accepted a second"] = in_turn(servers, options)
        print(f"accept: {summary(rates, 'full', 'empty')}", flush=True)
        results["memory, full, MB"] = memory(full, "VmRSS") >> 20
        full.kill()
        results["start after kill -9"] = start(full)
        print(f"start after kill -9: {results['start after kill -9']}", flush=True)
        full.stop()
        shift(queues["full"], time.time())
        results["start, all due"] = start(full)
        print(f"start, all due: {results['start, all due']}", flush=True)
        results["dead world"] = dead_world(full, options.dead)
        print(f"dead world: {results['dead world']}", flush=True)
    finally:
        for server in servers.values():
            server.kill()
    return results


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipients", type=int, default=1_000_000)
    parser.add_argument("--domains", type=int, default=10_000)
    parser.add_argument("--body", type=int, default=1000, help="octets of a queued message")
    parser.add_argument("--messages", type=int, default=2000, help="accepted in one round")
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--size", type=int, default=4096, help="octets of a message that is accepted")
    parser.add_argument("--rounds", type=int, default=5)
    add_server_options(parser)
    parser.add_argument(
        "--growth", action="store_true", help="single operations only, in queues of all lengths"
    )
    parser.add_argument("--dead", type=float, default=_DEAD_WORLD, help="seconds with everything due")
    parser.add_argument("--directory", type=Path, help="where the queues are made")
    parser.add_argument("--keep", action="store_true", help="leave them there")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="mta-scale-", dir=options.directory))
    if options.keep and options.directory is not None:
        directory.rmdir()
        directory = options.directory
    try:
        results = {"growth": growth(directory, options)} if options.growth else measure(directory, options)
    finally:
        if not options.keep:
            shutil.rmtree(directory)
    write_json(options.json, results, recipients=options.recipients, domains=options.domains)


if __name__ == "__main__":
    main()

"""What connections cost in memory: many idle ones, and many that send a large message at the same time.

    python -m benchmarks.connections [--idle 10000] [--senders 1000] [--size 1000000] [--sent N] [--no-header] [--tls]
                                     [--json FILE]

Idle connections are held in one server process, in plain text (port mx, after EHLO) and with TLS (port submissions,
after EHLO); what one costs is the growth of the resident memory divided by their count. The senders take turns with
pieces of 64 kB, so that all their messages are under way at once; the highest resident memory is what the kernel noted.
With --sent each sends only so many octets of its message, and hangs up when all have: so messages can be measured that
would fill the disk. With --no-header a message is one header section that never ends. What is declared (SIZE) is --size.
Each needs as many open files as there are connections, here and in the server (`ulimit -n`); nothing is changed for good.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import resource
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import attrs

from benchmarks.common import memory
from twisted_mta.testing.site import Site

#: Connections that are made at a time.
_AT_ONCE = 50
_PIECE = 65536
LIMITS = """\
[limits]
connections = 100000
connections_per_address = 100000
connections_per_network = 100000
"""


@attrs.define
class Connection:
    """One client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int, tls: ssl.SSLContext | None = None) -> Connection:
        """Connect and say EHLO."""
        made = cls(
            *await asyncio.open_connection("127.0.0.1", port, ssl=tls, ssl_handshake_timeout=tls and 300)
        )
        await made.reply()
        await made.say(b"EHLO client.example.org\r\n")
        return made

    async def reply(self) -> bytes:
        """The last line of a reply."""
        line = await self.reader.readline()
        while line[3:4] == b"-":
            line = await self.reader.readline()
        return line

    async def say(self, command: bytes) -> None:
        """A command that must succeed."""
        self.writer.write(command)
        answer = await self.reply()
        if answer[:1] not in (b"2", b"3"):
            raise RuntimeError(f"{command[:40]!r} was answered with {answer!r}")


async def connect(count: int, port: int, tls: ssl.SSLContext | None = None) -> list[Connection]:
    """So many connections."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one() -> Connection:
        async with gate:
            return await Connection.open(port, tls)

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def idle(count: int, role: str) -> dict[str, Any]:
    """Hold `count` connections; what they cost, and whether the server still answers each of them."""
    with Site(LIMITS, roles=("mx", "submissions")) as site:
        tls = ssl._create_unverified_context() if role == "submissions" else None
        first = await connect(20, site.port(role), tls)  # what is loaded only once is not theirs
        before = memory(site, "VmRSS")
        began = time.perf_counter()
        connections = await connect(count, site.port(role), tls)
        took = time.perf_counter() - began
        after = memory(site, "VmRSS")
        for connection in connections[:: max(1, count // 100)]:
            await connection.say(b"NOOP\r\n")
        for connection in [*connections, *first]:
            connection.writer.transport.abort()
    return {
        "connections": count,
        "rss before": before,
        "rss after": after,
        "octets a connection": (after - before) // count,
        "seconds to open": round(took, 1),
    }


@attrs.frozen(kw_only=True)
class Load:
    """What the senders send."""

    #: Octets of a message, as declared.
    size: int
    #: Octets that are sent before all hang up; None: whole messages, and their ends.
    sent: int | None = None
    header: bool = True
    tls: bool = False

    @property
    def begin(self) -> bytes:
        """The first octets of a message."""
        return b"Subject: load\r\n\r\n" if self.header else b"Subject: load\r\n"


async def _secure(connections: list[Connection]) -> None:
    """STARTTLS on each."""
    tls = ssl._create_unverified_context()
    for connection in connections:
        await connection.say(b"STARTTLS\r\n")
        await connection.writer.start_tls(tls, ssl_handshake_timeout=300)
        await connection.say(b"EHLO client.example.org\r\n")


async def _taken(site: Site, connections: list[Connection]) -> None:
    """Wait until the server has read what was sent: nothing waits here, and nothing in the sockets between us."""
    port = site.port("mx")
    while any(c.writer.transport.get_write_buffer_size() for c in connections) or _unread(port):
        await asyncio.sleep(0.2)


def _unread(port: int) -> int:
    """Octets that the kernel holds for a local TCP port: /proc/net/tcp has them in hexadecimal, by connection."""
    waiting = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(fields[n].rpartition(":")[2], 16) for n in (1, 2))
        sent, received = (int(number, 16) for number in fields[4].split(":"))
        waiting += received if local == port else sent if remote == port else 0
    return waiting


async def senders(count: int, load: Load) -> dict[str, Any]:
    """`count` messages at once; the most memory that the server had."""
    with Site(LIMITS, roles=("mx",)) as site:
        connections = await connect(count, site.port("mx"))
        if load.tls:
            await _secure(connections)
        before = memory(site, "VmRSS")
        began = time.perf_counter()
        for connection in connections:
            await connection.say(b"MAIL FROM:<load@example.org> SIZE=%d\r\n" % load.size)
            await connection.say(b"RCPT TO:<alice@example.test>\r\n")
            await connection.say(b"DATA\r\n")
        for connection in connections:
            connection.writer.write(load.begin)
        line = b"x" * 70 + b"\r\n"
        piece = line * (_PIECE // len(line))
        for _ in range(0, load.size if load.sent is None else load.sent, len(piece)):
            for connection in connections:
                connection.writer.write(piece)
                await connection.writer.drain()
        under_way = memory(site, "VmHWM")
        if load.sent is None:
            await asyncio.gather(*(connection.say(b".\r\n") for connection in connections))
        else:
            await _taken(site, connections)
        took = time.perf_counter() - began
        most = memory(site, "VmHWM")
        for connection in connections:
            connection.writer.transport.abort()
    return {
        "connections": count,
        "octets a message": load.size,
        "octets sent of each": load.size if load.sent is None else load.sent,
        "rss before": before,
        "highest rss before the first end": under_way,
        "highest rss": most,
        "seconds": round(took, 1),
    }


def allow_files(need: int) -> None:
    """Let this process, and the servers that it starts, have so many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            sys.exit(f"{need} open files are needed, and the limit is {hard} (ulimit -n)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--idle", type=int, default=10_000, help="0: leave that out")
    parser.add_argument("--senders", type=int, default=1000, help="0: leave that out")
    parser.add_argument("--size", type=int, default=1_000_000, help="octets of a message")
    parser.add_argument("--sent", type=int, help="octets sent of each message before all hang up")
    parser.add_argument(
        "--no-header", action="store_true", help="messages that are one endless header section"
    )
    parser.add_argument("--tls", action="store_true", help="senders use STARTTLS")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    allow_files(max(options.idle, 3 * options.senders) + 200)
    results: dict[str, Any] = {"python": platform.python_version()}
    measurements = []
    if options.idle:
        measurements.append(("idle, plain text", lambda: idle(options.idle, "mx")))
        measurements.append(("idle, TLS", lambda: idle(options.idle, "submissions")))
    if options.senders:
        load = Load(size=options.size, sent=options.sent, header=not options.no_header, tls=options.tls)
        measurements.append(("senders", lambda: senders(options.senders, load)))
    for name, measure in measurements:
        results[name] = asyncio.run(measure())
        print(f"{name}: {results[name]}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

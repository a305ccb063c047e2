"""What connections cost in memory: many idle ones, and many that send a large message at the same time.

    python -m benchmarks.connections [--idle 10000] [--senders 1000] [--size 1000000] [--json FILE]

Idle connections are held in one server process, in plain text (port mx, after EHLO) and with TLS (port submissions,
after EHLO); what one costs is the growth of the resident memory divided by their count. The senders take turns with
pieces of 64 kB, so that all their messages are under way at once; the highest resident memory is what the kernel noted.
Each needs as many open files as there are connections, here and in the server (`ulimit -n`); nothing is changed for good.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import resource
import ssl
import time
from pathlib import Path
from typing import Any

import attrs

from benchmarks.common import memory
from twisted_mta.testing.site import Site

#: Connections that are made at a time.
_AT_ONCE = 50
_PIECE = 65536
_LIMITS = """\
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


async def _open(count: int, port: int, tls: ssl.SSLContext | None = None) -> list[Connection]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one() -> Connection:
        async with gate:
            return await Connection.open(port, tls)

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def idle(count: int, role: str) -> dict[str, Any]:
    """Hold `count` connections; what they cost, and whether the server still answers each of them."""
    with Site(_LIMITS, roles=("mx", "submissions")) as site:
        tls = ssl._create_unverified_context() if role == "submissions" else None
        first = await _open(20, site.port(role), tls)  # what is loaded only once is not theirs
        before = memory(site, "VmRSS")
        began = time.perf_counter()
        connections = await _open(count, site.port(role), tls)
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


async def senders(count: int, size: int) -> dict[str, Any]:
    """`count` messages of `size` octets, all at once; the most memory that the server had."""
    with Site(_LIMITS, roles=("mx",)) as site:
        connections = await _open(count, site.port("mx"))
        before = memory(site, "VmRSS")
        began = time.perf_counter()
        for connection in connections:
            await connection.say(b"MAIL FROM:<load@example.org> SIZE=%d\r\n" % size)
            await connection.say(b"RCPT TO:<alice@example.test>\r\n")
            await connection.say(b"DATA\r\n")
        for connection in connections:
            connection.writer.write(b"Subject: load\r\n\r\n")
        line = b"x" * 70 + b"\r\n"
        piece = line * (_PIECE // len(line))
        for _ in range(0, size, len(piece)):
            for connection in connections:
                connection.writer.write(piece)
                await connection.writer.drain()
        under_way = memory(site, "VmHWM")
        await asyncio.gather(*(connection.say(b".\r\n") for connection in connections))
        took = time.perf_counter() - began
        most = memory(site, "VmHWM")
        for connection in connections:
            connection.writer.transport.abort()
    return {
        "connections": count,
        "octets a message": size,
        "rss before": before,
        "highest rss before the first end": under_way,
        "highest rss": most,
        "seconds": round(took, 1),
    }


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--idle", type=int, default=10_000, help="0: leave that out")
    parser.add_argument("--senders", type=int, default=1000, help="0: leave that out")
    parser.add_argument("--size", type=int, default=1_000_000, help="octets of a message")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = max(options.idle, 3 * options.senders) + 200
    if soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            parser.error(f"{need} open files are needed, and the limit is {hard} (ulimit -n)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))  # of this process and the server it starts
    results: dict[str, Any] = {"python": platform.python_version()}
    measurements = []
    if options.idle:
        measurements.append(("idle, plain text", lambda: idle(options.idle, "mx")))
        measurements.append(("idle, TLS", lambda: idle(options.idle, "submissions")))
    if options.senders:
        measurements.append(("senders", lambda: senders(options.senders, options.size)))
    for name, measure in measurements:
        results[name] = asyncio.run(measure())
        print(f"{name}: {results[name]}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

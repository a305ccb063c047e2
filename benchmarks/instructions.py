"""Instructions a message: what the server's code costs, counted and not timed, so that a busy machine says the same.

    python -m benchmarks.instructions [--check | --update] [--json FILE]

A whole server on a simulated clock and network, with the real queue and Maildirs, works off a load under valgrind; the
same without any load is taken off. Counted is all of the process: Python, SQLite, the C library; not the kernel.

--check fails where a load needs over 30 % more than `instructions.json` says for this version of Python; --update writes
what was counted there, which belongs into the commit that changed it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.visitor import Visitor, stuffed
from twisted_mta.testing.world import World

KNOWN = Path(__file__).with_name("instructions.json")
#: How much more than known is let pass.
TOLERANCE = 0.3

MESSAGES = 100
MEMBERS = 400

_MESSAGE = (
    b"From: Sender <sender@example.org>\r\nTo: bob@example.test\r\nSubject: a benchmark\r\n"
    b"Message-ID: <1@client.example.org>\r\nDate: Sat, 21 Nov 2026 10:00:00 +0000\r\n\r\n"
) + (b"x" * 70 + b"\r\n") * 55
_CONFIG = """
[limits]
connections_per_address = 1000

[relay]
networks = ["127.0.0.0/8"]
smarthost = "192.0.2.1"

[[list]]
address = "all@example.test"
owner = "alice@example.test"
members = [{members}]
"""


def _send(visitor: Visitor, recipient: bytes) -> None:
    for line in (
        b"MAIL FROM:<sender@example.org>",
        b"RCPT TO:<" + recipient + b">",
        b"DATA",
        stuffed(_MESSAGE),
    ):
        reply = visitor.say(line)
        if not reply.positive:
            raise RuntimeError(f"{line[:40]!r} was answered by {reply}")


def _idle(world: World) -> int:
    return 1


def _kept(world: World) -> int:
    """To a mailbox, over one connection."""
    with world.visit() as visitor:
        visitor.say(b"EHLO client.example.org")
        for _ in range(MESSAGES):
            _send(visitor, b"bob@example.test")
    return _delivered(world, MESSAGES)


def _single(world: World) -> int:
    """To a mailbox, over a connection for each."""
    for _ in range(MESSAGES):
        with world.visit() as visitor:
            visitor.say(b"EHLO client.example.org")
            _send(visitor, b"bob@example.test")
    return _delivered(world, MESSAGES)


def _relayed(world: World) -> int:
    """To another host, over one connection."""
    with world.visit() as visitor:
        visitor.say(b"EHLO client.example.org")
        for _ in range(MESSAGES):
            _send(visitor, b"carol@example.net")
    return _taken(world, MESSAGES)


def _posted(world: World) -> int:
    """A post to a list, for each of its members."""
    with world.visit() as visitor:
        visitor.say(b"EHLO client.example.org")
        _send(visitor, b"all@example.test")
    return _taken(world, MEMBERS)


def _delivered(world: World, count: int) -> int:
    world.advance(60)
    found = len(world.mail("bob"))
    if found != count:
        raise RuntimeError(f"{found} of {count} messages were delivered")
    return count


def _taken(world: World, count: int) -> int:
    peer = world.network.servers["192.0.2.1", 25]
    assert isinstance(peer, SmtpPeer)
    world.advance(60)
    found = sum(len(message.recipients) for message in peer.messages)
    if found != count:
        raise RuntimeError(f"the other host has {found} of {count}")
    return count


#: What is counted. "idle" is what is taken off from the others.
LOADS: Mapping[str, Callable[[World], int]] = {
    "idle": _idle,
    "receive, connections kept": _kept,
    "receive, a connection a message": _single,
    "relay": _relayed,
    "list post, a member": _posted,
}


def run(load: str) -> int:
    """Work a load off; how many messages it was."""
    members = ", ".join(f'"member{number}@example.net"' for number in range(MEMBERS))
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory), _CONFIG.format(members=members))
        world.network.servers["192.0.2.1", 25] = SmtpPeer()
        count = LOADS[load](world)
        world.close()
    return count


def count(load: str) -> tuple[int, int]:
    """Instructions of a process that works a load off, and how many messages it was."""
    command = [
        "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
        sys.executable, "-m", "benchmarks.instructions", "--run", load,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": "0"}
    )
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or collected is None:
        raise RuntimeError(f"{load}: {done.stderr[-3000:]}")
    return int(collected[1]), int(done.stdout)


def main() -> None:
    """Count, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail where it got worse by over 30 %%")
    parser.add_argument("--update", action="store_true", help="remember what was counted")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--run", choices=LOADS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(run(options.run))
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counted = dict(zip(LOADS, pool.map(count, LOADS), strict=True))
    idle, _ = counted.pop("idle")
    costs = {load: (instructions - idle) // messages for load, (instructions, messages) in counted.items()}
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    known = json.loads(KNOWN.read_text(encoding="utf-8"))
    before = known.get(version, {})
    worse = []
    for load, cost in costs.items():
        was = before.get(load)
        change = f"{cost / was - 1:+.1%}" if was else "not known for this version of Python"
        print(f"{load}: {cost:,} instructions a message ({change})")
        if was and cost > was * (1 + TOLERANCE):
            worse.append(load)
    if options.json is not None:
        options.json.write_text(json.dumps({"instructions": costs}, indent=1) + "\n", encoding="utf-8")
    if options.update:
        KNOWN.write_text(json.dumps({**known, version: costs}, indent=1) + "\n", encoding="utf-8")
    if options.check and worse:
        sys.exit(
            f"over {TOLERANCE:.0%} worse: {'; '.join(worse)}. Profile it, or say by --update that it is worth it."
        )


if __name__ == "__main__":
    main()

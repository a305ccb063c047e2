"""What the benchmarks share: load from Postfix's smtp-source, the memory of a server, medians, results as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import attrs

from tests.peers import HeldPort, accepts, wait_for
from twisted_mta.testing.site import Site, python

#: Server -> messages a second, round by round.
Rates = dict[str, list[float]]

#: How smtp-source is told to use its sessions.
MODES = {"connections kept": ["-d"], "a connection a message": []}

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Temporary directories made meanwhile lie far from each other on the disk.

    ext4 does not use an inode again within minutes of its deletion, and looks at all of those first that lie in the same
    group: who deletes thousands of files (a queue of files does) makes new ones dear for whoever is beside it, up to 0.3
    ms each.
    """
    base = tempfile.mkdtemp(prefix="mta-bench-")
    os.chmod(base, 0o755)  # Postfix goes through it as its own users
    # T: "top of a hierarchy", see chattr(1). Other file systems know no such thing, and don't need it.
    subprocess.run(["chattr", "+T", base], check=False, stderr=subprocess.DEVNULL)
    before, tempfile.tempdir = tempfile.tempdir, base
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(base, ignore_errors=True)


def source(port: int, recipient: str, options: argparse.Namespace, flags: Sequence[str] = ("-d",)) -> None:
    """Send `options.messages` messages of `options.size` octets over `options.sessions` sessions; returns when all are
    accepted."""
    command = [
        "smtp-source", "-s", str(options.sessions), "-m", str(options.messages), "-l", str(options.size), *flags,
        "-f", "sender@example.org", "-t", recipient, f"127.0.0.1:{port}",
    ]  # fmt: skip
    subprocess.run(command, check=True, env=environment())


class Sink:
    """Postfix's smtp-sink, which takes everything and keeps nothing, and counts it."""

    def __init__(self) -> None:
        self._held = HeldPort()
        self.port = self._held.number
        self.taken = 0
        # It will not run as root.
        user = ["-u", "nobody"] if os.getuid() == 0 else []
        self._process = subprocess.Popen(
            ["smtp-sink", *user, "-c", f"127.0.0.1:{self.port}", "1000"],
            env=environment(),
            stdout=subprocess.PIPE,
        )
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        """It writes "sess=1 quit=0 mesg=1" and a carriage return at every end of a message."""
        assert self._process.stdout is not None
        rest = b""
        while piece := os.read(self._process.stdout.fileno(), 65536):
            *lines, rest = (rest + piece).split(b"\r")
            if lines:
                self.taken = int(lines[-1].rpartition(b"mesg=")[2])

    def __enter__(self) -> Sink:
        wait_for(lambda: accepts(self.port), "smtp-sink")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._held.close()


class Named(Protocol):
    """What has a name to be told by."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


@attrs.frozen
class Server:
    """One of those compared: where it listens, and how many messages have come to their end through it."""

    name: str
    port: int
    finished: Callable[[], int]


def measure(server: Server, recipient: str, options: argparse.Namespace, flags: Sequence[str]) -> float:
    """Messages a second of one run, from the first connection until the last message has come to its end."""
    goal = server.finished() + options.messages
    began = time.perf_counter()
    source(server.port, recipient, options, flags)
    wait_for(lambda: server.finished() >= goal, f"{server.name} to finish {options.messages} messages", 300)
    return options.messages / (time.perf_counter() - began)


def rounds_of(options: argparse.Namespace, size: int) -> range:
    """The numbers of the rounds of `size` messages: those up to 0 warm up, those from 1 on count."""
    warming = max(1, -(-options.warm_up // size))
    return range(1 - warming, options.rounds + 1)


def whose_turn(servers: Sequence[T], number: int) -> Sequence[T]:
    """The servers of a round of `rounds_of`: Postfix needs no more than one to be warm."""
    return [server for server in servers if number >= 0 or server.name != "postfix"]


def compare(servers: Sequence[Server], recipient: str, options: argparse.Namespace) -> dict[str, Rates]:
    """Mode -> server -> messages a second, round by round, the servers in turn."""
    results: dict[str, Rates] = {mode: {} for mode in MODES}
    for number in rounds_of(options, options.messages):
        for mode, flags in MODES.items():
            for server in whose_turn(servers, number):
                rate = measure(server, recipient, options, flags)
                if number > 0:
                    results[mode].setdefault(server.name, []).append(rate)
                    print(f"round {number}, {mode}: {server.name} {rate:.0f}/s", flush=True)
    return results


def load_options(about: str | None) -> argparse.ArgumentParser:
    """A command line that says which load, and where the results go."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--size", type=int, default=4096, help="octets of a message")
    parser.add_argument("--rounds", type=int, default=3)
    add_server_options(parser)
    parser.add_argument("--json", type=Path, help="write the results there")
    return parser


class _ServerPython(argparse.Action):
    """Tells it to `Site`, which all of them start their servers with."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option: object = None
    ) -> None:
        os.environ["MTA_PYTHON"] = values


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """On which Python the server runs, and how warm it is when it is measured."""
    parser.add_argument(
        "--server-python",
        action=_ServerPython,
        metavar="FILE",
        help="the interpreter of twisted_mta, in an environment that has it (default: the one that runs this)",
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        default=0,
        help="messages before it counts, at least a round (Postfix: one); PyPy compiles during some 20,000",
    )


def server_python() -> str:
    """Which Python the server runs on, as the server itself says it: "PyPy 7.3.19 (Python 3.11.11)"."""
    ask = "from twisted_mta.service.interpreter import interpreter; print(interpreter())"
    return subprocess.run([python(), "-c", ask], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def run_comparison(about: str, run: Callable[[argparse.Namespace], dict[str, Rates]]) -> None:
    """The main program of a comparison: runs it, prints the medians, and writes them as JSON if asked."""
    parser = load_options(about)
    parser.add_argument("--workers", type=int, default=1, help="processes of twisted_mta")
    options = parser.parse_args()
    with apart():
        results = run(options)
    for mode, rates in results.items():
        print(f"{mode}: {summary(rates, 'twisted_mta', 'postfix')}")
    write_json(options.json, {"rates": results}, messages=options.messages, size=options.size)


def environment() -> dict[str, str]:
    """The environment for programs that stand in /usr/sbin."""
    return {**os.environ, "PATH": _PATH}


def memory(site: Site, what: str) -> int:
    """VmRSS (now) or VmHWM (the most so far) of the server, octets."""
    assert site.process is not None
    for line in Path(f"/proc/{site.process.pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {what}")


def summary(rates: Mapping[str, Sequence[float]], ours: str, theirs: str) -> str:
    """The medians, and the median of the ratios round by round."""
    ratios = [one / other for one, other in zip(rates[ours], rates[theirs], strict=True)]
    shown = ", ".join(f"{name} {statistics.median(values):.0f}/s" for name, values in rates.items())
    return f"{shown}, ratio {statistics.median(ratios):.2f}"


def write_json(path: Path | None, results: Mapping[str, Any], **facts: Any) -> None:
    """Write results beside what they were measured on, if a file is given."""
    if path is not None:
        machine = {"python": server_python(), "cores": os.cpu_count(), **facts}
        path.write_text(json.dumps({"machine": machine, **results}, indent=1) + "\n", encoding="utf-8")

"""What the benchmarks share: load from Postfix's smtp-source, the memory of a server, medians, results as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.peers import accepts, free_port, wait_for
from twisted_mta.testing.site import Site

#: How smtp-source is told to use its sessions.
MODES = {"connections kept": ["-d"], "a connection a message": []}

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def source(port: int, recipient: str, options: argparse.Namespace, flags: Sequence[str] = ("-d",)) -> None:
    """Send `options.messages` messages of `options.size` octets over `options.sessions` sessions; returns when all are
    accepted."""
    command = [
        "smtp-source", "-s", str(options.sessions), "-m", str(options.messages), "-l", str(options.size), *flags,
        "-f", "sender@example.org", "-t", recipient, f"127.0.0.1:{port}",
    ]  # fmt: skip
    subprocess.run(command, check=True, env=environment())


@contextmanager
def sink() -> Iterator[int]:
    """Postfix's smtp-sink, which takes everything and keeps nothing: its port."""
    port = free_port()
    # It will not run as root.
    user = ["-u", "nobody"] if os.getuid() == 0 else []
    process = subprocess.Popen(["smtp-sink", *user, f"127.0.0.1:{port}", "1000"], env=environment())
    try:
        wait_for(lambda: accepts(port), "smtp-sink")
        yield port
    finally:
        process.terminate()
        process.wait()


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
        machine = {"python": platform.python_version(), "cores": os.cpu_count(), **facts}
        path.write_text(json.dumps({"machine": machine, **results}, indent=1) + "\n", encoding="utf-8")

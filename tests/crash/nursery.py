"""A process that has imported the whole server, and forks: a server is up in a moment, which makes hundreds of kills cheap.

What is forked goes through twistd's own entry, or that of the mta command, with its command line and environment.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from twisted_mta.testing.site import python

_ROOT = Path(__file__).parents[2]


class Nursery:
    """The forking process; `spawn` is for twisted_mta.testing.site.Site."""

    def __enter__(self) -> Nursery:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [python(), "-m", "tests.crash.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def spawn(self, command: list[str], output: IO[bytes], environment: Mapping[str, str]) -> Nursling:
        """As site.Spawn."""
        request = {"command": command, "output": output.name, "environment": dict(environment)}
        return Nursling(self, self.ask(request))

    def ask(self, request: Mapping[str, Any]) -> Any:
        """One request, one answer; from any thread."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


class Nursling:
    """A forked process, as site.Process."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            self._status = self._nursery.ask({"poll": self.pid})
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (60 if timeout is None else timeout)
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} goes on")
            time.sleep(0.002)
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(15)


def main() -> None:
    """In the process itself: requests on standard input, answers on standard output, a line each."""
    from twisted.application.service import IServiceMaker
    from twisted.plugin import getPlugins

    list(getPlugins(IServiceMaker))  # type: ignore[no-untyped-call]
    for name in ("server", "supervisor", "worker"):  # which twistd mta imports when it knows what it will be
        importlib.import_module(f"twisted_mta.service.{name}")
    assert "twisted.internet.reactor" not in sys.modules, "each child must have one of its own"
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                _run(request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _run(request: Mapping[str, Any]) -> None:
    """In a child: become that program."""
    from twisted.scripts import twistd

    from twisted_mta.admin.main import main as mta

    os.environ.clear()
    os.environ.update(request["environment"])
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, number)
    sys.argv = request["command"]
    code: Any = 1
    try:
        code = mta(sys.argv[1:]) if Path(sys.argv[0]).name == "mta" else twistd.run()
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()

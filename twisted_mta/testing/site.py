"""A whole server in a subprocess, on loopback ports that the system picks: for integration, interop and benchmarks.

with Site() as site:
    smtplib.SMTP("127.0.0.1", site.port("mx")).sendmail(...)
    site.wait_for(lambda: site.maildir("alice"))
    site.kill()                 # as kill -9
    site.start()                # the same data again
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, TypeVar

from twisted_mta.admin.client import call
from twisted_mta.admin.errors import AdminError
from twisted_mta.admin.init import self_signed
from twisted_mta.store.passwords import hash_password

T = TypeVar("T")

PASSWORD = "correct horse battery staple"  # noqa: S105  for tests, on loopback

_CONFIG = """\
hostname = "mx.{domain}"
domains = ["{domain}"]
data = "data"
postmaster = "postmaster@{domain}"
aliases = ["aliases"]

[tls]
certificate = "cert.pem"
key = "key.pem"

[accounts]
file = "users"
maildir = "mail/{{user}}"
"""

_ROLES = ("mx", "submission", "submissions", "imap", "imaps", "pop3", "pop3s")


class Process(Protocol):
    """What a Site needs of its process: as subprocess.Popen has it."""

    pid: int

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        ...

    def send_signal(self, sig: int) -> None:
        """Send a signal."""
        ...

    def terminate(self) -> None:
        """SIGTERM."""
        ...


Spawn = Callable[[list[str], IO[bytes], Mapping[str, str]], Process]


def python() -> str:
    """The interpreter that servers and commands run on: ours, or the one that MTA_PYTHON names."""
    return os.environ.get("MTA_PYTHON") or sys.executable


def program(name: str) -> str:
    """The command line's first word for a program of that interpreter's environment: "twistd", "mta"."""
    beside = Path(python()).with_name(name)
    return str(beside) if beside.exists() else name


def _spawn(command: list[str], output: IO[bytes], environment: Mapping[str, str]) -> Process:
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


class Site:
    """A configuration directory and the server that runs on it. `config` is more TOML, `aliases` an aliases(5) text.

    `top` has further top-level keys; they stand before the tables.
    """

    def __init__(
        self,
        config: str = "",
        *,
        top: str = "",
        aliases: str = "",
        domain: str = "example.test",
        accounts: tuple[str, ...] = ("alice", "bob", "postmaster"),
        roles: tuple[str, ...] = _ROLES,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        spawn: Spawn | None = None,
        workers: int = 1,
    ) -> None:
        """`spawn` starts a process: (command, file for all it prints, environment)."""
        self._owned = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="mta-site-"))
        self.process: Process | None = None
        #: Seconds that a start may take.
        self.patience = 120.0
        self._spawn = spawn or _spawn
        self.domain = domain
        self.environment = dict(environment or {})
        self._ports: dict[str, int] = {}
        listens = "".join(
            f'[[listen]]\nrole = "{role}"\nendpoint = "tcp:0:interface=127.0.0.1"\n\n' for role in roles
        )
        self.config_file = self.directory / "mta.toml"
        self._config = top + _CONFIG.format(domain=domain) + listens + config
        self.set_workers(workers)
        self.alias_file = self.directory / "aliases"
        self.alias_file.write_text(aliases, encoding="utf-8")
        self._write_secrets(accounts)

    def set_workers(self, workers: int) -> None:
        """Write the configuration file anew, with so many workers from the next start on."""
        first = "" if workers == 1 else f"workers = {workers}\n"
        self.config_file.write_text(first + self._config, encoding="utf-8")

    def _write_secrets(self, accounts: tuple[str, ...]) -> None:
        certificate, key = self_signed(f"mx.{self.domain}", ("localhost",))
        stored = hash_password(PASSWORD.encode(), os.urandom)
        users = "".join(f"{name}@{self.domain}:{stored}::::::\n" for name in accounts)
        for name, content in (("cert.pem", certificate), ("key.pem", key), ("users", users)):
            path = self.directory / name
            path.write_text(content, encoding="utf-8")
            path.chmod(0o600)

    # --- the process ---------------------------------------------------------------------------

    def start(self) -> Site:
        """Start the server and wait until it listens."""
        log = (self.directory / "log").open("ab")
        self.process = self._spawn(self.command, log, {**os.environ, **self.environment})
        log.close()
        self.wait_for(self._answers, self.patience)
        return self

    @property
    def command(self) -> list[str]:
        """The command line of the server."""
        return [program("twistd"), "-n", "--pidfile=", "mta", "--config", str(self.config_file)]

    def _answers(self) -> bool:
        assert self.process is not None  # start() made it
        if self.process.poll() is not None:
            raise RuntimeError(f"the server ended with {self.process.poll()}:\n{self.log()}")
        try:
            status = self.control("status")
        except AdminError:
            return False
        places = {listen["role"]: listen["address"].rpartition(":")[2] for listen in status["listen"]}
        self._ports = {role: int(port) for role, port in places.items() if port.isdigit()}
        return True

    def stop(self) -> int:
        """Stop it in an orderly way; the exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            return self.process.wait(120)
        finally:
            self.process = None

    def kill(self) -> None:
        """Kill it as kill -9 does. Workers that it has stop in order, and hold the data directory until then."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def __enter__(self) -> Site:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            print(self.log(), file=sys.stderr)
        if self._owned:
            shutil.rmtree(self.directory, ignore_errors=True)

    # --- looking at it -------------------------------------------------------------------------

    def port(self, role: str) -> int:
        """The port of the listener of that role."""
        return self._ports[role]

    def control(self, command: str, **arguments: object) -> Any:
        """Ask through the control socket."""
        return call(self.directory / "data" / "control", command, arguments)

    def log(self) -> str:
        """What the server logged."""
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")

    def wait_for_log(self, text: str) -> None:
        """Wait until the server has logged `text`: its lines leave together, some milliseconds later."""
        self.wait_for(lambda: text in self.log())

    def maildir(self, user: str, folder: str = "") -> list[Path]:
        """The messages of a user, new and seen, in the order of their names."""
        base = self.directory / "mail" / f"{user}@{self.domain}" / folder
        return sorted((*base.glob("new/*"), *base.glob("cur/*")), key=lambda path: path.name)

    def wait_for(self, condition: Callable[[], T], seconds: float = 120) -> T:
        """Wait until `condition` is true and return its value; a test's patience, not a pause."""
        deadline = time.monotonic() + seconds
        while True:
            late = time.monotonic() > deadline
            value = condition()
            if value:
                return value
            if late:  # by the time that it was looked at, not only afterwards
                raise TimeoutError(f"not within {seconds} s: {condition}\n{self.log()}")
            time.sleep(0.02)

    def wait_for_empty_queue(self) -> None:
        """Wait until all that was sent is done: a mailbox has its copy before the queue knows."""
        self.wait_for(lambda: not self.control("queue.list")["messages"])

"""Other mail programs, each with a configuration and directories of its own, on loopback: for interop tests and benchmarks."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path


def free_port() -> int:
    """A port that was free a moment ago: for programs that can't be told to take any."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Poll until `condition` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.02)


def accepts(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Postfix:
    """A Postfix that takes mail for example.test into a Maildir and relays the rest to `relayhost`.

    Needs root, as Postfix does. `certificate` and `key` (PEM files) turn STARTTLS on for its server.
    """

    def __init__(
        self,
        *,
        relayhost: str = "",
        certificate: Path | None = None,
        key: Path | None = None,
        domains: str = "example.test",
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mta-postfix-"))
        self.directory.chmod(0o755)
        self.config = self.directory / "etc"
        self.port = free_port()
        for name in ("etc", "spool", "data", "mail"):
            (self.directory / name).mkdir()
        shutil.chown(self.directory / "data", "postfix")
        shutil.chown(self.directory / "mail", "nobody")
        self._write(relayhost, certificate, key, domains)
        self.maildir = self.directory / "mail" / "bob" / "new"

    def _write(self, relayhost: str, certificate: Path | None, key: Path | None, domains: str) -> None:
        tls = ""
        if certificate and key:
            shutil.copy(certificate, self.config / "cert.pem")
            shutil.copy(key, self.config / "key.pem")
            tls = f"""
                smtpd_tls_security_level = may
                smtpd_tls_cert_file = {self.config}/cert.pem
                smtpd_tls_key_file = {self.config}/key.pem
                smtpd_tls_loglevel = 1
                """
        relay = f"relayhost = {relayhost}\nsmtp_tls_security_level = may\n" if relayhost else ""
        main = f"""
            compatibility_level = 3.6
            queue_directory = {self.directory}/spool
            data_directory = {self.directory}/data
            myhostname = postfix.example.net
            mydestination =
            mynetworks = 127.0.0.0/8
            inet_interfaces = 127.0.0.1
            inet_protocols = ipv4
            smtp_bind_address = 127.0.0.1
            virtual_mailbox_domains = {domains}
            virtual_mailbox_base = {self.directory}/mail
            virtual_mailbox_maps = static:bob/
            virtual_uid_maps = static:65534
            virtual_gid_maps = static:65534
            virtual_transport = virtual
            alias_maps =
            alias_database =
            maillog_file = {self.directory}/log
            maillog_file_prefixes = {self.directory}
            smtpd_client_connection_count_limit = 0
            smtpd_peername_lookup = no
            disable_dns_lookups = yes
            default_process_limit = 100
            minimal_backoff_time = 1s
            """
        (self.config / "main.cf").write_text(textwrap.dedent(main) + textwrap.dedent(tls) + relay)
        master = f"""\
            127.0.0.1:{self.port} inet n - n - - smtpd
            pickup unix n - n 60 1 pickup
            cleanup unix n - n - 0 cleanup
            qmgr unix n - n 300 1 qmgr
            tlsmgr unix - - n 1000? 1 tlsmgr
            rewrite unix - - n - - trivial-rewrite
            bounce unix - - n - 0 bounce
            defer unix - - n - 0 bounce
            trace unix - - n - 0 bounce
            verify unix - - n - 1 verify
            flush unix n - n 1000? 0 flush
            proxymap unix - - n - - proxymap
            smtp unix - - n - - smtp
            relay unix - - n - - smtp
            error unix - - n - - error
            retry unix - - n - - error
            discard unix - - n - - discard
            local unix - n n - - local
            virtual unix - n n - - virtual
            anvil unix - - n - 1 anvil
            scache unix - - n - 1 scache
            postlog unix-dgram n - n - 1 postlogd
            """
        (self.config / "master.cf").write_text(textwrap.dedent(master))

    def __enter__(self) -> Postfix:
        self.command("postfix", "start")
        wait_for(lambda: accepts(self.port), "Postfix")
        return self

    def __exit__(self, *_: object) -> None:
        self.command("postfix", "stop", check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def command(self, program: str, *arguments: str, check: bool = True) -> str:
        """Run one of Postfix's commands on this instance."""
        done = subprocess.run(
            [program, "-c", str(self.config), *arguments],
            env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{program} {arguments}: {done.stdout}{done.stderr}{self.log()}")
        return done.stdout

    def delivered(self) -> int:
        """Messages in bob's Maildir."""
        return len(os.listdir(self.maildir)) if self.maildir.is_dir() else 0

    def log(self) -> str:
        """Its log."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

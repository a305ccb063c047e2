"""Other mail programs, each with a configuration and directories of its own, on loopback: for interop tests and benchmarks."""

from __future__ import annotations

import os
import pwd
import re
import select
import shutil
import socket
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


#: Seconds that other programs may take for what takes a moment on a machine that has nothing else to do.
PATIENCE = 180.0


def free_port() -> int:
    """A port that was free a moment ago: for one where nobody is to listen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class HeldPort:
    """A port of loopback that nobody is given until it is closed: for programs that can't be told to take any.

    Who is told its number may listen there meanwhile, if it sets SO_REUSEADDR, as servers do; else connections are refused.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number = int(self._socket.getsockname()[1])

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


def wait_for(condition: Callable[[], object], what: str | Callable[[], str], seconds: float = 120) -> None:
    """Poll until `condition` is true; `what` it waits for is said, or found out, when that does not happen."""
    deadline = time.monotonic() + seconds
    while True:
        late = time.monotonic() > deadline
        if condition():
            return
        if late:  # by the time that it was looked at, not only afterwards
            raise TimeoutError(f"waited {seconds} s for {what if isinstance(what, str) else what()}")
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for somebody to ask how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def accepts(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run(
    program: str,
    *arguments: str,
    feed: bytes = b"",
    seconds: float = PATIENCE,
    environment: dict[str, str] | None = None,
    expect: int | None = 0,
) -> str:
    """Run a program to its end and return all it printed; fails where it ends with another code than `expect`."""
    assert shutil.which(program, path=_PATH), f"{program} is not installed: run tests/interop/install"
    done = subprocess.run(
        [program, *arguments],
        input=feed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        env={**os.environ, "PATH": _PATH, "LC_ALL": "C.UTF-8", **(environment or {})},
        check=False,
    )
    output = done.stdout.decode("utf-8", "replace")
    assert expect in (None, done.returncode), f"{program} ended with {done.returncode}:\n{output}"
    return output


def run_in_terminal(program: str, *arguments: str, seconds: float = PATIENCE, home: Path) -> str:
    """Run a program that wants a terminal and return what it drew; fails where it does not end, or not with 0."""
    assert shutil.which(program, path=_PATH), f"{program} is not installed: run tests/interop/install"
    ours, its = os.openpty()
    try:
        process = subprocess.Popen(
            [program, *arguments],
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
            env={**os.environ, "PATH": _PATH, "LC_ALL": "C.UTF-8", "TERM": "vt100", "HOME": str(home)},
        )
        os.close(its)
        screen = bytearray()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    screen += os.read(ours, 65536)
                except OSError:  # EIO: it has closed the terminal
                    break
            elif process.poll() is not None:
                break
        drawn = screen.decode("utf-8", "replace")
        try:
            code = process.wait(max(1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{program} did not end within {seconds} s:\n{drawn}") from None
        assert code == 0, f"{program} ended with {code}:\n{drawn}"
        return drawn
    finally:
        os.close(ours)


class Postfix:
    """A Postfix that takes mail for `domains` into Maildirs and relays the rest to `relayhost`.

    `mailboxes` is its virtual_mailbox_maps: address to Maildir; the default takes every address for bob's.
    Needs root, as Postfix does. `certificate` and `key` (PEM files) turn STARTTLS on for its server; with `sasl`, the
    socket of Dovecot's authentication, it takes mail from those only who log in.
    """

    def __init__(
        self,
        *,
        relayhost: str = "",
        certificate: Path | None = None,
        key: Path | None = None,
        domains: str = "example.test",
        mailboxes: str = "static:bob/",
        sasl: Path | None = None,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mta-postfix-"))
        self.directory.chmod(0o755)
        self.config = self.directory / "etc"
        self._port = HeldPort()
        self.port = self._port.number
        for name in ("etc", "spool", "data", "mail"):
            (self.directory / name).mkdir()
        shutil.chown(self.directory / "data", "postfix")
        shutil.chown(self.directory / "mail", "nobody")
        self._write(relayhost, certificate, key, domains, mailboxes)
        if sasl is not None:
            self._ask_for_logins(sasl)
        self.maildir = self.directory / "mail" / "bob" / "new"

    def _write(
        self, relayhost: str, certificate: Path | None, key: Path | None, domains: str, mailboxes: str
    ) -> None:
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
        relay = (
            f"relayhost = {relayhost}\nsmtp_tls_security_level = may\nsmtp_tls_loglevel = 1\n"
            if relayhost
            else ""
        )
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
            virtual_mailbox_maps = {mailboxes}
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

    def _ask_for_logins(self, sasl: Path) -> None:
        with (self.config / "main.cf").open("a") as main:
            main.write(
                textwrap.dedent(f"""
                smtpd_sasl_auth_enable = yes
                smtpd_sasl_type = dovecot
                smtpd_sasl_path = {sasl}
                smtpd_tls_auth_only = yes
                smtpd_relay_restrictions = permit_sasl_authenticated, reject
                """)
            )

    def __enter__(self) -> Postfix:
        try:
            self.command("postfix", "start")
            wait_for(lambda: accepts(self.port), "Postfix")
        except BaseException:
            print(self.log())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.command("postfix", "stop", check=False)
        self._port.close()
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

    def queued(self) -> int:
        """Messages in its queue, in whatever state; 0 only where there is none.

        A bounce may come into "incoming" when that was looked at already, and leave "active" before it is: a second look
        finds it, wherever it went.
        """
        return self._found() or self._found()

    def _found(self) -> int:
        queues = ("maildrop", "incoming", "active", "deferred", "hold")
        return sum(path.is_file() for name in queues for path in (self.directory / "spool" / name).rglob("*"))

    def log(self) -> str:
        """Its log."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        """Wait until a regular expression is found in its log: lines come there later than what they tell of.

        They go through postlogd(8); those of one process come in their order, of several in any.
        """
        found: list[re.Match[str]] = []

        def look() -> bool:
            match = re.search(pattern, self.log())
            found.extend([match] if match else [])
            return match is not None

        wait_for(look, lambda: f"{pattern!r} in the log of Postfix:\n{self.log()}")
        return found[0]


class Dovecot:
    """A Dovecot 2.3 that serves the Maildirs and the passwd-file of somebody else, by IMAP and POP3 in plain text.

    `maildir` is where they are, in Dovecot's terms: "/srv/mail/%u". Its mail processes run as `owner`, which can't be
    root; the rest of it needs root. With `sasl` it checks passwords for others at the socket `sasl`, and remembers those
    that were right.
    """

    def __init__(self, *, users: Path, maildir: str, owner: str = "nobody", sasl: bool = False) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mta-dovecot-"))
        self.directory.chmod(0o755)
        self.config = self.directory / "dovecot.conf"
        self._ports = HeldPort(), HeldPort()
        self.imap_port, self.pop3_port = (port.number for port in self._ports)
        (self.directory / "home").mkdir()
        shutil.chown(self.directory / "home", owner)
        group = pwd.getpwnam(owner).pw_gid
        self.config.write_text(
            textwrap.dedent(f"""\
                base_dir = {self.directory}/run
                state_dir = {self.directory}/state
                log_path = {self.directory}/log
                protocols = imap pop3
                listen = 127.0.0.1
                ssl = no
                disable_plaintext_auth = no
                mail_location = maildir:{maildir}
                mail_uid = {owner}
                mail_gid = {group}
                # Dovecot's index of names looks seldom for what another program changed.
                mailbox_list_index = no
                first_valid_uid = 1
                first_valid_gid = 1
                namespace inbox {{
                  inbox = yes
                  separator = /
                }}
                passdb {{
                  driver = passwd-file
                  args = username_format=%u {users}
                }}
                userdb {{
                  driver = static
                  args = uid={owner} gid={group} home={self.directory}/home/%u
                }}
                service auth {{
                  # The file of users is for its owner's eyes only.
                  user = root
                }}
                service imap-login {{
                  inet_listener imap {{
                    port = {self.imap_port}
                  }}
                  inet_listener imaps {{
                    port = 0
                  }}
                }}
                service pop3-login {{
                  inet_listener pop3 {{
                    port = {self.pop3_port}
                  }}
                  inet_listener pop3s {{
                    port = 0
                  }}
                }}
                """)
        )
        self.sasl = self.directory / "sasl"
        if sasl:
            with self.config.open("a") as config:
                config.write(
                    textwrap.dedent(f"""
                    auth_mechanisms = plain
                    auth_cache_size = 10 M
                    service auth {{
                      unix_listener {self.sasl} {{
                        mode = 0666
                      }}
                    }}
                    """)
                )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Dovecot:
        version = run("dovecot", "--version")
        assert version.startswith("2.3."), f"the configuration here is for Dovecot 2.3, this one is {version}"
        self._process = subprocess.Popen(["/usr/sbin/dovecot", "-F", "-c", str(self.config)])
        try:
            wait_for(self._serves, "Dovecot")
        except BaseException:
            print(self.log())
            self.__exit__()
            raise
        return self

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        return accepts(self.imap_port) and accepts(self.pop3_port)

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
        for port in self._ports:
            port.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def doveadm(self, *arguments: str, expect: int | None = 0) -> str:
        """Run Dovecot's administration command on this instance."""
        return run("doveadm", "-c", str(self.config), *arguments, expect=expect)

    def log(self) -> str:
        """Its log."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

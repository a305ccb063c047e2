"""Listeners of the real server: behind proxies, on sockets that systemd passes, on UNIX sockets, with several certificates."""

from __future__ import annotations

import smtplib
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509

from twisted_mta.admin.init import self_signed
from twisted_mta.testing.site import PASSWORD, Site

TLS = ssl._create_unverified_context()
MESSAGE = b"From: dave@example.org\r\nSubject: x\r\n\r\nhello\r\n"

TEXT = b"PROXY TCP4 203.0.113.9 127.0.0.1 40000 25\r\n"
BINARY = (
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x21"
    + struct.pack("!H", 36)
    + socket.inet_pton(socket.AF_INET6, "2001:db8::9")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::25")
    + struct.pack("!HH", 40000, 465)
)


class Proxied(smtplib.SMTP):
    """A client behind a proxy that puts `header` in front."""

    header = TEXT

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connection: socket.socket = super()._get_socket(host, port, timeout)  # type: ignore[misc]
        connection.sendall(self.header)
        return connection


class ProxiedTls(Proxied):
    """TLS begins behind the header."""

    header = BINARY

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return TLS.wrap_socket(super()._get_socket(host, port, timeout))


def first_line(port: int, said: bytes = b"") -> bytes:
    """What the server says first; b"" if it closes."""
    with socket.create_connection(("127.0.0.1", port), 60) as client:
        client.sendall(said)
        try:
            return client.makefile("rb").readline()
        except ConnectionResetError:
            return b""


def listen(role: str, proxy: str = "") -> str:
    return f'[[listen]]\nrole = "{role}"\nendpoint = "tcp:0:interface=127.0.0.1"\n{proxy}\n'


# --- behind proxies -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxied() -> Iterator[Site]:
    trusted = 'proxy = true\nproxy_networks = ["127.0.0.1"]'
    config = listen("mx", trusted) + listen("submissions", trusted)
    config += listen("submission", 'proxy = true\nproxy_networks = ["192.0.2.1"]')
    config += '[limits]\nconnections_per_address = 1\n[checks]\nreverse_dns = "off"\n'
    with Site(config, roles=()) as running:
        yield running


def test_the_client_of_a_proxy_stands_in_received_and_log(proxied: Site) -> None:
    before = len(proxied.maildir("bob"))
    with Proxied("127.0.0.1", proxied.port("mx"), timeout=30) as client:
        client.starttls(context=TLS)
        client.sendmail("dave@example.org", ["bob@example.test"], MESSAGE)
    proxied.wait_for(lambda: len(proxied.maildir("bob")) > before)
    assert b" ([203.0.113.9])" in proxied.maildir("bob")[-1].read_bytes()
    proxied.wait_for_log("received from 203.0.113.9, <dave@example.org>")


def test_tls_begins_behind_the_header(proxied: Site) -> None:
    before = len(proxied.maildir("bob"))
    with ProxiedTls("127.0.0.1", proxied.port("submissions"), timeout=30) as client:
        client.login("alice@example.test", PASSWORD)
        client.sendmail(
            "alice@example.test",
            ["bob@example.test"],
            MESSAGE.replace(b"dave@example.org", b"alice@example.test"),
        )
    proxied.wait_for(lambda: len(proxied.maildir("bob")) > before)
    assert b"[IPv6:2001:db8::9]" in proxied.maildir("bob")[-1].read_bytes()


def test_limits_count_the_clients_and_not_the_proxy(proxied: Site) -> None:
    other = TEXT.replace(b"203.0.113.9", b"203.0.113.10")
    # Those of the tests before may have gone without the server's knowing.
    proxied.wait_for(lambda: proxied.control("status")["connections"] == 0)
    with Proxied("127.0.0.1", proxied.port("mx"), timeout=30):
        assert first_line(proxied.port("mx"), TEXT).startswith(b"421 4.7.0 ")
        assert first_line(proxied.port("mx"), other).startswith(b"220 ")
    proxied.wait_for(lambda: first_line(proxied.port("mx"), TEXT).startswith(b"220 "))


def test_no_header_no_session(proxied: Site) -> None:
    assert first_line(proxied.port("mx"), b"EHLO client.example.org\r\n") == b""
    assert first_line(proxied.port("submission"), TEXT) == b""
    proxied.wait_for_log("it is not in proxy_networks")


# --- other sockets --------------------------------------------------------------------------------


# As sd_listen_fds(3) has it: the sockets begin at 3, and LISTEN_PID is the process that they are for.
_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="smtp")
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("which", ["index=0", "name=smtp"])
def test_a_socket_from_systemd(which: str) -> None:
    config = f'[[listen]]\nrole = "mx"\nendpoint = "systemd:domain=INET:{which}"\n'
    with socket.create_server(("127.0.0.1", 0)) as listening:
        site = Site(config, roles=())
        log = (site.directory / "log").open("ab")
        site.process = subprocess.Popen(
            [sys.executable, "-c", _ACTIVATE, str(listening.fileno()), *site.command],
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[listening.fileno()],
        )
        log.close()
        port = listening.getsockname()[1]
        try:
            site.wait_for(site._answers)
            assert site.port("mx") == port
            with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
                client.sendmail("dave@example.org", ["bob@example.test"], MESSAGE)
            site.wait_for(lambda: site.maildir("bob"))
            site.stop()
            assert "stopped; what is in the queue" in site.log()
        finally:
            site.__exit__(None, None, None)


def test_a_socket_that_systemd_did_not_pass() -> None:
    config = '[[listen]]\nrole = "mx"\nendpoint = "systemd:domain=INET:name=smtp"\n'
    site = Site(config, roles=())
    try:
        done = subprocess.run(site.command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1
        assert "(role mx): systemd has passed no such socket" in done.stderr
    finally:
        site.__exit__(None, None, None)


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "smtp"
    header = 'proxy = true\n[checks]\nreverse_dns = "off"\n'
    config = f'[[listen]]\nrole = "mx"\nendpoint = "unix:{path}:mode=600"\n'
    config += f'[[listen]]\nrole = "mx"\nendpoint = "unix:{path}.proxied:mode=600"\n{header}'
    with Site(config, roles=()) as site:
        assert path.stat().st_mode & 0o777 == 0o600
        site.kill()
        site.start()  # the socket that is left does not matter
        for name, said, origin in (
            (str(path), b"", b"[127.0.0.1]"),
            (f"{path}.proxied", TEXT, b"[203.0.113.9]"),
        ):
            replies = by_unix_socket(name, said)
            assert replies == [b"220", b"250", b"250", b"250", b"354", b"250", b"221"]
            site.wait_for(partial(received_from, site, origin))


def by_unix_socket(path: str, said: bytes) -> list[bytes]:
    """The codes of the replies to a message."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(path)
        client.sendall(
            said + b"HELO x\r\nMAIL FROM:<dave@example.org>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n"
        )
        client.sendall(MESSAGE + b".\r\nQUIT\r\n")
        return [line[:3] for line in client.makefile("rb")]


def received_from(site: Site, origin: bytes) -> bool:
    return any(origin in mail.read_bytes() for mail in site.maildir("bob"))


# --- certificates ---------------------------------------------------------------------------------


def subject(site: Site, name: str | None) -> str:
    """Whose certificate a client sees that asks for a name at STARTTLS."""
    context = ssl._create_unverified_context()
    with smtplib.SMTP("127.0.0.1", site.port("mx"), timeout=30) as client:
        if name is None:
            context.check_hostname = False
        client._host = name or ""  # type: ignore[attr-defined]
        client.starttls(context=context)
        assert isinstance(client.sock, ssl.SSLSocket)
        der = client.sock.getpeercert(binary_form=True)
    assert der is not None
    certificate = x509.load_der_x509_certificate(der)
    return str(certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


def write_pair(site: Site, name: str) -> None:
    for file, content in zip(("other.pem", "other.key"), self_signed(name, ("*.wild.test",)), strict=True):
        (site.directory / file).touch(mode=0o600)
        (site.directory / file).write_text(content)


def test_certificates_by_name_and_reload() -> None:
    site = Site('[[tls.sni]]\ncertificate = "other.pem"\nkey = "other.key"\n', roles=("mx",))
    write_pair(site, "mail.other.test")
    with site:
        names = ("mx.example.test", "mail.other.test", "a.wild.test", "new.other.test")
        first = [subject(site, name) for name in names]
        assert first == ["mx.example.test", "mail.other.test", "mail.other.test", "mx.example.test"]
        write_pair(site, "new.other.test")
        assert not site.control("reload")["failed"]
        assert [subject(site, name) for name in names[1:]] == [
            "mx.example.test",
            "new.other.test",
            "new.other.test",
        ]
        (site.directory / "other.pem").write_text("half a cer")
        assert "other.pem" in site.control("reload")["problems"][0]
        assert subject(site, "new.other.test") == "new.other.test"


# --- early talkers --------------------------------------------------------------------------------


def test_early_talkers() -> None:
    with Site("[limits]\ngreeting_delay = 60\n", roles=("mx",)) as site:
        assert first_line(site.port("mx"), b"EHLO x\r\n").startswith(b"554 5.7.1 ")
        site.config_file.write_text(site.config_file.read_text().replace("delay = 60", "delay = 0.5"))
        assert site.control("reload")["changed"] == ["limits.greeting_delay"]
        begin = time.monotonic()
        assert first_line(site.port("mx")).startswith(b"220 ")
        assert time.monotonic() - begin >= 0.5
        site.wait_for_log("refused 127.0.0.1: it spoke before the greeting")

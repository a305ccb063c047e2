"""Mail to Postfix over TLS that its TLSA records prove, from the whole server, with a name server of our own."""

from __future__ import annotations

import json
import shutil
import smtplib
import socket
import subprocess
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.names import dns

from tests.peers import Postfix
from twisted_mta.admin.init import self_signed
from twisted_mta.core.tls_policy.tlsa import public_key_info
from twisted_mta.net.dns_message import TLSA
from twisted_mta.testing.dns import FakeNameServer
from twisted_mta.testing.site import Site, python

pytestmark = pytest.mark.skipif(shutil.which("postfix") is None, reason="no Postfix here")


class NameServer:
    """A FakeNameServer in a thread."""

    def __init__(self) -> None:
        self.names = FakeNameServer()
        self.names.authentic = True
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(4096)
            if not query:
                return
            self._socket.sendto(self.names.respond(query, True), client)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(5)
        self._socket.close()


@pytest.fixture
def postfix(tmp_path: Path) -> Iterator[Postfix]:
    certificate, key = self_signed("postfix.example.net", [])
    (tmp_path / "cert.pem").write_text(certificate)
    (tmp_path / "key.pem").write_text(key)
    with Postfix(
        certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem", domains="example.net"
    ) as running:
        yield running


def own_key(postfix: Postfix) -> bytes:
    certificate = x509.load_pem_x509_certificate((postfix.config / "cert.pem").read_bytes())
    return public_key_info(certificate.public_bytes(Encoding.DER))


@pytest.mark.parametrize("matching", [True, False], ids=["its key", "another key"])
def test_dane(postfix: Postfix, matching: bool) -> None:
    digest = sha256(own_key(postfix) if matching else b"another").digest()
    with NameServer() as server:
        server.names.records = {
            ("example.net", dns.MX): [dns.Record_MX(10, "mx.example.net", ttl=60)],
            ("mx.example.net", dns.A): [dns.Record_A("127.0.0.1", ttl=60)],
            (f"_{postfix.port}._tcp.mx.example.net", TLSA): [dns.UnknownRecord(b"\3\1\1" + digest, ttl=60)],
        }
        config = (
            f'[relay]\nport = {postfix.port}\nnetworks = ["127.0.0.0/8"]\n'
            f'[dns]\nservers = ["127.0.0.1:{server.port}"]\nvalidating = true\n'
            '[checks]\nreverse_dns = "off"\nhelo = "off"\n'
        )
        with Site(config, roles=("mx",)) as site:
            with smtplib.SMTP("127.0.0.1", site.port("mx")) as client:
                client.sendmail("alice@example.test", ["bob@example.net"], "Subject: dane\r\n\r\nhello\r\n")
            if matching:
                site.wait_for(postfix.delivered)
                postfix.wait_for_log("TLS connection established")
            else:
                site.wait_for(
                    lambda: "none of its TLSA records" in json.dumps(site.control("queue.list")["messages"])
                )
                assert postfix.delivered() == 0
            # What is known of a host is written down beside the delivery.
            [known] = site.wait_for(lambda: site.control("tls.list")["domains"])
            code = "import sys; from twisted_mta.admin.main import main; sys.exit(main(sys.argv[1:]))"
            command = [python(), "-c", code, "--config", str(site.config_file), "tls"]
            shown = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (known["domain"], known["source"], known["verified"], known["usable"]) == (
                "example.net",
                "dane",
                matching,
                matching,
            )
            assert ("proven by DANE" in shown.stdout) is matching, shown.stdout + shown.stderr

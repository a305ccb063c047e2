"""SCRAM against the whole server over real TLS: the channel bindings are those that an OpenSSL client computes."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import unittest
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from twisted_mta.store.passwords import hash_password, scram_keys
from twisted_mta.testing.scram import ScramClient
from twisted_mta.testing.site import PASSWORD, Site


class Peer:
    """One TLS connection, read by lines."""

    def __init__(self, port: int, version: int) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(version)
        plain = socket.create_connection(("127.0.0.1", port), timeout=None)
        self.connection = SSL.Connection(context, plain)
        self.connection.set_connect_state()
        self.connection.do_handshake()
        self._buffer = b""

    def close(self) -> None:
        self.connection.sock_shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._buffer += self.connection.recv(65536)
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def say(self, line: bytes) -> bytes:
        self.connection.sendall(line + b"\r\n")
        return self.line()

    def exporter(self) -> bytes:
        return self.connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")

    def end_point(self) -> bytes:
        certificate: Any = self.connection.get_peer_certificate(as_cryptography=True)
        assert certificate.signature_hash_algorithm.name == "sha256"
        return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


#: Role -> (the command in front of the mechanism, what begins a challenge, what begins the last word).
PROTOCOLS = {
    "submissions": (b"AUTH ", b"334 ", b"235 "),
    "imaps": (b"a AUTHENTICATE ", b"+ ", b"a OK "),
    "pop3s": (b"AUTH ", b"+ ", b"+OK "),
}


class ScramOverTlsTests(unittest.TestCase):
    site: Site

    @classmethod
    def setUpClass(cls) -> None:
        cls.site = Site()
        stored = hash_password(PASSWORD.encode(), os.urandom)
        keys = scram_keys(PASSWORD.encode(), stored, 4096)
        line = f"alice@example.test:{stored}::::::scram_sha256={keys}\n"
        (cls.site.directory / "users").write_text(line, encoding="utf-8")
        cls.site.start()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.site.__exit__(None, None, None)

    def log_in(self, role: str, kind: str, version: int = SSL.TLS1_3_VERSION, wrong: bool = False) -> bytes:
        """The last word of the server."""
        command, challenge, _ = PROTOCOLS[role]
        peer = Peer(self.site.port(role), version)
        self.addCleanup(peer.close)
        peer.line()
        if role == "submissions":
            peer.connection.sendall(b"EHLO client\r\n")
            while not peer.line().startswith(b"250 "):
                pass
        binding = {"tls-exporter": peer.exporter, "tls-server-end-point": peer.end_point, "": bytes}[kind]()
        client = ScramClient(
            "alice", PASSWORD, b"client", f"p={kind}" if kind else "n", b"other" if wrong else binding
        )
        mechanism = b"SCRAM-SHA-256-PLUS " if kind else b"SCRAM-SHA-256 "
        reply = peer.say(command + mechanism + base64.b64encode(client.first()))
        if not reply.startswith(challenge):
            return reply
        final = client.final(base64.b64decode(reply.removeprefix(challenge)))
        reply = peer.say(base64.b64encode(final))
        if not reply.startswith(challenge):
            return reply
        self.assertTrue(client.check(base64.b64decode(reply.removeprefix(challenge))))
        return peer.say(b"")

    def test_each_protocol_with_each_binding(self) -> None:
        for role, (_, _, success) in PROTOCOLS.items():
            for kind in ("tls-exporter", "tls-server-end-point", ""):
                with self.subTest(role=role, kind=kind):
                    reply = self.log_in(role, kind)
                    self.assertTrue(reply.startswith(success), reply)

    def test_tls_1_2_has_the_certificate_only(self) -> None:
        reply = self.log_in("imaps", "tls-server-end-point", SSL.TLS1_2_VERSION)
        self.assertTrue(reply.startswith(b"a OK "), reply)
        self.assertEqual(
            self.log_in("imaps", "tls-exporter", SSL.TLS1_2_VERSION),
            b"a BAD channel bindings known here: tls-server-end-point",
        )

    def test_from_another_connection(self) -> None:
        self.assertEqual(
            self.log_in("imaps", "tls-exporter", wrong=True),
            b"a NO [AUTHENTICATIONFAILED] login or password is wrong",
        )
        self.site.wait_for_log("not at the other end")

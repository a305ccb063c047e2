"""Commands and replies slipped in before the TLS handshake: nothing of it may count after it. RFC 3207 §4.2, RFC 2595 §2.1."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.testing.site import PASSWORD, Site
from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.world import World

TLS = ssl._create_unverified_context()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site(roles=("mx", "submission", "lmtp", "imap", "pop3")) as running:
        yield running


class Client:
    """A socket that reads lines."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._file = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def line(self) -> bytes:
        return self._file.readline()

    def until(self, start: bytes) -> list[bytes]:
        """The lines up to the one that begins so."""
        lines = [self.line()]
        while not lines[-1].startswith(start):
            assert lines[-1], lines
            lines.append(self.line())
        return lines

    def start_tls(self) -> None:
        self._socket = TLS.wrap_socket(self._socket)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()


#: Role; what comes before; the command and what is slipped in behind it; the answer to it; a probe, and the only answer to that.
_ENVELOPE = b"MAIL FROM:<a@example.net>\r\nRCPT TO:<bob@example.test>\r\n"
SERVERS = {
    "an envelope": (
        "mx",
        b"EHLO c\r\n",
        b"STARTTLS\r\n" + _ENVELOPE,
        b"220 ",
        b"DATA\r\n",
        b"503 5.5.1 Send HELO",
    ),
    "a greeting": (
        "mx",
        b"EHLO c\r\n",
        b"STARTTLS\r\nEHLO injected\r\n",
        b"220 ",
        b"MAIL FROM:<a@b.test>\r\n",
        b"503 5.5.1 Send HELO",
    ),
    "half a command": (
        "mx",
        b"EHLO c\r\n",
        b"STARTTLS\r\nEHLO inj",
        b"220 ",
        b"ected\r\n",
        b"500 5.5.1 Unknown",
    ),
    "a chunk that never ends": (
        "mx",
        b"EHLO c\r\n" + _ENVELOPE,
        b"STARTTLS\r\nBDAT 99999\r\n",
        b"220 ",
        b"NOOP\r\n",
        b"250 2.0.0",
    ),
    "an envelope before": (
        "mx",
        b"EHLO c\r\n" + _ENVELOPE + b"BDAT 2\r\n\r\n",
        b"STARTTLS\r\n",
        b"220 ",
        b"BDAT 0 LAST\r\n",
        b"503 ",
    ),
    "a recipient by LMTP": (
        "lmtp",
        b"LHLO c\r\n",
        b"STARTTLS\r\nLHLO c\r\n" + _ENVELOPE,
        b"220 ",
        b"DATA\r\n",
        b"503 5.5.1 Send HELO",
    ),
    "a login": (
        "submission",
        b"EHLO c\r\n",
        b"STARTTLS\r\nEHLO c\r\nAUTH LOGIN\r\n",
        b"220 ",
        b"*\r\n",
        b"500 5.5.1 Unknown",
    ),
    "a login by IMAP": (
        "imap",
        b"",
        b'a STARTTLS\r\nb LOGIN bob "%b"\r\n' % PASSWORD.encode(),
        b"a OK",
        b"c SELECT INBOX\r\n",
        b"c BAD",
    ),
    "half a command by IMAP": (
        "imap",
        b"",
        b"a STARTTLS\r\nb LOGIN bob {99}\r\n",
        b"a OK",
        b"c NOOP\r\n",
        b"c OK",
    ),
    "a login by POP3": (
        "pop3",
        b"",
        b"STLS\r\nUSER bob\r\nPASS %b\r\n" % PASSWORD.encode(),
        b"+OK Go ahead",
        b"STAT\r\n",
        b"-ERR",
    ),
    "a name by POP3": (
        "pop3",
        b"",
        b"STLS\r\nUSER bob\r\n",
        b"+OK Go ahead",
        b"PASS %b\r\n" % PASSWORD.encode(),
        b"-ERR Send USER",
    ),
}


@pytest.mark.parametrize("case", SERVERS)
def test_server(site: Site, case: str) -> None:
    role, before, injected, answer, probe, reply = SERVERS[case]
    with Client(site.port(role)) as client:
        client.line()
        client.send(before)
        client.send(injected)
        client.until(answer)
        client.start_tls()
        client.send(probe)
        assert client.line().startswith(reply)
    assert not site.maildir("bob")


@pytest.mark.parametrize("role", ["mx", "imap", "pop3"])
def test_what_comes_between_the_answer_and_the_handshake(site: Site, role: str) -> None:
    """It is no TLS, so that there is no session any more in which it could count."""
    with Client(site.port(role)) as client:
        client.line()
        client.send({"mx": b"EHLO c\r\nSTARTTLS\r\n", "imap": b"a STARTTLS\r\n", "pop3": b"STLS\r\n"}[role])
        client.until({"mx": b"220 ", "imap": b"a OK", "pop3": b"+OK"}[role])
        client.send(b"EHLO injected\r\nRSET\r\na NOOP\r\n")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            client.start_tls()


class ClientTests(SynchronousTestCase):
    """We are the client, and somebody on the way puts replies behind the peer's 220."""

    def test_replies(self) -> None:
        for injected in (
            "250-x\r\n250 SIZE 1",
            "250 x",
            "421 4.3.2 closing",
            "250-x\r\n250 SMTPUTF8\r\n250 2.1.0 sender\r\n250 2.1.5 recipient\r\n354 go\r\n250 2.0.0 taken",
            "250 half a li",
        ):
            with self.subTest(injected):
                world = World(Path(self.mktemp()), '\n[relay]\nnetworks = ["127.0.0.0/8"]\n')
                end = "" if injected.endswith("li") else "\r\n"
                replies: dict[str, str | list[str]] = {"STARTTLS": f"220 go ahead\r\n{injected}{end}"}
                peer = world.host("example.org", "192.0.2.1", SmtpPeer(replies=replies, tls=object()))
                reply = world.send("alice@example.test", ["carol@example.org"], b"Subject: x\r\n\r\ntext\r\n")
                self.assertEqual(reply.code, 250)
                world.advance(1)
                [message] = peer.messages
                self.assertTrue(message.tls)
                self.assertTrue(message.data.endswith(b"text\r\n"))
                self.assertEqual(peer.connections, 1)
                self.assertEqual([line[:4] for line in peer.commands].count("EHLO"), 2)
                self.assertEqual(world.queued(), [])
                world.close()

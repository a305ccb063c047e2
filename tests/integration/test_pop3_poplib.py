"""Python's poplib against real listening sockets, TLS, and Maildirs with real threads."""

from __future__ import annotations

import datetime
import os
import poplib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from twisted_mta.core.pop3.server import Pop3Settings
from twisted_mta.core.sasl import Credentials
from twisted_mta.interfaces import Account
from twisted_mta.net.pop3 import pop3_session
from twisted_mta.net.session import Session, SessionFactory
from twisted_mta.net.tls import ServerTls
from twisted_mta.store.maildir import MaildirMailboxes
from twisted_mta.store.threads import Workers

reactor: Any = _reactor

SMALL = b"Subject: small\r\n\r\n.one\r\n..two\r\n.\r\n"
LARGE = b"Subject: large\r\n\r\n" + b"".join(b".line %06d of a large message\r\n" % n for n in range(40000))


class Passwords:
    def __init__(self, account: Account) -> None:
        self._account = account

    async def authenticate(self, claim: Credentials, client: object) -> Account | None:
        return self._account if claim == Credentials("alice", b"se cret") else None


def write_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed one for 127.0.0.1: (certificate, key)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.example.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    paths = directory / "cert.pem", directory / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


class PoplibTests(TestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        tls = ServerTls(*write_certificate(directory))
        self.account = Account("alice@example.test", os.path.join(directory, "Maildir"))
        self.workers = Workers(reactor, 2, "mailboxes")
        self.mailboxes = MaildirMailboxes(self.workers, reactor)
        self.context = ssl.create_default_context()
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE

        def make(implicit: bool) -> Callable[[object], Session]:
            return lambda address: pop3_session(
                Pop3Settings(hostname="mx.example.test"),
                self.mailboxes,
                Passwords(self.account),
                str(address),
                reactor,
                tls=tls,
                implicit_tls=implicit,
            )

        self.factories = [SessionFactory(make(False), b""), SessionFactory(make(True), b"")]
        self.ports = [reactor.listenTCP(0, factory, interface="127.0.0.1") for factory in self.factories]

    async def tearDown(self) -> None:
        for factory in self.factories:
            await factory.shut_down(reactor)
        for port in self.ports:
            await port.stopListening()
        await self.mailboxes.close()
        self.workers.close()

    async def fill(self, *messages: bytes) -> None:
        for message in messages:
            await self.mailboxes.of(self.account).append("INBOX", message)

    def talk(self, conversation: Callable[[poplib.POP3], None], implicit: bool = False) -> Deferred[None]:
        """Have it in a thread, with a client that is logged in."""
        port = self.ports[implicit].getHost().port

        def run() -> None:
            client: poplib.POP3
            if implicit:
                client = poplib.POP3_SSL("127.0.0.1", port, context=self.context, timeout=60)
            else:
                client = poplib.POP3("127.0.0.1", port, timeout=60)
                client.stls(self.context)
            try:
                client.user("alice")
                client.pass_("se cret")
                conversation(client)
            finally:
                client.close()

        return deferToThread(run)

    async def test_messages_come_back_byte_for_byte(self) -> None:
        await self.fill(SMALL, LARGE)
        names: list[bytes] = []

        def conversation(client: poplib.POP3) -> None:
            self.assertEqual(client.stat(), (2, len(SMALL) + len(LARGE)))
            for number, message in enumerate((SMALL, LARGE), 1):
                _, lines, _ = client.retr(number)
                self.assertEqual(b"".join(line + b"\r\n" for line in lines), message)
            self.assertEqual(
                client.top(2, 1)[1], [b"Subject: large", b"", b".line 000000 of a large message"]
            )
            names.extend(client.uidl()[1])
            client.dele(1)
            self.assertEqual(client.list()[1], [b"2 %d" % len(LARGE)])
            client.quit()

        def later(client: poplib.POP3) -> None:
            self.assertEqual([name.split()[1] for name in client.uidl()[1]], [names[1].split()[1]])

        await self.talk(conversation)
        await self.talk(later, implicit=True)

    async def test_no_login_in_the_clear(self) -> None:
        port = self.ports[0].getHost().port

        def run() -> None:
            client = poplib.POP3("127.0.0.1", port, timeout=60)
            try:
                self.assertIn("STLS", client.capa())
                with self.assertRaises(poplib.error_proto) as refused:
                    client.user("alice")
                self.assertIn(b"[AUTH]", refused.exception.args[0])
            finally:
                client.close()

        await deferToThread(run)

"""Python's imaplib against a real listening socket."""

from __future__ import annotations

import imaplib
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from twisted_mta.core.imap.session import ImapSettings
from twisted_mta.core.sasl import Credentials
from twisted_mta.interfaces import Account
from twisted_mta.net.imap import imap_session
from twisted_mta.net.session import SessionFactory
from twisted_mta.store.threads import Workers
from twisted_mta.testing.mailboxes import MemoryMailboxes

reactor: Any = _reactor

LARGE_BODY = b"".join(b"line %06d of a large message\r\n" % n for n in range(20000))
MESSAGE = (
    b"From: Alice <alice@example.test>\r\nTo: bob@example.test\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n"
    b"Date: Mon, 7 Feb 1994 21:52:25 -0800\r\nMessage-Id: <1@example.test>\r\n\r\nHello Bob\r\n"
)


class _Authenticator:
    async def authenticate(self, claim: Credentials, client: object) -> Account | None:
        return Account(claim.login, "/nowhere") if claim.password == b'se"cret' else None


class ImaplibTests(TestCase):
    """The whole of it: core, handler, session, sockets, threads."""

    def setUp(self) -> None:
        self.mailboxes = MemoryMailboxes()
        self.workers = Workers(reactor, 2, "parse")

        def make(address: object) -> Any:
            settings = ImapSettings(hostname="imap.example.test", plaintext_login=True)
            return imap_session(
                settings, self.mailboxes, _Authenticator(), reactor, self.workers.run, peer=str(address)
            )

        self.factory = SessionFactory(make, b"* BYE busy\r\n")
        self.port = reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.store = self.mailboxes.of(Account("alice", "/nowhere"))

    async def tearDown(self) -> None:
        await self.factory.shut_down(reactor)
        await self.port.stopListening()
        self.workers.close()

    def run_client(self, function: Any) -> Deferred[Any]:
        """Run `function(client)` in a thread with a client that is logged in."""
        port = self.port.getHost().port

        def run() -> None:
            with imaplib.IMAP4("127.0.0.1", port, timeout=60) as client:
                client.login("alice", 'se"cret')
                function(client)

        return deferToThread(run)

    def test_a_message_comes_back_byte_for_byte(self) -> Deferred[Any]:
        def talk(client: imaplib.IMAP4) -> None:
            large = MESSAGE + LARGE_BODY
            self.assertEqual(client.select()[1], [b"0"])
            for message in (MESSAGE, large):
                status, data = client.append(
                    "INBOX", r"(\Flagged $Work)", '"07-Feb-1994 22:00:00 -0800"', message
                )
                self.assertEqual(status, "OK")
                self.assertIn(b"[APPENDUID ", data[0])
            status, data = client.fetch("1:*", "(UID RFC822.SIZE INTERNALDATE BODY.PEEK[])")
            self.assertEqual([part[1] for part in data if isinstance(part, tuple)], [MESSAGE, large])
            self.assertIn(b'INTERNALDATE " 8-Feb-1994 06:00:00 +0000"', data[0][0])
            status, data = client.uid("FETCH", "1", "(FLAGS BODY[TEXT]<0.5>)")
            self.assertEqual(data[0][1], b"Hello")
            self.assertIn(b"\\Seen", data[0][0])
            self.assertEqual(client.search(None, "SUBJECT", '"nothing"'), ("OK", [b""]))

        return self.run_client(talk)

    def test_search_store_copy_expunge(self) -> Deferred[Any]:
        for _ in range(3):
            self.store.deliver(MESSAGE)

        def talk(client: imaplib.IMAP4) -> None:
            self.assertEqual(client.select()[1], [b"3"])
            client.literal = "grüße".encode()  # type: ignore[attr-defined]
            self.assertEqual(client.search("UTF-8", "SUBJECT"), ("OK", [b"1 2 3"]))
            self.assertEqual(
                client.search(None, "SENTON", "7-Feb-1994", "NOT", "BODY", "Carol")[1], [b"1 2 3"]
            )
            self.assertEqual(
                client.store("2", "+FLAGS", r"(\Deleted)")[1], [rb"2 (FLAGS (\Deleted \Recent))"]
            )
            self.assertEqual(client.create("Archive/2026")[0], "OK")
            self.assertEqual(client.uid("COPY", "1:2", "Archive/2026")[0], "OK")
            self.assertEqual(client.response("COPYUID")[1], [b"1700000002 1:2 1:2"])
            self.assertEqual(
                client.copy("1", "Missing"), ("NO", [b"[TRYCREATE] there is no mailbox Missing"])
            )
            self.assertEqual(client.expunge(), ("OK", [b"2"]))
            self.assertEqual(client.status("Archive/2026", "(MESSAGES)")[1], [b'"Archive/2026" (MESSAGES 2)'])
            names = [row.rpartition(b" ")[2] for row in client.list()[1]]
            self.assertEqual(names, [b'"INBOX"', b'"Archive"', b'"Archive/2026"'])
            self.assertEqual(client.close()[0], "OK")

        return self.run_client(talk)

    def test_idle_is_told_of_new_mail(self) -> Deferred[Any]:
        def talk(client: imaplib.IMAP4) -> None:
            client.select()
            tag = client._new_tag()  # type: ignore[attr-defined]
            client.send(tag + b" IDLE\r\n")
            self.assertEqual(client.readline(), b"+ idling\r\n")
            reactor.callFromThread(self.store.deliver, MESSAGE)
            self.assertEqual(client.readline(), b"* 1 EXISTS\r\n")
            self.assertEqual(client.readline(), b"* 1 RECENT\r\n")
            client.send(b"DONE\r\n")
            self.assertEqual(client.readline(), tag + b" OK no longer idle\r\n")

        return self.run_client(talk)

    def test_a_wrong_password(self) -> Deferred[Any]:
        port = self.port.getHost().port

        def run() -> str:
            with imaplib.IMAP4("127.0.0.1", port, timeout=60) as client:
                try:
                    client.login("alice", "wrong")
                except imaplib.IMAP4.error as error:
                    return str(error)
            return "logged in"

        result = deferToThread(run)
        return result.addCallback(lambda text: self.assertIn("AUTHENTICATIONFAILED", text))

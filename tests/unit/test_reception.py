"""service.reception and policy.relay: what is accepted, and how it enters the queue."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.message import header_length
from twisted_mta.core.queue import NewMessage, Transport
from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl import Claim, Credentials, Secret
from twisted_mta.interfaces import Account, Client, IAuthenticator, IBodyWriter, IQueue, Peer, StoreFull
from twisted_mta.policy.base import Accepting
from twisted_mta.policy.relay import LoopCheck, RecipientCheck, RelayCheck
from twisted_mta.service.incoming import Intake
from twisted_mta.service.reception import Reception
from twisted_mta.service.rules import Rules
from twisted_mta.testing.directory import make_directory, make_list
from twisted_mta.testing.scram import known_secret


@implementer(IBodyWriter)
class Body:
    """Octets in memory. `error` is raised by write, or by the Deferred in `wait`."""

    def __init__(self) -> None:
        self.octets = b""
        self.aborted = False
        self.error: Exception | None = None
        self.wait: Deferred[None] | None = None

    @property
    def size(self) -> int:
        return len(self.octets)

    def write(self, data: bytes) -> Deferred[None] | None:
        if self.error:
            raise self.error
        self.octets += data
        return self.wait

    async def header(self, limit: int) -> bytes:
        return self.octets[: min(header_length(self.octets), limit)]

    def abort(self) -> None:
        self.aborted = True


@implementer(IQueue)
class Queue:
    """Remembers what was submitted."""

    def __init__(self) -> None:
        self.body = Body()
        self.room = 1 << 30
        self.messages: list[NewMessage] = []
        self.error: Exception | None = None

    def check_room(self, octets: int) -> None:
        if octets > self.room:
            raise StoreFull

    def new_body(self) -> Body:
        return self.body

    async def submit(self, messages: Sequence[NewMessage], body: IBodyWriter) -> None:
        if self.error:
            raise self.error
        self.messages += messages


@implementer(IAuthenticator)
class Authenticator:
    async def authenticate(self, claim: Claim, client: Client) -> Account | None:
        assert client == Client(service="smtp", address="192.0.2.1")
        assert isinstance(claim, Credentials)
        return Account("alice@example.test", "/mail/alice") if claim.password == b"secret" else None

    async def secret(self, login: str, client: Client) -> Secret:
        return known_secret(login)

    def offers_scram(self) -> bool:
        return True


class Slow(Accepting):
    """Answers MAIL and the message only when told."""

    def __init__(self) -> None:
        self.verdict: Deferred[Reply | None] = Deferred()

    def on_mail(self, peer: Peer, envelope: Envelope) -> Deferred[Reply | None]:  # type: ignore[override]
        return self.verdict


class ReceptionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.queue = Queue()
        self.directory = make_directory(
            ["alice"],
            {"sales": "alice, carol@example.org", "broken": "nobody", "all": "people, alice"},
            lists=[
                make_list("team@example.test", ["carol@example.org"], members_only=True),
                make_list("people@example.test", ["carol@example.org", "alice@example.test"]),
                make_list("empty@example.test", []),
            ],
        )
        self.slow = Slow()
        checks = (
            RelayCheck(self.directory, [ip_network("198.51.100.0/24")]),
            RecipientCheck(self.directory),
            LoopCheck(2),
        )
        rules = Rules(hostname="mx.example.test", expire=100, checks=checks)
        intake = Intake(
            queue=self.queue,
            directory=self.directory,
            ids=iter("ABC").__next__,
            seconds=lambda: 1000.0,
        )
        self.reception = Reception(rules, intake, Authenticator())
        self.peer = Peer(address="192.0.2.1", port=1, helo="client.example.org", esmtp=True)

    def envelope(self, *recipients: str, sender: str = "bob@example.org") -> Envelope:
        return Envelope(Address.parse(sender), tuple(Recipient(Address.parse(text)) for text in recipients))

    def rcpt(self, text: str) -> str:
        address = Address("postmaster", "") if text == "postmaster" else Address.parse(text)
        return str(self.reception.rcpt(self.peer, self.envelope(), Recipient(address)))

    def test_recipients(self) -> None:
        self.assertEqual(self.rcpt("alice@example.test"), "250 2.1.5 Recipient OK")
        self.assertEqual(self.rcpt("Alice+news@EXAMPLE.test"), "250 2.1.5 Recipient OK")
        self.assertEqual(self.rcpt("postmaster"), "250 2.1.5 Recipient OK")
        self.assertIn("550 5.1.1", self.rcpt("nobody@example.test"))

    def test_members_only(self) -> None:
        team = Recipient(Address.parse("team@example.test"))
        for sender, code in (("carol@example.org", 250), ("bob@example.org", 550)):
            reply = self.reception.rcpt(self.peer, self.envelope(sender=sender), team)
            assert isinstance(reply, Reply)
            self.assertEqual(reply.code, code)

    def test_no_open_relay(self) -> None:
        self.assertIn("550 5.7.1", self.rcpt("carol@example.org"))
        self.peer.address = "198.51.100.7"
        self.assertIn("250", self.rcpt("carol@example.org"))
        self.peer.address = "2001:db8::1"
        self.assertIn("550 5.7.1", self.rcpt("carol@example.org"))
        self.peer.account = Account("alice@example.test", "/mail/alice")
        self.assertIn("250", self.rcpt("carol@example.org"))

    def test_accepted(self) -> None:
        sink = self.reception.message(self.peer, self.envelope("sales@example.test"))
        sink.write(b"Message-ID: <1@ex\x07ample.org>\r\nSubj")
        sink.write(b"ect: x\r\n\r\nbody\r\n")
        reply = self.successResultOf(Deferred.fromCoroutine(sink.finish()))
        self.assertEqual(str(reply), "250 2.0.0 Queued as A")
        (message,) = self.queue.messages
        self.assertEqual(
            [(str(r.address), r.transport) for r in message.recipients],
            [("alice@example.test", Transport.LOCAL), ("carol@example.org", Transport.SMTP)],
        )
        self.assertEqual(
            (message.arrived, message.expires, message.message_id), (1000.0, 1100.0, "1@ex?ample.org")
        )
        self.assertEqual(message.origin, "client.example.org [192.0.2.1]")
        self.assertTrue(
            message.prefix.startswith(
                b"Received: from client.example.org ([192.0.2.1])\r\n\tby mx.example.test"
            )
        )
        self.assertIn(b"with ESMTP id A\r\n\tfor <sales@example.test>;", message.prefix)
        self.assertFalse(self.queue.body.aborted)

    def test_recipients_stay_private(self) -> None:
        """RFC 5321 §7.2: several recipients are not named in the trace."""
        self.successResultOf(
            Deferred.fromCoroutine(
                self.reception.message(
                    self.peer, self.envelope("alice@example.test", "sales@example.test")
                ).finish()
            )
        )
        self.assertNotIn(b"for <", self.queue.messages[0].prefix)
        self.assertEqual(len(self.queue.messages[0].recipients), 2)

    def test_alias_to_nobody_becomes_a_bounce(self) -> None:
        self.successResultOf(
            Deferred.fromCoroutine(
                self.reception.message(self.peer, self.envelope("broken@example.test")).finish()
            )
        )
        (recipient,) = self.queue.messages[0].recipients
        self.assertEqual(
            (str(recipient.address), recipient.transport), ("nobody@example.test", Transport.REFUSE)
        )

    def finish(self, *chunks: bytes) -> str:
        sink = self.reception.message(self.peer, self.envelope("alice@example.test"))
        for chunk in chunks:
            sink.write(chunk)
        return str(self.successResultOf(Deferred.fromCoroutine(sink.finish())))

    def test_loop(self) -> None:
        self.assertIn(
            "554 5.4.6", self.finish(b"Received: a\r\nReceived: b\r\n", b"Received: c\r\n\r\nReceived: d\r\n")
        )
        self.assertTrue(self.queue.body.aborted)
        self.queue.body = Body()
        self.assertIn("250", self.finish(b"Received: a\r\nReceived: b\r\n\r\nReceived: in the body\r\n"))

    def test_full_disk(self) -> None:
        self.queue.error = StoreFull()
        self.assertEqual(self.finish(b"x\r\n"), "452 4.3.1 No room on the disk here, try again later")
        self.assertTrue(self.queue.body.aborted)

    def test_full_disk_while_writing(self) -> None:
        self.queue.body.error = StoreFull()
        self.assertIn("452 4.3.1", self.finish(b"x\r\n", b"y\r\n"))

    def test_what_is_refused_takes_no_room_until_its_end(self) -> None:
        sink = self.reception.message(self.peer, self.envelope("alice@example.test"))
        sink.write(b"x\r\n")
        self.queue.body.error = StoreFull()
        sink.write(b"y\r\n")
        self.assertTrue(self.queue.body.aborted)

    def test_no_room_for_what_is_announced(self) -> None:
        self.queue.room = 1000
        for size, code in ((0, 250), (1000, 250), (1001, 452)):
            envelope = attrs.evolve(self.envelope(), declared_size=size)
            reply = self.reception.mail(self.peer, envelope)
            assert isinstance(reply, Reply)
            self.assertEqual((reply.code, reply.status), (code, "2.1.0" if code == 250 else "4.3.1"))

    def test_full_disk_in_a_thread(self) -> None:
        self.queue.body.wait = Deferred()
        sink = self.reception.message(self.peer, self.envelope("alice@example.test"))
        pending = sink.write(b"x")
        assert pending is not None
        waiting = Deferred.fromCoroutine(pending)
        self.queue.body.wait.errback(StoreFull())
        self.successResultOf(waiting)
        self.assertIn("452", str(self.successResultOf(Deferred.fromCoroutine(sink.finish()))))

    def test_bug(self) -> None:
        self.queue.error = ZeroDivisionError()
        self.assertIn("451 4.3.0", self.finish(b"x\r\n"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_abort(self) -> None:
        self.reception.message(self.peer, self.envelope()).abort()
        self.assertTrue(self.queue.body.aborted)

    def test_late_verdicts_keep_the_order_of_checks(self) -> None:
        second, third = Slow(), Accepting()
        self.reception.rules = Rules(hostname="mx", expire=1, checks=(self.slow, third, second))
        result = Deferred.fromCoroutine(self.reception.mail(self.peer, self.envelope()))
        self.assertNoResult(result)
        self.slow.verdict.callback(None)
        self.assertNoResult(result)
        second.verdict.callback(Reply(550, "5.7.1", "no"))
        self.assertEqual(self.successResultOf(result), Reply(550, "5.7.1", "no"))

    def test_quick_answers_are_given_at_once(self) -> None:
        self.assertIsNone(self.reception.connected(self.peer))
        self.assertIsNone(self.reception.helo(self.peer))
        self.assertEqual(self.reception.mail(self.peer, self.envelope()), Reply(250, "2.1.0", "Sender OK"))

    def test_login(self) -> None:
        for password, good in ((b"secret", True), (b"wrong", False)):
            result = self.successResultOf(
                Deferred.fromCoroutine(self.reception.authenticate(self.peer, Credentials("alice", password)))
            )
            self.assertEqual(result is not None, good)

    def test_the_account_of_a_login(self) -> None:
        """The whole name, or that of the first domain; no detail, no alias."""
        for login in ("alice", "alice@example.test", "ALICE@example.test"):
            account = self.reception.account(login)
            assert account is not None
            self.assertEqual(account.name, "alice@example.test")
        for login in ("alice+x", "sales", "carol@example.org", "", "a b", "@"):
            self.assertIsNone(self.reception.account(login), login)

    def test_priority(self) -> None:
        """RFC 6710 §4.1: in Received, and in the log."""
        with capturedLogs() as logs:
            sink = self.reception.message(
                self.peer, attrs.evolve(self.envelope("alice@example.test"), priority=4)
            )
            self.successResultOf(Deferred.fromCoroutine(sink.finish()))
        self.assertIn(b"\tpriority 4;\r\n", self.queue.messages[0].prefix)
        self.assertEqual([event["priority"] for event in logs if "priority" in event], [4])

    def test_vrfy_and_expn(self) -> None:
        for argument, reply in (
            ("alice", "250 2.1.5 <alice@example.test>"),
            ("<alice@example.test>", "250 2.1.5 <alice@example.test>"),
            ("nobody", "550 5.1.1 there is no user nobody@example.test here"),
            ("a b", "553 5.1.3 Bad address: unexpected ' ' in the local part"),
        ):
            self.assertEqual(str(self.reception.verify(self.peer, argument)), reply)
        for argument, reply in (
            ("sales", "250 2.1.5 <alice@example.test> / <carol@example.org>"),
            ("people", "250 2.1.5 <carol@example.org> / <alice@example.test>"),
            ("all", "250 2.1.5 <carol@example.org> / <alice@example.test>"),
            ("empty", "250 2.1.5 <empty@example.test>"),
            ("nobody", "550 5.1.1 There is no list or user nobody@example.test here"),
            ("@", "553 5.1.3 Bad address: the local part is empty or has a character that must be quoted"),
        ):
            self.assertEqual(str(self.reception.expand(self.peer, argument)), reply)

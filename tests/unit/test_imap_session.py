"""The IMAP handler on a Session: flow, failing mailboxes, IDLE, threads, what is logged."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.imap_world import ALICE, Authenticator
from twisted_mta.core.imap.session import ImapSettings
from twisted_mta.interfaces import MailboxError, StoreFull
from twisted_mta.net.imap import BREATH_MESSAGES, LARGE, SEEN_BATCH, imap_session
from twisted_mta.net.session import SessionFactory
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.testing.mailboxes import MemoryMailboxes

MESSAGE = b"Subject: hello\r\n\r\nworld\r\n"


class SessionHelper(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.mailboxes = MemoryMailboxes()
        self.store = self.mailboxes.of(ALICE)
        self.knobs = self.store.knobs
        self.jobs: list[str] = []

    def run_job(self, function: Any, *args: Any) -> Deferred[Any]:
        self.jobs.append(function.__name__)
        return InlineWorkers().run(function, *args)

    def connect(self, login: bool = True) -> None:
        settings = ImapSettings(hostname="h", plaintext_login=True)
        self.session = imap_session(
            settings,
            self.mailboxes,
            Authenticator(),
            self.clock,
            self.run_job,
            peer="192.0.2.1",
        )
        self.factory = SessionFactory(lambda _: self.session, b"")
        self.session.factory = self.factory
        self.transport: Any = StringTransport()
        self.session.makeConnection(self.transport)
        self.transport.clear()
        if login:
            self.say(b"a LOGIN alice secret", b"b SELECT INBOX")

    def say(self, *lines: bytes) -> list[bytes]:
        """Send lines; the lines that come back."""
        self.transport.clear()
        self.session.dataReceived(b"".join(line + b"\r\n" for line in lines))
        out: bytes = self.transport.value()
        return out.split(b"\r\n")[:-1]

    def lose(self) -> None:
        from twisted.internet.error import ConnectionLost
        from twisted.python.failure import Failure

        self.session.connectionLost(Failure(ConnectionLost()))


class PaceTests(SessionHelper):
    """How long a client may take."""

    def dribble(self, octets: int, seconds: float) -> None:
        for _ in range(octets):
            self.clock.advance(seconds)
            self.session.dataReceived(b"x")

    def test_before_the_login(self) -> None:
        self.connect(login=False)
        for _ in range(3):
            self.dribble(5, 10)
            self.say(b"")
        self.dribble(5, 10)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(10)
        self.assertTrue(self.transport.disconnecting)

    def test_after_the_login(self) -> None:
        self.connect()
        self.dribble(2, 800)
        self.say(b" NOOP")
        self.clock.advance(1799)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(self.transport.disconnecting)

    def test_a_message(self) -> None:
        """It may take longer than a command, and not for ever."""
        self.connect()
        self.say(b"c APPEND INBOX {100000+}")
        self.dribble(35, 100)
        self.assertFalse(self.transport.disconnecting)
        self.dribble(1, 100)
        self.assertTrue(self.transport.disconnecting)


class FetchTests(SessionHelper):
    def test_large_messages_are_parsed_in_threads(self) -> None:
        self.store.deliver(MESSAGE)
        self.store.deliver(MESSAGE + b"x" * LARGE)
        self.connect()
        self.assertEqual(self.say(b"c FETCH 1:2 ENVELOPE")[-1], b"c OK that is all")
        self.assertEqual(self.jobs, ["render"])
        self.assertEqual(self.say(b"d SEARCH BODY world"), [b"* SEARCH 1 2", b"d OK that is all"])
        self.assertEqual(self.jobs, ["render", "matches_message"])

    def test_nothing_is_read_for_flags(self) -> None:
        self.store.deliver(MESSAGE)
        self.connect()
        self.say(b"c FETCH 1 (FLAGS UID)", b"d SEARCH SEEN SUBJECT x")
        self.assertNotIn("read", self.knobs.calls)

    def test_others_get_their_turn(self) -> None:
        for _ in range(BREATH_MESSAGES * 2 + 5):
            self.store.deliver(MESSAGE)
        self.connect()
        for command, end in (
            (b"FETCH 1:* BODY.PEEK[]", b"that is all"),
            (b"SEARCH BODY world", b"that is all"),
        ):
            self.knobs.calls.clear()
            self.say(b"c " + command)
            self.assertEqual(self.knobs.calls["read"], BREATH_MESSAGES)
            self.clock.advance(0)
            self.assertEqual(self.knobs.calls["read"], BREATH_MESSAGES * 2 + 5)
            self.assertTrue(self.transport.value().endswith(b"c OK " + end + b"\r\n"))

    def test_a_message_that_is_gone(self) -> None:
        self.store.deliver(MESSAGE)
        uid = self.store.deliver(MESSAGE)
        self.connect()
        self.store.vanish(uid)
        out = self.say(b"c FETCH 1:2 RFC822.HEADER")
        self.assertEqual(out[0], b"* 1 FETCH (RFC822.HEADER {18}")
        self.assertEqual(out[-1], b"c NO [EXPUNGEISSUED] some of the messages are gone")
        self.assertEqual(self.say(b"d SEARCH BODY world"), [b"* SEARCH 1", b"d OK that is all"])
        self.assertEqual(self.say(b"e NOOP"), [b"* 2 EXPUNGE", b"e OK done"])

    def test_seen_that_can_not_be_set_does_not_hide_the_message(self) -> None:
        self.store.deliver(MESSAGE)
        self.connect()
        self.knobs.errors["set_flags"] = StoreFull("no room")
        self.assertEqual(
            self.say(b"c FETCH 1 BODY[TEXT]"),
            [b"* 1 FETCH (BODY[TEXT] {7}", b"world", b")", b"c OK that is all"],
        )

    def test_one_message_is_not_multiplied(self) -> None:
        self.store.deliver(MESSAGE)
        self.store.deliver(MESSAGE + b"x" * 600000)
        self.connect()
        items = b" ".join(b"BODY.PEEK[]<%d.4000000000>" % n for n in range(9))
        out = self.say(b"c FETCH 1:2 (" + items + b")")
        self.assertTrue(out[0].startswith(b"* 1 FETCH"))
        self.assertEqual(out[-1], b"c NO [LIMIT] too many overlapping parts of one message")
        self.assertEqual(self.say(b"d NOOP"), [b"d OK done"])

    def test_the_flags_are_told_once(self) -> None:
        self.store.deliver(MESSAGE)
        self.connect()
        out = self.say(b"c FETCH 1 (FLAGS BODY[]<0.1>)")
        self.assertEqual(out[0], b"* 1 FETCH (FLAGS (\\Seen \\Recent) BODY[]<0> {1}")
        self.assertEqual(out[1], b"S)")

    def test_examine_leaves_no_trace(self) -> None:
        uid = self.store.deliver(MESSAGE)
        self.connect(login=False)
        self.say(b"a LOGIN alice secret", b"b EXAMINE INBOX", b"c FETCH 1 BODY[]", b"d CLOSE")
        self.assertNotIn("set_flags", self.knobs.calls)
        self.assertNotIn("expunge", self.knobs.calls)
        self.assertEqual(uid, 1)

    def test_a_bug_in_the_middle_is_a_no_and_the_session_goes_on(self) -> None:
        self.store.deliver(MESSAGE)
        self.connect()
        self.knobs.errors["read"] = ZeroDivisionError()
        self.assertEqual(
            self.say(b"c FETCH 1 BODY.PEEK[]"), [b"c NO [SERVERBUG] internal error, it was logged"]
        )
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.say(b"d NOOP"), [b"d OK done"])


class RefusalTests(SessionHelper):
    def test_what_the_store_says_reaches_the_client(self) -> None:
        self.store.deliver(MESSAGE)
        self.connect()
        for method, error, command, answer in (
            ("append", StoreFull("no room"), b"APPEND INBOX {3+}\r\nabc", b"NO [OVERQUOTA] no room"),
            ("append", StoreFull(), b"APPEND INBOX {3+}\r\nabc", b"NO [OVERQUOTA] there is no room"),
            ("copy", MailboxError("too many"), b"COPY 1 INBOX", b"NO [CANNOT] too many"),
            ("expunge", MailboxError("no"), b"EXPUNGE", b"NO [CANNOT] no"),
            ("set_flags", StoreFull("full"), b"STORE 1 FLAGS ()", b"NO [OVERQUOTA] full"),
        ):
            self.knobs.errors = {method: error}
            self.assertEqual(self.say(b"c " + command)[-1], b"c " + answer)

    def test_a_vanished_mailbox_ends_the_session(self) -> None:
        self.connect()
        self.knobs.errors["refresh"] = MailboxError("the mailbox is gone")
        self.assertEqual(self.say(b"c NOOP"), [b"* BYE [CANNOT] the mailbox is gone"])
        self.assertTrue(self.transport.disconnecting)


class IdleTests(SessionHelper):
    def test_new_mail_is_told_at_once(self) -> None:
        self.connect()
        self.assertEqual(self.say(b"c IDLE"), [b"+ idling"])
        self.transport.clear()
        uid = self.store.deliver(MESSAGE)
        self.assertEqual(self.transport.value(), b"* 1 EXISTS\r\n* 1 RECENT\r\n")
        self.transport.clear()
        self.store.change_flags(uid, ["\\Seen"])
        self.assertEqual(self.transport.value(), b"* 1 FETCH (FLAGS (\\Seen \\Recent))\r\n")
        self.transport.clear()
        self.store.vanish(uid)
        self.assertEqual(self.transport.value(), b"* 1 EXPUNGE\r\n")
        self.assertEqual(self.say(b"DONE"), [b"c OK no longer idle"])
        self.transport.clear()
        self.store.deliver(MESSAGE)
        self.assertEqual(self.transport.value(), b"")

    def test_news_while_the_disk_is_slow(self) -> None:
        self.connect()
        self.say(b"c IDLE")
        gate: Deferred[None] = Deferred()
        self.knobs.gates["refresh"] = gate
        self.transport.clear()
        self.store.deliver(MESSAGE)
        self.store.deliver(MESSAGE)
        self.session.dataReceived(b"DONE\r\n")
        self.assertEqual(self.transport.value(), b"")
        del self.knobs.gates["refresh"]
        gate.callback(None)
        self.assertEqual(self.transport.value(), b"* 2 EXISTS\r\n* 2 RECENT\r\nc OK no longer idle\r\n")

    def test_nobody_is_told_after_the_end(self) -> None:
        self.connect()
        self.say(b"c IDLE")
        self.lose()
        self.transport.clear()
        self.store.deliver(MESSAGE)
        self.assertEqual(self.transport.value(), b"")
        self.assertEqual(self.knobs.calls["close"], 1)

    def test_half_an_hour_of_silence(self) -> None:
        self.connect()
        self.say(b"c IDLE")
        self.transport.clear()
        self.clock.advance(1799)
        self.assertEqual(self.transport.value(), b"")
        self.clock.advance(1)
        self.assertEqual(self.transport.value(), b"* BYE you were silent for too long\r\n")


class LifeTests(SessionHelper):
    def test_a_stranger_has_a_minute(self) -> None:
        self.connect(login=False)
        self.clock.advance(60)
        self.assertEqual(self.transport.value(), b"* BYE you were silent for too long\r\n")

    def gate(self, method: str) -> Deferred[None]:
        gate = self.knobs.gates[method] = Deferred()
        return gate

    def test_a_client_that_leaves_while_its_mailbox_is_opened(self) -> None:
        self.connect(login=False)
        gate = self.gate("open")
        self.say(b"a LOGIN alice secret", b"b SELECT INBOX")
        self.lose()
        self.assertNotIn("close", self.knobs.calls)
        gate.callback(None)
        self.assertEqual(self.knobs.calls["close"], 1)

    def test_a_client_that_leaves_in_the_middle_of_a_long_answer(self) -> None:
        for _ in range(5):
            self.store.deliver(MESSAGE)
        for command in (b"FETCH 1:* BODY[]", b"SEARCH BODY nothing"):
            self.connect()
            self.knobs.calls.clear()
            gate = self.gate("read")
            self.say(b"c " + command)
            self.lose()
            self.assertEqual(self.knobs.calls["close"], 1)
            gate.callback(None)
            del self.knobs.gates["read"]
            self.assertEqual(self.knobs.calls["read"], 1, "no more is read for nobody")
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_client_that_leaves_between_batches(self) -> None:
        for _ in range(SEEN_BATCH + 10):
            self.store.deliver(MESSAGE)
        self.connect()
        self.say(b"c FETCH 1:* BODY[]")
        self.lose()
        self.knobs.calls.clear()
        self.clock.advance(0)
        self.assertNotIn("read", self.knobs.calls)
        self.assertNotIn("set_flags", self.knobs.calls)

    def test_a_client_that_leaves_in_the_middle_of_an_append(self) -> None:
        self.connect()
        self.say(b"c APPEND INBOX {10}", b"123")
        self.lose()
        self.assertNotIn("append", self.knobs.calls)

    def test_closing_that_fails_is_logged(self) -> None:
        self.connect()
        self.knobs.errors["close"] = OSError("disk")
        self.lose()
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_selecting_again_closes_what_was_open(self) -> None:
        self.connect()
        self.say(b"c SELECT INBOX")
        self.assertEqual(self.knobs.calls["close"], 1)
        self.say(b"d SELECT Missing", b"e LOGOUT")
        self.assertEqual(self.knobs.calls["close"], 2)

    def test_no_password_is_logged(self) -> None:
        events: list[str] = []
        globalLogPublisher.addObserver(observer := lambda event: events.append(repr(event)))
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.connect(login=False)
        self.say(
            b"a LOGIN alice sesame", b"b AUTHENTICATE PLAIN AGFsaWNlAHNlc2FtZQ==", b"c LOGIN alice secret"
        )
        text = "".join(events)
        self.assertIn("alice", text)
        for secret in ("sesame", "secret", "AGFsaWNl"):
            self.assertNotIn(secret, text)

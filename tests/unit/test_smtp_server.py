"""core.smtp: properties that transcripts can't show. The rest is in tests/dialogs/smtp_server."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any
from unittest import TestCase

from hypothesis import example, given
from hypothesis import strategies as st

from twisted_mta.core.effects import Ask, BodyChunk, Close, Effect, Send
from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl import Credentials
from twisted_mta.core.smtp import questions as q
from twisted_mta.core.smtp.body import Body
from twisted_mta.core.smtp.commands import MAX_LINE
from twisted_mta.core.smtp.data import ChunkReader, DataReader
from twisted_mta.core.smtp.lines import MAX_GARBAGE
from twisted_mta.core.smtp.server import SmtpServer
from twisted_mta.core.smtp.settings import BareNewlines, Role, ServerSettings

OK = Reply(250, "2.0.0", "OK")


def answer(question: Any) -> Any:
    match question:
        case q.MailFrom() | q.RcptTo() | q.Verify() | q.Expand():
            return OK
        case q.EndMessage(refusal):
            return refusal or OK
        case q.Authenticate():
            return True
        case q.ClientIs():
            return q.Standing(logged_in=False)
        case _:
            return None


class Run:
    """Drives a core and notes what a peer and a message sink would see."""

    def __init__(self, **settings: Any) -> None:
        self.core = SmtpServer(ServerSettings(hostname="mx", **settings))
        self.output = b""
        self.body = b""
        self.messages: list[bytes | None] = []
        self.closed = False
        self.perform(self.core.greet())

    def perform(self, effects: Iterable[Effect]) -> None:
        pending = list(effects)
        while pending:
            match pending.pop(0):
                case Send(data):
                    self.output += data
                case BodyChunk(data):
                    self.body += data
                case Ask(question):
                    if isinstance(question, q.DropMessage):
                        self.body = b""
                    if isinstance(question, q.EndMessage):
                        # What came of a refused message before the refusal depends on the split, and is forgotten.
                        self.messages.append(None if question.refusal else self.body)
                        self.body = b""
                    pending[:0] = self.core.answer(answer(question))
                case Close():
                    self.closed = True

    def feed(self, data: bytes, cuts: Iterable[int] = ()) -> Run:
        start = 0
        for cut in [*sorted(c % (len(data) + 1) for c in cuts), len(data)]:
            self.perform(self.core.receive(data[start:cut]))
            start = cut
        return self


COMMANDS = st.sampled_from(
    [
        b"EHLO client\r\n", b"HELO x\r\n", b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n", b"DATA\r\n", b"RSET\r\n", b"NOOP\r\n", b"VRFY x\n",
        b"hello\r\n..dot\r\n.\r\n", b".\r\n", b"\r\n.\r\n", b"\n.\n", b"\r.\r", b"\r\n", b"\r", b"\n", b".", b"\0", b"FOO\r\n", b"AUTH PLAIN\r\n",
        b"BDAT 5\r\nab\r\nc", b"BDAT 2 LAST\r\n\r\n", b"BDAT 0 LAST\r\n", b"BDAT 7\r\nRSET\r\n.", b"BDAT x\r\n", b"EXPN x\r\n",
        b"STARTTLS\r\n", b"x" * 300, b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n", b"QUIT\r\n",
    ]
)  # fmt: skip


TEXT = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"\0", b"a", b"."]), max_size=12).map(b"".join)
CUTS = st.lists(st.integers(0, 12), max_size=4)


class SplitTests(TestCase):
    @given(st.lists(COMMANDS, max_size=14).map(b"".join), st.lists(st.integers(0, 5000), max_size=12))
    @example(b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n.\r\nDATA\r\n", range(60))
    def test_every_split_is_the_same(self, data: bytes, cuts: list[int]) -> None:
        mending = {"size_limit": 30, "bare_newlines": BareNewlines.NORMALISE}
        for settings in ({}, {"size_limit": 10, "error_limit": 3}, mending):
            whole, split, bytewise = (Run(**settings).feed(data, by) for by in ((), cuts, range(len(data))))
            for other in (split, bytewise):
                self.assertEqual(other.output, whole.output)
                self.assertEqual(other.messages, whole.messages)
                self.assertEqual(other.closed, whole.closed)

    @given(st.binary(max_size=300))
    def test_garbage_only_gets_replies(self, data: bytes) -> None:
        run = Run(error_limit=1000).feed(data)
        for line in run.output.splitlines():
            self.assertRegex(line, rb"^[2-5][0-9][0-9][ -]")


class DataReaderTests(TestCase):
    @given(
        st.lists(st.sampled_from([b".", b"\r\n", b"a", b"..", b"\r\n."]), max_size=20).map(b"".join),
        st.integers(1, 100),
    )
    def test_stuffed_text_comes_out_as_it_was(self, text: bytes, step: int) -> None:
        text = text if not text or text.endswith(b"\r\n") else text + b"\r\n"
        stuffed = (b"\r\n" + text).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"
        reader = DataReader()
        out, rest = b"", b""
        for start in range(0, len(stuffed), step):
            piece, rest = reader.feed(stuffed[start : start + step])
            out += piece
        self.assertEqual((out, rest, reader.done), (text, b"", True))

    def test_what_follows_the_end(self) -> None:
        for text in (b"", b"a\r\n", b".\r\na\r\n"):
            stuffed = (b"\r\n" + text).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"
            self.assertEqual(DataReader().feed(stuffed + b"QUIT\r\n..\r\n"), (text, b"QUIT\r\n..\r\n"))

    def test_terminators(self) -> None:
        """Only CRLF . CRLF ends a message: each other spelling is body, and the message is refused."""
        for wrong in [
            b"\n.\n",
            b"\n.\r\n",
            b"\r\n.\n",
            b"\r.\r",
            b"\r.\r\n",
            b"\r\n.\r",
            b"\r\n\0.\r\n",
            b"\n\r.\n\r",
            b"\r\r\n.\n",
        ]:
            for step in (1, 1000):
                with self.subTest(wrong=wrong, step=step):
                    body = Body(DataReader(), 1000, BareNewlines.REFUSE)
                    stream = b"text" + wrong + b"MAIL FROM:<evil@example.org>\r\n"
                    for start in range(0, len(stream), step):
                        body.feed(stream[start : start + step])
                    self.assertFalse(body.done)
                    self.assertIn("stands alone", str(body.refusal))
                    self.assertEqual(body.feed(b".\r\nNOOP\r\n")[1], b"NOOP\r\n")
                    self.assertTrue(body.done)


class BodyTests(TestCase):
    """In the chunks of BDAT, where a text is cut anywhere."""

    def play(self, text: bytes, cuts: list[int], bare: BareNewlines | None, limit: int = 1000) -> Body:
        """What it gives out is in `self.out`."""
        places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
        reader = ChunkReader()
        body = Body(reader, limit, bare)
        self.out = b""
        for start, end in itertools.pairwise(places):
            reader.begin(end - start, end == len(text))
            piece, rest = body.feed(text[start:end] + b"NOOP")
            self.out += piece
            self.assertEqual((rest, body.done), (b"NOOP", True))
        self.out += body.end()
        self.assertEqual(body.size, len(text))
        return body

    @given(TEXT, CUTS)
    @example(b"a\r\n\0b", [1, 2, 3])
    @example(b"\0a", [])
    def test_judged_like_the_whole(self, text: bytes, cuts: list[int]) -> None:
        body = self.play(text, cuts, BareNewlines.REFUSE)
        lines = text.replace(b"\r\n", b"")
        if b"\n" in lines or b"\r" in lines or b"\r\n\0" in b"\r\n" + text:
            self.assertIn("stands alone", str(body.refusal))
        elif text and not text.endswith(b"\r\n"):
            self.assertIn("does not end", str(body.refusal))
        else:
            self.assertEqual((self.out, body.refusal), (text, None))

    @given(TEXT, CUTS)
    @example(b"a\n\0b", [2])
    def test_mended_like_the_whole(self, text: bytes, cuts: list[int]) -> None:
        body = self.play(text, cuts, BareNewlines.NORMALISE)
        lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removesuffix(b"\n").split(b"\n")
        if any(line.startswith(b"\0") for line in lines):
            self.assertEqual(str(body.refusal), "554 5.6.0 Message has a NUL in front of a line")
        else:
            mended = b"".join(line + b"\r\n" for line in lines) if text else b""
            self.assertEqual((self.out, body.refusal), (mended, None))

    @given(TEXT, CUTS)
    def test_binary_as_it_is(self, text: bytes, cuts: list[int]) -> None:
        body = self.play(text, cuts, None)
        self.assertEqual((self.out, body.refusal), (text, None))

    def test_mending_can_make_it_too_big(self) -> None:
        self.assertIsNone(self.play(b"\n" * 5, [], BareNewlines.NORMALISE, 10).refusal)
        self.assertIn("bigger", str(self.play(b"\n" * 6, [], BareNewlines.NORMALISE, 10).refusal))
        self.assertEqual(self.out, b"")


class BoundTests(TestCase):
    def test_line_without_end(self) -> None:
        run = Run()
        for _ in range(MAX_GARBAGE // MAX_LINE + 2):
            run.feed(b"x" * MAX_LINE)
        self.assertIn(b"421 4.7.0", run.output)
        self.assertTrue(run.closed)

    def test_long_line(self) -> None:
        run = Run().feed(b"NOOP " + b"x" * MAX_LINE + b"\r\nNOOP\r\n")
        self.assertIn(b"500 5.5.2", run.output)
        self.assertTrue(run.output.endswith(b"250 2.0.0 OK\r\n"))

    def test_long_line_ends_a_sasl_exchange(self) -> None:
        run = Run(role=Role.SUBMISSION)
        run.core.secured()
        run.feed(b"EHLO x\r\nAUTH PLAIN\r\n" + b"x" * (MAX_LINE + 9) + b"\r\nNOOP\r\n")
        said = b"500 5.5.6 Line longer than 12288 octets\r\n250 2.0.0 OK\r\n"  # RFC 4954 §4
        self.assertTrue(run.output.endswith(said), run.output)

    def test_endless_message(self) -> None:
        run = Run(size_limit=1000).feed(b"HELO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
        for _ in range(MAX_GARBAGE // 50000 + 2):
            run.feed(b"x" * 50000)
        self.assertIn(b"421 4.3.4", run.output)
        self.assertTrue(run.closed)
        self.assertEqual(run.messages, [])

    def test_long_host_name(self) -> None:
        self.assertIn(b"501 5.5.4", Run().feed(b"EHLO " + b"x" * 256 + b"\r\n").output)


class OffersTests(TestCase):
    def offers(self, settings: ServerSettings, *, tls: bool = False, now: float = 0.0) -> bytes:
        core = SmtpServer(settings, lambda: now)
        if tls:
            core.secured()
        core.greet()
        core.answer(None)
        core.receive(b"EHLO client\r\n")
        [said] = core.answer(None)
        assert isinstance(said, Send)
        return said.data

    def test_sessions_with_the_same_settings_are_offered_what_is_theirs(self) -> None:
        """It is remembered what was offered, but not for those that are different."""
        settings = ServerSettings(hostname="mx", tls_available=True)
        first = self.offers(settings)
        self.assertIn(b"STARTTLS", first)
        secured = self.offers(settings, tls=True)
        self.assertNotIn(b"STARTTLS", secured)
        self.assertIn(b"REQUIRETLS", secured)
        self.assertEqual(self.offers(settings), first)

    def test_how_long_a_message_can_be_held_is_told_anew(self) -> None:
        settings = ServerSettings(hostname="mx", role=Role.SUBMISSION, hold_limit=60)
        self.assertIn(b"FUTURERELEASE 60 1970-01-01T00:01:00Z", self.offers(settings))
        self.assertIn(b"FUTURERELEASE 60 1970-01-01T00:02:00Z", self.offers(settings, now=60.0))
        self.assertIn(b"FUTURERELEASE 60 1970-01-01T00:02:00Z", self.offers(settings, now=60.9))


class SurfaceTests(TestCase):
    def test_refused_connection(self) -> None:
        core = SmtpServer(ServerSettings(hostname="mx"))
        core.greet()
        self.assertEqual(
            core.answer(Reply(554, "5.7.1", "Go away")), [Send(b"554 5.7.1 Go away\r\n"), Close()]
        )

    def test_faults(self) -> None:
        """A bug of ours is a 451 and never the end of the session."""
        core = SmtpServer(ServerSettings(hostname="mx"))
        core.greet()
        core.answer(None)
        core.receive(b"HELO x\r\n")
        self.assertEqual(core.fault()[0], Send(b"451 4.3.0 Something went wrong here; try again later\r\n"))
        core.receive(b"HELO x\r\n")
        core.answer(None)
        core.receive(b"MAIL FROM:<a@b>\r\n")
        core.answer(OK)
        core.receive(b"RCPT TO:<a@b>\r\nDATA\r\n.\r\nNOOP\r\n")
        core.answer(OK)
        core.answer(None)
        self.assertEqual([type(e) for e in core.fault()], [Send, Send])
        self.assertIn(b"503", core.receive(b"RCPT TO:<a@b>\r\n")[0].data)  # type: ignore[union-attr]
        with self.assertRaises(RuntimeError):
            core.fault()
        with self.assertRaises(RuntimeError):
            core.answer(None)

    def test_fault_before_a_chunk(self) -> None:
        """Its octets are read all the same: they are no commands."""
        core = SmtpServer(ServerSettings(hostname="mx"))
        core.greet()
        core.answer(None)
        core.receive(b"EHLO x\r\n")
        core.answer(None)
        core.receive(b"MAIL FROM:<a@b>\r\n")
        core.answer(OK)
        core.receive(b"RCPT TO:<a@b>\r\n")
        core.answer(OK)
        core.receive(b"BDAT 12 LAST\r\nQUIT\r\n")
        self.assertEqual(core.fault(), [])
        self.assertEqual([type(effect) for effect in core.receive(b"QUIT\r\nNOOP\r\n")], [Send, Send])

    def test_a_fault_while_a_message_is_dropped_ends_the_transaction(self) -> None:
        """Found by tests.fuzz.smtp_server: the next chunk was taken for a message that nobody had any more."""
        core = SmtpServer(ServerSettings(hostname="mx"))
        core.greet()
        core.answer(None)
        core.receive(b"EHLO x\r\n")
        core.answer(None)
        core.receive(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n")
        core.answer(OK)
        core.answer(OK)
        core.receive(b"BDAT 3\r\na\r\n")
        core.answer(None)
        self.assertEqual(core.receive(b"RSET\r\nBDAT 3 LAST\r\nb\r\n"), [Ask(q.DropMessage())])
        self.assertEqual(
            core.fault(),
            [
                Send(b"451 4.3.0 Something went wrong here; try again later\r\n"),
                Send(b"503 5.5.1 Send MAIL and RCPT first\r\n"),
            ],
        )

    def test_fault_while_logging_in(self) -> None:
        core = SmtpServer(ServerSettings(hostname="mx", role=Role.SUBMISSION))
        core.secured()
        core.greet()
        core.answer(None)
        core.receive(b"EHLO x\r\n")
        core.answer(None)
        (ask,) = core.receive(b"AUTH PLAIN AGEAYg==\r\n")
        self.assertEqual(ask, Ask(q.Authenticate("PLAIN", Credentials("a", b"b"))))
        self.assertNotIn("b'b'", repr(ask))
        core.fault()
        self.assertIn(b"530", core.receive(b"MAIL FROM:<a@b>\r\n")[0].data)  # type: ignore[union-attr]

    def test_shutdown_while_a_question_is_open(self) -> None:
        """The answer still goes out, in front of the 421, and no further command is looked at."""
        core = SmtpServer(ServerSettings(hostname="mx"))
        core.greet()
        core.answer(None)
        core.receive(b"HELO x\r\nMAIL FROM:<a@b>\r\n")
        later = core.shut_down()
        self.assertEqual([type(e) for e in later], [Send, Close])
        self.assertEqual([type(e) for e in core.answer(None)], [Send])
        self.assertEqual(core.receive(b"NOOP\r\n"), [])


_MESSAGE = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\r\n.\r\n"


class IdleTests(TestCase):
    """Commands that bring no message forward. A transcript shows how the session ends."""

    def test_each_such_command_counts(self) -> None:
        hello = b"EHLO c\r\n"
        for command in (
            b"NOOP",
            b"RSET",
            b"HELP",
            b"VRFY x",
            b"EXPN x",
            b"HELO c",
            b"EHLO c",
            b"STARTTLS",
            b"AUTH",
        ):
            run = Run(error_limit=1000).feed(hello + (command + b"\r\n") * 199)
            self.assertFalse(run.closed, command)
            run.feed(command + b"\r\n")
            self.assertTrue(run.closed, command)
            self.assertIn(b"421 4.7.0 mx Too many commands without a message", run.output)
        run = Run(role=Role.LMTP).feed(b"LHLO c\r\n" * 201)
        self.assertTrue(run.closed)

    def test_wrong_commands_end_a_session_by_their_own_limit_only(self) -> None:
        run = Run(error_limit=500, idle_limit=20).feed(b"FOO\r\nDATA\r\nRCPT TO:<a@b>\r\n" * 100)
        self.assertFalse(run.closed)

    def test_a_relay_that_keeps_its_connection_is_never_cut_off(self) -> None:
        run = Run().feed(b"EHLO c\r\n")
        for _ in range(300):
            run.feed(b"RSET\r\nNOOP\r\n" * 20 + _MESSAGE)
            run.feed(b"NOOP\r\n" * 20 + b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 3 LAST\r\nx\r\n")
        self.assertFalse(run.closed)
        self.assertEqual(len(run.messages), 600)

    def test_a_message_that_is_refused_counts_as_one(self) -> None:
        run = Run(size_limit=1, idle_limit=20).feed(b"EHLO c\r\n" + (b"NOOP\r\n" * 15 + _MESSAGE) * 9)
        self.assertFalse(run.closed)
        self.assertEqual(run.messages, [None] * 9)

    def test_another_client_by_xclient_begins_anew(self) -> None:
        run = Run(idle_limit=20, xclient=True)
        for number in range(50):
            run.feed(b"EHLO c\r\nXCLIENT ADDR=192.0.2.%d\r\n" % number)
        self.assertFalse(run.closed)
        run.feed(b"NOOP\r\n" * 21)
        self.assertTrue(run.closed)

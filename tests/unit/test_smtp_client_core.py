"""Tests for twisted_mta.core.smtp.client that a transcript can't show; see tests/dialogs/smtp_client."""

from __future__ import annotations

import unittest

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core.address import Address
from twisted_mta.core.effects import Close, Send
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp.client import (
    ClientEffect,
    Login,
    ReadyForBody,
    SendText,
    SessionFailed,
    SmtpClient,
    State,
    Timeouts,
    TlsUse,
    TransactionDone,
)
from twisted_mta.core.smtp.reply_parser import MAX_LINE
from twisted_mta.core.smtp.transaction import (
    Transaction,
    mail_command,
    parse_extensions,
    rcpt_command,
    size_limit,
)
from twisted_mta.core.smtp.whole import MAX_WHOLE, Whole

BOB = Recipient(Address("bob", "example.org"))
MESSAGE = Transaction(sender=None, recipients=(BOB, BOB), size=1)

_REPLIES = st.sampled_from(
    [
        b"220 hi\r\n",
        b"250 ok\r\n",
        b"250-mx\r\n250-PIPELINING\r\n250 STARTTLS\r\n",
        b"250-mx\r\n250 PIPELINING\r\n",
        b"354 go\r\n",
        b"450 4.2.1 later\r\n",
        b"550 no\r\n",
        b"421 bye\r\n",
        b"junk\r\n",
        b"250-",
        b"\xff\r\n",
    ]
)


def play(data: bytes, sizes: list[int], start: bool) -> list[ClientEffect]:
    """Give a client octets in pieces of the given sizes, from the greeting on or after a transaction was started."""
    client = SmtpClient("me.example.net")
    effects: list[ClientEffect] = []
    if start:
        client.receive(b"220 mx\r\n250-mx\r\n250 PIPELINING\r\n")
        effects += client.start(MESSAGE)
    position = 0
    for size in [*sizes, len(data)]:
        effects += client.receive(data[position : position + size])
        position += size
    return effects


class SplitTests(unittest.TestCase):
    @settings(max_examples=100)
    @given(
        st.lists(_REPLIES, max_size=9).map(b"".join), st.lists(st.integers(1, 20), max_size=8), st.booleans()
    )
    def test_any_split_gives_the_same_effects(self, data: bytes, sizes: list[int], start: bool) -> None:
        self.assertEqual(play(data, sizes, start), play(data, [], start))

    @settings(max_examples=100)
    @given(st.lists(_REPLIES, max_size=9).map(b"".join), st.booleans())
    def test_a_session_ends_once_and_its_transaction_before_it(self, data: bytes, start: bool) -> None:
        effects = play(data, [], start)
        self.assertLessEqual(sum(isinstance(effect, Close) for effect in effects), 1)
        done = [effect for effect in effects if isinstance(effect, TransactionDone)]
        if any(isinstance(effect, SessionFailed) for effect in effects):
            self.assertIsInstance(effects[-1], Close)
            self.assertEqual(len(done), start)
        for one in done:
            self.assertEqual(len(one.replies), 2)
            self.assertFalse(any(reply.positive for reply in one.replies))  # no message was ever sent


class ClientTests(unittest.TestCase):
    def ready(self, ehlo: bytes = b"250 mx\r\n") -> SmtpClient:
        client = SmtpClient("me.example.net")
        client.receive(b"220 mx\r\n" + ehlo)
        return client

    def test_timeouts(self) -> None:
        """RFC 5321 §4.5.3.2"""
        client = SmtpClient("me")
        seen = [(client.state, client.timeout)]

        def step(data: bytes) -> None:
            client.receive(data)
            seen.append((client.state, client.timeout))

        step(b"220 mx\r\n")
        step(b"250 mx\r\n")
        client.start(Transaction(sender=None, recipients=(BOB,), size=1))
        for data in (b"", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            step(data)
        client.end_body()
        step(b"")
        self.assertEqual(
            seen,
            [
                (State.GREETING, 300),
                (State.EHLO, 300),
                (State.IDLE, None),
                (State.MAIL, 300),
                (State.RCPT, 300),
                (State.DATA, 120),
                (State.BODY, 180),
                (State.FINAL, 600),
            ],
        )

    def test_timeouts_as_set(self) -> None:
        client = SmtpClient("me", timeouts=Timeouts(greeting=1, command=2, data=3, block=4, final=5, quit=6))
        seen = [client.timeout]
        client.receive(b"220 mx\r\n250 mx\r\n")
        client.start(Transaction(sender=None, recipients=(BOB,), size=1))
        for data in (b"", b"250 ok\r\n250 ok\r\n", b"354 go\r\n"):
            client.receive(data)
            seen.append(client.timeout)
        client.end_body()
        seen.append(client.timeout)
        client.receive(b"250 ok\r\n")
        client.quit()
        seen.append(client.timeout)
        self.assertEqual(seen, [1, 2, 3, 4, 5, 6])

    def test_a_whole_message_leaves_with_the_commands_in_one_write(self) -> None:
        client = self.ready(b"250-mx\r\n250-CHUNKING\r\n250 PIPELINING\r\n")
        commands, chunk, text = client.start(MESSAGE, Whole(b"bare\n.end"))
        self.assertIsInstance(commands, Send)
        self.assertEqual((chunk, text), (Send(b"BDAT 12 LAST\r\n"), SendText(b"bare\r\n.end\r\n")))

    def test_an_empty_message(self) -> None:
        client = self.ready(b"250-mx\r\n250-CHUNKING\r\n250 PIPELINING\r\n")
        self.assertEqual(list(client.start(MESSAGE, Whole(b"")))[1:], [Send(b"BDAT 0 LAST\r\n")])

    def test_a_large_one_waits_until_a_recipient_is_accepted(self) -> None:
        client = self.ready(b"250-mx\r\n250-CHUNKING\r\n250 PIPELINING\r\n")
        (commands,) = client.start(attrs.evolve(MESSAGE, size=MAX_WHOLE + 1), Whole(b"x\r\n"))
        self.assertIsInstance(commands, Send)
        self.assertEqual(
            list(client.receive(b"250 ok\r\n250 ok\r\n550 no\r\n")),
            [Send(b"BDAT 3 LAST\r\n"), SendText(b"x\r\n")],
        )

    def test_the_mechanism_of_the_login(self) -> None:
        client = SmtpClient("me", login=Login("me", "secret"))
        self.assertEqual(client.mechanism, "")
        client.secured()
        client.receive(b"220 mx\r\n250-mx\r\n250 AUTH SCRAM-SHA-256 PLAIN\r\n")
        self.assertEqual(client.mechanism, "PLAIN")  # without nonces there is no SCRAM

    def test_start_only_when_idle_and_for_somebody(self) -> None:
        with self.assertRaises(RuntimeError):
            SmtpClient("me").start(MESSAGE)
        with self.assertRaises(RuntimeError):
            self.ready().start(Transaction(sender=None, recipients=(), size=1))

    def test_pipelined_group_leaves_in_one_write(self) -> None:
        client = self.ready(b"250-mx\r\n250 PIPELINING\r\n")
        sent = list(client.start(MESSAGE))
        self.assertEqual(len(sent), 1)

    def test_reply_line_without_end(self) -> None:
        client = self.ready()
        effects = list(client.receive(b"250 " + b"x" * MAX_LINE))
        self.assertEqual(
            effects, [SessionFailed(State.IDLE, Reply(451, "4.5.0", "a reply line is too long")), Close()]
        )

    def test_a_peer_that_is_not_trusted_hears_nothing_more(self) -> None:
        client = SmtpClient("me", tls=TlsUse.REQUIRED)
        client.receive(b"220 mx\r\n250-mx\r\n250 STARTTLS\r\n220 go\r\n")
        self.assertIs(client.state, State.HANDSHAKE)
        reply = Reply(451, "4.7.5", "TLS: expired")
        self.assertEqual(list(client.distrusted(reply)), [SessionFailed(State.HANDSHAKE, reply), Close()])
        self.assertEqual(list(client.distrusted(reply)), [])

    def test_body_outside_its_time_goes_nowhere(self) -> None:
        client = self.ready()
        self.assertEqual(
            [*client.body(b"x"), *client.end_body(), *client.secured(), *client.derived(b"x")], []
        )
        client.start(Transaction(sender=None, recipients=(BOB,), size=1))
        self.assertEqual([*client.body(b"x"), *client.end_body()], [])

    def test_half_a_line_end_is_held_back(self) -> None:
        client = self.ready()
        client.start(Transaction(sender=None, recipients=(BOB,), size=1))
        effects = client.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
        self.assertEqual(effects[-1], ReadyForBody())
        self.assertEqual([*client.body(b"\r"), *client.body(b"\n.\r\n")], [SendText(b"\r\n..\r\n")])

    def test_the_password_is_not_in_the_repr(self) -> None:
        self.assertNotIn("secret", repr(Login("me", "secret")))

    def test_why_the_connection_went(self) -> None:
        effects = SmtpClient("me").connection_lost("reset by peer")
        expected = "lost the connection, waiting for greeting (reset by peer)"
        self.assertEqual(effects[0], SessionFailed(State.GREETING, Reply(451, "4.4.2", expected)))


class CommandTests(unittest.TestCase):
    def test_no_control_character_gets_into_a_command(self) -> None:
        with self.assertRaises(ValueError):
            rcpt_command(Recipient(Address('a"\r\nDATA', "x.test")), {})

    def test_dsn_parameters_that_were_not_given(self) -> None:
        self.assertEqual(mail_command(MESSAGE, {"DSN": ""}), b"MAIL FROM:<>\r\n")

    def test_extensions(self) -> None:
        answer = Reply(250, "", "mx SIZE 1\nsize 99\n\nAuth=LOGIN\nAUTH plain\nDSN")
        found = parse_extensions(answer)
        self.assertEqual(found, {"SIZE": "99", "AUTH": "LOGIN PLAIN", "DSN": ""})
        self.assertEqual(size_limit(found), 99)

    def test_sizes_that_are_none(self) -> None:
        for value in ("", "x", "-1", "9" * 21, "²"):
            self.assertEqual(size_limit({"SIZE": value}), 0)

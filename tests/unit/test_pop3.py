"""core.pop3: framing, parts and the order of things; the dialogs are in tests/dialogs/pop3."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.effects import Ask, Close, Effect, Send, StartTLS
from twisted_mta.core.pop3.maildrop import top
from twisted_mta.core.pop3.questions import Drop, Listing, Login, Refusal, Retrieve
from twisted_mta.core.pop3.server import MAX_GARBAGE, MAX_RESPONSE, Pop3Server, Pop3Settings
from twisted_mta.core.sasl import Credentials

COMMANDS = [
    b"USER alice\r\n",
    b"PASS secret\r\n",
    b"STAT\n",
    b"LIST\r\n",
    b"RETR 1\r\n",
    b"TOP 1 1\r\n",
    b"DELE 2\r\n",
    b"AUTH PLAIN\r\n",
    b"AGFsaWNlAHNlY3JldA==\r\n",
    b"NOOP " + b"x" * 300 + b"\r\n",
    b"\r\r\n",
    b"STLS\r\n",
    b"QUIT\r\n",
]
DROPS = [Drop(1, 10, "a"), Drop(2, 20, "b")]
MESSAGE = b"A: b\r\n\r\n.c\r\n.\r\n"


def answer(question: Any) -> Any:
    match question:
        case Login():
            return DROPS
        case Retrieve():
            return MESSAGE
        case Listing(octets):
            return octets
        case _:
            return None


def new(tls: bool = True, **changes: Any) -> Pop3Server:
    core = Pop3Server(Pop3Settings(hostname="mx.example.test", **changes))
    if tls:
        core.secured()
    return core


def logged_in() -> Pop3Server:
    core = new()
    core.receive(b"USER alice\r\nPASS secret\r\n")
    core.answer(DROPS)
    return core


def sent(effects: Sequence[Effect]) -> bytes:
    return b"".join(effect.data for effect in effects if isinstance(effect, Send))


def flat(core: Pop3Server, pieces: Sequence[bytes]) -> list[Any]:
    """All effects of these pieces, neighbouring Sends joined."""
    result: list[Any] = []
    for piece in pieces:
        pending = list(core.receive(piece))
        while pending:
            effect = pending.pop(0)
            if isinstance(effect, Ask):
                pending[:0] = core.answer(answer(effect.question))
            if isinstance(effect, Send) and result and isinstance(result[-1], Send):
                result[-1] = Send(result[-1].data + effect.data)
            else:
                result.append(effect)
    return result


class SplitTests(SynchronousTestCase):
    @settings(max_examples=150)
    @given(
        st.lists(st.sampled_from(COMMANDS), max_size=8),
        st.lists(st.integers(0, 700), max_size=8),
        st.booleans(),
        st.integers(0, 4),
    )
    def test_any_split_gives_the_same_effects(
        self, commands: list[bytes], cuts: list[int], tls: bool, errors: int
    ) -> None:
        data = b"".join(commands)
        edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
        pieces = [data[start:end] for start, end in pairwise(edges)]
        whole = flat(new(tls, tls_available=True, error_limit=errors), [data])
        self.assertEqual(flat(new(tls, tls_available=True, error_limit=errors), pieces), whole)

    @settings(max_examples=150)
    @given(st.lists(st.sampled_from([b".", b"\r\n", b"x", b"\r", b""]), max_size=12), st.data())
    def test_dots_are_doubled_wherever_a_message_is_cut(
        self, atoms: list[bytes], data: st.DataObject
    ) -> None:
        message = b"".join(atoms)
        cut = data.draw(st.integers(0, len(message)))
        core = logged_in()
        core.receive(b"RETR 1\r\n")
        output = sent(core.answer(message[:cut], more=True)) + sent(core.answer(message[cut:]))
        title, _, rest = output.partition(b"\r\n")
        self.assertEqual(title, b"+OK 10 octets")
        self.assertTrue(("\r\n" + rest.decode()).endswith("\r\n.\r\n"))
        body = rest[: -len(b".\r\n")]
        self.assertNotIn(b"\r\n.\r\n", b"\r\n" + body)
        undone = (b"\r\n" + body).replace(b"\r\n.", b"\r\n")[2:]
        self.assertEqual(undone, message if message.endswith(b"\r\n") or not message else message + b"\r\n")


class TopTests(SynchronousTestCase):
    def test_lines(self) -> None:
        message = b"A: b\r\n\r\none\r\ntwo\r\nthree"
        self.assertEqual(top(message, 0), b"A: b\r\n\r\n")
        self.assertEqual(top(message, 2), b"A: b\r\n\r\none\r\ntwo\r\n")
        self.assertEqual(top(message, 3), message)
        self.assertEqual(top(message, 10**9), message)
        self.assertEqual(top(b"no body", 5), b"no body")


class CoreTests(SynchronousTestCase):
    def test_input_waits_for_the_answer(self) -> None:
        core = new()
        core.receive(b"USER alice\r\nPASS secret\r\n")
        self.assertEqual(core.receive(b"STAT\r\n"), [])
        self.assertEqual(
            sent(core.answer(DROPS)), b"+OK 2 messages (30 octets) in the maildrop\r\n+OK 2 30\r\n"
        )

    def test_the_password_is_not_shown(self) -> None:
        self.assertNotIn("secret", repr(Login(Credentials("alice", b"secret"))))

    def test_answers_without_a_question_are_bugs(self) -> None:
        self.assertRaises(RuntimeError, new().answer, None)
        self.assertRaises(RuntimeError, new().fault)

    def test_a_fault_is_told_and_the_session_goes_on(self) -> None:
        core = new()
        core.receive(b"USER alice\r\nPASS secret\r\nNOOP\r\n")
        self.assertEqual(
            sent(core.fault()),
            b"-ERR [SYS/TEMP] Something went wrong here; try again later\r\n-ERR Log in first\r\n",
        )
        core.receive(b"AUTH PLAIN\r\nAGFsaWNlAHNlY3JldA==\r\n")
        core.fault()
        self.assertEqual(sent(core.receive(b"USER alice\r\n")), b"+OK Send the password\r\n")

    def test_a_fault_amid_a_message_ends_the_connection(self) -> None:
        core = logged_in()
        core.receive(b"RETR 1\r\n")
        core.answer(b"half", more=True)
        self.assertEqual(core.fault(), [Close()])
        self.assertEqual(core.receive(b"NOOP\r\n"), [])

    def test_a_pipeline_of_lists_is_answered_one_by_one(self) -> None:
        core = logged_in()
        (ask,) = core.receive(b"LIST\r\n" * 1000)
        assert isinstance(ask, Ask)
        self.assertEqual(core.receive(b"LIST\r\n" * 1000), [])
        answered = core.answer(ask.question.octets)
        self.assertEqual(sent(answered), b"+OK 2 messages (30 octets)\r\n1 10\r\n2 20\r\n.\r\n")
        self.assertIsInstance(answered[-1], Ask)
        self.assertEqual(len(answered), 2)

    def test_a_fault_in_update_ends_the_session(self) -> None:
        core = logged_in()
        core.receive(b"DELE 1\r\nQUIT\r\n")
        effects = core.fault()
        self.assertTrue(sent(effects).startswith(b"-ERR [SYS/TEMP]"))
        self.assertEqual(effects[-1], Close())

    def test_shutdown_waits_for_the_open_question(self) -> None:
        core = logged_in()
        core.receive(b"RETR 1\r\nNOOP\r\n")
        down = core.shut_down()
        self.assertEqual(down[-1], Close())
        self.assertEqual(
            [*core.answer(b"x", more=True), *core.answer(b"y")],
            [Send(b"+OK 10 octets\r\nx"), Send(b"y\r\n.\r\n")],
        )
        self.assertEqual(core.receive(b"NOOP\r\n"), [])

    def test_the_refusal_of_a_message_leaves_the_session_usable(self) -> None:
        core = logged_in()
        core.receive(b"RETR 1\r\n")
        self.assertEqual(sent(core.answer(Refusal("", "gone"))), b"-ERR gone\r\n")
        core.receive(b"RETR 1\r\n")
        self.assertTrue(sent(core.answer(b"x")).startswith(b"+OK 10 octets\r\nx"))

    def test_a_long_sasl_response_ends_the_exchange_only(self) -> None:
        core = new()
        core.receive(b"AUTH PLAIN\r\n")
        self.assertEqual(sent(core.receive(b"A" * (MAX_RESPONSE + 1) + b"\r\n")), b"-ERR Line too long\r\n")
        self.assertEqual(sent(core.receive(b"USER alice\r\n")), b"+OK Send the password\r\n")

    def test_a_line_without_end_is_cut_off(self) -> None:
        for pieces in ([b"x" * (MAX_GARBAGE + 1)], [b"x" * 1000] * (MAX_GARBAGE // 1000 + 1)):
            core = new()
            effects = [effect for piece in pieces for effect in core.receive(piece)]
            self.assertEqual(effects, [Send(b"-ERR Too much input without a line end\r\n"), Close()])

    def test_what_was_learnt_in_the_clear_is_forgotten(self) -> None:
        core = new(tls=False, tls_available=True)
        self.assertIn(StartTLS(), core.receive(b"STLS\r\nUSER alice\r\n"))
        self.assertEqual(core.receive(b"USER alice\r\n"), [])
        core.secured()
        self.assertEqual(sent(core.receive(b"PASS secret\r\n")), b"-ERR Send USER first\r\n")

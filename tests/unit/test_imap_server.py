"""What transcripts don't show of the IMAP core: faults, bugs of the caller, news while idling, splits, bounds."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import TestCase

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.imap_world import Whole
from twisted_mta.core.effects import Ask, Close, Send
from twisted_mta.core.imap import questions as q
from twisted_mta.core.imap.commands import COMMANDS
from twisted_mta.core.imap.server import ImapServer
from twisted_mta.core.imap.session import STRANGER, ImapSettings, State
from twisted_mta.core.imap.wire import Limits
from twisted_mta.interfaces import MailboxChanges, MessageEntry

SETTINGS = ImapSettings(hostname="h", plaintext_login=True, append_limit=100)
NEW = MessageEntry(uid=5, flags=frozenset(), size=1, internal_date=0.0)
NOTHING = MailboxChanges()


def sent(effects: Any) -> bytes:
    return b"".join(effect.data for effect in effects if isinstance(effect, Send))


def asked(effects: Any) -> Any:
    return next(effect.question for effect in effects if isinstance(effect, Ask))


class Helper(TestCase):
    def core(self, selected: bool = True) -> ImapServer:
        core = ImapServer(SETTINGS)
        core.greet()
        core.receive(b"a LOGIN alice secret\r\n")
        core.answer(True)
        if selected:
            core.receive(b"b SELECT INBOX\r\n")
            core.answer(q.Opened(entries=[NEW], uid_validity=1, uid_next=6, read_only=False))
        return core


class CoreTests(Helper):
    def test_an_answer_without_a_question_is_a_bug(self) -> None:
        with self.assertRaises(RuntimeError):
            self.core().answer(None)

    def test_a_fault_is_a_no(self) -> None:
        core = self.core()
        core.receive(b"c NOOP\r\n")
        self.assertEqual(sent(core.fault())[:5], b"* BYE")
        core = self.core()
        core.receive(b"c CREATE x\r\nd NAMESPACE\r\n")
        self.assertEqual(
            sent(core.fault()).splitlines()[0], b"c NO [SERVERBUG] internal error, it was logged"
        )
        core = self.core()
        effects = core.fault()
        self.assertEqual(effects[-1], Close())

    def test_passwords_are_not_shown(self) -> None:
        core = ImapServer(SETTINGS)
        effects = core.receive(b"a LOGIN alice sesame\r\n")
        self.assertEqual(asked(effects).claim.password, b"sesame")
        self.assertNotIn("sesame", repr(effects))

    def test_pipelined_commands_wait_for_the_answer(self) -> None:
        core = self.core(selected=False)
        effects = core.receive(b"c CREATE x\r\nd DELETE y\r\n")
        self.assertEqual(effects, [Ask(q.Create("x"))])
        self.assertEqual(core.receive(b"e NOOP\r\n"), [])
        effects = core.answer(None)
        self.assertEqual(effects, [Send(b"c OK created\r\n"), Ask(q.Delete("y"))])
        effects = core.answer(q.Refused("no", "CANNOT"))
        self.assertEqual(sent(effects), b"d NO [CANNOT] no\r\ne OK done\r\n")

    def test_fetch_in_parts(self) -> None:
        core = self.core()
        effects = core.receive(b"c FETCH 1 UID\r\n")
        self.assertEqual(asked(effects).uids, (5,))
        self.assertEqual(sent(core.answer([q.Fetched(5, b"UID 5")], more=True)), b"* 1 FETCH (UID 5)\r\n")
        self.assertEqual(
            sent(core.answer(q.FetchDone(missing=True))),
            b"c NO [EXPUNGEISSUED] some of the messages are gone\r\n",
        )

    def test_a_search_names_only_what_the_client_knows(self) -> None:
        core = self.core()
        core.receive(b"c SEARCH ALL\r\n")
        self.assertEqual(sent(core.answer((5, 6))), b"* SEARCH 1\r\nc OK that is all\r\n")

    def test_no_expunge_during_fetch_store_search(self) -> None:
        """RFC 3501 §7.4.1: these end without looking what happened."""
        for command in ("FETCH", "STORE", "SEARCH", "UID FETCH", "UID STORE"):
            self.assertFalse(COMMANDS[command.encode()].tells)

    def test_every_command_has_its_states(self) -> None:
        for name, rule in COMMANDS.items():
            for state in (State.NOT_AUTHENTICATED, State.AUTHENTICATED, State.SELECTED):
                core = {
                    State.NOT_AUTHENTICATED: lambda: ImapServer(SETTINGS),
                    State.AUTHENTICATED: lambda: self.core(selected=False),
                    State.SELECTED: self.core,
                }[state]()
                out = sent(core.receive(b"x " + name + b" \x01\r\n"))
                refused = out == b"x BAD that command is not allowed now\r\n"
                self.assertEqual(refused, not rule.allowed & state, (name, state, out))

    def test_a_lost_mailbox_ends_the_session(self) -> None:
        core = self.core()
        core.receive(b"c NOOP\r\n")
        effects = core.answer(q.Refused("it is gone", "NONEXISTENT"))
        self.assertEqual(list(effects), [Send(b"* BYE [NONEXISTENT] it is gone\r\n"), Close()])
        self.assertEqual(core.receive(b"d NOOP\r\n"), [])
        self.assertEqual(core.shut_down(), [])

    def test_shutdown_during_a_question(self) -> None:
        core = self.core()
        core.receive(b"c CREATE x\r\nd NOOP\r\n")
        self.assertEqual(core.shut_down()[-1], Close())
        # The session performs the answer first; what was pipelined is not begun.
        self.assertEqual(core.answer(None), [Send(b"c OK created\r\n")])

    def test_news_of_uid_commands_have_uids(self) -> None:
        core = self.core()
        core.receive(b"c UID SEARCH ALL\r\n")
        core.answer(())
        changed = MailboxChanges(
            changed=(MessageEntry(uid=5, flags=frozenset({"\\Seen"}), size=1, internal_date=0.0),)
        )
        self.assertEqual(
            sent(core.answer(changed)), b"* 1 FETCH (UID 5 FLAGS (\\Seen))\r\nc OK that is all\r\n"
        )

    def test_nothing_is_done_while_the_handshake_runs(self) -> None:
        core = ImapServer(ImapSettings(hostname="h", tls_available=True))
        core.receive(b"a STARTTLS\r\nb NOOP\r\n")
        self.assertEqual(core.receive(b"c NOOP\r\n"), [])
        self.assertEqual(core.secured(), [])
        self.assertEqual(sent(core.receive(b"d NOOP\r\n")), b"d OK done\r\n")


class BoundsTests(Helper):
    def test_a_stranger_gets_little_room(self) -> None:
        core = ImapServer(SETTINGS)
        out = core.receive(b"a LOGIN " + b"x" * STRANGER.line + b"\r\nb NOOP\r\n")
        self.assertEqual(sent(out), b"a BAD the command is too long\r\nb OK done\r\n")
        out = core.receive(b"\x01" * (STRANGER.line + 1))
        self.assertEqual(sent(out), b"* BAD the command is too long\r\n")

    def test_waste_ends_the_session(self) -> None:
        core = ImapServer(SETTINGS)
        core.receive(b"a LOGIN {99999999+}\r\n")
        out = core.receive(b"x" * (STRANGER.waste + 1))
        self.assertEqual(list(out), [Send(b"* BYE too much was sent in vain\r\n"), Close()])

    def test_a_long_sasl_response(self) -> None:
        core = ImapServer(SETTINGS)
        core.receive(b"a AUTHENTICATE PLAIN\r\n")
        out = core.receive(b"x" * (STRANGER.line + 1) + b"\r\nb NOOP\r\n")
        self.assertEqual(sent(out), b"a BAD the response is too long\r\nb OK done\r\n")

    def test_sasl_with_a_login_that_is_no_utf8(self) -> None:
        core = ImapServer(SETTINGS)
        self.assertEqual(
            sent(core.receive(b"a AUTHENTICATE PLAIN AP8AeA==\r\n")), b"a BAD the login is not UTF-8\r\n"
        )

    def test_id_fields_are_bounded(self) -> None:
        core = ImapServer(SETTINGS)
        out = core.receive(b"a ID (" + b" ".join([b'"a" NIL'] * 31) + b")\r\n")
        self.assertEqual(sent(out), b"a BAD more than 30 fields\r\n")

    def test_patterns_are_bounded(self) -> None:
        out = self.core().receive(b'c LIST "" ' + b"*" * 1001 + b"\r\n")
        self.assertEqual(sent(out), b"c BAD the pattern is too long\r\n")

    def test_an_overlong_line_behind_an_appended_message(self) -> None:
        core = ImapServer(
            ImapSettings(hostname="h", plaintext_login=True, limits=Limits(line=50, command=50))
        )
        core.receive(b"a LOGIN x y\r\n")
        core.answer(True)
        core.receive(b"b APPEND INBOX {3+}\r\n")
        core.answer(None)
        effects = core.receive(b"abc" + b"x" * 60 + b"\r\n")
        self.assertEqual(asked(effects), q.FinishAppend(keep=False))
        self.assertEqual(sent(core.answer(None)), b"b BAD APPEND takes one message\r\n")

    def test_the_end_of_a_message_may_fail(self) -> None:
        core = self.core()
        core.receive(b"c APPEND INBOX {3+}\r\nabc\r\n")
        effects = core.answer(None)
        self.assertEqual(asked(effects), q.FinishAppend(keep=True))
        effects = core.answer(q.Refused("there is no room", "OVERQUOTA"))
        self.assertEqual(asked(effects), q.Refresh())
        self.assertEqual(sent(core.answer(NOTHING)), b"c NO [OVERQUOTA] there is no room\r\n")


class IdleTests(Helper):
    def idling(self) -> ImapServer:
        core = self.core()
        self.assertEqual(core.receive(b"c IDLE\r\n"), [Ask(q.BeginIdle())])
        self.assertEqual(sent(core.answer(NOTHING)), b"+ idling\r\n")
        return core

    def test_news(self) -> None:
        core = self.idling()
        self.assertEqual(core.mailbox_changed(), [Ask(q.Refresh())])
        added = MailboxChanges(
            added=(MessageEntry(uid=9, flags=frozenset(), size=1, internal_date=0.0, recent=True),)
        )
        self.assertEqual(sent(core.answer(added)), b"* 2 EXISTS\r\n* 1 RECENT\r\n")
        self.assertEqual(core.receive(b"DONE\r\n"), [Ask(q.EndIdle())])
        self.assertEqual(core.answer(None), [Ask(q.Refresh())])
        self.assertEqual(core.answer(NOTHING), [Send(b"c OK no longer idle\r\n")])

    def test_news_while_looking_for_news(self) -> None:
        core = self.idling()
        core.mailbox_changed()
        self.assertEqual(core.mailbox_changed(), [])
        self.assertEqual(core.answer(NOTHING), [Ask(q.Refresh())])
        self.assertEqual(core.answer(NOTHING), [])

    def test_news_before_the_idling_begins(self) -> None:
        core = self.core()
        core.receive(b"c IDLE\r\n")
        self.assertEqual(core.mailbox_changed(), [])
        self.assertEqual(core.answer(NOTHING), [Send(b"+ idling\r\n"), Ask(q.Refresh())])

    def test_done_while_looking_for_news(self) -> None:
        core = self.idling()
        core.mailbox_changed()
        self.assertEqual(core.receive(b"DONE\r\n"), [])
        self.assertEqual(core.answer(NOTHING), [Ask(q.EndIdle())])
        self.assertEqual(core.mailbox_changed(), [])
        core.answer(None)
        core.answer(NOTHING)
        self.assertEqual(core.mailbox_changed(), [], "no longer of interest")

    def test_a_mailbox_that_vanishes(self) -> None:
        core = self.idling()
        core.mailbox_changed()
        self.assertEqual(core.answer(q.Refused("gone"))[-1], Close())


SESSION = (
    b"a LOGIN {5+}\r\nalice {6}\r\nsecret\r\n"
    b"b SELECT INBOX\r\n"
    b"c APPEND INBOX (\\Seen) {14+}\r\nSubject: x\r\n\r\n\r\n"
    b"d APPEND INBOX {200+}\r\n" + b"y" * 200 + b"\r\n"
    b"d2 APPEND INBOX {3}\r\nabc {4+}\r\nabcd\r\n"
    b"e IDLE\r\nDONE\r\n"
    b"f FETCH 1:* (FLAGS BODY[HEADER.FIELDS ({7+}\r\nSubject)])\r\n"
    b"g SEARCH CHARSET UTF-8 TEXT {2+}\r\n\xc3\xbc\r\n"
    b"h " + b"z" * 100 + b" {5+}\r\nnoop\r\n\r\ni NOOP\r\n"
    b"j LOGOUT\r\n"
)


class SplitTests(TestCase):
    def converse(self, chunks: list[bytes]) -> bytes:
        limits = Limits(line=80, command=160, waste=5000)
        whole = Whole(
            ImapSettings(hostname="h", plaintext_login=True, append_limit=100, limits=limits),
            [b"Subject: 1\r\n\r\n"],
        )
        return whole.converse(chunks)

    def test_the_session_is_what_it_should_be(self) -> None:
        out = self.converse([SESSION])
        answers = [line.split(b" ")[:2] for line in out.split(b"\r\n") if line[:1].isalpha()]
        self.assertEqual(
            [answer for answer in answers if len(answer) == 2 and answer[1] in (b"OK", b"NO", b"BAD")],
            [
                [b"a", b"OK"], [b"b", b"OK"], [b"c", b"OK"], [b"d", b"NO"], [b"d2", b"BAD"],
                [b"e", b"OK"], [b"f", b"OK"], [b"g", b"OK"], [b"h", b"BAD"], [b"i", b"OK"], [b"j", b"OK"],
            ],
        )  # fmt: skip

    @given(st.lists(st.integers(0, len(SESSION)), max_size=30))
    @settings(max_examples=60)
    def test_any_split_gives_the_same(self, cuts: list[int]) -> None:
        at = [0, *sorted(cuts), len(SESSION)]
        chunks = [SESSION[first:last] for first, last in itertools.pairwise(at)]
        self.assertEqual(self.converse(chunks), self.converse([SESSION]))

    def test_byte_by_byte(self) -> None:
        chunks = [SESSION[at : at + 1] for at in range(len(SESSION))]
        self.assertEqual(self.converse(chunks), self.converse([SESSION]))

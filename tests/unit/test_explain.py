"""mta explain: what an administrator sees, as docs/why.md shows it; what the command takes; and that nothing else happens."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from tests.certificates import self_signed_files
from twisted_mta.admin.explain import lines, questions
from twisted_mta.admin.main import _parser
from twisted_mta.config.schema import Role
from twisted_mta.core.explanation import Finding, Note, as_json
from twisted_mta.service.control import ControlError
from twisted_mta.service.explain.control import read_question
from twisted_mta.testing.world import World

PAGE = Path(__file__).parents[2] / "docs" / "why.md"
_EXAMPLE = re.compile(r"```\n(mta explain [^\n]*)\n```\n\n((?:    [^\n]*\n|\n(?=    ))+)")

CONFIG = """
[[listen]]
role = "submissions"
endpoint = "tcp:465"
[tls]
certificate = "server.pem"
key = "server.pem"
[[list]]
address = "team@example.test"
owner = "bob@example.test"
members = ["alice@example.test", "carol@one.example"]
"""


def show(world: World, command: str) -> list[str]:
    """The lines of a command, with the world's directory called /etc/mta, as in the documentation."""
    options = _parser().parse_args(shlex.split(command)[1:])
    (asked,) = questions(options)
    given = {name: value for name, value in asked.items() if value is not None}
    recipient = given.pop("recipient")
    text = "\n".join(lines(world.explain(recipient, **given)))
    return text.replace(str(world.directory.absolute()), "/etc/mta").splitlines()


class ExplainCase(SynchronousTestCase):
    config = CONFIG
    aliases = re.search(r"(?:    \w+: .*\n)+", PAGE.read_text("utf-8"))

    def setUp(self) -> None:
        assert self.aliases is not None
        directory = Path(self.mktemp())
        directory.mkdir()
        self_signed_files(directory / "server.pem")
        text = "".join(line.lstrip() for line in self.aliases[0].splitlines(keepends=True))
        self.world = World(directory, self.config, aliases=text)
        serving: Any = self.world.listeners.serving
        serving.tls = object()  # offered, and never begun
        self.addCleanup(self.world.close)
        self.peer = self.world.host("one.example", "192.0.2.101")

    def explain(self, recipient: str, **given: Any) -> dict[str, Any]:
        return self.world.explain(recipient, **given)


class DocumentationTests(ExplainCase):
    """docs/why.md shows what the command prints; `python -m tests.unit.test_explain` writes it."""

    def test_examples(self) -> None:
        examples = _EXAMPLE.findall(PAGE.read_text("utf-8"))
        self.assertGreater(len(examples), 7)
        for command, shown in examples:
            with self.subTest(command):
                told = [line.removeprefix("    ") for line in shown.splitlines()]
                self.assertEqual("\n".join(told), "\n".join(show(self.world, command)))


class AnswerTests(ExplainCase):
    def test_nothing_is_done(self) -> None:
        for _ in range(3):
            self.assertTrue(self.explain("info@example.test", login="alice")["accepted"])
        self.world.advance(60)
        self.assertEqual((self.world.queued(), self.world.mail("alice"), self.peer.connections), ([], [], 0))
        self.assertEqual(self.world.parts.usage.status(), [])
        self.assertEqual(self.world.listeners.connections, 0)

    def test_it_is_json(self) -> None:
        answer = self.explain("info@example.test")
        self.assertEqual(json.loads(json.dumps(answer)), answer)

    def test_a_destination_that_is_out_of_reach(self) -> None:
        self.world.network.unreachable.add("192.0.2.101")
        self.world.send("alice@example.test", ["info@example.test"], b"Subject: x\r\n\r\n")
        self.world.advance(60)
        answer = self.explain("info@example.test")
        (failure,) = answer["failures"]
        self.assertEqual(failure["address"], "carol@one.example")
        self.assertIn("not tried, since one.example is out of reach", failure["reply"])
        self.assertIn("  ? carol@one.example", "\n".join(lines(answer)))
        self.assertIn("it is out of reach, and tried again in", "\n".join(lines(answer)))

    def test_connections(self) -> None:
        self.config_text("[limits]\nconnections_per_address = 1\n")
        session = self.world.listeners.factory(Role.MX)
        session.buildProtocol(IPv4Address("TCP", "192.0.2.9", 1))
        answer = self.explain("alice@example.test", ip="192.0.2.9")
        self.assertFalse(answer["accepted"])
        self.assertIn("limits.connections_per_address", answer["reply"])
        self.assertTrue(self.explain("alice@example.test", ip="192.0.2.10")["accepted"])

    def test_connections_that_are_kept_for_others(self) -> None:
        self.config_text("[limits]\nconnections = 5\nconnections_share = 20\n")
        session = self.world.listeners.factory(Role.MX)
        for _ in range(4):
            session.buildProtocol(IPv4Address("TCP", "192.0.2.9", 1))
        answer = self.explain("bob@example.test", ip="192.0.2.10")
        self.assertIn("limits.connections_share", answer["reply"])
        answer = self.explain(
            "bob@example.test", ip="192.0.2.10", role="submissions", login="alice@example.test"
        )
        self.assertTrue(answer["accepted"], answer["reply"])

    def config_text(self, more: str) -> None:
        self.world.config_text(self.config + more)

    def test_no_such_listener(self) -> None:
        answer = self.explain("alice@example.test", role="lmtp")
        self.assertEqual((answer["accepted"], answer["reply"]), (False, "no listener has the role lmtp"))

    def test_no_handler_is_called(self) -> None:
        (self.world.directory / "explained_handlers.py").write_text(
            "from twisted_mta.handlers import Reject, rcpt\n\n\n"
            '@rcpt("desk@example.test", inline=True)\ndef desk(mail):\n    raise Reject("called")\n'
        )
        self.config_text('[handlers]\nmodules = ["explained_handlers"]\npath = ["."]\n')
        answer = self.explain("desk@example.test")
        self.assertTrue(answer["accepted"], answer["reply"])
        self.assertEqual(answer["places"], ["explained_handlers.desk"])
        self.assertIn("Accepted; goes to 1 handler.", list(lines(answer)))
        self.assertIn("before the message is acknowledged", "\n".join(lines(answer)))
        reply = self.world.send("x@example.org", ["desk@example.test"], b"Subject: x\r\n\r\n")
        self.assertEqual(str(reply), "550 5.7.1 called")

    def test_what_is_put_off_is_no_refusal(self) -> None:
        (self.world.directory / "aliases").write_text("later: :defer: moving\n")
        self.config_text("")
        self.assertIn("    ? :defer: moving: moving", "\n".join(lines(self.explain("later@example.test"))))

    def test_what_is_no_mailbox_is_not_called_one(self) -> None:
        (self.world.directory / "aliases").write_text(
            f'all: alice, "|/bin/cat", "|/bin/cat -n", {self.world.directory.absolute()}/box, carol@one.example\none: |/bin/cat\n'
        )
        self.config_text(
            f'[delivery]\nfiles = ["{self.world.directory.absolute()}"]\n[delivery.command]\nuser = "nobody"\ndirectory = "/"\n'
        )
        (*_, last) = lines(self.explain("all@example.test"))
        self.assertEqual(last, "Accepted; goes to 2 mailboxes here, 2 commands and 1 address at other hosts.")
        (*_, last) = lines(self.explain("one@example.test"))
        self.assertEqual(last, "Accepted; goes to 1 command.")

    def test_nothing_is_signed_yet(self) -> None:
        self.assertIn("no DKIM signature of ours", "\n".join(lines(self.explain("info@example.test"))))

    def test_a_login_that_is_none(self) -> None:
        answer = self.explain("alice@example.test", login="nobody")
        self.assertEqual((answer["accepted"], answer["reply"][:3]), (False, "535"))

    def test_a_large_message_comes_in_pieces(self) -> None:
        text = "From: nina@home.example\r\n\r\n" + 3 * (70_000 * "x" + "\r\n.\r\n")
        for length in (len(text), 65_536, 65_537):
            with self.subTest(length):
                self.assertTrue(self.explain("alice@example.test", message=text[:length])["accepted"])
        lines_of_78 = "From: nina@home.example\r\n\r\n" + 2000 * (76 * "x" + "\r\n") + ".\r\n"
        self.assertTrue(self.explain("alice@example.test", message=lines_of_78)["accepted"])


class QuestionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(Path(self.mktemp()))
        self.addCleanup(self.world.close)

    def test_what_is_no_question(self) -> None:
        for given, why in (
            ({"recipient": "a b@example.test"}, "recipient 'a b@example.test' is no address"),
            ({"recipient": "alice\r\nDATA"}, "recipient must be text of one line"),
            ({"recipient": "alice", "sender": 1}, "sender must be text of one line"),
            ({"recipient": "alice", "ip": "x"}, "'x' is no IP address"),
            ({"recipient": "alice", "role": "imap"}, "role is one of mx, submission, submissions, lmtp"),
            ({"recipient": "alice", "size": -1}, "size is a number of octets"),
            ({"recipient": "alice", "size": True}, "size is a number of octets"),
            ({"recipient": "alice", "message": 1}, "message must be text"),
        ):
            with self.subTest(why):
                caught = self.assertRaises(ControlError, read_question, given, self.world.config)
                self.assertIn(why, str(caught))

    def test_what_is_not_said(self) -> None:
        question = read_question({"recipient": "alice"}, self.world.config)
        self.assertEqual(str(question.recipient), "alice@example.test")
        self.assertEqual(str(question.sender), "somebody@example.com")
        question = read_question({"recipient": "alice", "login": "bob"}, self.world.config)
        self.assertEqual((str(question.sender), question.role), ("bob@example.test", Role.SUBMISSIONS))
        question = read_question({"recipient": "alice", "sender": "<>"}, self.world.config)
        self.assertIsNone(question.sender)


class NoteTests(SynchronousTestCase):
    def test_json(self) -> None:
        note = Note("a", "b", children=(Note("c", "d", Finding.LATER, "e:1", {"f": 1}),))
        child = {"kind": "c", "text": "d", "finding": "later", "where": "e:1", "data": {"f": 1}}
        self.assertEqual(as_json(note), {"kind": "a", "text": "b", "children": [child]})


def update() -> None:
    """Write what the command prints into the page."""
    case = DocumentationTests("test_examples")
    case.setUp()

    def rewrite(match: re.Match[str]) -> str:
        told = "".join(f"    {line}".rstrip() + "\n" for line in show(case.world, match[1]))
        return f"```\n{match[1]}\n```\n\n{told}"

    PAGE.write_text(_EXAMPLE.sub(rewrite, PAGE.read_text("utf-8")), "utf-8")
    case.doCleanups()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        update()

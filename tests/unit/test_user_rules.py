"""The rules of users on the disk, who got replies, and `mta user rules`."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import SkipTest, mock

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from twisted_mta.admin.main import main
from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Notify, Recipient
from twisted_mta.core.expand import Kind, expand, resolves
from twisted_mta.core.expand.routing import posters, route
from twisted_mta.core.forward import Forwarding, HeaderTest
from twisted_mta.core.queue import Delivered, Failed, Transport, TryLater
from twisted_mta.core.rules import NONE, Changed, Limits, Rules, RulesError, Vacation
from twisted_mta.delivery.rules import RulesDelivery
from twisted_mta.delivery.vacation import VacationDelivery
from twisted_mta.interfaces import IDelivery, IForesight
from twisted_mta.store.answers import AnswerFile
from twisted_mta.store.queue.bodies import MemoryBody
from twisted_mta.store.rules import changing, check_rules, load_rules, read_rules, rules_file, write_rules
from twisted_mta.store.stamps import look_at
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.testing.directory import make_directory, make_list
from twisted_mta.testing.queued import queued_message, queued_recipient

ALICE = Address("alice", "example.test")
AWAY = Address("alice", "away.example")
DAY = 86400.0
REST = Vacation(text="I am away.")
LETTER = b"From: bob@example.org\r\nTo: alice@example.test\r\n\r\nhi\r\n"


class FilesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.noted: list[str] = []

    def load(self, before: Any = None) -> Any:
        found = load_rules(self.directory, ["Alice@example.test", "bob@example.test"], before)
        self.noted += [text.replace(str(self.directory), "DIR") for text in found.problems]
        return found.rules

    def write(self, account: str, rules: Rules) -> None:
        with changing(self.directory):
            write_rules(self.directory, account, rules)

    def test_there_and_back(self) -> None:
        self.assertEqual(self.load(), {})
        rules = Rules(forward=(AWAY,), keep=True)
        self.write("Alice@example.test", rules)
        self.assertEqual(self.load(), {"alice@example.test": rules})
        self.assertEqual((self.directory / "alice@example.test").stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.directory.stat().st_mode & 0o777, 0o700)
        self.write("alice@example.test", Rules())
        self.assertEqual((self.load(), self.noted), ({}, []))
        self.assertEqual(read_rules(self.directory / "nobody"), Rules())

    def test_no_name_leads_out_of_the_directory(self) -> None:
        for name in ("../x@y", "a/b@y", "\udcff@y"):
            self.assertEqual(rules_file(self.directory, name).parent, self.directory)

    def test_what_cannot_be_read_is_noted(self) -> None:
        self.directory.mkdir()
        (self.directory / "alice@example.test").write_text("nonsense\n")
        (self.directory / "bob@example.test").mkdir()
        self.assertEqual(self.load(), {})
        self.assertEqual(
            self.noted,
            [
                "DIR/alice@example.test: not understood: nonsense",
                "DIR/bob@example.test: Is a directory",
            ],
        )
        before = {"alice@example.test": Rules(forward=(AWAY,))}
        self.assertEqual(self.load(before), before, "what is broken leaves the old one")
        self.directory = self.directory / "alice@example.test"
        self.assertEqual(self.load(before), before)
        self.assertIn("Not a directory", self.noted[-1])

    def test_a_file_that_is_written_in_place_looks_different(self) -> None:
        self.write("alice@example.test", Rules(forward=(AWAY,)))
        accounts = ["alice@example.test"]
        before = load_rules(self.directory, accounts).stamps
        self.assertEqual(look_at(before), before)
        with (self.directory / "alice@example.test").open("a") as file:
            file.write("vacation: x\n")
        self.assertNotEqual(look_at(before), before)

    def test_one_at_a_time(self) -> None:
        with changing(self.directory):
            lock = os.open(self.directory, os.O_RDONLY)
            self.addCleanup(os.close, lock)
            with self.assertRaises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_what_a_killed_editor_left_is_swept(self) -> None:
        self.directory.mkdir()
        (self.directory / ".alice@example.test.abcd1234").touch()
        self.write("alice@example.test", Rules(forward=(AWAY,)))
        self.assertEqual([path.name for path in self.directory.iterdir()], ["alice@example.test"])


class ExpansionTests(SynchronousTestCase):
    def directory(self, aliases: Any = "", **rules: Rules) -> Any:
        table = {f"{name}@example.test": one for name, one in rules.items()}
        return make_directory(
            aliases=aliases, user_rules=table, rules_address=Address("rules", "example.test")
        )

    def places(self, text: str, directory: Any) -> list[tuple[str, Transport]]:
        plan = expand(Address.parse(text), directory)
        self.assertEqual(plan.problems, ())
        return [(str(one.address), one.transport) for one in plan.recipients]

    def test_forwards(self) -> None:
        moved = self.directory(alice=Rules(forward=(AWAY,)))
        self.assertEqual(self.places("alice@example.test", moved), [(str(AWAY), Transport.SMTP)])
        self.assertEqual(self.places("alice+x@example.test", moved), [(str(AWAY), Transport.SMTP)])
        kept = self.directory(alice=Rules(forward=(AWAY,), keep=True))
        self.assertEqual(
            self.places("alice+x@example.test", kept),
            [(str(AWAY), Transport.SMTP), ("alice+x@example.test", Transport.LOCAL)],
        )

    def test_whose_mailbox_it_is(self) -> None:
        """For all that is not delivery: who may send and post, and what EXPN tells."""
        directory = self.directory("sales: alice\n", alice=Rules(forward=(AWAY,), vacation=REST))
        for name in ("alice+x@example.test", "sales@example.test"):
            plan = expand(Address.parse(name), directory, rules=False)
            self.assertEqual([one.transport for one in plan.recipients], [Transport.LOCAL])
        team = make_list("team@example.test", ["sales@example.test"])
        self.assertEqual(
            posters(team, directory), {"sales@example.test", "alice@example.test", "alice@away.example"}
        )

    def test_behind_aliases(self) -> None:
        directory = self.directory("alice: alice, bob\nraw: \\alice\n", alice=Rules(forward=(AWAY,)))
        self.assertEqual(
            self.places("alice@example.test", directory),
            [(str(AWAY), Transport.SMTP), ("bob@example.test", Transport.LOCAL)],
        )
        self.assertEqual(
            self.places("raw@example.test", directory), [("alice@example.test", Transport.LOCAL)]
        )

    def test_users_who_forward_to_one_another(self) -> None:
        bob = Address("bob", "example.test")
        here = [("alice@example.test", Transport.LOCAL), ("bob@example.test", Transport.LOCAL)]
        moved = self.directory(alice=Rules(forward=(bob,)), bob=Rules(forward=(ALICE,)))
        self.assertEqual(self.places("alice@example.test", moved), here[1:])
        self.assertEqual(self.places("bob@example.test", moved), here[:1])
        kept = self.directory(alice=Rules(forward=(bob,), keep=True), bob=Rules(forward=(ALICE,), keep=True))
        for name in ("alice@example.test", "bob@example.test"):
            self.assertEqual(sorted(self.places(name, kept)), here)

    def test_a_rule_that_leads_back_over_an_alias(self) -> None:
        family = Address("family", "example.test")
        here = [("alice@example.test", Transport.LOCAL), ("bob@example.test", Transport.LOCAL)]
        for keep in (True, False):
            rules = Rules(forward=(family,), keep=keep)
            directory = self.directory("family: alice, bob\n", alice=rules)
            for name in ("alice@example.test", "family@example.test"):
                self.assertEqual(sorted(self.places(name, directory)), here)

    def test_a_loop_of_aliases_behind_a_rule_is_the_administrators(self) -> None:
        directory = self.directory("a1: a2\na2: a1\n", alice=Rules(forward=(Address("a1", "example.test"),)))
        plan = expand(ALICE, directory)
        self.assertEqual([problem.kind for problem in plan.problems], [Kind.LOOP])

    def test_a_reply_once_whatever_the_detail(self) -> None:
        directory = self.directory("team: alice\nowner-team: bob\n", alice=Rules(vacation=REST))
        found = route(
            [
                Recipient(Address.parse(name), Notify.SUCCESS)
                for name in ("alice+x@example.test", "team@example.test")
            ],
            directory,
        ).recipients
        replies = [one for one in found if one.transport is Transport.VACATION]
        self.assertEqual(
            [(str(one.address), one.notify, one.sender) for one in replies],
            [("alice@example.test", Notify.NEVER, None)],
        )
        (alone,) = [
            one
            for one in route([Recipient(ALICE, Notify.SUCCESS)], directory).recipients
            if one.transport is not Transport.VACATION
        ]
        self.assertEqual(
            (alone.transport, alone.notify), (Transport.LOCAL, Notify.SUCCESS), "a reply is no copy"
        )

    def test_more_addresses(self) -> None:
        sales = Address("sales", "example.test")
        directory = self.directory(
            "@example.test: bob\n", alice=Rules(addresses=(sales,)), bob=Rules(addresses=(sales,))
        )
        self.assertEqual(
            self.places("Sales+x@example.test", directory), [("alice@example.test", Transport.LOCAL)]
        )
        self.assertIsNone(resolves(sales, directory))

    def test_by_mail(self) -> None:
        directory = self.directory()
        self.assertEqual(
            self.places("Rules@example.test", directory), [("Rules@example.test", Transport.RULES)]
        )

    def test_what_can_be_had(self) -> None:
        directory = self.directory("info: bob\n", alice=Rules(addresses=(Address("sales", "example.test"),)))
        limits = Limits(forwards=1, addresses=1, text=10)

        def check(account: str, local: str, before: Rules = NONE) -> None:
            wanted = Rules(addresses=(Address(local, "example.test"),))
            check_rules(wanted, before, account, limits, directory)

        for local in ("sales", "new"):
            check("Alice@example.test", local)
        for local in ("info", "bob", "rules", "a+b"):
            with self.assertRaisesRegex(RulesError, "can't be had"):
                check("alice@example.test", local)
        check("alice@example.test", "info", Rules(addresses=(Address("info", "example.test"),)))
        with self.assertRaisesRegex(RulesError, "for those who run"):
            check("alice@example.test", "postmaster")
        with self.assertRaisesRegex(RulesError, "can't be had"):
            check("bob@example.test", "sales")


class AnswersTests(SynchronousTestCase):
    def test_once_in_a_while(self) -> None:
        path = Path(self.mktemp())
        answers = AnswerFile(path)

        def claim(queue_id: str, now: float, handle: str = "h", who: str = "bob@x") -> bool:
            return answers.claim("alice@x", who, handle, queue_id, now * DAY, 7 * DAY)

        self.assertTrue(claim("q1", 0))
        self.assertTrue(claim("q1", 0.1), "the same message, tried again")
        self.assertFalse(claim("q2", 6.9))
        self.assertTrue(claim("q2", 6.9, who="carol@x"))
        self.assertTrue(claim("q3", 6.9, handle="new"), "another text")
        self.assertFalse(claim("q4", 7, handle="new"))
        answers.close()
        answers = AnswerFile(path)
        self.addCleanup(answers.close)
        self.assertFalse(claim("q4", 13.8, handle="new"))
        self.assertTrue(claim("q4", 14, handle="new"))
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        claim("q5", 200)
        (count,) = answers._file.connection.execute("SELECT count(*) FROM answer").fetchone()
        self.assertEqual(count, 1, "what is too old to matter is forgotten")


class DeliveryCase(SynchronousTestCase):
    def get(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))


class VacationDeliveryTests(DeliveryCase):
    def setUp(self) -> None:
        directory = make_directory(user_rules={"alice@example.test": Rules(vacation=REST)})
        self.answers = AnswerFile(Path(self.mktemp()))
        self.delivery = VacationDelivery(
            directory, self.answers, lambda: "new", Clock(), InlineWorkers(), "mx.test"
        )

    def deliver(self, body: Any = None, **changes: Any) -> Any:
        one = queued_recipient("alice@example.test", transport=Transport.VACATION)
        (outcome,) = self.get(
            self.delivery.deliver(queued_message(**changes), body or MemoryBody(LETTER), [one], "x")
        )
        self.assertIsInstance(outcome, Delivered)
        return outcome

    def test_a_reply(self) -> None:
        verifyObject(IDelivery, self.delivery)
        verifyObject(IForesight, self.delivery)
        outcome = self.deliver()
        ((letter, data),) = outcome.caused
        self.assertEqual(
            (letter.sender, letter.parent, letter.origin), (None, "q1", "vacation of alice@example.test")
        )
        self.assertEqual([str(one.address) for one in letter.recipients], ["sender@example.org"])
        self.assertEqual([one.notify for one in letter.recipients], [Notify.NEVER])
        self.assertIn(b"From: <alice@example.test>\r\nTo: <sender@example.org>", data)
        self.assertEqual(self.deliver(id="q2").caused, ())
        self.get(self.delivery.close())

    def test_foreseen(self) -> None:
        one = queued_recipient("alice@example.test", transport=Transport.VACATION)
        for header, text in (
            (LETTER, "vacation reply to sender@example.org, unless"),
            (b"", "no vacation reply: it is not addr"),
        ):
            found = self.get(self.delivery.foresee(queued_message(), one, header))
            self.assertIn(text, found.note.text)
        self.assertNotEqual(self.deliver().caused, (), "to foresee is not to send")

    def test_none(self) -> None:
        self.assertIn("null sender", self.deliver(sender=None).reply.text)
        self.delivery._directory = make_directory()
        self.assertIn("not the time", self.deliver().reply.text)

    def test_none_to_what_is_not_forwarded(self) -> None:
        spam = b"X-Spam-Status: Yes, 9\r\n" + LETTER
        rules = {"alice@example.test": Rules(vacation=REST)}
        self.delivery._directory = make_directory(
            user_rules=rules, forward=Forwarding(not_if=(HeaderTest("x-spam-status", "Yes"),))
        )
        self.assertIn("it has x-spam-status: Yes", self.deliver(MemoryBody(spam)).reply.text)
        self.assertNotEqual(self.deliver().caused, ())

    def test_an_alias_of_several_is_nobodys_address(self) -> None:
        """Or each of them would answer what was written to all."""
        self.delivery._directory = make_directory(
            aliases="sales: alice+shop, /var/archive\nall: alice, bob\nmore: :include:/x, alice\n",
            includes={"/x": "dave@example.net\n"},
            user_rules={"alice@example.test": Rules(vacation=REST, forward=(AWAY,), keep=True)},
        )
        for name, replies in (("sales", 1), ("all", 0), ("more", 0), ("alice+lists", 1)):
            address = f"{name}@example.test"
            one = queued_recipient(
                "alice@example.test", original=Address.parse(address), transport=Transport.VACATION
            )
            letter = LETTER.replace(b"alice@example.test", address.encode())
            message = queued_message(id=name, sender=Address(name, "example.org"))
            (outcome,) = self.get(self.delivery.deliver(message, MemoryBody(letter), [one], "x"))
            self.assertEqual(len(outcome.caused), replies, (name, outcome))

    def test_trouble_is_no_reply(self) -> None:
        body = mock.Mock()
        body.open.side_effect = OSError("broken")
        self.assertIn("can't tell whether it is due (broken)", self.deliver(body).reply.text)
        self.answers.close()
        self.assertIn("can't tell whether it is due", self.deliver().reply.text)


class RulesDeliveryTests(DeliveryCase):
    def setUp(self) -> None:
        self.orders: list[tuple[str, str]] = []
        self.error: Exception | None = None
        self.delivery = RulesDelivery(
            self.change, make_directory(), lambda: "new", Clock(), InlineWorkers(), "mx.test"
        )
        self.before = NONE

    async def change(self, account: str, order: str) -> Changed:
        self.orders.append((account, order))
        if self.error is not None:
            raise self.error
        return Changed(self.before, Rules(forward=(AWAY,)))

    def deliver(self, body: bytes, login: str = "alice@example.test") -> Any:
        one = queued_recipient("rules@example.test", transport=Transport.RULES, target=login)
        self.assertEqual(self.delivery.destination(one), login)
        (outcome,) = self.get(self.delivery.deliver(queued_message(), MemoryBody(body), [one], login))
        return outcome

    def test_the_plain_text_of_whatever_mail(self) -> None:
        verifyObject(IDelivery, self.delivery)
        verifyObject(IForesight, self.delivery)
        for body, order in (
            (b"Subject: x\r\n\r\nshow\r\n", "show\r\n"),
            (
                b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\nc2hvdw==\r\n",
                "show",
            ),
            (
                b"Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\nContent-Type: multipart/alternative; boundary=i\r\n\r\n"
                b"--i\r\nContent-Type: text/html\r\n\r\n<p>no\r\n--i\r\nContent-Type: text/plain\r\n\r\nshow\r\n--i--\r\n--o--\r\n",
                "show",
            ),
            (b"Content-Type: text/html\r\n\r\n<p>show\r\n", ""),
        ):
            outcome = self.deliver(body)
            self.assertEqual(self.orders.pop(), ("alice@example.test", order))
            ((letter, data),) = outcome.caused
            self.assertEqual(
                [(str(one.address), one.transport) for one in letter.recipients],
                [(str(ALICE), Transport.LOCAL)],
            )
            self.assertIn(b"    forward: alice@away.example", data)
        self.get(self.delivery.close())

    def test_refused(self) -> None:
        self.error = RulesError("forward: no", "vacation: no")
        outcome = self.deliver(LETTER)
        self.assertEqual(
            str(outcome.reply),
            "250 2.0.0 rules of alice@example.test: not changed: forward: no; vacation: no",
        )
        self.assertIn(b"Nothing was changed:", outcome.caused[0][1])
        self.error = OSError("full")
        self.assertIsInstance(self.deliver(LETTER), TryLater)
        self.assertIsInstance(self.deliver(LETTER, login=""), Failed)

    def test_whoever_had_the_mail_until_now_is_told_too(self) -> None:
        self.before = Rules(forward=(Address("alice", "old.example"), Address("bob", "example.test")))
        outcome = self.deliver(b"\r\nforward: alice@away.example\r\n")
        ((letter, _),) = outcome.caused
        self.assertEqual(
            [str(one.address) for one in letter.recipients],
            ["alice@example.test", "alice@old.example", "bob@example.test"],
        )
        self.assertIn("forward alice@old.example, bob@example.test -> alice@away.example", outcome.reply.text)
        self.before = Rules(forward=(AWAY,))
        ((letter, _),) = self.deliver(b"\r\nforward: alice@away.example\r\n").caused
        self.assertEqual(len(letter.recipients), 1)

    def test_what_a_program_wrote_changes_nothing_and_is_not_answered(self) -> None:
        outcome = self.deliver(b"Auto-Submitted: auto-replied\r\n\r\nforward: alice@away.example\r\n")
        self.assertEqual((outcome.caused, self.orders), ((), []))
        self.assertIn("sent by a program", outcome.reply.text)

    def test_foreseen(self) -> None:
        for login, failed in (("alice@example.test", False), ("", True)):
            one = queued_recipient("rules@example.test", transport=Transport.RULES, target=login)
            found = self.get(self.delivery.foresee(queued_message(), one, LETTER))
            self.assertEqual(found.failure is not None, failed)
        self.assertEqual(self.orders, [])


class CommandTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.dir = Path(tempfile.mkdtemp())  # where anybody may come
        self.addCleanup(shutil.rmtree, self.dir)
        self.dir.chmod(0o755)
        (self.dir / "data").mkdir()
        (self.dir / "mta.toml").write_text(
            'hostname = "mx.example.test"\ndomains = ["example.test"]\npostmaster = "alice"\ndata = "data"\n'
            '[[listen]]\nrole = "mx"\nendpoint = "tcp:25"\n'
        )
        (self.dir / "users").touch(mode=0o600)
        (self.dir / "users").write_text("alice@example.test:!::::::\n")

    def mta(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        source = mock.Mock(buffer=io.BytesIO(stdin))
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch("sys.stdin", source),
        ):
            status = main(["--config", str(self.dir / "mta.toml"), "user", "rules", *arguments])
        return status, out.getvalue(), err.getvalue()

    def test_show_set_and_clear(self) -> None:
        self.assertEqual(self.mta("alice")[:2], (0, ""))
        status, out, _ = self.mta("alice", "--set", "-", stdin=b"forward: a@b.example, keep\n")
        self.assertEqual((status, out), (0, "forward: a@b.example, keep\n"))
        more = self.dir / "more"
        more.write_text("vacation: I am away.\n")
        self.assertEqual(
            self.mta("alice", "--set", str(more))[1], "forward: a@b.example, keep\nvacation:\nI am away.\n"
        )
        self.assertEqual(
            self.mta("alice@example.test")[1], "forward: a@b.example, keep\nvacation:\nI am away.\n"
        )
        self.assertEqual(self.mta("alice", "--clear")[:2], (0, ""))
        self.assertEqual(list((self.dir / "data" / "rules").iterdir()), [])

    def test_root_writes_with_the_rights_of_the_server_s_user(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("needs root")
        shutil.chown(self.dir / "data", "nobody")
        self.mta("alice", "--set", "-", stdin=b"forward: a@b.example\n")
        self.assertEqual((self.dir / "data/rules/alice@example.test").owner(), "nobody")
        shutil.rmtree(self.dir / "data/rules")
        (self.dir / "root").mkdir()
        (self.dir / "root/alice@example.test").touch()
        (self.dir / "data/rules").symlink_to(self.dir / "root")
        status, _, err = self.mta("alice", "--set", "-", stdin=b"forward: a@b.example\n")
        self.assertEqual((status, err), (1, "mta: the rules of alice@example.test: Permission denied\n"))
        self.assertEqual((self.dir / "root").owner(), "root")
        self.assertEqual((self.dir / "root/alice@example.test").read_bytes(), b"")
        self.assertEqual(os.geteuid(), 0)

    def test_list(self) -> None:
        self.assertEqual(self.mta()[:2], (0, ""))
        order = b"forward: a@b.example, keep\nvacation-start: 2026-12-20\nvacation:\nI am\nforward: away\n"
        self.mta("alice", "--set", "-", stdin=order)
        self.assertEqual(
            self.mta()[1],
            "alice@example.test\tforward: a@b.example, keep; vacation-start: 2026-12-20; vacation\n",
        )
        (found,) = json.loads(self.mta("--json")[1])
        self.assertEqual((found["account"], found["forward"]), ("alice@example.test", ["a@b.example"]))
        self.assertEqual(found["vacation"]["text"], "I am\nforward: away")
        self.assertEqual(json.loads(self.mta("alice", "--json")[1]), found)
        (self.dir / "data" / "rules" / "alice@example.test").write_text("nonsense\n")
        status, out, err = self.mta()
        self.assertEqual((status, out), (0, ""))
        self.assertIn("alice@example.test: not understood: nonsense", err)
        self.assertEqual(self.mta("--clear")[0], 64)

    def test_what_is_broken_can_be_cleared(self) -> None:
        self.mta("alice", "--set", "-", stdin=b"forward: a@b.example\n")
        (self.dir / "data" / "rules" / "alice@example.test").write_text("nonsense\n")
        self.assertEqual(self.mta("alice", "--set", "-", stdin=b"forward: off\n")[0], 65)
        self.assertEqual(self.mta("alice", "--clear")[:2], (0, ""))
        self.assertEqual(self.mta("alice")[:2], (0, ""))

    def test_they_go_with_the_account(self) -> None:
        self.mta("alice", "--set", "-", stdin=b"forward: a@b.example\n")
        with contextlib.redirect_stdout(io.StringIO()):
            for command in (["remove", "alice"], ["add", "alice", "--random"]):
                self.assertEqual(main(["--config", str(self.dir / "mta.toml"), "user", *command]), 0)
        self.assertEqual(self.mta("alice")[:2], (0, ""), "who gets the name next has none")

    def test_errors(self) -> None:
        self.assertEqual(self.mta("nobody")[0], 67)
        status, _, err = self.mta("alice", "--set", "-", stdin=b"forward: nowhere\n")
        self.assertEqual(status, 65)
        self.assertIn("forward: nowhere: an address needs an @", err)
        self.assertEqual(self.mta("alice", "--set", str(self.dir / "missing"))[0], 74)
        (self.dir / "data" / "rules").rmdir()
        (self.dir / "data" / "rules").touch()
        self.assertIn("the rules of alice@example.test", self.mta("alice")[2])

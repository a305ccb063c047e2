"""What users decide about their mail, in a whole server on a Clock."""

from __future__ import annotations

import email
import quopri
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.interfaces import Peer
from twisted_mta.testing.world import World

DAY = 86400.0
MESSAGE = b"From: bob@example.com\r\nTo: alice@example.test\r\nSubject: hi\r\nMessage-ID: <1@example.com>\r\n\r\n body \r\n"


class RulesTests(SynchronousTestCase):
    def make_world(self, config: str = "", rules: str = "", aliases: str = "") -> World:
        path = Path(self.mktemp())
        (path / "data" / "rules").mkdir(parents=True)
        if rules:
            (path / "data" / "rules" / "alice@example.test").write_text(rules)
        world = World(path, config, aliases=aliases)
        self.addCleanup(world.close)
        self.away = world.host("away.example", "192.0.2.1")
        self.home = world.host("example.com", "192.0.2.2")
        return world

    def send(self, world: World, *to: str, sender: str = "bob@example.com", message: bytes = MESSAGE) -> str:
        said = str(world.send(sender, to, message, client="192.0.2.99"))
        world.advance(1)
        return said

    def test_forward_with_a_copy_and_without(self) -> None:
        for keep, copies in ((", keep", 1), ("", 0)):
            world = self.make_world(rules=f"forward: alice@away.example{keep}\n")
            self.assertIn("250", self.send(world, "alice+lists@example.test"))
            (message,) = self.away.messages
            self.assertTrue(message.sender.startswith("SRS0="), message.sender)
            self.assertEqual(len(world.mail("alice")), copies)

    def test_vacation(self) -> None:
        world = self.make_world(
            rules="vacation-subject: Away\nvacation:\nI am away.\n", aliases="sales: alice\n"
        )
        self.assertIn("250", self.send(world, "alice@example.test"))
        (reply,) = self.home.messages
        self.assertEqual((reply.sender, reply.recipients), ("", ["bob@example.com"]))
        found = email.message_from_bytes(reply.data)
        self.assertEqual(
            (found["From"], found["Auto-Submitted"], found["In-Reply-To"], found["Subject"]),
            ("<alice@example.test>", "auto-replied", "<1@example.com>", "Away"),
        )
        self.assertEqual(len(world.mail("alice")), 1)
        # Once a week, and only who wrote to her.
        self.send(world, "alice@example.test")
        world.advance(6 * DAY, 3600.0)
        self.send(
            world, "sales@example.test", message=MESSAGE.replace(b"alice@", b"all@"), sender="eve@example.com"
        )
        self.send(world, "alice@example.test")
        self.assertEqual(len(self.home.messages), 1)
        world.advance(1.1 * DAY, 3600.0)
        self.send(world, "sales@example.test", "alice@example.test")
        self.assertEqual(len(self.home.messages), 2)
        told = [
            one.reply
            for message in self.history(world)
            for one in message.recipients
            if one.transport == "vacation"
        ]
        self.assertRegex(told[0], r"\A250 2\.0\.0 vacation reply to bob@example\.com as \w+\Z")
        self.assertEqual(told[1], "250 2.0.0 no vacation reply: bob@example.com got one in the last 7 days")
        self.assertIn("not addressed to the user", told[2])

    def test_not_before_and_not_after(self) -> None:
        world = self.make_world(
            rules="vacation-start: 2027-01-17\nvacation-end: 2027-01-18\nvacation:\nI am away.\n"
        )
        for day, count in ((15, 0), (16, 0), (17, 1), (19, 1)):
            self.assertEqual(time.gmtime(world.network.seconds()).tm_mday, day)
            self.send(world, "alice@example.test")
            self.assertEqual(len(self.home.messages), count, day)
            world.advance(DAY * (2 if day == 17 else 1), 3600.0)

    def test_a_crash_before_the_outcome_is_recorded_gives_one_reply(self) -> None:
        world = self.make_world(rules="vacation:\nI am away.\n")
        record = world.parts.store.record
        world.parts.store.record = lambda updates, new=(): Deferred()  # type: ignore[method-assign,assignment]
        self.send(world, "alice@example.test")
        self.assertEqual(self.home.messages, [])
        del record
        world.crash()
        world.start()
        world.advance(60)
        self.send(world, "alice@example.test")
        self.assertEqual(len(self.home.messages), 1)

    def test_more_addresses(self) -> None:
        world = self.make_world(rules="addresses: sales@example.test, bob@example.test\n")
        self.send(world, "sales@example.test")
        self.send(world, "sales+x@example.test")
        self.assertEqual(len(world.mail("alice")), 2)
        self.send(world, "bob@example.test")
        self.assertEqual((len(world.mail("alice")), len(world.mail("bob"))), (2, 1), "that one is taken")

    def test_rules_that_cannot_be_read_are_told_and_the_mail_is_delivered(self) -> None:
        world = self.make_world(rules="nonsense\n")
        self.send(world, "alice@example.test")
        self.assertEqual(len(world.mail("alice")), 1)

    def order(
        self,
        world: World,
        text: bytes,
        login: str = "alice@example.test",
        author: str = "alice",
        head: bytes = b"",
    ) -> bytes:
        """A mail to the server as submission brings it, and the last mail in the mailbox of the login then."""
        account = world.parts.accounts.directory.account(Address.parse(login)) if login else None
        peer = Peer(address="192.0.2.7", port=1, role="submission", account=account)
        envelope = Envelope(
            Address.parse(f"{author}@example.test"), (Recipient(Address.parse("rules@example.test")),)
        )
        sink = world.parts.reception.message(peer, envelope)
        top = b"Date: x\r\nFrom: %b@example.test\r\nContent-Type: text/plain\r\n" % author.encode()
        sink.write(head + top + b"\r\n" + text)
        replies: list[Any] = []

        async def finish() -> None:
            replies.append(await sink.finish())

        Deferred.fromCoroutine(finish())
        world.advance(1)
        self.said = str(replies[0])
        found: bytes = world.mail(login.partition("@")[0])[-1]
        return quopri.decodestring(found)

    def test_by_mail(self) -> None:
        world = self.make_world('\n[rules]\naddress = "rules@example.test"\nforwards = 1\n')
        answer = self.order(
            world, b"forward: alice@away.example, keep\r\nvacation: I am away.\r\n-- \r\nAlice\r\n"
        )
        self.assertIn(b"These are the rules for your mail now:", answer)
        self.assertIn(b"forward: alice@away.example, keep", answer)
        file = world.directory / "data" / "rules" / "alice@example.test"
        self.assertEqual(file.read_text(), "forward: alice@away.example, keep\nvacation:\nI am away.\n")
        self.assertEqual(file.stat().st_mode & 0o777, 0o600)
        self.send(world, "alice@example.test")
        self.assertEqual((len(self.away.messages), len(self.home.messages)), (1, 1))
        answer = self.order(world, b"forward: a@b.example c@d.example\r\nwhat is this\r\n")
        self.assertIn(b"Nothing was changed", answer)
        self.assertIn(b"not understood: what is this", answer)
        answer = self.order(world, b"forward: a@b.example c@d.example\r\naddresses: x@example.test\r\n")
        self.assertIn(b"at most 1 addresses are allowed", answer)
        self.assertIn(b"only the postmaster gives out more addresses", answer)
        self.assertIn(b"nothing in the message that could be done", self.order(world, b"\r\n"))
        self.assertIn(b"forward: alice@away.example, keep", self.order(world, b"show\r\n"))
        self.assertIn(b"    none\n", self.order(world, b"forward: off\r\nvacation: off\r\n"))
        self.assertFalse(file.exists())

    def test_addresses_by_mail(self) -> None:
        world = self.make_world(
            '\n[rules]\naddress = "rules@example.test"\naddresses = 2\n',
            aliases="taken: bob\n@example.test: bob\n",
        )
        answer = self.order(world, b"addresses: taken@example.test bob@example.test\r\n")
        self.assertIn(b"addresses: taken@example.test can't be had", answer)
        self.assertIn(b"addresses: bob@example.test can't be had", answer)
        for name in (b"rules", b"a+b"):
            self.assertIn(b"can't be had", self.order(world, b"addresses: %b@example.test\r\n" % name))
        self.assertIn(b"addresses: shop@example.test", self.order(world, b"addresses: shop@example.test\r\n"))
        self.assertIn(
            b"fine@example.test", self.order(world, b"addresses: shop@example.test fine@example.test\r\n")
        )

    def test_whose_login_it_is_decides(self) -> None:
        """And nothing that the mail says: a user who pretends to be another changes his own rules."""
        world = self.make_world(
            '\n[rules]\naddress = "rules@example.test"\n[submission]\ncheck_sender = false\n'
        )
        answer = self.order(world, b"forward: eve@away.example\r\n", login="bob@example.test", author="alice")
        self.assertIn(b"forward: eve@away.example", answer)
        self.assertEqual(
            [path.name for path in (world.directory / "data" / "rules").iterdir()], ["bob@example.test"]
        )
        self.assertEqual(world.mail("alice"), [])

    def test_who_has_mail_sent_on_still_sends_and_nobody_in_her_name(self) -> None:
        world = self.make_world(
            '\n[rules]\naddress = "rules@example.test"\n', rules="forward: bob@example.test\n"
        )
        self.assertIn(b"    none\n", self.order(world, b"forward: off\r\n"))
        self.order(world, b"forward: bob@example.test\r\n")
        self.order(world, b"show\r\n", login="bob@example.test", author="alice")
        self.assertIn("553 5.7.1", self.said)

    def test_a_list_does_not_lend_its_name(self) -> None:
        lists = '\n[[list]]\naddress = "team@example.test"\nmembers = ["rules@example.test", "bob@example.test"]\n'
        world = self.make_world('\n[rules]\naddress = "rules@example.test"\n' + lists)
        order = b"From: alice@example.test\r\n\r\nforward: eve@away.example\r\n"
        self.assertIn("250", self.send(world, "team@example.test", message=order))
        self.assertEqual(len(world.mail("bob")), 1)
        self.assertEqual(list((world.directory / "data" / "rules").iterdir()), [])

    def test_what_her_program_answers_by_itself_is_no_order(self) -> None:
        world = self.make_world('\n[rules]\naddress = "rules@example.test"\n')
        self.order(world, b"show\r\n")
        self.order(world, b"forward: a@b.example\r\n", head=b"Auto-Submitted: auto-replied\r\n")
        self.assertEqual(len(world.mail("alice")), 1, "nor is it answered")
        self.assertEqual(list((world.directory / "data" / "rules").iterdir()), [])

    def test_a_thief_is_seen_where_the_mail_was_forwarded_to(self) -> None:
        world = self.make_world(
            '\n[rules]\naddress = "rules@example.test"\n', rules="forward: alice@away.example\n"
        )
        self.order(world, b"forward: eve@else.example\r\n")
        (told,) = self.away.messages
        self.assertEqual((told.sender, told.recipients), ("", ["alice@away.example"]))
        self.assertIn(b"forward: eve@else.example", quopri.decodestring(told.data))
        (told_here,) = world.mail("alice")
        self.assertIn(b"eve@else.example", told_here)

    def test_an_order_that_is_done_again_after_a_crash(self) -> None:
        world = self.make_world('\n[rules]\naddress = "rules@example.test"\n')
        world.parts.store.record = lambda updates, new=(): Deferred()  # type: ignore[method-assign,assignment]
        with self.assertRaises(IndexError):
            self.order(world, b"forward: alice@away.example\r\n")
        file = world.directory / "data" / "rules" / "alice@example.test"
        self.assertEqual(file.read_text(), "forward: alice@away.example\n", "done, and nobody told yet")
        world.crash()
        world.start()
        world.advance(60)
        self.assertEqual(file.read_text(), "forward: alice@away.example\n")
        self.assertEqual(len(world.mail("alice")), 1)

    def test_mail_that_the_other_host_sends_back(self) -> None:
        for keep, copies in ((", keep", 1), ("", 0)):
            world = self.make_world(rules=f"forward: alice@away.example{keep}\n")
            self.send(world, "alice@example.test")
            (first,) = self.away.messages
            self.assertIn(
                "250", self.send(world, "alice@example.test", sender=first.sender, message=first.data)
            )
            self.assertEqual(len(self.away.messages), 1, "it does not go round")
            self.assertEqual(len(world.mail("alice")), copies)
            (bounce,) = self.home.messages
            self.assertIn(b"loop", bounce.data)

    def test_two_who_forward_to_one_another(self) -> None:
        for keep, copies in ((", keep", (1, 1)), ("", (0, 1))):
            world = self.make_world(rules=f"forward: bob@example.test{keep}\n")
            (world.directory / "data" / "rules" / "bob@example.test").write_text(
                f"forward: alice@example.test{keep}\n"
            )
            world.restart()
            self.send(world, "alice@example.test")
            self.assertEqual((len(world.mail("alice")), len(world.mail("bob"))), copies)
            self.assertEqual(self.home.messages, [], "and no bounce")

    def test_vacation_against_vacation(self) -> None:
        world = self.make_world(rules="vacation:\nI am away.\n")
        (world.directory / "data" / "rules" / "bob@example.test").write_text("vacation:\nSo am I.\n")
        world.restart()
        self.send(world, "alice@example.test", sender="bob@example.test")
        world.advance(600)
        self.assertEqual((len(world.mail("alice")), len(world.mail("bob"))), (1, 1))
        (reply,) = world.mail("bob")
        self.assertIn(b"Auto-Submitted: auto-replied", reply)

    def test_a_reply_to_one_who_has_moved_away(self) -> None:
        world = self.make_world(rules="vacation:\nI am away.\n")
        (world.directory / "data" / "rules" / "bob@example.test").write_text("forward: bob@away.example\n")
        world.restart()
        self.send(world, "alice@example.test", sender="bob@example.test")
        (reply,) = self.away.messages
        self.assertEqual((reply.sender, reply.recipients), ("", ["bob@away.example"]))

    def test_a_reply_as_one_moves_away(self) -> None:
        world = self.make_world(rules="forward: alice@away.example\nvacation:\nI am away.\n")
        self.send(world, "alice+x@example.test", "alice@example.test")
        self.assertEqual((len(self.away.messages), len(self.home.messages), world.mail("alice")), (1, 1, []))

    def test_no_reply_to_programs_lists_and_bounces(self) -> None:
        world = self.make_world(
            '\n[[list]]\naddress = "team@example.test"\nmembers = ["alice@example.test"]\n',
            rules="vacation:\nI am away.\n",
        )
        for head in (
            b"List-Id: <x.example>\r\n",
            b"Precedence: bulk\r\n",
            b"Auto-Submitted: auto-generated\r\n",
            b"X-Spam-Flag: YES\r\n",
        ):
            self.send(world, "alice@example.test", message=head + MESSAGE)
        self.send(world, "alice@example.test", sender="")
        self.send(world, "alice@example.test", sender="list-bounces@example.com")
        self.send(world, "team@example.test")
        self.assertEqual((len(world.mail("alice")), self.home.messages), (7, []))

    def test_no_reply_to_what_is_not_forwarded(self) -> None:
        spam = b"X-Spam-Status: Yes, score=9\r\n" + MESSAGE
        for instead, said, copies in (("keep", "250", 1), ("refuse", "550 5.7.1", 0)):
            world = self.make_world(
                f'\n[forward]\nnot_if_header = ["X-Spam-Status: yes"]\ninstead = "{instead}"\n',
                rules="forward: alice@away.example\nvacation:\nI am away.\n",
            )
            self.assertIn(said, self.send(world, "alice@example.test", message=spam))
            self.assertEqual(len(world.mail("alice")), copies)
            self.assertEqual((self.away.messages, self.home.messages), ([], []))

    def test_forwards_are_counted(self) -> None:
        world = self.make_world('\n[rules]\naddress = "rules@example.test"\nforwards = 2\n')
        three = b"forward: " + b", ".join(b"a%d@away.example" % number for number in range(3)) + b"\r\n"
        self.assertIn(b"at most 2 addresses", self.order(world, three))
        self.assertIn(b"a1@away.example", self.order(world, three.replace(b", a2@away.example", b"")))
        self.send(world, "alice@example.test")
        self.assertEqual(
            [message.recipients for message in self.away.messages], [["a0@away.example", "a1@away.example"]]
        )
        # An administrator may give more; the user keeps them as long as she does not touch them.
        file = world.directory / "data" / "rules" / "alice@example.test"
        file.write_bytes(three.replace(b"\r", b""))
        self.assertIn(b"a2@away.example", self.order(world, b"vacation: I am away.\r\n"))

    def test_what_is_broken_by_hand_holds_up_nobody_else(self) -> None:
        world = self.make_world(
            '\n[rules]\naddress = "rules@example.test"\n', rules="forward: alice@away.example\n"
        )
        world.parts.watch.start()
        directory = world.directory / "data" / "rules"
        with (directory / "alice@example.test").open("a") as file:
            file.write("nonsense\n")
        world.advance(10, 1.0)
        (problem,) = world.parts.watch.problems()
        self.assertIn("rules of users stay as they were: ", problem)
        self.assertIn("alice@example.test: not understood: nonsense", problem)
        self.send(world, "alice@example.test")
        self.assertEqual(
            (len(self.away.messages), world.mail("alice")), (1, []), "the last good one is in force"
        )
        # Others change theirs, by mail and by hand, and aliases go on as well.
        answer = self.order(
            world, b"forward: bob@away.example, keep\r\n", login="bob@example.test", author="bob"
        )
        self.assertIn(b"forward: bob@away.example, keep", answer)
        self.send(world, "bob@example.test")
        self.assertEqual(len(self.away.messages), 2)
        (world.directory / "aliases").write_text("new: bob@example.test\n")
        world.advance(10, 1.0)
        self.assertIn("250", self.send(world, "new@example.test"))
        self.assertEqual(len(world.parts.watch.problems()), 1, "it is told as long as it lasts")
        self.assertIn(b"is broken, the postmaster can mend it", self.order(world, b"forward: off\r\n"))
        (directory / "alice@example.test").write_text("forward: off\n")
        world.advance(10, 1.0)
        self.assertEqual(world.parts.watch.problems(), [])

    def test_aliases_that_are_broken_stay_out_when_a_user_changes_rules(self) -> None:
        world = self.make_world('\n[rules]\naddress = "rules@example.test"\n', aliases="sales: alice\n")
        world.parts.watch.start()
        (world.directory / "aliases").write_text("sales bob\n")
        world.advance(10, 1.0)
        self.assertEqual(len(world.parts.watch.problems()), 1)
        self.order(world, b"forward: alice@away.example, keep\r\n")
        self.assertIn("250", self.send(world, "sales@example.test"))
        self.assertEqual(len(self.away.messages), 1)

    def test_explain_and_trace_tell(self) -> None:
        world = self.make_world(rules="forward: alice@away.example, keep\nvacation:\nI am away.\n")
        told = world.explain("alice@example.test", sender="bob@example.com", message=MESSAGE.decode())
        text = str(told)
        for words in (
            "rules of alice@example.test",
            "alice@away.example",
            "vacation reply to bob@example.com",
            "SRS0=",
        ):
            self.assertIn(words, text)
        self.send(world, "alice@example.test")
        found = {one.transport: one.reply for message in self.history(world) for one in message.recipients}
        self.assertIn("vacation", found)
        (reply,) = [message for message in self.history(world) if message.parent]
        self.assertEqual(reply.origin, "vacation of alice@example.test")

    def test_nobody_else_changes_them(self) -> None:
        world = self.make_world(
            '\n[rules]\naddress = "rules@example.test"\n', aliases="trick: rules@example.test\n"
        )
        order = b"From: alice@example.test\r\n\r\nforward: eve@away.example\r\n"
        self.assertIn(
            "550 5.7.1", self.send(world, "rules@example.test", sender="alice@example.test", message=order)
        )
        self.assertIn("250", self.send(world, "trick@example.test", message=order))
        self.assertEqual(list((world.directory / "data" / "rules").iterdir()), [])
        self.assertIn(b"5.7.1", self.home.messages[0].data)

    def history(self, world: World) -> list[Any]:
        found: list[Any] = []

        async def look() -> None:
            store = world.parts.store
            names = await store.arrivals(0.0, 9e9, 100)
            found.extend(await store.recall(sorted(names)))

        Deferred.fromCoroutine(look())
        return found

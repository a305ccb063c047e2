"""Forwarding in a whole server on a Clock: what leaves, and how bounces come home."""

from __future__ import annotations

import email
import quopri
import re
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.interfaces import Peer
from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.world import World

DAY = 86400.0
MESSAGE = (
    b"DKIM-Signature: v=1; b=x\r\nFrom: bob@example.com\r\nTo: alice@example.test\r\nSubject: hi\r\n"
    b"Message-ID: <1@example.com>\r\n\r\n body \r\n"
)
BOUNCE = b"From: <>\r\nSubject: failed\r\n\r\nno\r\n"
LONG = "0100018c1a2b3c4d-" + "a" * 40 + "@mail.example.com"
SPAM = b"X-Spam-Flag: YES\r\n" + MESSAGE
ALIASES = "alice: alice, alice@away.example\nfar: carol@away.example\nloop: alice@back.example\n"


class ForwardingTests(SynchronousTestCase):
    def make_world(self, config: str = "", peer: SmtpPeer | None = None) -> World:
        world = World(Path(self.mktemp()), config, aliases=ALIASES)
        self.addCleanup(world.close)
        self.away = world.host("away.example", "192.0.2.1", peer)
        self.home = world.host("example.com", "192.0.2.2")
        self.mailer = world.host("mail.example.com", "192.0.2.3")
        return world

    def send(self, world: World, *to: str, sender: str = "bob@example.com", message: bytes = MESSAGE) -> str:
        said = str(world.send(sender, to, message, client="192.0.2.99"))
        world.advance(1)
        return said

    def test_out_under_our_sender_and_the_bounce_back(self) -> None:
        world = self.make_world()
        self.assertIn("250", self.send(world, "alice@example.test"))
        (message,) = self.away.messages
        self.assertRegex(message.sender, r"\ASRS0=\w{6}=\w\w=example\.com=bob@example\.test\Z")
        self.assertTrue(
            message.data.startswith(
                b"Delivered-To: alice@example.test\r\nX-Forwarded-To: alice@away.example\r\nReceived: "
            )
        )
        self.assertTrue(message.data.endswith(MESSAGE), "not an octet of what was signed is changed")
        (kept,) = world.mail("alice")
        self.assertTrue(
            kept.startswith(b"Return-Path: <bob@example.com>\nDelivered-To: alice@example.test\nReceived")
        )
        self.assertIn("250", self.send(world, message.sender.lower(), sender="", message=BOUNCE))
        (returned,) = self.home.messages
        self.assertEqual((returned.sender, returned.recipients), ("", ["bob@example.com"]))
        self.assertTrue(returned.data.startswith(b"Received: "), "a bounce that goes home is no forward")

    def test_only_bounces_that_we_can_know_come_back(self) -> None:
        world = self.make_world()
        self.send(world, "far@example.test")
        sender = self.away.messages[0].sender
        refused = self.send(world, sender, sender="eve@example.com")
        self.assertIn("550 5.7.1 Only bounces", refused)
        forged = sender.replace("=bob@", "=eve@")
        self.assertIn(
            "550 5.7.1 the rewritten address is not one that was made here",
            self.send(world, forged, sender=""),
        )
        world.advance(23 * DAY, 3600.0)
        self.assertIn("550 5.7.1 the rewritten address has expired", self.send(world, sender, sender=""))
        self.assertEqual(self.home.messages, [])

    def test_the_bounce_of_a_sender_that_is_too_long(self) -> None:
        world = self.make_world()
        self.send(world, "far@example.test", sender=LONG)
        sender = self.away.messages[0].sender
        self.assertLess(len(sender.partition("@")[0]), 65)
        self.assertIn("250", self.send(world, sender.lower(), sender="", message=BOUNCE))
        (returned,) = self.mailer.messages
        self.assertEqual((returned.sender, returned.recipients), ("", [LONG]))
        world.advance(16 * DAY, 3600.0)  # the history has forgotten it
        self.assertIn("250", self.send(world, sender, sender="", message=BOUNCE))
        self.assertEqual(len(self.mailer.messages), 1)

    def test_a_bounce_of_our_own_goes_straight_home(self) -> None:
        world = self.make_world(peer=SmtpPeer(replies={"RCPT": "550 5.1.1 No such user"}))
        self.send(world, "far@example.test")
        (bounce,) = self.home.messages
        self.assertEqual((bounce.sender, bounce.recipients), ("", ["bob@example.com"]))
        self.assertIn(b"To: <bob@example.com>", bounce.data)
        self.assertIn(b"far@example.test", bounce.data)
        self.assertNotIn(b"carol@away.example\r\n", bounce.data.partition(b"Diagnostic")[0])

    def test_what_keeps_its_sender(self) -> None:
        world = self.make_world('\n[relay]\nnetworks = ["192.0.2.0/24"]\n')
        self.send(world, "far@example.test", sender="alice@example.test")
        self.send(world, "far@example.test", sender="")
        self.send(world, "carol@away.example")
        senders = [message.sender for message in self.away.messages]
        self.assertEqual(senders, ["alice@example.test", "", "bob@example.com"])

    def test_off(self) -> None:
        world = self.make_world("\n[forward]\nsrs = false\n")
        self.send(world, "far@example.test")
        self.assertEqual(self.away.messages[0].sender, "bob@example.com")

    def test_a_loop_ends_with_the_second_pass(self) -> None:
        world = self.make_world()
        back = world.host("back.example", "192.0.2.5")
        self.send(world, "loop@example.test")
        (first,) = back.messages
        self.assertIn("250", self.send(world, "loop@example.test", sender=first.sender, message=first.data))
        self.assertEqual(len(back.messages), 1)
        (bounce,) = self.home.messages
        self.assertIn(b"mail forwarding loop", bounce.data)

    def test_what_is_marked_stays(self) -> None:
        world = self.make_world('\n[forward]\nnot_if_header = ["X-Spam-Flag: yes"]\n')
        self.assertIn("250", self.send(world, "alice@example.test", message=SPAM))
        self.assertEqual((len(world.mail("alice")), self.away.messages), (1, []))
        said = self.send(world, "far@example.test", "bob@example.test", message=SPAM)
        self.assertIn("550 5.7.1 <far@example.test> is not forwarded", said)
        self.assertEqual((world.mail("bob"), self.home.messages), ([], []))

    def test_marked_mail_for_the_members_of_a_list(self) -> None:
        lists = (
            '\n[[list]]\naddress = "team@example.test"\nmembers = ["far@example.test", "bob@example.test"]\n'
        )
        world = self.make_world('\n[forward]\nnot_if_header = ["X-Spam-Flag: yes"]\n' + lists)
        self.assertIn("250", self.send(world, "team@example.test", message=SPAM))
        self.assertEqual((len(world.mail("bob")), self.away.messages), (1, []))

    def test_a_new_secret_is_taken_up_and_the_old_one_stays_good(self) -> None:
        world = self.make_world()
        world.parts.watch.start()
        self.send(world, "far@example.test")
        secret = world.directory / "data" / "srs-secret"
        self.assertEqual(secret.stat().st_mode & 0o777, 0o600)
        secret.write_text("n" * 32 + "\n" + secret.read_text())
        world.advance(10, 1.0)
        self.send(world, "far@example.test")
        old, new = (message.sender for message in self.away.messages)
        self.assertNotEqual(old, new)
        for sender in (old, new):
            self.assertIn("250", self.send(world, sender, sender="", message=BOUNCE))
        self.assertEqual(len(self.home.messages), 2)

    def test_the_history_tells_the_sender(self) -> None:
        world = self.make_world()
        self.send(world, "far@example.test")
        found: list[Any] = []

        async def look() -> None:
            names = await world.parts.store.mentions(self.away.messages[0].sender, 10)
            found.extend(await world.parts.store.recall(names))

        Deferred.fromCoroutine(look())
        (message,) = found
        self.assertTrue(re.match("SRS0=", message.recipients[0].sender))


class RulesTests(SynchronousTestCase):
    """What users decide, in a whole server."""

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

    def order(self, world: World, text: bytes, login: str = "alice@example.test") -> bytes:
        """A mail to the server as submission brings it, and its answer."""
        account = world.parts.accounts.directory.account(Address.parse(login)) if login else None
        peer = Peer(address="192.0.2.7", port=1, role="submission", account=account)
        envelope = Envelope(
            Address.parse("alice@example.test"), (Recipient(Address.parse("rules@example.test")),)
        )
        sink = world.parts.reception.message(peer, envelope)
        sink.write(b"Date: x\r\nFrom: alice@example.test\r\nContent-Type: text/plain\r\n\r\n" + text)
        replies: list[Any] = []

        async def finish() -> None:
            replies.append(await sink.finish())

        Deferred.fromCoroutine(finish())
        world.advance(1)
        self.assertEqual(replies[0].code, 250)
        found: bytes = world.mail("alice")[-1]
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
        for name in (b"postmaster", b"rules", b"a+b"):
            self.assertIn(b"can't be had", self.order(world, b"addresses: %b@example.test\r\n" % name))
        self.assertIn(b"addresses: shop@example.test", self.order(world, b"addresses: shop@example.test\r\n"))
        self.assertIn(
            b"fine@example.test", self.order(world, b"addresses: shop@example.test fine@example.test\r\n")
        )

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

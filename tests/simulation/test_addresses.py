"""Addresses of all kinds, through the whole server on a clock."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.testing.world import World

HOUR = 3600.0
MESSAGE = b"From: x@example.org\r\nSubject: hello\r\n\r\nbody\r\n"

CONFIG = """
[[domain]]
name = "old.test"
alias_of = "example.test"

[[domain]]
name = "backup.test"
relay = true
recipients = "backup"

[[domain]]
name = "open.test"
relay = true

[[domain]]
name = "shop.test"
catch_all = "bob@example.test"
message_size = "64K"

[virtual]
"sales-(.*)@shop.test" = "{1}@crm.example.net"

[limits]
vrfy = "anyone"
expn = "anyone"
"""

ALIASES = """\
team: alice, crew@example.org, ghost
owner-team: bob
spam: :blackhole:
gone: :fail: She left the company
moving: :defer: The mailbox is being moved
some: gone, moving, bob
carol: \\alice, bob
owner-list: bob
list: moving
"""


class AddressTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir(parents=True)
        (directory / "backup").write_text("joe\n# jim left\n")
        self.world = World(directory, CONFIG, aliases=ALIASES)
        self.addCleanup(self.world.close)
        self.peer = self.world.host("example.net", "192.0.2.1")
        for domain in ("backup.test", "open.test", "crm.example.net", "example.org"):
            self.world.resolver.data["mx"][domain] = [(10, "mx.example.net")]

    def send(self, *recipients: str, sender: str = "dave@example.org", body: bytes = MESSAGE) -> str:
        return str(self.world.send(sender, recipients, body))

    def at_peer(self) -> list[tuple[str, list[str]]]:
        return [(message.sender, message.recipients) for message in self.peer.messages]

    def test_an_alias_of_a_domain(self) -> None:
        self.assertTrue(self.send("alice@old.test").startswith("250"))
        self.assertEqual(len(self.world.mail("alice")), 1)
        self.assertEqual(self.send("nobody@old.test"), "550 5.1.1 there is no user nobody@old.test here")

    def test_backup_mx(self) -> None:
        self.assertTrue(self.send("joe@backup.test", "any@open.test").startswith("250"))
        self.world.advance(HOUR)
        self.assertEqual(
            sorted(self.at_peer()),
            [("dave@example.org", ["any@open.test"]), ("dave@example.org", ["joe@backup.test"])],
        )
        self.assertEqual(self.send("jim@backup.test"), "550 5.1.1 there is no user jim@backup.test here")
        self.assertTrue(self.send("x@other.test").startswith("550 5.7.1"))

    def test_patterns_and_the_catch_all(self) -> None:
        self.assertTrue(self.send("Sales-North@shop.test").startswith("250"))
        self.assertTrue(self.send("whoever@shop.test").startswith("250"))
        self.world.advance(HOUR)
        ((sender, recipients),) = self.at_peer()
        self.assertTrue(sender.startswith("SRS0="), sender)  # since it is forwarded
        self.assertEqual(recipients, ["North@crm.example.net"])
        self.assertEqual(len(self.world.mail("bob")), 1)

    def test_the_owner_of_an_alias_is_the_sender_and_gets_the_bounce(self) -> None:
        self.assertTrue(self.send("team@example.test").startswith("250"))
        self.world.advance(HOUR)
        self.assertEqual(self.at_peer(), [("owner-team@example.test", ["crew@example.org"])])
        (copy,) = self.world.mail("alice")
        self.assertIn(b"Return-Path: <owner-team@example.test>", copy)
        (bounce,) = self.world.mail("bob")
        self.assertIn(b"there is no user ghost@example.test here", bounce)

    def test_targets_that_take_no_mail(self) -> None:
        self.assertTrue(self.send("spam@example.test").startswith("250"))
        self.assertEqual(self.world.queued(), [])
        self.assertEqual(self.send("gone@example.test"), "550 5.2.1 She left the company")
        self.assertEqual(self.send("moving@example.test"), "450 4.2.1 The mailbox is being moved")

    def test_backslash(self) -> None:
        self.assertTrue(self.send("carol@example.test").startswith("250"))
        self.assertEqual((len(self.world.mail("alice")), len(self.world.mail("bob"))), (1, 1))

    def test_one_of_several_that_takes_none(self) -> None:
        self.assertTrue(self.send("some@example.test").startswith("250"))
        self.world.advance(HOUR)
        self.assertEqual(len(self.world.mail("bob")), 1)
        self.assertEqual(self.at_peer(), [("", ["dave@example.org"])])
        self.assertIn(b"She left the company", self.peer.messages[0].data)
        self.assertEqual(self.world.queued(), ["moving@example.test"])

    def test_a_domain_that_takes_only_small_messages(self) -> None:
        large = MESSAGE + b"x" * 70 + b"\r\n" * 40_000
        reply = "552 5.2.3 messages for shop.test may have 65536 octets at most"
        self.assertEqual(self.send("bob@shop.test", body=large), reply)
        self.assertTrue(self.send("bob@shop.test", "bob@example.test", body=large).startswith("250"))
        self.world.advance(HOUR)
        self.assertEqual(len(self.peer.messages), 1, "the first was refused, and needs no bounce")
        self.assertIn(b"552 5.2.3 messages for shop.test may have 65536 octets", self.peer.messages[0].data)
        self.assertTrue(self.send("bob@example.test", body=large).startswith("250"))

"""Forwarding in a whole server on a Clock: what leaves, and how bounces come home."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

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

    def test_what_was_signed_leaves_as_it_came(self) -> None:
        """Every octet below our own fields, whatever a tidy program would change; and none where none is needed."""
        odd = (
            b"Received: from x\r\nDKIM-Signature: v=1; h=from:\tTo ;\r\n\tb=abc=  \r\nfRoM:bob@example.com   \r\n"
            b"To: alice@example.test,\r\n carol\r\nSubject: =?utf-8?q?J=C3=B6rg?=\r\nX-Empty:\r\nResent-To: x@y\r\n"
            b"\r\n\t body \r\n.\r\n..\r\n\r\n\r\n"
        )
        eight = odd.replace(b"body", b"J\xc3\xb6rg")
        for message, asking, extensions in (
            (odd, "", ("PIPELINING", "8BITMIME")),
            (odd, "", ()),
            (odd, "BODY=8BITMIME", ("8BITMIME",)),
            (eight, "BODY=8BITMIME", ("PIPELINING", "8BITMIME", "CHUNKING")),
        ):
            world = self.make_world(peer=SmtpPeer(extensions))
            world.send("bob@example.com", ["far@example.test"], message, "192.0.2.99", asking=asking)
            world.advance(1)
            (copy,) = self.away.messages
            self.assertTrue(copy.data.endswith(message), (message, copy.data))
            added = copy.data.removesuffix(message)
            self.assertEqual(
                re.findall(rb"^[\w-]+(?=:)", added, re.M), [b"Delivered-To", b"X-Forwarded-To", b"Received"]
            )

    def test_eight_bits_for_a_host_that_takes_seven(self) -> None:
        """RFC 6376 §5.3: conversion breaks the signature, which the author's server could have avoided. It is done all the
        same, as RFC 6152 has it, or the message goes back: what `relay.eightbit` says."""
        mime = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n" + MESSAGE
        eight = mime.replace(b" body ", b" J\xc3\xb6rg ")
        for setting, copies, bounces in (("convert", 1, 0), ("bounce", 0, 1)):
            world = self.make_world(f'\n[relay]\neightbit = "{setting}"\n', SmtpPeer(("PIPELINING",)))
            world.send("bob@example.com", ["far@example.test"], eight, "192.0.2.99", asking="BODY=8BITMIME")
            world.advance(1)
            self.assertEqual((len(self.away.messages), len(self.home.messages)), (copies, bounces))
            if copies:
                data = self.away.messages[0].data
                self.assertTrue(data.isascii())
                self.assertIn(b"\r\nFrom: bob@example.com\r\nTo: alice@example.test\r\n", data)
                self.assertIn(b"\r\nContent-Transfer-Encoding: base64\r\n", data)
            else:
                self.assertIn(b"5.6.3", self.home.messages[0].data)

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

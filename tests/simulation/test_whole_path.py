"""The whole server on a Clock, from the client's commands to the last mailbox or bounce."""

from __future__ import annotations

import email
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.world import World

HOUR = 3600.0
DAY = 24 * HOUR
MESSAGE = (
    b"From: alice@example.test\r\nSubject: hello\r\nMessage-ID: <1@example.test>\r\n\r\n.dot\r\nbody\r\n"
)

RELAY = '\n[relay]\nnetworks = ["127.0.0.0/8"]\n'


class WholePathTests(SynchronousTestCase):
    def make_world(self, config: str = "", **options: Any) -> World:
        world = World(Path(self.mktemp()), config, **options)
        self.addCleanup(world.close)
        return world

    def send(self, world: World, *recipients: str, sender: str = "alice@example.test") -> None:
        reply = world.send(sender, recipients, MESSAGE)
        self.assertEqual(reply.code, 250, str(reply))

    def test_alias_to_a_mailbox(self) -> None:
        world = self.make_world(aliases="sales: bob\n")
        self.send(world, "sales@example.test")
        (message,) = world.mail("bob")
        head, _, body = message.partition(b"Message-ID")
        self.assertEqual(body, b": <1@example.test>\n\n.dot\nbody\n")
        self.assertTrue(
            head.startswith(b"Return-Path: <alice@example.test>\nDelivered-To: bob@example.test\nReceived: ")
        )
        self.assertEqual(world.queued(), [])

    def test_list_of_three_is_one_body(self) -> None:
        lists = (
            '\n[[list]]\naddress = "team@example.test"\nowner = "alice@example.test"\n'
            'members = ["alice@example.test", "bob@example.test", "carol@example.org"]\n'
        )
        world = self.make_world(lists)
        peer = world.host("example.org", "192.0.2.1")
        up, world.network.servers = world.network.servers, {}
        self.send(world, "team@example.test", sender="dave@example.org")
        # Its server is down: that copy waits, and all share one body.
        self.assertEqual(world.queued(), ["carol@example.org"])
        for user in ("alice", "bob"):
            (copy,) = world.mail(user)
            self.assertTrue(copy.startswith(b"Return-Path: <team-bounces@example.test>\n"), copy)
            self.assertIn(b"\nList-Id: <team.example.test>\n", copy)
            self.assertIn(b"\nList-Post: <mailto:team@example.test>\n", copy)
        self.assertEqual(world.bodies(), 1)
        world.network.servers = up
        world.advance(HOUR)
        self.assertEqual(
            [(m.sender, m.recipients) for m in peer.messages],
            [("team-bounces@example.test", ["carol@example.org"])],
        )
        self.assertTrue(peer.messages[0].data.endswith(MESSAGE))
        self.assertEqual((world.queued(), world.bodies()), ([], 0))

    def test_bounce_of_a_post_reaches_the_owner(self) -> None:
        lists = '\n[[list]]\naddress = "team@example.test"\nowner = "bob@example.test"\nmembers = ["gone@example.org"]\n'
        world = self.make_world(lists)
        world.host(
            "example.org", "192.0.2.1", SmtpPeer(replies={"RCPT gone@example.org": "550 5.1.1 No such user"})
        )
        self.send(world, "team@example.test", sender="dave@example.org")
        world.advance(1)
        self.assertEqual(len(world.mail("bob")), 1)
        self.assertIn(b"550 5.1.1 No such user", world.mail("bob")[0])

    def test_451_twice_then_accepted(self) -> None:
        world = self.make_world(RELAY + "\n[queue]\nschedule = '30m, 1h'\n")
        peer = world.host(
            "example.org", "192.0.2.1", SmtpPeer(replies={"RCPT": ["451 4.7.1 Later", "451 4.7.1 Later"]})
        )
        self.send(world, "carol@example.org")
        world.advance(60)
        self.assertEqual((peer.connections, len(peer.messages)), (1, 0))
        world.advance(40 * 60)
        self.assertEqual((peer.connections, len(peer.messages)), (2, 0))
        world.advance(35 * 60)
        self.assertEqual(len(peer.messages), 0, "the second pause is an hour, more or less")
        world.advance(30 * 60)
        self.assertEqual((peer.connections, len(peer.messages)), (3, 1))
        self.assertTrue(peer.messages[0].data.endswith(MESSAGE))
        self.assertEqual((world.queued(), world.mail("alice")), ([], []))

    def test_550_bounces_to_the_sender(self) -> None:
        world = self.make_world(RELAY)
        replies: Any = {"RCPT nobody@example.org": "550 5.1.1 No such user"}
        peer = world.host("example.org", "192.0.2.1", SmtpPeer(replies=replies))
        self.send(world, "nobody@example.org", "carol@example.org")
        world.advance(1)
        self.assertEqual(peer.messages[0].recipients, ["carol@example.org"], "the others are served")
        (bounce,) = world.mail("alice")
        self.assertTrue(bounce.startswith(b"Return-Path: <>\n"))
        report = email.message_from_bytes(bounce)
        self.assertEqual(report.get_content_type(), "multipart/report")
        text, status, original = report.get_payload()
        self.assertIn("nobody@example.org", text.get_payload())
        fields = status.get_payload()[1]
        self.assertEqual((fields["Action"], fields["Status"]), ("failed", "5.1.1"))
        self.assertIn("550 5.1.1 No such user", fields["Diagnostic-Code"])
        self.assertIn("Subject: hello", original.as_string())
        self.assertIn(".dot", original.as_string())
        self.assertEqual(world.queued(), [])

    def test_five_days_down(self) -> None:
        world = self.make_world(RELAY)
        world.host("example.org", "192.0.2.1")
        world.network.servers.clear()
        self.send(world, "carol@example.org")
        world.advance(8 * HOUR, step=300)
        (warning,) = world.mail("alice")
        self.assertEqual(
            email.message_from_bytes(warning).get_payload()[1].get_payload()[1]["Action"], "delayed"
        )
        world.advance(5 * DAY, step=300)
        self.assertEqual(len(world.mail("alice")), 2)
        bounce = email.message_from_bytes(world.mail("alice")[1])
        fields = bounce.get_payload()[1].get_payload()[1]
        self.assertEqual((fields["Action"], fields["Status"]), ("failed", "4.4.1"))
        self.assertEqual(world.queued(), [])

    def test_restart_keeps_the_queue(self) -> None:
        world = self.make_world(RELAY)
        peer = world.host("example.org", "192.0.2.1")
        up, world.network.servers = world.network.servers, {}
        self.send(world, "carol@example.org")
        world.restart()
        self.assertEqual(world.queued(), ["carol@example.org"])
        world.network.servers = up
        world.advance(HOUR)
        self.assertEqual(len(peer.messages), 1)

    def test_no_bounce_of_a_bounce(self) -> None:
        world = self.make_world(RELAY)
        world.host("example.org", "192.0.2.1", SmtpPeer(replies={"RCPT": "550 5.1.1 No such user"}))
        reply = world.send("", ["carol@example.org"], MESSAGE)
        self.assertEqual(reply.code, 250)
        world.advance(DAY, step=600)
        self.assertEqual(([world.mail("alice"), world.mail("bob")], world.queued()), ([[], []], []))
        (told,) = world.mail("postmaster")
        self.assertIn(b"\nSubject: A notification could not be delivered\n", told)
        self.assertIn(b"\nReturn-Path: <>\n", b"\n" + told)

    def test_the_postmaster_cannot_be_told_either(self) -> None:
        world = self.make_world(RELAY, aliases="postmaster: gone@example.org\n")
        peer = world.host("example.org", "192.0.2.1", SmtpPeer(replies={"RCPT": "550 5.1.1 No such user"}))
        world.send("", ["carol@example.org"], MESSAGE)
        world.advance(DAY, step=600)
        self.assertEqual(
            ([world.mail(user) for user in ("alice", "postmaster")], world.queued()), ([[], []], [])
        )
        self.assertEqual(
            [line for line in peer.commands if line.startswith("RCPT")],
            ["RCPT TO:<carol@example.org>", "RCPT TO:<gone@example.org>"],
        )

    def test_refusals(self) -> None:
        world = self.make_world()
        for recipient, status in (("nobody@example.test", "5.1.1"), ("carol@example.org", "5.7.1")):
            reply = world.send("dave@example.org", [recipient], MESSAGE, client="192.0.2.9")
            self.assertEqual((reply.code, reply.enhanced), (550, status))

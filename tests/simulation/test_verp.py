"""A list whose posts leave with a sender for each member, and the bounces that come back to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.testing.world import World

MESSAGE = b"From: alice@example.test\r\nSubject: hello\r\n\r\nbody\r\n"
CONFIG = """
[[list]]
address = "team@example.test"
owner = "alice@example.test"
members = ["alice@example.test", "carol@example.net", "dave@example.net", "erin@example.net", "gone@example.net"]
verp = true
"""


class VerpTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(Path(self.mktemp()), CONFIG)
        self.addCleanup(self.world.close)
        self.peer = self.world.host("example.net", "192.0.2.1")
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def bounced(self) -> list[tuple[str, str]]:
        found = [event for event in self.events if event.get("event") == "member_bounced"]
        return [(event["member"], event["list"]) for event in found]

    def test_each_member_has_a_transaction_and_a_sender_of_its_own(self) -> None:
        self.world.send("bob@example.test", ["team@example.test"], MESSAGE)
        self.world.advance(60)
        self.assertEqual(
            [(message.sender, message.recipients) for message in self.peer.messages],
            [
                (f"team-bounces+{name}=example.net@example.test", [f"{name}@example.net"])
                for name in ("carol", "dave", "erin", "gone")
            ],
        )
        self.assertEqual(self.peer.connections, 1)
        self.assertEqual(self.world.bodies(), 0)

    def test_a_bounce_tells_the_member_by_its_address(self) -> None:
        reply = self.world.send(
            "", ["team-bounces+gone=example.net@example.test"], b"Subject: no\r\n\r\nx\r\n"
        )
        self.assertEqual(reply.code, 250)
        self.world.advance(60)
        self.assertEqual(self.bounced(), [("gone@example.net", "team@example.test")])
        self.assertEqual(len(self.world.mail("alice")), 1)

    def test_a_letter_to_that_address_is_no_bounce_and_of_other_names_nobody_knows(self) -> None:
        self.world.send("x@example.org", ["team-bounces+gone=example.net@example.test"], MESSAGE)
        reply = self.world.send("", ["other-bounces+gone=example.net@example.test"], MESSAGE)
        self.assertEqual(reply.code, 550)
        self.assertEqual(self.bounced(), [])

    def test_what_is_refused_at_once_is_told_to_the_owner_from_the_queue(self) -> None:
        self.peer.replies = {"RCPT gone@example.net": "550 5.1.1 no such user"}
        self.world.send("bob@example.test", ["team@example.test"], MESSAGE)
        self.world.advance(60)
        self.assertEqual(len(self.peer.messages), 3)
        letters = self.world.mail("alice")
        self.assertEqual(len([letter for letter in letters if b"550 5.1.1 no such user" in letter]), 1)

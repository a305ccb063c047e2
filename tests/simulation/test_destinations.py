"""The whole server and destinations of many kinds: dead, busy, slow, and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.pace import START
from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.world import World

from .test_whole_path import DAY, HOUR, MESSAGE, RELAY

MINUTE = 60.0
A = "192.0.2.1"


class DestinationCase(SynchronousTestCase):
    config = RELAY + 'concurrency = 3\nconnect_timeout = "30s"\n\n[queue]\nschedule = "10m, 30m, 1h"\n'

    def setUp(self) -> None:
        self.world = World(Path(self.mktemp()), self.config)
        self.addCleanup(lambda: self.world.close())
        self.peer = self.world.host("example.org", A)

    def send(self, count: int = 1, domain: str = "example.org") -> None:
        for _ in range(count):
            self.assertEqual(self.world.send("alice@example.test", [f"bob@{domain}"], MESSAGE).code, 250)

    def attempts(self) -> int:
        """Connections tried since the last look."""
        found = len(self.world.network.attempts)
        self.world.network.attempts.clear()
        return found

    def destination(self) -> dict[str, Any]:
        (found,) = self.world.parts.queue.destinations()
        return found


class DeadTests(DestinationCase):
    def test_one_probe_for_all(self) -> None:
        self.world.network.unreachable = {A}
        self.send(300)
        self.world.advance(MINUTE, step=1.0)
        # As many as go at once to a destination that nothing is known of.
        self.assertLessEqual(self.attempts(), START)
        self.assertEqual(self.world.parts.queue.active, 0)
        for _ in range(20):
            self.world.advance(30 * MINUTE)
            self.assertLessEqual(self.attempts(), 5)
        self.assertEqual(len(self.world.queued()), 300)
        found = self.destination()
        self.assertEqual((found["state"], found["put_off"]), ("down", 300))

    def test_new_mail_does_not_wait_for_a_timeout(self) -> None:
        self.world.network.unreachable = {A}
        self.send()
        self.world.advance(MINUTE, step=1.0)
        self.attempts()
        self.send(50)
        self.assertEqual((self.attempts(), self.world.parts.queue.active), (0, 0))

    def test_when_it_is_back_everything_comes_at_once(self) -> None:
        self.world.network.unreachable = {A}
        self.send(250)
        self.world.advance(6 * HOUR)
        self.world.network.unreachable = set()
        self.attempts()
        self.world.advance(30 * MINUTE + 60, step=1.0)
        self.assertEqual((len(self.peer.messages), self.world.queued()), (250, []))

    def test_a_retry_by_hand_is_a_probe(self) -> None:
        self.world.network.unreachable = {A}
        self.send(10)
        self.world.advance(MINUTE, step=1.0)
        self.world.network.unreachable = set()
        self.world.parts.queue.wake()
        self.send()
        self.world.advance(1)
        self.assertEqual(len(self.peer.messages), 11)

    def test_the_sender_is_warned_and_told_though_nothing_is_tried(self) -> None:
        self.world.network.unreachable = {A}
        self.send(20)
        self.world.advance(5 * HOUR)
        self.assertEqual(len(self.world.mail("alice")), 20)
        self.assertIn(b"Subject: Your message is delayed", self.world.mail("alice")[0])
        self.world.advance(5 * DAY, step=10 * MINUTE)
        self.assertEqual((len(self.world.mail("alice")), self.world.queued()), (40, []))

    def test_others_are_not_held_up(self) -> None:
        other = self.world.host("example.com", "192.0.2.2")
        self.world.network.unreachable = {A}
        for _ in range(40):
            self.send(1)
            self.send(1, "example.com")
        self.world.advance(1)
        self.assertEqual(len(other.messages), 40)

    def test_not_after_a_restart(self) -> None:
        """What is known of destinations is in memory only: nothing hangs on it."""
        self.world.network.unreachable = {A}
        self.send(30)
        self.world.advance(MINUTE, step=1.0)
        self.world.restart()
        self.world.network.unreachable = set()
        self.world.advance(2 * HOUR)
        self.assertEqual((len(self.peer.messages), self.world.queued()), (30, []))


class BusyTests(DestinationCase):
    def test_fewer_at_once(self) -> None:
        self.peer.replies = {"greeting": ["421 4.7.0 too many connections"] * 2}
        self.send(2)
        self.world.advance(1)
        self.assertEqual((self.destination()["state"], self.destination()["concurrency"]), ("slowed", 1))
        self.send(5)
        self.world.advance(1)
        self.assertEqual(len(self.peer.messages), 5)

    def test_left_in_peace_when_it_turns_everybody_away(self) -> None:
        self.peer.replies = {"greeting": "421 4.3.2 overloaded"}
        self.send(200)
        self.world.advance(MINUTE, step=1.0)
        self.assertLessEqual(self.attempts(), 6)
        self.assertEqual(self.destination()["state"], "down")
        self.peer.replies = {}
        self.world.advance(40 * MINUTE, step=5.0)
        self.assertEqual((len(self.peer.messages), self.world.queued()), (200, []))


class RateTests(DestinationCase):
    config = DestinationCase.config + (
        '\n[[relay.domain]]\nnames = ["example.org"]\nrate = 6\nschedule = "1m"\nexpire = "1h"\n'
    )

    def test_so_many_in_a_minute(self) -> None:
        self.send(20)
        for minute in range(1, 4):
            self.world.advance(MINUTE, step=1.0)
            self.assertEqual(len(self.peer.messages), 6 * minute + 1)

    def test_schedule_and_expiry_of_its_own(self) -> None:
        self.peer.replies = {"RCPT": "450 4.2.0 later"}
        self.send()
        self.world.advance(10 * MINUTE, step=5.0)
        self.assertGreaterEqual(sum(line.startswith("RCPT") for line in self.peer.commands), 9)
        self.world.advance(HOUR)
        self.assertEqual((len(self.world.mail("alice")), self.world.queued()), (1, []))


class CrowdedTests(DestinationCase):
    config = DestinationCase.config.replace("[queue]\n", "[queue]\nactive = 20\n")

    def test_a_slow_destination_leaves_room_for_others(self) -> None:
        """Its server hangs at each message, and its mail alone would fill the window."""
        slow = self.world.host("slow.example", "192.0.2.3", SmtpPeer(replies={"greeting": "silence"}))
        self.send(60, "slow.example")
        self.send(10)
        self.world.advance(MINUTE, step=1.0)
        self.assertEqual(len(self.peer.messages), 10)
        self.assertGreaterEqual(slow.connections, 1)

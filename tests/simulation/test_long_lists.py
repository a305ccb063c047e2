"""A post to a long list drains in bounded steps, and the queue never holds its body twice."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.world import World

MESSAGE = b"From: alice@example.test\r\nSubject: hello\r\n\r\nbody\r\n"
MEMBERS = 900
WINDOW = 100


class LongListTests(SynchronousTestCase):
    def setUp(self) -> None:
        members = ", ".join(f'"m{number}@d{number % 3}.example.org"' for number in range(MEMBERS))
        config = (
            f"\n[queue]\nactive = {WINDOW}\n[[list]]\n"
            f'address = "all@example.test"\nowner = "alice@example.test"\nmembers = [{members}]\n'
        )
        self.world = World(Path(self.mktemp()), config)
        self.addCleanup(self.world.close)
        self.peers = [
            self.world.host(f"d{number}.example.org", f"192.0.2.{number + 1}") for number in range(3)
        ]

    def seen(self) -> list[str]:
        return [
            recipient for peer in self.peers for message in peer.messages for recipient in message.recipients
        ]

    def test_each_gets_it_once_over_one_body(self) -> None:
        world = self.world
        world.network.latency = 0.5
        self.assertEqual(world.send("dave@example.org", ["all@example.test"], MESSAGE).code, 250)
        depths = [len(world.queued())]
        self.assertEqual(depths, [MEMBERS])
        while depths[-1]:
            self.assertLessEqual(world.parts.queue.active, WINDOW)
            self.assertEqual(world.bodies(), 1)
            world.network.advance(0.5)
            depths.append(len(world.queued()))
            self.assertLess(len(depths), 10_000, "the post does not drain")
        self.assertEqual(world.bodies(), 0)
        self.assertEqual(len(self.seen()), MEMBERS)
        self.assertEqual(len(set(self.seen())), MEMBERS)
        # In steps, each of a few transactions.
        self.assertGreater(len(set(depths)), MEMBERS // WINDOW // 2)

    def test_a_domain_that_is_down_holds_up_nobody_else(self) -> None:
        world = self.world
        del world.network.servers["192.0.2.1", 25]
        world.network.unreachable.add("192.0.2.1")
        self.assertEqual(world.send("dave@example.org", ["all@example.test"], MESSAGE).code, 250)
        world.advance(600)
        self.assertEqual([len(self.of(peer)) for peer in self.peers], [0, MEMBERS // 3, MEMBERS // 3])
        self.assertEqual(len(world.queued()), MEMBERS // 3)
        self.assertEqual(world.bodies(), 1)

    def of(self, peer: SmtpPeer) -> list[str]:
        return [recipient for message in peer.messages for recipient in message.recipients]

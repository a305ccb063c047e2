"""net.patience: the time that a peer has, and that it costs little to keep."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.effects import Pace
from twisted_mta.net.patience import Patience


class PatienceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.over: list[float] = []
        self.patience = Patience(self.clock, lambda: self.over.append(self.clock.seconds()))

    def advance(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.advance(1)

    def test_a_move_gives_more_time_and_sets_no_timer(self) -> None:
        self.patience.peer_turn(Pace(300), 1)
        timers: list[Any] = self.clock.getDelayedCalls()
        for count in range(50):
            self.patience.peer_turn(Pace(300), count)
            self.clock.advance(1)
        self.assertEqual(self.clock.getDelayedCalls(), timers)
        self.advance(298)
        self.assertEqual(self.over, [])
        self.advance(2)
        self.assertEqual(self.over, [349])

    def test_less_time_than_before(self) -> None:
        self.patience.peer_turn(Pace(300))
        self.patience.at_most(5)
        self.advance(10)
        self.assertEqual(self.over, [5])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_our_turn_has_no_end(self) -> None:
        self.patience.peer_turn(Pace(10))
        self.patience.our_turn()
        self.advance(1000)
        self.assertEqual(self.over, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.patience.peer_turn(Pace(10))
        self.advance(10)
        self.assertEqual(self.over, [1010])

    def test_the_whole_counts_the_turns_of_the_peer_only(self) -> None:
        self.patience.peer_turn(Pace(100, 150), 1)
        self.advance(90)
        self.patience.our_turn()
        self.advance(500)
        self.patience.peer_turn(Pace(100, 150), 1)
        self.advance(59)
        self.assertEqual(self.over, [])
        self.advance(1)
        self.assertEqual(self.over, [650])

    def test_stopped(self) -> None:
        self.patience.peer_turn(Pace(10))
        self.patience.stop()
        self.patience.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

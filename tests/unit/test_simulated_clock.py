"""The clock that jumps."""

from __future__ import annotations

import unittest

from twisted.internet.interfaces import IReactorTime
from zope.interface.verify import verifyObject

from twisted_mta.service.simulation.clock import SimulatedClock


class SimulatedClockTests(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = SimulatedClock(1000.0)
        self.seen: list[tuple[float, str]] = []

    def note(self, what: str) -> None:
        self.seen.append((self.clock.seconds(), what))

    def test_interface(self) -> None:
        verifyObject(IReactorTime, self.clock)

    def test_calls_come_at_their_times_and_in_order(self) -> None:
        for delay, what in ((5.0, "b"), (1.0, "a"), (5.0, "c"), (11.0, "later")):
            self.clock.callLater(delay, self.note, what)
        self.clock.run_until(1010.0)
        self.assertEqual(self.seen, [(1001.0, "a"), (1005.0, "b"), (1005.0, "c")])
        self.assertEqual(self.clock.seconds(), 1010.0)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_what_a_call_asks_for_comes_too(self) -> None:
        self.clock.callLater(1.0, lambda: self.clock.callLater(0.0, self.note, "at once"))
        self.clock.callLater(1.0, lambda: self.clock.callLater(2.0, self.note, "then"))
        self.clock.run_until(1010.0)
        self.assertEqual(self.seen, [(1001.0, "at once"), (1003.0, "then")])

    def test_cancelled_and_moved(self) -> None:
        self.clock.callLater(1.0, self.note, "never").cancel()
        later, earlier, delayed = (self.clock.callLater(3.0, self.note, what) for what in "lex")
        later.reset(6.0)
        earlier.reset(1.0)
        delayed.delay(1.0)
        self.assertEqual(len(self.clock.getDelayedCalls()), 3)
        self.clock.run_until(1010.0)
        self.assertEqual(self.seen, [(1001.0, "e"), (1004.0, "x"), (1006.0, "l")])
        self.assertFalse(earlier.active())

    def test_a_resolution_brings_calls_together(self) -> None:
        self.clock = SimulatedClock(1000.0, 60.0)
        for delay in (0.0, 1.0, 59.0, 60.0, 61.0, 500.0):
            self.clock.callLater(delay, self.note, str(delay))
        self.clock.run_until(1130.0)
        times = [(1000.0, "0.0"), (1060.0, "1.0"), (1060.0, "59.0"), (1060.0, "60.0"), (1120.0, "61.0")]
        self.assertEqual(self.seen, times)
        self.clock.run_until(1500.0)
        self.assertEqual(self.seen[-1], (1500.0, "500.0"))

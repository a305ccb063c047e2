"""Tests for twisted_mta.core.pace."""

from __future__ import annotations

import unittest

from hypothesis import given
from hypothesis import strategies as st

from twisted_mta.core.pace import EARLY, MAX_PROBE_DELAY, PATIENCE, START, Pace, Sign, State, sign
from twisted_mta.core.queue import Delivered, Failed, Outcome, TryLater
from twisted_mta.core.replies import Reply

DELAYS = (300.0, 900.0, 7200.0)


def later(code: int, enhanced: str, *, reached: bool = True) -> TryLater:
    return TryLater(Reply(code, enhanced, "x"), "mx.x.test", reached=reached)


GONE = later(451, "4.4.1", reached=False)
BUSY = later(421, "4.3.2")
OK = Delivered(Reply(250, "2.0.0", "ok"))


class SignTests(unittest.TestCase):
    def test_of_one_outcome(self) -> None:
        for outcome, expected in (
            (OK, Sign.WELL),
            (Failed(Reply(550, "5.1.1", "no"), "mx.x.test"), Sign.WELL),
            (Failed(Reply(550, "5.1.2", "no such domain")), Sign.NONE),
            (TryLater(Reply(451, "4.3.0", "a bug")), Sign.NONE),
            (later(450, "4.2.1"), Sign.WELL),
            (later(452, "4.3.1"), Sign.WELL),
            (later(451, "4.7.1"), Sign.RELUCTANT),
            (later(421, "4.7.0"), Sign.BUSY),
            (BUSY, Sign.BUSY),
            (later(451, "4.4.2"), Sign.BUSY),
            (GONE, Sign.GONE),
        ):
            with self.subTest(str(outcome)):
                self.assertIs(sign([outcome]), expected)

    def test_of_several(self) -> None:
        outcomes: tuple[list[Outcome], ...] = ([OK, BUSY], [OK, later(451, "4.7.1")], [OK, GONE], [])
        self.assertEqual([sign(one) for one in outcomes], [Sign.BUSY, Sign.RELUCTANT, Sign.WELL, Sign.NONE])


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.pace = Pace(limit=5)
        self.now = 1000.0
        self.numbers: list[int] = []

    def fill(self) -> int:
        """Begin as many as may; how many are under way."""
        while self.pace.wait(self.now) == 0.0:
            self.numbers.append(self.pace.begin(self.now))
        return self.pace.running

    def end(self, sign: Sign) -> None:
        self.pace.end(self.numbers.pop(0), sign, self.now, DELAYS)

    def one(self, sign: Sign) -> None:
        self.numbers.append(self.pace.begin(self.now))
        self.end(sign)


class ConcurrencyTests(Case):
    def test_begins_low_and_grows_to_the_limit(self) -> None:
        self.pace.limit = 12
        self.assertEqual(self.fill(), START)
        widths = []
        for _ in range(8):
            self.end(Sign.WELL)
            widths.append(self.fill())
        self.assertEqual(widths, [6, 7, 8, 9, 10, 11, 12, 12])
        for _ in range(100):
            self.end(Sign.WELL)
            self.assertLessEqual(self.fill(), 12)

    def test_grows_slowly_once_it_minded(self) -> None:
        self.pace.allowed = 4.0
        self.one(Sign.BUSY)
        self.assertEqual(self.fill(), 2)
        widths = []
        for _ in range(11):
            self.end(Sign.WELL)
            widths.append(self.fill())
        self.assertEqual(widths, [2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 5])

    def test_does_not_grow_by_what_was_not_needed(self) -> None:
        for _ in range(100):
            self.one(Sign.WELL)
        self.assertEqual(self.fill(), START)

    def test_halves_when_it_is_asked_for_less(self) -> None:
        self.pace.allowed = 5.0
        for told, width in ((Sign.BUSY, 2), (Sign.RELUCTANT, 1), (Sign.RELUCTANT, 1)):
            self.one(told)
            self.assertEqual(self.pace.width, width)
        self.assertIs(self.pace.state, State.SLOWED)
        self.pace.allowed = START
        self.assertIs(self.pace.state, State.OPEN)

    def test_a_lower_limit_counts_at_once(self) -> None:
        self.pace.allowed = 5.0
        self.pace.limit = 3
        self.assertEqual(self.fill(), 3)
        self.end(Sign.BUSY)
        self.assertEqual(self.pace.allowed, 1.5)

    def test_what_says_nothing_changes_nothing(self) -> None:
        self.one(Sign.NONE)
        self.assertEqual((self.pace.allowed, self.pace.state), (START, State.OPEN))

    def test_a_limit_of_one_is_not_slowed(self) -> None:
        self.pace = Pace(limit=1)
        self.one(Sign.RELUCTANT)
        self.assertIs(self.pace.state, State.OPEN)


class RateTests(Case):
    def test_evenly(self) -> None:
        self.pace.limit, self.pace.rate = 2, 6
        self.assertEqual(self.fill(), 1)
        self.assertEqual(self.pace.wait(self.now), 10.0)
        self.now += 4
        self.assertEqual(self.pace.wait(self.now), 6.0)
        self.now += 100
        self.assertEqual(self.fill(), 2)
        self.assertIsNone(self.pace.wait(self.now))
        self.end(Sign.WELL)
        self.assertEqual(self.pace.wait(self.now), 10.0)


class DownTests(Case):
    def down(self) -> None:
        self.one(Sign.GONE)
        self.assertIs(self.pace.state, State.DOWN)
        self.assertEqual((self.pace.probe_at, self.pace.width), (self.now + EARLY * 300, 1))

    def test_nothing_goes_there_until_the_probe(self) -> None:
        self.down()
        self.assertTrue(self.pace.shuts_out(self.now + 254))
        self.now += 255
        self.assertFalse(self.pace.shuts_out(self.now))
        self.assertEqual(self.fill(), 1)
        self.assertTrue(self.pace.shuts_out(self.now))
        self.assertIsNone(self.pace.wait(self.now))

    def test_probes_follow_the_schedule_up_to_a_bound(self) -> None:
        self.down()
        for delay in (900.0, MAX_PROBE_DELAY, MAX_PROBE_DELAY):
            self.now = self.pace.probe_at
            self.fill()
            self.end(Sign.GONE)
            self.assertEqual(self.pace.probe_at, self.now + EARLY * delay)
        self.assertEqual((self.pace.down_since, self.pace.probes), (1000.0, 4))

    def test_it_comes_back_slowly(self) -> None:
        self.pace.allowed = 5.0
        for told in (Sign.WELL, Sign.RELUCTANT):
            self.down()
            self.now = self.pace.probe_at
            self.fill()
            self.end(told)
            self.assertEqual((self.pace.state, self.pace.probes, self.fill()), (State.SLOWED, 0, 1))
            self.end(Sign.NONE)

    def test_a_probe_that_is_turned_away(self) -> None:
        self.down()
        self.now = self.pace.probe_at
        self.fill()
        self.end(Sign.BUSY)
        self.assertEqual((self.pace.state, self.pace.probes), (State.DOWN, 2))

    def test_a_probe_that_says_nothing(self) -> None:
        self.down()
        self.now = self.pace.probe_at
        self.fill()
        self.end(Sign.NONE)
        self.assertEqual((self.pace.state, self.pace.probes, self.fill()), (State.DOWN, 1, 1))

    def test_what_was_under_way_when_it_went_down(self) -> None:
        self.fill()
        self.end(Sign.GONE)
        self.end(Sign.GONE)
        self.assertEqual((self.pace.state, self.pace.probes), (State.DOWN, 1))
        self.pace = Pace(limit=5)
        self.fill()
        self.end(Sign.GONE)
        self.end(Sign.WELL)
        self.assertIs(self.pace.state, State.SLOWED)

    def test_turned_away_again_and_again(self) -> None:
        self.pace.allowed = 1.0
        for _ in range(PATIENCE - 1):
            self.one(Sign.BUSY)
        self.one(Sign.RELUCTANT)
        self.assertIs(self.pace.state, State.SLOWED)
        for _ in range(PATIENCE - 1):
            self.one(Sign.BUSY)
        self.one(Sign.WELL)
        self.assertNotEqual(self.pace.state, State.DOWN)
        self.pace.allowed = 1.0
        for _ in range(PATIENCE):
            self.one(Sign.BUSY)
        self.assertIs(self.pace.state, State.DOWN)

    def test_an_administrator_need_not_wait(self) -> None:
        self.down()
        self.pace.probe_now()
        self.assertFalse(self.pace.shuts_out(self.now))


class AnyOrderTests(unittest.TestCase):
    @given(
        limit=st.integers(1, 6),
        rate=st.sampled_from([0, 1, 600]),
        steps=st.lists(
            st.tuples(st.sampled_from(["begin", *Sign]), st.integers(0, 10), st.floats(0, 5000)), max_size=60
        ),
    )
    def test_bounds(self, limit: int, rate: int, steps: list[tuple[str, int, float]]) -> None:
        """Never more than the limit, never two probes, and never stuck."""
        pace, now, numbers = Pace(limit, rate), 0.0, []
        for what, index, seconds in steps:
            now += seconds
            if isinstance(what, Sign):
                if numbers:
                    pace.end(numbers.pop(index % len(numbers)), what, now, DELAYS)
            elif not pace.shuts_out(now) and pace.wait(now) == 0.0:
                numbers.append(pace.begin(now))
            self.assertEqual(pace.running, len(numbers))
            self.assertLessEqual(pace.running, limit + 1)  # a probe may overlap with what hangs from before
            self.assertLessEqual(1, pace.width)
            self.assertLessEqual(pace.width, limit)
        while numbers:
            pace.end(numbers.pop(), Sign.NONE, now, DELAYS)
        now += MAX_PROBE_DELAY + 60.0 * len(steps) + 60.0
        self.assertFalse(pace.shuts_out(now))
        self.assertEqual(pace.wait(now), 0.0)

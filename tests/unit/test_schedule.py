"""Retry schedules and the syntax of durations."""

from __future__ import annotations

import unittest

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core.schedule import (
    MAX_STEPS,
    Schedule,
    format_duration,
    parse_duration,
    parse_schedule,
)


class DurationTests(unittest.TestCase):
    def test_units(self) -> None:
        for text, seconds in (
            ("90s", 90),
            ("15m", 900),
            ("4h", 14400),
            ("5d", 432000),
            ("2w", 1209600),
            ("1h30m", 5400),
            (" 1 H 30 M ", 5400),
            ("0.5h", 1800),
            ("0", 0),
            ("0s", 0),
        ):
            with self.subTest(text):
                self.assertEqual(parse_duration(text), seconds)

    def test_errors_say_what_to_write(self) -> None:
        for text in ("", "5", "m", "-5m", "5 parsecs", "5m x", "1e9s", "1..5h"):
            with self.subTest(text), self.assertRaisesRegex(ValueError, r"write a number and a unit"):
                parse_duration(text)

    def test_ten_years_at_most(self) -> None:
        with self.assertRaisesRegex(ValueError, "longer than ten years"):
            parse_duration("999999999999w")

    def test_format(self) -> None:
        for seconds, text in (
            (1, "1 second"),
            (30, "30 seconds"),
            (60, "1 minute"),
            (5400, "90 minutes"),
            (14400, "4 hours"),
            (86400, "1 day"),
            (432000, "5 days"),
        ):
            with self.subTest(seconds):
                self.assertEqual(format_duration(seconds), text)


class ScheduleSyntaxTests(unittest.TestCase):
    def test_steps_and_repetition(self) -> None:
        self.assertEqual(parse_schedule("5m, 15m, 30m*2 ,4h * 1"), (300, 900, 1800, 1800, 14400))

    def test_errors_name_the_step(self) -> None:
        with self.assertRaisesRegex(ValueError, "step 3: 'soon' is no duration"):
            parse_schedule("5m*2, soon")
        with self.assertRaisesRegex(ValueError, "step 1: '' is no duration"):
            parse_schedule("")

        for text in ("5m*", "5m*x", "5m*2*2", "5m*-1", "5m*12345"):
            with self.subTest(text), self.assertRaisesRegex(ValueError, "how often the step repeats"):
                parse_schedule(text)

    def test_no_zero_steps(self) -> None:
        for text in ("0s", "5m*0"):
            with self.subTest(text), self.assertRaisesRegex(ValueError, "longer than 0 seconds"):
                parse_schedule(text)

    def test_bounded(self) -> None:
        self.assertEqual(len(parse_schedule(f"1m*{MAX_STEPS}")), MAX_STEPS)
        with self.assertRaisesRegex(ValueError, "more than 1000 steps"):
            parse_schedule("1m*9999")


class ScheduleTests(unittest.TestCase):
    schedule = Schedule((10.0, 20.0, 40.0), expire=1000.0, warn_after=100.0)

    def test_the_last_delay_repeats(self) -> None:
        times = [self.schedule.next_attempt(0.0, n, 1000.0, lambda: 0.5) for n in (1, 2, 3, 4, 99)]
        self.assertEqual(times, [10.0, 20.0, 40.0, 40.0, 40.0])

    def test_the_last_attempt_is_made_as_the_time_is_up(self) -> None:
        self.assertEqual(self.schedule.next_attempt(995.0, 1, 1000.0, lambda: 0.5), 1000.0)
        self.assertEqual(self.schedule.next_attempt(1000.0, 1, 1000.0, lambda: 0.5), 1010.0)

    def test_expiry(self) -> None:
        self.assertFalse(self.schedule.expired(999.0, 1000.0))
        self.assertTrue(self.schedule.expired(1000.0, 1000.0))

    def test_warning(self) -> None:
        self.assertFalse(self.schedule.warning_due(99.0, 0.0))
        self.assertTrue(self.schedule.warning_due(100.0, 0.0))
        self.assertFalse(Schedule((1.0,), expire=9.0).warning_due(1e9, 0.0))

    @settings(max_examples=50)
    @given(st.integers(0, 50), st.floats(0, 1, exclude_max=True), st.floats(0, 2000))
    def test_jitter_stays_within_its_bounds(self, attempts: int, chance: float, now: float) -> None:
        delay = self.schedule.next_attempt(now, attempts, 1e9, lambda: chance) - now
        plain = self.schedule.delays[min(max(attempts, 1), 3) - 1]
        self.assertGreaterEqual(delay, plain * 0.9 - 1e-6)
        self.assertLessEqual(delay, plain * 1.1 + 1e-6)

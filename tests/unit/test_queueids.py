"""Queue ids."""

from __future__ import annotations

import re
import unittest

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core.queueids import QueueIds


class QueueIdsTests(unittest.TestCase):
    @settings(max_examples=50)
    @given(st.lists(st.floats(0, 1e11), min_size=2, max_size=20), st.floats(0, 1, exclude_max=True))
    def test_ids_rise_whatever_the_clock_does(self, times: list[float], chance: float) -> None:
        clock = iter(times)
        make = QueueIds(lambda: next(clock), lambda: chance)
        ids = [make() for _ in times]
        self.assertEqual(ids, sorted(set(ids)))
        for name in ids:
            self.assertRegex(name, re.compile(r"[0-9A-Za-z]{14}\Z"))

    def test_processes_are_kept_apart_by_chance(self) -> None:
        first, second = QueueIds(lambda: 5.0, lambda: 0.1), QueueIds(lambda: 5.0, lambda: 0.2)
        self.assertNotEqual(first(), second())

    def test_later_ids_sort_behind_those_of_a_process_before(self) -> None:
        before, after = QueueIds(lambda: 5.0, lambda: 0.9), QueueIds(lambda: 6.0, lambda: 0.0)
        self.assertLess(before(), after())

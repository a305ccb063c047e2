"""Whose turn it is at one destination."""

from __future__ import annotations

import unittest

from twisted_mta.service.lanes import Lanes


class LanesTests(unittest.TestCase):
    def setUp(self) -> None:
        self.started: list[str] = []
        #: The rank is the digit that a job begins with.
        self.lanes: Lanes[str] = Lanes(1, self.started.append, lambda job: int(job[0]))

    def test_the_least_rank_first_then_in_order(self) -> None:
        for job in ("5a", "5b", "1c", "9d", "1e", "5f"):
            self.lanes.enter("x", job)
        self.assertEqual(self.started, ["5a"])
        for _ in range(5):
            self.lanes.leave("x")
        self.assertEqual(self.started, ["5a", "1c", "1e", "5b", "5f", "9d"])

    def test_destinations_do_not_wait_for_each_other(self) -> None:
        for key, job in (("x", "9a"), ("y", "9b"), ("x", "1c")):
            self.lanes.enter(key, job)
        self.assertEqual(self.started, ["9a", "9b"])

    def test_what_waits_is_taken_out_in_order(self) -> None:
        for job in ("0a", "3b", "2c"):
            self.lanes.enter("x", job)
        self.lanes.enter("y", "0d")
        self.lanes.enter("y", "1e")
        self.assertEqual(self.lanes.drain("x"), ["2c", "3b"])
        self.assertEqual(self.lanes.drain("x"), [])
        self.assertEqual(self.lanes.clear(), ["1e"])
        self.lanes.leave("x")
        self.lanes.enter("x", "7f")
        self.assertEqual(self.started, ["0a", "0d", "7f"])

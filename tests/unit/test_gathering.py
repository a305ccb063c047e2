"""Attempts that are made together."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase as TestCase

from twisted_mta.service.gathering import WORTH, Gathering


class GatheringTests(TestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.batches: list[list[int]] = []

    def gather(self, parallel: int = 1, limit: int = 100) -> Gathering[int]:
        return Gathering(self.clock, limit, self.batches.append, parallel=parallel)

    def add(self, gathering: Gathering[int], *attempts: int) -> None:
        """In one turn of the reactor."""
        for attempt in attempts:
            gathering.add(attempt)
        self.clock.advance(0)

    def test_those_of_one_turn_go_together(self) -> None:
        self.add(self.gather(), 1, 2, 3)
        self.assertEqual(self.batches, [[1, 2, 3]])

    def test_what_comes_meanwhile_waits(self) -> None:
        gathering = self.gather(limit=2)
        self.add(gathering, 1)
        self.add(gathering, *range(2, 2 + WORTH))
        self.assertEqual(self.batches, [[1]])
        gathering.ended()
        self.assertEqual(self.batches, [[1], [2, 3]])
        self.assertEqual(len(gathering.clear()), WORTH - 2)
        gathering.ended()
        self.assertEqual(len(self.batches), 2)

    def test_many_do_not_wait(self) -> None:
        gathering = self.gather(parallel=2)
        self.add(gathering, 0)
        few, rest = range(1, WORTH), range(WORTH + 1, 2 * WORTH + 1)
        self.add(gathering, *few)
        self.assertEqual(self.batches, [[0]])
        self.add(gathering, WORTH)
        self.assertEqual(self.batches, [[0], [*few, WORTH]])
        self.add(gathering, *rest)  # two are enough
        self.assertEqual(len(self.batches), 2)
        gathering.ended()
        self.assertEqual(self.batches[2:], [[*rest]])

    def test_few_wait_for_the_last(self) -> None:
        gathering = self.gather(parallel=2)
        self.add(gathering, 0)
        self.add(gathering, *range(1, 1 + WORTH))
        self.add(gathering, 100)
        gathering.ended()
        self.assertEqual(len(self.batches), 2)
        gathering.ended()
        self.assertEqual(self.batches[2:], [[100]])

    def test_a_batch_that_ends_before_the_next_begins(self) -> None:
        gathering = self.gather(parallel=2)
        self.add(gathering, 0)
        for attempt in range(WORTH):
            gathering.add(attempt)
        gathering.ended()
        self.clock.advance(0)
        self.assertEqual(self.batches, [[0], [*range(WORTH)]])
        self.assertEqual(self.clock.getDelayedCalls(), [])

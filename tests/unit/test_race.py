"""Tests for twisted_mta.delivery.race and families."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.delivery.families import PENALTY, STRIKES, Families
from twisted_mta.delivery.race import Result, race

A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"
A6, B6 = "2001:db8::1", "2001:db8::2"


class RaceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        #: (name, time) of each start and each end by cancellation.
        self.started: list[tuple[str, float]] = []
        self.cancelled: list[str] = []
        self.discarded: list[str] = []

    def contender(self, name: str, seconds: float, *, fails: bool = False, stubborn: bool = False) -> Any:
        async def run() -> str:
            self.started.append((name, self.clock.seconds()))
            try:
                await deferLater(self.clock, seconds)
            except Exception:
                self.cancelled.append(name)
                if not stubborn:
                    raise
            if fails:
                raise ValueError(name)
            return name

        return run

    def race(self, *contenders: Any) -> Deferred[Result[str]]:
        return race(self.clock, contenders, 0.25, self.discarded.append)

    def result(self, running: Deferred[Result[str]]) -> tuple[int | None, str | None, dict[int, str]]:
        result = self.successResultOf(running)
        return result.winner, result.prize, {number: str(why) for number, why in result.failures.items()}

    def tearDown(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_first_alone_if_it_is_quick(self) -> None:
        running = self.race(self.contender("a", 0.2), self.contender("b", 0.1))
        self.clock.advance(0.2)
        self.assertEqual(self.result(running), (0, "a", {}))
        self.assertEqual(self.started, [("a", 0.0)])

    def test_the_next_after_a_moment(self) -> None:
        running = self.race(*(self.contender(name, 10.0) for name in "ab"), self.contender("c", 1.0))
        for _ in range(6):
            self.clock.advance(0.25)
        self.assertEqual(self.started, [("a", 0.0), ("b", 0.25), ("c", 0.5)])
        self.assertEqual(self.result(running), (2, "c", {}))
        self.assertEqual(self.cancelled, ["a", "b"])

    def test_the_earlier_can_still_win(self) -> None:
        running = self.race(self.contender("a", 0.5), self.contender("b", 5.0))
        self.clock.pump([0.25, 0.25])
        self.assertEqual(self.result(running), (0, "a", {}))
        self.assertEqual(self.cancelled, ["b"])

    def test_the_next_at_once_after_a_failure(self) -> None:
        running = self.race(
            self.contender("a", 0.1, fails=True),
            self.contender("b", 0.0, fails=True),
            self.contender("c", 1.0),
        )
        self.clock.pump([0.1, 0.0, 1.0])
        self.assertEqual([name for name, _ in self.started], ["a", "b", "c"])
        self.assertEqual(self.started[2][1], 0.1)
        self.assertEqual(self.result(running), (2, "c", {0: "a", 1: "b"}))

    def test_all_fail(self) -> None:
        running = self.race(self.contender("a", 1.0, fails=True), self.contender("b", 0.0, fails=True))
        self.clock.pump([0.25, 0.0])
        self.assertNoResult(running)
        self.clock.advance(1)
        self.assertEqual(self.result(running), (None, None, {0: "a", 1: "b"}))

    def test_failures_at_once(self) -> None:
        async def fail() -> str:
            raise ValueError("x")

        self.assertEqual(self.result(self.race(fail, fail)), (None, None, {0: "x", 1: "x"}))

    def test_nobody(self) -> None:
        self.assertEqual(self.result(self.race()), (None, None, {}))

    def test_what_a_loser_gets_nevertheless_is_discarded(self) -> None:
        running = self.race(self.contender("a", 9.0, stubborn=True), self.contender("b", 0.0))
        self.clock.pump([0.25, 0.0])
        self.assertEqual(self.result(running), (1, "b", {}))
        self.assertEqual(self.discarded, ["a"])

    def test_cancelled(self) -> None:
        running = self.race(self.contender("a", 9.0), self.contender("b", 9.0), self.contender("c", 9.0))
        self.clock.advance(0.25)
        running.cancel()
        self.failureResultOf(running)
        self.assertEqual(self.cancelled, ["a", "b"])


class FamiliesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.families = Families(self.clock, ("ipv4", "ipv6"))

    def test_in_turn(self) -> None:
        self.assertEqual(self.families.order([A6, A, B, B6, C]), [A, A6, B, B6, C])
        self.families.preferred = ("ipv6", "ipv4")
        self.assertEqual(self.families.order([A, B, A6]), [A6, A, B])
        self.families.preferred = ("ipv6",)
        self.assertEqual(self.families.order([A, B, A6]), [A6])

    def test_those_that_we_have_an_address_for_first(self) -> None:
        self.assertEqual(self.families.order([A, A6], ["ipv6"]), [A6, A])
        self.assertEqual(self.families.order([A, A6], ["ipv6", "ipv4"]), [A, A6])

    def lose(self, times: int) -> None:
        for _ in range(times):
            self.families.ended(A6, [A])

    def test_one_that_does_not_work_goes_second_for_a_while(self) -> None:
        self.lose(STRIKES - 1)
        self.assertEqual(self.families.order([A, A6]), [A, A6])
        self.lose(1)
        self.assertEqual(self.families.order([A, A6]), [A6, A])
        self.clock.advance(PENALTY)
        self.assertEqual(self.families.order([A, A6]), [A, A6])
        self.lose(1)
        self.assertEqual(self.families.order([A, A6]), [A6, A])

    def test_until_it_works_again(self) -> None:
        self.lose(STRIKES)
        self.families.ended(A, [])
        self.assertEqual(self.families.order([A, A6]), [A, A6])
        self.lose(STRIKES - 1)
        self.assertEqual(self.families.order([A, A6]), [A, A6])

    def test_one_address_says_nothing_of_its_own_family(self) -> None:
        for _ in range(STRIKES):
            self.families.ended(B, [A])
        self.assertEqual(self.families.order([A, A6]), [A, A6])

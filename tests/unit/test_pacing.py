"""Tests for twisted_mta.service.pacing."""

from __future__ import annotations

import random

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.admin.destinations import destination_lines
from twisted_mta.core.pace import EARLY, Sign
from twisted_mta.core.replies import Reply
from twisted_mta.service import pacing
from twisted_mta.service.pacing import (
    AWAY,
    CHUNK,
    COMING,
    CROWDED,
    MAX_SPREAD,
    SETTLE,
    SLOW,
    SPREAD,
    SPREAD_EACH,
    Limits,
    Pacing,
)

OUT = Reply(451, "4.4.1", "connection timed out")
FINE = Reply(250, "2.0.0", "ok")
DELAY = 600.0


@attrs.frozen(eq=False)
class Job:
    name: str
    rows: tuple[int, ...]

    @property
    def rank(self) -> int:
        return int(self.name[0])


class Case(SynchronousTestCase):
    limits = Limits(1, 0, (DELAY,))

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.started: list[Job] = []
        self.put_off: list[tuple[str, float, str]] = []
        self.called: list[int] = []
        self.rows = 0
        self.pacing: Pacing[Job] = Pacing(
            self.clock,
            start=self.started.append,
            put_off=lambda job, until, reply: self.put_off.append((job.name, until, str(reply or ""))),
            call_back=self.called.extend,
            rank=lambda job: job.rank,
            random=lambda: 0.5,
        )

    def enter(self, *names: str, to: str = "x.test", row: int = 0) -> None:
        for name in names:
            self.rows += 1
            self.pacing.enter(to, to, self.limits, Job(name, (row or self.rows,)))

    def leave(self, sign: Sign = Sign.WELL, reply: Reply = FINE, to: str = "x.test") -> None:
        self.pacing.leave(to, self.started.pop(0), sign, reply)

    @property
    def names(self) -> list[str]:
        return [job.name for job in self.started]


class TurnTests(Case):
    def test_the_least_rank_first_then_in_order(self) -> None:
        self.enter("5a", "5b", "1c", "9d", "1e", "5f")
        order = []
        while self.started:
            order += self.names
            self.leave()
        self.assertEqual(order, ["5a", "1c", "1e", "5b", "5f", "9d"])

    def test_destinations_do_not_wait_for_each_other(self) -> None:
        self.enter("9a")
        self.enter("9b", to="y.test")
        self.enter("1c")
        self.assertEqual(self.names, ["9a", "9b"])

    def test_what_waits_is_taken_out(self) -> None:
        self.enter("0a", "3b", "2c")
        self.enter("0d", "1e", to="y.test")
        self.assertEqual([job.name for job in self.pacing.clear()], ["2c", "3b", "1e"])
        self.leave()
        self.assertEqual(self.names, ["0d"])

    def test_many_that_end_at_once(self) -> None:
        """Not one in the other."""
        ended: list[str] = []

        def at_once(job: Job) -> None:
            ended.append(job.name)
            self.pacing.leave("x.test", job, Sign.WELL, FINE)

        self.enter("0first")
        self.pacing._start = at_once
        self.enter(*["1x"] * 3000)
        self.leave()
        self.assertEqual(len(ended), 3000)

    def test_rate(self) -> None:
        self.limits = Limits(5, 60, (DELAY,))
        self.enter("0a", "0b", "0c")
        self.assertEqual(self.names, ["0a"])
        self.clock.advance(0.9)
        self.assertEqual(self.names, ["0a"])
        self.clock.advance(0.1)
        self.assertEqual(self.names, ["0a", "0b"])
        self.leave()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.pacing.clear()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class DownTests(Case):
    def down(self, *waiting: str) -> None:
        self.enter("0a", *waiting)
        self.leave(Sign.GONE, OUT)

    def test_what_waits_is_put_off(self) -> None:
        self.down("1b", "1c")
        until = 1000 + EARLY * DELAY + SPREAD / 2
        told = "451 4.4.1 not tried, since x.test is out of reach: connection timed out"
        self.assertEqual(self.put_off, [("1b", until, told), ("1c", until, told)])
        self.assertEqual(self.started, [])

    def test_many_come_back_over_a_longer_time(self) -> None:
        first = 1000 + EARLY * DELAY
        self.down(*["1b"] * 1000)
        times = [until for _, until, _ in self.put_off]
        self.assertEqual(times[0], first + SPREAD / 2)
        # The one that was tried in vain is remembered, too.
        self.assertEqual(times[-1], first + 1001 * SPREAD_EACH / 2)
        self.put_off.clear()
        self.enter(*["1b"] * 9000)
        self.assertEqual(self.put_off[-1][1], first + MAX_SPREAD / 2)

    def test_so_is_what_comes_later(self) -> None:
        self.down()
        self.enter("1b")
        self.assertEqual((self.names, len(self.put_off)), ([], 1))
        self.enter("1c", to="y.test")
        self.assertEqual(self.names, ["1c"])

    def test_one_is_the_probe(self) -> None:
        self.down()
        self.clock.advance(DELAY)
        self.enter("1b", "1c", "1d")
        self.assertEqual(self.names, ["1b"])
        self.assertEqual([until for _, until, _ in self.put_off], [1600 + SETTLE + SPREAD / 2] * 2)
        self.leave(Sign.GONE, OUT)
        self.assertEqual(self.called, [])
        self.enter("1e")
        self.assertEqual(self.put_off[-1][1], 1600 + EARLY * DELAY + SPREAD / 2)

    def test_when_it_is_back_the_others_come_at_once(self) -> None:
        self.down(*["1b"] * 150)
        self.clock.advance(DELAY)
        self.enter("1z", row=9999)
        self.leave()
        self.assertEqual(self.called, list(range(1, 1 + CHUNK)))
        for row in self.called[:CHUNK]:
            self.enter("1b", row=row)
        self.assertEqual(len(self.started), 1)
        while self.started:
            self.leave()
        self.assertEqual(self.called, list(range(1, 152)))

    def test_and_the_next_ones_though_the_first_do_not_come(self) -> None:
        self.down(*["1b"] * 150)
        self.clock.advance(DELAY)
        self.enter("1y", row=9998)
        self.leave()
        self.enter("1z", row=9999)
        self.leave()
        self.assertEqual(len(self.called), CHUNK)
        self.clock.advance(COMING)
        self.enter("1z", row=9999)
        self.leave()
        self.assertEqual(len(self.called), 151)

    def test_an_administrator_need_not_wait(self) -> None:
        self.down()
        self.pacing.probe_now()
        self.enter("1b", "1c")
        self.assertEqual((self.names, len(self.put_off)), (["1b"], 1))

    def test_a_host_that_turns_us_away(self) -> None:
        busy = Reply(421, "4.7.0", "too many connections")
        for _ in range(3):
            self.enter("0a")
            self.leave(Sign.BUSY, busy)
        self.enter("0b")
        [(_, _, told)] = self.put_off
        self.assertEqual(told, "421 4.7.0 not tried, since x.test turns us away: too many connections")

    def test_memory_is_bounded(self) -> None:
        self.patch(pacing, "MAX_PARKED", 10)
        self.patch(pacing, "MAX_KNOWN", 10)
        self.down(*["1b"] * 20)
        self.assertEqual(self.pacing.status()[0]["put_off"], 10)
        for number in range(100):
            to = f"{number}.test"
            self.enter("0a", to=to)
            self.leave(to=to)
        self.assertLessEqual(len(self.pacing.status()), 12)
        self.assertEqual(self.pacing.status()[0]["destination"], "x.test")

    def test_status(self) -> None:
        self.limits = Limits(5, 600, (DELAY,))
        self.down("1b", "1c")
        self.enter("0a", to="y.test")
        down, up = self.pacing.status()
        self.assertEqual(
            down,
            {
                "destination": "x.test",
                "state": "down",
                "running": 0,
                "waiting": 0,
                "put_off": 3,
                "concurrency": 1,
                "limit": 5,
                "rate": 600,
                "down_since": 1000.0,
                "next_probe": 1000 + EARLY * DELAY,
                "last_reply": str(OUT),
                "last_heard": 1000.0,
            },
        )
        self.assertEqual(
            (up["state"], up["running"], up["last_reply"], up["down_since"]), ("open", 1, "", 0.0)
        )


class ReliefTests(Case):
    def test_slow_destinations_keep_their_share(self) -> None:
        self.enter("0a", *["3b"] * 20, "1c", "2d")
        self.enter("0x", "0y", to="y.test")
        self.pacing.relieve(8)
        self.assertEqual(self.put_off, [])
        self.clock.advance(SLOW)
        self.pacing.relieve(8)
        self.assertEqual([name for name, _, _ in self.put_off], ["3b"] * 20)
        self.assertEqual(set(self.put_off), {("3b", 1000 + SLOW + AWAY + SPREAD / 2, "")})
        self.enter("4c")
        self.assertEqual(self.put_off[-1][0], "4c")
        self.clock.advance(CROWDED)
        self.enter("5d")
        self.assertEqual(self.put_off[-1][0], "4c")
        self.leave()
        self.assertEqual(self.names, ["0x", "1c"])

    def test_and_get_it_back(self) -> None:
        self.enter("0a", *["3b"] * 20)
        self.clock.advance(SLOW)
        self.pacing.relieve(2)
        self.assertEqual(len(self.put_off), 19)
        self.leave()
        self.assertEqual(len(self.called), 19)

    def test_nobody_waits(self) -> None:
        self.enter("0a")
        self.pacing.relieve(1)
        self.assertEqual(self.put_off, [])


class AnyOrderTests(SynchronousTestCase):
    @given(
        seed=st.integers(0, 2**32),
        concurrency=st.integers(1, 4),
        rate=st.sampled_from([0, 0, 6, 600]),
        count=st.integers(1, 60),
    )
    @settings(max_examples=60)
    def test_everybody_is_served_in_the_end(self, seed: int, concurrency: int, rate: int, count: int) -> None:
        """A queue that brings back what was put off when it is due or called, and a destination of many moods."""
        chance = random.Random(seed)
        clock = Clock()
        running: dict[Job, None] = {}
        due: dict[Job, float] = {}
        limits = Limits(concurrency, rate, (300.0, 900.0))
        left = {Job("1", (row,)) for row in range(count)}

        def call_back(rows: list[int]) -> None:
            for job in due:
                if job.rows[0] in rows:
                    due[job] = clock.seconds()

        made: Pacing[Job] = Pacing(
            clock,
            start=lambda job: running.update({job: None}),
            put_off=lambda job, until, reply: due.update({job: until}),
            call_back=lambda rows: call_back(list(rows)),
            rank=lambda job: job.rank,
            random=chance.random,
        )
        due.update(dict.fromkeys(left, 0.0))
        for step in range(5000):
            if not left:
                break
            clock.advance(chance.choice([0.1, 1, 30, 300]))
            for job in [job for job, when in due.items() if when <= clock.seconds()]:
                del due[job]
                made.enter("x", "x", limits, job)
            if chance.random() < 0.05:
                made.relieve(4)
            for job in [job for job in running if chance.random() < 0.7]:
                del running[job]
                moods = [Sign.WELL] if step > 500 else list(Sign)
                sign = chance.choice(moods)
                if sign is Sign.WELL:
                    left.discard(job)
                else:
                    due[job] = clock.seconds() + 300
                made.leave("x", job, sign, OUT)
            self.assertLessEqual(len(running), concurrency + 1)
        self.assertEqual(left, set())


_FINE: dict[str, object] = {
    "destination": "x.test",
    "state": "open",
    "running": 1,
    "waiting": 2,
    "put_off": 3,
    "concurrency": 2,
    "limit": 5,
    "rate": 0,
    "down_since": 0.0,
    "next_probe": 0.0,
    "last_reply": "",
    "last_heard": 0.0,
}


class LinesTests(SynchronousTestCase):
    """What `mta queue destinations` prints."""

    def lines(self, **changes: object) -> list[str]:
        return list(destination_lines([_FINE | changes], 10_000.0))

    def test_well(self) -> None:
        self.assertEqual(
            self.lines(),
            [
                "x.test: well",
                "    1 under way, 2 wait, 3 recipients put off; 2 of 5 connections at a time",
            ],
        )

    def test_slowed(self) -> None:
        first, second, third = self.lines(
            state="slowed", rate=60, last_reply="421 4.7.0 b\x1busy", last_heard=9940.0
        )
        self.assertEqual(first, "x.test: fewer connections, since it minded")
        self.assertTrue(second.endswith("at a time, 60 a minute"))
        self.assertTrue(third.startswith("    1 minute ago: 421 4.7.0 b"))
        self.assertNotIn("\x1b", third)

    def test_down(self) -> None:
        down = {"state": "down", "down_since": 2800.0}
        self.assertEqual(
            self.lines(next_probe=10_600.0, **down)[0],
            "x.test: out of reach for 2 hours, tried again in 10 minutes",
        )
        self.assertTrue(
            self.lines(next_probe=9000.0, **down)[0].endswith("tried again with the next message")
        )

    def test_none(self) -> None:
        self.assertEqual(len(list(destination_lines([], 0.0))), 1)

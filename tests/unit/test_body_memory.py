"""The memory that all bodies on their way in share: bounded, given back, and nothing of a body lost over it."""

from __future__ import annotations

import errno
import os
import random
import unittest
from importlib.util import find_spec
from typing import Any

from twisted.internet.defer import Deferred

from tests.unit.test_sqlite_queue import SlowWorkers, StoreTestCase
from twisted_mta.interfaces import StoreFull
from twisted_mta.store.queue.bodies import WRITE_SIZE, BodyFiles, BodyWriter
from twisted_mta.store.queue.body_memory import BodyMemory
from twisted_mta.testing.contracts.queue import message, octets, put, write


class WriterTestCase(StoreTestCase):
    """Bodies that share 100 octets, threads that take their time."""

    def setUp(self) -> None:
        super().setUp()
        self.workers = SlowWorkers()
        self.memory = BodyMemory(100)
        (self.directory / "queue").mkdir()
        self.bodies = BodyFiles(self.directory / "queue" / "bodies", "mta")

    def make(self, threshold: int = 1000) -> BodyWriter:
        return BodyWriter(self.bodies, self.workers, threshold, lambda octets: None, self.memory)

    def sealed(self, body: BodyWriter) -> bytes:
        """What the body holds in the end."""
        sealing = Deferred.fromCoroutine(body.seal())
        self.work()
        row = self.successResultOf(sealing)
        data = row.data if row.file is None else self.bodies.path(row.file).read_bytes()
        self.assertEqual(row.size, len(data))
        body.release()
        return bytes(data)

    def work(self) -> None:
        while self.workers.jobs:
            self.workers.step()

    def full(self, *args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


class BodyMemoryTests(WriterTestCase):
    def test_the_one_that_waits_longest_goes_to_the_disk_and_the_one_that_brings_more_waits(self) -> None:
        old, new, third = self.make(), self.make(), self.make()
        self.assertIsNone(old.write(b"o" * 60))
        pending: Any = new.write(b"n" * 60)
        self.assertNoResult(pending)
        self.assertEqual((self.memory.held, self.memory.leaving, len(self.workers.jobs)), (60, 60, 1))
        # What is leaving is in memory still.
        also: Any = third.write(b"t")
        self.assertNoResult(also)
        self.workers.step()
        self.successResultOf(pending)
        self.successResultOf(also)
        self.assertEqual(self.memory.used, 61)
        self.assertEqual(self.files(), ["mta-1"])
        for body, data in ((old, b"o" * 60), (new, b"n" * 60), (third, b"t")):
            self.assertEqual(self.sealed(body), data)
        self.assertEqual(self.memory.used, 0)
        self.assertEqual(self.files(), ["mta-1"])  # the others never were more than octets

    def test_it_goes_on_where_it_was(self) -> None:
        body, other = self.make(), self.make()
        body.write(b"1" * 60)
        other.write(b"x" * 90)
        body.write(b"2" * 30)  # while a thread writes
        self.work()
        body.write(b"3" * 60)
        self.assertEqual(self.sealed(body), b"1" * 60 + b"2" * 30 + b"3" * 60)

    def test_one_alone_over_the_limit(self) -> None:
        body = self.make()
        pending: Any = body.write(b"x" * 101)
        self.assertNoResult(pending)
        self.workers.step()
        self.successResultOf(pending)
        self.assertEqual((self.memory.used, body.size), (0, 101))
        self.assertEqual(self.sealed(body), b"x" * 101)

    def test_what_is_in_a_commit_counts_until_it_is_there(self) -> None:
        body, other = self.make(), self.make()
        body.write(b"x" * 80)
        self.successResultOf(Deferred.fromCoroutine(body.seal()))
        pending: Any = other.write(b"y" * 30)
        self.assertNoResult(pending)
        self.assertEqual(self.workers.jobs, [])  # it is enough to wait
        body.release()
        body.release()
        self.successResultOf(pending)
        self.assertEqual(self.memory.used, 30)

    def test_abort_gives_it_back(self) -> None:
        kept, written, sealed = self.make(), self.make(), self.make()
        sealed.write(b"s" * 10)
        self.successResultOf(Deferred.fromCoroutine(sealed.header(1000)))
        self.successResultOf(Deferred.fromCoroutine(sealed.seal()))
        written.write(b"w" * 60)
        kept.write(b"k" * 50)
        self.assertEqual(len(self.workers.jobs), 1)
        written.write(b"w" * 5)
        for body in (kept, written, sealed, sealed):
            body.abort()
        self.assertEqual((self.memory.held, self.memory.leaving), (0, 60))
        self.work()
        self.assertEqual((self.memory.used, self.files()), (0, []))

    def test_a_full_disk(self) -> None:
        body, other = self.make(), self.make()
        body.write(b"x" * 60)
        pending: Any = other.write(b"y" * 60)
        self.patch(os, "write", self.full)
        self.work()
        self.successResultOf(
            pending
        )  # the other one has its room, and an error of its own only if it gets one
        with self.assertRaises(StoreFull):
            body.write(b"x")
        self.fails(body.seal(), StoreFull)
        self.assertEqual((self.memory.used, self.files()), (60, []))

    def test_another_limit(self) -> None:
        body, other = self.make(), self.make()
        body.write(b"x" * 60)
        pending: Any = other.write(b"y" * 60)
        self.memory.reconfigure(120)
        self.assertIsNone(self.successResultOf(pending))
        self.memory.reconfigure(0)
        self.assertEqual(self.memory.held, 0)
        self.work()
        self.assertEqual(self.memory.used, 0)

    @unittest.skipUnless(find_spec("_tracemalloc"), "PyPy has no tracemalloc")
    def test_a_body_in_tiny_pieces_costs_no_more(self) -> None:
        import tracemalloc

        self.memory.reconfigure(1 << 20)
        body = self.make(1 << 20)
        tracemalloc.start()
        try:
            for _ in range(30_000):
                body.write(b"ab")
            self.assertLess(tracemalloc.get_traced_memory()[1], 200_000)
        finally:
            tracemalloc.stop()

    def test_any_course(self) -> None:
        """Random pieces, threads and ends: every octet arrives, nobody waits for ever, and the bound holds."""
        for seed in range(30):
            with self.subTest(seed=seed):
                self._course(random.Random(seed))

    def _course(self, chance: random.Random) -> None:
        bodies = {number: self.make(chance.choice((50, 500))) for number in range(8)}
        sent = dict.fromkeys(bodies, b"")
        waiting: dict[int, Any] = {}
        for _ in range(400):
            number = chance.randrange(8)
            if chance.random() < 0.5 and self.workers.jobs:
                self.workers.step()
            elif number in bodies and number not in waiting and chance.random() < 0.02:
                bodies.pop(number).abort()
            elif number in bodies and number not in waiting:
                piece = chance.randbytes(chance.randrange(1, 40))
                sent[number] += piece
                pending: Any = bodies[number].write(piece)
                if pending is not None:
                    waiting[number] = pending
            waiting = {number: pending for number, pending in waiting.items() if not pending.called}
            self.assertLessEqual(self.memory.used, 100 + 8 * 40)
        self.work()
        for pending in waiting.values():
            self.successResultOf(pending)
        self.assertLessEqual(self.memory.used, 100)
        for number, body in bodies.items():
            self.assertEqual(self.sealed(body), sent[number])
        self.assertEqual((self.memory.held, self.memory.leaving), (0, 0))


class HeaderTests(WriterTestCase):
    HEADER = b"Subject: x\r\nTo: y\r\n\r\n"

    def header(self, body: BodyWriter, limit: int = 1000) -> bytes:
        reading = Deferred.fromCoroutine(body.header(limit))
        self.work()
        return self.successResultOf(reading)

    def test_from_memory(self) -> None:
        body = self.make()
        body.write(self.HEADER + b"body\r\n")
        self.assertEqual(self.header(body), self.HEADER)
        self.assertEqual(self.memory.used, 2 * len(self.HEADER) + 6)
        self.assertEqual(self.header(body, 5), b"Subje")
        self.assertEqual(self.sealed(body), self.HEADER + b"body\r\n")
        self.assertEqual(self.memory.used, 0)

    def test_from_a_file(self) -> None:
        for size in (1, 5, 1000):
            body = self.make(10)
            data = self.HEADER + b"body\r\n" * 20
            for at in range(0, len(data), size):
                body.write(data[at : at + size])
                self.work()
            self.assertEqual(self.header(body), self.HEADER)
            self.assertEqual(self.memory.used, len(self.HEADER))
            self.assertEqual(self.sealed(body), data)
            self.assertEqual(self.memory.used, 0)

    def test_one_that_never_ends(self) -> None:
        self.memory.reconfigure(1 << 20)
        data = b"X: y\r\n" * 50_000
        body = self.make(10)
        body.write(data)
        self.work()
        self.assertEqual(self.header(body, WRITE_SIZE), data[:WRITE_SIZE])
        self.assertEqual(self.header(body, 1 << 20), data)

    def test_it_waits_for_room(self) -> None:
        body, other, third = self.make(10), self.make(), self.make()
        body.write(b"X" * 90)
        self.work()
        other.write(b"y" * 80)
        self.successResultOf(Deferred.fromCoroutine(other.seal()))
        third.write(b"z" * 30)
        reading = Deferred.fromCoroutine(body.header(1000))
        self.work()
        self.assertNoResult(reading)
        other.release()
        self.work()
        self.assertEqual(self.successResultOf(reading), b"X" * 90)

    def test_abort_meanwhile(self) -> None:
        body = self.make(10)
        body.write(self.HEADER)
        self.work()
        reading = Deferred.fromCoroutine(body.header(1000))
        body.abort()
        self.work()
        self.failureResultOf(reading, OSError)
        self.assertEqual(self.memory.used, 0)


class StoreTests(StoreTestCase):
    def test_short_of_memory_a_small_body_is_a_file(self) -> None:
        store = self.open()
        store.reconfigure(0, 10)
        (item,) = self.run_async(put(store, message("a"), body=b"x" * 100, claim=True))
        self.assertEqual(self.files(), ["mta-1"])
        self.assertEqual(octets(self.run_async(store.body(item.message))), b"x" * 100)
        self.assertEqual(store.body_memory.used, 0)

    def test_all_is_given_back_whatever_becomes_of_it(self) -> None:
        store = self.open(threshold=50)
        for size in (10, 100):
            self.run_async(put(store, message(f"a{size}"), body=b"x" * size))
            self.fails(put(store, message(f"a{size}"), body=b"x" * size), Exception)
            self.fails(put(store, message("b", recipients=()), body=b"x" * size), ValueError)
            self.run_async(write(store, b"x" * size)).abort()
            self.assertEqual((store.body_memory.held, store.body_memory.leaving), (0, 0))

"""store.threads: jobs in threads, with a reactor that only keeps what they hand back."""

from __future__ import annotations

import gc
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.store.threads import Workers


class Turns:
    """The reactor's side: what the threads hand back is called by `turn`."""

    def __init__(self) -> None:
        self.handed: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()

    def callFromThread(self, function: Callable[..., None], *args: Any) -> None:
        self.handed.put((function, args))

    def turn(self, count: int = 1) -> None:
        for _ in range(count):
            function, args = self.handed.get(timeout=60)
            function(*args)


class WorkersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.turns = Turns()
        reactor: Any = self.turns
        self.workers = Workers(reactor, 2, "test")
        self.addCleanup(self.workers.close)

    def names(self) -> list[str]:
        return sorted(each.name for each in threading.enumerate() if each.name.startswith("test-"))

    def test_the_result_comes_in_the_reactors_thread(self) -> None:
        job = self.workers.run(lambda a, b: (a, b, threading.current_thread().name), 1, b=2)
        self.assertNoResult(job)
        self.turns.turn()
        self.assertEqual(self.successResultOf(job), (1, 2, "test-0"))

    def test_so_does_an_exception_whatever_it_is(self) -> None:
        def fail(error: BaseException) -> None:
            raise error

        for error in (ValueError("no"), SystemExit(1)):
            job = self.workers.run(fail, error)
            self.turns.turn()
            self.assertIs(self.failureResultOf(job).value, error)

    def test_threads_start_when_there_is_work_for_them(self) -> None:
        self.assertEqual(self.names(), [])
        for _ in range(3):  # one after the other
            self.workers.run(len, "")
            self.turns.turn()
        self.assertEqual(self.names(), ["test-0"])
        together = threading.Barrier(2)
        for _ in range(4):  # each needs another beside it
            self.workers.run(together.wait, 60)
        self.turns.turn(4)
        self.assertEqual(self.names(), ["test-0", "test-1"])

    def test_close_waits_for_all_jobs_and_takes_no_more(self) -> None:
        go = threading.Event()
        done: list[int] = []
        self.workers.run(go.wait, 60)
        self.workers.run(go.wait, 60)
        for number in range(5):
            self.workers.run(done.append, number)
        go.set()
        self.workers.close()
        self.assertEqual(sorted(done), [0, 1, 2, 3, 4])
        self.assertEqual(self.names(), [])
        self.failureResultOf(self.workers.run(len, ""), RuntimeError)

    def test_who_waits_may_lose_interest(self) -> None:
        job = self.workers.run(len, "")
        job.addErrback(lambda _: None)
        job.cancel()
        self.turns.turn()
        self.assertIsNone(self.successResultOf(job))

    def test_an_idle_thread_keeps_nothing_of_its_last_job(self) -> None:
        class Secret:
            pass

        secret, gone = Secret(), threading.Event()
        weakref.finalize(secret, gone.set)
        job = self.workers.run(lambda given: given is not None, secret)
        self.turns.turn()
        self.assertTrue(self.successResultOf(job))
        del secret, job
        deadline = time.monotonic() + 60  # it may be on its way to wait for the next
        while not gone.wait(0.1) and time.monotonic() < deadline:
            gc.collect()  # where nobody counts references
        self.assertTrue(gone.is_set())

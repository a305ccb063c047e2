"""The queue on real threads and a real disk: group commit, and a process killed at any moment."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial import unittest

from twisted_mta.core.queue import WorkItem
from twisted_mta.interfaces import StoreFull, Update
from twisted_mta.store.queue import SQLiteQueueStore
from twisted_mta.testing.contracts.queue import (
    DELIVERED,
    QueueStoreContract,
    message,
    octets,
    put,
    rows_of,
    write,
)
from twisted_mta.testing.site import python

# Adds messages as fast as it can, and names each one only when it is durable.
_WRITER = """
import sys, itertools
from pathlib import Path
from twisted.internet import reactor, task
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted_mta.store.queue import SQLiteQueueStore
from twisted_mta.testing.contracts.queue import message, put

store = SQLiteQueueStore.open(Path(sys.argv[1]), reactor, threshold=1000)
names = itertools.count()

async def work():
    while True:
        number = next(names)
        size = 3000 if number % 7 == 0 else 100
        await put(store, message(f"m{number:06}"), body=b"x" * size, claim=True)
        sys.stdout.write(f"m{number:06}\\n")
        sys.stdout.flush()

async def main(reactor):
    await gatherResults([Deferred.fromCoroutine(work()) for _ in range(20)])

task.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
"""


class ThreadedQueueStoreTests(QueueStoreContract, unittest.TestCase):
    """The contract once more, with threads."""

    timeout = 600

    def make_store(self) -> Any:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        store = SQLiteQueueStore.open(self.directory, reactor, threshold=1000)
        self.addCleanup(lambda: Deferred.fromCoroutine(store.close()))
        return store

    def run_async(self, coroutine: Any) -> Any:
        return Deferred.fromCoroutine(coroutine)

    async def test_what_waits_is_committed_together(self) -> None:
        tables: Any = self.store._writer._tables
        sizes = []
        commit = tables.commit

        submitted = threading.Event()

        def counted(operations: Any) -> Any:
            submitted.wait(60)
            sizes.append(len(operations))
            return commit(operations)

        self.patch(tables, "commit", counted)
        jobs = [Deferred.fromCoroutine(put(self.store, message(f"m{n:03}"), claim=True)) for n in range(200)]
        submitted.set()
        items: list[WorkItem] = [item for found in await gatherResults(jobs) for item in found]
        self.assertEqual(sum(sizes), 200)
        self.assertLessEqual(len(sizes), 2)  # what was there when the thread woke, and the rest
        self.assertEqual(len(await self.store.listing()), 200)
        await self.store.record([Update(row=row, outcome=DELIVERED) for row in rows_of(items)])
        self.assertEqual(await self.store.listing(), [])

    async def test_large_bodies_hold_their_writer_back(self) -> None:
        data = bytes(range(256)) * 20_000
        body = await write(self.store, data, 65_536)
        (item,) = await self.store.add([message("a")], body, claim=True)
        self.assertEqual(octets(await self.store.body(item.message)), data)

    async def test_a_refused_add_does_not_stop_the_writer(self) -> None:
        await put(self.store, message("a"))
        jobs = [Deferred.fromCoroutine(put(self.store, message("a"))) for _ in range(5)]
        good = Deferred.fromCoroutine(put(self.store, message("b")))
        for job in jobs:
            await self.assertFailure(job, Exception)
        await good
        self.assertEqual([item.message.id for item in await self.store.listing()], ["a", "b"])

    async def test_a_body_file_survives_a_caller_that_gives_up(self) -> None:
        body = await write(self.store, b"x" * 5000)
        adding = self.store.add([message("a")], body)
        writer: Any = self.store._writer
        submitted: list[Any] = []
        submit = writer.submit

        def cancel_after_submission(operation: Any) -> Any:
            submitted.append(submit(operation))
            reactor.callLater(0, adding.cancel)
            return submitted[0]

        self.patch(writer, "submit", cancel_after_submission)
        self.patch(
            writer,
            "_call",
            lambda function, *args: reactor.callFromThread(reactor.callLater, 0.1, function, *args),
        )
        await self.assertFailure(adding, CancelledError)
        self.patch(writer, "submit", submit)
        (item,) = await self.store.claim_due(1000.0, 5)
        self.assertEqual(octets(await self.store.body(item.message)), b"x" * 5000)

    async def test_a_closed_store_says_so(self) -> None:
        other = SQLiteQueueStore.open(self.directory / "other", reactor)
        await put(other, message("a"), claim=True)
        await other.close()
        await self.assertFailure(Deferred.fromCoroutine(put(other, message("b"))), RuntimeError)


class KilledTests(unittest.TestCase):
    def test_what_was_said_to_be_durable_is_there_after_a_kill(self) -> None:
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        for round_ in range(2):
            spool = directory / str(round_)
            with subprocess.Popen(
                [python(), "-c", _WRITER, str(spool)], stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                named = [process.stdout.readline().strip() for _ in range(150 + 50 * round_)]
                process.send_signal(signal.SIGKILL)
                named += [line.strip() for line in process.stdout if line.endswith("\n")]
            self._check(spool, set(named))

    def _check(self, spool: Path, named: set[str]) -> None:
        self.assertNotIn("", named)
        store = SQLiteQueueStore.inline(spool, Clock(), threshold=1000)

        async def check() -> None:
            items = await store.claim_due(9e9, 1_000_000)
            self.assertLessEqual(named, {item.message.id for item in items})
            for item in items:
                body = await store.body(item.message)
                self.assertEqual(octets(body), b"x" * item.message.body_size)
            files = {path.name for path in (spool / "bodies").rglob("*") if path.is_file()}
            self.assertEqual(len(files), sum(item.message.body_size == 3000 for item in items))
            await store.close()

        self.successResultOf(Deferred.fromCoroutine(check()))


class SmallDiskTests(unittest.TestCase):
    """A quota in place of a small disk: threads and all."""

    timeout = 600

    async def test_full(self) -> None:
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        store = SQLiteQueueStore.open(directory, reactor, quota=300_000)
        self.addCleanup(lambda: Deferred.fromCoroutine(store.close()))
        jobs = [
            Deferred.fromCoroutine(put(store, message(f"m{n:03}"), body=bytes(10_000))) for n in range(60)
        ]
        accepted, refused = 0, 0
        for job in jobs:
            try:
                await job
                accepted += 1
            except StoreFull:
                refused += 1
        self.assertGreater(accepted, 5)
        self.assertGreater(refused, 5)
        self.assertEqual(len(await store.listing()), accepted)

"""Both queues keep the contract; and what only the one on the disk can show."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial import unittest

from twisted_mta.interfaces import IQueueStore, StoreFull
from twisted_mta.store.queue import SQLiteQueueStore, memory
from twisted_mta.testing.contracts.queue import QueueStoreContract, message, put
from twisted_mta.testing.queue import MemoryQueueStore


class PlainMemoryQueueStoreTests(QueueStoreContract, unittest.SynchronousTestCase):
    def make_store(self) -> IQueueStore:
        return memory.MemoryQueueStore()


class MemoryQueueStoreTests(QueueStoreContract, unittest.SynchronousTestCase):
    def make_store(self) -> IQueueStore:
        return MemoryQueueStore()

    def test_knobs(self) -> Any:
        async def check() -> None:
            store = MemoryQueueStore()
            store.full = True
            await self._raises(StoreFull, put(store, message("a")))
            store.full = False
            store.fail("add", RuntimeError("first"))
            await self._raises(RuntimeError, put(store, message("a")))
            await put(store, message("a"))
            self.assertEqual(store.body_count, 1)
            await store.close()

        return self.run_async(check())


class SQLiteQueueStoreTests(QueueStoreContract, unittest.SynchronousTestCase):
    def make_store(self) -> IQueueStore:
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        store = SQLiteQueueStore.inline(directory / "queue", Clock())
        self.addCleanup(lambda: self.run_async(store.close()))
        return store


class SpillingQueueStoreTests(QueueStoreContract, unittest.SynchronousTestCase):
    """Every body, however small, goes through a file."""

    def make_store(self) -> IQueueStore:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        store = SQLiteQueueStore.inline(self.directory, Clock(), threshold=0)
        self.addCleanup(self._closed, store)
        return store

    def _closed(self, store: SQLiteQueueStore) -> None:
        known = set(store._writer._tables.files())
        self.run_async(store.close())
        left = {path.name for path in (self.directory / "bodies").rglob("*") if path.is_file()}
        self.assertEqual(left, known, "files are there without a row, or rows without a file")

"""No statement of the queue reads a long queue through: each is looked at as SQLite would carry it out."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial import unittest

from twisted_mta.core.queue import Expanded
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import Update
from twisted_mta.store.queue import SQLiteQueueStore
from twisted_mta.testing.contracts.queue import DELIVERED, LATER, message, put, rows_of, write


def result(awaitable: Awaitable[Any]) -> Any:
    async def run() -> Any:
        return await awaitable

    found: list[Any] = []
    Deferred.fromCoroutine(run()).addCallbacks(found.append, lambda failure: failure.raiseException())
    return found[0]


class PlanTests(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        self.store = SQLiteQueueStore.inline(directory, Clock(), threshold=8)
        self.addCleanup(lambda: result(self.store.close()))
        writer: Any = self.store._writer
        self.tables = writer._tables
        self.statements: list[str] = []
        for connection in (self.tables._connection, self.store._reader):
            connection.set_trace_callback(self.statements.append)

    def plans(self) -> list[tuple[str, str]]:
        """Each step of each statement that was carried out: (the step, the statement)."""
        found = []
        explaining = self.store._reader
        explaining.set_trace_callback(None)
        for statement in dict.fromkeys(self.statements):
            if not statement.startswith(("BEGIN", "COMMIT", "--")):
                for row in explaining.execute("EXPLAIN QUERY PLAN " + statement).fetchall():
                    found.append((row[3], statement))
        return found

    def assert_searched(self) -> None:
        self.assertTrue(self.statements)
        tables = {name for (name,) in self.store._reader.execute("SELECT name FROM sqlite_master")}
        for step, statement in self.plans():
            self.assertNotIn("AUTOMATIC", step, statement)
            # "SCAN r" and the like go over what an inner SELECT found, or a partial index.
            if step.startswith("SCAN ") and "LIMIT" not in statement:
                self.assertNotIn(step.removeprefix("SCAN "), tables, statement)

    def test_the_way_of_messages_through_the_queue(self) -> None:
        store = self.store
        (first,) = result(put(store, message("a", "bob", "carol"), claim=True))
        result(put(store, message("b"), body=b"long enough for a file"))
        result(store.record([Update(row=first.recipients[0].row, outcome=DELIVERED)]))
        result(store.record([Update(row=first.recipients[1].row, outcome=LATER, next_attempt=2000.0)]))
        self.assertEqual(result(store.next_due()), 1000.0)
        items = result(store.claim_due(3000.0, 10))
        for item in items:
            result(store.body(item.message))
        result(store.release(rows_of(items)))
        waiting = rows_of(result(store.claim_due(3000.0, 10)))
        result(store.postpone(waiting, 4000.0, "not now"))
        self.assertEqual(result(store.hasten(waiting, 1000.0)), 2)
        (post,) = result(store.claim_due(1000.0, 1))
        expanded = Expanded((message("c"),), Reply(250, "2.0.0", "to the members"))
        result(store.record([Update(row=post.recipients[0].row, outcome=expanded)], [(message("d"), b"x")]))
        for item in result(store.claim_due(3000.0, 10)):
            result(store.record([Update(row=row, outcome=DELIVERED) for row in rows_of([item])]))
        self.assertIsNone(result(store.next_due()))
        self.assert_searched()

    def test_the_start(self) -> None:
        result(put(self.store, message("a"), message("b"), claim=True))
        result(self.store.delete(["b"]))
        self.statements.clear()
        self.assertEqual(self.tables.recover(), 2)
        self.tables.files()
        self.assert_searched()
        steps = " ".join(step for step, _ in self.plans())
        for index in ("recipient_claimed", "message_doomed", "body_file"):
            self.assertIn(index, steps)

    def test_the_administrator(self) -> None:
        store = self.store
        result(store.add([message("a"), message("b")], result(write(store, b"x"))))
        self.statements.clear()
        result(store.find("a"))
        result(store.hold(["a"], "for a look"))
        result(store.let_go(["a"]))
        result(store.retry(["a"], 5.0))
        result(store.retry(None, 6.0))
        result(store.delete(["a"]))
        self.assert_searched()

    def test_the_history(self) -> None:
        store = self.store
        (item,) = result(put(store, message("a", "bob", "carol"), claim=True))
        first, second = item.recipients
        updates = [Update(row=first.row, outcome=DELIVERED), Update(row=second.row, outcome=LATER)]
        result(store.record(updates))
        self.statements.clear()
        self.assertEqual(len(result(store.recall(["a"]))), 1)
        result(store.transcripts("a"))
        result(store.tidy(1e10))
        self.assert_searched()

    def test_a_listing_goes_from_its_messages_to_their_recipients(self) -> None:
        result(put(self.store, message("a")))
        self.statements.clear()
        result(self.store.listing(1))
        steps = [step for step, _ in self.plans()]
        self.assertIn("SEARCH r USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)", steps)
        self.assertNotIn("AUTOMATIC", " ".join(steps))

    def test_a_file_without_the_indexes_gets_them(self) -> None:
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        result(SQLiteQueueStore.inline(directory, Clock()).close())
        database = sqlite3.connect(directory / "queue.sqlite")
        database.executescript(
            "DROP INDEX recipient_claimed; DROP INDEX body_file; DROP INDEX message_doomed"
        )
        result(SQLiteQueueStore.inline(directory, Clock()).close())
        found = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
        database.close()
        self.assertLessEqual({"recipient_claimed", "body_file", "message_doomed"}, found)

"""What only the queue on the disk can show: crashes, a full disk, damage, and group commit."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial import unittest

from twisted_mta.core.envelope import TlsWish
from twisted_mta.core.selection import Status as Standing
from twisted_mta.core.selection import status
from twisted_mta.interfaces import DamagedBody, StoreFull, Update
from twisted_mta.store.queue import SQLiteQueueStore, schema
from twisted_mta.store.queue.bodies import WRITE_SIZE, BodyFiles, BodyWriter, FileBody, MemoryBody
from twisted_mta.store.queue.body_memory import BodyMemory
from twisted_mta.store.queue.errors import translate
from twisted_mta.store.queue.rows import CorruptRow, unpack_address
from twisted_mta.store.queue.schema import QueueFileError
from twisted_mta.testing.contracts.queue import (
    DELIVERED,
    LATER,
    locals_of,
    message,
    octets,
    put,
    rows_of,
    write,
)

_TABLES = ("body", "message", "recipient", "past_message", "past_recipient", "event", "transcript")
#: As the first version made it.
_FORMAT_1 = """\
CREATE TABLE body (
    id INTEGER PRIMARY KEY,
    size INTEGER NOT NULL,
    file TEXT,
    data BLOB
);
CREATE TABLE message (
    id TEXT PRIMARY KEY,
    body INTEGER NOT NULL,
    shared INTEGER NOT NULL,
    doomed INTEGER NOT NULL DEFAULT 0,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    sender,
    arrived REAL NOT NULL,
    expires REAL NOT NULL,
    body_type TEXT NOT NULL,
    smtputf8 INTEGER NOT NULL,
    envid, ret, parent, message_id, origin,
    prefix BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX message_body ON message (body) WHERE shared;
CREATE TABLE recipient (
    row INTEGER PRIMARY KEY,
    message TEXT NOT NULL,
    owner TEXT,
    next_attempt REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    warned INTEGER NOT NULL DEFAULT 0,
    transport TEXT NOT NULL,
    notify INTEGER NOT NULL,
    address NOT NULL,
    original,
    orcpt,
    last_reply DEFAULT ''
);
CREATE INDEX recipient_due ON recipient (next_attempt, row) WHERE owner IS NULL;
"""


class SlowWorkers:
    """Runs jobs only when told to: threads that take their time."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[..., Any], tuple[Any, ...], Deferred[Any]]] = []

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.jobs.append((function, args, done))
        return done

    def step(self) -> None:
        function, args, done = self.jobs.pop(0)
        try:
            done.callback(function(*args))
        except Exception:
            done.errback()

    def close(self) -> None:
        pass


class StoreTestCase(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.clock = Clock()
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def open(self, **options: Any) -> Any:
        store = SQLiteQueueStore.inline(self.directory / "queue", self.clock, **options)
        self.addCleanup(self.kill, store)
        return store

    def kill(self, store: Any) -> None:
        """End it as a crash would: what is claimed stays claimed."""
        store._writer.close()
        store._reader.close()

    def run_async(self, work: Awaitable[Any]) -> Any:
        return self.successResultOf(ensureDeferred(work))  # type: ignore[arg-type]

    def fails(self, work: Awaitable[Any], kind: type[Exception]) -> Any:
        return self.failureResultOf(ensureDeferred(work), kind).value  # type: ignore[arg-type]

    def sql(self, statement: str, *values: object) -> list[Any]:
        with sqlite3.connect(self.directory / "queue" / "queue.sqlite") as connection:
            found = connection.execute(statement, values).fetchall()
        connection.close()
        return found

    def files(self) -> list[str]:
        return sorted(
            path.name for path in (self.directory / "queue" / "bodies").rglob("*") if path.is_file()
        )


class CrashTests(StoreTestCase):
    def test_claims_of_our_name_are_given_back(self) -> None:
        store = self.open()
        self.run_async(put(store, message("a", "x"), message("b", "y"), claim=True))
        self.kill(store)
        store = self.open()
        items = self.run_async(store.claim_due(1000.0, 10))
        self.assertEqual(locals_of(items), ["x", "y"])
        self.assertEqual(octets(self.run_async(store.body(items[0].message))), b"Subject: x\r\n\r\nhi\r\n")

    def test_claims_of_others_are_left(self) -> None:
        store = self.open(owner="one")
        self.run_async(put(store, message("a"), claim=True))
        self.run_async(put(store, message("b", "x", "y")))
        other = self.open(owner="two")
        mine = self.run_async(other.claim_due(1000.0, 1))
        self.assertEqual(locals_of(mine), ["x"])
        self.assertEqual(locals_of(self.run_async(store.claim_due(1000.0, 10))), ["y"])
        self.run_async(other.release(rows_of(self.run_async(store.listing()))))
        self.assertEqual(self.run_async(store.next_due()), 1000.0)

    def test_rows_are_not_used_twice_by_two_processes(self) -> None:
        one, two = self.open(owner="one"), self.open(owner="two")
        rows = []
        for n in range(6):
            rows += rows_of(self.run_async(put((one, two)[n % 2], message(f"m{n}"), claim=True)))
        self.assertEqual(len(set(rows)), 6)

    def test_the_row_of_a_claim_is_not_used_again_by_the_process_that_has_it(self) -> None:
        one, two = self.open(owner="one"), self.open(owner="two")
        self.run_async(put(two, message("a")))
        claimed = rows_of(self.run_async(one.claim_due(1000.0, 10)))
        self.run_async(two.record([Update(row=row, outcome=DELIVERED) for row in claimed]))
        self.assertEqual(self.run_async(two.listing()), [])
        (row,) = rows_of(self.run_async(put(one, message("b"), claim=True)))
        self.assertNotIn(row, claimed)

    def test_a_row_number_given_again_belongs_to_one_message_only(self) -> None:
        store = self.open()
        items = self.run_async(put(store, message("a", "x", "y"), claim=True))
        self.run_async(store.record([Update(row=rows_of(items)[1], outcome=DELIVERED)]))
        self.kill(store)
        store = self.open()
        self.run_async(put(store, message("b", "z")))
        self.assertEqual([locals_of([item]) for item in self.run_async(store.listing())], [["x"], ["z"]])
        self.assertEqual(self.run_async(store.retry(["a"], 5.0)), 1)
        self.assertEqual(self.run_async(store.delete(["a"])), 1)
        self.assertEqual(locals_of(self.run_async(store.listing())), ["z"])

    def test_unfinished_and_forgotten_files_are_swept(self) -> None:
        store = self.open(threshold=10)
        kept = self.run_async(put(store, message("a"), body=b"x" * 100, claim=True))
        self.run_async(write(store, b"y" * 200_000, 50_000))
        self.assertEqual(len(self.files()), 2)
        orphan = self.directory / "queue" / "bodies" / "mta-77"
        orphan.write_bytes(b"no row")
        foreign = self.directory / "queue" / "bodies" / "other-1"
        foreign.write_bytes(b"not ours")
        self.kill(store)
        store = self.open(threshold=10)
        self.assertEqual(self.files(), ["mta-1", "other-1"])
        self.assertEqual(octets(self.run_async(store.body(kept[0].message))), b"x" * 100)
        self.run_async(put(store, message("b"), body=b"z" * 100))
        self.assertEqual(self.files(), ["mta-1", "mta-78", "other-1"])

    def test_what_was_deleted_during_its_delivery_is_gone_after_a_crash(self) -> None:
        store = self.open(threshold=10)
        self.run_async(put(store, message("a"), body=b"x" * 100, claim=True))
        self.run_async(store.delete(["a"]))
        self.kill(store)
        store = self.open()
        self.assertEqual(self.run_async(store.claim_due(9e9, 10)), [])
        self.assertEqual((self.sql("SELECT * FROM message"), self.files()), ([], []))

    def test_close_gives_claims_back(self) -> None:
        store = self.open()
        self.run_async(put(store, message("a"), claim=True))
        self.run_async(store.close())
        self.assertEqual(self.sql("SELECT owner FROM recipient"), [(None,)])
        self.fails(put(store, message("b")), RuntimeError)

    def test_nothing_is_left_in_the_tables(self) -> None:
        store = self.open()
        items = self.run_async(put(store, message("a", "x", "y"), message("b"), claim=True))
        self.run_async(store.record([Update(row=row, outcome=DELIVERED) for row in rows_of(items)]))
        for table in ("body", "message", "recipient"):
            self.assertEqual(self.sql(f"SELECT count(*) FROM {table}"), [(0,)])


class MemoryTests(StoreTestCase):
    def test_a_claimed_body_is_not_read_back(self) -> None:
        store = self.open()
        (item,) = self.run_async(put(store, message("a"), claim=True))
        self.sql("UPDATE body SET data = zeroblob(size)")
        self.assertEqual(octets(self.run_async(store.body(item.message))), b"Subject: x\r\n\r\nhi\r\n")
        self.run_async(store.release(rows_of([item])))
        self.assertEqual(octets(self.run_async(store.body(item.message))), bytes(18))

    def test_it_is_kept_until_the_last_recipient(self) -> None:
        store = self.open()
        items = self.run_async(put(store, message("a", "x", "y"), claim=True))
        first, second = rows_of(items)
        self.run_async(store.record([Update(row=first, outcome=LATER)]))
        self.assertIsNotNone(store._claims.body(items[0].message.body_id))
        self.run_async(store.record([Update(row=second, outcome=LATER)]))
        self.assertIsNone(store._claims.body(items[0].message.body_id))
        self.assertEqual((store._claims._used, store._claims._rows_of), (0, {}))

    def test_memory_is_bounded(self) -> None:
        store = self.open(memory_limit=150)
        items = self.run_async(put(store, message("a"), body=b"x" * 100, claim=True))
        more = self.run_async(put(store, message("b"), body=b"y" * 100, claim=True))
        self.assertIsNotNone(store._claims.body(items[0].message.body_id))
        self.assertIsNone(store._claims.body(more[0].message.body_id))
        self.assertEqual(octets(self.run_async(store.body(more[0].message))), b"y" * 100)

    def test_small_bodies_are_rows_and_large_ones_files(self) -> None:
        store = self.open(threshold=1000)
        kinds = []
        for name, size in (("a", 1000), ("b", 1001)):
            (item,) = self.run_async(put(store, message(name), body=b"x" * size)) or self.run_async(
                store.claim_due(1000.0, 1)
            )
            body = self.run_async(store.body(item.message))
            self.assertEqual((body.size, len(octets(body))), (size, size))
            kinds.append(type(body))
        self.assertEqual(kinds, [MemoryBody, FileBody])
        (self.directory / "queue" / "bodies" / "mta-1").unlink()
        self.run_async(store.release(rows_of([item])))
        self.fails(store.body(item.message), DamagedBody)


class FullTests(StoreTestCase):
    def test_a_full_database_refuses_and_then_works_on(self) -> None:
        store = self.open(quota=400_000)
        stored = []
        error = None
        for n in range(100):
            try:
                stored += self.run_async(put(store, message(f"m{n:03}"), body=os.urandom(20_000), claim=True))
            except unittest.FailTest:
                error = self.fails(put(store, message("over"), body=os.urandom(20_000)), StoreFull)
                break
        self.assertIsInstance(error, StoreFull)
        self.assertGreater(len(stored), 5)
        names = [item.message.id for item in self.run_async(store.listing())]
        self.assertEqual(names, [item.message.id for item in stored])
        self.run_async(store.record([Update(row=row, outcome=DELIVERED) for row in rows_of(stored)]))
        self.run_async(put(store, message("again"), body=os.urandom(20_000)))
        self.assertEqual([item.message.id for item in self.run_async(store.listing())], ["again"])

    def test_the_reserve_is_looked_at_once_a_second(self) -> None:
        store = self.open(disk_reserve=1000)
        free = [999]
        asked = []

        class Disk:
            f_frsize = 1

            @property
            def f_bavail(self) -> int:
                return free[0]

        def statvfs(path: Path) -> Disk:
            asked.append(path)
            return Disk()

        self.patch(os, "statvfs", statvfs)
        error = self.fails(put(store, message("a")), StoreFull)
        self.assertIn("999 octets are free", str(error))
        free[0] = 1200
        self.fails(put(store, message("a")), StoreFull)
        self.assertEqual(len(asked), 1)
        self.clock.advance(1)
        self.run_async(put(store, message("a")))
        self.run_async(put(store, message("b")))
        self.assertEqual(len(asked), 2)
        # What came in since then may have used up the 200 octets: look again, and there is still that much.
        self.run_async(put(store, message("c"), body=b"x" * 150))
        self.assertEqual(len(asked), 3)
        self.fails(put(store, message("d"), body=b"x" * 201), StoreFull)
        self.assertEqual(len(asked), 4)

        def broken(path: Path) -> Disk:
            raise OSError(errno.EIO, "broken")

        self.patch(os, "statvfs", broken)
        self.clock.advance(1)
        self.fails(put(store, message("e")), StoreFull)

    def test_the_reserve_does_not_keep_outcomes_from_being_recorded(self) -> None:
        store = self.open()
        items = self.run_async(put(store, message("a"), claim=True))
        store.disk.reconfigure(1 << 62)
        new = [(message("b", "alice", sender=None), b"bounce")]
        self.run_async(store.record([Update(row=rows_of(items)[0], outcome=DELIVERED)], new))
        self.assertEqual([item.message.id for item in self.run_async(store.listing())], ["b"])

    def test_no_room_for_a_large_body(self) -> None:
        store = self.open(threshold=10)

        def full(descriptor: int, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        real = os.write
        os.write = full  # type: ignore[assignment]
        try:
            body = store.new_body()
            body.write(b"x" * 5)
            self.fails(self._pending(body.write(b"x" * 100)), StoreFull)
            with self.assertRaises(StoreFull):
                body.write(b"more")
            self.fails(store.add([message("a")], body), StoreFull)
        finally:
            os.write = real
        body.abort()
        self.assertEqual(self.files(), [])
        self.run_async(put(store, message("a"), body=b"x" * 100))

    def test_no_room_at_the_sync(self) -> None:
        store = self.open(threshold=10)

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(os, "fsync", full)
        self.fails(put(store, message("a"), body=b"x" * 100), StoreFull)
        self.assertEqual((self.files(), self.run_async(store.listing())), ([], []))

    def test_no_room_for_the_row_of_a_file(self) -> None:
        store = self.open(threshold=10)
        self.run_async(put(store, message("a")))
        self.fails(put(store, message("a"), body=b"x" * 100), sqlite3.IntegrityError)
        self.assertEqual(len(self.files()), 1)

    def test_a_disk_that_takes_nothing(self) -> None:
        store = self.open(threshold=10)
        self.patch(os, "write", lambda descriptor, data: 0)
        self.fails(put(store, message("a"), body=b"x" * 100), StoreFull)

    async def _pending(self, pending: Any) -> None:
        await pending

    def test_which_errors_mean_full(self) -> None:
        self.assertIsInstance(translate(OSError(errno.EDQUOT, "quota")), StoreFull)
        for error in (OSError(errno.EIO, "x"), ValueError(), sqlite3.OperationalError("locked")):
            self.assertIs(translate(error), error)
        self.assertIsInstance(translate(SystemExit()), RuntimeError)


class BodyWriterTests(StoreTestCase):
    def make(self, threshold: int = 10) -> tuple[BodyWriter, SlowWorkers]:
        self.memory = BodyMemory(1 << 20)
        workers = SlowWorkers()
        (self.directory / "queue").mkdir()
        files = BodyFiles(self.directory / "queue" / "bodies", "mta")
        return BodyWriter(files, workers, threshold, lambda octets: None, self.memory), workers

    def test_the_writer_holds_back_while_it_writes(self) -> None:
        body, workers = self.make()
        self.assertIsNone(body.write(b"x" * 10))
        first: Any = body.write(b"y")
        self.assertNoResult(first)
        second: Any = body.write(b"z" * WRITE_SIZE)
        workers.step()
        self.successResultOf(first)
        self.assertNoResult(second)
        workers.step()
        self.successResultOf(second)
        self.assertIsNone(body.write(b"more"))
        sealed = Deferred.fromCoroutine(body.seal())
        workers.step()
        workers.step()
        row = self.successResultOf(sealed)
        self.assertEqual((row.size, row.data), (15 + WRITE_SIZE, None))
        data = (self.directory / "queue" / "bodies" / row.file).read_bytes()
        self.assertEqual(data, b"x" * 10 + b"y" + b"z" * WRITE_SIZE + b"more")
        with self.assertRaises(RuntimeError):
            body.write(b"too late")
        self.failureResultOf(Deferred.fromCoroutine(body.seal()), RuntimeError)

    def test_abort_during_a_write(self) -> None:
        body, workers = self.make()
        waiting: Any = body.write(b"x" * 100)
        waiting.cancel()  # what a session does when its client is gone
        self.failureResultOf(waiting, CancelledError)
        body.abort()
        workers.step()
        self.assertEqual(self.files(), [])
        self.assertEqual(workers.jobs, [])

    def test_permissions(self) -> None:
        body, workers = self.make()
        body.write(b"x" * 100)
        workers.step()
        for path in self.directory.rglob("*"):
            mode = stat.S_IMODE(path.stat().st_mode)
            if path.is_file():
                self.assertEqual(mode, 0o600, path)
        body.abort()

    def test_a_name_that_is_taken(self) -> None:
        files = BodyFiles(self.directory / "bodies", "mta")
        (self.directory / "bodies" / "tmp" / "mta-1").write_bytes(b"")
        name, descriptor = files.create()
        os.close(descriptor)
        self.assertEqual(name, "mta-2")

    def test_a_file_that_cannot_be_removed_is_logged(self) -> None:
        files = BodyFiles(self.directory / "bodies", "mta")
        (self.directory / "bodies" / "dir").mkdir()
        files.discard("dir")
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)


class DamageTests(StoreTestCase):
    def test_corrupt_rows_are_left_alone_and_the_others_go_on(self) -> None:
        store = self.open()
        for name in ("a", "b", "c", "d", "e", "f", "g", "h"):
            self.run_async(put(store, message(name, name)))
        self.sql("UPDATE recipient SET prefix = 7 WHERE message = 'h'")
        self.sql("UPDATE recipient SET transport = 'pigeon' WHERE message = 'a'")
        self.sql("UPDATE recipient SET address = 'no address' WHERE message = 'b'")
        self.sql("UPDATE message SET prefix = 'text' WHERE id = 'c'")
        self.sql("DELETE FROM message WHERE id = 'd'")
        self.sql("DELETE FROM body WHERE id = (SELECT body FROM message WHERE id = 'e')")
        self.sql("UPDATE recipient SET last_reply = CAST(x'ff41' AS TEXT) WHERE message = 'f'")
        items = self.run_async(store.claim_due(1000.0, 100))
        self.assertEqual(locals_of(items), ["f", "g"])
        self.assertEqual(items[0].recipients[0].last_reply, "\udcffA")
        self.assertEqual(sum(event.get("event") == "damaged" for event in self.events), 6)
        self.assertIsNone(self.run_async(store.next_due()))

    def test_damaged_rows_are_shown_with_the_reason_and_can_be_removed(self) -> None:
        store = self.open()
        for name in ("a", "b"):
            self.run_async(put(store, message(name, "one", "two")))
        self.sql("UPDATE recipient SET notify = 'x' WHERE message = 'a' AND address LIKE 'one%'")
        self.sql("UPDATE message SET arrived = 'noon' WHERE id = 'b'")
        items = self.run_async(store.claim_due(1000.0, 100))
        self.assertEqual(locals_of(items), ["two"], "the other recipient of a is not kept waiting")
        self.kill(store)
        store = self.open()
        self.assertEqual(locals_of(self.run_async(store.claim_due(1000.0, 100))), ["two"])
        first, second = self.run_async(store.listing())
        self.assertEqual(str(first.recipients[0].address), "damaged-row-1@invalid")
        self.assertIn("damaged, set aside: ", first.recipients[0].last_reply)
        statuses = [status(first.message, one) for one in first.recipients]
        self.assertEqual(
            statuses, [Standing.HELD, Standing.NEW], "what can't be read is not said to be tried next"
        )
        self.assertEqual(first.message.hold, "")
        self.assertIn("damaged: message 'b' has a value of a wrong type", second.message.hold)
        self.assertEqual(len(second.recipients), 2)
        self.assertEqual(self.run_async(store.let_go(["b"])), 1)
        self.assertEqual(self.run_async(store.claim_due(1000.0, 100)), [])
        self.assertIn("damaged", self.run_async(store.find("b")).message.hold, "it is still not to be read")
        self.assertEqual(self.run_async(store.delete(["b"])), 1)
        self.assertEqual([item.message.id for item in self.run_async(store.listing())], ["a"])

    def test_damaged_bodies(self) -> None:
        store = self.open(threshold=10)
        for name, size in (("a", 5), ("b", 100), ("c", 100)):
            self.run_async(put(store, message(name), body=b"x" * size))
        self.sql("UPDATE body SET data = 'x' WHERE file IS NULL")
        short, missing = sorted((self.directory / "queue" / "bodies").glob("mta-*"))
        short.write_bytes(b"x" * 99)
        missing.unlink()
        for item, words in zip(
            self.run_async(store.listing()),
            ("not the 5 octets", "99 octets instead of 100", "is missing"),
            strict=True,
        ):
            self.assertIn(words, str(self.fails(store.body(item.message), DamagedBody)))

    def test_addresses(self) -> None:
        for packed in ("", 7, None, b"\xff"):
            with self.assertRaises(CorruptRow):
                unpack_address(packed)

    def test_one_bad_operation_does_not_take_the_batch_along(self) -> None:
        store = self.open()
        tables = store._writer._tables

        def bad(_: object) -> None:
            raise ZeroDivisionError

        results = tables.commit([lambda t: t.recover(), bad, lambda t: t.orders.retry(None, 5.0)])
        self.assertEqual((results[0], results[2]), (0, 0))
        results[1].trap(ZeroDivisionError)

    def test_a_newer_format_is_refused(self) -> None:
        self.kill(self.open())
        self.sql("PRAGMA user_version=99")
        with self.assertRaisesRegex(QueueFileError, "written by a newer twisted-mta"):
            self.open()

    def test_an_older_format_is_brought_up(self) -> None:
        self.kill(self.open())
        newest = schema.VERSION
        self.patch(schema, "VERSION", newest + 1)
        seen: list[Any] = []
        self.patch(schema, "MIGRATIONS", {newest: seen.append})
        self.kill(self.open())
        self.assertEqual((len(seen), self.sql("PRAGMA user_version")), (1, [(newest + 1,)]))
        self.kill(self.open())
        self.assertEqual(len(seen), 1)

    def test_a_queue_of_format_1(self) -> None:
        self.kill(self.open())
        for statement in (
            *(f"DROP TABLE {name}" for name in _TABLES),
            *_FORMAT_1.split(";\n"),
            "INSERT INTO body VALUES (1, 4, NULL, x'61620d0a')",
            "INSERT INTO message (id, body, shared, first, last, sender, arrived, expires, body_type, smtputf8, prefix) "
            "VALUES ('a', 1, 0, 1, 1, 'alice@example.test', 1000.0, 5000.0, '7BIT', 0, x'')",
            "INSERT INTO recipient (row, message, next_attempt, transport, notify, address) "
            "VALUES (1, 'a', 1000.0, 'smtp', 2, 'bob@example.org')",
            "PRAGMA user_version=1",
        ):
            self.sql(statement)
        store = self.open()
        (item,) = self.run_async(store.claim_due(1000.0, 10))
        message, recipient = item.message, item.recipients[0]
        self.assertEqual((message.not_before, message.deliver_by, message.priority), (0.0, None, 0))
        self.assertEqual((message.tls, recipient.late), (TlsWish.NONE, False))
        self.assertEqual((recipient.sender, recipient.prefix), (None, b""))
        with self.run_async(store.body(message)).open() as file:
            self.assertEqual(file.read(), b"ab\r\n")
        # What a fresh file has, an old one has too.
        old = {name: set(self.sql(f"SELECT name, type FROM pragma_table_info('{name}')")) for name in _TABLES}
        self.kill(store)
        (self.directory / "queue" / "queue.sqlite").unlink()
        self.kill(self.open())
        new = {name: set(self.sql(f"SELECT name, type FROM pragma_table_info('{name}')")) for name in _TABLES}
        self.assertEqual(old, new)

    def test_what_can_not_be_used_is_closed(self) -> None:
        path = self.directory.absolute() / "damaged.sqlite"
        path.write_bytes(b"no database here" * 100)
        try:
            schema.connect(path)
        except QueueFileError as error:
            told = error  # and with it all that its traceback has
        self.assertIn("file is not a database", str(told))
        links = (Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
        self.assertNotIn(str(path), [os.readlink(link) for link in links if link.is_symlink()])

    def test_what_is_no_database_is_refused(self) -> None:
        (self.directory / "queue").mkdir()
        (self.directory / "queue" / "queue.sqlite").write_bytes(b"not a database" * 100)
        with self.assertRaisesRegex(QueueFileError, "the queue's database is damaged: file is not"):
            self.open()

    def test_a_directory_that_cannot_be(self) -> None:
        (self.directory / "queue").write_bytes(b"")
        with self.assertRaisesRegex(QueueFileError, "can't make the queue's directory"):
            self.open()

    def test_permissions(self) -> None:
        old = os.umask(0)
        try:
            store = self.open()
            self.run_async(put(store, message("a")))
            for path in self.directory.rglob("*"):
                mode = stat.S_IMODE(path.stat().st_mode)
                self.assertEqual(mode, 0o700 if path.is_dir() else 0o600, path)
        finally:
            os.umask(old)

    def test_look_ups_use_the_indexes(self) -> None:
        self.kill(self.open())
        for query, index in (
            ("SELECT min(next_attempt) FROM recipient WHERE owner IS NULL", "recipient_due"),
            (
                "SELECT * FROM recipient WHERE owner IS NULL AND next_attempt <= 5 ORDER BY next_attempt, row LIMIT 9",
                "recipient_due",
            ),
            (
                "DELETE FROM body WHERE id = 1 AND NOT EXISTS (SELECT 1 FROM message m WHERE m.body = body.id AND m.shared)",
                "message_body",
            ),
        ):
            plan = " ".join(str(row[3]) for row in self.sql("EXPLAIN QUERY PLAN " + query))
            self.assertIn(index, plan)
            self.assertNotIn("TEMP B-TREE", plan)

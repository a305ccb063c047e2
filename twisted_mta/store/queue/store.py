"""IQueueStore on SQLite: the embedded queue.

One thread writes and groups commits; another reads, on a connection of its own, and so never waits for an fsync.
What is claimed here is remembered in memory: which body belongs to which row, and the small bodies themselves, so that
mail which is delivered as it comes in is not read back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_mta.core.history import PastMessage, Transcript
from twisted_mta.core.queue import NewMessage, Order, QueuedMessage, WorkItem
from twisted_mta.interfaces import DamagedBody, IBodyWriter, IQueueHistory, IQueueStore, IStoredBody, Update
from twisted_mta.store.durable import make_directories, sync_directory
from twisted_mta.store.queue import rows
from twisted_mta.store.queue.bodies import BodyFiles, BodyWriter, FileBody, MemoryBody, Runner
from twisted_mta.store.queue.body_memory import BodyMemory
from twisted_mta.store.queue.claims import Claims
from twisted_mta.store.queue.disk import DiskRoom
from twisted_mta.store.queue.errors import translate
from twisted_mta.store.queue.history import HistoryReader, HistoryRules, Passed
from twisted_mta.store.queue.reading import shown
from twisted_mta.store.queue.remembering import Remembering
from twisted_mta.store.queue.schema import QueueFileError, connect, trouble
from twisted_mta.store.queue.tables import BodyRow, Held, Tables
from twisted_mta.store.queue.writer import GroupCommitWriter, InlineWriter, Writer
from twisted_mta.store.threads import InlineWorkers, Workers

T = TypeVar("T")

#: Bodies up to this many octets are kept in the database.
THRESHOLD = 262144
#: Octets of bodies that are kept in memory while they are delivered; the others are read again.
MEMORY_LIMIT = 67108864
#: Octets of bodies on their way in that are in memory, until `reconfigure` says otherwise.
BODY_MEMORY = 67108864


@implementer(IQueueStore, IQueueHistory)
class SQLiteQueueStore:
    """The queue in `directory`: queue.sqlite, and large bodies under bodies/. All methods are for the reactor's thread.

    Make one with `open` or `inline`.
    """

    log = Logger()

    def __init__(
        self,
        directory: Path,
        clock: IReactorTime,
        *,
        writer: Callable[[Tables], Writer],
        readers: Runner,
        historians: Runner,
        file_workers: Runner,
        owner: str = "mta",
        disk_reserve: int = 0,
        quota: int = 0,
        threshold: int = THRESHOLD,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        """Opens the files and recovers from a crash, blocking. Raises `schema.QueueFileError`.

        `owner` names this process among those that share the queue; what the last process of that name had claimed is
        given back. `disk_reserve` octets of the disk stay free of new mail; `quota` bounds the database (0: unlimited).
        """
        try:
            make_directories(directory)
            self._files = BodyFiles(directory / "bodies", owner)
        except OSError as error:
            raise QueueFileError(f"{directory}: can't make the queue's directory: {error}") from error
        self._directory = directory
        self._clock = clock
        self._readers = readers
        self._historians = historians
        self._file_workers = file_workers
        self.disk = DiskRoom(directory, clock, disk_reserve)
        self._threshold = threshold
        self._claims = Claims(memory_limit)
        #: What the bodies on their way in have in memory.
        self.body_memory = BodyMemory(BODY_MEMORY)
        self._path = path = directory / "queue.sqlite"
        self._past: HistoryReader | None = None
        self._counted = False
        tables = Tables(path, owner, quota)
        self._history = tables.history
        recovered = _recover(tables, path)
        # SQLite sees to its log; the file itself, and our directories, were made by us.
        for made in (directory, directory.parent):
            sync_directory(made)
        swept = self._files.sweep(tables.files())
        if recovered or swept:
            self.log.info(
                "queue recovered: {recovered} recipients were being delivered, {swept} stray files removed",
                recovered=recovered,
                swept=swept,
            )
        self._writer = writer(tables)
        self._remembering = Remembering(self._writer, clock)
        self._reader = connect(path, read_only=True)

    @classmethod
    def open(cls, directory: Path, reactor: Any, **options: Any) -> SQLiteQueueStore:
        """With threads, for a running reactor. Options as in `__init__` from `owner` on."""
        threads: IReactorFromThreads = reactor
        return cls(
            directory,
            reactor,
            writer=lambda tables: GroupCommitWriter(threads, tables),
            readers=Workers(threads, 1, "queue-reader"),
            historians=Workers(threads, 1, "queue-history"),
            file_workers=Workers(threads, 4, "queue-bodies"),
            **options,
        )

    @classmethod
    def inline(cls, directory: Path, clock: IReactorTime, **options: Any) -> SQLiteQueueStore:
        """Without threads: everything is done when a method returns. For tests, and programs without a reactor."""
        return cls(
            directory,
            clock,
            writer=InlineWriter,
            readers=InlineWorkers(),
            historians=InlineWorkers(),
            file_workers=InlineWorkers(),
            **options,
        )

    # --- adding ----------------------------------------------------------------------------------

    def reconfigure(self, disk_reserve: int, memory: int) -> None:
        """Keep so many octets of the disk free from now on, and have so many of bodies on their way in in memory."""
        self.disk.reconfigure(disk_reserve)
        self.body_memory.reconfigure(memory)

    def new_body(self) -> IBodyWriter:
        return BodyWriter(self._files, self._file_workers, self._threshold, self.disk.use, self.body_memory)

    def check_room(self, octets: int) -> None:
        self.disk.check(octets)

    def add(
        self, messages: Sequence[NewMessage], body: IBodyWriter, *, claim: bool = False
    ) -> Deferred[Sequence[WorkItem]]:
        assert isinstance(body, BodyWriter), "the body is of another store"
        try:
            if not all(message.recipients for message in messages):
                raise ValueError("a message without recipients would stay for ever")
            self.disk.use(0)
            row = body.seal_now()
        except Exception:  # noqa: BLE001  handed to the errback
            body.abort()
            return fail()
        if row is None:
            return Deferred.fromCoroutine(self._add_file(messages, body, claim))
        return self._add(messages, body, row, claim)

    async def _add_file(
        self, messages: Sequence[NewMessage], body: BodyWriter, claim: bool
    ) -> Sequence[WorkItem]:
        try:
            row = await body.seal()
        except Exception:
            body.abort()
            raise
        return await self._add(messages, body, row, claim)

    def _add(
        self, messages: Sequence[NewMessage], body: BodyWriter, row: BodyRow, claim: bool
    ) -> Deferred[Sequence[WorkItem]]:
        # No coroutine: this is done for each message, and one would cost as much as all the rest of it.
        adding = self._writer.submit(lambda tables: tables.add(messages, row, claim))
        return adding.addCallbacks(
            self._added, self._not_added, (messages, body, row, claim), errbackArgs=(body, row)
        )

    def _added(
        self,
        numbers: tuple[int, int],
        messages: Sequence[NewMessage],
        body: BodyWriter,
        row: BodyRow,
        claim: bool,
    ) -> Sequence[WorkItem]:
        body.release()
        return self._claimed(messages, row, *numbers) if claim else ()

    def _not_added(self, failure: Failure, body: BodyWriter, row: BodyRow) -> Failure:
        body.release()
        # Cancelled: the commit may come about all the same, so the file stays; the next start knows whether it is needed.
        if row.file and not isinstance(failure.value, CancelledError):
            self._discard([row.file])
        return failure

    def _claimed(
        self, messages: Sequence[NewMessage], body: BodyRow, number: int, first: int
    ) -> list[WorkItem]:
        items = []
        for message in messages:
            if message.held:
                first += len(message.recipients)
                continue
            held = Held(message.id, number, body.file or "")
            recipients = []
            self._claims.add(dict.fromkeys(range(first, first + len(message.recipients)), held))
            for recipient in message.recipients:
                recipients.append(recipient.queued(first, message.released))
                first += 1
            items.append(WorkItem(message.queued(number, body.size), tuple(recipients)))
        if body.data is not None:
            self._claims.keep(number, MemoryBody(body.data))
        return items

    # --- working ---------------------------------------------------------------------------------

    async def claim_due(self, now: float, limit: int) -> Sequence[WorkItem]:
        items, held = await self._writer.submit(lambda tables: tables.claim_due(now, limit))
        self._claims.add(held)
        return list(items)

    async def next_due(self) -> float | None:
        found = await self._read("SELECT min(next_attempt) FROM recipient WHERE owner IS NULL")
        due: float | None = found[0][0]
        return due

    async def body(self, message: QueuedMessage) -> IStoredBody:
        body = self._claims.body(message.body_id)
        if body is None:
            found = await self._read("SELECT size, file, data FROM body WHERE id = ?", message.body_id)
            if not found:
                raise KeyError(f"the body of {message.id} is gone")
            size, file, data = found[0]
            if file is not None:
                body = FileBody(self._files.path(file), size)
                _check_size(body)
            elif isinstance(data, bytes) and len(data) == size:
                body = MemoryBody(data)
            else:
                raise DamagedBody(f"its body in the queue's database is not the {size} octets that it was")
            self._claims.keep(message.body_id, body)
        return body

    def record(
        self, updates: Sequence[Update], new: Sequence[tuple[NewMessage, bytes]] = ()
    ) -> Deferred[None]:
        known = [(update, self._claims.get(update.row)) for update in updates]
        bodies = [(message, BodyRow(len(data), data, None)) for message, data in new]
        recording = self._writer.submit(lambda tables: tables.record(known, bodies))
        return recording.addCallback(self._recorded, updates)

    def _recorded(self, gone: Sequence[str], updates: Sequence[Update]) -> None:
        self._claims.drop([update.row for update in updates])
        self._discard(gone)

    def note_delivered(self, message: NewMessage, size: int, update: Update) -> None:
        self._remembering.note(Passed(message, size, update))

    async def release(self, rows: Sequence[int]) -> None:
        held = self._held(rows)
        self._let_loose(held, await self._writer.submit(lambda tables: tables.release(held)))

    async def postpone(self, rows: Sequence[int], until: float, note: str = "") -> None:
        held = self._held(rows)
        self._let_loose(held, await self._writer.submit(lambda tables: tables.postpone(held, until, note)))

    async def hasten(self, rows: Sequence[int], now: float) -> int:
        count: int = await self._writer.submit(lambda tables: tables.hasten(rows, now))
        return count

    def _held(self, rows: Sequence[int]) -> list[tuple[int, Held]]:
        return [(row, claim) for row in rows if (claim := self._claims.get(row)) is not None]

    def _let_loose(self, held: Sequence[tuple[int, Held]], gone: Iterable[str]) -> None:
        self._claims.drop([row for row, _ in held])
        self._discard(gone)

    def _discard(self, files: Iterable[str]) -> None:
        for file in files:
            self._file_workers.run(self._files.discard, file)

    # --- the administrator -----------------------------------------------------------------------

    async def listing(self, limit: int = 1000, after: str = "") -> Sequence[WorkItem]:
        return await self._read_queue("SELECT * FROM message WHERE id > ? ORDER BY id LIMIT ?", after, limit)

    async def find(self, queue_id: str) -> WorkItem | None:
        found = await self._read_queue("SELECT * FROM message WHERE id = ?", queue_id)
        return found[0] if found else None

    async def retry(self, queue_ids: Sequence[str] | None, now: float) -> int:
        count: int = await self._writer.submit(lambda tables: tables.orders.retry(queue_ids, now))
        return count

    async def hold(self, queue_ids: Sequence[str], reason: str) -> int:
        now = self._clock.seconds()
        count: int = await self._writer.submit(lambda tables: tables.orders.hold(queue_ids, reason, now))
        return count

    async def let_go(self, queue_ids: Sequence[str]) -> int:
        now = self._clock.seconds()
        count: int = await self._writer.submit(lambda tables: tables.orders.let_go(queue_ids, now))
        return count

    async def order(
        self, order: Order, recipients: Sequence[tuple[str, int]], now: float, hop: str = ""
    ) -> int:
        count, gone = await self._writer.submit(lambda tables: tables.order(order, recipients, now, hop))
        self._discard(gone)
        assert isinstance(count, int)
        return count

    async def delete(self, queue_ids: Sequence[str]) -> int:
        now = self._clock.seconds()
        count, gone = await self._writer.submit(lambda tables: tables.delete(queue_ids, now))
        self._discard(gone)
        assert isinstance(count, int)
        return count

    # --- IQueueHistory ---------------------------------------------------------------------------

    @property
    def history(self) -> HistoryRules:
        """What is kept; may be replaced."""
        return self._history.rules

    @history.setter
    def history(self, rules: HistoryRules) -> None:
        self._history.rules = rules

    async def recall(self, queue_ids: Sequence[str]) -> Sequence[PastMessage]:
        return await self._look_back(lambda past: past.recall(queue_ids))

    async def mentions(self, text: str, limit: int) -> Sequence[str]:
        return await self._look_back(lambda past: past.mentions(text, limit))

    async def arrivals(self, start: float, end: float, limit: int) -> Sequence[str]:
        return await self._look_back(lambda past: past.arrivals(start, end, limit))

    async def transcripts(self, queue_id: str) -> Sequence[Transcript]:
        return await self._look_back(lambda past: past.transcripts(queue_id))

    async def tidy(self, now: float) -> bool:
        if not self._counted:
            (self._history.count,) = await self._look_back(lambda past: [past.count()])
            self._counted = True
        more: bool = await self._writer.submit(lambda tables: tables.history.tidy(now))
        return more

    async def _look_back(self, look: Callable[[HistoryReader], list[T]]) -> list[T]:
        """In a thread of its own, for it may take long, on a connection that is made when it is first needed."""

        await self._remembering.write()

        def run() -> list[T]:
            if self._past is None:
                self._past = HistoryReader(connect(self._path, read_only=True))
            return look(self._past)

        try:
            return await self._historians.run(run)
        except sqlite3.Error as error:
            raise translate(error) from error

    async def close(self) -> None:
        try:
            await self.release([row for row, _ in self._claims.items()])
        except Exception:  # noqa: BLE001  the next start takes them back
            self.log.failure("can't give back the claims of the queue")
        await self._remembering.write()
        await self._writer.close()
        self._readers.close()
        self._historians.close()
        if self._past is not None:
            self._past.close()
        self._file_workers.close()
        self._reader.close()

    def drop(self) -> None:
        """Close the files as they are, without giving anything back: as the end of the process does. Without threads only."""
        self._writer.close()
        self._reader.close()

    # --- reading ---------------------------------------------------------------------------------

    async def _read_queue(self, messages: str, *values: object) -> list[WorkItem]:
        found: list[WorkItem] = await self._read(
            f"SELECT {rows.MESSAGE_COLUMNS}, {rows.RECIPIENT_COLUMNS} FROM ({messages}) m "  # noqa: S608  only constants are put in
            "LEFT JOIN body b ON b.id = m.body CROSS JOIN recipient r ON r.row BETWEEN m.first AND m.last "
            "AND +r.message = m.id WHERE NOT m.doomed ORDER BY m.id, r.row",
            *values,
            convert=shown,
        )
        return found

    async def _read(
        self, query: str, *values: object, convert: Callable[[list[Any]], list[Any]] | None = None
    ) -> list[Any]:
        """The rows that a query finds; `convert` is called in the thread, for there may be many."""

        def fetch() -> list[Any]:
            found = self._reader.execute(query, values).fetchall()
            return convert(found) if convert else found

        try:
            result: list[Any] = await self._readers.run(fetch)
        except sqlite3.Error as error:
            raise translate(error) from error
        return result


def _check_size(body: FileBody) -> None:
    """Raises DamagedBody."""
    try:
        found = body.path.stat().st_size
    except FileNotFoundError:
        raise DamagedBody(f"its body file {body.path} is missing") from None
    if found != body.size:
        raise DamagedBody(f"its body file {body.path} has {found} octets instead of {body.size}")


def _recover(tables: Tables, path: Path) -> int:
    """Blocking, at the start. Raises QueueFileError."""
    (result,) = tables.commit([lambda those: those.recover()])
    if isinstance(result, int):
        return result
    raise QueueFileError(trouble(path, result.value))

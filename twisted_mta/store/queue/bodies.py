"""Message bodies: small ones in memory until they are committed, large ones in files."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_mta.core.message import header_length
from twisted_mta.core.values import value
from twisted_mta.interfaces import IBodyWriter, IStoredBody
from twisted_mta.store.durable import make_directories, sync_directory
from twisted_mta.store.faults import fault
from twisted_mta.store.queue.body_memory import BodyMemory
from twisted_mta.store.queue.errors import translate
from twisted_mta.store.queue.tables import BodyRow

P = ParamSpec("P")
T = TypeVar("T")

#: Octets gathered for one write to a file.
WRITE_SIZE = 131072
#: Octets read at a time in search of the end of a header section.
READ_SIZE = 16384


class Runner(Protocol):
    """`store.threads.Workers` or InlineWorkers."""

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call the function where it may block."""
        ...

    def close(self) -> None:
        """End."""
        ...


@implementer(IStoredBody)
@value
class MemoryBody:
    """A body that is in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def open(self) -> BinaryIO:
        return BytesIO(self.data)


@implementer(IStoredBody)
@value
class FileBody:
    """A body in a file."""

    path: Path
    size: int

    def open(self) -> BinaryIO:
        return self.path.open("rb")


class BodyFiles:
    """The directory of the large bodies of one process among those that share the queue: names begin with `owner`.

    A file is written under tmp/, and named in the directory itself only when it is whole and on the disk.
    """

    log = Logger()

    def __init__(self, directory: Path, owner: str) -> None:
        self.directory = directory
        self._tmp = directory / "tmp"
        make_directories(self._tmp)
        self._name = re.compile(re.escape(owner) + r"-([0-9]+)")
        self._owner = owner
        self._count = 0

    def sweep(self, known: set[str]) -> int:
        """Remove what a crash left: our unfinished files, and our finished ones that are not `known`."""
        swept = 0
        for directory, keep in ((self._tmp, set[str]()), (self.directory, known)):
            with os.scandir(directory) as found:
                for entry in found:
                    match = self._name.fullmatch(entry.name)
                    if match:
                        self._count = max(self._count, int(match[1]))
                        if entry.name not in keep:
                            fault("body.sweep")
                            Path(entry.path).unlink()
                            swept += 1
        return swept

    def create(self) -> tuple[str, int]:
        """A new unfinished file: its name and a descriptor to write to."""
        while True:
            self._count += 1
            name = f"{self._owner}-{self._count}"
            fault("body.create")
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                return name, os.open(self._tmp / name, flags, 0o600)
            except FileExistsError:
                continue

    def publish(self, name: str, descriptor: int) -> None:
        """Make a finished file durable under its name, and close it."""
        try:
            fault("body.sync")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fault("body.rename")
        (self._tmp / name).rename(self.directory / name)
        fault("body.sync-directory")
        sync_directory(self.directory)
        fault("body.published")

    def header(self, name: str, limit: int) -> bytes:
        """The beginning of an unfinished file: its header section, and what was read along with it."""
        found = b""
        with (self._tmp / name).open("rb") as file:
            while len(found) < limit and header_length(found) == len(found):
                piece = file.read(min(READ_SIZE, limit - len(found)))
                if not piece:
                    break
                found += piece
        return found

    def unfinished(self, name: str) -> Path:
        """Where an unfinished file is."""
        return self._tmp / name

    def path(self, name: str) -> Path:
        """Where a published file is."""
        return self.directory / name

    def discard(self, name: str) -> None:
        """Remove a file, finished or not."""
        for path in (self._tmp / name, self.directory / name):
            try:
                fault("body.remove")
                path.unlink(missing_ok=True)
                fault("body.removed")
            except OSError:  # it is swept at the next start
                self.log.failure("can't remove the body file {path}", path=str(path))


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        fault("body.write")
        written = os.write(descriptor, view)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view = view[written:]


@implementer(IBodyWriter)
class BodyWriter:
    """Collects a body in memory, and from `threshold` octets on, or when memory runs short, in a file."""

    def __init__(
        self,
        files: BodyFiles,
        workers: Runner,
        threshold: int,
        check_room: Callable[[int], None],
        memory: BodyMemory,
    ) -> None:
        """`check_room` is given the octets to come, and raises StoreFull; `memory` is shared by all bodies."""
        self._files = files
        self._workers = workers
        self._threshold = threshold
        self._check_room = check_room
        self._memory = memory
        #: What is not in the file. One block, not a list of pieces: a peer may send very small ones.
        self._buffer = bytearray()
        #: Octets that `memory` is to get back when the body is added or aborted.
        self._owed = 0
        self.size = 0
        self._name = ""
        self._descriptor = -1
        #: Whether a thread is writing, and who waits for it to be done.
        self._writing = False
        self._waiting: list[Deferred[None]] = []
        self._error: Exception | None = None
        #: Aborted, or handed over to the queue.
        self._finished = False

    def write(self, data: bytes) -> Awaitable[None] | None:
        if self._error is not None:
            raise self._error
        if self._finished:
            raise RuntimeError("the body is finished")
        if not self.size:
            self._check_room(len(data))
        self._buffer += data
        self.size += len(data)
        self._memory.take(len(data))
        if not self._writing:
            self._memory.offer(self)
        if self.size <= self._threshold or (self._name and len(self._buffer) < WRITE_SIZE):
            return self._memory.room()
        self._check_room(len(self._buffer))
        return Deferred.fromCoroutine(self._flush())

    def spill(self) -> None:
        """See body_memory.Holder. What goes wrong is told by the next `write`, or by `seal`."""
        self._start()

    async def _flush(self) -> None:
        """Bring what has gathered into the file; after the write under way, if there is one."""
        await self._idle()
        if self._buffer and not self._finished and self._error is None:
            self._start()
            await self._idle()
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        """Have a thread write what has gathered."""
        data, self._buffer = self._buffer, bytearray()
        self._memory.withdraw(self)
        self._memory.leave(len(data))
        self._writing = True
        # The caller may lose interest and cancel us: the thread goes on, and `_written` cleans up behind it.
        self._workers.run(self._append, data).addBoth(self._written, len(data))

    async def _idle(self) -> None:
        while self._writing:
            done: Deferred[None] = Deferred()
            self._waiting.append(done)
            await done

    def _written(self, result: Failure | None, octets: int) -> None:
        self._writing = False
        if isinstance(result, Failure):
            self._error = translate(result.value)
        if self._finished or self._error is not None:  # aborted meanwhile, or of no use: give the room back
            self._forget()
            self._discard()
        elif self._buffer:
            self._memory.offer(self)
        self._memory.give_back(octets)
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)

    def _append(self, data: bytearray) -> None:
        """In a thread."""
        if not self._name:
            self._name, self._descriptor = self._files.create()
        _write_all(self._descriptor, data)

    async def header(self, limit: int) -> bytes:
        await self._idle()
        if not self._name:
            found = bytes(self._buffer[:limit])
            self._owe(len(found))
        else:
            await self._flush()
            while (room := self._memory.room()) is not None:
                await room
            self._owe(min(limit, self.size))  # before it is read: others wait for room as well
            found = await self._workers.run(self._files.header, self._name, limit)
        header = found[: header_length(found)]
        self._owe(len(header) - min(limit, self.size))
        return header

    def in_memory(self) -> IStoredBody | None:
        if self._name or self._writing or self._error is not None:
            return None
        self._owe(self.size)
        return MemoryBody(bytes(self._buffer))

    async def stored(self) -> IStoredBody:
        await self._idle()
        body = self.in_memory()
        if body is not None:
            return body
        await self._flush()
        return FileBody(self._files.unfinished(self._name), self.size)

    def _owe(self, octets: int) -> None:
        """So much of what was written is in memory once more until `release`, or so much less."""
        if not self._finished:
            self._memory.look(octets)
            self._owed += octets

    def abort(self) -> None:
        self.release()
        if self._finished:
            return
        self._finished = True
        self._forget()
        if not self._writing:
            self._discard()

    def release(self) -> None:
        """What was in memory of the finished body is there no longer, or is somebody else's. Idempotent."""
        owed, self._owed = self._owed, 0
        self._memory.give_back(owed)

    def _forget(self) -> None:
        """Drop what has gathered."""
        octets = len(self._buffer)
        self._buffer = bytearray()
        self._memory.withdraw(self)
        self._memory.leave(octets)
        self._memory.give_back(octets)

    def _discard(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._name:
            self._files.discard(self._name)
            self._name = ""

    def seal_now(self) -> BodyRow | None:
        """As `seal`, where all of it is in memory; None, and nothing has happened: `seal` it."""
        if self._finished:
            raise RuntimeError("the body is finished")
        if self._error is not None:
            raise self._error
        if self._name or self._writing:
            return None
        self._finished = True
        data = bytes(self._buffer)
        self._buffer = bytearray()
        self._memory.withdraw(self)
        self._memory.leave(len(data))
        self._owed += len(data)
        return BodyRow(len(data), data, None)

    async def seal(self) -> BodyRow:
        """No more comes: the body as it goes into the tables; a file is then on the disk. Raises StoreFull.

        `release` is to be called when it is in the tables.
        """
        await self._idle()
        row = self.seal_now()
        if row is not None:
            return row
        await self._flush()
        if self._error is not None:
            raise self._error
        self._finished = True
        descriptor, self._descriptor = self._descriptor, -1
        try:
            await self._workers.run(self._files.publish, self._name, descriptor)
        except Exception as error:
            self._files.discard(self._name)
            raise translate(error) from error
        return BodyRow(self.size, None, self._name)

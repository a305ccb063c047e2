"""Appending to mbox files, durably and as far as can be once. Everything here blocks: worker threads only.

Other programs are kept out by a dot-lock (NAME.lock beside the file, with our process id in it) and by fcntl. A message
is appended, then synced; what fails halfway is cut off again. An mbox has no names for its messages, so a delivery that
may be a repetition looks for its own octets: they follow from the message alone, and no other can have them, as nothing
in a message looks like the line between messages. Where they are all there it is done; where the file ends in the
middle of them, as after a crash, they are cut off and appended anew.

The dot-lock also says where the message begins that is being appended. Who finds it abandoned cuts off what is not whole,
so that no beginning stays in the file if another message comes first.

What is left to chance: a mail program that changes the message between the crash and the repetition, which is then there
twice; and a power cut that takes the dot-lock's octets along, after which a beginning may stay.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import stat
from collections.abc import Generator, Iterator
from pathlib import Path

import attrs
from twisted.logger import Logger

from twisted_mta.core.address import Address
from twisted_mta.core.mbox import MboxLines, from_line
from twisted_mta.core.values import value
from twisted_mta.interfaces import IStoredBody
from twisted_mta.store.below import NotAllowed, directory_below
from twisted_mta.store.faults import fault
from twisted_mta.store.maildir.files import ToDisk

log = Logger()

_CHUNK = 65536
_FROM = b"From "
_BLANK = b"\n\n"
#: Where a file system has no files without a name, or /proc does not give them one.
_NOT_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
#: PyPy does not know it, and could not link such a file: without it, to open a directory fails as it does on those.
_NAMELESS = getattr(os, "O_TMPFILE", 0)
#: Seconds until a dot-lock is nobody's any more, whatever is written in it.
STALE = 300.0


class Locked(Exception):
    """Another program is at work on the file: try again in a moment."""


@value(kw_only=True)
class Letter:
    """A message as it is to stand in an mbox."""

    sender: Address | None
    #: Unix seconds.
    arrived: float
    #: What stands above the body, with CRLF.
    head: bytes
    body: IStoredBody

    def octets(self) -> Generator[bytes, None, None]:
        """All of it, always the same. Who does not come to the end closes it: the body is open."""
        yield self.beginning()
        lines, quoted = ToDisk(), MboxLines()
        quoted.feed(lines.feed(self.head))
        with self.body.open() as source:
            while chunk := source.read(_CHUNK):
                yield quoted.feed(lines.feed(chunk))
        yield quoted.feed(lines.finish())
        yield quoted.finish()

    def beginning(self) -> bytes:
        """What a search goes by: the line in front, and the fields of ours."""
        return from_line(self.sender, self.arrived) + MboxLines().feed(ToDisk().feed(self.head))


def append(root: Path, path: str, letter: Letter, now: float, *, repeated: bool) -> bool:
    """Append to the mbox at `path`, which lies below `root`; made (0600) if it is missing. `now`: Unix seconds.

    `repeated`: an earlier attempt may have done it; False when that is so. Raises Locked, NotAllowed, OSError.
    """
    *inside, name = Path(path).relative_to(root).parts
    with directory_below(root, inside) as directory, _dot_lock(directory, name, now) as lock:
        box, created = _open(directory, name)
        try:
            _lock(box, directory, name)
            if lock.torn is not None:
                _mend(box, lock.torn)
            if repeated and _settled(box, letter):
                return False
            _add(box, letter, lock)
            if created:
                fault("mbox.sync-directory")
                os.fsync(directory)
            fault("mbox.synced")
        finally:
            os.close(box)
    return True


# --- Locks ---------------------------------------------------------------------------------------


@attrs.define
class _DotLock:
    """A dot-lock of ours."""

    descriptor: int
    #: Where a message begins that one of our kind was writing when it died, by what it had noted.
    torn: int | None = None

    def note(self, offset: int) -> None:
        """For who finds it abandoned: a message is appended from there on."""
        os.write(self.descriptor, f"{offset}\n".encode())


@contextlib.contextmanager
def _dot_lock(directory: int, name: str, now: float) -> Iterator[_DotLock]:
    """Raises Locked."""
    lock = f"{name}.lock"
    torn = None
    try:
        descriptor = _create(directory, lock)
    except FileExistsError:
        text = _abandoned(directory, lock, now)
        if text is None:
            raise Locked(f"{lock} is there") from None
        log.warn("removed {lock}, whose process is gone", lock=lock)
        torn = int(text[1]) if len(text) > 1 and text[1].isdigit() else None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(lock, dir_fd=directory)
        try:
            descriptor = _create(directory, lock)
        except FileExistsError:
            raise Locked(f"{lock} is there again") from None
    try:
        yield _DotLock(descriptor, torn)
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):  # somebody took it for abandoned
            os.unlink(lock, dir_fd=directory)


def _create(directory: int, lock: str) -> int:
    """The dot-lock, whose descriptor is returned, with our process id in it. Raises FileExistsError."""
    try:
        return _create_whole(directory, lock)
    except OSError as error:
        if error.errno not in _NOT_NAMELESS:
            raise
    # A kill before the number is in it leaves one that nobody can judge before it is STALE.
    descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory)
    try:
        _sign(descriptor)
        fault("mbox.lock")
    except BaseException:
        os.close(descriptor)
        os.unlink(lock, dir_fd=directory)
        raise
    return descriptor


def _create_whole(directory: int, lock: str) -> int:
    """It gets its name when the number is in it."""
    descriptor = os.open(".", os.O_WRONLY | _NAMELESS | os.O_CLOEXEC, 0o644, dir_fd=directory)
    try:
        _sign(descriptor)
        fault("mbox.lock")
        os.link(f"/proc/self/fd/{descriptor}", lock, dst_dir_fd=directory)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _sign(descriptor: int) -> None:
    os.write(descriptor, f"{os.getpid()}\n".encode())


def _abandoned(directory: int, lock: str, now: float) -> list[bytes] | None:
    """What is written in a dot-lock whose process is gone; None if it is not. Ours has none while we look: what names us
    is left from an earlier life."""
    try:
        descriptor = os.open(
            lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    except OSError:
        return None
    try:
        age = now - os.fstat(descriptor).st_mtime
        text = os.read(descriptor, 100).split()
    finally:
        os.close(descriptor)
    if age > STALE:
        return text
    if not text or not text[0].isdigit() or not 0 < int(text[0]) < 1 << 22:
        return None
    process = int(text[0])
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return text
    except PermissionError:
        return None
    return text if process == os.getpid() else None


def _open(directory: int, name: str) -> tuple[int, bool]:
    """The file, and whether it is new. Raises NotAllowed, OSError."""
    # O_NONBLOCK: a FIFO must not hold us up.
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory), True
    except FileExistsError:
        pass
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        raise NotAllowed("it is a link, or no regular file")
    box = os.open(name, flags, dir_fd=directory)
    status = os.fstat(box)
    # Whoever can make links in that directory could have us write to any file of ours.
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(box)
        raise NotAllowed("it has another name elsewhere (a hard link)")
    return box, False


def _lock(box: int, directory: int, name: str) -> None:
    """Raises Locked."""
    try:
        fcntl.lockf(box, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise Locked("another program has it locked") from None
    there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not os.path.samestat(os.fstat(box), there):
        raise Locked("another program has just replaced it")


# --- Octets --------------------------------------------------------------------------------------


def _add(box: int, letter: Letter, lock: _DotLock) -> None:
    """Append and sync; what fails is taken back."""
    size = os.fstat(box).st_size
    end = _end(box, size)
    between = b"" if not size or end == _BLANK else b"\n" if end.endswith(b"\n") else _BLANK
    try:
        lock.note(size + len(between))
        _write(box, between)
        with contextlib.closing(letter.octets()) as octets:
            for chunk in octets:
                _write(box, chunk)
        fault("mbox.sync")
        os.fsync(box)
    except BaseException:
        _cut(box, size)
        raise


def _end(box: int, size: int) -> bytes:
    """The last two octets."""
    return os.pread(box, 2, max(size - 2, 0))


def _mend(box: int, torn: int) -> None:
    """Cut off the message from there on, if it is ours, the last one, and not all there: nobody was told that it is."""
    size = os.fstat(box).st_size
    if torn >= size or _end(box, size) == _BLANK:
        return
    kept, position = b"", torn
    while read := os.pread(box, 16 * _CHUNK, position):
        data = kept + read
        if (position == torn and not _FROM.startswith(data[: len(_FROM)])) or b"\n" + _FROM in data:
            return
        kept = data[-len(_FROM) :]
        position += len(read)
    _cut(box, torn)


def _write(box: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        fault("mbox.write")
        view = view[os.write(box, view) :]


def _cut(box: int, size: int) -> None:
    fault("mbox.cut")
    os.ftruncate(box, size)
    os.fsync(box)


def _settled(box: int, letter: Letter) -> bool:
    """Whether the message is there. A part of it at the end of the file is cut off."""
    needle = letter.beginning()
    size = os.fstat(box).st_size
    for at in _places(box, size, needle):
        found = _compare(box, at, letter)
        if found is _Found.WHOLE:
            return True
        if found is _Found.BEGUN:
            _cut(box, at)
            return False
    # Cut off within our own fields?
    at = max(size - len(needle), 0)
    tail = os.pread(box, len(needle), at)
    begin = tail.find(b"From ")
    while begin >= 0:
        if needle.startswith(tail[begin:]) and _starts_line(box, at + begin):
            _cut(box, at + begin)
            break
        begin = tail.find(b"From ", begin + 1)
    return False


def _places(box: int, size: int, needle: bytes) -> Iterator[int]:
    """Where in the file the needle begins a line."""
    kept, position = b"", 0
    while position < size:
        read = os.pread(box, 16 * _CHUNK, position)
        if not read:  # somebody who does not lock has made it shorter
            return
        data = kept + read
        base = position - len(kept)
        at = data.find(needle)
        while at >= 0:
            if _starts_line(box, base + at):
                yield base + at
            at = data.find(needle, at + 1)
        position = base + len(data)
        kept = data[-(len(needle) - 1) :]


def _starts_line(box: int, at: int) -> bool:
    return at == 0 or os.pread(box, 1, at - 1) == b"\n"


class _Found(enum.Enum):
    WHOLE = 1
    #: The file ends before it does.
    BEGUN = 2
    OTHER = 3


def _compare(box: int, at: int, letter: Letter) -> _Found:
    """What there is of the message at a place in the file."""
    with contextlib.closing(letter.octets()) as octets:
        for chunk in octets:
            found = os.pread(box, len(chunk), at)
            if found != chunk:
                return _Found.BEGUN if len(found) < len(chunk) and chunk.startswith(found) else _Found.OTHER
            at += len(chunk)
    return _Found.WHOLE

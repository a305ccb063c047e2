"""What a program did to files and what it sent, as strace(1) wrote it down."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath

import attrs

from tests.crash.disk import Disk, File, Node

#: Calls that change files, and those that would if anybody made them: these are refused, for the account to be whole.
_CALLS = (
    "openat,close,write,pwrite64,ftruncate,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,"
    "fdatasync,syncfs,lseek,dup,dup2,dup3,sendto,sendmsg"
)
_REFUSED = "open,creat,writev,pwritev,pwritev2,truncate,fallocate,sync,sync_file_range,copy_file_range,sendfile,fork,vfork"
_LINE = re.compile(r"(\d+) +(\d+\.\d+) (.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+|\?)")
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)")
#: What -yy adds to a descriptor.
_MEANT = re.compile(r"<(?:[^<>]|->)*>")
_PEER = re.compile(r"^\d+<TCP:\[[^\]]*->[^\]]*:(\d+)\]>")


def command(output: Path, program: Sequence[str]) -> list[str]:
    """The command line that lets `program` run and writes to `output` what it does."""
    calls = f"{_CALLS},{_REFUSED}"
    options = ["-f", "--seccomp-bpf", "-qqq", "-ttt", "-yy", "-xx", "-s", "10000000"]
    return ["strace", *options, "-e", f"trace={calls}", "-e", "signal=none", "-o", str(output), *program]


class Traced(subprocess.Popen[bytes]):
    """strace(1) and the program it runs: signals are for the program; both end together."""

    def send_signal(self, sig: int) -> None:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        for pid in children.split():
            os.kill(int(pid), sig)


@attrs.frozen
class Moment:
    """Something is about to happen: what is on the disk is what was done before."""

    #: Seconds since the epoch.
    when: float
    #: The name of the call: sendto, fsync ...
    call: str
    #: The port of the peer that something is sent to.
    port: int | None = None


@attrs.define
class _Open:
    node: Node
    position: int
    append: bool


def replay(lines: Iterable[str], disk: Disk, root: Path) -> Iterator[Moment]:
    """Do to `disk` what was done below `root`, and stop at each moment that may be of interest."""
    return _Replay(disk, root).run(lines)


class _Replay:
    def __init__(self, disk: Disk, root: Path) -> None:
        self._disk = disk
        self._root = root
        #: One table for all threads.
        self._open: dict[int, _Open] = {}
        self._pending: dict[str, tuple[str, Callable[[], None] | None]] = {}

    def run(self, lines: Iterable[str]) -> Iterator[Moment]:
        for line in lines:
            match = _LINE.match(line)
            assert match, line
            thread, when, text = match.groups()
            if text.startswith("+++"):
                continue
            if resumed := _RESUMED.match(text):
                begun, finish = self._pending.pop(thread)
                self._end(begun + resumed[2], finish)
                continue
            whole = not text.endswith("<unfinished ...>")
            call, _, arguments = text.partition("(")
            if call in ("sendto", "sendmsg"):
                peer = _PEER.match(arguments)
                yield Moment(float(when), call, int(peer[1]) if peer else None)
            elif call in ("fsync", "fdatasync", "syncfs"):
                yield Moment(float(when), call)
            text = text.removesuffix("<unfinished ...>").rstrip()
            finish = self._begin(call, arguments)
            if whole:
                self._end(text, finish)
            else:
                self._pending[thread] = text, finish

    def _begin(self, call: str, arguments: str) -> Callable[[], None] | None:
        """A sync keeps what was done before it began; a descriptor may have a new meaning before its close has returned."""
        number = re.match(r"\d+", arguments)
        opened = self._open.get(int(number[0])) if number else None
        if call == "syncfs":
            return self._disk.sync(None)
        if call in ("fsync", "fdatasync") and opened:
            return self._disk.sync(opened.node)
        if call == "close" and number:
            self._open.pop(int(number[0]), None)
        return None

    def _end(self, text: str, finish: Callable[[], None] | None) -> None:
        match = _CALL.match(text)
        assert match, text
        call, arguments, result = match.groups()
        if result == "?" or int(result) < 0:
            return
        if finish is not None:
            finish()
        elif call not in ("close", "sendto", "sendmsg", "fsync", "fdatasync"):
            handle = _HANDLERS.get(call)
            assert handle, f"nobody knows what {call} does to the disk"
            handle(self, _split(arguments), int(result))

    # --- calls -----------------------------------------------------------------------------------

    def _path(self, name: str, place: str = "AT_FDCWD") -> PurePath | None:
        """Relative to the root; None elsewhere."""
        path = _octets(name).decode()
        if not path.startswith("/"):
            meant = _MEANT.search(place)
            assert meant, place
            path = os.path.join(_unescape(meant[0][1:-1]).decode(), path)
        whole = PurePath(os.path.normpath(path))
        return whole.relative_to(self._root) if whole.is_relative_to(self._root) else None

    def openat(self, arguments: list[str], result: int) -> None:
        path = self._path(arguments[1], arguments[0])
        flags = arguments[2].split("|")
        if path is None:
            return
        assert "O_TMPFILE" not in flags
        node = self._disk.find(path)
        if node is None:
            node = self._disk.create(path)
        elif "O_TRUNC" in flags and isinstance(node, File):
            node.truncate(0)
        self._open[result] = _Open(node, 0, "O_APPEND" in flags)

    def write(self, arguments: list[str], result: int) -> None:
        opened = self._opened(arguments[0])
        if opened and isinstance(opened.node, File):
            offset = opened.node.length if opened.append else opened.position
            opened.node.write(offset, _octets(arguments[1])[:result])
            opened.position = offset + result

    def pwrite64(self, arguments: list[str], result: int) -> None:
        opened = self._opened(arguments[0])
        if opened and isinstance(opened.node, File):
            opened.node.write(int(arguments[3]), _octets(arguments[1])[:result])

    def duplicate(self, arguments: list[str], result: int) -> None:
        # PyPy does so with descriptors of its own while it starts; two of a file of ours would share their position.
        assert self._opened(arguments[0]) is None
        self._open.pop(result, None)

    def lseek(self, arguments: list[str], result: int) -> None:
        if opened := self._opened(arguments[0]):
            opened.position = result

    def ftruncate(self, arguments: list[str], result: int) -> None:
        opened = self._opened(arguments[0])
        if opened and isinstance(opened.node, File):
            opened.node.truncate(int(arguments[1]))

    def mkdir(self, arguments: list[str], result: int) -> None:
        *place, name, _ = arguments
        if path := self._path(name, *place):
            self._disk.make_folder(path)

    def unlink(self, arguments: list[str], result: int) -> None:
        if path := self._path(arguments[0]):
            self._disk.remove(path)

    def unlinkat(self, arguments: list[str], result: int) -> None:
        if path := self._path(arguments[1], arguments[0]):
            self._disk.remove(path)

    def rename(self, arguments: list[str], result: int) -> None:
        self._two(self._disk.rename, self._path(arguments[0]), self._path(arguments[1]))

    def renameat(self, arguments: list[str], result: int) -> None:
        old, new = (self._path(arguments[n + 1], arguments[n]) for n in (0, 2))
        self._two(self._disk.rename, old, new)

    def link(self, arguments: list[str], result: int) -> None:
        self._two(self._disk.link, self._path(arguments[0]), self._path(arguments[1]))

    def linkat(self, arguments: list[str], result: int) -> None:
        old, new = (self._path(arguments[n + 1], arguments[n]) for n in (0, 2))
        self._two(self._disk.link, old, new)

    @staticmethod
    def _two(
        change: Callable[[PurePath, PurePath], None], old: PurePath | None, new: PurePath | None
    ) -> None:
        assert (old is None) == (new is None), (old, new)
        if old is not None and new is not None:
            change(old, new)

    def _opened(self, argument: str) -> _Open | None:
        return self._open.get(int(argument.partition("<")[0]))


_HANDLERS: dict[str, Callable[[_Replay, list[str], int], None]] = {
    "openat": _Replay.openat,
    "write": _Replay.write,
    "pwrite64": _Replay.pwrite64,
    "lseek": _Replay.lseek,
    "dup": _Replay.duplicate,
    "dup2": _Replay.duplicate,
    "dup3": _Replay.duplicate,
    "ftruncate": _Replay.ftruncate,
    "mkdir": _Replay.mkdir,
    "mkdirat": _Replay.mkdir,
    "unlink": _Replay.unlink,
    "rmdir": _Replay.unlink,
    "unlinkat": _Replay.unlinkat,
    "rename": _Replay.rename,
    "renameat": _Replay.renameat,
    "renameat2": _Replay.renameat,
    "link": _Replay.link,
    "linkat": _Replay.linkat,
}


def _split(arguments: str) -> list[str]:
    # All text is in hexadecimal: there is no comma in it.
    return [one.strip() for one in arguments.split(", ")]


def _octets(literal: str) -> bytes:
    assert literal[:1] == literal[-1:] == '"', literal[:100]
    return _unescape(literal[1:-1])


def _unescape(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))

"""Message files of a Maildir: their names, their line ends, and how they are written.

A name is ``KEY[,S=octets][,W=octets][,...][:2,LETTERS]``. The key is what lasts while programs rename the file: Dovecot
and we put sizes behind it, mbsync a ",U=". On disk lines end in LF, as every Maildir program expects.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from itertools import count
from pathlib import Path

from twisted_mta.store.faults import fault

_FLAGS_MARK = ":2,"
_FIELD = re.compile(r",([SW])=([0-9]{1,15})(?=,|$)")
_LONE_CRLF = re.compile(rb"(?<!\r)\r\n")


def key_of(file: str) -> str:
    """The part of a file name that no program changes."""
    return file.partition(":")[0].partition(",")[0]


def letters_of(file: str) -> str:
    """The flag letters; "" when there is no info part, or one of another kind."""
    return file.partition(_FLAGS_MARK)[2]


def with_letters(file: str, letters: str) -> str:
    """The file's name in cur/ with these letters, in the order that the Maildir specification wants."""
    return file.partition(":")[0] + _FLAGS_MARK + "".join(sorted(set(letters)))


def with_sizes(key: str, size: int, virtual: int) -> str:
    """A name in new/: `size` octets on disk, `virtual` with CRLF line ends."""
    return f"{key},S={size},W={virtual}"


def virtual_size_of(file: str) -> int | None:
    """The ",W=" of a name."""
    sizes = {match[1]: int(match[2]) for match in _FIELD.finditer(file.partition(":")[0])}
    return sizes.get("W")


def arrival_order(file: str) -> tuple[int, str]:
    """Sort key: file names begin with the second of their arrival."""
    digits = re.match(r"[0-9]{1,15}", file)
    return (int(digits.group()) if digits else 0, file)


def to_wire(data: bytes) -> bytes:
    """A whole file's octets with CRLF line ends, whichever it has."""
    return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


class ToDisk:
    """Makes LF line ends from CRLF, chunk by chunk, and counts.

    A CR before a CRLF is kept by leaving that CRLF as it is: so `to_wire` gives back exactly what came in, if that had
    no bare LF.
    """

    def __init__(self) -> None:
        #: Octets given out, and what `to_wire` will make of them.
        self.size = 0
        self.virtual = 0
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """The octets to write for the next chunk."""
        data = self._held + data
        # One CR may be half of a CRLF, and the CR before it decides whether that is left alone.
        keep = 2 if data.endswith(b"\r\r") else 1 if data.endswith(b"\r") else 0
        self._held = data[len(data) - keep :]
        return self._convert(data[: len(data) - keep])

    def finish(self) -> bytes:
        """What was held back."""
        data, self._held = self._held, b""
        return self._convert(data) if data else b""

    def _convert(self, data: bytes) -> bytes:
        # Nearly all mail has no CR or LF but in pairs. To find so by making the pairs anew takes a fifth of the time of
        # looking for each of them and of counting.
        lines = data.replace(b"\r", b"")
        if lines.replace(b"\n", b"\r\n") == data:
            self.virtual += len(data)
        else:
            lone = data.find(b"\r\r\n") >= 0
            lines = _LONE_CRLF.sub(b"\n", data) if lone else data.replace(b"\r\n", b"\n")
            self.virtual += len(lines) + lines.count(b"\n") - lines.count(b"\r\n")
        self.size += len(lines)
        return lines


class MessageFile:
    """A message being written into tmp/, mode 0600. Any method may raise OSError; then `abort`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lines = ToDisk()
        fault("maildir.create")
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Append octets with CRLF line ends."""
        self._put(self._lines.feed(data))

    def finish(self) -> None:
        """All was written. Not durable before `sync`."""
        self._put(self._lines.finish())

    def sync(self) -> None:
        """Wait until it is on disk, and close."""
        fault("maildir.sync")
        os.fsync(self._fd)
        self.close()

    def close(self) -> None:
        """To be called when it came to the disk by other means. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def abort(self) -> None:
        """Close and remove. Idempotent; of no effect on a file that was moved away."""
        self.close()
        Path(self.path).unlink(missing_ok=True)

    def named(self, key: str) -> str:
        """The name for new/, with sizes."""
        return with_sizes(key, self._lines.size, self._lines.virtual)

    @property
    def virtual(self) -> int:
        """Octets as read back."""
        return self._lines.virtual

    def _put(self, data: bytes) -> None:
        while data:
            fault("maildir.write")
            data = data[os.write(self._fd, data) :]


def sync_directory(path: str) -> None:
    """Make the renames in a directory durable."""
    fault("maildir.sync-directory")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    fault("maildir.synced")


def safe_host(host: str) -> str:
    """A host name as part of a key: what would end the key, or the file name, is written in octal."""
    return "".join(f"\\{ord(char):03o}" if char in ",:/\\" else char for char in host) or "localhost"


class UniqueKeys:
    """Makes keys that no other program on any host makes: time, process and counter, host."""

    def __init__(self, now: Callable[[], float], host: str | None = None, process: int | None = None) -> None:
        """`now`: Unix seconds."""
        self._now = now
        self._host = safe_host(socket.gethostname() if host is None else host)
        self._process = os.getpid() if process is None else process
        self._count = count(1)

    def __call__(self) -> str:
        """The next key. Safe to call from any thread."""
        seconds, micros = divmod(int(self._now() * 1_000_000), 1_000_000)
        return f"{seconds}.M{micros:06}P{self._process}Q{next(self._count)}.{self._host}"

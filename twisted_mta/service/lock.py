"""One server at a time works on a data directory: whoever comes second must know before it touches the queue."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from twisted_mta.service.control import AlreadyRunning
from twisted_mta.store.durable import make_directories


class DataLock:
    """Held from `acquire` to `release`, or to the end of the process, however that comes."""

    def __init__(self, data: Path, descriptor: int = -1) -> None:
        """`descriptor` is that of a lock which another process has acquired, and this one inherited."""
        self._data = data
        self._descriptor = descriptor

    @property
    def descriptor(self) -> int:
        """For a process to inherit: the lock is held until the last one that has it lets go. -1 if it is not held."""
        return self._descriptor

    def acquire(self) -> None:
        """Make the directory if need be, and lock it. Raises AlreadyRunning, OSError."""
        make_directories(self._data)
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._data / "lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise AlreadyRunning(f"another server is running, or starting, on {self._data}") from None
        self._descriptor = descriptor
        if os.geteuid() == 0:
            # An administrator may come first: the server, which may be somebody else, must be able to open it.
            owner = self._data.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)

    def release(self) -> None:
        """Let others in. Harmless if it is not held. The file stays: removing it would let two in."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

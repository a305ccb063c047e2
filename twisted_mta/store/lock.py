"""One server a data directory: a lock that the kernel takes back however the process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class DirectoryInUse(Exception):
    """Another process holds the directory."""


class DirectoryLock:
    """Held from its making until `release`."""

    def __init__(self, directory: Path) -> None:
        """Makes the directory (0700) if it is not there. Raises DirectoryInUse or OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise DirectoryInUse(f"{directory} belongs to a server that is running") from None

    def release(self) -> None:
        """Let go. The file stays: removing it would let two hold it."""
        os.close(self._descriptor)

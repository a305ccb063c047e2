"""Directories that are still there after a power failure."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def sync_directory(directory: str | Path) -> None:
    """Make the names in a directory durable. Blocks. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: str | Path, sync: Callable[[str], None] = sync_directory) -> None:
    """mkdir -p, each 0700 (Path.mkdir makes the upper ones as the umask allows), and known to the one above when this
    returns. `sync` makes that so. Blocks. Raises OSError."""
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    make_directories(above, sync)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    sync(above)

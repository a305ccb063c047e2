"""Whether files have changed, by what the file system says of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

#: Inode, modification time (ns) and size of each file by its path; None where it can't be seen.
Stamps = Mapping[str, tuple[int, int, int] | None]


def look_at(paths: Iterable[str | Path]) -> dict[str, tuple[int, int, int] | None]:
    """How these files look now. Blocks, if only for a moment."""
    return {str(path): _stamp(path) for path in paths}


def _stamp(path: str | Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in an include's path
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size

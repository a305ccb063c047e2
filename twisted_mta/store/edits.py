"""Changing text files of which others read: the old one or the new one is there at any time, whole and durable."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from twisted_mta.store.faults import fault


@contextlib.contextmanager
def editing(path: Path) -> Iterator[list[str]]:
    """The lines of a file, to be changed in place; then they replace it at once. A file that is not there has none.

    One editor at a time: the lock is a file beside, because the file itself is replaced. Raises OSError.
    """
    path = Path(os.path.realpath(path))
    flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(f"{path}.lock", flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(path)
        try:
            before: os.stat_result | None = path.stat()
            text = path.read_bytes().decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            before, text = None, ""
        lines = text.split("\n")
        if lines[-1] == "":
            lines.pop()
        yield lines
        replace(path, "".join(f"{line}\n" for line in lines), before)
    finally:
        os.close(lock)


def sweep(path: Path) -> None:
    """Remove what an editor that was killed has left: whoever has the lock is the only one."""
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")
    with os.scandir(path.parent) as found:
        for entry in found:
            if leftover.fullmatch(entry.name):
                os.unlink(entry.path)


def replace(path: Path, text: str, before: os.stat_result | None = None) -> None:
    """Write a file (0600) in place of another, whose owner it keeps. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            if before is not None:
                # A group that may read it (Dovecot's, say) keeps that; nobody else may.
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, 0o600 | before.st_mode & 0o040)
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            fault("edit.sync")
            os.fsync(descriptor)
        fault("edit.rename")
        os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise
    fault("edit.sync-directory")
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    fault("edit.replaced")

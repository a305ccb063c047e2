"""Opening files below configured directories, and nowhere else: no symbolic link leads out. Everything here blocks."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from twisted_mta.store.faults import fault

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class NotAllowed(Exception):
    """A path that must not be used; the text says why, without the path."""


def root_of(path: str, roots: Iterable[Path]) -> Path:
    """The configured directory that a path lies below. Raises NotAllowed."""
    if not os.path.isabs(path) or os.path.normpath(path) != path or "\0" in path:
        raise NotAllowed("the path must be absolute, without . and .. and double slashes")
    for root in sorted(roots, key=lambda root: len(str(root)), reverse=True):
        if path.startswith(f"{root}/"):
            return root
    raise NotAllowed('it is not below a directory that "files" in [delivery] names')


@contextlib.contextmanager
def directory_below(root: Path, inside: Iterable[str], *, private: bool = False) -> Iterator[int]:
    """A descriptor of the directory with that way from `root`, each step of it made (0700) where it is missing.

    With `private` nobody but its owner may be able to change any directory on the way, and that is us or root: for who
    goes on by path. Raises NotAllowed, OSError.
    """
    # The administrator has named the root: that it may be a link is his business.
    here = os.open(root, _DIRECTORY & ~os.O_NOFOLLOW)
    try:
        _look(here, str(root), private=private)
        for name in inside:
            here = _step(here, name, private=private)
        yield here
    finally:
        os.close(here)


def _step(above: int, name: str, *, private: bool) -> int:
    """Go into a directory, and let go of the one above."""
    try:
        try:
            below = os.open(name, _DIRECTORY, dir_fd=above)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=above)
            fault("file.sync-directory")
            os.fsync(above)
            below = os.open(name, _DIRECTORY, dir_fd=above)
    except NotADirectoryError:  # what O_DIRECTORY with O_NOFOLLOW says of a link, too
        raise NotAllowed(f'"{name}" on its way is a link, or no directory') from None
    try:
        _look(below, name, private=private)
    except BaseException:
        os.close(below)
        raise
    os.close(above)
    return below


def _look(directory: int, name: str, *, private: bool) -> None:
    status = os.fstat(directory)
    if private and (
        status.st_uid not in (0, os.geteuid())
        or (status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX)
    ):
        raise NotAllowed(f'others than this server\'s user can change the directory "{name}"')

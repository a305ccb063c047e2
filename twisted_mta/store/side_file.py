"""Small SQLite files beside the queue, for what is good to know and may be lost.

Everything here blocks. Changes may come from any thread, and wait for one another.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from twisted_mta.store.sqlite import first_row


class SideFileError(Exception):
    """The file can't be used; the text says why and what to do."""


class SideFile:
    """The file. Of its last moments a crash may lose some: writes are not synced one by one."""

    def __init__(self, path: Path, version: int, tables: Sequence[str], loss: str) -> None:
        """Opens it, or makes it with mode 0600. Raises SideFileError.

        `version` is PRAGMA user_version, `tables` what makes them where they are missing; `loss` says what it would mean
        to remove the file.
        """
        self._path = path
        self._loss = loss
        # A connection has one transaction: a second thread would find itself within that of the first.
        self._changing = threading.Lock()
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self.connection = sqlite3.connect(
                path, timeout=10.0, isolation_level=None, check_same_thread=False
            )
        except (sqlite3.Error, OSError) as error:
            raise SideFileError(f"{path}: {error}") from error
        try:
            with _alone(path.parent):
                self._prepare(version, tables)
        except sqlite3.Error as error:
            self.connection.close()
            raise self.error(error) from error
        except (SideFileError, OSError):
            self.connection.close()
            raise

    def _prepare(self, version: int, tables: Sequence[str]) -> None:
        first_row(self.connection.execute("PRAGMA journal_mode=WAL"))
        self.connection.execute("PRAGMA synchronous=NORMAL")
        (found,) = first_row(self.connection.execute("PRAGMA user_version"))
        if found > version:
            raise SideFileError(
                f"{self._path} was written by a newer twisted-mta: run that, or remove the file"
            )
        for statement in tables:
            self.connection.execute(statement)
        self.connection.execute(f"PRAGMA user_version={version}")

    def error(self, error: sqlite3.Error) -> SideFileError:
        """What to tell the administrator when SQLite fails."""
        return SideFileError(f"{self._path}: {error} ({self._loss})")

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """All of it, or nothing."""
        with self._changing:
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                self.connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file."""
        self.connection.close()


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Workers come together when the server starts, and of those that make a file WAL at once some are told that it is
    locked: for that SQLite does not wait."""
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(here, fcntl.LOCK_EX)
        yield
    finally:
        os.close(here)

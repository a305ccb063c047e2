"""Which errors mean that the disk is full."""

from __future__ import annotations

import errno
import sqlite3

from twisted_mta.interfaces import StoreFull

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# SQLITE_IOERR_SHMSIZE is what a full disk gives when the shared memory of the log is to grow.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


def translate(error: BaseException | None) -> Exception:
    """StoreFull for an error of SQLite or the system that means "no room", else the error itself."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return StoreFull(str(error))
    if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) in _FULL:
        return StoreFull(str(error))
    return error if isinstance(error, Exception) else RuntimeError(repr(error))

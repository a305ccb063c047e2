"""What all users of SQLite need."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any


def first_row(cursor: sqlite3.Cursor) -> Any:
    """The first row that a query found, a tuple; None if it found nothing. For queries that find few.

    All rows are read: a statement that is not at its end stays open, and keeps a transaction from ending, until the
    garbage collector comes for its cursor. CPython's comes at once; PyPy's does not.
    """
    rows = cursor.fetchall()
    return rows[0] if rows else None


def own_text_factory() -> Any:
    """What a connection reads texts with where nobody has set its `text_factory`.

    For CPython that is `str`, and no call is made for it. For PyPy `str` would be what it is anywhere else: called with
    octets, it makes "b'...'" of them.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        return connection.text_factory

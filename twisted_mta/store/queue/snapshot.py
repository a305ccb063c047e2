"""Reads a queue from outside, while its server may be running, and changes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from urllib.parse import quote

from twisted_mta.core.queue import Transport, WorkItem
from twisted_mta.interfaces import IStoredBody
from twisted_mta.store.queue import rows
from twisted_mta.store.queue.bodies import FileBody, MemoryBody
from twisted_mta.store.queue.reading import readable
from twisted_mta.store.queue.schema import QueueFileError, decode
from twisted_mta.store.sqlite import first_row

_EMPTY = MemoryBody(b"")


def read_queue(directory: Path) -> Iterator[tuple[WorkItem, IStoredBody]]:
    """Each message in the queue at one moment, oldest first, with its unfinished recipients.

    The body is empty but where a list's members are still to get it: it is only needed to look at. What is corrupt is
    logged and left out. Raises `schema.QueueFileError`.
    """
    path = directory / "queue.sqlite"
    # Without a log nobody has it open; then SQLite must not be let to begin one.
    mode = "mode=ro" if path.with_name("queue.sqlite-wal").exists() else "immutable=1"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True)) as connection:
            connection.text_factory = decode
            yield from _messages(connection, directory / "bodies")
    except sqlite3.Error as error:
        raise QueueFileError(f"{path}: can't read the queue: {error}") from error


def _messages(connection: sqlite3.Connection, files: Path) -> Iterator[tuple[WorkItem, IStoredBody]]:
    found = connection.execute(
        f"SELECT {rows.MESSAGE_COLUMNS}, {rows.RECIPIENT_COLUMNS} FROM message m "  # noqa: S608  only constants are put in
        "LEFT JOIN body b ON b.id = m.body CROSS JOIN recipient r ON r.row BETWEEN m.first AND m.last "
        "AND +r.message = m.id WHERE NOT m.doomed ORDER BY m.id"
    )
    for _, group in groupby(found, key=itemgetter(0)):
        for item in readable(list(group)):
            yield item, _body(connection, files, item)


def _body(connection: sqlite3.Connection, files: Path, item: WorkItem) -> IStoredBody:
    if all(recipient.transport is not Transport.LIST for recipient in item.recipients):
        return _EMPTY
    number = item.message.body_id
    found = first_row(connection.execute("SELECT size, file, data FROM body WHERE id = ?", (number,)))
    if found is None:
        return _EMPTY
    size, file, data = found
    return MemoryBody(data) if file is None else FileBody(files / file, size)

"""Gets back what can still be read of a damaged database. Blocking; no server may run on the queue."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted_mta.core.values import value
from twisted_mta.store.durable import sync_directory
from twisted_mta.store.queue.schema import VERSION, QueueFileError, connect, decode
from twisted_mta.store.sqlite import first_row

#: What the queue can't do without, with the column that its rows are in the order of. The history begins anew.
_TABLES = (("body", "id"), ("message", "id"), ("recipient", "row"))
_FILES = ("queue.sqlite", "queue.sqlite-wal", "queue.sqlite-shm")


@value
class Salvaged:
    """What came of it."""

    #: Where the damaged files are now.
    kept: Path
    #: Table -> rows that were got back.
    rows: dict[str, int]
    #: Tables of which a part could not be read.
    torn: tuple[str, ...]


def salvage(directory: Path, name: str) -> Salvaged:
    """Move the database of the queue in `directory` into a new directory `name` there, and make another one of what can
    be read of it. Body files that no row names any more go there too, lest the next start removes them.

    Raises QueueFileError where nothing can be read, and OSError; then everything is as it was.
    """
    kept, fresh, source = directory / name, directory / "salvaged.sqlite", directory / "queue.sqlite"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{fresh}{suffix}").unlink(missing_ok=True)
    with closing(connect(fresh)) as target:
        rows, torn = _copy(source, target)
        known = {file for (file,) in target.execute("SELECT file FROM body WHERE file IS NOT NULL")}
    bodies = directory / "bodies"
    strays = [path for path in bodies.glob("*") if path.is_file() and path.name not in known]
    (kept / "bodies").mkdir(mode=0o700, parents=True)
    for path in (*(directory / file for file in _FILES), *strays):
        if path.exists():
            path.rename(kept / path.relative_to(directory))
    if os.geteuid() == 0:  # an administrator does this; the server may be somebody else
        owner = (kept / source.name).stat()
        os.chown(fresh, owner.st_uid, owner.st_gid)
    fresh.rename(source)
    for changed in (kept, kept / "bodies", bodies, directory):
        if changed.exists():
            sync_directory(changed)
    return Salvaged(kept, rows, torn)


def _copy(path: Path, target: sqlite3.Connection) -> tuple[dict[str, int], tuple[str, ...]]:
    rows: dict[str, int] = {}
    torn: list[str] = []
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as source:
            source.text_factory = decode
            (version,) = first_row(source.execute("PRAGMA user_version"))
            layout = {
                table: [name for _, name, *_ in source.execute(f"PRAGMA table_info({table})")]
                for table, _ in _TABLES
            }
            if version != VERSION or not all(layout.values()):
                raise QueueFileError(f"{path}: its format is {version}, and only {VERSION} can be salvaged")
            target.execute("BEGIN IMMEDIATE")
            for table, key in _TABLES:
                rows[table], whole = _copy_table(source, target, table, key, layout[table])
                if not whole:
                    torn.append(table)
            # Who has lost all recipients would stay for ever; the damaged file still has what there is.
            target.execute(
                "DELETE FROM message WHERE NOT EXISTS (SELECT 1 FROM recipient r WHERE "
                "r.row BETWEEN message.first AND message.last AND r.message = message.id)"
            )
            target.execute("DELETE FROM body WHERE id NOT IN (SELECT body FROM message)")
            target.execute("COMMIT")
    except sqlite3.Error as error:
        raise QueueFileError(f"{path}: can't be salvaged: {error}") from error
    return rows, tuple(torn)


def _copy_table(
    source: sqlite3.Connection, target: sqlite3.Connection, table: str, key: str, columns: Sequence[str]
) -> tuple[int, bool]:
    """How many rows were copied, and whether those are all: from both ends, as far as they can be read."""
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    insert = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})"  # noqa: S608  names of the schema
    whole = False
    for order in ("ASC", "DESC"):
        rows = _Rows(source, f"SELECT {names} FROM {table} NOT INDEXED ORDER BY {key} {order}")  # noqa: S608  as above
        for row in rows:
            target.execute(insert, [_storable(value) for value in row])
        whole = whole or rows.whole
        if whole:
            break
    (count,) = first_row(target.execute(f"SELECT count(*) FROM {table}"))  # noqa: S608  as above
    return count, whole


class _Rows:
    """What a query gives, up to where the file is damaged."""

    def __init__(self, source: sqlite3.Connection, query: str) -> None:
        self._source = source
        self._query = query
        self.whole = False

    def __iter__(self) -> Iterator[Sequence[Any]]:
        try:
            cursor = self._source.execute(self._query)
            while (row := cursor.fetchone()) is not None:
                yield row
            self.whole = True
        except sqlite3.DatabaseError:
            return


def _storable(value: Any) -> Any:
    """SQLite takes no lone surrogates, which stand for octets that are no UTF-8."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "surrogateescape")
    return value

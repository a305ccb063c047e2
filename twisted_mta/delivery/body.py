"""Reads a stored message in pieces: its prefix, then its body, never whole in memory."""

from __future__ import annotations

import io
from typing import BinaryIO

from twisted_mta.interfaces import IStoredBody
from twisted_mta.store.threads import InlineWorkers, Workers

CHUNK = 65536


class MessageReader:
    """Gives the octets of one copy. Nothing is opened before the first `read`; `close` in the end."""

    def __init__(self, prefix: bytes, body: IStoredBody, workers: Workers | InlineWorkers) -> None:
        """Files are read by `workers`; a body that is in memory needs none."""
        self._prefix = prefix
        self._body = body
        self._workers = workers
        self._file: BinaryIO | None = None

    async def read(self) -> bytes:
        """The next octets, b"" at the end. Raises OSError, or KeyError for a body that is gone."""
        if self._file is None:
            self._file = self._body.open()
        prefix, self._prefix = self._prefix, b""
        if isinstance(self._file, io.BytesIO):
            return prefix + self._file.read(CHUNK)
        return prefix + await self._workers.run(self._file.read, CHUNK)

    async def read_all(self) -> bytes:
        """All octets, of a message that is small. Raises as `read` does."""
        pieces = []
        while piece := await self.read():
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

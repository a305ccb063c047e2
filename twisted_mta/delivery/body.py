"""What deliveries have in common: reading a stored message in pieces, never whole in memory, and the fields on top of it."""

from __future__ import annotations

import io
from typing import BinaryIO

from twisted_mta.core.address import Address
from twisted_mta.core.message import fields, header_length
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IStoredBody
from twisted_mta.store.threads import InlineWorkers, Workers

CHUNK = 65536
#: The header section is looked at no further than this for our own Delivered-To.
MAX_HEADER = 262144


def final_fields(sender: Address | None, recipient: Address) -> bytes:
    """RFC 5321 §4.4: the final delivery puts the reverse-path on top. Delivered-To stops loops."""
    text = f"Return-Path: <{sender or ''}>\r\nDelivered-To: {recipient}\r\n"
    return text.encode("utf-8", "surrogateescape")


def read_header(source: BinaryIO) -> bytes:
    """Octets from the start of a body that hold its header section (or as much as we look at)."""
    begin = b""
    while len(begin) < MAX_HEADER and (chunk := source.read(CHUNK)):
        begin += chunk
        if header_length(begin) < len(begin):
            break
    return begin


def loops(begin: bytes, address: Address) -> bool:
    """Whether a Delivered-To of ours is there already."""
    header = begin[: header_length(begin)].lower()
    if b"delivered-to" not in header:  # 40 times faster than to look at each field
        return False
    ours = str(address).encode("utf-8", "surrogateescape").lower()
    return any(field.key == b"delivered-to" and field.value == ours for field in fields(header))


def looping(address: Address) -> Reply:
    """What becomes of a message that `loops`."""
    text = f"<{address}>: mail forwarding loop, it was delivered here before"
    return Reply(554, "5.4.6", text)  # RFC 3463 §3.5


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


def read_head(body: IStoredBody) -> bytes:
    """The header section of a body (or as much as we look at). Blocks. Raises OSError."""
    with body.open() as source:
        begin = read_header(source)
    return begin[: header_length(begin)]

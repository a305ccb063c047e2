"""What was said in a session, for an administrator: without messages, and without passwords.

It is noted for every session and read for few, so what is said is kept as it came, and put into words only by `text`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

#: Octets that are kept of a session, and of one write of ours.
LIMIT = 8192
_MAX_CHUNK = 2048


class _Chunk(NamedTuple):
    ours: bool
    data: bytes
    #: Octets of a message, of which nothing is kept.
    message: int = 0
    #: Whether it answers a challenge.
    secret: bool = False


class Transcript:
    """One session, and of its transactions the last; and the one before where they overlap."""

    def __init__(self) -> None:
        self._chunks: deque[_Chunk] = deque()
        self._kept = 0
        self._cut = False
        #: Chunks of what precedes the first transaction.
        self._opening: tuple[_Chunk, ...] | None = None
        #: How many chunks there are of all that precedes the last transaction.
        self._before = 0

    def begin(self, *, amid: bool = False) -> None:
        """A transaction begins: forget the one before, which may still be under way (`amid`), and else all before that."""
        if self._opening is None:
            self._opening = tuple(self._chunks)
        else:
            # Both deques are short, as LIMIT has it, unless the peer sends its replies octet by octet.
            kept = list(self._chunks)[self._before :] if amid else []
            self._chunks = deque((*self._opening, *kept))
            self._kept = sum(len(chunk.data) for chunk in self._chunks)
        self._before = len(self._chunks)

    def sent(self, data: bytes, *, secret: bool = False) -> None:
        """Commands of ours. `secret`: a login is under way."""
        self._note(_Chunk(True, data[:_MAX_CHUNK], secret=secret))

    def message(self, octets: int) -> None:
        """A part of a message was sent."""
        last = self._chunks[-1] if self._chunks else None
        if last is not None and last.message:
            self._chunks[-1] = _Chunk(True, b"", last.message + octets)
        else:
            self._note(_Chunk(True, b"", octets))

    def received(self, data: bytes) -> None:
        """Octets of the peer."""
        self._note(_Chunk(False, data[:LIMIT]))

    def _note(self, chunk: _Chunk) -> None:
        self._chunks.append(chunk)
        self._kept += len(chunk.data)
        while self._kept > LIMIT and len(self._chunks) > 1:
            self._kept -= len(self._chunks.popleft().data)
            self._before = max(self._before - 1, 0)
            self._cut = True

    def text(self) -> str:
        """Lines that begin with "C: " (us) and "S: "; "" for a session in which nothing was said."""
        lines = list(self._lines())
        return "\n".join(["[...]", *lines] if self._cut else lines)

    def _lines(self) -> Iterator[str]:
        for chunk in self._chunks:
            if chunk.message:
                yield f"C: [{chunk.message} octets of the message]"
            elif chunk.ours:
                yield from (f"C: {_command(line, chunk.secret)}" for line in chunk.data.splitlines())
            else:
                yield from (f"S: {_reply(line)}" for line in chunk.data.splitlines())


def _command(line: bytes, secret: bool) -> str:
    words = line.split()
    if words and words[0].upper() == b"AUTH":
        return _word(b" ".join(words[:2])) + (" [...]" if len(words) > 2 else "")
    return "[...]" if secret else _word(line)


def _reply(line: bytes) -> str:
    return "334 [...]" if line.startswith(b"334") else _word(line)  # RFC 4954 §4: a challenge


def _word(line: bytes) -> str:
    return line.rstrip(b"\r\n").decode("utf-8", "replace")

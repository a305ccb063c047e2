"""What was said in a session, for an administrator: without messages, and without passwords.

It is noted for every session and read for few, so what is said is kept as it came, and put into words only by `text`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

import attrs

#: Octets that are kept of a session, and of one write of ours (the rest may be a message).
LIMIT = 8192
_MAX_CHUNK = 2048
_BDAT = re.compile(rb"BDAT ([0-9]{1,19})(?: LAST)?\r\n", re.I)


@attrs.frozen
class _Chunk:
    ours: bool
    data: bytes
    #: Octets that there were.
    size: int
    #: Whether it answers a challenge.
    secret: bool = False


class Transcript:
    """One session, and of its transactions the last."""

    def __init__(self) -> None:
        self._chunks: deque[_Chunk] = deque()
        self._kept = 0
        self._cut = False
        #: Chunks of what precedes the first transaction.
        self._opening: tuple[_Chunk, ...] | None = None

    def begin(self) -> None:
        """A transaction begins: forget the one before."""
        if self._opening is None:
            self._opening = tuple(self._chunks)
            return
        self._chunks = deque(self._opening)
        self._kept = sum(len(chunk.data) for chunk in self._opening)

    def sent(self, data: bytes, *, secret: bool = False) -> None:
        """Octets of ours: commands, and messages behind BDAT. `secret`: a login is under way."""
        self._note(_Chunk(True, data[:_MAX_CHUNK], len(data), secret))

    def message(self, octets: int) -> None:
        """A part of a message was sent."""
        last = self._chunks[-1] if self._chunks else None
        if last is not None and last.ours and not last.data:
            self._chunks[-1] = attrs.evolve(last, size=last.size + octets)
        else:
            self._note(_Chunk(True, b"", octets))

    def received(self, data: bytes) -> None:
        """Octets of the peer."""
        self._note(_Chunk(False, data[:LIMIT], len(data)))

    def _note(self, chunk: _Chunk) -> None:
        self._chunks.append(chunk)
        self._kept += len(chunk.data)
        while self._kept > LIMIT and len(self._chunks) > 1:
            self._kept -= len(self._chunks.popleft().data)
            self._cut = True

    def text(self) -> str:
        """Lines that begin with "C: " (us) and "S: "; "" for a session in which nothing was said."""
        lines = list(self._lines())
        return "\n".join(["[...]", *lines] if self._cut else lines)

    def _lines(self) -> Iterator[str]:
        message = 0
        for chunk in self._chunks:
            if not chunk.ours:
                yield from (f"S: {_reply(line)}" for line in chunk.data.splitlines())
            elif not chunk.data:
                yield f"C: [{chunk.size} octets of the message]"
            else:
                skipped = min(message, chunk.size)
                message -= skipped
                found, message = _commands(chunk, skipped, message)
                yield from (f"C: {line}" for line in found)


def _commands(chunk: _Chunk, position: int, message: int) -> tuple[list[str], int]:
    """The lines of a chunk from a position on, and how many octets of a message are still to come behind it."""
    lines: list[str] = []
    while position < len(chunk.data):
        bdat = _BDAT.match(chunk.data, position)
        if bdat is None:
            end = chunk.data.find(b"\n", position)
            end = len(chunk.data) if end < 0 else end + 1
            lines.append(_command(chunk.data[position:end], chunk.secret))
            position = end
            continue
        octets = int(bdat[1])
        lines += [_word(bdat[0]), f"[{octets} octets of the message]"]
        position = bdat.end() + octets
        message = max(position - chunk.size, 0)
    return lines, message


def _command(line: bytes, secret: bool) -> str:
    words = line.split()
    if words and words[0].upper() == b"AUTH":
        return _word(b" ".join(words[:2])) + (" [...]" if len(words) > 2 else "")
    return "[...]" if secret else _word(line)


def _reply(line: bytes) -> str:
    return "334 [...]" if line.startswith(b"334") else _word(line)  # RFC 4954 §4: a challenge


def _word(line: bytes) -> str:
    return line.rstrip(b"\r\n").decode("utf-8", "replace")

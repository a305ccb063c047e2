"""Where a message ends: after DATA at the lone dot (RFC 5321 §4.5.2), in the chunks of BDAT by their size (RFC 3030).

Only ``<CRLF>.<CRLF>`` ends a message after DATA (RFC 5321 §4.1.1.4). What stands in it is judged elsewhere, in
`core.smtp.body`.
"""

from __future__ import annotations

_END = b"\r\n.\r\n"
_DOT = b"\r\n."
#: What the end of a piece may be the beginning of.
_PARTIAL_ENDS = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")


class DataReader:
    """Feed it what arrives after the 354; it gives back message octets without the stuffing, and notices the end."""

    __slots__ = ("_carry", "_skip", "done")

    def __init__(self) -> None:
        # The line end before the first line was that of the DATA command: a lone dot there ends an empty message.
        self._carry = b"\r\n"
        self._skip = 2
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(message octets, what follows the end). The second is empty until `done`."""
        buffer = self._carry + data
        # Most mail has no dot at the beginning of a line but that of its end: one search finds that there is none.
        dot = buffer.find(_DOT)
        end = dot if dot < 0 or buffer.startswith(_END, dot) else buffer.find(_END, dot)
        if end >= 0:
            self.done = True
            return self._give(buffer[: end + 2], dot), buffer[end + 5 :]
        hold = next((len(partial) for partial in _PARTIAL_ENDS if buffer.endswith(partial)), 0)
        cut = len(buffer) - hold
        self._carry = buffer[cut:]
        return self._give(buffer[:cut], dot), b""

    def _give(self, piece: bytes, dot: int) -> bytes:
        """`dot`: where the first line of it that begins with one is, if there is one."""
        # Nothing is held back that is longer than a line end and a dot, so a piece has each stuffed dot whole.
        if 0 <= dot < len(piece) - 2:
            piece = piece.replace(_DOT, b"\r\n")
        if self._skip and piece:
            piece = piece[self._skip :]
            self._skip = 0
        return piece


class ChunkReader:
    """The same surface for BDAT: one object a message, `begin` for each command.

    `done` tells that the chunk was read to its end; `last` that it was the last of the message.
    """

    __slots__ = ("_left", "done", "last")

    def __init__(self) -> None:
        self._left = 0
        self.done = True
        self.last = False

    def begin(self, size: int, last: bool) -> None:
        """A BDAT command announced `size` octets."""
        self._left = size
        self.last = last
        self.done = size == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(message octets, what follows the chunk). The second is empty until `done`."""
        piece, rest = data[: self._left], data[self._left :]
        self._left -= len(piece)
        self.done = self._left == 0
        return piece, rest

"""Reading a message after DATA (RFC 5321 §4.5.2) or in the chunks of BDAT (RFC 3030), on whole pieces.

Only ``<CRLF>.<CRLF>`` ends a message after DATA (RFC 5321 §4.1.1.4). What another server might take for that end is
noticed, so that the message can be refused as a whole: a CR or LF that stands alone, which some take for a line end,
and a NUL at the beginning of a line, which some leave out, so that a dot behind it comes to stand there.
"""

from __future__ import annotations

_END = b"\r\n.\r\n"
#: What the end of a chunk may be the beginning of.
_PARTIAL_ENDS = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")


class DataReader:
    """Feed it what arrives after the 354; it gives back message octets and notices the end.

    `ambiguous` turns true when another server might see other lines than we do. `size` counts the octets given out.
    """

    __slots__ = ("_carry", "_skip", "ambiguous", "done", "size")

    def __init__(self) -> None:
        # The line end before the first line was that of the DATA command: a lone dot there ends an empty message.
        self._carry = b"\r\n"
        self._skip = 2
        self.ambiguous = False
        self.done = False
        self.size = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(message octets, what follows the end). The second is empty until `done`."""
        buffer = self._carry + data
        end = buffer.find(_END)
        if end >= 0:
            self.done = True
            return self._give(buffer[: end + 2]), buffer[end + 5 :]
        hold = next((len(partial) for partial in _PARTIAL_ENDS if buffer.endswith(partial)), 0)
        cut = len(buffer) - hold
        self._carry = buffer[cut:]
        return self._give(buffer[:cut]), b""

    def _give(self, piece: bytes) -> bytes:
        # A piece never ends between CR and LF, so these counts see each pair whole.
        pairs = piece.count(b"\r\n")
        if piece.count(b"\n") != pairs or piece.count(b"\r") != pairs:
            self.ambiguous = True
        if b"\r\n." in piece:
            piece = piece.replace(b"\r\n.", b"\r\n")
        if b"\r\n\0" in piece:
            self.ambiguous = True
        if self._skip and piece:
            piece = piece[self._skip :]
            self._skip = 0
        self.size += len(piece)
        return piece


class ChunkReader:
    """The same surface for BDAT: one object a message, `begin` for each command.

    `done` tells that the chunk was read to its end; `last` that it was the last of the message.
    """

    __slots__ = ("_left", "_open_cr", "_tail", "ambiguous", "done", "last", "size")

    def __init__(self) -> None:
        self._left = 0
        #: Whether the octets so far end with a CR whose LF may come yet.
        self._open_cr = False
        #: The last two octets; before the first, a line end.
        self._tail = b"\r\n"
        self.ambiguous = False
        self.done = True
        self.last = False
        self.size = 0

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
        self.size += len(piece)
        if piece:
            self._look_at(piece)
        return piece, rest

    def _look_at(self, piece: bytes) -> None:
        """Notice bare CRs and LFs, also where a CRLF is cut in two, and lines that begin with NUL."""
        if b"\r\n\0" in self._tail + piece:
            self.ambiguous = True
        self._tail = (self._tail + piece[-2:])[-2:]
        text = b"\r" + piece if self._open_cr else piece
        self._open_cr = text.endswith(b"\r")
        if self._open_cr:
            text = text[:-1]
        pairs = text.count(b"\r\n")
        if text.count(b"\n") != pairs or text.count(b"\r") != pairs:
            self.ambiguous = True

    @property
    def ends_with_newline(self) -> bool:
        """Whether the message, as far as it came, ends with CRLF (an empty one does)."""
        return self.size == 0 or self._tail == b"\r\n"

"""Reading the message after DATA: dot-unstuffing and the end, on whole chunks. RFC 5321 §4.5.2.

Only ``<CRLF>.<CRLF>`` ends a message (RFC 5321 §4.1.1.4). A CR or LF that stands alone is noticed, so that
the message can be refused as a whole: passed on, another server might take it for a line end and with it
for the end of the message.
"""

from __future__ import annotations

_END = b"\r\n.\r\n"
#: What the end of a chunk may be the beginning of.
_PARTIAL_ENDS = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")


class DataReader:
    """Feed it what arrives after the 354; it gives back message octets and notices the end.

    `bare_newline` turns true when a CR or LF stood alone. `size` counts the octets given out.
    """

    __slots__ = ("_carry", "_skip", "bare_newline", "done", "size")

    def __init__(self) -> None:
        # The line end before the first line was that of the DATA command: a lone dot there ends an empty message.
        self._carry = b"\r\n"
        self._skip = 2
        self.bare_newline = False
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
            self.bare_newline = True
        if b"\r\n." in piece:
            piece = piece.replace(b"\r\n.", b"\r\n")
        if self._skip and piece:
            piece = piece[self._skip :]
            self._skip = 0
        self.size += len(piece)
        return piece

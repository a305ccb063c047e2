"""The octets of a message on their way in: what can't be taken, and why.

What another server might take for a line end, or for the end of the message, is how mail is smuggled past checks: a CR
or LF that stands alone, which some take for a line end, and a NUL at the beginning of a line, which some leave out, so
that a dot behind it comes to stand there. A message with one is refused as a whole, or its line ends are mended.
"""

from __future__ import annotations

import re

from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp.data import ChunkReader, DataReader
from twisted_mta.core.smtp.lines import MAX_GARBAGE
from twisted_mta.core.smtp.parameters import too_big
from twisted_mta.core.smtp.settings import BareNewlines

_AMBIGUOUS = Reply(
    554,
    "5.6.0",
    "Message has a CR or LF that stands alone, or a NUL in front of a line; lines must end with CRLF",
)
_NUL = Reply(554, "5.6.0", "Message has a NUL in front of a line")
_NO_FINAL_NEWLINE = Reply(554, "5.6.0", "Message does not end with CRLF")

_NEWLINE = re.compile(rb"\r\n|\r|\n")


class LineEnds:
    """Watches over the line ends of a text that comes in pieces, cut anywhere. `refusal` tells what is wrong with it."""

    __slots__ = ("_held", "_mend", "_tail", "refusal")

    def __init__(self, bare: BareNewlines) -> None:
        self._mend = bare is BareNewlines.NORMALISE
        #: A CR at the end of the last piece, whose LF may come yet.
        self._held = b""
        #: The last two octets given out; before the first, a line end.
        self._tail = b"\r\n"
        self.refusal: Reply | None = None

    def take(self, piece: bytes) -> bytes:
        """The next piece, mended if it is to be; it may lack its last octet, which is then in front of the next."""
        text = self._held + piece
        self._held = b"\r" if text.endswith(b"\r") else b""
        return self._look_at(text.removesuffix(b"\r"))

    def end(self) -> bytes:
        """The text is over: what was held back, and a line end where one is missing."""
        text, self._held = self._held, b""
        if self._mend and not text and self._tail != b"\r\n":
            text = b"\n"
        if text:
            text = self._look_at(text)
        if self._tail != b"\r\n" and self.refusal is None:
            self.refusal = _NO_FINAL_NEWLINE
        return text

    def _look_at(self, text: bytes) -> bytes:
        # No CRLF is cut in two. To take each line end out and to put it back as it must be takes a third of the time of
        # counting them.
        if text.replace(b"\n", b"").replace(b"\r", b"\r\n") != text:
            if self._mend:
                text = _NEWLINE.sub(b"\r\n", text)
            else:
                self.refusal = _AMBIGUOUS
        # For a single octet the search is ten times faster.
        if text.find(b"\0") >= 0 and (self._tail + text).find(b"\r\n\0") >= 0:
            self.refusal = _NUL if self._mend else _AMBIGUOUS
        self._tail = (self._tail + text[-2:])[-2:]
        return text


class Body:
    """One message. It is read to its end, whatever speaks against it.

    `limit` is that of the size in octets; `bare` None is for binary messages, which have no lines.
    """

    __slots__ = ("_ends", "_given", "_limit", "_reader", "_refused", "size")

    def __init__(self, reader: DataReader | ChunkReader, limit: int, bare: BareNewlines | None) -> None:
        self._reader = reader
        self._limit = limit
        self._ends = None if bare is None else LineEnds(bare)
        self._refused: Reply | None = None
        #: Octets that came, and octets that it makes: mended, it may be longer.
        self.size = 0
        self._given = 0

    @property
    def refusal(self) -> Reply | None:
        """Why it can't be taken, as far as it came. Does not depend on how it was cut into pieces."""
        if self._refused is not None:
            return self._refused
        if max(self.size, self._given) > self._limit:
            return too_big(self._limit)  # RFC 1870 §6.3: at the end, whatever was declared
        return None if self._ends is None else self._ends.refusal

    @property
    def done(self) -> bool:
        """Whether the message, or the chunk, was read to its end."""
        return self._reader.done

    @property
    def flooded(self) -> bool:
        """Whether it is so far over the limit that nobody will wait for its end."""
        return self.size > 2 * self._limit + MAX_GARBAGE

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(octets to hand on, what follows the message or the chunk). Nothing is handed on once there is a refusal."""
        piece, rest = self._reader.feed(data)
        self.size += len(piece)
        return self._give(piece if self._ends is None else self._ends.take(piece)), rest

    def end(self) -> bytes:
        """The last octet was fed: what is still to be handed on."""
        return b"" if self._ends is None else self._give(self._ends.end())

    def refuse(self, reply: Reply) -> None:
        """It will not be taken, whatever follows."""
        self._refused = reply

    def _give(self, octets: bytes) -> bytes:
        self._given += len(octets)
        return b"" if self.refusal is not None else octets

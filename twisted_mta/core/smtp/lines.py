"""Command lines out of a stream of octets, with a bound on what does not end."""

from __future__ import annotations

from twisted_mta.core.smtp.commands import MAX_LINE

#: Octets without a line end that are thrown away before the connection is cut.
MAX_GARBAGE = 1 << 20


class LineTooLong(Exception):
    """The line is over; it was longer than MAX_LINE and is gone."""


class LineBuffer:
    """Holds what was received and not yet used. `flooded` turns true when the peer never ends its line."""

    __slots__ = ("_discarded", "data", "flooded")

    def __init__(self) -> None:
        self.data = b""
        self.flooded = False
        self._discarded = 0

    def line(self) -> bytes | None:
        """The next line without its end, None until there is one. Raises LineTooLong."""
        end = self.data.find(b"\n")
        if end < 0:
            if len(self.data) > MAX_LINE + 1:
                self._discarded += len(self.data)
                self.data = b""
                self.flooded = self._discarded > MAX_GARBAGE
            return None
        # RFC 5321 §2.3.8 wants CRLF; a bare LF ends a command too, for those who type by hand. Not so in a message.
        line = self.data[:end].removesuffix(b"\r")
        self.data = self.data[end + 1 :]
        too_long = self._discarded or len(line) > MAX_LINE
        self._discarded = 0
        if too_long:
            raise LineTooLong
        return line

    def clear(self) -> None:
        """Forget everything."""
        self.data = b""
        self._discarded = 0

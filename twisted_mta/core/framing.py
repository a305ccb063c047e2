"""Framing of message text on the wire: line ends, and the dot-stuffing of RFC 5321 §4.5.2, chunk by chunk."""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\r|\n")


class LineEnds:
    """Makes canonical text from a message given in chunks, split anywhere.

    What comes out holds no bare CR or LF whatever went in (each becomes CRLF), so that no message of ours can
    end early, or begin another, at a peer that takes one of them for a line end.
    """

    def __init__(self) -> None:
        self._line_start = True
        #: The last chunk ended in CR; only the next one tells whether it was bare.
        self._held = False

    def feed(self, data: bytes) -> bytes:
        """The next octets of the text."""
        if self._held:
            data = b"\r" + data
        self._held = data.endswith(b"\r")
        if self._held:
            data = data[:-1]
        if not data:
            return b""
        pairs = data.count(b"\r\n")
        if pairs != data.count(b"\n") or pairs != data.count(b"\r"):
            data = _LINE_END.sub(b"\r\n", data)  # RFC 5321 §2.3.8
        self._line_start = data.endswith(b"\n")
        return data

    def finish(self) -> bytes:
        """The end of an unfinished last line."""
        return b"\r\n" if self._held or not self._line_start else b""


class DotStuffer:
    """Makes the octets that follow DATA, with line ends as LineEnds makes them."""

    def __init__(self) -> None:
        self._text = LineEnds()
        self._line_start = True

    def feed(self, data: bytes) -> bytes:
        """The next octets of the message, ready to be sent."""
        data = self._text.feed(data)
        if not data:
            return b""
        stuffed = data.replace(b"\r\n.", b"\r\n..")  # RFC 5321 §4.5.2
        if self._line_start and stuffed.startswith(b"."):
            stuffed = b"." + stuffed
        self._line_start = data.endswith(b"\n")
        return stuffed

    def finish(self) -> bytes:
        """What ends the message: the end of an unfinished last line, and the line with the dot alone."""
        return self._text.finish() + b".\r\n"  # RFC 5321 §4.1.1.4

"""A small message in memory, as it goes over the wire."""

from __future__ import annotations

from functools import cached_property

from twisted_mta.core.framing import DotStuffer, LineEnds

#: Octets of a message that is handed to the client whole. With CHUNKING it is sent together with MAIL and RCPT. It saves a
#: round trip; but where the recipients are refused, greylisted say, it was sent for nothing.
MAX_WHOLE = 32768


class Whole:
    """All octets of a message, with line ends as they come. What it takes to send it is done once for all transactions."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets

    @cached_property
    def text(self) -> bytes:
        """With CRLF line ends: what goes behind BDAT."""
        ends = LineEnds()
        return ends.feed(self._octets) + ends.finish()

    @cached_property
    def stuffed(self) -> bytes:
        """What goes behind DATA: dot-stuffed, with the dot that ends it."""
        stuffer = DotStuffer()
        return stuffer.feed(self._octets) + stuffer.finish()

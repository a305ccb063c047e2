"""The mbox format, as mboxrd: messages one behind another, each after a line that begins with "From ".

A line of a message that looks like one, behind any number of ">", gets another ">" in front; so what was written can be
told exactly from what came in. Lines end in LF.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from twisted_mta.core.address import Address

_FROM = b"From "
_QUOTE = re.compile(rb"^(?=>*From )", re.M)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
#: What an address in a From_ line can't have, since readers part the line at spaces.
_UNFIT = re.compile(rb"[\x00-\x20\x7f]")


def from_line(sender: Address | None, timestamp: float) -> bytes:
    """The line in front of a message: who sent it, and when it came (Unix seconds; told in UTC, in the manner of asctime)."""
    who = _UNFIT.sub(b"_", str(sender or "MAILER-DAEMON").encode("utf-8", "surrogateescape"))
    time = datetime.fromtimestamp(int(timestamp), UTC)
    day, month = _DAYS[time.weekday()], _MONTHS[time.month - 1]
    date = f"{day} {month} {time.day:2} {time:%H:%M:%S} {time.year:04}"
    return _FROM + who + b" " + date.encode() + b"\n"


class MboxLines:
    """Makes the octets of one message fit to stand in an mbox, chunk by chunk; its lines end in LF already."""

    def __init__(self) -> None:
        #: Whether what comes next stands at the start of a line, behind ">" at most.
        self._open = True
        #: The beginning of "From " at the end of the last chunk.
        self._held = b""
        #: The last two octets given out: what is to follow them depends on whether a line has ended.
        self._last = b"\n"

    def feed(self, data: bytes) -> bytes:
        """What is to be written for the next chunk."""
        data = self._held + data
        head = b""
        if not self._open:
            end = data.find(b"\n") + 1 or len(data)
            head, data = data[:end], data[end:]
        # Without a line end in it nothing of `data` is left, and the line goes on.
        self._open = self._open or head.endswith(b"\n")
        tail = data[data.rfind(b"\n") + 1 :]
        begun = tail.lstrip(b">")
        self._held = begun if self._open and _FROM.startswith(begun) and begun != _FROM else b""
        if data:
            self._open = _FROM.startswith(begun) and begun != _FROM
        return self._out(head + _QUOTE.sub(b">", data[: len(data) - len(self._held)]))

    def finish(self) -> bytes:
        """What was held back, and the empty line that ends a message."""
        rest = self._out(self._held)
        return rest + (b"\n" if self._last == b"\n" else b"\n\n")

    def _out(self, data: bytes) -> bytes:
        self._last = data[-1:] or self._last
        return data

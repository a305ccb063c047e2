"""The Internet message: header section, fields, and the trace we add. RFC 5322, RFC 5321 §4.4.

Works on octets with CRLF line ends and keeps what it does not understand, so that a message leaves as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import lru_cache

from twisted_mta.core.values import value

# Anchored, and no two ways to read a name: a long line without a colon must not cost quadratic time.
_FIELD = re.compile(rb"^([!-9;-~]+)[ \t]*+:(.*?)\r\n(?![ \t])", re.S | re.M)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@value
class Field:
    """One header field. `name` as written; `raw` is the value with its folding, without the final CRLF."""

    name: bytes
    raw: bytes

    @property
    def key(self) -> bytes:
        """The name in lower case."""
        return self.name.lower()

    @property
    def value(self) -> bytes:
        """The value unfolded and stripped, RFC 5322 §2.2.3."""
        return unfold(self.raw).strip()


def unfold(value: bytes) -> bytes:
    """Take out the line ends of a folded value; the white space that follows them stays (RFC 5322 §2.2.3)."""
    return value.replace(b"\r\n", b"")


def header_length(message: bytes) -> int:
    """How many octets the header section has, with the empty line that ends it; all of them where it never ends."""
    if message.startswith(b"\r\n"):
        return 2
    end = message.find(b"\r\n\r\n")
    return len(message) if end < 0 else end + 4


def split_message(message: bytes) -> tuple[bytes, bytes]:
    """(header section with its final empty line, body)."""
    end = header_length(message)
    return message[:end], message[end:]


def fields(header: bytes) -> Iterator[Field]:
    """The fields of a header section, top to bottom. A line that is no field (RFC 5322 §2.2) is passed over."""
    if not header.endswith(b"\r\n"):
        header += b"\r\n"
    for match in _FIELD.finditer(header):
        yield Field(match[1], match[2])


@value
class Located:
    """A field with its place: its octets, with the final CRLF, are header[start:end]; its raw value begins at `value`."""

    field: Field
    start: int
    value: int
    end: int


def located_fields(header: bytes) -> Iterator[Located]:
    """As `fields`, with where each stands. Only for a header section that ends with a CRLF."""
    for match in _FIELD.finditer(header):
        yield Located(Field(match[1], match[2]), match.start(), match.start(2), match.end())


class HeaderCollector:
    """Collects the header section of a message that comes in pieces, however small, in linear time."""

    def __init__(self, limit: int) -> None:
        """Of a header section longer than `limit` octets only the beginning is kept."""
        self._limit = limit
        self._octets = bytearray()
        #: Whether the end was seen, or the limit reached.
        self.complete = False
        #: Whether the limit was reached before the end.
        self.too_long = False

    def feed(self, data: bytes) -> bytes:
        """Take the next octets of the message; what is behind the header section comes back."""
        if self.complete:
            return data
        before = len(self._octets)
        self._octets += data
        if self._octets.startswith(b"\r\n"):
            end = 2
        else:
            blank = self._octets.find(b"\r\n\r\n", max(0, before - 3))
            end = blank + 4 if blank >= 0 else -1
        self.complete = end >= 0 or len(self._octets) > self._limit
        if end < 0:
            end = len(self._octets)
        self.too_long = end > self._limit
        end = min(end, self._limit)
        rest = bytes(self._octets[end:])
        del self._octets[end:]
        return rest

    @property
    def header(self) -> bytes:
        """What there is of it so far, with the empty line that ends it."""
        return bytes(self._octets)


def first_field(header: bytes, name: str) -> bytes | None:
    """The unfolded value of the topmost field of that name (case ignored); None if there is none."""
    start = _find_value(header.lower(), name.lower().encode(), 0)
    if start < 0:
        return None
    end = header.find(b"\r\n", start)
    while end >= 0 and header[end + 2 : end + 3] in (b" ", b"\t"):
        end = header.find(b"\r\n", end + 2)
    return unfold(header[start : end if end >= 0 else len(header)]).strip()


def count_fields(header: bytes, name: str) -> int:
    """How often a field stands in the header section."""
    lower, key = header.lower(), name.lower().encode()
    count = 0
    at = _find_value(lower, key, 0)
    while at >= 0:
        count += 1
        at = _find_value(lower, key, at)
    return count


def _find_value(lower: bytes, key: bytes, start: int) -> int:
    """Where the value of the next field of a name begins, behind the colon; -1 where there is none. All in lower case.

    As `fields` would find it, but by a search: a server looks for a few names in each message, and to read all of its
    header for each of these took longer than everything else about it.
    """
    at = 0 if not start and lower.startswith(key) else _next_line(lower, key, start)
    while at >= 0:
        colon = at + len(key)
        while lower[colon : colon + 1] in (b" ", b"\t"):
            colon += 1
        if lower[colon : colon + 1] == b":":
            return colon + 1
        at = _next_line(lower, key, colon)
    return -1


def _next_line(text: bytes, key: bytes, start: int) -> int:
    """Where the next line after `start` begins that begins with `key`; -1 where there is none."""
    found = text.find(b"\r\n" + key, start)
    return found + 2 if found >= 0 else -1


def format_date(timestamp: float, offset_minutes: int = 0) -> str:
    """RFC 5322 §3.3 date-time of a Unix time in seconds, independent of the locale."""
    return _format_second(int(timestamp // 1), offset_minutes)


@lru_cache(16)
def _format_second(timestamp: int, offset_minutes: int) -> str:
    moment = datetime.fromtimestamp(timestamp, timezone(timedelta(minutes=offset_minutes)))
    sign = "-" if offset_minutes < 0 else "+"
    hours, minutes = divmod(abs(offset_minutes), 60)
    return (
        f"{_DAYS[moment.weekday()]}, {moment.day} {_MONTHS[moment.month - 1]} {moment.year} "
        f"{moment.hour:02}:{moment.minute:02}:{moment.second:02} {sign}{hours:02}{minutes:02}"
    )

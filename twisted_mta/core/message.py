"""The Internet message: header section, fields, and the trace we add. RFC 5322, RFC 5321 §4.4.

Works on octets with CRLF line ends and keeps what it does not understand, so that a message leaves as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import attrs

# Anchored and possessive: a long line without a colon must not cost quadratic time.
_FIELD = re.compile(rb"^([!-9;-~]++)[ \t]*+:(.*?)\r\n(?![ \t])", re.S | re.M)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@attrs.frozen
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


@attrs.frozen
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
    key = name.lower().encode()
    return next((field.value for field in fields(header) if field.key == key), None)


def count_fields(header: bytes, name: str) -> int:
    """How often a field stands in the header section."""
    key = name.lower().encode()
    return sum(1 for field in fields(header) if field.key == key)


def format_date(timestamp: float, offset_minutes: int = 0) -> str:
    """RFC 5322 §3.3 date-time of a Unix time in seconds, independent of the locale."""
    moment = datetime.fromtimestamp(timestamp, timezone(timedelta(minutes=offset_minutes)))
    sign = "-" if offset_minutes < 0 else "+"
    hours, minutes = divmod(abs(offset_minutes), 60)
    return (
        f"{_DAYS[moment.weekday()]}, {moment.day} {_MONTHS[moment.month - 1]} {moment.year} "
        f"{moment.hour:02}:{moment.minute:02}:{moment.second:02} {sign}{hours:02}{minutes:02}"
    )

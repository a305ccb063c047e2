"""How values look in responses. RFC 3501 §7 and §9."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

_PLAIN = re.compile(rb"[\x20-\x7e]*")
_WORD = re.compile(rb"[A-Za-z0-9_-]+")
#: Longer strings go as literals.
_MAX_QUOTED = 1000
# What a date of four-digit years can show.
_FIRST_SECOND, _LAST_SECOND = -62135596800, 253402300799
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def quoted(value: bytes) -> bytes:
    """A quoted string; the value must be printable ASCII."""
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def literal(value: bytes) -> bytes:
    """A literal. It can hold no NUL (RFC 3501 §9), so one is shown as 0x80, which keeps the size."""
    return b"{%d}\r\n" % len(value) + value.replace(b"\0", b"\x80")


def string(value: bytes) -> bytes:
    """A quoted string where that can be, else a literal."""
    if len(value) <= _MAX_QUOTED and _PLAIN.fullmatch(value):
        return quoted(value)
    return literal(value)


def astring(value: bytes) -> bytes:
    """An atom where that can be, else a string."""
    return value if _WORD.fullmatch(value) else string(value)


def nstring(value: bytes | None) -> bytes:
    """A string, or NIL."""
    return b"NIL" if value is None else string(value)


def flag_list(flags: Iterable[str], last: str = "") -> bytes:
    """Flags in parentheses, in a steady order, and behind them `last` if given."""
    names = sorted(flags)
    if last:
        names.append(last)
    return f"({' '.join(names)})".encode("ascii")


def moment(timestamp: float) -> datetime:
    """A Unix time in UTC, brought into the years that can be written with four digits."""
    return datetime.fromtimestamp(min(max(int(timestamp), _FIRST_SECOND), _LAST_SECOND), UTC)


def date_time(timestamp: float) -> bytes:
    """A quoted date-time in UTC."""
    when = moment(timestamp)
    return (
        f'"{when.day:2}-{_MONTHS[when.month - 1]}-{when.year:04} '
        f'{when.hour:02}:{when.minute:02}:{when.second:02} +0000"'
    ).encode("ascii")


def number_set(numbers: Sequence[int]) -> bytes:
    """Numbers as a set, runs drawn together, in the order given ("3,5:9,7")."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return b",".join(b"%d" % first if first == last else b"%d:%d" % (first, last) for first, last in runs)


def human(text: str) -> bytes:
    """A text fit for the end of a status line: one line of ASCII that does not look like a response code."""
    plain = " ".join(text.split()).encode("ascii", "replace")
    plain = bytes(octet if 32 <= octet < 127 else 63 for octet in plain[:500])
    return plain.lstrip(b"[") or b"done"

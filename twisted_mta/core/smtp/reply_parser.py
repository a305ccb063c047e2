"""Reads the replies of an SMTP server, split anywhere. RFC 5321 §4.2, RFC 2034 §4."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from twisted_mta.core.replies import Reply

#: RFC 5321 §4.5.3.1.5 has 512 octets for a reply line; some peers write essays.
MAX_LINE = 2048
#: An EHLO answer has some twenty lines.
MAX_LINES = 100
#: Most replies are the same few short lines again and again. To find them known costs a tenth of reading them.
_KNOWN = 256
_MAX_KNOWN = 100

_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])(.*))?", re.S)
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: +|$)")
_CONTROL = {**dict.fromkeys([*range(32), *range(127, 160)], "?"), 9: " "}


class ReplyError(Exception):
    """What the peer sent is no SMTP reply, or exceeds our bounds. The parser is then of no more use."""


class ReplyParser:
    """Give it octets with `feed`, then take replies with `next` until there is none."""

    def __init__(self) -> None:
        self._buffer = b""
        #: Octets of it that were taken.
        self._at = 0
        self._code = 0
        self._lines: list[str] = []

    def feed(self, data: bytes) -> None:
        """Add octets from the peer."""
        self._buffer = self._buffer[self._at :] + data
        self._at = 0

    def clear(self) -> None:
        """Forget everything that was received and not yet taken."""
        self._buffer, self._at = b"", 0
        self._code = 0
        self._lines = []

    def next(self) -> Reply | None:
        """The next complete reply, or None until more arrives. Raises ReplyError."""
        while True:
            start = self._at
            end = self._buffer.find(b"\n", start, start + MAX_LINE + 1)
            if end < 0:
                if len(self._buffer) - start > MAX_LINE:
                    raise ReplyError("a reply line is too long")
                return None
            self._at = end + 1
            line = self._buffer[start:end].removesuffix(b"\r")
            if not self._lines and len(line) <= _MAX_KNOWN and (reply := _single(line)) is not None:
                return reply
            if self._last(line):
                return self._reply()

    def _last(self, line: bytes) -> bool:
        """Take in one line; whether it ends its reply."""
        match = _LINE.fullmatch(line)
        if match is None:
            raise ReplyError(f"not an SMTP reply: {_text(line[:80])!r}")
        code = int(match[1])
        if self._lines and code != self._code:  # RFC 5321 §4.2.1: the code is the same on each line
            raise ReplyError(f"a reply changes its code from {self._code} to {code}")
        if len(self._lines) == MAX_LINES:
            raise ReplyError("a reply has too many lines")
        self._code = code
        self._lines.append(_text(match[3] or b""))
        return match[2] != b"-"

    def _reply(self) -> Reply:
        lines, self._lines = self._lines, []
        return _reply(self._code, lines)


@lru_cache(_KNOWN)
def _single(line: bytes) -> Reply | None:
    """A reply of one line; None if it is not that."""
    match = _LINE.fullmatch(line)
    if match is None or match[2] == b"-":
        return None
    return _reply(int(match[1]), [_text(match[3] or b"")])


def _reply(code: int, lines: Sequence[str]) -> Reply:
    match = _ENHANCED.match(lines[0])
    # RFC 2034 §4: the class of the status is the first digit of the code; anything else is plain text.
    if match is None or match[1][0] != str(code)[0]:
        return Reply(code, "", "\n".join(lines), True)
    stripped = [_strip(line, match[1]) for line in lines]
    return Reply(code, match[1], "\n".join(stripped), True)


def _text(raw: bytes) -> str:
    """Octets of a peer as text that is safe to log and to quote."""
    return raw.decode("utf-8", "replace").translate(_CONTROL)


def _strip(line: str, enhanced: str) -> str:
    """RFC 2034 §4: each line of a reply repeats the status code."""
    return line[len(enhanced) :].lstrip(" ") if line.startswith(enhanced) else line

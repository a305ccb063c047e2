"""Address lists of header fields as ENVELOPE shows them. RFC 5322 §3.4, RFC 3501 §7.4.2.

Unlike `core.address` this reads what old and broken mailers write, and never refuses: a person has to see it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

from twisted_mta.core.values import value

#: Addresses in one field beyond these are left out.
MAX_ADDRESSES = 2000
#: Comments nest no deeper than this.
_MAX_COMMENT = 64

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"?|\[[^\]]*\]?|[<>,;:@(]|[^\s"\[<>,;:@()]+|\)', re.S)
_COMMENT_PIECE = re.compile(rb"\\.|[()]|[^\\()]+|\\", re.S)
_UNQUOTE = re.compile(rb"\\(.)", re.S)


@value
class EnvelopeAddress:
    """The four members of an address structure. A group starts with host None and ends with all None."""

    name: bytes | None = None
    route: bytes | None = None
    mailbox: bytes | None = None
    host: bytes | None = None


@attrs.define
class _Pending:
    """One address while it is read."""

    words: list[bytes] = attrs.field(factory=list)
    #: Inside of the angle brackets; None where there were none.
    angle: list[bytes] | None = None
    comment: bytes | None = None
    in_angle: bool = False

    @property
    def empty(self) -> bool:
        return not self.words and self.angle is None

    def add(self, token: bytes) -> None:
        if self.in_angle and self.angle is not None:
            self.angle.append(token)
        else:
            self.words.append(token)

    def finish(self) -> EnvelopeAddress:
        if self.angle is None:
            route, mailbox, host = _addr_spec(self.words)
            return EnvelopeAddress(self.comment, route, mailbox, host)
        route, mailbox, host = _addr_spec(self.angle)
        name = b" ".join(_plain(word) for word in self.words)
        return EnvelopeAddress(name or self.comment, route, mailbox, host)


def parse_addresses(value: bytes) -> list[EnvelopeAddress]:
    """The addresses of an unfolded field value; encoded words stay as they are."""
    found: list[EnvelopeAddress] = []
    pending = _Pending()
    in_group = False
    for token in _tokens(value):
        if len(found) >= MAX_ADDRESSES:
            break
        if token.startswith(b"("):
            pending.comment = token[1:-1].strip() or None
        elif token == b"<":
            pending.angle, pending.in_angle = [], True
        elif token == b">":
            pending.in_angle = False
        elif token == b":" and not pending.in_angle and not in_group:
            found.append(EnvelopeAddress(mailbox=b" ".join(_plain(word) for word in pending.words)))
            in_group, pending = True, _Pending()
        elif token == b";" or (token == b"," and not _in_route(pending)):
            if not pending.empty:
                found.append(pending.finish())
            pending = _Pending()
            if token == b";" and in_group:
                found.append(EnvelopeAddress())
                in_group = False
        else:
            pending.add(token)
    if not pending.empty:
        found.append(pending.finish())
    if in_group:
        found.append(EnvelopeAddress())
    return found


def _in_route(pending: _Pending) -> bool:
    return pending.in_angle and bool(pending.angle) and pending.angle is not None and pending.angle[0] == b"@"


def _tokens(value: bytes) -> Iterator[bytes]:
    at = 0
    while True:
        match = _TOKEN.search(value, at)
        if match is None:
            return
        at = match.end()
        if match[0] == b"(":
            comment, at = _comment(value, at)
            yield comment
        elif match[0] != b")":
            yield match[0]


def _comment(value: bytes, at: int) -> tuple[bytes, int]:
    """The comment that began before `at`: (with its parentheses, where it ends)."""
    depth, text = 1, [b"("]
    for match in _COMMENT_PIECE.finditer(value, at):
        at = match.end()
        piece = match[0]
        if piece == b"(" and depth < _MAX_COMMENT:
            depth += 1
        elif piece == b")":
            depth -= 1
        if depth == 0:
            break
        text.append(_UNQUOTE.sub(rb"\1", piece))
    text.append(b")")
    return b"".join(text), at


def _plain(word: bytes) -> bytes:
    """A word without its quotes."""
    if word.startswith(b'"'):
        inner = word[1:-1] if len(word) > 1 and word.endswith(b'"') else word[1:]
        return _UNQUOTE.sub(rb"\1", inner)
    return word


def _addr_spec(words: list[bytes]) -> tuple[bytes | None, bytes, bytes]:
    """(source route, mailbox, host) of the tokens of an addr-spec."""
    route: bytes | None = None
    if words and words[0] == b"@" and b":" in words:
        colon = words.index(b":")
        route, words = b"".join(words[:colon]), words[colon + 1 :]
    if b"@" not in words:
        # A NIL host would mean a group (RFC 3501 §7.4.2), so that of a bare name is empty.
        return route, b" ".join(_plain(word) for word in words), b""
    last = len(words) - 1 - words[::-1].index(b"@")
    return route, b"".join(_plain(word) for word in words[:last]), b"".join(words[last + 1 :])

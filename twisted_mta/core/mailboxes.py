"""The mailboxes in an address field, and where in its octets each one stands. RFC 5322 §3.4.

For those who decide by an address or complete it: what is not well-formed is an error here. What people are shown is
read by `core.imap.addresses`, which never refuses.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import attrs

from twisted_mta.core.address import Address, AddressError
from twisted_mta.core.values import value

# No two ways to read the same octets: hostile input must not make it go back and forth.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*"|\[[^\[\]\\]*+\]|[^\s"\[\]\\<>,;:@()]+|[<>,;:@]', re.S)
_SPACE = re.compile(rb"\s*+")
_COMMENT_PIECE = re.compile(rb"\\.|[()]|[^\\()]+", re.S)
#: A From field is parsed by each who decides by it, and a user's is the same in all messages: those of so many octets
#: are remembered.
_SHORT = 200
_SPECIAL = frozenset((b"<", b">", b",", b";", b":", b"@"))


class MailboxesError(ValueError):
    """The field is not a list of addresses; the text says why."""


@value
class Mailbox:
    """One mailbox. The domain of a bare name ("bob") is ""; `end` is the offset in the value where it would go."""

    address: Address
    end: int


@value
class _Token:
    text: bytes
    start: int
    end: int


@attrs.define
class _Pending:
    """One address while it is read: the words in front, and what is in the angle brackets."""

    words: list[_Token] = attrs.field(factory=list)
    angle: list[_Token] | None = None


def parse_mailboxes(raw: bytes) -> tuple[Mailbox, ...]:
    """The mailboxes of a field's value with its folding, those in groups too. Raises MailboxesError."""
    return _parse_short(raw) if len(raw) <= _SHORT else _parse(raw)


def _parse(raw: bytes) -> tuple[Mailbox, ...]:
    found: list[Mailbox] = []
    pending = _Pending()
    in_angle = in_group = False
    for token in _tokens(raw):
        text = token.text
        if in_angle:
            assert pending.angle is not None  # opened below
            in_angle = text != b">"
            if in_angle:
                pending.angle.append(token)
        elif text == b"<" and pending.angle is None:
            pending.angle, in_angle = [], True
        elif text == b":" and not in_group and pending.angle is None:
            in_group, pending = True, _Pending()  # the words were the name of the group
        elif text == b"," or (text == b";" and in_group):
            found += _finish(pending)
            in_group, pending = in_group and text == b",", _Pending()
        elif text in _SPECIAL and text != b"@":
            raise MailboxesError(f'there is a "{text.decode()}" where none can be')
        elif pending.angle is not None:
            raise MailboxesError('there is text behind a ">"')
        else:
            pending.words.append(token)
    if in_angle:
        raise MailboxesError('a "<" has no ">"')
    if in_group:
        raise MailboxesError('a group does not end with ";"')
    found += _finish(pending)
    return tuple(found)


_parse_short = lru_cache(512)(_parse)


def _finish(pending: _Pending) -> Sequence[Mailbox]:
    if pending.angle is not None:
        return [_mailbox(pending.angle)]
    # RFC 5322 §4.4: empty elements of a list were allowed once, and nothing is lost by it.
    return [_mailbox(pending.words)] if pending.words else []


def _mailbox(tokens: Sequence[_Token]) -> Mailbox:
    texts = [token.text for token in tokens]
    if texts and texts[0] == b"@" and b":" in texts:  # RFC 5322 §4.4: a source route
        colon = texts.index(b":")
        tokens, texts = tokens[colon + 1 :], texts[colon + 1 :]
    if not tokens:
        raise MailboxesError("there is an address with nothing in it")
    at = texts.index(b"@") if b"@" in texts else len(texts)
    local, domain = _joined(texts[:at]), _joined(texts[at + 1 :])
    bare = at == len(texts)
    try:
        address = Address.parse(f"{local}@{'invalid' if bare else domain}")
    except AddressError as error:
        raise MailboxesError(str(error)) from None
    return Mailbox(Address(address.local, "") if bare else address, tokens[at - 1].end)


def _joined(texts: Sequence[bytes]) -> str:
    """RFC 5322 §4.4: there may have been white space around the dots. Anywhere else it parts two words."""
    for one, other in itertools.pairwise(texts):
        if not (one.endswith(b".") or other.startswith(b".")):
            raise MailboxesError("there are several words where one address should be")
    return b"".join(texts).decode("utf-8", "surrogateescape")


def _tokens(raw: bytes) -> Iterator[_Token]:
    """The tokens between white space and comments."""
    at = 0
    while (at := _skip(raw, at)) < len(raw):
        match = _TOKEN.match(raw, at)
        if match is None:
            raise MailboxesError("a quote or bracket has no partner, or a character must be quoted")
        yield _Token(match[0], at, match.end())
        at = match.end()


def _skip(raw: bytes, at: int) -> int:
    """The first octet from `at` on that is in no comment, and no white space."""
    while True:
        space = _SPACE.match(raw, at)
        assert space is not None  # it matches nothing, too
        at = space.end()
        if not raw.startswith(b"(", at):
            return at
        at = _comment_end(raw, at)


def _comment_end(raw: bytes, at: int) -> int:
    depth = 0
    for piece in _COMMENT_PIECE.finditer(raw, at):
        depth += (piece[0] == b"(") - (piece[0] == b")")
        if depth == 0:
            return piece.end()
    raise MailboxesError('a "(" has no ")"')

"""SEARCH: the keys, and whether a message matches them. RFC 3501 §6.4.4.

A search is a tree of `Key`. `matches` judges a message by its entry alone where that is enough and gives None where
it has to be read, so that a search for flags and dates opens no file.
"""

from __future__ import annotations

import datetime
import re
from bisect import bisect_right
from collections.abc import Callable

import attrs

from twisted_mta.core.imap.entries import Entry
from twisted_mta.core.imap.grammar import MONTHS, BadSyntax, Scanner, SequenceSet
from twisted_mta.core.imap.responses import moment
from twisted_mta.core.message import fields, header_length
from twisted_mta.core.mime import MAX_HEADER, body_text, decode_words, fold, header_text, parse_structure
from twisted_mta.core.values import value

#: Keys in one search, and how deep they may nest.
MAX_KEYS = 256
MAX_DEPTH = 32
#: By upper-case name, what Python calls the charsets that a search may be in.
CHARSETS = {b"US-ASCII": "ascii", b"UTF-8": "utf-8"}

_SENT = re.compile(rb"\b([0-9]{1,2})[ \t]+([A-Za-z]{3})[a-z]{0,6}[ \t]+([0-9]{4}|[0-9]{2})\b")


class BadCharset(ValueError):
    """The charset of a SEARCH is not supported."""


_EMPTY = SequenceSet(())


@value
class Key:
    """One search key. Which of the members mean something depends on `name`."""

    name: bytes
    #: The text sought, folded; a flag; the field's name in lower case for HEADER in `field`.
    text: str = ""
    field: bytes = b""
    number: int = 0
    date: datetime.date = datetime.date.min
    set: SequenceSet = _EMPTY
    #: For UID, once known: rising, disjoint (first, last) ranges.
    ranges: tuple[tuple[int, int], ...] = ()
    keys: tuple[Key, ...] = ()


_FLAG_KEYS = {
    b"ANSWERED": "\\Answered",
    b"DELETED": "\\Deleted",
    b"DRAFT": "\\Draft",
    b"FLAGGED": "\\Flagged",
    b"SEEN": "\\Seen",
}
_TEXT_FIELDS = frozenset((b"BCC", b"CC", b"FROM", b"SUBJECT", b"TO"))
_DATES = frozenset((b"BEFORE", b"ON", b"SINCE", b"SENTBEFORE", b"SENTON", b"SENTSINCE"))
_RECENCY = frozenset((b"NEW", b"OLD", b"RECENT", b"ALL"))


def parse_search(scanner: Scanner) -> Key:
    """The arguments of SEARCH up to the end of the command, as one AND key. Raises BadSyntax, BadCharset."""
    charset = "utf-8"  # without CHARSET it is US-ASCII, and UTF-8 harms nobody
    if scanner.take(b"CHARSET "):
        name = scanner.astring().upper()
        if name not in CHARSETS:
            raise BadCharset(name.decode("ascii", "replace"))
        charset = CHARSETS[name]
        scanner.space()
    parser = _KeyParser(scanner, charset)
    keys = [parser.key(0)]
    while not scanner.done:
        scanner.space()
        keys.append(parser.key(0))
    return Key(b"AND", keys=tuple(keys))


class _KeyParser:
    def __init__(self, scanner: Scanner, charset: str) -> None:
        self._scanner = scanner
        self._charset = charset
        self._count = 0

    def key(self, depth: int) -> Key:
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_KEYS:
            raise BadSyntax("the search has too many keys")
        scanner = self._scanner
        if scanner.at(b"("):
            keys = tuple(self.key(depth + 1) for _ in scanner.items())
            if not keys:
                raise BadSyntax("a search key is missing")
            return Key(b"AND", keys=keys)
        if scanner.at_sequence_set():
            return Key(b"SEQUENCE", set=scanner.sequence_set())
        name = scanner.keyword()
        if name in _FLAG_KEYS:
            return Key(b"FLAG", text=_FLAG_KEYS[name])
        if name in _RECENCY:
            return Key(name)
        if name.startswith(b"UN") and name[2:] in _FLAG_KEYS:
            return Key(b"NOT", keys=(Key(b"FLAG", text=_FLAG_KEYS[name[2:]]),))
        scanner.space()
        return self._with_argument(name, depth)

    def _with_argument(self, name: bytes, depth: int) -> Key:
        scanner = self._scanner
        if name == b"NOT":
            return Key(name, keys=(self.key(depth + 1),))
        if name == b"OR":
            first = self.key(depth + 1)
            scanner.space()
            return Key(name, keys=(first, self.key(depth + 1)))
        if name == b"KEYWORD":
            return Key(b"FLAG", text=scanner.flag_keyword())
        if name == b"UNKEYWORD":
            return Key(b"NOT", keys=(Key(b"FLAG", text=scanner.flag_keyword()),))
        if name == b"UID":
            return Key(name, set=scanner.sequence_set())
        if name in (b"LARGER", b"SMALLER"):
            return Key(name, number=scanner.number())
        if name in _DATES:
            return Key(name, date=scanner.date())
        if name in _TEXT_FIELDS:
            return Key(b"HEADER", field=name.lower(), text=self._text())
        if name == b"HEADER":
            field = scanner.astring().lower()
            scanner.space()
            return Key(name, field=field, text=self._text())
        if name in (b"BODY", b"TEXT"):
            return Key(name, text=self._text())
        raise BadSyntax("there is no such search key")

    def _text(self) -> str:
        try:
            return fold(self._scanner.astring().decode(self._charset))
        except UnicodeDecodeError:
            raise BadSyntax("a search text is not in the charset of the search") from None


def bind(key: Key, by_number: Callable[[SequenceSet], tuple[tuple[int, int], ...]], highest_uid: int) -> Key:
    """Turn message numbers and ``*`` into UIDs as they are now. `by_number` gives the UID ranges of message numbers."""
    if key.name == b"SEQUENCE":
        return Key(b"UID", ranges=by_number(key.set))
    if key.name == b"UID":
        return Key(b"UID", ranges=key.set.resolve(highest_uid))
    return attrs.evolve(key, keys=tuple(bind(inner, by_number, highest_uid) for inner in key.keys))


@attrs.define
class Content:
    """A message that was read, for as long as it is judged: what was worked out once is kept."""

    message: bytes
    _header: str | None = None
    _body: str | None = None

    @property
    def header_octets(self) -> bytes:
        """The header section, as much of it as is looked at."""
        return self.message[: min(header_length(self.message), MAX_HEADER)]

    @property
    def header(self) -> str:
        """The decoded header, folded."""
        if self._header is None:
            self._header = fold(header_text(self.header_octets))
        return self._header

    @property
    def body(self) -> str:
        """The decoded body, folded."""
        if self._body is None:
            self._body = fold(body_text(self.message, parse_structure(self.message)))
        return self._body


def matches_message(key: Key, entry: Entry, message: bytes) -> bool:
    """Whether a message that was read matches. Pure and thread-safe."""
    return bool(matches(key, entry, Content(message)))


def matches(key: Key, entry: Entry, content: Content | None = None) -> bool | None:
    """Whether a message matches `key`, which must be bound; None: only its content can tell."""
    match key.name:
        case b"AND":
            return _all(key.keys, entry, content)
        case b"OR":
            return _any(key.keys, entry, content)
        case b"NOT":
            return _not(matches(key.keys[0], entry, content))
    known = _BY_ENTRY.get(key.name)
    if known is not None:
        return known(key, entry)
    if content is None:
        return None
    return _BY_CONTENT[key.name](key, content)


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _all(keys: tuple[Key, ...], entry: Entry, content: Content | None) -> bool | None:
    result: bool | None = True
    for key in keys:
        value = matches(key, entry, content)
        if value is False:
            return False
        if value is None:
            result = None
    return result


def _any(keys: tuple[Key, ...], entry: Entry, content: Content | None) -> bool | None:
    result: bool | None = False
    for key in keys:
        value = matches(key, entry, content)
        if value is True:
            return True
        if value is None:
            result = None
    return result


def _in_ranges(key: Key, entry: Entry) -> bool:
    at = bisect_right(key.ranges, (entry.uid, 2**63)) - 1
    return at >= 0 and key.ranges[at][0] <= entry.uid <= key.ranges[at][1]


def _arrived(entry: Entry) -> datetime.date:
    return moment(entry.internal_date).date()


_BY_ENTRY: dict[bytes, Callable[[Key, Entry], bool]] = {
    b"ALL": lambda key, entry: True,
    b"FLAG": lambda key, entry: key.text in entry.flags,
    b"RECENT": lambda key, entry: entry.recent,
    b"OLD": lambda key, entry: not entry.recent,
    b"NEW": lambda key, entry: entry.recent and "\\Seen" not in entry.flags,
    b"UID": _in_ranges,
    b"LARGER": lambda key, entry: entry.size > key.number,
    b"SMALLER": lambda key, entry: entry.size < key.number,
    b"BEFORE": lambda key, entry: _arrived(entry) < key.date,
    b"ON": lambda key, entry: _arrived(entry) == key.date,
    b"SINCE": lambda key, entry: _arrived(entry) >= key.date,
}


def _sent(content: Content) -> datetime.date | None:
    """The day in the Date field, whatever its time and zone (RFC 3501 §6.4.4)."""
    value = next((field.value for field in fields(content.header_octets) if field.key == b"date"), b"")
    match = _SENT.search(value)
    if match is None or match[2].upper() not in MONTHS:
        return None
    year = int(match[3])
    if len(match[3]) == 2:  # RFC 5322 §4.3
        year += 2000 if year < 50 else 1900
    try:
        return datetime.date(year, MONTHS.index(match[2].upper()) + 1, int(match[1]))
    except ValueError:
        return None


def _in_header(key: Key, content: Content) -> bool:
    # RFC 3501 §6.4.4: an empty text matches every message that has the field.
    return any(
        key.text in fold(decode_words(field.value))
        for field in fields(content.header_octets)
        if field.key == key.field
    )


def _sent_is(compare: Callable[[datetime.date, datetime.date], bool]) -> Callable[[Key, Content], bool]:
    def check(key: Key, content: Content) -> bool:
        sent = _sent(content)
        return sent is not None and compare(sent, key.date)

    return check


_BY_CONTENT: dict[bytes, Callable[[Key, Content], bool]] = {
    b"HEADER": _in_header,
    b"BODY": lambda key, content: key.text in content.body,
    b"TEXT": lambda key, content: key.text in content.header or key.text in content.body,
    b"SENTBEFORE": _sent_is(lambda sent, date: sent < date),
    b"SENTON": _sent_is(lambda sent, date: sent == date),
    b"SENTSINCE": _sent_is(lambda sent, date: sent >= date),
}

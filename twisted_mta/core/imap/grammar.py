"""The tokens of IMAP commands. RFC 3501 §9, RFC 7888.

A command is scanned whole: its literals stand in it as on the wire, ``{5}`` CRLF and five octets. Nothing here can
take more than linear time.
"""

from __future__ import annotations

import calendar
import datetime
import re
from collections.abc import Iterator, Sequence

from twisted_mta.core.imap.names import decode_name
from twisted_mta.core.values import value

MONTHS = (b"JAN", b"FEB", b"MAR", b"APR", b"MAY", b"JUN", b"JUL", b"AUG", b"SEP", b"OCT", b"NOV", b"DEC")
SYSTEM_FLAGS = ("\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft")
MAX_NUMBER = 2**32 - 1
#: Flags in one list, octets in one keyword.
MAX_FLAGS = 100
MAX_KEYWORD = 100

# RFC 3501 §9: CHAR without "(" ")" "{" SP CTL list-wildcards quoted-specials resp-specials.
_ATOM = re.compile(rb"[!#$&'+\-./0-9:;<=>?@A-Z\[\\^_`a-z|}~]+")
_ASTRING = re.compile(rb"[!#$&'+\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]+")
_LIST_MAILBOX = re.compile(rb"[!#$%&'*+\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]+")
_TAG = re.compile(rb"[!#$&',\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]+")
_QUOTED = re.compile(rb'"((?:[^"\\\r\n\0]|\\["\\])*)"')
_UNQUOTE = re.compile(rb"\\(.)")
_LITERAL = re.compile(rb"\{([0-9]{1,10})\+?\}\r\n")
_NUMBER = re.compile(rb"[0-9]{1,10}")
_SEQUENCE = re.compile(rb"(?:[0-9]+|\*)(?::(?:[0-9]+|\*))?(?:,(?:[0-9]+|\*)(?::(?:[0-9]+|\*))?)*")
_DATE = re.compile(rb"([0-9]{1,2})-([A-Za-z]{3})-([0-9]{4})")
_DATE_TIME = re.compile(
    rb'"([ 0-9][0-9])-([A-Za-z]{3})-([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) ([+-])([0-9]{2})([0-9]{2})"'
)
_KEYWORD = re.compile(rb"[!#$&'+\-./0-9:;<=>?@A-Z\[^_`a-z|}~]+")


class BadSyntax(ValueError):
    """The command breaks the grammar; the text says where, fit for an IMAP BAD."""


@value
class SequenceSet:
    """Message numbers or UIDs as a client names them: (first, last) pairs, None for ``*``."""

    ranges: tuple[tuple[int | None, int | None], ...]

    def resolve(self, highest: int) -> tuple[tuple[int, int], ...]:
        """Rising, disjoint (first, last) ranges, where ``*`` is `highest`."""
        pairs = sorted(
            tuple(sorted((highest if first is None else first, highest if last is None else last)))
            for first, last in self.ranges
        )
        merged: list[tuple[int, int]] = []
        for first, last in pairs:
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        return tuple(merged)


class Scanner:
    """Reads one command from left to right. Every method raises BadSyntax."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    # --- the small ones ------------------------------------------------------------------------

    def _match(self, pattern: re.Pattern[bytes], what: str) -> re.Match[bytes]:
        match = pattern.match(self._data, self._at)
        if match is None:
            raise BadSyntax(f"{what} expected")
        self._at = match.end()
        return match

    def take(self, token: bytes) -> bool:
        """Pass over `token` if it stands here, whatever its case."""
        end = self._at + len(token)
        if self._data[self._at : end].upper() != token:
            return False
        self._at = end
        return True

    def expect(self, token: bytes) -> None:
        """Pass over `token`."""
        if not self.take(token):
            raise BadSyntax(f"{token.decode('ascii')!r} expected")

    def at(self, octets: bytes) -> bool:
        """Whether one of these octets comes next."""
        return self._data[self._at : self._at + 1] in tuple(octets[i : i + 1] for i in range(len(octets)))

    def space(self) -> None:
        """One SP."""
        if not self.take(b" "):
            raise BadSyntax("a space is missing" if self._at < len(self._data) else "an argument is missing")

    @property
    def done(self) -> bool:
        """Whether nothing follows."""
        return self._at >= len(self._data)

    def end(self) -> None:
        """The command ends here."""
        if not self.done:
            raise BadSyntax("something follows the last argument")

    # --- words ---------------------------------------------------------------------------------

    def tag(self) -> bytes:
        """The tag of a command."""
        return self._match(_TAG, "a tag")[0]

    def atom(self, what: str = "a word") -> bytes:
        """An atom."""
        return self._match(_ATOM, what)[0]

    def word(self, octets: frozenset[int]) -> bytes:
        """The longest run of these octets (given in upper case), in upper case; may be empty."""
        end = self._at
        while end < len(self._data) and _upper(self._data[end]) in octets:
            end += 1
        word, self._at = self._data[self._at : end], end
        return word.upper()

    def keyword(self) -> bytes:
        """An atom in upper case, such as a command's name."""
        return self.atom().upper()

    def string(self) -> bytes:
        """A quoted string or a literal."""
        if self.at(b'"'):
            return _UNQUOTE.sub(rb"\1", self._match(_QUOTED, "a closing quote")[1])
        size = int(self._match(_LITERAL, "a string")[1])
        value = self._data[self._at : self._at + size]
        if len(value) < size or b"\0" in value:  # RFC 3501 §9: CHAR8 has no NUL
            raise BadSyntax("a literal is cut short or has a NUL in it")
        self._at += size
        return value

    def astring(self) -> bytes:
        """An atom or a string."""
        return self.string() if self.at(b'"{') else self._match(_ASTRING, "a string")[0]

    def nstring(self) -> bytes | None:
        """A string, or None for NIL."""
        return None if self.take(b"NIL") else self.string()

    def list_mailbox(self) -> bytes:
        """A mailbox name in which wildcards may stand."""
        return self.string() if self.at(b'"{') else self._match(_LIST_MAILBOX, "a mailbox pattern")[0]

    def mailbox(self) -> str:
        """SP and a mailbox name, as Unicode; INBOX in capitals. Raises BadName too."""
        self.space()
        return decode_name(self.astring())

    def rest(self) -> bytes:
        """All that is left."""
        rest, self._at = self._data[self._at :], len(self._data)
        return rest

    # --- numbers, sets, dates ------------------------------------------------------------------

    def number(self, lowest: int = 0) -> int:
        """A number of 32 bits."""
        value = int(self._match(_NUMBER, "a number")[0])
        if not lowest <= value <= MAX_NUMBER:
            raise BadSyntax("a number is out of range")
        return value

    def at_sequence_set(self) -> bool:
        """Whether a sequence set comes next."""
        return self.at(b"0123456789*")

    def sequence_set(self) -> SequenceSet:
        """Message numbers or UIDs."""
        text = self._match(_SEQUENCE, "a message set")[0]
        ranges = []
        for part in text.split(b","):
            first, colon, last = part.partition(b":")
            ranges.append((_set_number(first), _set_number(last if colon else first)))
        return SequenceSet(tuple(ranges))

    def date(self) -> datetime.date:
        """A day: 1-Feb-1994, quoted or not."""
        quoted = self.take(b'"')
        match = self._match(_DATE, "a date such as 1-Feb-1994")
        if quoted:
            self.expect(b'"')
        try:
            return datetime.date(int(match[3]), _month(match[2]), int(match[1]))
        except ValueError:
            raise BadSyntax("there is no such day") from None

    def date_time(self) -> float:
        """A quoted date-time as Unix time in seconds."""
        match = self._match(_DATE_TIME, 'a date such as "17-Jul-1996 02:44:25 -0700"')
        day, year, hour, minute, second = (int(match[group]) for group in (1, 3, 4, 5, 6))
        offset = int(match[8]) * 60 + int(match[9])
        try:
            datetime.datetime(year, _month(match[2]), day, hour, minute, 59 if second == 60 else second)
        except ValueError:
            raise BadSyntax("there is no such date") from None
        moment = calendar.timegm((year, _month(match[2]), day, hour, minute, second))
        return float(moment - (-60 if match[7] == b"-" else 60) * offset)

    # --- flags and lists -----------------------------------------------------------------------

    def items(self) -> Iterator[None]:
        """Step through a parenthesised list: one round an element, which the caller reads."""
        self.expect(b"(")
        if self.take(b")"):
            return
        yield
        while not self.take(b")"):
            self.space()
            yield

    def flag(self) -> str | None:
        """A flag in its canonical spelling; None for a \\Flag that we do not know, or \\Recent, which nobody can set."""
        if self.take(b"\\"):
            name = "\\" + self._match(_KEYWORD, "a flag")[0].decode("ascii").capitalize()
            return name if name in SYSTEM_FLAGS else None
        return self.flag_keyword()

    def flag_keyword(self) -> str:
        """A flag without a backslash."""
        name = self._match(_KEYWORD, "a flag")[0]
        if len(name) > MAX_KEYWORD:
            raise BadSyntax(f"a keyword is longer than {MAX_KEYWORD} octets")
        return name.decode("ascii")

    def flag_list(self) -> tuple[str, ...]:
        """Flags in parentheses."""
        return _known([self.flag() for _ in self.items()])

    def flags(self) -> tuple[str, ...]:
        """What STORE takes: flags in parentheses, or without."""
        if self.at(b"("):
            return self.flag_list()
        found = [self.flag()]
        while not self.done:
            self.space()
            found.append(self.flag())
        return _known(found)


def is_tag(octets: bytes) -> bool:
    """Whether these octets are a tag."""
    return _TAG.fullmatch(octets) is not None


def _upper(octet: int) -> int:
    return octet - 32 if 97 <= octet <= 122 else octet


def _known(flags: Sequence[str | None]) -> tuple[str, ...]:
    known = tuple(dict.fromkeys(flag for flag in flags if flag is not None))
    if len(known) > MAX_FLAGS:
        raise BadSyntax(f"more than {MAX_FLAGS} flags")
    return known


def _set_number(text: bytes) -> int | None:
    if text == b"*":
        return None
    if len(text) > 10 or not 1 <= int(text) <= MAX_NUMBER:  # RFC 3501 §9: nz-number
        raise BadSyntax("a message number is out of range")
    return int(text)


def _month(name: bytes) -> int:
    try:
        return MONTHS.index(name.upper()) + 1
    except ValueError:
        raise BadSyntax("there is no such month") from None

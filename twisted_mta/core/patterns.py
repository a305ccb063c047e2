"""Patterns of addresses: literal text with groups in it that stand for varying parts.

    sales-(.*)@example.org        anything there, nothing too
    (.+)@(.+).example.org         anything, one character at least
    ticket-([0-9]+)@example.org   characters of a class; [^...] for all others
    (sales|info)@example.org      one of some words

Everything else stands for itself, dots and plus signs too, and case does not matter. What could take a matcher long
can't be said: there is nothing to repeat but single characters. The time for a match grows with the length of the address
and that of the pattern, and no faster.
"""

from __future__ import annotations

import re

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.values import value

#: Groups in one pattern, and characters.
MAX_GROUPS = 9
MAX_PATTERN = 500

_RUN = re.compile(r"(?:\.|\[(\^?)((?:[^\]\\]|\\.)+)\])([*+])")
#: What has a meaning in regular expressions and none here: a backslash makes it a literal.
_MAGIC = "*?^$|[]{})\\"


class PatternError(ValueError):
    """The text is no pattern; the message says why."""


@value
class _Literal:
    text: str


@value
class _Run:
    """Characters of a class (None: any), at least so many."""

    allowed: frozenset[str] | None
    negated: bool
    minimum: int

    def has(self, character: str) -> bool:
        return self.allowed is None or (character in self.allowed) is not self.negated


@value
class _Choice:
    words: tuple[str, ...]


_Token = _Literal | _Run | _Choice


@value
class Pattern:
    """A pattern that was read; `text` is how it was written."""

    text: str
    _tokens: tuple[_Token, ...] = attrs.field(repr=False)
    #: How many groups there are.
    groups: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read a pattern. Raises PatternError."""
        if len(text) > MAX_PATTERN:
            raise PatternError(f"a pattern has {MAX_PATTERN} characters at most")
        tokens = _Parser(text).run()
        literal = "".join(token.text for token in tokens if isinstance(token, _Literal))
        if literal.count("@") != 1:
            raise PatternError("a pattern needs one @, outside of the groups")
        groups = sum(not isinstance(token, _Literal) for token in tokens)
        if groups > MAX_GROUPS:
            raise PatternError(f"a pattern has {MAX_GROUPS} groups at most")
        return cls(text, tuple(tokens), groups)

    @property
    def domain(self) -> str:
        """The domain, where it is literal text; else ""."""
        last = self._tokens[-1]
        if not isinstance(last, _Literal) or "@" not in last.text:
            return ""
        return last.text.rpartition("@")[2]

    def match(self, address: Address) -> tuple[str, ...] | None:
        """The parts that the groups stand for, as written in the address, each as long as it can be; None for no match."""
        text = f"{address.local}@{address.domain}"
        folded = text.lower()
        if len(folded) != len(text):  # a few letters have a lower case of another length
            folded = text
        first, last = self._tokens[0], self._tokens[-1]
        if isinstance(last, _Literal) and not folded.endswith(last.text):
            return None
        if isinstance(first, _Literal) and not folded.startswith(first.text):
            return None
        return self._captures(text, folded)

    def _captures(self, text: str, folded: str) -> tuple[str, ...] | None:
        # From the end: the places from which the rest of the pattern matches the rest of the text.
        ways: list[set[int]] = [{len(folded)}]
        for token in reversed(self._tokens):
            ways.append(_before(token, folded, ways[-1]))
        ways.reverse()
        position, found = 0, []
        if position not in ways[0]:
            return None
        # From the start: each token as far as there is a way on.
        for token, onward in zip(self._tokens, ways[1:], strict=True):
            end = _end(token, folded, position, onward)
            if not isinstance(token, _Literal):
                found.append(text[position:end])
            position = end
        return tuple(found)


def _before(token: _Token, text: str, onward: set[int]) -> set[int]:
    """Where a token may begin that ends in one of the places."""
    if isinstance(token, _Literal):
        size = len(token.text)
        return {end - size for end in onward if text.endswith(token.text, 0, end)}
    if isinstance(token, _Choice):
        return {end - len(word) for word in token.words for end in onward if text.endswith(word, 0, end)}
    found: set[int] = set() if token.minimum else set(onward)
    for place in range(len(text) - 1, -1, -1):
        if token.has(text[place]) and (place + 1 in onward or place + 1 in found):
            found.add(place)
    return found


def _end(token: _Token, text: str, start: int, onward: set[int]) -> int:
    """The farthest place where a token that begins at `start` may end; there is one."""
    if isinstance(token, _Literal):
        return start + len(token.text)
    if isinstance(token, _Choice):
        ends = (start + len(word) for word in token.words if text.startswith(word, start))
        return next(end for end in ends if end in onward)
    end, place = start, start
    while place < len(text) and token.has(text[place]):
        place += 1
        if place in onward:
            end = place
    return end


class _Parser:
    """Takes a pattern apart."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._literal = ""
        self._tokens: list[_Token] = []

    def run(self) -> list[_Token]:
        position = 0
        while position < len(self._text):
            character = self._text[position]
            if character == "(":
                end = _closing(self._text, position)
                self._end_literal()
                self._tokens.append(_group(self._text[position + 1 : end]))
                position = end + 1
            elif character == "\\" and position + 1 < len(self._text):
                self._literal += self._text[position + 1].lower()
                position += 2
            elif character in _MAGIC:
                raise PatternError(
                    f"{character} outside of a group means nothing here: write (.*) for anything, "
                    f"or \\{character} for the character itself"
                )
            else:
                self._literal += character.lower()
                position += 1
        self._end_literal()
        return self._tokens

    def _end_literal(self) -> None:
        if self._literal:
            self._tokens.append(_Literal(self._literal))
            self._literal = ""


def _closing(text: str, start: int) -> int:
    """Where the group that begins at `start` ends."""
    place, in_class = start + 1, False
    while place < len(text):
        character = text[place]
        if character == "\\":
            place += 1
        elif character == "[":
            in_class = True
        elif character == "]":
            in_class = False
        elif character == "(" and not in_class:
            raise PatternError("a group within a group could take for ever to match")
        elif character == ")" and not in_class:
            return place
        place += 1
    raise PatternError("a group is never closed")


def _group(inner: str) -> _Token:
    run = _RUN.fullmatch(inner)
    if run:
        minimum = 1 if run[3] == "+" else 0
        if run[2] is None:
            return _Run(None, False, minimum)
        return _Run(_class(run[2]), bool(run[1]), minimum)
    words = tuple(word.lower() for word in inner.split("|"))
    if not all(words) or any(set(word) & set("\\.*?+^$[]{}") for word in words):
        raise PatternError(
            f"({inner}) is no group that can be matched in a bounded time: "
            "write (.*), (.+), a class as in ([a-z0-9-]+), or words as in (sales|info)"
        )
    return _Choice(words)


def _class(text: str) -> frozenset[str]:
    """The characters of a class, in lower case."""
    characters: list[str] = []
    found: set[str] = set()
    place = 0
    while place < len(text):
        if text[place] == "\\":
            place += 1
        characters.append(text[place])
        place += 1
    place = 0
    while place < len(characters):
        if place + 2 < len(characters) and characters[place + 1] == "-":
            first, last = ord(characters[place]), ord(characters[place + 2])
            if not first <= last < first + 256:
                raise PatternError(f"{characters[place]}-{characters[place + 2]} is no range of characters")
            found.update(chr(code) for code in range(first, last + 1))
            place += 3
        else:
            found.add(characters[place])
            place += 1
    return frozenset("".join(found).lower()) | frozenset(found)

"""Patterns of addresses with named parts: ``ticket-{id}@example.org``.

Everything outside of braces stands for itself, whatever its case; a name in braces takes one character or more, of the
local part or of the domain, the first as little as it can. There is always something between two of them, so a match
needs no second look at any character. Without "@" a pattern holds in every domain.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping

from twisted_mta.core.address import Address
from twisted_mta.core.values import value

#: Characters of a pattern.
MAX_PATTERN = 320
_PART = re.compile(r"\{([^{}]*)\}")


class PatternError(ValueError):
    """A pattern that can't be used; the text says why."""


@value
class _Glob:
    """One side of the "@": `literals` with a capture between each two of them; those at the ends may be ""."""

    literals: tuple[str, ...]

    def spans(self, text: str) -> list[tuple[int, int]] | None:
        """Where the captures are in a folded text; None where it does not match."""
        first, last = self.literals[0], self.literals[-1]
        if len(self.literals) == 1:
            return [] if text == first else None
        end = len(text) - len(last)
        if not text.startswith(first) or not text.endswith(last):
            return None
        found: list[tuple[int, int]] = []
        begin = len(first)
        # The first place of each literal leaves the most for the rest: if that fails, so does every other.
        for literal in self.literals[1:-1]:
            at = text.find(literal, begin + 1, end)
            if at < 0:
                return None
            found.append((begin, at))
            begin = at + len(literal)
        if begin >= end:
            return None
        return [*found, (begin, end)]


@value
class Pattern:
    """A pattern, ready to be matched. Make it with `parse`."""

    text: str
    #: The names in braces, in order.
    names: tuple[str, ...]
    _local: _Glob
    #: None: any.
    _domain: _Glob | None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Raises PatternError."""
        if not text or len(text) > MAX_PATTERN or not text.isprintable() or " " in text:
            raise PatternError(f"{text!r} is no address with {{names}}: write ticket-{{id}}@example.org")
        local, at, domain = text.rpartition("@")
        if not at:
            local, domain = text, ""
        if not local or (at and not domain):
            raise PatternError(f"{text!r}: there is nothing on one side of the @")
        names: list[str] = []
        globs = [_glob(side, text, names) for side in ([local, domain] if at else [local])]
        return cls(text, tuple(names), globs[0], globs[1] if at else None)

    @property
    def literal(self) -> bool:
        """Whether it is one address, without names."""
        return not self.names

    @property
    def weight(self) -> int:
        """How many characters are given: of two patterns that match, the one with more is meant."""
        return sum(len(literal) for literal in self._all)

    @property
    def shape(self) -> object:
        """What two patterns have in common that match the same addresses, whatever their names."""
        return self._local, self._domain

    @property
    def domain(self) -> str:
        """The domain, where it is given as a whole; else ""."""
        if self._domain is None or len(self._domain.literals) > 1:
            return ""
        return self._domain.literals[0]

    @property
    def _all(self) -> tuple[str, ...]:
        return (*self._local.literals, *(self._domain.literals if self._domain is not None else ()))

    def match(self, address: Address) -> Mapping[str, str] | None:
        """The texts that the names stand for, as they are written in the address; None where it does not match."""
        sides = [(address.local, self._local)]
        if self._domain is not None:
            sides.append((address.domain, self._domain))
        values: list[str] = []
        for text, glob in sides:
            folded = text.casefold()
            spans = glob.spans(folded)
            if spans is None:
                return None
            # Folding makes "ss" of "ß": then what stands where can't be told, and the folded form must do.
            source = text if len(text) == len(folded) else folded
            values += [source[begin:end] for begin, end in spans]
        return dict(zip(self.names, values, strict=True))


def _glob(side: str, text: str, names: list[str]) -> _Glob:
    """Raises PatternError. `names` gets those of this side."""
    literals: list[str] = []
    position = 0
    for match in _PART.finditer(side):
        literals.append(side[position : match.start()].casefold())
        if len(literals) > 1 and not literals[-1]:
            raise PatternError(f"{text!r}: there must be something between two names in braces")
        name = match[1]
        if not name.isidentifier() or keyword.iskeyword(name):
            raise PatternError(f"{text!r}: {{{name}}} must be a name that Python takes for an argument")
        if name in names:
            raise PatternError(f"{text!r}: {{{name}}} is there twice")
        names.append(name)
        position = match.end()
    literals.append(side[position:].casefold())
    if any("{" in literal or "}" in literal for literal in literals):
        raise PatternError(f"{text!r} has a brace without its partner")
    return _Glob(tuple(literals))

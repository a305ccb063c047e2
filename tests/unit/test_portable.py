"""What must not be in the sources, since one of the interpreters reads it differently."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from re import _constants, _parser
from typing import Any

import pytest

import twisted_mta

_SINGLE = (_constants.IN, _constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY)


def patterns() -> Iterator[tuple[str, re.Pattern[Any]]]:
    """Those that the modules hold, with their names."""
    for module in pkgutil.walk_packages(twisted_mta.__path__, "twisted_mta."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, re.Pattern):
                yield f"{module.name}.{name}", value


def not_portable(parsed: Any) -> Iterator[str]:
    """The parts of a parsed pattern that CPython and PyPy read differently."""
    for operator, argument in parsed:
        if operator is _constants.ATOMIC_GROUP:
            yield "(?>...)"
        elif operator is _constants.POSSESSIVE_REPEAT:
            least, _, repeated = argument
            if least or [one for one, _ in repeated] not in [[single] for single in _SINGLE]:
                yield f"at least {least} of {repeated}, possessive"
        for part in argument if isinstance(argument, (tuple, list)) else (argument,):
            for branch in part if isinstance(part, list) else (part,):
                if isinstance(branch, _parser.SubPattern):
                    yield from not_portable(branch)


class PortablePatternTests:
    # PyPy 7.3.19 takes [ab]++ for [ab]*+: it finds nothing where there is nothing to be found, and who looks for the next
    # piece from there on does so for ever. (?:ab)*+ goes on where its last attempt failed, and (?>a+)b is never the whole
    # of a text. [ab]*+ is right.

    def test_patterns(self) -> None:
        found = [
            f"{name}: {part}"
            for name, pattern in patterns()
            for part in not_portable(_parser.parse(pattern.pattern, pattern.flags))
        ]

        assert found == []

    @pytest.mark.parametrize(
        "text", ["(?>a+)b", "x|y(?>a)", "[ab]++", "a{2}+", "(?:ab)*+", "(?:ab)?+", "(a|(?:b++))*", "(?=a++)"]
    )
    def test_one_would_be_found(self, text: str) -> None:
        assert list(not_portable(_parser.parse(text)))

    @pytest.mark.parametrize("text", ["[ab]*+", r"\s*+", ".*+", "[ab]?+", "(a|b+)*"])
    def test_nothing_else(self, text: str) -> None:
        assert not list(not_portable(_parser.parse(text)))

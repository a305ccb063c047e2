"""What must not be in the sources, since one of the interpreters reads it differently."""

from __future__ import annotations

import re
from pathlib import Path

import twisted_mta

SOURCES = Path(twisted_mta.__file__).parent


class PortablePatternTests:
    def test_no_possessive_plus_behind_a_set(self) -> None:
        # PyPy 7.3.19 takes [ab]++ for [ab]*+: it finds nothing where there is nothing to be found, and who looks for the
        # next piece from there on does so for ever. (?>[ab]+) is the same to all of them.
        found = [
            f"{path.relative_to(SOURCES)}:{number}: {line.strip()}"
            for path in sorted(SOURCES.rglob("*.py"))
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if re.search(r"\]\+\+", line)
        ]

        assert found == []

"""What is wrong with a configuration file: all of it at once, each with file, line, key and what would be valid."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from twisted_mta.core.values import value


@value(kw_only=True)
class Problem:
    """One thing that is wrong, or with `warning` only doubtful."""

    #: The file as the administrator named it.
    file: str
    #: Where the key stands, or the nearest table around it; 0 if nowhere.
    line: int = 0
    #: The path of the key, entries of arrays counted from 1 ("listen[2].role"); "" for the file as a whole.
    key: str = ""
    #: A sentence with the bad value and what would be valid.
    message: str
    warning: bool = False

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        parts = [place, "warning" if self.warning else "", self.key, self.message]
        return ": ".join(part for part in parts if part)


class ConfigErrors(Exception):
    """The file can't be used. `problems` has every error (and the warnings), in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Invalid(ValueError):
    """A value that is not acceptable; the text says why and what would be, without naming the key."""


def quote(value: object) -> str:
    """A TOML value as an administrator would recognise it, cut to a bearable length."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    text = str(value)
    if len(text) > 80:
        text = text[:77] + "..."
    if isinstance(value, str):
        escaped = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
        return f'"{escaped}"'
    return text


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """'; did you mean "x"?' for the option that is most like `word`, or "" when none is."""
    close = difflib.get_close_matches(word.lower(), list(options), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""

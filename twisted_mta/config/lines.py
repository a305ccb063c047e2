"""Finds the line of each key in a TOML text, which the standard library's parser does not tell.

Only for messages: a key that is written in a way not understood here (inside an inline table, say) is reported at
the nearest key around it. The text has already been accepted by `tomllib`.
"""

from __future__ import annotations

import re
from collections import Counter

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_DOTTED})[ \t]*\]")
_ASSIGNMENT = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
_PARTS = re.compile(_PART)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_MULTILINE = re.compile(r'"""|' + "'''")


def join_key(parent: str, name: str) -> str:
    """The path of a key inside a table, quoted as in TOML where it must be."""
    if not _BARE.fullmatch(name):
        name = f'"{"".join(map(_visible, name))}"'
    return f"{parent}.{name}" if parent else name


def _visible(character: str) -> str:
    """A character of a key as TOML writes it in quotes."""
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\u{ord(character):04x}"


class KeyLines:
    """Answers at which line (from 1) a key path stands."""

    def __init__(self, text: str) -> None:
        self._lines: dict[str, int] = {}
        self._arrays: Counter[str] = Counter()
        table, within = "", ""
        for number, line in enumerate(text.splitlines(), 1):
            if within:
                within = "" if within in line else within
                continue
            if header := _HEADER.match(line):
                table = self._enter(header[2], array=header[1] == "[[")
                self._lines.setdefault(table, number)
            elif assignment := _ASSIGNMENT.match(line):
                key = self._path(assignment[1], table)
                self._lines.setdefault(key, number)
            marks = _MULTILINE.findall(line)
            if len(marks) % 2:
                within = marks[-1]

    def of(self, key: str) -> int:
        """The line of a key path, or of the nearest table or array around it; 0 if there is none."""
        while key:
            if key in self._lines:
                return self._lines[key]
            key = _parent(key)
        return 0

    def _path(self, dotted: str, table: str) -> str:
        path = table
        for part in _PARTS.findall(dotted):
            path = join_key(path, part[1:-1] if part[0] in "\"'" else part)
        return path

    def _enter(self, dotted: str, *, array: bool) -> str:
        path = self._path(dotted, "")
        if not array:
            return path
        self._arrays[path] += 1
        return f"{path}[{self._arrays[path]}]"


def _parent(key: str) -> str:
    """The path one level up: listen[2].role, listen[2], listen, ""."""
    if key.endswith("]"):
        return key[: key.rindex("[")]
    if key.endswith('"'):
        key = key[: key.rindex('"', 0, -1)]
        return key.removesuffix(".")
    return key.rpartition(".")[0]

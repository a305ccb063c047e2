"""The aliases(5) file, as Postfix and Sendmail users know it.

    # a comment stands on a line of its own
    postmaster:          root
    root:                alice, bob@example.org
    staff:               alice, bob,
                         "carol smith"@example.test
    all:                 :include:/etc/mta/all
    info@example.test:   alice
    @old.example.test:   bob

A name alone holds in every local domain; NAME@DOMAIN in that domain only; @DOMAIN takes what nobody else in
that domain does. Names ignore case. A line that can't be read is reported and passed over, never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import attrs

from twisted_mta.core.address import MAX_DOMAIN, Address, AddressError, parse_domain

#: Characters of one entry with its continuation lines, targets of one entry or include file, problems told of one file.
MAX_ENTRY = 1 << 20
MAX_TARGETS = 10_000
MAX_PROBLEMS = 1000

#: How much of a bad line a problem quotes.
_QUOTED = 120

_INCLUDE = ":include:"
# Not valid UTF-8 (the reader decodes with surrogateescape), or characters that no name has and a terminal may obey.
_UNREADABLE = re.compile(r"[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]")
# What nearly every name and target looks like: Address.parse reads the same from it, only not as fast (tested).
_PLAIN = re.compile(
    r"([A-Za-z0-9_-]{1,64})(?:@([a-z0-9]+(?:-+[a-z0-9]+)*(?:\.[a-z0-9]+(?:-+[a-z0-9]+)*)*))?", re.ASCII
)
_QUOTED_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


@attrs.frozen
class Name:
    """A target that is an address. `address.domain` is "" where only a name was written; `source` is "aliases:12"."""

    address: Address
    source: str

    def __str__(self) -> str:
        return str(self.address)


@attrs.frozen
class Include:
    """A target that stands for the targets in a file, by its path as written."""

    path: str
    source: str

    def __str__(self) -> str:
        return f"{_INCLUDE}{self.path}"


Target = Name | Include


@attrs.frozen
class Alias:
    """One entry. `name.domain` is "" for a name that holds in all domains, `name.local` is "" for ``@domain``."""

    name: Address
    targets: tuple[Target, ...]
    file: str
    line: int

    @property
    def source(self) -> str:
        """Where it stands: "aliases:12"."""
        return f"{self.file}:{self.line}"


@attrs.frozen
class AliasProblem:
    """Something in a file that was passed over. `line` counts from 1; 0 is for the file as a whole."""

    file: str
    line: int
    #: The part that is wrong, shortened, without control characters; may be "".
    text: str
    why: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.why}" + (f": {self.text}" if self.text else "")


@attrs.frozen
class AliasFile:
    """What a file says: entries in its order, and what could not be read."""

    entries: tuple[Alias, ...]
    problems: tuple[AliasProblem, ...]


@attrs.frozen
class IncludeFile:
    """What an include file says."""

    targets: tuple[Target, ...]
    problems: tuple[AliasProblem, ...]


class _Bad(Exception):
    """A name or target can't be used: (the part that is wrong, why)."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(why)
        self.text = text
        self.why = why


class _Problems:
    """Collects problems of one file, up to a bound."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._found: list[AliasProblem] = []
        self._more = 0

    def add(self, line: int, text: str, why: str) -> None:
        if len(self._found) < MAX_PROBLEMS:
            self._found.append(AliasProblem(self._file, line, shorten(text), why))
        else:
            self._more += 1

    def done(self) -> tuple[AliasProblem, ...]:
        if self._more:
            self._found.append(AliasProblem(self._file, 0, "", f"{self._more} more lines can't be read"))
        return tuple(self._found)


def shorten(text: str) -> str:
    """Text from a file as a log or a terminal may show it."""
    text = _UNREADABLE.sub("?", text.strip())
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "..."


def parse_aliases(text: str, file: str) -> AliasFile:
    """Read an aliases(5) file. `text` was decoded from UTF-8 with ``surrogateescape``; `file` is its name in messages.

    Never raises. An entry with one bad target keeps its good ones.
    """
    problems = _Problems(file)
    entries: list[Alias] = []
    for line, content in _logical_lines(text, problems):
        try:
            name, value = _split_name(content)
            alias_name = _alias_name(name)
        except _Bad as bad:
            problems.add(line, bad.text, bad.why)
            continue
        targets = tuple(_targets(value, file, line, problems))
        if targets:
            entries.append(Alias(alias_name, targets, file, line))
        elif not value.strip(", "):
            problems.add(line, content, "the alias has no targets")
    return AliasFile(tuple(entries), problems.done())


def parse_include(text: str, file: str) -> IncludeFile:
    """Read a file named by ``:include:``: targets, several on a line with commas between. Otherwise as `parse_aliases`."""
    problems = _Problems(file)
    targets: list[Target] = []
    for number, content in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        content = content.strip()
        if not content or content.startswith("#"):
            continue
        if len(content) > MAX_ENTRY:
            problems.add(number, content, f"the line is longer than {MAX_ENTRY} characters")
            continue
        targets.extend(_targets(content, file, number, problems))
        if len(targets) > MAX_TARGETS:
            problems.add(number, content, f"only the first {MAX_TARGETS} targets of the file are used")
            break
    return IncludeFile(tuple(targets[:MAX_TARGETS]), problems.done())


# --- Lines ---------------------------------------------------------------------------------------


def _logical_lines(text: str, problems: _Problems) -> Iterator[tuple[int, str]]:
    """Entries with the lines that continue them: (number of the first line, text). Comments and empty lines are gone;
    they do not end an entry, as in Postfix."""
    first, parts, size = 0, [""], 0
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        content = raw.strip()
        if not content or content.startswith("#"):
            continue
        if raw[0] not in " \t":
            yield from _finished(first, parts, size, problems)
            first, parts, size = number, [content], len(content)
        elif not first:
            problems.add(number, content, "white space continues an entry, but none began above")
        else:
            size += len(content) + 1
            if size <= MAX_ENTRY:
                parts.append(content)
    yield from _finished(first, parts, size, problems)


def _finished(first: int, parts: list[str], size: int, problems: _Problems) -> Iterator[tuple[int, str]]:
    if size > MAX_ENTRY:
        problems.add(first, parts[0], f"the entry is longer than {MAX_ENTRY} characters")
    elif first:
        yield first, " ".join(parts)


def _split_name(content: str) -> tuple[str, str]:
    """Part an entry at the colon that is not within quotes."""
    start = 0
    if content.startswith('"'):
        match = _QUOTED_STRING.match(content)
        if match is None:
            raise _Bad(content, "a quote is never closed")
        start = match.end()
    colon = content.find(":", start)
    if colon < 0:
        raise _Bad(content, "an entry is a name, a colon and targets (name: target, target)")
    return content[:colon].rstrip(), content[colon + 1 :].lstrip()


def _split_targets(value: str) -> Iterator[str]:
    """Part targets at commas that are not within quotes. A comma too many does no harm."""
    if '"' not in value:
        parts: Iterable[str] = value.split(",")
    else:
        parts = _split_quoted(value)
    for part in parts:
        part = part.strip()
        if part:
            yield part


def _split_quoted(value: str) -> Iterator[str]:
    start = position = 0
    while position < len(value):
        if value[position] == '"':
            match = _QUOTED_STRING.match(value, position)
            position = match.end() if match else len(value)
            continue
        if value[position] == ",":
            yield value[start:position]
            start = position + 1
        position += 1
    yield value[start:]


# --- Names and targets ---------------------------------------------------------------------------


def _alias_name(text: str) -> Address:
    if text.startswith("@") and not _UNREADABLE.search(text):
        try:
            return Address("", parse_domain(text[1:]))
        except AddressError as error:
            raise _Bad(text, str(error)) from None
    return _address(text)


def _targets(value: str, file: str, line: int, problems: _Problems) -> Iterator[Target]:
    """The targets that can be used, up to MAX_TARGETS; the rest is reported."""
    source = f"{file}:{line}"
    for count, text in enumerate(_split_targets(value), 1):
        if count > MAX_TARGETS:
            problems.add(line, text, f"only the first {MAX_TARGETS} targets are used")
            return
        try:
            yield _target(text, source)
        except _Bad as bad:
            problems.add(line, bad.text, bad.why)


def _target(text: str, source: str) -> Target:
    plain = _plain(text)
    if plain:
        return Name(plain, source)
    special = text
    quoted = _QUOTED_STRING.fullmatch(text)
    if quoted:  # "|command with arguments" and ":include:/a path" are quoted whole
        special = re.sub(r"\\(.)", r"\1", quoted[1])
    if special.startswith("|"):
        raise _Bad(text, "delivery to a command is not supported yet")
    if special.startswith("/"):
        raise _Bad(text, "delivery to a file is not supported yet")
    if special[: len(_INCLUDE)].lower() == _INCLUDE:
        return _include(special[len(_INCLUDE) :].strip(), text, source)
    if special.startswith(":"):
        raise _Bad(text, "of the targets with a colon only :include:FILE is known")
    if special.startswith("\\"):
        raise _Bad(text, "a backslash is not needed: an alias that names itself means the mailbox")
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    return Name(_address(text), source)


def _include(path: str, text: str, source: str) -> Include:
    if not path or _UNREADABLE.search(path):
        raise _Bad(text, ":include: needs the path of a file")
    return Include(path, source)


def _plain(text: str) -> Address | None:
    match = _PLAIN.fullmatch(text)
    return Address(match[1], match[2] or "") if match and len(text) <= MAX_DOMAIN else None


def _address(text: str) -> Address:
    """A name, quoted or not, with or without a domain."""
    plain = _plain(text)
    if plain:
        return plain
    if _UNREADABLE.search(text):
        raise _Bad(text, "there is a control character, or something that is not UTF-8")
    if text.startswith("#") or " #" in text:
        raise _Bad(text, "a comment must stand on a line of its own")
    bare = text.endswith('"') if text.startswith('"') else "@" not in text
    try:
        address = Address.parse(f"{text}@localhost" if bare else text)
    except AddressError as error:
        if re.search(r"\s", text) and '"' not in text:
            raise _Bad(text, "targets need commas between them, and names with spaces quotes") from None
        raise _Bad(text, str(error)) from None
    if not address.local:
        raise _Bad(text, "the name is empty")
    return Address(address.local, "") if bare else address


# --- Several files -------------------------------------------------------------------------------


@attrs.frozen
class AliasTable:
    """Entries of all files by what they are looked up with, each key folded."""

    #: "info@example.test".
    full: Mapping[str, Alias]
    #: "root".
    bare: Mapping[str, Alias]
    #: "example.test", of "@example.test".
    catch_all: Mapping[str, Alias]

    def find(self, address: Address) -> Alias | None:
        """The entry for an address: the full address before the name alone (RFC 5321 §2.3.11 leaves case to us)."""
        return self.full.get(address.folded) or self.bare.get(address.local.casefold())


def merge(files: Iterable[AliasFile]) -> tuple[AliasTable, tuple[AliasProblem, ...]]:
    """Put the entries of several files into one table. Of two entries for one name the first stands, the other is reported."""
    table = AliasTable({}, {}, {})
    problems: list[AliasProblem] = []
    for entry in (entry for file in files for entry in file.entries):
        name = entry.name
        if not name.domain:
            kind, key = table.bare, name.local.casefold()
        elif not name.local:
            kind, key = table.catch_all, name.domain
        else:
            kind, key = table.full, name.folded
        assert isinstance(kind, dict)  # built just above; a Mapping to everybody else
        first = kind.setdefault(key, entry)
        if first is not entry and len(problems) < MAX_PROBLEMS:
            why = f"the name is already an alias at {first.source}, which is used"
            problems.append(AliasProblem(entry.file, entry.line, shorten(str(name)), why))
    return table, tuple(problems)

"""Reads aliases(5) files, and the files that they include."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from twisted_mta.core.address import MAX_DOMAIN, Address, AddressError, parse_domain
from twisted_mta.core.aliases.targets import (
    UNREADABLE,
    Action,
    Alias,
    AliasFile,
    AliasProblem,
    Command,
    File,
    Include,
    IncludeFile,
    Name,
    Special,
    Target,
    shorten,
)

#: Characters of one entry with its continuation lines, targets of one entry or include file, problems told of one file.
MAX_ENTRY = 1 << 20
MAX_TARGETS = 10_000
MAX_PROBLEMS = 1000
#: Characters of the text of :fail: and :defer:, which must fit into the line of a reply (RFC 5321 §4.5.3.1.5).
MAX_TEXT = 400

_INCLUDE = ":include:"
# What nearly every name and target looks like: Address.parse reads the same from it, only not as fast (tested).
_PLAIN = re.compile(
    r"([A-Za-z0-9_-]{1,64})(?:@([a-z0-9]+(?:-+[a-z0-9]+)*(?:\.[a-z0-9]+(?:-+[a-z0-9]+)*)*))?", re.ASCII
)
_QUOTED_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SPEAKING = re.compile(r":(?:fail|defer):", re.I)
_SPECIAL = re.compile(r":(blackhole|fail|defer):(.*)", re.I | re.S)


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


def parse_aliases(text: str, file: str) -> AliasFile:
    """Read an aliases(5) file. `text` was decoded from UTF-8 with ``surrogateescape``; `file` is its name in messages.

    Never raises. An entry with one bad target keeps its good ones.
    """
    problems = _Problems(file)
    entries: list[Alias] = []
    known: dict[str, Address] = {}
    for line, content in _logical_lines(text, problems):
        try:
            name, value = _split_name(content)
            alias_name = _alias_name(name)
        except _Bad as bad:
            problems.add(line, bad.text, bad.why)
            continue
        targets = tuple(_targets(value, file, line, problems, known, included=False))
        if targets:
            entries.append(Alias(alias_name, targets, file, line))
        elif not value.strip(", "):
            problems.add(line, content, "the alias has no targets")
    return AliasFile(tuple(entries), problems.done())


def parse_include(text: str, file: str) -> IncludeFile:
    """Read a file named by ``:include:``: targets, several on a line with commas between. Otherwise as `parse_aliases`."""
    problems = _Problems(file)
    targets: list[Target] = []
    known: dict[str, Address] = {}
    for number, content in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        content = content.strip()
        if not content or content.startswith("#"):
            continue
        if len(content) > MAX_ENTRY:
            problems.add(number, content, f"the line is longer than {MAX_ENTRY} characters")
            continue
        targets.extend(_targets(content, file, number, problems, known, included=True))
        if len(targets) > MAX_TARGETS:
            problems.add(number, content, f"only the first {MAX_TARGETS} targets of the file are used")
            break
    return IncludeFile(tuple(targets[:MAX_TARGETS]), problems.done())


def parse_target(text: str, source: str) -> Target:
    """Read a single target. Raises ValueError, which says why it can't be used."""
    found = list(_split_targets(text.strip()))
    if len(found) != 1:
        raise ValueError("there must be one target")
    try:
        return _target(found[0], source)
    except _Bad as bad:
        raise ValueError(bad.why) from None


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
    if value.startswith(":") and _SPEAKING.match(value):
        yield value  # with the commas of its text
        return
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
    if text.startswith("@") and not UNREADABLE.search(text):
        try:
            return Address("", parse_domain(text[1:]))
        except AddressError as error:
            raise _Bad(text, str(error)) from None
    return _address(text)


def _targets(
    value: str, file: str, line: int, problems: _Problems, known: dict[str, Address], *, included: bool
) -> Iterator[Target]:
    """The targets that can be used, up to MAX_TARGETS; the rest is reported.

    `known`: plain names and addresses of the file so far. Most files name the same few over and over; to look them up
    instead takes a third off the time for a large file, and more off its memory.
    """
    source = f"{file}:{line}"
    for count, text in enumerate(_split_targets(value), 1):
        if count > MAX_TARGETS:
            problems.add(line, text, f"only the first {MAX_TARGETS} targets are used")
            return
        address = known.get(text) or _plain(text)
        if address is not None:
            known[text] = address
            yield Name(address, source)
            continue
        try:
            target = _target(text, source)
            if included and not isinstance(target, Name | Include):
                # Whoever may write a list of addresses shall not be able to run programs by it, or to write files.
                raise _Bad(text, "an included file may name addresses and other files to include only")
            if count > 1 and isinstance(target, Special) and target.action is not Action.BLACKHOLE:
                raise _Bad(text, f":{target.action}: must be the only target")
            yield target
        except _Bad as bad:
            problems.add(line, bad.text, bad.why)


def _target(text: str, source: str) -> Target:
    special = _unquoted(text)  # "|command with arguments" and ":include:/a path" are quoted whole
    if special.startswith("|"):
        return _command(_unquoted(special[1:].strip()), text, source)
    if special.startswith("/"):
        return _file(special, text, source)
    if special[: len(_INCLUDE)].lower() == _INCLUDE:
        return _include(special[len(_INCLUDE) :].strip(), text, source)
    if special.startswith(":"):
        return _special(special, text, source)
    if text.startswith("\\"):
        try:
            return Name(_address(text[1:]), source, final=True)
        except _Bad as bad:
            raise _Bad(text, bad.why) from None
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    return Name(_address(text), source)


def _unquoted(text: str) -> str:
    """What is between the quotes of a text that is quoted whole; any other as it is."""
    quoted = _QUOTED_STRING.fullmatch(text)
    return re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text


def _command(command: str, text: str, source: str) -> Command:
    if not command or UNREADABLE.search(command):
        raise _Bad(text, "after the bar there must be a command")
    if command.startswith('"') and not _QUOTED_STRING.match(command):
        raise _Bad(text, "a quote is never closed")
    return Command(command, source)


def _file(path: str, text: str, source: str) -> File | Special:
    if UNREADABLE.search(path):
        raise _Bad(text, "there is a control character in the path, or something that is not UTF-8")
    if path == "/dev/null":
        return Special(Action.BLACKHOLE, "", source)
    bare = path.rstrip("/")
    if not bare:
        raise _Bad(text, "there is no file of that name")
    return File(bare, path != bare, source)


def _special(special: str, text: str, source: str) -> Special:
    match = _SPECIAL.fullmatch(special)
    if match is None:
        raise _Bad(text, "of the targets with colons :include:, :blackhole:, :fail: and :defer: are known")
    action, said = Action(match[1].lower()), match[2].strip()
    if action is Action.BLACKHOLE and said:
        raise _Bad(text, ":blackhole: tells nobody anything: it has no text")
    if len(said) > MAX_TEXT or not (said.isascii() and said.isprintable()):
        raise _Bad(text, f"the text of :{action}: must be printable ASCII, {MAX_TEXT} characters at most")
    return Special(action, said, source)


def _include(path: str, text: str, source: str) -> Include:
    if not path or UNREADABLE.search(path):
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
    if UNREADABLE.search(text):
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

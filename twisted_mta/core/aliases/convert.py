"""Alias files of other mail systems, rewritten as ours.

Besides aliases(5) itself: Postfix's virtual(5) and Sendmail's virtusertable, which have a blank where aliases(5) has a
colon, with the targets that only they know; and what Exim writes differently.
"""

from __future__ import annotations

import re

from twisted_mta.core.aliases.parse import MAX_TEXT, parse_aliases
from twisted_mta.core.aliases.targets import (
    Alias,
    AliasProblem,
    Command,
    Name,
    Special,
    Target,
    shorten,
)
from twisted_mta.core.values import value

#: A line without a colon behind the name: name, targets.
_TABLE = re.compile(r"([^\s:\"]+)[ \t]+(?!:(?:[ \t]|$))(\S.*)")
#: Targets with colons at both ends are no sign of aliases(5).
_SPECIAL = re.compile(r":[a-z]+:", re.I)
_ERROR = re.compile(r"error:(?:nouser|nohost|[0-9.]+)(?::[0-9]{3})?[ \t]*(.*)", re.I)
_UNKNOWN = re.compile(r":unknown:[ \t]*(.*)", re.I)
#: The name of an entry, of either kind.
_NAME = re.compile(r"([^\s:\"#]+)(?:[ \t]*:|[ \t])")
#: What Postfix's regexp_table(5) and pcre_table(5) have.
_REGEXP = re.compile(r"!?/|(?:if|endif)(?:[ \t]+!?/|$)", re.I)
#: In a virtusertable: any detail, or any but none.
_DETAIL = re.compile(r"\+[*+]@")
_PLAIN = re.compile(r'[^\s",#\\]+')


@value
class Converted:
    """A file in our format, comments kept, and what of the old one could not be taken."""

    text: str
    problems: tuple[AliasProblem, ...]


class _Unknown(Exception):
    """A line means something that an alias file can't say; the text says what to do."""


def convert(text: str, file: str) -> Converted:
    """Rewrite a file. `text` was decoded as for `parse_aliases`. Never raises."""
    lines = text.removeprefix("\ufeff").split("\n")
    domains = _domains_of(lines)
    found: dict[int, str] = {}
    problems: list[AliasProblem] = []
    translated: list[str] = []
    dropped = False
    for number, line in enumerate(lines, 1):
        content = line.strip()
        if not content or content.startswith("#"):
            found[number] = content
            translated.append("")
        elif line[0] in " \t":
            translated.append("" if dropped else line)
        else:
            dropped = False
            try:
                translated.append(_translate(content, domains))
            except _Unknown as unknown:
                problems.append(AliasProblem(file, number, shorten(content), str(unknown)))
                translated.append("")
                dropped = True
    parsed = parse_aliases("\n".join(translated), file)
    for entry in parsed.entries:
        found[entry.line] = written(entry)
    problems = sorted((*problems, *parsed.problems), key=lambda problem: problem.line)
    output = "\n".join(found[number] for number in sorted(found)).strip("\n")
    return Converted(output + "\n" if output else "", tuple(problems))


def _domains_of(lines: list[str]) -> frozenset[str]:
    """The domains of the addresses that have an entry, folded."""
    names = (_NAME.match(line) for line in lines)
    return frozenset(name[1].rpartition("@")[2].casefold() for name in names if name and "@" in name[1])


def _translate(line: str, domains: frozenset[str]) -> str:
    """One line as aliases(5) has it. `domains`: those with an address in the file."""
    if _REGEXP.match(line):
        raise _Unknown('patterns go into [virtual]: "sales-(.*)@example.org" = "{1}@example.net"')
    table = _TABLE.fullmatch(line)
    if table and not (table[2].startswith(":") and not _SPECIAL.match(table[2])):
        name, targets = table[1], table[2]
        if name.casefold() in domains:
            # Postfix's virtual(5): what stands behind it means nothing.
            raise _Unknown(f'that mail for {name} is taken is said in mta.toml: domains = ["{name}"]')
    else:
        name, colon, targets = line.partition(":")
        if not colon or line.startswith('"'):
            return line
        name, targets = name.strip(), targets.strip()
    if name == "*":
        raise _Unknown("a catch-all is written for each domain: @DOMAIN: target")
    if name.startswith("*@"):
        name = name[1:]
    if _DETAIL.search(name):
        raise _Unknown("this stands for all details, and so does an alias of the name without them")
    if re.search(r"%[0-9]", targets):
        raise _Unknown(f'parts of an address go into [virtual]: "(.*){_domain(name)}" = "{{1}}@..."')
    if name.startswith("@") and targets.startswith("@"):
        raise _Unknown(
            f'a whole domain is mapped by [[domain]], name = "{name[1:]}", alias_of = "{targets[1:]}"'
        )
    refused = _ERROR.fullmatch(targets) or _UNKNOWN.fullmatch(targets)
    if refused:
        return f"{name}: :fail: {refused[1].strip(chr(34))[:MAX_TEXT]}"
    return f"{name}: {targets}"


def _domain(name: str) -> str:
    return f"@{name.rpartition('@')[2]}" if "@" in name else "@DOMAIN"


def written(alias: Alias) -> str:
    """An entry as a line of a file, which reads as the same again."""
    name = str(alias.name) if alias.name.local else f"@{alias.name.domain}"
    return f"{name}: {', '.join(_written(target) for target in alias.targets)}"


def _written(target: Target) -> str:
    match target:
        case Name() | Special():
            return str(target)
        case Command():
            return _quoted(str(target))
    return str(target) if _PLAIN.fullmatch(str(target)) else _quoted(str(target))


def _quoted(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'

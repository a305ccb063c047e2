"""Reads alias files, the files that they include, and lists of recipients."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import attrs

from twisted_mta.config import schema
from twisted_mta.config.reading import read_at_most
from twisted_mta.core.address import Address
from twisted_mta.core.aliases import (
    Alias,
    AliasFile,
    AliasProblem,
    Include,
    Name,
    Target,
    parse_aliases,
    parse_include,
    shorten,
)
from twisted_mta.core.domains import Domain

#: Octets of an alias or include file that is read at all.
MAX_FILE = 64 << 20
#: Include files within include files, and include files in all.
MAX_INCLUDE_DEPTH = 10
MAX_INCLUDES = 1000


class Unusable(Exception):
    """A file must not or can't be read; the text says why."""


class Loader:
    """Reads alias files and the files that they include, each once."""

    def __init__(self) -> None:
        self.includes: dict[str, tuple[Target, ...]] = {}
        self.problems: list[AliasProblem] = []

    def aliases(self, path: Path) -> AliasFile:
        try:
            text = read_text(path)
        except Unusable as error:
            return AliasFile((), (AliasProblem(str(path), 0, "", f"the aliases are not used: {error}"),))
        parsed = parse_aliases(text, str(path))
        entries = tuple(
            attrs.evolve(entry, targets=self._resolve(entry.targets, path.parent, 1))
            if any(isinstance(target, Include) for target in entry.targets)
            else entry
            for entry in parsed.entries
        )
        return attrs.evolve(parsed, entries=entries)

    def recipients(self, path: Path, domain: str) -> frozenset[str] | None:
        """The folded addresses in a list of recipients, each on a line; None if it can't be read."""
        try:
            parsed = parse_include(read_text(path), str(path))
        except Unusable as error:
            self.problems.append(AliasProblem(str(path), 0, "", f"nobody is accepted for {domain}: {error}"))
            return None
        self.problems += parsed.problems
        found = set()
        for target in parsed.targets:
            if isinstance(target, Name) and not target.final:
                address = target.address
                found.add((address if address.domain else address.with_domain(domain)).folded)
            else:
                file, _, line = target.source.rpartition(":")
                why = "a list of recipients has addresses in it, and nothing else"
                self.problems.append(AliasProblem(file, int(line), shorten(str(target)), why))
        return frozenset(found)

    def _resolve(self, targets: tuple[Target, ...], folder: Path, depth: int) -> tuple[Target, ...]:
        """The targets with absolute paths in their includes, which are read."""
        return tuple(
            self._include(target, folder, depth) if isinstance(target, Include) else target
            for target in targets
        )

    def _include(self, include: Include, folder: Path, depth: int) -> Include:
        # A path is compared as text, so that one file read by two ways is one file, but links are left alone.
        path = os.path.normpath(folder / include.path)
        if path in self.includes:
            return attrs.evolve(include, path=path)
        self.includes[path] = ()  # also ends an include that leads to itself; expansion names that loop
        file, _, line = include.source.rpartition(":")
        try:
            if depth > MAX_INCLUDE_DEPTH:
                raise Unusable(f"more than {MAX_INCLUDE_DEPTH} files include one another")
            if len(self.includes) > MAX_INCLUDES:
                raise Unusable(f"there are more than {MAX_INCLUDES} files to include")
            parsed = parse_include(read_text(Path(path)), path)
        except Unusable as error:
            why = f"the included file is not used: {error}"
            self.problems.append(AliasProblem(file, int(line), include.path, why))
            return attrs.evolve(include, path=path)
        self.problems += parsed.problems
        self.includes[path] = self._resolve(parsed.targets, Path(path).parent, depth + 1)
        return attrs.evolve(include, path=path)


def read_text(path: Path) -> str:
    """The text of a file that only its owner and group can change."""
    try:
        # O_NONBLOCK: a FIFO must not hold up the load.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Unusable("it is not a regular file")
            if status.st_mode & stat.S_IWOTH:
                raise Unusable("everybody can write to it (chmod o-w)")
            data = read_at_most(file, MAX_FILE + 1)
    except OSError as error:
        raise Unusable(error.strerror or str(error)) from None
    except ValueError as error:  # a NUL in the path
        raise Unusable(str(error)) from None
    if len(data) > MAX_FILE:
        raise Unusable(f"it is larger than {MAX_FILE} octets")
    return data.decode("utf-8", "surrogateescape")


def load_domain(block: schema.Domain, config: schema.Config, loader: Loader) -> tuple[Domain, AliasFile]:
    """One [[domain]] with what its files say, and the entries of them that are not for its names alone."""
    own: dict[str, Alias] = {}
    rest: list[Alias] = []
    problems: list[AliasProblem] = []
    for path in block.aliases:
        parsed = loader.aliases(path)
        problems += parsed.problems
        for entry in parsed.entries:
            if not entry.name.domain:
                first = own.setdefault(entry.name.local.casefold(), entry)
                if first is not entry:
                    why = f"the name is already an alias at {first.source}, which is used"
                    problems.append(AliasProblem(entry.file, entry.line, shorten(entry.name.local), why))
            elif block.covers(entry.name.domain):
                rest.append(entry)
            else:
                why = f"the file is for {block.name} only (domain.aliases)"
                problems.append(AliasProblem(entry.file, entry.line, shorten(str(entry.name)), why))
    recipients, unreadable = None, False
    if block.recipients is not None:
        recipients = loader.recipients(block.recipients, block.name)
        unreadable = recipients is None
    catch_all = None
    if block.catch_all:
        file, _, line = block.source.rpartition(":")
        catch_all = Alias(Address("", block.name), block.catch_all, file, int(line))
    domain = Domain(
        name=block.name,
        source=block.source,
        alias_of=block.alias_of,
        relay=block.relay,
        recipients=recipients,
        unreadable=unreadable,
        callout=block.callout,
        postmaster=block.postmaster,
        separator=config.separator_of(block),
        aliases=own,
        catch_all=catch_all,
        message_size=block.message_size,
    )
    return domain, AliasFile(tuple(rest), tuple(problems))

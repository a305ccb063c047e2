"""Entries of several files in one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from twisted_mta.core.address import Address
from twisted_mta.core.aliases.parse import MAX_PROBLEMS
from twisted_mta.core.aliases.targets import Alias, AliasFile, AliasProblem, shorten
from twisted_mta.core.values import value


@value
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

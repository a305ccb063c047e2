"""The domains that we take mail for, and what holds in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Alias
from twisted_mta.core.values import value


@value(kw_only=True)
class Domain:
    """One domain. `name` is lower-case; ".example.org" stands for all subdomains of example.org, but not for itself."""

    name: str
    #: Where it is written: "mta.toml:12"; "" for one that is only named.
    source: str = ""
    #: Its addresses are those of this other domain.
    alias_of: str = ""
    #: Its mail goes on to its own servers (RFC 5321 §3.6: we are a relay for it, such as a backup MX).
    relay: bool = False
    #: For a relay: who exists there, folded addresses; None: that is not known here.
    recipients: frozenset[str] | None = None
    #: For a relay: its servers are asked who exists there.
    callout: bool = False
    #: For a relay: the list of recipients can't be read, so nobody can be accepted for now.
    unreadable: bool = False
    #: Who gets the mail for its postmaster; None: the same as everywhere.
    postmaster: Address | None = None
    #: Begins the detail in alice+news@; "": there is none.
    separator: str = "+"
    #: Names that hold in it alone, folded.
    aliases: Mapping[str, Alias] = attrs.field(factory=dict, repr=False)
    #: What takes the mail that nobody else does.
    catch_all: Alias | None = None
    #: Octets of a message that are taken for it; 0: as everywhere.
    message_size: int = 0

    @property
    def is_local(self) -> bool:
        """Whether its mail ends here."""
        return not self.relay

    @property
    def is_own(self) -> bool:
        """Whether it has users of its own."""
        return not (self.relay or self.alias_of)


class Domains:
    """All of them, found by name: the domain itself before the nearest wildcard around it."""

    def __init__(self, domains: Iterable[Domain]) -> None:
        self._exact: dict[str, Domain] = {}
        self._wild: dict[str, Domain] = {}
        for domain in domains:
            where = self._wild if domain.name.startswith(".") else self._exact
            where.setdefault(domain.name, domain)

    def find(self, name: str) -> Domain | None:
        """The rules for a domain (lower-case); None for one that we have nothing to do with."""
        found = self._exact.get(name)
        if found is not None or not self._wild:
            return found
        dot = name.find(".")
        while dot >= 0:
            found = self._wild.get(name[dot:])
            if found is not None:
                return found
            dot = name.find(".", dot + 1)
        return None

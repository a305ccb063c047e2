"""What the destinations of mail are like, at which time: the world of a simulation.

    --down example.org=3d         out of reach for three days, from the beginning
    --down example.org=3d@2h      ... from two hours after it
    --slow example.org=20s        each message takes 20 seconds there
    --greylist example.org=10m    takes a message only ten minutes after the first attempt
    --tempfail example.org=1d     answers 451 for a day
    --reject example.org          refuses everybody

".example.org" stands for all subdomains of example.org, "*" for everything. Times are seconds since the beginning.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

from twisted_mta.core.address import AddressError, parse_domain
from twisted_mta.core.schedule import parse_duration
from twisted_mta.core.values import value


class Kind(enum.StrEnum):
    """What may be the matter with a destination."""

    DOWN = "down"
    SLOW = "slow"
    GREYLIST = "greylist"
    TEMPFAIL = "tempfail"
    REJECT = "reject"


#: Those that end, and so may also begin later.
_PASSING = frozenset((Kind.DOWN, Kind.TEMPFAIL))


@value
class Condition:
    """One thing that is the matter with a destination.

    `seconds` is how long it lasts, a message takes, or a stranger must wait; `start` when it begins.
    """

    kind: Kind
    pattern: str
    seconds: float = 0.0
    start: float = 0.0

    @classmethod
    def parse(cls, kind: Kind, text: str) -> Condition:
        """From "DOMAIN=DURATION[@START]", or "DOMAIN" for REJECT. Raises ValueError, fit for a user."""
        name, equals, rest = text.partition("=")
        pattern = _pattern(name.strip())
        if kind is Kind.REJECT:
            if equals:
                raise ValueError(f"{text!r} is more than a domain")
            return cls(kind, pattern)
        if not equals:
            raise ValueError(f"{text!r} lacks a duration, as in {name}=3d")
        duration, at, start = rest.partition("@")
        if at and kind not in _PASSING:
            raise ValueError(f"{kind} lasts for ever, so it has no beginning: write {name}={duration}")
        return cls(kind, pattern, parse_duration(duration), parse_duration(start) if at else 0.0)

    def fits(self, destination: str) -> bool:
        """Whether it speaks of this destination (lower case)."""
        if self.pattern.startswith("."):
            return destination.endswith(self.pattern)
        return self.pattern in ("*", destination)

    def holds(self, since: float) -> bool:
        """Whether it is so at `since`."""
        return self.kind not in _PASSING or self.start <= since < self.start + self.seconds

    def __str__(self) -> str:
        return f"{self.kind} {self.pattern}"


def _pattern(name: str) -> str:
    if name == "*":
        return name
    dot, domain = ("." if name.startswith(".") else ""), name.removeprefix(".")
    try:
        return dot + parse_domain(domain)
    except AddressError as error:
        raise ValueError(f"{name!r} is no domain: {error}") from None


class Conditions:
    """What is the matter where. Of several conditions of one kind for a destination the first that holds counts."""

    def __init__(self, conditions: Iterable[Condition]) -> None:
        self.conditions: Sequence[Condition] = tuple(conditions)
        #: Destination -> what may be the matter with it.
        self._known: dict[str, tuple[Condition, ...]] = {}

    def at(self, destination: str, since: float) -> dict[Kind, Condition]:
        """What is the matter with a destination at a time."""
        found = self._known.get(destination)
        if found is None:
            name = destination.lower()
            found = tuple(each for each in self.conditions if each.fits(name))
            self._known[destination] = found
        return {each.kind: each for each in reversed(found) if each.holds(since)} if found else {}

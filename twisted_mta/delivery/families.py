"""In which order the addresses of a host are tried: RFC 8305 §4, with a memory for a family that does not work here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain, zip_longest

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

#: So many races lost in a row, over all hosts, and a family is no longer tried first ...
STRIKES = 3
#: ... for so many seconds. What is wrong with the network of this machine is seldom over sooner.
PENALTY = 600.0


def family(address: str) -> str:
    """ "ipv4" or "ipv6": as [relay] families names them."""
    return "ipv6" if ":" in address else "ipv4"


class Families:
    """What is known of IPv4 and IPv6 here."""

    log = Logger()

    def __init__(self, clock: IReactorTime, preferred: Sequence[str]) -> None:
        """`preferred` are the families to be used, the best first."""
        self._clock = clock
        self.preferred = preferred
        self._strikes: dict[str, int] = {}
        self._ailing: dict[str, float] = {}

    def order(self, addresses: Sequence[str], bound: Collection[str] = ()) -> list[str]:
        """The addresses of one host in the order to try them, the families in turn, each in the order given.

        Families in `bound` come first, if there are any: those for which there is an address to send from.
        """
        now = self._clock.seconds()
        groups = [
            [address for address in addresses if family(address) == one]
            for one in sorted(
                self.preferred,
                key=lambda one: (bool(bound) and one not in bound, self._ailing.get(one, 0.0) > now),
            )
        ]
        return [address for address in chain.from_iterable(zip_longest(*groups)) if address is not None]

    def ended(self, winner: str, losers: Collection[str]) -> None:
        """A race was won by one address; the losers were begun before it, and did not get there."""
        best = family(winner)
        self._strikes.pop(best, None)
        self._ailing.pop(best, None)
        for one in {family(loser) for loser in losers} - {best}:
            self._strikes[one] = self._strikes.get(one, 0) + 1
            if self._strikes[one] >= STRIKES:
                if self._ailing.get(one, 0.0) <= self._clock.seconds():
                    self.log.warn(
                        "{family} seems not to work here: for {seconds:.0f} s the other family is tried first",
                        family=one,
                        seconds=PENALTY,
                    )
                self._ailing[one] = self._clock.seconds() + PENALTY

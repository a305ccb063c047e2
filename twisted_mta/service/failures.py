"""Failed logins by address: each makes the next one slower, and too many end it for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network

#: Seconds after the last failure until all are forgotten.
FORGET = 900.0
#: Seconds that an answer is held back at most; clients wait longer.
MAX_DELAY = 16.0
#: Addresses remembered; the longest quiet are forgotten first.
MAX_ADDRESSES = 10_000


class Failures:
    """The table. `seconds` tells the time; from `limit` failures on an address is refused."""

    def __init__(self, seconds: Callable[[], float], limit: int) -> None:
        self._seconds = seconds
        self.limit = limit
        #: Network -> (failures, time of the last), that of longest ago first.
        self._known: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def note(self, address: str) -> float:
        """A login failed: the seconds to hold back the answer. The first is free, for those who mistype."""
        key = _network(address)
        count = self._count(key) + 1
        self._known[key] = count, self._seconds()
        self._known.move_to_end(key)
        while len(self._known) > MAX_ADDRESSES:
            self._known.popitem(last=False)
        return float(min(2 ** min(count - 2, 10), MAX_DELAY)) if count > 1 else 0.0

    def minutes_left(self, address: str) -> int:
        """For how long logins from there are refused; 0: they are not.

        This host is only slowed down: a webmail there brings the logins of everybody.
        """
        key = _network(address)
        if self._count(key) < self.limit or _is_loopback(key):
            return 0
        _, last = self._known[key]
        return max(1, round((last + FORGET - self._seconds()) / 60))

    def _count(self, key: str) -> int:
        count, last = self._known.get(key, (0, 0.0))
        if count and self._seconds() - last >= FORGET:
            del self._known[key]
            return 0
        return count


def _network(address: str) -> str:
    """Who has one IPv6 address has the /64 that it is in."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and not parsed.is_loopback:
        return str(ip_network((parsed, 64), strict=False))
    return str(parsed)


def _is_loopback(key: str) -> bool:
    return key == "::1" or key.startswith("127.")

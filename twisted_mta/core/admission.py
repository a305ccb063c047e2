"""How many connections a client may have, and how fast it may open them: counted by address, by network and by service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

import attrs

from twisted_mta.core.values import value

#: Clients whose rate is remembered; beyond that the one that came least recently is forgotten.
MAX_CLIENTS = 65536
#: What a rate is counted by, seconds.
_PERIOD = 60.0


@value(kw_only=True)
class Bounds:
    """What is allowed."""

    #: Connections at a time: in all, from one address, and from one network (an IPv4 /24, an IPv6 /64).
    total: int = 10000
    per_address: int = 100
    per_network: int = 500
    #: New connections in a minute from one IPv4 address or IPv6 /64; 0: any number.
    rate: int = 0
    #: Clients that only the total is for.
    exempt: tuple[IPv4Network | IPv6Network, ...] = ()
    #: Service -> how many of the total it is sure of: the others leave them free. No more than the total, all together.
    sure: Mapping[str, int] = attrs.field(factory=dict)


@value
class _Client:
    parsed: IPv4Address | IPv6Address
    address: str
    network: str
    #: A customer has one IPv4 address, but 2^64 IPv6 addresses at least.
    customer: str

    @classmethod
    @lru_cache(4096)
    def of(cls, host: str) -> _Client:
        address: IPv4Address | IPv6Address | None = ip_address(host.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if isinstance(address, IPv4Address):
            return cls(address, str(address), str(address).rpartition(".")[0], str(address))
        assert address is not None
        network = address.exploded[:19]
        return cls(address, str(address), network, network)


class Admission:
    """Counts the connections of a server, at all its listeners together. `seconds` tells the time.

    A `service` is what clients connect to, a name such as "imap"; "" is sure of nothing. Whoever has no address (a UNIX
    socket), or is exempt, counts for the total and the service only.
    """

    def __init__(self, bounds: Bounds, seconds: Callable[[], float]) -> None:
        #: May be replaced at any time; connections that are open stay.
        self.bounds = bounds
        self._seconds = seconds
        #: Connections that are open.
        self.total = 0
        #: ... by address, by network and by service, which never look alike.
        self._open: dict[str, int] = {}
        #: Customer -> when its allowance would be whole again, those who came last at the end.
        self._whole_at: dict[str, float] = {}
        #: What other processes of this server have, in the same way.
        self._total_elsewhere = 0
        self._elsewhere: dict[str, int] = {}
        self._news: _News | None = None

    # --- with other processes -------------------------------------------------------------------

    def share(self, changed: Callable[[], None]) -> None:
        """Take note of what the other processes must know; `changed` is called when there is something."""
        self._news = _News(changed)

    def take_news(self) -> dict[str, Any]:
        """What changed since the last time: the "total", the "counts" of addresses, networks and services, and how many
        connections were "granted" to whom."""
        assert self._news is not None  # only who shares asks
        keys, granted = self._news.take()
        counts = {key: self._open.get(key, 0) for key in keys}
        return {"total": self.total, "counts": counts, "granted": granted}

    def hear(self, total: int, counts: Mapping[str, int], granted: Mapping[str, int]) -> None:
        """What all others together have, as far as it changed."""
        self._total_elsewhere = total
        for key, count in counts.items():
            if count:
                self._elsewhere[key] = count
            else:
                self._elsewhere.pop(key, None)
        for customer, times in granted.items() if self.bounds.rate else ():
            self._charge(customer, times * _PERIOD / self.bounds.rate)

    # --- connections -----------------------------------------------------------------------------

    def counted(self, host: str) -> str:
        """What to `enter` and `leave` for a client at an IP address: "" if it is exempt, as one without an address.

        To be asked once for each connection: who is exempt may change while it is open.
        """
        if not host or not self.bounds.exempt:
            return host
        address = _Client.of(host).parsed
        return "" if any(address in network for network in self.bounds.exempt) else host

    def enter(self, host: str, service: str = "") -> str:
        """Count a connection from an IP address ("" for none) and return ""; or count nothing and return why not."""
        refusal = self.refusal(host, service)
        customer = _Client.of(host).customer if host else ""
        if customer and self.bounds.rate:
            # A refused attempt costs nothing: a client that keeps to the rate from now on is let in again.
            self._charge(customer, 0.0 if refusal else _PERIOD / self.bounds.rate)
        if not refusal:
            self._count(host, service, 1)
            if customer and self._news is not None:
                self._news.grant(customer)
        return refusal

    def refusal(self, host: str, service: str = "") -> str:
        """What `enter` would return, without counting anything."""
        bounds = self.bounds
        full = self._full(service)
        if full or not host:
            return full
        client = _Client.of(host)
        if self._everywhere(client.address) >= bounds.per_address:
            return f"it has {bounds.per_address} connections (limits.connections_per_address)"
        if self._everywhere(client.network) >= bounds.per_network:
            return f"its network has {bounds.per_network} connections (limits.connections_per_network)"
        if bounds.rate and not self._in_rate(client.customer, bounds.rate):
            return f"more than {bounds.rate} connections in a minute (limits.connection_rate)"
        return ""

    def leave(self, host: str, service: str = "") -> None:
        """A connection that was let in is gone."""
        self._count(host, service, -1)

    def open(self, service: str) -> int:
        """How many connections that service has in this process."""
        return self._open.get(service, 0)

    def _everywhere(self, key: str) -> int:
        return self._open.get(key, 0) + self._elsewhere.get(key, 0)

    def _full(self, service: str) -> str:
        """Why that service can't have another connection, whoever it is from; "" if it can."""
        total, sure = self.bounds.total, self.bounds.sure
        count = self.total + self._total_elsewhere
        if count < total - sum(sure.values()):
            return ""  # there is room for all that is kept
        if self._everywhere(service) < sure.get(service, 0):
            # Even beyond the total: several processes at once, or a reload, may have let the others go too far.
            return ""
        if count >= total:
            return f"{total} connections are open (limits.connections)"
        kept = sum(max(0, sure[other] - self._everywhere(other)) for other in sure if other != service)
        if count >= total - kept:
            return (
                f"{count} connections are open, {kept} are kept for other services (limits.connections_share)"
            )
        return ""

    def _count(self, host: str, service: str, change: int) -> None:
        keys = [service]
        if host:
            client = _Client.of(host)
            keys += client.address, client.network
        self.total += change
        for key in keys:
            count = self._open.get(key, 0) + change
            if count:
                self._open[key] = count
            else:
                del self._open[key]
        if self._news is not None:
            self._news.note(*keys)

    def _wait(self, customer: str) -> float:
        """Seconds until the allowance of a customer is whole again."""
        now = self._seconds()
        # Nobody waits longer than the period, not even when the clock was set back.
        return min(max(self._whole_at.get(customer, now) - now, 0.0), _PERIOD)

    def _in_rate(self, customer: str, rate: int) -> bool:
        """A full minute's allowance at once, and it grows back evenly."""
        return self._wait(customer) <= _PERIOD - _PERIOD / rate + 1e-6

    def _charge(self, customer: str, cost: float) -> None:
        whole_at = self._seconds() + self._wait(customer) + cost
        self._whole_at.pop(customer, None)
        self._whole_at[customer] = whole_at
        if len(self._whole_at) > MAX_CLIENTS:
            del self._whole_at[next(iter(self._whole_at))]


class _News:
    """What others have not been told."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._due = False
        self._keys: set[str] = set()
        self._granted: Counter[str] = Counter()

    def note(self, *keys: str) -> None:
        self._keys.update(keys)
        if not self._due:
            self._due = True
            self._changed()

    def grant(self, customer: str) -> None:
        self._granted[customer] += 1

    def take(self) -> tuple[set[str], Counter[str]]:
        keys, granted = self._keys, self._granted
        self._keys, self._granted, self._due = set(), Counter(), False
        return keys, granted

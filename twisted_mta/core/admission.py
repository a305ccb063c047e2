"""How many connections a client may have, and how fast it may open them: counted by address and by network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import attrs

#: Clients whose rate is remembered; beyond that the one that came least recently is forgotten.
MAX_CLIENTS = 65536
#: What a rate is counted by, seconds.
_PERIOD = 60.0


@attrs.frozen(kw_only=True)
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


@attrs.frozen
class _Client:
    address: str
    network: str
    #: A customer has one IPv4 address, but 2^64 IPv6 addresses at least.
    customer: str

    @classmethod
    def of(cls, host: str) -> _Client:
        address: IPv4Address | IPv6Address | None = ip_address(host.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if isinstance(address, IPv4Address):
            return cls(str(address), str(address).rpartition(".")[0], str(address))
        assert address is not None
        network = address.exploded[:19]
        return cls(str(address), network, network)


class Admission:
    """Counts the connections of a server, at all its listeners together. `seconds` tells the time.

    Whoever has no address (a UNIX socket), or is exempt, counts for the total only.
    """

    def __init__(self, bounds: Bounds, seconds: Callable[[], float]) -> None:
        #: May be replaced at any time; connections that are open stay.
        self.bounds = bounds
        self._seconds = seconds
        #: Connections that are open.
        self.total = 0
        self._addresses: Counter[str] = Counter()
        self._networks: Counter[str] = Counter()
        #: Customer -> when its allowance would be whole again, those who came last at the end.
        self._whole_at: dict[str, float] = {}

    def counted(self, host: str) -> str:
        """What to `enter` and `leave` for a client at an IP address: "" if it is exempt, as one without an address.

        To be asked once for each connection: who is exempt may change while it is open.
        """
        if not host or not self.bounds.exempt:
            return host
        address = ip_address(_Client.of(host).address)
        return "" if any(address in network for network in self.bounds.exempt) else host

    def enter(self, host: str) -> str:
        """Count a connection from an IP address ("" for none) and return ""; or count nothing and return why not."""
        refusal = self.refusal(host)
        if host:
            client = _Client.of(host)
            if self.bounds.rate:
                # A refused attempt costs nothing: a client that keeps to the rate from now on is let in again.
                self._charge(client.customer, 0.0 if refusal else _PERIOD / self.bounds.rate)
            if not refusal:
                self._addresses[client.address] += 1
                self._networks[client.network] += 1
        self.total += not refusal
        return refusal

    def refusal(self, host: str) -> str:
        """What `enter` would return, without counting anything."""
        bounds = self.bounds
        if self.total >= bounds.total:
            return f"{bounds.total} connections are open (limits.connections)"
        if not host:
            return ""
        client = _Client.of(host)
        if self._addresses[client.address] >= bounds.per_address:
            return f"it has {bounds.per_address} connections (limits.connections_per_address)"
        if self._networks[client.network] >= bounds.per_network:
            return f"its network has {bounds.per_network} connections (limits.connections_per_network)"
        if bounds.rate and not self._in_rate(client.customer, bounds.rate):
            return f"more than {bounds.rate} connections in a minute (limits.connection_rate)"
        return ""

    def leave(self, host: str) -> None:
        """A connection that was let in is gone."""
        self.total -= 1
        if not host:
            return
        client = _Client.of(host)
        for counter, key in ((self._addresses, client.address), (self._networks, client.network)):
            counter[key] -= 1
            if counter[key] <= 0:
                del counter[key]

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

"""Where mail for a domain goes: the choice of hosts, RFC 5321 §5.1, without any I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import attrs

from twisted_mta.core.address import literal_ip
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value

#: How many hosts of one domain are tried in one attempt: RFC 5321 §5.1 allows a limit, of at least two addresses.
MAX_TARGETS = 20


class NoSuchDomain(Exception):
    """The DNS says that the name does not exist (NXDOMAIN)."""


class LookupFailed(Exception):
    """The DNS gave no usable answer in time (SERVFAIL, timeout, nonsense); trying later may work."""


class NextHop(Protocol):
    """A configured route: `host` and `port`; with `mx` the host's own MX records are followed.

    (The fields of config.schema.Route, which the core does not import.)
    """

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def mx(self) -> bool: ...


V = TypeVar("V")
H = TypeVar("H", bound=NextHop)


class Shuffler(Protocol):
    """The part of random.Random that is needed here."""

    def random(self) -> float:
        """A number from 0 up to, but not including, 1."""
        ...


@value
class Target:
    """A host to try. `host` is a name, or an IP address as text where `literal`."""

    host: str
    port: int
    literal: bool = False
    #: Of its MX record: lower ones are tried first.
    preference: int = 0


class Unroutable(Exception):
    """There is nowhere to send it: `reply` says why, and its class whether trying later may help."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


def most_specific(table: Mapping[str, V], domain: str) -> V | None:
    """The entry for a domain: its own, else that of the longest ".suffix", which stands for all subdomains of suffix."""
    if not table:  # mostly, and this is asked for each attempt
        return None
    found = table.get(domain)
    rest = domain
    while found is None and not domain.startswith("[") and "." in rest:
        rest = rest.partition(".")[2]
        found = table.get(f".{rest}")
    return found


@value(kw_only=True)
class Routing(Generic[H]):
    """The configured exceptions from "by MX"."""

    smarthost: H | None = None
    #: Domain -> next hop; ".example.org" stands for all subdomains of example.org, at any depth.
    routes: Mapping[str, H] = attrs.field(factory=dict)
    #: The port for what goes by MX.
    port: int = 25

    def next_hop(self, domain: str) -> H | None:
        """The configured next hop for a domain: the most specific route, else the smarthost; None: by MX."""
        return most_specific(self.routes, domain) or self.smarthost

    def destination(self, domain: str) -> str:
        """The key by which recipients share a connection: the domain, or the next hop as written in the configuration."""
        hop = self.next_hop(domain)
        if hop is None:
            return domain
        return f"{'mx ' if hop.mx else ''}{hop.host} {hop.port}"


def dns_name(domain: str) -> str:
    """The domain as the DNS knows it, with A-labels (RFC 5890 §2.3.2.1). Raises Unroutable for what can't be one."""
    try:
        # The root label may have been typed; empty and overlong labels are what the codec objects to.
        name = domain if domain.isascii() else domain.encode("idna").decode("ascii")
        if not name or len(name) > 253 or any(not 0 < len(label) < 64 for label in name.split(".")):
            raise UnicodeError("its labels are empty or too long")
    except UnicodeError as error:
        raise Unroutable(Reply(550, "5.1.2", f"{domain!r} can't be a domain name: {error}")) from None
    return name.lower()


def literal_target(domain: str, port: int) -> Target | None:
    """The target of an address literal (RFC 5321 §4.1.3); None for a domain name. Raises Unroutable."""
    if not domain.startswith("["):
        return None
    address = literal_ip(domain)
    if not address:
        raise Unroutable(Reply(550, "5.1.2", f"{domain} is an address literal that we can't use"))
    return Target(address, port, literal=True)


def by_mx(
    domain: str, answer: Sequence[tuple[int, str]], own_names: Collection[str], port: int, random: Shuffler
) -> list[Target]:
    """The hosts for a domain in the order in which to try them, from its MX records. Raises Unroutable.

    `own_names` are the lower-case names that this host goes by.
    """
    if not answer:
        return [Target(domain, port)]  # RFC 5321 §5.1: the implicit MX
    if all(host in ("", ".") for _, host in answer):  # RFC 7505 §3
        raise Unroutable(Reply(556, "5.1.10", f"{domain} accepts no mail (it has a null MX)"))
    usable = [(preference, host) for preference, host in answer if host not in ("", ".")]
    # RFC 5321 §5.1: our own preference and everything above it is cut, or mail would go in circles.
    own = [preference for preference, host in usable if host in own_names]
    if own:
        usable = [(preference, host) for preference, host in usable if preference < min(own)]
    if not usable:
        raise ourselves(domain)
    # RFC 5321 §5.1: by preference, and in random order among equals.
    order = sorted((preference, random.random(), host) for preference, host in usable)
    targets: dict[str, Target] = {}
    for preference, _, host in order:
        targets.setdefault(host, Target(host, port, preference=preference))
    return list(targets.values())[:MAX_TARGETS]


def ourselves(domain: str, host: str = "") -> Unroutable:
    """RFC 5321 §5.1: sending it would be a loop; RFC 3463 §3.5: X.4.6. `host` is the name that hides this host."""
    known_as = f", known as {host}" if host else ""
    text = f"the best MX of {domain} is this host{known_as}, which does not accept its mail"
    return Unroutable(Reply(550, "5.4.6", text))


def no_such_domain(domain: str) -> Unroutable:
    """RFC 5321 §5.1: a name that does not exist is an error for good; RFC 3463 §3.2: X.1.2 bad destination system address."""
    return Unroutable(Reply(550, "5.1.2", f"the domain {domain} does not exist"))


def lookup_failed(domain: str, why: str) -> Unroutable:
    """RFC 5321 §5.1: after a temporary error the message stays queued; RFC 3463 §3.5: X.4.3 directory server failure."""
    return Unroutable(Reply(451, "4.4.3", f"can't look up {domain}: {why}"))


def no_address(domain: str, hosts: Sequence[str]) -> Unroutable:
    """None of the hosts has an address: RFC 5321 §5.1 wants it reported; RFC 3463 §3.5: X.4.4 unable to route."""
    if list(hosts) == [domain]:
        why = f"{domain} has neither MX nor address records"
    else:
        why = f"no mail host of {domain} has an address ({', '.join(hosts)})"
    return Unroutable(Reply(550, "5.4.4", why))

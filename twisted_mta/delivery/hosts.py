"""From a domain to the hosts that take its mail, and from these to their addresses: RFC 5321 §5.1."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Sequence
from itertools import groupby

from twisted.internet.defer import Deferred

from twisted_mta.config.schema import Route
from twisted_mta.core.replies import Reply
from twisted_mta.core.route import (
    LookupFailed,
    NoSuchDomain,
    Routing,
    Shuffler,
    Target,
    Unroutable,
    by_mx,
    dns_name,
    literal_target,
    lookup_failed,
    no_address,
    no_such_domain,
    ourselves,
)
from twisted_mta.core.values import value
from twisted_mta.interfaces import IMailResolver

#: (address, port) -> whether it is this server that listens there.
IsOwn = Callable[[str, int], bool]


@value
class Way:
    """Where the mail for one domain goes."""

    #: As in the address.
    domain: str
    #: The hosts in the order in which to try them.
    targets: tuple[Target, ...]
    #: The configured next hop; None: by the domain's own MX records.
    hop: Route | None = None

    @property
    def fixed(self) -> bool:
        """Whether the configuration names the host, so that its certificate can prove it."""
        return self.hop is not None and not self.hop.mx

    def levels(self) -> Sequence[Sequence[Target]]:
        """The targets, those of equal preference together."""
        return [list(level) for _, level in groupby(self.targets, lambda target: target.preference)]

    def nowhere(self) -> Reply:
        """The reply where none of the hosts has an address."""
        reply = no_address(self.domain, [target.host for target in self.targets]).reply
        return reply if self.hop is None else _bad_route(self.domain, reply)


@value
class Host:
    """A target with its addresses as text. Without any, `reply` says why: they can't be looked up, or there are none."""

    target: Target
    addresses: tuple[str, ...] = ()
    reply: Reply | None = None


class Hosts:
    """Asks the DNS. Holds no state but the configured routes."""

    def __init__(
        self, resolver: IMailResolver, random: Shuffler, hostname: str, routing: Routing[Route], is_own: IsOwn
    ) -> None:
        self._resolver = resolver
        self._random = random
        self._own_names = {hostname.lower()}
        self._is_own = is_own
        self.routing = routing
        #: Where others reach us though no interface has the address; at the port for what goes by MX.
        self.own_addresses: Collection[str] = ()

    async def way(self, domain: str, hop: Route | None) -> Way:
        """Where mail for a domain goes, by that hop if there is one. Raises Unroutable."""
        if hop is None:
            return Way(domain, await self._mail_hosts(domain, self.routing.port))
        try:
            targets = await self._mail_hosts(hop.host, hop.port) if hop.mx else (_fixed_target(hop),)
        except Unroutable as error:
            # A wrong route is the administrator's to mend: no reason to bounce.
            raise Unroutable(_bad_route(domain, error.reply)) from None
        return Way(domain, targets, hop)

    async def _mail_hosts(self, domain: str, port: int) -> tuple[Target, ...]:
        literal = literal_target(domain, port)
        if literal is not None:
            return (literal,)
        name = dns_name(domain)
        try:
            answer = await self._resolver.mx(name)
        except NoSuchDomain:
            raise no_such_domain(domain) from None
        except LookupFailed as error:
            raise lookup_failed(domain, str(error)) from None
        return tuple(by_mx(name, answer, self._own_names, port, self._random))

    async def resolve(self, way: Way, level: Sequence[Target]) -> Sequence[Host]:
        """The hosts of one preference with their addresses, looked up side by side.

        Raises Unroutable where one of them is this very server: neither these hosts nor those behind are to be tried.
        """
        asked = [Deferred.fromCoroutine(self._host(target)) for target in level]
        hosts = [await one for one in asked]
        for host in hosts:
            # RFC 5321 §5.1: our own preference and everything above it is cut; here we know ourselves by address.
            if any(self._is_ours(address, host.target.port) for address in host.addresses):
                reply = ourselves(way.domain, host.target.host).reply
                raise Unroutable(reply if way.hop is None else _bad_route(way.domain, reply))
        return hosts

    def _is_ours(self, address: str, port: int) -> bool:
        if address in self.own_addresses and port == self.routing.port:
            return True
        return self._is_own(address, port)

    async def _host(self, target: Target) -> Host:
        if target.literal:
            return Host(target, (target.host,))
        try:
            return Host(target, tuple(await self._resolver.addresses(target.host)))
        except NoSuchDomain:
            return Host(target)
        except LookupFailed as error:
            return Host(target, reply=lookup_failed(target.host, str(error)).reply)


def _fixed_target(hop: Route) -> Target:
    """A configured host, which may be an IP address, with or without brackets."""
    literal = literal_target(hop.host, hop.port)
    if literal is not None:
        return literal
    try:
        return Target(str(ipaddress.ip_address(hop.host)), hop.port, literal=True)
    except ValueError:
        return Target(hop.host, hop.port)


def _bad_route(domain: str, reply: Reply) -> Reply:
    return Reply(451, "4.4.4", f"the route for {domain} leads nowhere: {reply.text}")

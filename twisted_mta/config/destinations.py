"""How mail is sent to each destination: [relay], its routes, [[relay.domain]] and [[relay.source]] taken together."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from twisted_mta.config.fields import host_and_port
from twisted_mta.config.schema import Relay, RelayDomain, Route
from twisted_mta.core.address import Address
from twisted_mta.core.route import Routing, most_specific
from twisted_mta.core.tls_policy.decision import Require
from twisted_mta.core.values import value

#: Domains that are remembered with their destinations.
_MAX_KNOWN = 10_000


@value(kw_only=True)
class Manner:
    """How to send to a destination. The fields are those of [[relay.domain]]; None: nothing is said of it there."""

    #: The first of the names there; "" for what is not named.
    name: str = ""
    concurrency: int
    rate: int
    max_messages: int
    max_recipients: int
    connect_timeout: float
    bind: tuple[str, ...] | None = None
    schedule: tuple[float, ...] | None = None
    expire: float | None = None
    require: Require | None = None
    hosts: tuple[str, ...] = ()


@value
class Destination:
    """Where the mail for a domain goes, and how."""

    #: What recipients have in common who share a connection, and its limits. Made for people too.
    key: str
    hop: Route | None
    manner: Manner


@value
class Source:
    """As whom we appear to another host: from which address of each family (none: any), by which name ("": hostname)."""

    bind: tuple[str, ...] = ()
    helo: str = ""


class Destinations:
    """Made anew by each reload."""

    def __init__(self, relay: Relay) -> None:
        self.routing: Routing[Route] = Routing(
            smarthost=relay.smarthost, routes=relay.routes, port=relay.port
        )
        self._common = Manner(
            concurrency=relay.concurrency,
            rate=relay.rate,
            max_messages=relay.max_messages,
            max_recipients=relay.max_recipients,
            connect_timeout=relay.connect_timeout,
        )
        self._manners = dict(_named(self._common, relay.overrides))
        self._bind = relay.bind
        self._sources = {
            sender: Source(source.bind or relay.bind, source.helo)
            for source in relay.sources
            for sender in source.senders
        }
        self._known: dict[tuple[str, str], Destination] = {}

    def of(self, domain: str, rerouted: str = "") -> Destination:
        """That of a recipient's domain: see `_find`. It is asked for several times for each recipient, hence remembered."""
        found = self._known.get((domain, rerouted))
        if found is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            found = self._known[domain, rerouted] = self._find(domain, rerouted)
        return found

    def _find(self, domain: str, rerouted: str) -> Destination:
        """That of a recipient's domain (lower-case, or a literal); `rerouted` ("host:port") is an administrator's word
        for one message, and overrules its routes.

        What is said of the domain counts; else what is said of the configured next hop; else what holds for all.
        """
        if rerouted:
            host, port = host_and_port(rerouted, 25)
            own = most_specific(self._manners, domain) or most_specific(self._manners, host)
            key = f"{host} {port} (rerouted)" + (f" for {own.name}" if own else "")
            return Destination(key, Route(host=host, port=port), own or self._common)
        hop = self.routing.next_hop(domain)
        key = self.routing.destination(domain)
        manner = most_specific(self._manners, domain)
        if hop is None:
            return Destination(key, hop, manner or self._common)
        if manner is not None:  # not to be mixed with what else goes there
            return Destination(f"{key} for {manner.name}", hop, manner)
        return Destination(key, hop, most_specific(self._manners, hop.host) or self._common)

    def source(self, sender: Address | None, manner: Manner) -> Source:
        """As whom to send a message of `sender` (None: a bounce) to a destination.

        What is said of the destination counts; else what is said of the sender; else what holds for all.
        """
        found = None if sender is None else most_specific(self._sources, sender.domain)
        found = found or Source(self._bind)
        return attrs.evolve(found, bind=manner.bind) if manner.bind else found


def _named(common: Manner, overrides: Iterable[RelayDomain]) -> Iterable[tuple[str, Manner]]:
    for override in overrides:
        given = attrs.asdict(override, recurse=False, filter=lambda field, value: value is not None)
        names = given.pop("names")
        manner = attrs.evolve(common, name=names[0], **given)
        for name in names:
            yield name, manner

"""At which IP addresses this server is reached, as far as the configuration says."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from twisted_mta.config.endpoints import split_endpoint
from twisted_mta.config.schema import Config, Listen, Role


def mail_sockets(listen: Iterable[Listen]) -> Iterator[tuple[int, str]]:
    """Where other hosts bring mail: port and address, "" for all interfaces. Sockets from systemd are not known."""
    for one in listen:
        kind, arguments, options = split_endpoint(one.endpoint)
        if one.role is Role.MX and kind in ("tcp", "tcp6"):
            yield (
                int(arguments[0] if arguments else options["port"]),
                _interface(options.get("interface", "")),
            )


def own_literals(config: Config) -> frozenset[str]:
    """The address literals that stand for this host: RFC 5321 §4.1.3."""
    bound = {address for _, address in mail_sockets(config.listen) if address}
    return frozenset(_literal(address) for address in bound | set(config.relay.own_addresses))


def _interface(written: str) -> str:
    if not written:
        return ""
    address = ipaddress.ip_address(written)
    return "" if address.is_unspecified else str(address)


def _literal(address: str) -> str:
    parsed = ipaddress.ip_address(address)
    return f"[IPv6:{parsed}]" if parsed.version == 6 else f"[{parsed}]"

"""Which addresses are this machine's own, so that mail does not go round in circles."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from twisted_mta.config.own_addresses import mail_sockets
from twisted_mta.config.schema import Listen

#: For documentation only: no machine has them.
_NOBODYS = {socket.AF_INET: "203.0.113.251", socket.AF_INET6: "2001:db8:ffff::fb"}


def is_local(address: str) -> bool:
    """Whether an interface of this machine has an IP address. The kernel knows: nothing else can be bound to.

    Always False where the kernel is set to bind to any address (ip_nonlocal_bind).
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return _can_bind(family, address) and not _can_bind(family, _NOBODYS[family])


def _can_bind(family: socket.AddressFamily, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # a datagram socket waits for nothing
            probe.bind((address, 0))
    except OSError:
        return False
    return True


class OwnSockets:
    """Where this server takes mail from other hosts: call it with an address and a port."""

    def __init__(self, listen: Sequence[Listen], is_local: Callable[[str], bool]) -> None:
        """`is_local` is that of this module. Sockets from systemd are not known."""
        self._is_local = is_local
        #: Port -> interfaces, "" for all of them.
        self._interfaces: dict[int, set[str]] = {}
        for port, address in mail_sockets(listen):
            self._interfaces.setdefault(port, set()).add(address)

    def __call__(self, address: str, port: int) -> bool:
        """Whether this server is what answers there."""
        interfaces = self._interfaces.get(port, set())
        return address in interfaces or ("" in interfaces and self._is_local(address))

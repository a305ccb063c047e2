"""Binding the sockets of [[listen]]: for this process, or for workers to share."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from twisted_mta.config.endpoints import split_endpoint
from twisted_mta.config.schema import Listen
from twisted_mta.net.shared_port import address_of

#: As Twisted has it for an endpoint that names none.
_BACKLOG = 50


class BindError(Exception):
    """A socket can't be bound; the text names the endpoint."""


def bound_port(listen: Listen, factory: Any, reactor: Any) -> IListeningPort:
    """The port of an endpoint, which listens. Raises BindError."""
    outcome: list[Any] = []
    try:
        endpoint = serverFromString(reactor, listen.endpoint)  # type: ignore[no-untyped-call]
    except LookupError:
        raise BindError(
            f"can't listen on {listen.endpoint} (role {listen.role}): systemd has passed no such socket; "
            "is its .socket unit started, and named in Sockets= of the service?"
        ) from None
    maybeDeferred(endpoint.listen, factory).addBoth(outcome.append)
    # Every stream endpoint that the configuration admits binds at once.
    if not outcome or isinstance(outcome[0], Failure):
        why = outcome[0].value if outcome else "it does not bind at once"
        raise _cannot_listen(listen, getattr(why, "socketError", None) or why)
    port: IListeningPort = outcome[0]
    return port


def _cannot_listen(listen: Listen, reason: object) -> BindError:
    return BindError(f"can't listen on {listen.endpoint} (role {listen.role}): {reason}")


class SharedSockets:
    """What the workers listen on. Nothing is accepted here.

    On a TCP port each worker has a socket of its own (SO_REUSEPORT), and the kernel spreads the clients evenly over them.
    One socket for all is accepted from by whoever happens to be quicker: of 20 clients that come together one of two
    workers had between none and 18. All sockets are open here too, so that nobody is turned away while a worker is
    replaced. UNIX sockets, and those from systemd, are one for all.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._ports: list[Any] = []
        self._own: list[socket.socket] = []
        #: The descriptors of each listener, in order: one, or one for each worker.
        self.descriptors: list[list[int]] = []
        #: Where each really listens: ("mx", "127.0.0.1:2525").
        self.addresses: list[tuple[str, str]] = []

    def bind(self, listens: Sequence[Listen], workers: int) -> None:
        """Bind them all. Raises BindError; what was bound until then stays so (the program ends)."""
        for listen in listens:
            kind, arguments, options = split_endpoint(listen.endpoint)
            if kind in ("tcp", "tcp6"):
                family = socket.AF_INET if kind == "tcp" else socket.AF_INET6
                port = int(arguments[0] if arguments else options["port"])
                interface = options.get("interface") or (arguments[1] if len(arguments) > 1 else "")
                backlog = int(options.get("backlog", _BACKLOG))
                self._bind_each(listen, family, (interface, port), backlog, workers)
            else:
                one: Any = bound_port(listen, Factory(), self._reactor)
                one.stopReading()
                self._ports.append(one)
                self.descriptors.append([one.fileno()])
                self.addresses.append((listen.role.value, shown(one.getHost())))

    def _bind_each(
        self, listen: Listen, family: socket.AddressFamily, place: tuple[str, int], backlog: int, workers: int
    ) -> None:
        if ":" in place[0]:
            family = socket.AF_INET6  # as Twisted does for "tcp:25:interface=\:\:1"
        sockets: list[socket.socket] = []
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # Alone first: the kernel would let us share the port with another server of the same user too.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
                place = probe.getsockname()[:2]
            for _ in range(workers):
                one = socket.socket(family, socket.SOCK_STREAM)
                sockets.append(one)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                one.bind(place)
                one.listen(backlog)
        except OSError as error:
            raise _cannot_listen(listen, error) from None
        self._own += sockets
        self.descriptors.append([one.fileno() for one in sockets])
        self.addresses.append((listen.role.value, shown(address_of(sockets[0]))))

    async def close(self) -> None:
        """Let go of them."""
        for one in self._own:
            one.close()
        for port in self._ports:
            await maybeDeferred(port.stopListening)


def shown(address: Any) -> str:
    """An address for people: "127.0.0.1:2525", or a path."""
    return f"{address.host}:{address.port}" if hasattr(address, "port") else os.fsdecode(address.name or "")

"""Listeners behind a load balancer: takes the PROXY header off before the session begins, with the client's real address.

The session is only made when the header is there, so that limits, greeting and logs know nothing but the client. TLS
from the first octet begins behind the header.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet import protocol
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_mta.config.schema import Network
from twisted_mta.core.proxy import ProxyError, ProxyHeader, parse

#: Seconds for the header to arrive: the proxy sends it with its first packet.
DEADLINE = 5.0


class ProxyFactory(protocol.ServerFactory):
    """Connections from `networks` begin with a PROXY header and go on as what `wrapped` makes; others are refused.

    A UNIX socket has no address: who may connect there is decided by its permissions.
    """

    noisy = False
    log = Logger()

    def __init__(
        self, wrapped: protocol.ServerFactory, networks: Sequence[Network], clock: IReactorTime
    ) -> None:
        self.wrapped = wrapped
        self._networks = tuple(networks)
        self._clock = clock
        self._waiting: set[_Preamble] = set()

    def doStart(self) -> None:
        super().doStart()  # type: ignore[no-untyped-call]
        self.wrapped.doStart()  # type: ignore[no-untyped-call]

    def doStop(self) -> None:
        self.wrapped.doStop()  # type: ignore[no-untyped-call]
        super().doStop()  # type: ignore[no-untyped-call]

    def stopFactory(self) -> None:
        for preamble in list(self._waiting):
            preamble.transport.abortConnection()

    def buildProtocol(self, addr: IAddress | None) -> protocol.Protocol | None:
        host: str = getattr(addr, "host", "")
        if host and not self._trusts(host):
            self.log.warn(
                "refused {peer}: it is not in proxy_networks, and only a proxy may connect here", peer=host
            )
            return None
        preamble = _Preamble(self, addr, self._clock)
        self._waiting.add(preamble)
        return preamble

    def _trusts(self, host: str) -> bool:
        address = ip_address(host.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)

    def done(self, preamble: _Preamble) -> None:
        """The header was read, or the connection is gone."""
        self._waiting.discard(preamble)


class _Preamble(protocol.Protocol):
    """Reads the header, then gives the connection to the real protocol and is out of the way."""

    transport: Any

    def __init__(self, factory: ProxyFactory, address: IAddress | None, clock: IReactorTime) -> None:
        self._factory = factory
        self._address = address
        self._clock = clock
        self._buffer = b""
        self._deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._deadline = self._clock.callLater(DEADLINE, self._fail, "no PROXY header in time")

    def dataReceived(self, data: bytes) -> None:
        if self._deadline is None:
            return  # refused already
        self._buffer += data
        try:
            found = parse(self._buffer)
        except ProxyError as error:
            self._fail(str(error))
            return
        if found is not None:
            header, length = found
            self._hand_over(header, self._buffer[length:])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end()

    def _end(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None
        self._factory.done(self)

    def _fail(self, why: str) -> None:
        self._factory.log.warn(
            "refused a connection through {proxy}: {why}",
            proxy=getattr(self._address, "host", "a UNIX socket"),
            why=why,
        )
        self._end()
        self.transport.abortConnection()

    def _hand_over(self, header: ProxyHeader, rest: bytes) -> None:
        self._end()
        session = self._factory.wrapped.buildProtocol(_client(header, self._address))
        if session is None:
            self.transport.abortConnection()
            return
        # The transport speaks to the session itself from now on.
        self.transport.protocol = session
        session.makeConnection(self.transport)
        if rest:
            session.dataReceived(rest)


def _client(header: ProxyHeader, proxy: IAddress | None) -> IAddress | None:
    """The address of the client; that of the proxy where it speaks for itself."""
    if not header.address:
        return proxy
    kind = IPv6Address if ":" in header.address else IPv4Address
    return kind("TCP", header.address, header.port)

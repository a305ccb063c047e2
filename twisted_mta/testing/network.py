"""A simulated TCP network on a Clock: connections between addresses, with latency, back-pressure, TLS and failures."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import ServerFactory
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from twisted_mta.core.tls_policy.decision import HostPolicy
from twisted_mta.core.tls_policy.results import Failure as TlsFailure

#: Octets in flight at which a producer is paused.
WINDOW = 65536


class MemoryNetwork(Clock):
    """A reactor for clients (IReactorTCP.connectTCP, IReactorTime): `servers` says who listens where.

    An address that nobody listens on refuses; one in `unreachable` lets the connection time out. TLS is only played:
    `startTLS` on both sides succeeds, or breaks the connection when the server's address is in `broken_tls`.
    """

    def __init__(self, latency: float = 0.0) -> None:
        super().__init__()
        self.latency = latency
        #: (address, port) -> server factory.
        self.servers: dict[tuple[str, int], ServerFactory] = {}
        self.unreachable: set[str] = set()
        self.broken_tls: set[str] = set()
        #: Address -> what is wrong with its certificate, and all policies that certificates were checked by.
        self.distrusted: dict[str, TlsFailure] = {}
        self.checked: list[HostPolicy] = []
        #: Every connection attempt: (address, port).
        self.attempts: list[tuple[str, int]] = []
        #: Where each of them came from; "" for any address.
        self.sources: list[str] = []
        #: Address -> seconds until it accepts or refuses, instead of the latency.
        self.slow: dict[str, float] = {}
        self._buried: list[object] = []
        #: The ends of connections that are open.
        self.open: set[MemoryTransport] = set()
        #: The most octets that were in flight on one connection in one direction.
        self.high_water = 0

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None
    ) -> _Connector:
        """See IReactorTCP."""
        self.attempts.append((host, port))
        self.sources.append(bindAddress[0] if bindAddress else "")
        wait = self.slow.get(host, self.latency)
        connector = _Connector(self, host, port, factory)
        factory.doStart()
        factory.startedConnecting(connector)
        if host in self.unreachable:
            connector.call = self.callLater(timeout, connector.fail, ConnectTimeout())  # type: ignore[no-untyped-call]
        elif (host, port) not in self.servers:
            connector.call = self.callLater(wait, connector.fail, ConnectionRefusedError())  # type: ignore[no-untyped-call]
        else:
            connector.call = self.callLater(wait, connector.establish)
        return connector

    def cut(self) -> None:
        """The machine of the clients is gone: nothing that was to happen there does, and servers lose their connections."""
        # Kept, for what waits for them would come to its end, and act, as soon as nobody knows it any more.
        ends = sorted(self.open, key=lambda end: end.number)
        self._buried += [(call.func, call.args, call.kw) for call in self.calls]
        self._buried += ends
        self.open = set()
        for call in list(self.calls):  # which cancelling changes
            call.cancel()
        for end in ends:
            end.connected = False
            if end.accepted:
                end.protocol.connectionLost(Failure(ConnectionLost()))  # type: ignore[no-untyped-call]

    def check(self, connection: MemoryTransport, policy: HostPolicy) -> TlsFailure | None:
        """In place of net.tls_verify.CertificateCheck: all certificates are good but those that `distrusted` speaks of."""
        self.checked.append(policy)
        return self.distrusted.get(connection.server) if policy.verified else None


class _Connector:
    def __init__(self, network: MemoryNetwork, host: str, port: int, factory: Any) -> None:
        self._network = network
        self._address = IPv4Address("TCP", host, port)
        self._factory = factory
        self.call: Any = None

    def getDestination(self) -> IPv4Address:
        return self._address

    def stopConnecting(self) -> None:
        self.call.cancel()

    def fail(self, error: Exception) -> None:
        self._factory.clientConnectionFailed(self, Failure(error))  # type: ignore[no-untyped-call]

    def establish(self) -> None:
        server = self._network.servers[self._address.host, self._address.port]
        theirs = server.buildProtocol(IPv4Address("TCP", "192.0.2.254", 40000))
        ours = self._factory.buildProtocol(self._address)
        ends = MemoryTransport(self._network, ours), MemoryTransport(self._network, theirs, accepted=True)
        broken = self._address.host in self._network.broken_tls
        for one, other in (ends, ends[::-1]):
            one.peer = other
            one.broken_tls = broken
            one.server = self._address.host
            self._network.open.add(one)
        for one in ends:
            one.protocol.makeConnection(one)


class MemoryTransport:
    """One end of a connection. What it writes arrives at `peer` after the latency, while that one reads."""

    peer: MemoryTransport

    def __init__(self, network: MemoryNetwork, protocol: Any, accepted: bool = False) -> None:
        """`accepted`: the end of the server."""
        self._network = network
        self.accepted = accepted
        self.number = len(network.attempts)
        self.protocol = protocol
        self.broken_tls = False
        #: The address of the server's end.
        self.server = ""
        self.tls = False
        self.disconnecting = False
        self.connected = True
        self._buffer = b""
        self._reading = True
        self._producer: Any = None
        self._producer_paused = False

    # --- writing -------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if not self.connected or self.disconnecting:
            return
        self._buffer += data
        self._network.high_water = max(self._network.high_water, len(self._buffer))
        self._network.callLater(self._network.latency, self._deliver)
        if self._producer is not None and len(self._buffer) > WINDOW and not self._producer_paused:
            self._producer_paused = True
            self._producer.pauseProducing()

    def writeSequence(self, chunks: list[bytes]) -> None:
        self.write(b"".join(chunks))

    def _deliver(self) -> None:
        if not self.connected or not self.peer._reading:
            return
        if self._buffer:
            data, self._buffer = self._buffer, b""
            self.peer.protocol.dataReceived(data)
        if self._producer_paused and self.connected:
            self._producer_paused = False
            self._producer.resumeProducing()
        if self.disconnecting and not self._buffer and self.connected:
            self._end(ConnectionDone(), ConnectionDone())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None
        self._producer_paused = False

    # --- reading -------------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        self._reading = False

    def resumeProducing(self) -> None:
        self._reading = True
        self._network.callLater(0, self.peer._deliver)

    # --- the end -------------------------------------------------------------------------------

    def loseConnection(self) -> None:
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self._network.callLater(self._network.latency, self._deliver)

    def abortConnection(self) -> None:
        if self.connected:
            self._end(ConnectionAborted(), ConnectionLost())

    def _end(self, mine: Exception, theirs: Exception) -> None:
        ends = ((self, mine), (self.peer, theirs))
        for end, _ in ends:
            end.connected = False
            self._network.open.discard(end)
        for end, reason in ends:
            failure = Failure(reason)  # type: ignore[no-untyped-call]
            self._network.callLater(0, end.protocol.connectionLost, failure)

    # --- TLS -----------------------------------------------------------------------------------

    def startTLS(self, context: Any) -> None:
        self.tls = True
        if self.peer.tls:
            self._network.callLater(self._network.latency, self._handshake)

    def _handshake(self) -> None:
        if not self.connected:
            return
        if self.broken_tls:
            error = SSL.Error([("SSL routines", "", "no shared cipher")])
            self._end(error, error)
            return
        for end in (self, self.peer):
            if IHandshakeListener.providedBy(end.protocol):
                end.protocol.handshakeCompleted()

    def getHandle(self) -> MemoryTransport:
        return self

    def get_protocol_version_name(self) -> str:
        return "TLSv1.3"

    def get_cipher_name(self) -> str:
        return "TLS_PLAYED"

    def export_keying_material(self, label: bytes, size: int, context: bytes) -> bytes:
        return label[-1:] * size

    def get_peer_certificate(self, *, as_cryptography: bool) -> None:
        """There is none: what is played has no keys."""

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.254", 40000)

    getHost = getPeer

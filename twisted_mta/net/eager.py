"""TCP connections that send at once what the kernel takes, instead of asking first when it would take it, and that make no
more room for what they read than is filled.

Twisted's transports buffer what is written and wait for the socket to be reported writable: two changes of the poll
set, one more event and one more turn of the reactor for each reply, which is a third of what a reply costs. A socket
whose peer has read the last reply is always writable; where it is not, the rest goes the usual way.

And they make room for 64 kB for each read. On PyPy that room is what the garbage collector is called for, as nearly all
of what it finds: most reads are commands.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.tcp import Server


class EagerServer(Server):
    """The server's side of a TCP connection. See `send_at_once`."""

    #: Octets of a read: as many as most messages have, until a peer sends more at a time.
    bufferSize = 8192

    def _dataReceived(self, data: bytes | None) -> Any:
        if data is not None and len(data) == self.bufferSize:
            self.bufferSize = Server.bufferSize
        return super()._dataReceived(data)

    def write(self, data: bytes) -> None:
        """As ITransport.write."""
        # With TLS the octets are the TLS layer's to send; with some waiting, it is not yet the turn of these.
        if self.TLS or self.dataBuffer or self._tempDataLen or self.disconnecting or not self.connected:
            super().write(data)  # type: ignore[no-untyped-call]
            return
        try:
            sent = self.socket.send(data)
        except OSError:
            sent = 0  # the socket is full, or broken: that comes out when it is written to again
        if sent < len(data):
            super().write(data[sent:])  # type: ignore[no-untyped-call]


def send_at_once(port: Any) -> None:
    """Let the connections that a TCP port accepts from now on be of this kind."""
    if getattr(port, "transport", None) is Server:  # UNIX sockets have another; those are few
        port.transport = EagerServer


def adopt(connection: socket.socket, client: Any, factory: IProtocolFactory, reactor: Any) -> None:
    """Serve a connection that was accepted from `client`. It is taken over, and closed where it can't be served."""
    try:
        connection.setblocking(False)
        if connection.family == socket.AF_UNIX:
            reactor.adoptStreamConnection(connection.fileno(), socket.AF_UNIX, factory)  # on a copy
            connection.close()
        else:
            _serve(connection, client, factory, reactor)
    except BaseException:
        connection.close()
        raise


def _serve(
    connection: socket.socket, client: tuple[Any, ...], factory: IProtocolFactory, reactor: Any
) -> None:
    # IReactorSocket.adoptStreamConnection does so on a copy of the descriptor, asks the kernel for both addresses, and
    # makes a transport that is not eager.
    kind = IPv4Address if connection.family == socket.AF_INET else IPv6Address
    protocol = factory.buildProtocol(kind("TCP", *client))
    if protocol is None:
        connection.close()
        return
    port: Any = None  # who has accepted it is no Port
    transport = EagerServer(connection, protocol, client, port, client[1], reactor)
    transport.repstr = f"<{type(protocol).__name__} with {client[0]}:{client[1]}>"
    try:
        protocol.makeConnection(transport)
    except BaseException:
        # The reactor has the descriptor, and would not notice that the next connection with the same number is another.
        transport.abortConnection()  # type: ignore[no-untyped-call]
        raise

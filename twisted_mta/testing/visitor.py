"""A client by hand, for a server in the same process: says one line, and hears the reply."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.protocol import ServerFactory
from twisted.internet.testing import StringTransport

from twisted_mta.core.replies import Reply
from twisted_mta.testing.network import MemoryNetwork


def stuffed(message: bytes) -> bytes:
    """A message as it follows DATA, up to the line that ends it and without the end of that (RFC 5321 §4.5.2)."""
    return (b"\r\n" + message).replace(b"\r\n.", b"\r\n..")[2:] + b"."


class Visitor:
    """One connection to a listener of `factory`. As a context manager it says QUIT at the end."""

    def __init__(self, factory: ServerFactory, network: MemoryNetwork, address: str = "127.0.0.1") -> None:
        peer = IPv4Address("TCP", address, 40000)
        self._network = network
        session: Any = factory.buildProtocol(peer)
        self._session = session
        self._transport: Any = StringTransport(peerAddress=peer)  # type: ignore[no-untyped-call]
        self._session.makeConnection(self._transport)

    def say(self, line: bytes) -> Reply:
        """Send a line, which gets its CRLF here, and take the last line of the reply; code 0 where there was none."""
        self._transport.clear()
        self._session.dataReceived(line + b"\r\n")
        self._network.pump([0.0] * 5)
        return self.hear()

    def hear(self) -> Reply:
        """The last line that came since something was said; code 0 where there was none."""
        lines = self._transport.value().decode().splitlines()
        if not lines:  # it died of it, or is still at work
            return Reply(0, "", "")
        code, _, rest = lines[-1].partition(" ")
        enhanced, _, words = rest.partition(" ")
        return Reply(int(code), enhanced, words)

    def leave(self) -> None:
        """Say QUIT and hang up."""
        self._session.dataReceived(b"QUIT\r\n")
        self._session.connectionLost()

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

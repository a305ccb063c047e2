"""net.eager on real sockets: what is written at once, what has to wait, and what comes after it."""

from __future__ import annotations

import select
import socket
from typing import Any

from twisted.internet import protocol, reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.unix import Server as UnixServer
from twisted.trial.unittest import TestCase

from twisted_mta.net.eager import EagerServer, adopt, send_at_once


def _pair(family: int) -> tuple[socket.socket, socket.socket]:
    """The accepted and the connecting end of a connection; the former does not block."""
    if family == socket.AF_UNIX:
        accepted, connecting = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            connecting = socket.create_connection(listening.getsockname())
            accepted, _ = listening.accept()
    accepted.setblocking(False)
    return accepted, connecting


class _Talker(protocol.Protocol):
    """Does what it is told once it is connected."""

    def __init__(self, ready: Deferred[Any]) -> None:
        self._ready = ready

    def connectionMade(self) -> None:
        self._ready.callback(self.transport)


class _Reader(protocol.Protocol):
    """Reads to the end."""

    transport: Any

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        self.ended.callback(bytes(self.received))


class EagerTests(TestCase):
    async def connect(self) -> tuple[Any, _Reader]:
        """The transport of the server's side, and the client."""
        ready: Deferred[Any] = Deferred()
        factory: Any = protocol.Factory.forProtocol(lambda: _Talker(ready))  # type: ignore[arg-type]
        factory.noisy = False
        port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        send_at_once(port)
        client: Any = await connectProtocol(
            TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port), _Reader()
        )
        return await ready, client

    async def test_a_reply_is_gone_when_write_returns(self) -> None:
        server, client = await self.connect()
        self.assertIsInstance(server, EagerServer)
        client.transport.pauseProducing()
        server.write(b"220 ready\r\n")
        self.assertNotIn(server, server.reactor.getWriters())
        # The reactor does not run: whatever comes was sent by write.
        select.select([client.transport.socket], [], [], 60)
        self.assertEqual(client.transport.socket.recv(100), b"220 ready\r\n")
        server.abortConnection()
        client.transport.resumeProducing()
        await client.ended

    async def test_there_is_more_room_for_a_peer_that_sends_much(self) -> None:
        server, client = await self.connect()
        few = server.bufferSize
        received = bytearray()
        server.protocol.dataReceived = received.extend
        server.pauseProducing()
        client.transport.socket.sendall(b"NOOP\r\n")
        select.select([server.socket], [], [], 60)
        server.doRead()
        self.assertEqual((bytes(received), server.bufferSize), (b"NOOP\r\n", few))
        client.transport.socket.sendall(b"x" * 20_000)
        while len(received) < 20_006:
            select.select([server.socket], [], [], 60)
            server.doRead()
        self.assertEqual((len(received), server.bufferSize), (20_006, 65_536))
        server.abortConnection()
        await client.ended

    async def test_a_connection_that_was_accepted_elsewhere(self) -> None:
        for family, type_ in ((socket.AF_INET, EagerServer), (socket.AF_UNIX, UnixServer)):
            ready: Deferred[Any] = Deferred()
            factory: Any = protocol.Factory.forProtocol(lambda ready=ready: _Talker(ready))  # type: ignore[misc]
            factory.noisy = False
            ours, theirs = _pair(family)
            with ours, theirs:
                adopt(ours.dup(), ours.getpeername(), factory, reactor)
                ours.close()
                server = await ready
                self.assertIs(type(server), type_)
                server.write(b"220 ready\r\n")
                turn: Deferred[None] = Deferred()
                server.reactor.callLater(0, turn.callback, None)
                await turn
                self.assertEqual(theirs.recv(100), b"220 ready\r\n")
                server.abortConnection()

    async def test_more_than_the_kernel_takes_arrives_in_order(self) -> None:
        server, client = await self.connect()
        pieces = [bytes([65 + number]) * 700_000 for number in range(20)]
        for piece in pieces:
            server.write(piece)
        self.assertIn(server, server.reactor.getWriters())
        server.write(b"end")
        server.loseConnection()
        server.write(b"nothing after the end is promised, but it must not come first")
        received = await client.ended
        self.assertTrue(received.startswith(b"".join(pieces) + b"end"))

    async def test_a_peer_that_is_gone(self) -> None:
        server, client = await self.connect()
        gone: Deferred[None] = Deferred()
        server.protocol.connectionLost = lambda reason: gone.callback(None)
        client.transport.abortConnection()
        while not gone.called:  # for two minutes at most: trial's patience
            server.write(b"x" * 1000)
            turn: Deferred[None] = Deferred()
            server.reactor.callLater(0.01, turn.callback, None)
            await turn
        server.write(b"to nobody")

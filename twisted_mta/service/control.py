"""The control socket: how `mta` talks to the running server.

A UNIX stream socket in the data directory, for the server's own user and root. Each request is one line with a JSON
object, ``{"command": "queue.list", "arguments": {...}}``; each answer one line, ``{"result": ...}`` or
``{"error": "a sentence"}``, with ``"unknown": true`` where there is no such command. Requests of one connection are
answered in order.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet import protocol
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_mta.store.durable import make_directories

#: Octets of one request.
MAX_REQUEST = 1 << 20
#: Seconds a client may be silent.
TIMEOUT = 60.0
#: Clients at a time.
MAX_CLIENTS = 20

#: Answers a command: the arguments as the client gave them (nothing in them is checked yet) -> what JSON can carry.
Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]


class ControlError(Exception):
    """The command can't be done; the text is for the administrator."""


class AlreadyRunning(Exception):
    """Another server answers at the socket."""


#: SO_PEERCRED of Linux; PyPy's socket module has no name for it.
_PEERCRED = getattr(socket, "SO_PEERCRED", 17)


def peer_uid(transport: Any) -> int:
    """The user at the other end, as the kernel knows it."""
    handle: socket.socket = transport.getHandle()
    credentials = handle.getsockopt(socket.SOL_SOCKET, _PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


class ControlProtocol(protocol.Protocol):
    """One client."""

    log = Logger()
    transport: Any

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        clock: IReactorTime,
        uid_of: Callable[[Any], int],
        closed: Callable[[], None],
    ) -> None:
        self._handlers = handlers
        self._clock = clock
        self._uid_of = uid_of
        self._closed = closed
        self._buffer = b""
        self._busy = False
        self._lost = False
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        uid = self._uid_of(self.transport)
        if uid not in (0, os.geteuid()):
            self.log.warn("control socket: user {uid} was turned away", uid=uid)
            self._end("only root and the user of the server may do this")
            return
        self._arm()

    def dataReceived(self, data: bytes) -> None:
        if self._lost:
            return
        self._buffer += data
        if self._busy and len(self._buffer) > MAX_REQUEST:
            self.transport.pauseProducing()
        self._arm()
        self._next()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._closed()

    def _arm(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.reset(TIMEOUT)
        else:
            self._timer = self._clock.callLater(TIMEOUT, self._timed_out)

    def _timed_out(self) -> None:
        if self._busy:
            self._arm()  # it waits for us
        else:
            self.transport.abortConnection()

    def _next(self) -> None:
        """Take the next request, if one is complete and none is under way."""
        while not self._busy and not self._lost:
            line, newline, rest = self._buffer.partition(b"\n")
            if len(line) > MAX_REQUEST:
                self._end(f"the request is longer than {MAX_REQUEST} octets")
            if not newline:
                return
            self._buffer = rest
            self._busy = True
            answer = Deferred.fromCoroutine(self._respond(line))
            answer.addErrback(self._failed).addCallback(self._done)

    def _end(self, error: str) -> None:
        """Say why and close; nothing more is taken from this client."""
        self._answer({"error": error})
        self.transport.loseConnection()
        self._lost = True

    async def _respond(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return {"error": "the request is no JSON"}
        if not isinstance(request, dict) or not isinstance(request.get("arguments", {}), dict):
            return {"error": "the request is no object with a command and arguments"}
        command = request.get("command")
        handler = self._handlers.get(command) if isinstance(command, str) else None
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            return {"error": f"unknown command; known are {known}", "unknown": True}
        try:
            return {"result": await handler(request.get("arguments", {}))}
        except ControlError as error:
            return {"error": str(error)}

    def _failed(self, failure: Failure) -> dict[str, Any]:
        self.log.failure("a control command failed", failure=failure)
        return {"error": "internal error: see the server's log"}

    def _done(self, answer: dict[str, Any]) -> None:
        self._busy = False
        if self._lost:
            return
        self._answer(answer)
        self.transport.resumeProducing()
        self._arm()
        self._next()

    def _answer(self, answer: dict[str, Any]) -> None:
        try:
            line = json.dumps(answer)
        except (TypeError, ValueError):
            self.log.failure("the answer to a control command is no JSON")
            line = json.dumps({"error": "internal error: see the server's log"})
        self.transport.write(line.encode("ascii") + b"\n")


class ControlFactory(protocol.ServerFactory):
    """Makes one protocol a client, up to a limit."""

    noisy = False

    def __init__(
        self, handlers: Mapping[str, Handler], clock: IReactorTime, uid_of: Callable[[Any], int] = peer_uid
    ) -> None:
        self._handlers = handlers
        self._clock = clock
        self._uid_of = uid_of
        self.clients = 0

    def buildProtocol(self, addr: IAddress | None) -> protocol.Protocol | None:
        if self.clients >= MAX_CLIENTS:
            return None
        self.clients += 1
        return ControlProtocol(self._handlers, self._clock, self._uid_of, self._client_left)

    def _client_left(self) -> None:
        self.clients -= 1


class ControlServer(Service):
    """Listens at the socket while it runs. `handlers` maps each command to what answers it."""

    name = "control"

    def __init__(self, path: Path, handlers: Mapping[str, Handler], reactor: Any) -> None:
        """`reactor` provides IReactorUNIX and IReactorTime. The directory of `path` is made if it is not there."""
        self._path = path
        self._reactor = reactor
        self._factory = ControlFactory(handlers, reactor)
        self._port: Any = None

    def startService(self) -> None:
        """Listen. Raises AlreadyRunning, OSError, or Twisted's CannotListenError."""
        make_directories(self._path.parent)
        _remove_stale(self._path)
        self._port = self._reactor.listenUNIX(str(self._path), self._factory, mode=0o600)
        super().startService()  # type: ignore[no-untyped-call]

    async def _stop(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            await port.stopListening()

    def stopService(self) -> Deferred[None]:
        """Stop listening; the socket is removed."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())


def _remove_stale(path: Path) -> None:
    """Remove the socket of a server that died; one that answers is another server's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink()
            return
    raise AlreadyRunning(f"another server is running: it answers at {path}")

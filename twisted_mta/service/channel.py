"""What the parent and a worker say to each other, over a pair of sockets: JSON objects, one a line, in both directions.

``{"ask": 7, "command": ..., "arguments": {...}}`` is answered by ``{"answer": 7, "result": ...}`` or ``"error": "a sentence"``;
what has a command and no number is answered by nothing. Both ends are this program: what they send is not doubted.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

from twisted.internet import protocol
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_mta.service.control import ControlError, Handler

#: Octets that may wait for the other process while it does not read.
MAX_UNREAD = 16 << 20


class ChannelClosed(ControlError):
    """The other process has ended; what was asked has no answer."""


@implementer(IPushProducer)
class Channel(protocol.Protocol):
    """One end. `closed` is called once, when the other process is gone, or does not read: `clogged`."""

    log = Logger()
    transport: Any

    def __init__(self, handlers: Mapping[str, Handler], closed: Any) -> None:
        self._handlers = handlers
        self._closed = closed
        self._buffer = bytearray()
        self._asked: dict[int, Deferred[Any]] = {}
        self._number = 0
        #: Octets that were said since the other process stopped reading; None while it reads.
        self._unread: int | None = None
        self.open = False
        self.clogged = False

    @classmethod
    def over(cls, end: socket.socket, reactor: Any, handlers: Mapping[str, Handler], closed: Any) -> Channel:
        """Speak over a connected socket, which is taken over. `reactor` provides IReactorSocket."""
        channel = cls(handlers, closed)
        factory = protocol.Factory()
        factory.noisy = False
        factory.buildProtocol = lambda addr: channel  # type: ignore[method-assign]
        end.setblocking(False)
        reactor.adoptStreamConnection(end.fileno(), socket.AF_UNIX, factory)
        end.close()
        return channel

    # --- speaking --------------------------------------------------------------------------------

    def ask(self, command: str, arguments: Mapping[str, Any] | None = None) -> Deferred[Any]:
        """Its answer; fails with ControlError (what the other says) or ChannelClosed."""
        if not self.open:
            return fail(ChannelClosed("that process has ended"))
        self._number += 1
        answer = self._asked[self._number] = Deferred()
        self._send({"ask": self._number, "command": command, "arguments": dict(arguments or {})})
        return answer

    def tell(self, command: str, arguments: Mapping[str, Any] | None = None) -> None:
        """No answer is wanted; nothing happens if nobody is there."""
        if self.open:
            self._send({"command": command, "arguments": dict(arguments or {})})

    def greet(self, message: Mapping[str, Any]) -> None:
        """The first line, which is no command."""
        self._send(message)

    def close(self) -> None:
        """Hang up."""
        if self.open:
            self.open = False
            self.transport.abortConnection()

    def _send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"
        if self._unread is not None:
            self._unread += len(line)
            if self._unread > MAX_UNREAD:
                self.clogged = True
                self.close()
                return
        self.transport.write(line)

    def pauseProducing(self) -> None:
        """The other process does not read as fast as we speak: from here on what waits for it is counted."""
        if self._unread is None:  # else it is told once more
            self._unread = 0

    def resumeProducing(self) -> None:
        """It has read everything."""
        self._unread = None

    def stopProducing(self) -> None:
        """The connection ends: see connectionLost."""

    # --- listening -------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self.open = True
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        begin = len(self._buffer)
        self._buffer += data
        start = 0
        while (end := self._buffer.find(b"\n", max(start, begin))) >= 0:
            line = bytes(self._buffer[start:end])
            start = end + 1
            self._received(json.loads(line))
        del self._buffer[:start]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.open = False
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            answer.errback(ChannelClosed("that process has ended"))
        self._closed()

    def _received(self, message: dict[str, Any]) -> None:
        if "answer" in message:
            asked = self._asked.pop(message["answer"])
            if "error" in message:
                asked.errback(ControlError(message["error"]))
            else:
                asked.callback(message["result"])
            return
        done = Deferred.fromCoroutine(self._respond(message))
        done.addErrback(lambda failure: self.log.failure("a message between processes failed", failure))

    async def _respond(self, message: dict[str, Any]) -> None:
        try:
            answer = {"result": await self._handlers[message["command"]](message["arguments"])}
        except ControlError as error:
            answer = {"error": str(error)}
        except Exception:  # noqa: BLE001  whoever asks must not wait for ever
            self.log.failure("{command} failed", command=message["command"])
            answer = {"error": "internal error: see the server's log"}
        if "ask" in message and self.open:
            self._send({"answer": message["ask"], **answer})


def send_line(end: socket.socket, message: Mapping[str, Any]) -> None:
    """Say something before the reactor runs; blocks. Raises OSError."""
    end.sendall(json.dumps(message).encode("ascii") + b"\n")


def read_line(end: socket.socket) -> dict[str, Any]:
    """What comes first; what is behind it stays in the socket, for a Channel. Blocks.

    Raises OSError, and EOFError where the other process has ended.
    """
    line = b""
    while not line.endswith(b"\n"):
        seen = end.recv(65536, socket.MSG_PEEK)
        if not seen:
            raise EOFError("the other process has ended")
        line += end.recv(seen.find(b"\n") + 1 or len(seen))
    message: dict[str, Any] = json.loads(line)
    return message

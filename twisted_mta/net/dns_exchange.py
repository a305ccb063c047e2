"""One DNS question to one server: a datagram from a fresh random port, or a TCP connection for what does not fit."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet import error, protocol
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import Int16StringReceiver
from twisted.python.failure import Failure

from twisted_mta.core.values import value
from twisted_mta.net.dns_message import BadMessage, Question, Response, parse_response

#: Datagrams that do not belong to the question before it is asked over TCP, where none can be forged.
MAX_STRAY = 8


@value
class Server:
    """A recursive name server."""

    address: str
    port: int = 53

    @property
    def ipv6(self) -> bool:
        """Whether it is reached over IPv6."""
        return ":" in self.address

    @classmethod
    def parse(cls, text: str) -> Server:
        """ "192.0.2.53", "192.0.2.53:5353", "2001:db8::53" or "[2001:db8::53]:5353". Raises ValueError."""
        host, port = text, "53"
        if text.startswith("["):
            host, _, port = text[1:].partition("]")
            port = port.removeprefix(":") or "53"
        elif text.count(":") == 1:
            host, _, port = text.partition(":")
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{text!r}: {port!r} is no port")
        return cls(str(ipaddress.ip_address(host)), int(port))


class NoAnswer(Exception):
    """The server did not answer, or not usably; the text says what happened."""


class Forged(NoAnswer):
    """Too many datagrams that belong to no question of ours: somebody is guessing."""


def ask_udp(
    reactor: Any, server: Server, question: Question, message_id: int, edns: bool, wait: float
) -> Deferred[Response]:
    """Ask by datagram and wait `wait` seconds. Fails with NoAnswer."""
    result: Deferred[Response] = Deferred(lambda _: asking.cancel())
    asking = _Datagram(server, question, message_id, edns, result)
    timer = reactor.callLater(wait, asking.fail, NoAnswer(f"{server.address} did not answer"))
    # RFC 5452 §9.2: port 0 lets the kernel choose at random, anew for each question.
    try:
        reactor.listenUDP(0, asking, interface="::" if server.ipv6 else "0.0.0.0")  # noqa: S104  for one answer
    except error.CannotListenError as failed:
        asking.fail(NoAnswer(f"no port to ask from: {failed.socketError}"))

    def done(outcome: Any) -> Any:
        if timer.active():
            timer.cancel()
        return outcome

    return result.addBoth(done)


class _Datagram(protocol.DatagramProtocol):
    """Sends one question and waits for its answer."""

    transport: Any

    def __init__(
        self, server: Server, question: Question, message_id: int, edns: bool, result: Deferred[Response]
    ) -> None:
        self._server = server
        self._question = question
        self._id = message_id
        self._edns = edns
        self._result: Deferred[Response] | None = result
        self._stray = 0

    def startProtocol(self) -> None:
        try:
            # Connected: the kernel drops what other addresses send, and tells of "port unreachable".
            self.transport.connect(self._server.address, self._server.port)
            self.transport.write(self._question.encode(self._id, self._edns))
        except OSError as failed:
            self.fail(NoAnswer(f"{self._server.address}: {failed.strerror or failed}"))

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        if self._result is None:
            return
        response = None
        # RFC 5452 §9.1: address, port, id and question must all be right.
        if (addr[0], addr[1]) == (self._server.address, self._server.port):
            try:
                response = parse_response(datagram, self._question, self._id)
            except BadMessage as bad:
                self.fail(NoAnswer(f"{self._server.address}: {bad}"))
                return
        if response is not None:
            result = self.finish()
            if result is not None:
                result.callback(response)
            return
        self._stray += 1
        if self._stray >= MAX_STRAY:
            self.fail(Forged(f"{self._server.address}: too many answers to other questions"))

    def stopProtocol(self) -> None:
        # The epoll reactor closes the port on an ICMP error, where others call connectionRefused.
        self.fail(NoAnswer(f"{self._server.address}: no name server there"))

    def connectionRefused(self) -> None:
        self.fail(NoAnswer(f"{self._server.address}: no name server there"))

    def fail(self, reason: NoAnswer) -> None:
        """Give up, unless it is over already."""
        result = self.finish()
        if result is not None:
            result.errback(reason)

    def cancel(self) -> None:
        """Nobody waits any more."""
        self.finish()

    def finish(self) -> Deferred[Response] | None:
        """Close the port; the Deferred that still waits, if any."""
        result, self._result = self._result, None
        if result is not None and self.transport is not None:
            self.transport.stopListening()
        return result


def ask_tcp(
    reactor: Any, server: Server, question: Question, message_id: int, edns: bool, wait: float
) -> Deferred[Response]:
    """Ask over TCP (RFC 7766) and wait `wait` seconds in all. Fails with NoAnswer."""
    asking = _Stream(server, question, message_id, edns)
    kind = TCP6ClientEndpoint if server.ipv6 else TCP4ClientEndpoint
    connecting = kind(reactor, server.address, server.port).connect(
        protocol.Factory.forProtocol(lambda: asking)
    )
    asking.cancel_connect = connecting.cancel
    timer = reactor.callLater(wait, asking.fail, NoAnswer(f"{server.address} did not answer over TCP"))

    def failed(failure: Failure) -> None:
        asking.fail(NoAnswer(f"{server.address}: {failure.getErrorMessage()}"))

    def done(outcome: Any) -> Any:
        if timer.active():
            timer.cancel()
        return outcome

    connecting.addErrback(failed)
    return asking.result.addBoth(done)


class _Stream(Int16StringReceiver):
    """Asks one question on a connection."""

    transport: Any
    #: Twisted's own bound; the two octets of the length allow no more.
    MAX_LENGTH = 65535

    def __init__(self, server: Server, question: Question, message_id: int, edns: bool) -> None:
        self._server = server
        self._question = question
        self._id = message_id
        self._edns = edns
        self._over = False
        self.result: Deferred[Response] = Deferred(self._cancel)
        self.cancel_connect: Callable[[], None] | None = None

    def connectionMade(self) -> None:
        self.cancel_connect = None
        query = self._question.encode(self._id, self._edns)
        self.transport.write(struct.pack("!H", len(query)) + query)

    def stringReceived(self, string: bytes) -> None:
        try:
            response = parse_response(string, self._question, self._id)
        except BadMessage as bad:
            self.fail(NoAnswer(f"{self._server.address}: {bad}"))
            return
        if response is None:
            self.fail(NoAnswer(f"{self._server.address} answered another question over TCP"))
        elif self._end():
            self.result.callback(response)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.fail(NoAnswer(f"{self._server.address} closed the connection"))

    def fail(self, reason: NoAnswer) -> None:
        """Give up, unless it is over already."""
        if self._end():
            self.result.errback(reason)

    def _cancel(self, _: Deferred[Response]) -> None:
        self._end()

    def _end(self) -> bool:
        """Close; whether somebody still waits."""
        if self._over:
            return False
        self._over = True
        if self.transport is not None:
            self.transport.abortConnection()
        elif self.cancel_connect is not None:
            self.cancel_connect()
        return True

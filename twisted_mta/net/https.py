"""HTTPS for MTA-STS policies and TLS reports: one request, one bounded answer. Certificates are verified.

Addresses come from our own resolver; redirects are not followed, nothing is cached, and no proxy is asked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from OpenSSL import SSL
from service_identity import CertificateError, VerificationError
from twisted.internet import protocol
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer
from zope.interface import implementer

from twisted_mta.core.route import LookupFailed, NoSuchDomain
from twisted_mta.core.values import value
from twisted_mta.interfaces import IMailResolver

#: Seconds for one connection; there may be other addresses.
CONNECT_TIMEOUT = 15.0
#: Addresses of one host that are tried.
MAX_ADDRESSES = 4
#: Octets of an answer beyond its body: the status line and the header fields.
MAX_HEADER = 65536


class HttpsError(Exception):
    """There is no answer; the text says why. `untrusted`: the server's certificate is not good."""

    def __init__(self, text: str, *, untrusted: bool = False) -> None:
        super().__init__(text)
        self.untrusted = untrusted


@value
class Answer:
    """What a server said. `media_type` is in lower case, without its parameters."""

    status: int
    media_type: str
    body: bytes


class Requests(Protocol):
    """What `Https` does."""

    async def request(
        self, method: str, url: str, *, timeout: float, limit: int, body: bytes = b"", media_type: str = ""
    ) -> Answer:
        """Send a request and wait at most `timeout` seconds for an answer of at most `limit` octets. Raises HttpsError."""
        ...


class Https:
    """Sends requests. Holds no connection open."""

    def __init__(
        self, reactor: Any, resolver: IMailResolver, *, port: int = 443, authorities: Any = None
    ) -> None:
        """`reactor` provides IReactorTCP and IReactorTime.

        `port` is where all servers are reached, and `authorities` (None: those that this machine trusts) whose certificates
        are good: for tests.
        """
        self._reactor = reactor
        self._resolver = resolver
        self._port = port
        self._authorities = authorities

    async def request(
        self, method: str, url: str, *, timeout: float, limit: int, body: bytes = b"", media_type: str = ""
    ) -> Answer:
        """See Requests."""
        endpoints = _Endpoints(
            self._reactor, self._resolver, self._port, self._authorities, limit + MAX_HEADER
        )
        pool = HTTPConnectionPool(self._reactor, persistent=False)  # type: ignore[no-untyped-call]
        agent = Agent.usingEndpointFactory(self._reactor, endpoints, pool)  # type: ignore[no-untyped-call]
        headers = Headers({b"User-Agent": [b"twisted_mta"]})
        if body:
            headers.addRawHeader(b"Content-Type", media_type.encode("ascii"))
        producer = _Body(body) if body else None
        running = Deferred.fromCoroutine(_exchange(agent, method, url, headers, producer, limit))
        timer = self._reactor.callLater(timeout, running.cancel)
        try:
            return await running
        except HttpsError:
            raise
        except CancelledError:
            raise HttpsError(f"no answer within {timeout:g} seconds") from None
        except Exception as error:  # noqa: BLE001  what a hostile server can make the HTTP client raise is not listed anywhere
            raise _explained(error) from None
        finally:
            if timer.active():
                timer.cancel()
            endpoints.abort()


async def _exchange(
    agent: Agent, method: str, url: str, headers: Headers, producer: Any, limit: int
) -> Answer:
    response: Any = await agent.request(method.encode("ascii"), url.encode("ascii"), headers, producer)
    collected: Deferred[bytes] = Deferred()
    response.deliverBody(_Collector(collected, limit))
    body = await collected
    values = response.headers.getRawHeaders(b"content-type", [b""])
    media_type = values[0].partition(b";")[0].strip().lower().decode("ascii", "replace")
    return Answer(response.code, media_type, body)


@implementer(IBodyProducer)
class _Body:
    """A body in memory, sent in one piece."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It is written already."""

    def resumeProducing(self) -> None:
        """It is written already."""

    def stopProducing(self) -> None:
        """It is written already."""


class _Collector(protocol.Protocol):
    """Takes a body, up to a limit."""

    def __init__(self, done: Deferred[bytes], limit: int) -> None:
        self._done = done
        self._limit = limit
        self._data = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > self._limit:
            self._finish(HttpsError(f"the answer is longer than {self._limit} octets"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # An answer without a length ends with the connection; TLS sees to it that this is the server's doing.
        if reason.check(ResponseDone, PotentialDataLoss):  # type: ignore[no-untyped-call]
            self._finish(bytes(self._data))
        else:
            self._finish(HttpsError(f"the answer broke off ({reason.getErrorMessage()})"))

    def _finish(self, result: bytes | HttpsError) -> None:
        if self._done.called:
            return
        if isinstance(result, HttpsError):
            self._done.errback(result)
        else:
            self._done.callback(result)


def _explained(error: BaseException) -> HttpsError:
    """What the HTTP client raised, in a sentence."""
    causes = [error, *(one.value for one in getattr(error, "reasons", []))]
    if any(isinstance(cause, CertificateError | VerificationError) for cause in causes):
        return HttpsError("its certificate is for another name", untrusted=True)
    for cause in causes:
        if isinstance(cause, SSL.Error):
            entries = cause.args[0] if cause.args and isinstance(cause.args[0], list) else []
            words = ", ".join(str(entry[-1]) for entry in entries) or "the handshake failed"
            return HttpsError(f"TLS: {words}", untrusted="certificate" in words)
    last = causes[-1]
    return HttpsError(f"{type(last).__name__}: {last}" if str(last) else type(last).__name__)


# --- connections -----------------------------------------------------------------------------------


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Those of one request."""

    def __init__(
        self, reactor: Any, resolver: IMailResolver, port: int, authorities: Any, limit: int
    ) -> None:
        self._reactor = reactor
        self._resolver = resolver
        self._port = port
        self._authorities = authorities
        self._bounded: list[_BoundedProtocol] = []
        self._limit = limit

    def abort(self) -> None:
        """Cut what is still open."""
        for one in self._bounded:
            one.abort()

    def endpointForURI(self, uri: URI) -> _Endpoint:
        host = uri.host.decode("ascii")
        if uri.scheme != b"https":
            raise HttpsError(f"{uri.scheme!r} is not https")
        creator = optionsForClientTLS(host, trustRoot=self._authorities)
        return _Endpoint(self._reactor, self._resolver, host, self._port, creator, self._wrapped)

    def _wrapped(self, factory: Any) -> _Bounded:
        return _Bounded(factory, self._limit, self._bounded.append)


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """A host by its name, at each of its addresses."""

    def __init__(
        self,
        reactor: Any,
        resolver: IMailResolver,
        host: str,
        port: int,
        creator: Any,
        wrap: Callable[[Any], _Bounded],
    ) -> None:
        self._reactor = reactor
        self._resolver = resolver
        self._host = host
        self._port = port
        self._creator = creator
        self._wrap = wrap

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: Any) -> Any:
        problem = f"{self._host} has no address"
        for address in (await self._addresses())[:MAX_ADDRESSES]:
            kind = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
            plain = kind(self._reactor, address, self._port, timeout=CONNECT_TIMEOUT)
            try:
                bounded: Any = await wrapClientTLS(self._creator, plain).connect(self._wrap(factory))
            except (CancelledError, ConnectingCancelledError):  # the time for all of them is over
                raise CancelledError from None
            except Exception as error:  # noqa: BLE001  refused, timed out, unreachable ...: the next address may do
                problem = f"can't connect to {self._host} [{address}]: {error}"
                continue
            return bounded.wrappedProtocol
        raise HttpsError(problem)

    async def _addresses(self) -> Sequence[str]:
        try:
            ipaddress.ip_address(self._host)
        except ValueError:
            pass
        else:
            raise HttpsError(f"{self._host} is an IP address, for which nobody has a certificate")
        try:
            return await self._resolver.addresses(self._host)
        except NoSuchDomain:
            return ()
        except LookupFailed as error:
            raise HttpsError(f"can't look up {self._host}: {error}") from None


class _Bounded(WrappingFactory):
    """Cuts connections that bring more octets than an answer may have, header fields included."""

    noisy = False

    def __init__(self, factory: Any, limit: int, opened: Callable[[_BoundedProtocol], None]) -> None:
        super().__init__(factory)  # type: ignore[no-untyped-call]
        self._limit = limit
        self._opened = opened

    def buildProtocol(self, addr: Any) -> Any:
        bounded = _BoundedProtocol(self, self.wrappedFactory.buildProtocol(addr), self._limit)
        self._opened(bounded)
        return bounded


class _BoundedProtocol(ProtocolWrapper):
    def __init__(self, factory: Any, protocol: Any, limit: int) -> None:
        super().__init__(factory, protocol)
        self._left = limit

    def abort(self) -> None:
        """Cut the connection, if there is one."""
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self.abort()
        else:
            super().dataReceived(data)  # type: ignore[no-untyped-call]

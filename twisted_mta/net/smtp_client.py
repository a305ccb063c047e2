"""Runs the SMTP client core on a Twisted transport, and makes the connections for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import attrs
from OpenSSL import SSL
from twisted.internet import protocol
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_mta.core.effects import Close, Send, StartTLS
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp.client import (
    AUTH_STATES,
    ClientEffect,
    Derive,
    ReadyForBody,
    SessionFailed,
    SessionReady,
    SmtpClient,
    State,
    TransactionDone,
)
from twisted_mta.core.smtp.transaction import Transaction
from twisted_mta.core.smtp.transcript import Transcript
from twisted_mta.core.tls_policy.results import Failure as TlsFailure
from twisted_mta.net.bindings import channel_bindings
from twisted_mta.net.scram_client import ScramHelper

#: Seconds for a TCP connection; RFC 5321 §4.5.4.1 names none, and a sender has other addresses to try.
CONNECT_TIMEOUT = 30.0
#: Seconds that a connection we closed may take to go.
LINGER = 10.0

T = TypeVar("T")

#: Gives the next octets of a message, b"" at its end.
ReadBody = Callable[[], Awaitable[bytes]]


class SessionError(Exception):
    """There is no session: `reply` says why, `state` how far it got (None: there is no connection)."""

    def __init__(self, state: State | None, reply: Reply, transcript: str = "") -> None:
        super().__init__(str(reply))
        self.transcript = transcript
        self.state = state
        self.reply = reply


@implementer(IHandshakeListener, IPushProducer)
class SmtpConnection(protocol.Protocol):
    """One session. Wait for `ready`, then `send` messages one after the other, then `quit`."""

    log = Logger()
    transport: Any

    def __init__(
        self,
        core: SmtpClient,
        clock: IReactorTime,
        tls: IOpenSSLClientConnectionCreator,
        scram: ScramHelper | None = None,
    ) -> None:
        """`scram` is needed where the core may log in with SCRAM."""
        self._scram = scram
        self.core = core
        self._clock = clock
        self._tls_creator = tls
        #: Fires when messages can be sent; fails with SessionError.
        self.ready: Deferred[None] = Deferred(self._cancelled)
        self._ready_told = False
        #: Called with this object once, when the connection is gone.
        self.on_end: Callable[[SmtpConnection], None] = lambda connection: None
        #: "mx.example.org [192.0.2.1]", for outcomes and the log.
        self.remote = ""
        #: The IP address of the host.
        self.address = ""
        #: The domains of the recipients so far.
        self.domains: set[str] = set()
        #: Whether the certificate had to prove the host's name for this session to be.
        self.verified = False
        #: Looks at the SSL.Connection once the handshake is done, before a word is said under TLS: None, or what is wrong.
        self.examine: Callable[[Any], TlsFailure | None] = lambda handle: None
        #: What it found.
        self.failure: TlsFailure | None = None
        #: "TLSv1.3 TLS_AES_256_GCM_SHA384", or "".
        self.tls = ""
        #: Transactions begun.
        self.transactions = 0
        #: What was said.
        self.transcript = Transcript()
        self._sending_body = False
        self._lost = False
        self._timer: IDelayedCall | None = None
        self._progress: tuple[State, int] | None = None
        self._done: Deferred[TransactionDone] | None = None
        self._read: ReadBody | None = None
        self._pumping: Deferred[None] | None = None
        self._deriving: Deferred[None] | None = None
        self._blocked = False
        self._drained: Deferred[None] | None = None

    # --- what the caller does ------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether a message can be sent."""
        return self.core.idle and not self._lost

    async def send(self, transaction: Transaction, read: ReadBody) -> TransactionDone:
        """Carry out one transaction. `read` is called once the peer wants the message, and not any more on return."""
        whole = None
        if self.core.takes_whole(transaction):
            try:
                whole = await _read_all(read)
            except Exception:  # noqa: BLE001  a body that can't be read is this message's trouble only
                self.log.failure("a message can't be read to be sent to {remote}", remote=self.remote)
                return _nobody(transaction, Reply(451, "4.3.0", "the message can't be read"))
        if not self.idle:
            everybody = frozenset(range(len(transaction.recipients)))
            gone = Reply(451, "4.4.2", "the session ended before the message was sent")
            return attrs.evolve(_nobody(transaction, gone), undecided=everybody)
        self.transactions += 1
        self.transcript.begin()
        self._read = read
        done: Deferred[TransactionDone] = Deferred()
        self._done = done
        self._perform(self.core.start(transaction, whole))
        result = await done
        if self._pumping is not None:
            pumping, self._pumping = self._pumping, None
            await pumping
        return result

    def look(self, check: Callable[[Any, T], TlsFailure | None], policy: T) -> TlsFailure | None:
        """What another policy than that of `examine` would find, while the connection is there and under TLS."""
        return None if self._lost else check(self.transport.getHandle(), policy)

    def quit(self) -> None:
        """End the session politely."""
        self._perform(self.core.quit())

    def abort(self) -> None:
        """Cut the connection."""
        if not self._lost and self.transport is not None:
            self.transport.abortConnection()

    # --- the transport's side ------------------------------------------------------------------

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)  # every write of ours is a whole batch
        self._arm_on_progress()

    def dataReceived(self, data: bytes) -> None:
        self.transcript.received(data)
        self._perform(self.core.receive(data))

    def handshakeCompleted(self) -> None:
        handle: Any = self.transport.getHandle()
        self.tls = f"{handle.get_protocol_version_name()} {handle.get_cipher_name()}"
        self.failure = self.examine(handle)
        if self.failure is not None:
            # RFC 3463 §3.8: X.7.5, cryptographic failure.
            self._perform(self.core.distrusted(Reply(451, "4.7.5", f"TLS: {self.failure.text}")))
            return
        self._perform(self.core.secured(channel_bindings(handle, client=True)))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self._disarm()
        why = "" if isinstance(reason.value, ConnectionDone) else _reason(reason.value)
        self._perform(self.core.connection_lost(why))
        self.resumeProducing()
        self.on_end(self)

    # IPushProducer: the transport's write buffer is full, or drained.

    def pauseProducing(self) -> None:
        self._blocked = True

    def resumeProducing(self) -> None:
        self._blocked = False
        if self._drained is not None:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def stopProducing(self) -> None:
        """The transport is gone; connectionLost follows."""

    # --- the core's side -----------------------------------------------------------------------

    def _perform(self, effects: Iterable[ClientEffect]) -> None:
        for effect in effects:
            match effect:
                case Send(data):
                    if not self._lost:
                        self._write(data)
                case StartTLS():
                    self.transport.startTLS(self._tls_creator)
                case SessionReady():
                    self._tell_ready(None)
                case SessionFailed(state, reply):
                    self._tell_ready(SessionError(state, reply, self.transcript.text()))
                case Derive():
                    self._deriving = Deferred.fromCoroutine(self._derive(effect))
                case ReadyForBody():
                    self._pumping = Deferred.fromCoroutine(self._pump())
                case TransactionDone():
                    done, self._done = self._done, None
                    if done is not None:
                        done.callback(effect)
                case Close():
                    self._close()
        self._arm_on_progress()

    def _write(self, data: bytes) -> None:
        if self._sending_body:
            self.transcript.message(len(data))
        else:
            self.transcript.sent(data, secret=self.core.state in AUTH_STATES)
        self.transport.write(data)

    def _cancelled(self, _: Deferred[None]) -> None:
        self._ready_told = True
        self.abort()

    def _tell_ready(self, error: SessionError | None) -> None:
        if self._ready_told:
            return  # a session that fails later tells so by its transaction, and by `idle`
        self._ready_told = True
        if error is None:
            self.ready.callback(None)
        else:
            self.ready.errback(error)

    async def _derive(self, wish: Derive) -> None:
        assert self._scram is not None  # its nonces made the core use SCRAM
        try:
            salted = await self._scram.derive(wish)
        except Exception:  # noqa: BLE001  the session can't go on, others can
            self.log.failure("can't compute the keys for SCRAM with {remote}", remote=self.remote)
            self._perform(self.core.abort("the keys for SCRAM can't be computed"))
        else:
            self._perform(self.core.derived(salted))

    async def _pump(self) -> None:
        """Send the message no faster than the peer takes it."""
        assert self._read is not None  # set by `send`, before the core can be ready for it
        self.transport.registerProducer(self, True)
        try:
            while self.core.wants_body and (chunk := await self._read()):
                self._sending_body = True
                self._perform(self.core.body(chunk))
                self._sending_body = False
                self._arm()  # RFC 5321 §4.5.3.2.5: for each block
                if self._blocked and not self._lost:
                    self._drained = Deferred()
                    await self._drained
            self._perform(self.core.end_body())
        except Exception:  # noqa: BLE001  a body that can't be read is this message's trouble only
            self.log.failure("a message can't be read while it is sent to {remote}", remote=self.remote)
            self._perform(self.core.abort("the message can't be read"))
        finally:
            self.transport.unregisterProducer()

    def _close(self) -> None:
        self._disarm()
        if not self._lost:
            self._timer = self._clock.callLater(LINGER, self.transport.abortConnection)
            self.transport.loseConnection()

    # --- deadlines -----------------------------------------------------------------------------

    def _arm_on_progress(self) -> None:
        """Octets alone are no progress: a peer can't hold us by dribbling."""
        progress = (self.core.state, self.core.replies)
        if progress != self._progress:
            self._progress = progress
            self._arm()

    def _arm(self) -> None:
        if self._lost or self.core.state is State.CLOSED:
            return
        self._disarm()
        if self.core.timeout is not None:
            self._timer = self._clock.callLater(self.core.timeout, self._timed_out)

    def _disarm(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _timed_out(self) -> None:
        self._perform(self.core.timed_out())
        self.abort()  # there may be much in the buffer that a dead peer will never take


async def _read_all(read: ReadBody) -> bytes:
    pieces = []
    while piece := await read():
        pieces.append(piece)
    return b"".join(pieces)


def _nobody(transaction: Transaction, reply: Reply) -> TransactionDone:
    """Nobody got it, and for all it is `reply` that says why."""
    return TransactionDone(tuple(reply for _ in transaction.recipients))


def _reason(error: BaseException | None) -> str:
    if not isinstance(error, SSL.Error):
        return str(error)
    # Mostly one list of (library, function, reason) triples; but SysCallError and others have their own.
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    details = ", ".join(str(entry[-1]) for entry in entries)
    return f"TLS: {details or str(error) or 'the handshake failed'}"


@implementer(IOpenSSLClientConnectionCreator)
class OpportunisticTls:
    """TLS without a look at the certificate: better than plaintext, and no promise (RFC 7435 §3)."""

    def __init__(self, context: SSL.Context, host: str) -> None:
        """`host` is sent as SNI (RFC 6066 §3); "" for none."""
        self._context = context
        self._host = host

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        if self._host:
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        return connection


def opportunistic_context() -> SSL.Context:
    """The context for OpportunisticTls; make one and keep it."""
    options = CertificateOptions(raiseMinimumTo=TLSVersion.TLSv1_2)
    context: SSL.Context = options.getContext()
    return context


async def dial(
    reactor: Any,
    connection: SmtpConnection,
    address: str,
    port: int,
    *,
    timeout: float = CONNECT_TIMEOUT,
    bind: str = "",
) -> SmtpConnection:
    """Connect to an IP address, from the local address `bind` ("": any), within `timeout` seconds.

    There is a session once `connection.ready` fires. Raises SessionError; can be cancelled.
    """
    kind = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
    endpoint = kind(reactor, address, port, timeout=timeout, bindAddress=(bind, 0) if bind else None)
    try:
        factory = protocol.Factory.forProtocol(lambda: connection)
        factory.noisy = False
        await endpoint.connect(factory)
    except Exception as error:  # refused, timed out, unreachable, no such network ...
        reply = Reply(451, "4.4.1", f"can't connect to {connection.remote}: {error}")
        raise SessionError(None, reply) from error
    return connection

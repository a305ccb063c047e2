"""Runs the SMTP client core on a Twisted transport, and makes the connections for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

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
from twisted.internet.tcp import Connection as TCPConnection
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
    SendText,
    SessionFailed,
    SessionReady,
    SmtpClient,
    State,
    TransactionDone,
)
from twisted_mta.core.smtp.transaction import Transaction
from twisted_mta.core.smtp.transcript import Transcript
from twisted_mta.core.smtp.whole import Whole
from twisted_mta.core.tls_policy.results import Failure as TlsFailure
from twisted_mta.net.bindings import ChannelBindings
from twisted_mta.net.scram_client import ScramHelper

#: Seconds for a TCP connection; RFC 5321 §4.5.4.1 names none, and a sender has other addresses to try.
CONNECT_TIMEOUT = 30.0
#: Seconds that a connection we closed may take to go.
LINGER = 10.0
#: Octets of a read: replies are short. See `net.eager` for what it costs to make more room.
_ROOM = 4096

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


class _Order(NamedTuple):
    """A transaction that is to be carried out, or is under way."""

    transaction: Transaction
    read: ReadBody
    whole: Whole | None
    done: Deferred[TransactionDone]


@implementer(IHandshakeListener, IPushProducer)
class SmtpConnection(protocol.Protocol):
    """One session. Wait for `ready`, then `send` messages, then `quit`."""

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
        #: Transactions that were asked for.
        self.transactions = 0
        #: What was said.
        self.transcript = Transcript()
        self._lost = False
        self._timer: IDelayedCall | None = None
        #: When the peer has had its time; None: it owes us nothing.
        self._deadline: float | None = None
        self._progress: tuple[State, int] | None = None
        #: Transactions to come, and those that the core works on, in order.
        self._waiting: deque[_Order] = deque()
        self._under_way: deque[_Order] = deque()
        #: What is to be done, and what is to be written at the end of it.
        self._effects: deque[ClientEffect] = deque()
        self._out: list[bytes] = []
        self._performing = False
        self._body_wanted = False
        self._pumping: Deferred[None] | None = None
        self._deriving: Deferred[None] | None = None
        self._blocked = False
        self._drained: Deferred[None] | None = None

    # --- what the caller does ------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether a message can be sent."""
        return self.core.idle and not self._lost

    def send(
        self, transaction: Transaction, read: ReadBody, whole: Whole | None = None
    ) -> Deferred[TransactionDone]:
        """Carry out one transaction: at once, or as soon as SMTP allows it behind those that were sent before.

        `whole` is the message, if it is in memory; else `read` is called once the peer wants it, and not any more when
        the result is there.
        """
        done: Deferred[TransactionDone] = Deferred()
        self.transactions += 1
        self._waiting.append(_Order(transaction, read, whole, done))
        self._perform(())
        return done

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
        if isinstance(self.transport, TCPConnection):
            self.transport.bufferSize = _ROOM
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
        self._perform(self.core.secured(ChannelBindings(handle, client=True)))

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
        """Do this, and start what may start then; all that comes of it is sent in one write."""
        self._effects.extend(effects)
        if self._performing:  # whoever was told of something answers at once: the loop below goes on
            return
        self._performing = True
        try:
            while self._effects or self._start_next():
                if self._effects:
                    self._perform_one(self._effects.popleft())
        finally:
            self._performing = False
        self._flush()
        self._arm_on_progress()
        if self._body_wanted:
            self._body_wanted = False
            self._pumping = Deferred.fromCoroutine(self._pump())

    def _perform_one(self, effect: ClientEffect) -> None:
        match effect:
            case Send(data):
                self.transcript.sent(data, secret=self.core.state in AUTH_STATES)
                self._out.append(data)
            case SendText(data):
                self.transcript.message(len(data))
                self._out.append(data)
            case TransactionDone():
                self._tell_done(effect)
            case ReadyForBody():
                self._body_wanted = True
            case StartTLS():
                self._flush()
                self.transport.startTLS(self._tls_creator)
            case SessionReady():
                self._tell_ready(None)
            case SessionFailed(state, reply):
                self._tell_ready(SessionError(state, reply, self.transcript.text()))
            case Derive():
                self._deriving = Deferred.fromCoroutine(self._derive(effect))
            case Close():
                self._flush()
                self._close()

    def _start_next(self) -> bool:
        """Start a transaction, if one waits and it may start."""
        if not self._waiting:
            return False
        if self.core.can_start and not self._lost:
            order = self._waiting.popleft()
            self.transcript.begin(amid=bool(self._under_way))
            try:
                effects = self.core.start(order.transaction, order.whole)
            except Exception:  # noqa: BLE001  an address that fits into no command: a bug, and of this message only
                order.done.errback()
                return True
            self._under_way.append(order)
            self._effects.extend(effects)
            return True
        if self._under_way:
            return False
        order = self._waiting.popleft()
        gone = Reply(451, "4.4.2", "the session ended before the message was sent")
        everybody = range(len(order.transaction.recipients))
        order.done.callback(TransactionDone(tuple(gone for _ in everybody), undecided=frozenset(everybody)))
        return True

    def _tell_done(self, result: TransactionDone) -> None:
        order = self._under_way.popleft()
        self._body_wanted = False
        if self._pumping is not None and not self._pumping.called:
            # It reads the message until it notices.
            self._pumping.addCallback(lambda _: order.done.callback(result))
        else:
            order.done.callback(result)

    def _flush(self) -> None:
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            if not self._lost:
                _write(self.transport, data)

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
        read = self._under_way[0].read
        self.transport.registerProducer(self, True)
        try:
            while self.core.wants_body and (chunk := await read()):
                self._perform(self.core.body(chunk))
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
        timeout = self.core.timeout
        if timeout is None:
            self._deadline = None
            return
        self._deadline = self._clock.seconds() + timeout
        # A timer that fires too early looks again: far cheaper than to set it anew for each reply.
        if self._timer is None:
            self._timer = self._clock.callLater(timeout, self._look_at_the_clock)
        elif self._timer.getTime() > self._deadline:
            self._timer.reset(timeout)

    def _disarm(self) -> None:
        self._deadline = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _look_at_the_clock(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        left = self._deadline - self._clock.seconds()
        if left > 0:
            self._timer = self._clock.callLater(left, self._look_at_the_clock)
            return
        self._perform(self.core.timed_out())
        self.abort()  # there may be much in the buffer that a dead peer will never take


def _write(transport: Any, data: bytes) -> None:
    """As transport.write; but the kernel gets at once what it takes.

    Twisted waits for the socket to be reported writable: two changes of the poll set and a turn of the reactor for each
    write, which was a quarter of what a transaction with one recipient cost.
    """
    # TLS has a transport of its own; with octets waiting, it is not yet the turn of these.
    plain = isinstance(transport, TCPConnection) and not transport.TLS and transport.connected
    if plain and not (transport.dataBuffer or transport._tempDataLen or transport.disconnecting):
        with suppress(OSError):  # full, or broken: that comes out when it is written to again
            data = data[transport.socket.send(data) :]
        if not data:
            return
    transport.write(data)


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

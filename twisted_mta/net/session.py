"""Runs a protocol core on a Twisted transport: one class for SMTP, POP3 and IMAP servers.

`Session` performs the effects of a `core.effects.Core` and asks a `SessionHandler` what the core asks. It adds what
every session needs: replies of a pipelined batch in one write, back-pressure in both directions, deadlines, TLS.
`SessionFactory` counts and limits the sessions, and ends them when the server stops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

from OpenSSL import SSL
from twisted.internet import protocol
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_mta.core.admission import Admission, Bounds
from twisted_mta.core.effects import Ask, BodyChunk, Close, Core, Effect, Pace, Send, StartTLS
from twisted_mta.net.bindings import ChannelBindings
from twisted_mta.net.patience import Patience
from twisted_mta.net.tls import ServerTls
from twisted_mta.net.tls_layer import TlsLayer

#: Seconds for the peer to take the last words and close its side.
_LINGER = 60.0


class SessionHandler(Protocol):
    """What one session needs besides its core: the answers, and somewhere to put message octets."""

    def attached(self, session: Session) -> None:
        """The session exists; called once, before anything else. IDLE and the like keep it for `Session.perform`."""
        ...

    def ask(self, question: Any) -> Any:
        """Answer an Ask: with a value, an Awaitable of one, or an AsyncIterator of the parts of a long answer."""
        ...

    def body(self, data: bytes) -> Awaitable[None] | None:
        """Take a BodyChunk; an Awaitable holds the peer back until it is done."""
        ...

    def secured(self, tls: str) -> None:
        """TLS is there: `tls` describes it ("TLSv1.3 TLS_AES_256_GCM_SHA384")."""
        ...

    def closed(self) -> None:
        """The connection is gone: drop what is unfinished. Called once."""
        ...


@implementer(IPushProducer)
class Session(protocol.Protocol):
    """One connection of a server. `core` and `handler` belong to it alone."""

    log = Logger()
    factory: SessionFactory
    #: For the log: the address of the peer, behind a proxy that of the client.
    peer = ""
    #: A TCP, UNIX or in-memory transport; Twisted's interfaces are too many to name one.
    transport: Any

    def __init__(
        self,
        core: Core,
        handler: SessionHandler,
        clock: IReactorTime,
        tls: ServerTls | None = None,
        implicit_tls: bool = False,
        handshake: float = 60.0,
    ) -> None:
        """`handshake` is how many seconds the peer has for that of TLS."""
        self._core = core
        self._handler = handler
        self._clock = clock
        self._tls = tls
        #: Where the octets go through, once TLS has begun.
        self._layer: TlsLayer | None = None
        self._implicit_tls = implicit_tls
        self._handshake = Pace(handshake, handshake, "the TLS handshake")
        self._handshaking = implicit_tls
        self._effects: deque[Effect] = deque()
        self._performing = False
        #: What we wait for: the answer to an Ask or a slow body sink. At most one.
        self._waiting: Deferred[Any] | None = None
        self._closing = False
        self._lost = False
        self._patience = Patience(clock, self.time_out)
        self._reading = True
        self._write_blocked = False
        self._drained: Deferred[None] | None = None
        self._ended: list[Deferred[None]] = []
        #: Seconds before the greeting, what a peer is told that speaks in them, and their end.
        self._hold = 0.0
        self._early: Callable[[], bytes] | None = None
        self._held: IDelayedCall | None = None
        handler.attached(self)

    def hold_greeting(self, seconds: float, early: Callable[[], bytes]) -> None:
        """Greet only after `seconds`. A peer that speaks before is told what `early` gives, and cut off.

        To be called before there is a transport; a session with TLS from the first octet can't be held.
        """
        self._hold, self._early = seconds, early

    # --- the transport's side ------------------------------------------------------------------

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)
        if self._early is not None:
            self._held = self._clock.callLater(self._hold, self._greet)
        elif self._implicit_tls:
            self._start_tls()
            self._arm()
        else:
            self._greet()

    def _greet(self) -> None:
        self._held = None
        if not self._closing:
            self.perform(self._core.greet())
            self._await_peer()

    def dataReceived(self, data: bytes) -> None:
        if self._layer is not None:
            data = self._decrypted(self._layer, data)
        if self._closing or not data:
            return
        if self._held is not None:
            assert self._early is not None  # nothing else holds the greeting
            self.transport.write(self._early())
            self._close()
            return
        if self._waiting is not None:
            # One read more is buffered by the core, then the peer has to wait for us.
            self._pause_reading()
        self.perform(self._core.receive(data))
        if self._waiting is None:
            self._arm()

    def _decrypted(self, layer: TlsLayer, data: bytes) -> bytes:
        if layer.ready:
            return layer.receive(data)
        if not layer.shake(data):
            return b""
        self._secured(layer.connection)
        return layer.receive(b"")  # what came with the end of the handshake

    def _secured(self, connection: SSL.Connection) -> None:
        self._handler.secured(f"{connection.get_protocol_version_name()} {connection.get_cipher_name()}")
        self._handshaking = False
        self.perform(self._core.secured(ChannelBindings(connection)))
        if self._implicit_tls:
            self.perform(self._core.greet())
        self._await_peer()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = self._closing = True
        self._effects.clear()
        self._patience.stop()
        if self._held is not None and self._held.active():
            self._held.cancel()
        # What is under way (a commit, say) is not cancelled: its result only has nobody to go to.
        self._release()
        self._handler.closed()
        self.factory.session_ended(self)
        for ended in self._ended:
            ended.callback(None)

    # IPushProducer: the transport's write buffer is full, or drained.

    def pauseProducing(self) -> None:
        self._write_blocked = True
        self._arm()  # a peer that does not read is cut off by the same timer
        self._pause_reading()

    def resumeProducing(self) -> None:
        self._release()
        if self._waiting is not None:
            self._patience.our_turn()
        else:
            self._await_peer()
        self._resume_reading()

    def stopProducing(self) -> None:
        """The transport is gone; connectionLost follows."""

    def _release(self) -> None:
        self._write_blocked = False
        if self._drained is not None:
            drained, self._drained = self._drained, None
            drained.callback(None)

    # --- the core's side -----------------------------------------------------------------------

    def perform(self, effects: Iterable[Effect]) -> None:
        """Perform effects in order; they queue behind those that still wait for an answer."""
        queue = self._effects
        queue.extend(effects)
        if self._performing or self._lost:
            return
        self._performing = True
        out: list[bytes] = []
        try:
            while queue and self._waiting is None and not self._closing:
                effect = queue.popleft()
                if isinstance(effect, Send):
                    out.append(effect.data)
                elif isinstance(effect, Ask):
                    # What comes of the answer goes ahead of what may be queued behind the question.
                    queue.extendleft(reversed(self._ask(effect.question, out)))
                else:
                    self._perform_one(effect, out)
        finally:
            self._performing = False
            if out:
                self._flush(out)

    def _perform_one(self, effect: BodyChunk | StartTLS | Close, out: list[bytes]) -> None:
        if isinstance(effect, BodyChunk):
            pending = self._handler.body(effect.data)
            if pending is not None:
                self._pause_reading()  # a question can take one read more; a message has as much as there is room
                self._wait(pending, _nothing)
            return
        self._flush(out)
        if isinstance(effect, StartTLS):
            self._start_tls()
        else:
            self._close()

    def _start_tls(self) -> None:
        assert self._tls is not None  # or else nobody is offered it
        self._handshaking = True
        self._layer = TlsLayer(self._tls.new_connection(), self.transport)

    def _close(self) -> None:
        self._closing = True
        # TLS says goodbye only once nobody produces, and hears the peer's goodbye only while it reads.
        self.transport.unregisterProducer()
        if not self._reading:
            self._reading = True
            self.transport.resumeProducing()
        (self._layer or self.transport).loseConnection()
        self._arm()

    def _ask(self, question: Any, out: list[bytes]) -> Sequence[Effect]:
        """What comes of the answer; nothing as yet where there is none at once."""
        try:
            answer = self._handler.ask(question)
        except Exception:  # noqa: BLE001  one session's bug must not take the others down
            self.log.failure("a question of the session failed")
            return self._core.fault()
        # Most are there at once, so it must not cost much to see that; to ask a type for what it has not costs ten times
        # as much as to ask a value.
        if hasattr(answer, "__await__"):
            self._wait(answer, self._core.answer)
        elif hasattr(answer, "__anext__"):
            self._flush(out)
            self._wait(self._pump(answer), _nothing)
        else:
            return self._core.answer(answer)
        return ()

    async def _pump(self, parts: AsyncIterator[object]) -> None:
        """Give a long answer to the core part by part, no faster than the peer reads."""
        part = await anext(parts, None)
        more = True
        while more:
            following = await anext(parts, _END)
            more = following is not _END
            self._write_now(self._core.answer(part, more=more))
            part = following
            if self._write_blocked:
                self._drained = Deferred()
                await self._drained
            if self._lost:
                return

    def _write_now(self, effects: Iterable[Effect]) -> None:
        """Parts of an answer overtake what is queued: Sends at once, the rest (next commands) behind."""
        out: list[bytes] = []
        rest: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Send) and not rest:
                out.append(effect.data)
            else:
                rest.append(effect)
        self._effects.extend(rest)
        self._flush(out)

    def _wait(self, awaitable: Awaitable[Any], then: Callable[[Any], Sequence[Effect]]) -> None:
        """Hold the effects until `awaitable` is done, then perform what `then` makes of its result."""
        self._patience.our_turn()
        waiting = awaitable if isinstance(awaitable, Deferred) else ensureDeferred(_coroutine(awaitable))
        self._waiting = waiting
        waiting.addCallback(self._succeeded, then).addErrback(self._failed)

    def _succeeded(self, result: Any, then: Callable[[Any], Sequence[Effect]]) -> None:
        self._waiting = None
        if not self._lost:
            self._go_on(then(result))

    def _failed(self, failure: Failure) -> None:
        self._waiting = None
        self.log.failure("a question of the session failed", failure=failure)
        if not self._lost:
            self._go_on(self._core.fault())

    def _go_on(self, effects: Sequence[Effect]) -> None:
        self._effects.extendleft(reversed(effects))
        if not self._performing:
            self.perform(())
        if self._waiting is None:
            self._arm()
            self._resume_reading()

    def _flush(self, out: list[bytes]) -> None:
        if out and not self._lost:
            (self._layer or self.transport).write(b"".join(out))
            out.clear()

    # --- deadlines and flow --------------------------------------------------------------------

    def _await_peer(self) -> None:
        """All that could be done is done."""
        if self._waiting is None:
            self._arm()

    def _arm(self) -> None:
        if self._lost:
            return
        core = self._core
        pace = self._handshake if self._handshaking else core.pace
        if not self._closing and not self._write_blocked:
            self._patience.peer_turn(pace, core.begun)
        else:
            self._patience.at_most(min(pace.silence, _LINGER) if self._closing else pace.silence)

    def time_out(self) -> None:
        """End the session as one whose peer took too long."""
        if self._write_blocked or self._closing:
            self.transport.abortConnection()
            return
        pace = self._handshake if self._handshaking else self._core.pace
        self.log.info(
            "{peer} took too long over {doing}",
            peer=self.peer,
            doing=pace.doing,
        )
        if self._handshaking:
            self.transport.abortConnection()  # there is no way to tell it anything
            return
        self.perform(self._core.timed_out())
        self._arm()  # and if it does not read even that, the next time is final

    def _pause_reading(self) -> None:
        if self._reading and not self._lost:
            self._reading = False
            self.transport.pauseProducing()

    def _resume_reading(self) -> None:
        if not self._reading and not self._lost and not self._write_blocked and self._waiting is None:
            self._reading = True
            self.transport.resumeProducing()

    # --- the server's side ---------------------------------------------------------------------

    def shut_down(self) -> Deferred[None]:
        """Tell the peer that the server stops, once the question under way is answered; fires when it is gone."""
        ended: Deferred[None] = Deferred()
        self._ended.append(ended)
        self.perform(self._core.shut_down())
        return ended

    def abort(self) -> None:
        """Cut the connection off."""
        self.transport.abortConnection()


_END: Any = object()


def _nothing(result: Any) -> Sequence[Effect]:
    return ()


def _coroutine(awaitable: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    return awaitable if isinstance(awaitable, Coroutine) else _result_of(awaitable)


async def _result_of(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class SessionFactory(protocol.ServerFactory):
    """Makes sessions, within limits. `make` builds one for a peer address; its errors refuse the connection."""

    noisy = False
    log = Logger()

    def __init__(
        self,
        make: Callable[[IAddress | None], Session],
        busy: bytes,
        admission: Admission | None = None,
        service: str = "",
    ) -> None:
        """`busy` is what a client is told that `admission` does not let in, before the connection is closed; `service` is
        what it is counted by there."""
        self._make = make
        self._busy = busy
        self.admission = admission or Admission(Bounds(), lambda: 0.0)
        self._service = service
        #: Those that are open, and what each of them counts as.
        self.sessions: dict[Session, str] = {}

    def buildProtocol(self, addr: IAddress | None) -> protocol.Protocol | None:
        host = getattr(addr, "host", "")
        counted = self.admission.counted(host)
        why = self.admission.enter(counted, self._service)
        if why:
            self.log.warn("refused {peer}: {why}", peer=host or "a UNIX socket", why=why)
            return _Refuse(self._busy)
        try:
            session = self._make(addr)
        except Exception:
            self.admission.leave(counted, self._service)
            raise
        session.factory, session.peer = self, host or "a UNIX socket"
        self.sessions[session] = counted
        return session

    def session_ended(self, session: Session) -> None:
        """Called by each session once."""
        counted = self.sessions.pop(session, None)
        if counted is not None:
            self.admission.leave(counted, self._service)

    async def shut_down(self, clock: IReactorTime, grace: float = 2.0) -> None:
        """End all sessions: politely first, and after `grace` seconds by force."""
        if not self.sessions:
            return
        ending = DeferredList([session.shut_down() for session in list(self.sessions)])

        def abort_all() -> None:
            for session in list(self.sessions):
                session.abort()

        force = clock.callLater(grace, abort_all)
        await ending
        if force.active():
            force.cancel()


class _Refuse(protocol.Protocol):
    """Says one line and closes."""

    transport: Any

    def __init__(self, line: bytes) -> None:
        self._line = line

    def connectionMade(self) -> None:
        self.transport.write(self._line)
        self.transport.loseConnection()

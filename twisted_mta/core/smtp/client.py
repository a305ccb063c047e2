"""The client's side of SMTP, RFC 5321: bytes in, effects out.

One `SmtpClient` is one session, which carries any number of transactions, one after the other:

    connected ... SessionReady            the greeting, EHLO, TLS and AUTH are done; `idle` is True
    start()   ... ReadyForBody            the peer wants the message: give it to `body`, then call `end_body`
                  TransactionDone         `idle` is True again, unless SessionFailed follows
    quit()    ... Close

Instead of any of these SessionFailed and Close may come, at any time; transactions under way end in a TransactionDone
each first. A TransactionDone may also come without ReadyForBody, when everything was refused, or when `start` was given
the message. With PIPELINING the next transaction may start as soon as all of the message is sent, before it is answered
(`can_start`); TransactionDone comes in the order of `start`. Events of one batch may overtake the caller, who looks at
`can_start` before each `start`. The caller tells of the passing of `timeout` seconds, counted from the last event in
either direction, by `timed_out`.

`sending` carries out transactions and `login` logs in; here is what they have in common, the session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import attrs

from twisted_mta.core.effects import Close, Send, StartTLS
from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl.base import SaslError
from twisted_mta.core.sasl.client import Derive, Login
from twisted_mta.core.smtp.client_events import (
    AUTH_STATES,
    ClientEffect,
    ReadyForBody,
    SendText,
    SessionFailed,
    SessionReady,
    State,
    Timeouts,
    TlsUse,
    TransactionDone,
    Wire,
)
from twisted_mta.core.smtp.login import LoginDialogue
from twisted_mta.core.smtp.reply_parser import ReplyError, ReplyParser
from twisted_mta.core.smtp.sending import Sending
from twisted_mta.core.smtp.transaction import Transaction, parse_extensions
from twisted_mta.core.smtp.whole import Whole
from twisted_mta.core.values import value

__all__ = [
    "AUTH_STATES",
    "ClientEffect",
    "Derive",
    "Login",
    "ReadyForBody",
    "SendText",
    "SessionFailed",
    "SessionReady",
    "SmtpClient",
    "State",
    "Timeouts",
    "TlsUse",
    "TransactionDone",
]


class SmtpClient:
    """One session; see the module's docstring for its life."""

    def __init__(
        self,
        hostname: str,
        *,
        tls: TlsUse = TlsUse.OPPORTUNISTIC,
        login: Login | None = None,
        nonces: Callable[[], bytes] | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        """`hostname` is our name for EHLO. A `login` is used only under TLS, and the session fails without.

        `nonces` makes those of SCRAM: printable ASCII without a comma, never the same. Without it SCRAM is not used.
        """
        self._hostname = hostname.encode("ascii", "replace")
        self._tls_use = tls
        self._login = login
        self._nonces = nonces
        self._seconds = _seconds(timeouts or Timeouts())
        self._parser = ReplyParser()
        self._wire = Wire()
        self._wire.pending.append(State.GREETING)
        self._bindings: Mapping[str, bytes] = {}
        self._dialogue: LoginDialogue | None = None
        #: Why we break off an AUTH.
        self._cancelled = Reply(451, "4.7.0", "")
        #: The transactions under way: the one that is answered first, and perhaps one that follows it.
        self._sendings: deque[Sending] = deque()
        #: The peer may hold a transaction that failed: RSET before the next.
        self._dirty = False
        #: Whether the session is encrypted; set by `secured`.
        self.tls = False
        #: What the peer's last EHLO answer offers: upper-case keyword -> parameters.
        self.extensions: Mapping[str, str] = {}
        #: Replies received: what grows when the peer makes progress, other than by dribbling octets.
        self.replies = 0
        #: The peer's greeting, for the log.
        self.greeting: Reply | None = None

    # --- what the caller sees ------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What is waited for."""
        return self._wire.state

    @property
    def idle(self) -> bool:
        """Whether the session can carry transactions, and none is under way."""
        return self._wire.state is State.IDLE

    @property
    def can_start(self) -> bool:
        """Whether `start` may be called."""
        if not self._sendings:
            return self.idle
        return len(self._sendings) == 1 and self._sendings[0].may_be_followed

    @property
    def wants_body(self) -> bool:
        """Whether `body` and `end_body` have an effect."""
        return bool(self._sendings) and self._sendings[0].wants_body

    @property
    def timeout(self) -> float | None:
        """Seconds to wait for the peer in this state; None when it owes us nothing."""
        return self._seconds[self._wire.state]

    @property
    def mechanism(self) -> str:
        """The SASL mechanism that was used last, or ""."""
        return self._dialogue.name if self._dialogue is not None else ""

    def receive(self, data: bytes) -> Sequence[ClientEffect]:
        """Octets from the peer, split anywhere."""
        if self.state in (State.HANDSHAKE, State.CLOSED):
            return ()  # RFC 3207 §4.2: nothing that came in the clear counts after STARTTLS
        self._parser.feed(data)
        try:
            while (reply := self._parser.next()) is not None:
                self._on_reply(reply)  # one that ends the session empties the parser
        except ReplyError as error:
            self._garbled(str(error))
        return self._take()

    def secured(self, bindings: Mapping[str, bytes] | None = None) -> Sequence[ClientEffect]:
        """The handshake that StartTLS asked for is done (or the connection began with TLS, before the greeting).

        `bindings` are its channel bindings by type, the best first; for SCRAM-SHA-256-PLUS.
        """
        self.tls = True
        self._bindings = {} if bindings is None else bindings
        if self.state is State.HANDSHAKE:
            self._wire.rest = State.IDLE
            self.extensions = {}  # RFC 3207 §4.2: what was offered in the clear is forgotten
            self._command(State.EHLO, b"EHLO " + self._hostname)
        return self._take()

    def distrusted(self, reply: Reply) -> Sequence[ClientEffect]:
        """The handshake is done, and this is not who it should be: no further word to it."""
        if self.state is not State.CLOSED:
            self._over(reply)
        return self._take()

    def derived(self, salted: bytes) -> Sequence[ClientEffect]:
        """What Derive asked for."""
        if self.state is State.DERIVING:
            dialogue = self._logging_in()
            self._wire.rest = State.IDLE
            self._go_on_with_login(lambda: dialogue.derived(salted))
        return self._take()

    def start(self, transaction: Transaction, whole: Whole | None = None) -> Sequence[ClientEffect]:
        """Begin a transaction with at least one recipient; `whole` is its message if the caller has it in memory.

        Raises RuntimeError unless `can_start`.
        """
        if not self.can_start or not transaction.recipients:
            raise RuntimeError(f"no transaction can start: {self.state}")
        sending = Sending(transaction, self._wire, self.extensions, whole)
        # One that follows finds no other at the peer: see Sending.may_be_followed.
        sending.begin(dirty=self._dirty and not self._sendings)
        self._sendings.append(sending)
        self._look_for_end()
        return self._take()

    def body(self, data: bytes) -> Sequence[ClientEffect]:
        """Octets of the message, CRLF line ends, split anywhere; nothing when the transaction ended meanwhile."""
        if self.wants_body:
            self._sendings[0].body(data)
        return self._take()

    def end_body(self) -> Sequence[ClientEffect]:
        """The message is complete."""
        if self.wants_body:
            self._sendings[0].end_body()
        return self._take()

    def quit(self) -> Sequence[ClientEffect]:
        """End the session: with QUIT if it is idle, otherwise at once."""
        if self.idle:
            self._command(State.QUIT, b"QUIT")
        elif self.state not in (State.QUIT, State.CLOSED):
            self._over(Reply(451, "4.4.2", "we ended the session"))
        return self._take()

    def abort(self, why: str) -> Sequence[ClientEffect]:
        """End the session at once because of a fault of ours (the message can't be read, say)."""
        if self.state is not State.CLOSED:
            self._over(Reply(451, "4.3.0", why))
        return self._take()

    def timed_out(self) -> Sequence[ClientEffect]:
        """`timeout` seconds passed and nothing happened."""
        if self.state is not State.CLOSED:
            self._over(Reply(451, "4.4.2", f"timeout, waiting for {self.state.value}"))
        return self._take()

    def connection_lost(self, why: str = "") -> Sequence[ClientEffect]:
        """The connection is gone."""
        if self.state is not State.CLOSED:
            detail = f" ({why})" if why else ""
            self._over(Reply(451, "4.4.2", f"lost the connection, waiting for {self.state.value}{detail}"))
        return self._take()

    # --- replies -------------------------------------------------------------------------------

    def _on_reply(self, reply: Reply) -> None:
        self.replies += 1
        pending = self._wire.pending
        state = pending[0] if pending else self._wire.rest
        row, digit = _TABLE[state], reply.code // 100
        answered = row.of.get(digit)
        if state is State.QUIT:
            self._close()
        elif reply.code == 421:  # RFC 5321 §3.8: may answer any command
            self._over(reply, theirs=True)
        elif answered is not None:
            pending.popleft()
            self._deliver(answered, reply)
        elif digit in row.on:
            if pending:
                pending.popleft()
            row.on[digit](self, reply)
        else:
            self._garbled(f"unexpected reply, waiting for {state.value}: {reply}")

    def _greeted(self, reply: Reply) -> None:
        self.greeting = reply
        self._command(State.EHLO, b"EHLO " + self._hostname)

    def _say_helo(self, _: Reply) -> None:
        self._command(State.HELO, b"HELO " + self._hostname)  # RFC 5321 §3.2, §4.1.1.1

    def _ehlo_accepted(self, reply: Reply) -> None:
        self.extensions = parse_extensions(reply)
        if not self.tls and self._tls_use is not TlsUse.NEVER and "STARTTLS" in self.extensions:
            self._command(State.STARTTLS, b"STARTTLS")
        else:
            self._established()

    def _helo_accepted(self, _: Reply) -> None:
        self.extensions = {}
        self._established()

    def _start_tls(self, _: Reply) -> None:
        self._parser.clear()  # RFC 3207 §4.2, and no injected reply survives the handshake
        self._wire.rest = State.HANDSHAKE
        self._wire.out.append(StartTLS())

    def _no_tls(self, reply: Reply) -> None:
        if self._tls_use is TlsUse.REQUIRED:
            self._give_up(State.STARTTLS, reply)
        else:
            self._established()

    def _established(self) -> None:
        """EHLO or HELO is done, and TLS is there if it is going to be."""
        if not self.tls and self._tls_use is TlsUse.REQUIRED:
            self._give_up(State.EHLO, Reply(451, "4.7.10", "the next host offers no TLS, which is required"))
        elif self._login is None:
            self._wire.out.append(SessionReady())
        elif not self.tls:
            why = Reply(451, "4.7.0", "we send no password over a connection without TLS")
            self._give_up(State.AUTH, why)
        else:
            offered = self.extensions.get("AUTH", "")
            self._dialogue = LoginDialogue(self._login, offered, self._nonces, self._bindings)
            self._try_login()

    # --- the login -----------------------------------------------------------------------------

    def _try_login(self) -> None:
        line = self._logging_in().begin()
        if line is None:
            why = "the next host offers no way to log in that we know (SCRAM-SHA-256, PLAIN, LOGIN)"
            self._give_up(State.AUTH, Reply(451, "4.7.0", why))
        else:
            self._command(State.AUTH, line)

    def _challenged(self, reply: Reply) -> None:
        dialogue = self._logging_in()
        self._go_on_with_login(lambda: dialogue.challenged(reply.text))

    def _go_on_with_login(self, step: Callable[[], bytes | Derive]) -> None:
        try:
            said = step()
        except SaslError as error:
            self._cancelled = Reply(451, "4.7.0", f"login with {self.mechanism}: {error}")
            self._command(State.CANCELLED, b"*")  # RFC 4954 §4
            return
        if isinstance(said, Derive):
            self._wire.rest = State.DERIVING
            self._wire.out.append(said)
        else:
            self._command(State.AUTH, said)

    def _login_accepted(self, _: Reply) -> None:
        try:
            self._logging_in().accepted()
        except SaslError as error:
            self._give_up(State.AUTH, Reply(451, "4.7.0", f"login with {self.mechanism}: {error}"))
        else:
            self._wire.out.append(SessionReady())

    def _login_refused(self, reply: Reply) -> None:
        if self._logging_in().may_try_another:
            self._try_login()
        else:
            self._give_up(State.AUTH, reply)

    def _login_cancelled(self, _: Reply) -> None:
        self._give_up(State.CANCELLED, self._cancelled)

    def _logging_in(self) -> LoginDialogue:
        assert self._dialogue is not None  # the states of AUTH are entered with a dialogue only
        return self._dialogue

    # --- the transaction -----------------------------------------------------------------------

    def _deliver(self, answered: _Answered, reply: Reply) -> None:
        """A reply to something of the transaction."""
        # The states of a transaction are entered by `start` only, and replies come in the order of what they answer.
        sending = self._sendings[0]
        answered(sending, reply)
        if sending.result is not None:
            self._look_for_end()

    def _look_for_end(self) -> None:
        while self._sendings and (result := self._sendings[0].result) is not None:
            dirty = self._sendings.popleft().dirty
            self._dirty = self._dirty if dirty is None else dirty
            self._wire.out.append(result)

    def _interrupted(self, reply: Reply) -> None:
        """A refusal before the end of the message. Only by closing can we leave without delivering what was sent."""
        self._deliver(Sending.refused_amid, reply)
        self._over(reply)

    # --- the end -------------------------------------------------------------------------------

    def _give_up(self, state: State, reply: Reply) -> None:
        self._wire.out += [Send(b"QUIT\r\n"), SessionFailed(state, reply)]  # RFC 5321 §3.1
        self._close()

    def _garbled(self, why: str) -> None:
        self._over(Reply(451, "4.5.0", why))

    def _over(self, reply: Reply, *, theirs: bool = False) -> None:
        """The session ended with `reply` for a reason, the peer's (a 421: `theirs`) or our own."""
        state = self.state
        for sending in self._sendings:
            if sending.result is None:
                sending.broken_off(reply, theirs=theirs)
        self._look_for_end()
        if state is not State.QUIT:
            self._wire.out.append(SessionFailed(state, reply))
        self._close()

    def _close(self) -> None:
        self._wire.pending.clear()
        self._parser.clear()
        self._wire.rest = State.CLOSED
        self._wire.out.append(Close())

    # --- helpers -------------------------------------------------------------------------------

    def _command(self, state: State, line: bytes) -> None:
        self._wire.say((state, line + b"\r\n"))

    def _take(self) -> Sequence[ClientEffect]:
        out, self._wire.out = self._wire.out, []
        return out


_Handler = Callable[[SmtpClient, Reply], None]
_Answered = Callable[[Sending, Reply], None]


@value
class _Row:
    """`timeout` names a field of Timeouts. `on` says what is done on a reply by its first digit, `of` what the transaction
    does; others are an error."""

    timeout: str
    on: Mapping[int, _Handler] = attrs.field(factory=dict)
    of: Mapping[int, _Answered] = attrs.field(factory=dict)


def _in(state: State) -> _Handler:
    """The session is refused in this state."""
    return lambda client, reply: client._give_up(state, reply)


def _of(answered: _Answered) -> Mapping[int, _Answered]:
    return dict.fromkeys((2, 4, 5), answered)


_C, _S = SmtpClient, Sending
_CANCELLED = dict.fromkeys((2, 3, 4, 5), _C._login_cancelled)
#: The whole life of a session.
_TABLE: Mapping[State, _Row] = {
    State.GREETING: _Row("greeting", {2: _C._greeted, 4: _in(State.GREETING), 5: _in(State.GREETING)}),
    State.EHLO: _Row("command", {2: _C._ehlo_accepted, 4: _in(State.EHLO), 5: _C._say_helo}),
    State.HELO: _Row("command", {2: _C._helo_accepted, 4: _in(State.HELO), 5: _in(State.HELO)}),
    State.STARTTLS: _Row("tls", {2: _C._start_tls, 4: _C._no_tls, 5: _C._no_tls}),
    State.HANDSHAKE: _Row("tls"),
    State.AUTH: _Row(
        "command", {2: _C._login_accepted, 3: _C._challenged, 4: _C._login_refused, 5: _C._login_refused}
    ),
    State.DERIVING: _Row(""),
    State.CANCELLED: _Row("command", _CANCELLED),
    State.IDLE: _Row(""),
    State.RSET: _Row("command", of={2: _S.was_reset}),
    State.MAIL: _Row("command", of=_of(_S.mail_answered)),
    State.RCPT: _Row("command", of=_of(_S.rcpt_answered)),
    State.DATA: _Row("data", of={3: _S.data_accepted, 4: _S.data_refused, 5: _S.data_refused}),
    State.BODY: _Row("block", {4: _C._interrupted, 5: _C._interrupted}),
    State.CHUNK: _Row("block", of=_of(_S.chunk_answered)),
    State.FINAL: _Row("final", of=_of(_S.message_answered)),
    State.DISCARD: _Row("final", of=_of(_S.discarded)),
    State.QUIT: _Row("quit"),
    State.CLOSED: _Row(""),
}


def _seconds(timeouts: Timeouts) -> Mapping[State, float | None]:
    """How long to wait in each state."""
    return {state: getattr(timeouts, row.timeout) if row.timeout else None for state, row in _TABLE.items()}

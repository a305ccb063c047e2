"""The client's side of SMTP, RFC 5321: bytes in, effects out.

One `SmtpClient` is one session, which carries any number of transactions, one at a time:

    connected ... SessionReady            the greeting, EHLO, TLS and AUTH are done; `idle` is True
    start()   ... ReadyForBody            the peer said 354: give the message to `body`, then call `end_body`
                  TransactionDone         `idle` is True again, unless SessionFailed follows
    quit()    ... Close

Instead of any of these SessionFailed and Close may come, at any time; a transaction under way ends in a
TransactionDone first. A TransactionDone may also come without ReadyForBody, when everything was refused. Events of one
batch may overtake the caller, who looks at `idle` before each `start`. The caller tells of the passing of `timeout`
seconds, counted from the last event in either direction, by `timed_out`.
"""

from __future__ import annotations

import base64
import enum
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import attrs

from twisted_mta.core.effects import Close, Send, StartTLS
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp.reply_parser import ReplyError, ReplyParser
from twisted_mta.core.smtp.transaction import (
    Progress,
    Transaction,
    mail_command,
    parse_extensions,
    rcpt_command,
    rcpt_refusal,
    refuse_locally,
    refuse_recipient,
    unpromised,
)


class State(enum.Enum):
    """What the next reply answers; where there is none to come, what is going on."""

    GREETING = "greeting"
    EHLO = "EHLO"
    HELO = "HELO"
    STARTTLS = "STARTTLS"
    HANDSHAKE = "TLS handshake"
    AUTH_PLAIN = "AUTH PLAIN"
    AUTH_LOGIN = "AUTH LOGIN"
    AUTH_USER = "AUTH LOGIN, user name"
    AUTH_PASSWORD = "AUTH LOGIN, password"  # noqa: S105  a state, no password
    IDLE = "idle"
    RSET = "RSET"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    BODY = "message text"
    FINAL = "end of message"
    DISCARD = "end of no message"
    QUIT = "QUIT"
    CLOSED = "closed"


AUTH_STATES = frozenset({State.AUTH_PLAIN, State.AUTH_LOGIN, State.AUTH_USER, State.AUTH_PASSWORD})


class TlsUse(enum.Enum):
    """What to do about STARTTLS."""

    #: Talk plaintext whatever is offered (or the connection is encrypted already).
    NEVER = "never"
    #: Encrypt where it is offered, RFC 3207 §4.
    OPPORTUNISTIC = "opportunistic"
    #: No mail without it.
    REQUIRED = "required"


@attrs.frozen
class Login:
    """Who we are to a smarthost."""

    user: str
    password: str = attrs.field(repr=False)


@attrs.frozen
class SessionReady:
    """The session can carry transactions."""


@attrs.frozen
class SessionFailed:
    """The session is over, other than by `quit`. `reply` is the peer's, or ours where it said nothing (4yz)."""

    state: State
    reply: Reply


@attrs.frozen
class ReadyForBody:
    """The peer waits for the text of the message: `SmtpClient.body` any number of times, then `end_body`."""


@attrs.frozen
class TransactionDone:
    """How the transaction ended: one reply for each recipient, in order; 2yz means that the peer has the message for it.

    `data` answers DATA or the message; None when it did not come to that. `undecided` are the indexes of recipients of
    which the peer said nothing final because the session ended, while certainly nothing was delivered: another
    connection may be tried at once.
    """

    replies: tuple[Reply, ...]
    data: Reply | None = None
    undecided: frozenset[int] = frozenset()


ClientEffect = Send | StartTLS | Close | SessionReady | SessionFailed | ReadyForBody | TransactionDone
Effects = list[ClientEffect]


class SmtpClient:
    """One session; see the module's docstring for its life."""

    def __init__(
        self, hostname: str, *, tls: TlsUse = TlsUse.OPPORTUNISTIC, login: Login | None = None
    ) -> None:
        """`hostname` is our name for EHLO. A `login` is used only under TLS, and the session fails without."""
        self._hostname = hostname.encode("ascii", "replace")
        self._tls_use = tls
        self._login = login
        self._parser = ReplyParser()
        self._out: Effects = []
        #: What the replies to come will answer, in order.
        self._pending: deque[State] = deque([State.GREETING])
        #: The state when nothing is pending.
        self._rest = State.IDLE
        #: Commands of the transaction that have not been sent.
        self._script: deque[tuple[State, bytes]] = deque()
        #: The peer may hold a transaction that failed: RSET before the next.
        self._dirty = False
        self._transaction: Progress | None = None
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
        return self._pending[0] if self._pending else self._rest

    @property
    def idle(self) -> bool:
        """Whether `start` may be called."""
        return self.state is State.IDLE

    @property
    def timeout(self) -> float | None:
        """Seconds to wait for the peer in this state; None when it owes us nothing."""
        return _TABLE[self.state].timeout

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

    def secured(self) -> Sequence[ClientEffect]:
        """The handshake that StartTLS asked for is done (or the connection began with TLS, before the greeting)."""
        self.tls = True
        if self.state is State.HANDSHAKE:
            self._rest = State.IDLE
            self.extensions = {}  # RFC 3207 §4.2: what was offered in the clear is forgotten
            self._command(State.EHLO, b"EHLO " + self._hostname)
        return self._take()

    def start(self, transaction: Transaction) -> Sequence[ClientEffect]:
        """Begin a transaction with at least one recipient. Raises RuntimeError unless `idle`."""
        if not self.idle or not transaction.recipients:
            raise RuntimeError(f"no transaction can start: {self.state}")
        self._transaction = progress = Progress(transaction)
        refusal = refuse_locally(transaction, self.extensions)
        for index, recipient in enumerate(transaction.recipients):
            refused = refusal or refuse_recipient(recipient, self.extensions)
            if refused is None:
                progress.offered.append(index)
            else:
                progress.replies[index] = refused
        if not progress.offered:
            self._finish(None)
            return self._take()
        if self._dirty:
            self._script.append((State.RSET, b"RSET\r\n"))
        self._script.append((State.MAIL, mail_command(transaction, self.extensions)))
        urge = unpromised(transaction, self.extensions)
        for index in progress.offered:
            command = rcpt_command(transaction.recipients[index], self.extensions, urge=urge)
            self._script.append((State.RCPT, command))
        self._script.append((State.DATA, b"DATA\r\n"))
        self._dirty = True
        self._advance()
        return self._take()

    def body(self, data: bytes) -> Sequence[ClientEffect]:
        """Octets of the message, CRLF line ends, split anywhere; nothing when the transaction ended meanwhile."""
        if self.state is State.BODY:
            stuffed = self._progress().stuffer.feed(data)
            if stuffed:
                self._out.append(Send(stuffed))
        return self._take()

    def end_body(self) -> Sequence[ClientEffect]:
        """The message is complete."""
        if self.state is State.BODY:
            self._rest = State.IDLE
            self._pending.append(State.FINAL)
            self._out.append(Send(self._progress().stuffer.finish()))
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
        state = self.state
        row = _TABLE[state]
        if state is State.QUIT:
            self._close()
        elif reply.code == 421:  # RFC 5321 §3.8: may answer any command
            self._over(reply)
        elif reply.code // 100 in row.on:
            if self._pending:
                self._pending.popleft()
            row.on[reply.code // 100](self, reply)
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
        self._rest = State.HANDSHAKE
        self._out.append(StartTLS())

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
            self._out.append(SessionReady())
        else:
            self._authenticate(self._login)

    def _authenticate(self, login: Login) -> None:
        offered = self.extensions.get("AUTH", "").split()
        if not self.tls:
            why = Reply(451, "4.7.0", "we send no password over a connection without TLS")
            self._give_up(State.AUTH_PLAIN, why)
        elif "PLAIN" in offered:
            self._command(State.AUTH_PLAIN, b"AUTH PLAIN " + _b64(f"\0{login.user}\0{login.password}"))
        elif "LOGIN" in offered:
            self._command(State.AUTH_LOGIN, b"AUTH LOGIN")
        else:
            why = Reply(451, "4.7.0", "the next host offers neither AUTH PLAIN nor AUTH LOGIN")
            self._give_up(State.AUTH_PLAIN, why)

    def _give_user(self, _: Reply) -> None:
        assert self._login is not None  # the states of AUTH are entered with a login only
        self._command(State.AUTH_USER, _b64(self._login.user))

    def _give_password(self, _: Reply) -> None:
        assert self._login is not None
        self._command(State.AUTH_PASSWORD, _b64(self._login.password))

    def _authenticated(self, _: Reply) -> None:
        self._out.append(SessionReady())

    # --- the transaction -----------------------------------------------------------------------

    def _advance(self) -> None:
        """Send the next command, or with PIPELINING all of them in one group (RFC 2920 §3.1)."""
        batch = b""
        while self._script and (not self._pending or "PIPELINING" in self.extensions):
            state, command = self._script.popleft()
            self._pending.append(state)
            batch += command
        if batch:
            self._out.append(Send(batch))

    def _was_reset(self, _: Reply) -> None:
        self._advance()

    def _mail_answered(self, reply: Reply) -> None:
        progress = self._progress()
        if not reply.positive:
            for index in progress.offered:
                progress.replies[index] = reply
            progress.mail_refused = True
            if self._script:  # in lock-step: nothing more was said
                self._script.clear()
                self._finish(None)
        self._advance()

    def _rcpt_answered(self, reply: Reply) -> None:
        progress = self._progress()
        index = progress.offered[progress.answered]
        progress.answered += 1
        if progress.mail_refused:
            pass  # the reply to MAIL stands for all
        elif reply.positive:
            progress.accepted.append(index)
        else:
            progress.replies[index] = rcpt_refusal(reply)
        if len(self._script) == 1 and not progress.accepted:  # only DATA is left, and it would be of no use
            self._script.clear()
            self._finish(None)
        self._advance()

    def _data_accepted(self, reply: Reply) -> None:
        progress = self._progress()
        if progress.accepted:
            self._rest = State.BODY
            self._out.append(ReadyForBody())
        else:  # RFC 2920 §3.1: everything was refused, and yet it waits for a message
            self._pending.append(State.DISCARD)
            self._out.append(Send(b".\r\n"))

    def _data_refused(self, reply: Reply) -> None:
        self._finish(reply)

    def _discarded(self, _: Reply) -> None:
        self._finish(None)

    def _message_answered(self, reply: Reply) -> None:
        if reply.positive:
            self._dirty = False  # RFC 5321 §4.1.1.4: the buffers are cleared
        self._finish(reply)

    def _interrupted(self, reply: Reply) -> None:
        """A refusal before the end of the message. Only by closing can we leave without delivering what was sent."""
        progress = self._progress()
        for index in progress.accepted:
            progress.replies[index] = reply
        self._over(reply)

    def _finish(self, data: Reply | None) -> None:
        """End the transaction; `data` is the verdict on recipients that were accepted."""
        progress = self._progress()
        self._transaction = None
        if data is not None:
            for index in progress.accepted:
                progress.replies[index] = data
        replies = tuple(reply for reply in progress.replies if reply is not None)
        assert len(replies) == len(progress.replies)  # accepted recipients and a verdict come together
        self._out.append(TransactionDone(replies, data if progress.accepted else None))

    def _progress(self) -> Progress:
        assert self._transaction is not None  # the states of a transaction are entered by `start` only
        return self._transaction

    # --- the end -------------------------------------------------------------------------------

    def _give_up(self, state: State, reply: Reply) -> None:
        self._out += [Send(b"QUIT\r\n"), SessionFailed(state, reply)]  # RFC 5321 §3.1
        self._close()

    def _garbled(self, why: str) -> None:
        self._over(Reply(451, "4.5.0", why))

    def _over(self, reply: Reply) -> None:
        """The session ended with `reply` for a reason, the peer's or our own."""
        state = self.state
        if self._transaction is not None:
            progress, self._transaction = self._transaction, None
            # After the final dot there is no telling whether the peer has the message: RFC 5321 §4.5.3.2.6
            certain = state is not State.FINAL or reply.code == 421
            open_ = [index for index, known in enumerate(progress.replies) if known is None]
            for index in open_:
                progress.replies[index] = reply
            replies = tuple(known for known in progress.replies if known is not None)
            self._out.append(TransactionDone(replies, None, frozenset(open_ if certain else ())))
        if state is not State.QUIT:
            self._out.append(SessionFailed(state, reply))
        self._close()

    def _close(self) -> None:
        self._pending.clear()
        self._script.clear()
        self._parser.clear()
        self._rest = State.CLOSED
        self._out.append(Close())

    # --- helpers -------------------------------------------------------------------------------

    def _command(self, state: State, line: bytes) -> None:
        self._pending.append(state)
        self._out.append(Send(line + b"\r\n"))

    def _take(self) -> Sequence[ClientEffect]:
        out, self._out = self._out, []
        return out


def _b64(text: str) -> bytes:
    return base64.b64encode(text.encode())


@attrs.frozen
class _Row:
    """`timeout` in seconds; `on` says what is done on a reply by its first digit, and what is missing is a protocol error."""

    timeout: float | None
    on: Mapping[int, Callable[[SmtpClient, Reply], None]] = attrs.field(factory=dict)


def _in(state: State) -> Callable[[SmtpClient, Reply], None]:
    """The session is refused in this state."""
    return lambda client, reply: client._give_up(state, reply)


_C = SmtpClient
#: The whole life of a session. Timeouts: RFC 5321 §4.5.3.2; nobody depends on the answer to QUIT.
_TABLE: Mapping[State, _Row] = {
    State.GREETING: _Row(300, {2: _C._greeted, 4: _in(State.GREETING), 5: _in(State.GREETING)}),
    State.EHLO: _Row(300, {2: _C._ehlo_accepted, 4: _in(State.EHLO), 5: _C._say_helo}),
    State.HELO: _Row(300, {2: _C._helo_accepted, 4: _in(State.HELO), 5: _in(State.HELO)}),
    State.STARTTLS: _Row(120, {2: _C._start_tls, 4: _C._no_tls, 5: _C._no_tls}),
    State.HANDSHAKE: _Row(120),
    State.AUTH_PLAIN: _Row(300, {2: _C._authenticated, 4: _in(State.AUTH_PLAIN), 5: _in(State.AUTH_PLAIN)}),
    State.AUTH_LOGIN: _Row(300, {3: _C._give_user, 4: _in(State.AUTH_LOGIN), 5: _in(State.AUTH_LOGIN)}),
    State.AUTH_USER: _Row(300, {3: _C._give_password, 4: _in(State.AUTH_USER), 5: _in(State.AUTH_USER)}),
    State.AUTH_PASSWORD: _Row(
        300, {2: _C._authenticated, 4: _in(State.AUTH_PASSWORD), 5: _in(State.AUTH_PASSWORD)}
    ),
    State.IDLE: _Row(None),
    State.RSET: _Row(300, {2: _C._was_reset}),
    State.MAIL: _Row(300, {2: _C._mail_answered, 4: _C._mail_answered, 5: _C._mail_answered}),
    State.RCPT: _Row(300, {2: _C._rcpt_answered, 4: _C._rcpt_answered, 5: _C._rcpt_answered}),
    State.DATA: _Row(120, {3: _C._data_accepted, 4: _C._data_refused, 5: _C._data_refused}),
    State.BODY: _Row(180, {4: _C._interrupted, 5: _C._interrupted}),
    State.FINAL: _Row(600, {2: _C._message_answered, 4: _C._message_answered, 5: _C._message_answered}),
    State.DISCARD: _Row(600, {2: _C._discarded, 4: _C._discarded, 5: _C._discarded}),
    State.QUIT: _Row(30),
    State.CLOSED: _Row(None),
}

"""What a session of the SMTP client can be in, what it says to its caller, and how long it waits."""

from __future__ import annotations

import enum
from collections import deque

from twisted_mta.core.effects import Close, Send, StartTLS
from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl.client import Derive
from twisted_mta.core.values import value


class State(enum.Enum):
    """What the next reply answers; where there is none to come, what is going on."""

    GREETING = "greeting"
    EHLO = "EHLO"
    HELO = "HELO"
    STARTTLS = "STARTTLS"
    HANDSHAKE = "TLS handshake"
    AUTH = "AUTH"
    DERIVING = "keys for AUTH"
    CANCELLED = "end of AUTH"
    IDLE = "idle"
    RSET = "RSET"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    BODY = "message text"
    CHUNK = "BDAT"
    FINAL = "end of message"
    DISCARD = "end of no message"
    QUIT = "QUIT"
    CLOSED = "closed"

    #: Each exists once. The hash of an Enum is a call of Python, and several are needed for each reply.
    __hash__ = object.__hash__


#: Those in which a session ends over who we are, which is no fault of a message.
AUTH_STATES = frozenset({State.AUTH, State.DERIVING, State.CANCELLED})


class TlsUse(enum.Enum):
    """What to do about STARTTLS."""

    #: Talk plaintext whatever is offered (or the connection is encrypted already).
    NEVER = "never"
    #: Encrypt where it is offered, RFC 3207 §4.
    OPPORTUNISTIC = "opportunistic"
    #: No mail without it.
    REQUIRED = "required"


@value(kw_only=True)
class Timeouts:
    """Seconds to wait for the peer. RFC 5321 §4.5.3.2 says what is the least."""

    #: RFC 5321 §4.5.3.2.1
    greeting: float = 300.0
    #: The answer to any command that has none of its own here; RFC 5321 §4.5.3.2.2, §4.5.3.2.3.
    command: float = 300.0
    #: The TLS handshake, and the answer to STARTTLS.
    tls: float = 120.0
    #: RFC 5321 §4.5.3.2.4
    data: float = 120.0
    #: For each block of the message to be taken; RFC 5321 §4.5.3.2.5.
    block: float = 180.0
    #: RFC 5321 §4.5.3.2.6
    final: float = 600.0
    #: Nobody depends on the answer.
    quit: float = 30.0


@value
class SendText:
    """Write these octets to the peer, as Send; they are of a message, and no command."""

    data: bytes


@value
class SessionReady:
    """The session can carry transactions."""


@value
class SessionFailed:
    """The session is over, other than by `quit`. `reply` is the peer's, or ours where it said nothing (4yz)."""

    state: State
    reply: Reply


@value
class ReadyForBody:
    """The peer waits for the text of the message: `SmtpClient.body` any number of times, then `end_body`."""


@value
class TransactionDone:
    """How the transaction ended: one reply for each recipient, in order; 2yz means that the peer has the message for it, or
    would take one (`Transaction.probe`).

    `data` answers DATA, BDAT or the message; None when it did not come to that.
    """

    replies: tuple[Reply, ...]
    data: Reply | None = None
    #: The indexes of recipients of which the peer said nothing final because the session ended, while certainly nothing
    #: was delivered: another connection may be tried at once.
    undecided: frozenset[int] = frozenset()
    #: Those for whom the peer may have the message: all of it was sent, and then the session ended without a word.
    doubtful: frozenset[int] = frozenset()
    #: Whether MAIL was refused, so that nothing was said about any recipient.
    sender_refused: bool = False


ClientEffect = (
    Send
    | SendText
    | StartTLS
    | Close
    | Derive
    | SessionReady
    | SessionFailed
    | ReadyForBody
    | TransactionDone
)
Effects = list[ClientEffect]


class Wire:
    """What a session has said and waits for; the session and its transactions share it."""

    def __init__(self) -> None:
        #: What the caller is to do.
        self.out: Effects = []
        #: What the replies to come will answer, in order.
        self.pending: deque[State] = deque()
        #: The state when nothing is pending.
        self.rest = State.IDLE

    @property
    def state(self) -> State:
        """What is waited for."""
        return self.pending[0] if self.pending else self.rest

    def say(self, *steps: tuple[State, bytes]) -> None:
        """Send lines in one write, each answered by a reply in its state."""
        self.pending.extend([state for state, _ in steps])
        self.out.append(Send(b"".join([octets for _, octets in steps])))

    def say_text(self, state: State, command: bytes, text: bytes) -> None:
        """Send octets of a message behind a command (b"": none), both answered by one reply."""
        self.pending.append(state)
        if command:
            self.out.append(Send(command))
        if text:
            self.out.append(SendText(text))

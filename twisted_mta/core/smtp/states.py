"""The states of an SMTP server session, as tables: which command is allowed in which (RFC 5321 §4.1.4), and how long a client
may take in each (RFC 5321 §4.5.3.2)."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from operator import attrgetter

from twisted_mta.core.effects import Pace
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value


class State(enum.Enum):
    """Where a session stands."""

    # Members are looked up in tables all the time, and that of Enum is written in Python.
    __hash__ = object.__hash__

    CONNECTED = "before HELO"
    READY = "no transaction"
    MAIL = "MAIL given"
    RCPT = "recipients given"
    CHUNKS = "between BDAT commands"
    BROKEN = "after a BDAT that failed"
    BODY = "receiving octets of a message"
    AUTH = "in a SASL exchange"
    TLS = "waiting for the handshake"
    CLOSED = "closed"


#: States in which the session is over, or nothing is read for now.
DEAF = frozenset({State.CLOSED, State.TLS})

_GREETED = frozenset({State.READY, State.MAIL, State.RCPT, State.CHUNKS, State.BROKEN})
_ALWAYS = _GREETED | {State.CONNECTED}

HELO_FIRST = Reply(503, "5.5.1", "Send HELO or EHLO first")
ENVELOPE_FIRST = Reply(503, "5.5.1", "Send MAIL and RCPT first")
_NESTED = Reply(503, "5.5.1", "A transaction is open: finish it or send RSET")
_ANY_TIME = (_ALWAYS, HELO_FIRST)

#: Command -> (states in which it is allowed, what is answered elsewhere).
ALLOWED: Mapping[str, tuple[frozenset[State], Reply]] = {
    "HELO": _ANY_TIME,
    "EHLO": _ANY_TIME,
    "LHLO": _ANY_TIME,
    "MAIL": (frozenset({State.READY}), _NESTED),
    "RCPT": (frozenset({State.MAIL, State.RCPT}), Reply(503, "5.5.1", "Send MAIL first")),
    "DATA": (frozenset({State.RCPT}), ENVELOPE_FIRST),
    "BDAT": _ANY_TIME,  # where it is out of place its octets must be read all the same
    "RSET": _ANY_TIME,
    "NOOP": _ANY_TIME,
    "QUIT": _ANY_TIME,
    "HELP": _ANY_TIME,
    "VRFY": _ANY_TIME,
    "EXPN": _ANY_TIME,
    "STARTTLS": _ANY_TIME,
    "AUTH": (frozenset({State.READY}), _NESTED),
    "XCLIENT": (frozenset({State.CONNECTED, State.READY}), _NESTED),
}


def misplaced(verb: str, state: State) -> Reply:
    """What to answer to a command that is not allowed in `state`."""
    return HELO_FIRST if state is State.CONNECTED else ALLOWED[verb][1]


@value(kw_only=True)
class Times:
    """How long a client may take, in seconds."""

    #: For the next command, until its line is complete. RFC 5321 §4.5.3.2.7: five minutes at least.
    command: float = 300.0
    #: Between two octets of a message. RFC 5321 §4.5.3.2.5 has three minutes, of the client.
    block: float = 300.0
    #: For a whole message, from DATA or the first BDAT to its end.
    message: float = 3600.0
    #: For an exchange of AUTH.
    login: float = 60.0


_Seconds = Callable[[Times], float]
_command: _Seconds = attrgetter("command")
_block: _Seconds = attrgetter("block")
_message: _Seconds = attrgetter("message")
_login: _Seconds = attrgetter("login")

_COMMAND = ("a command", _command, _command)

#: State -> (what the client is doing, how long it may be silent, how long all of it may take). The handshake of TLS has a
#: time of its own in `net.session`; before the greeting it is we who take time, and after the end the session lingers there.
PACES: Mapping[State, tuple[str, _Seconds, _Seconds]] = {
    State.CONNECTED: _COMMAND,
    State.READY: _COMMAND,
    State.MAIL: _COMMAND,
    State.RCPT: _COMMAND,
    State.CHUNKS: ("a message", _command, _message),
    State.BROKEN: _COMMAND,
    State.BODY: ("a message", _block, _message),
    State.AUTH: ("a login", _login, _login),
    State.TLS: _COMMAND,
    State.CLOSED: _COMMAND,
}
#: States in which a line goes on with what was begun, and begins nothing.
ONGOING = frozenset({State.CHUNKS, State.AUTH})


def paces(times: Times) -> Mapping[State, Pace]:
    """How long to wait for the client in each state."""
    return {
        state: Pace(silence(times), whole(times), doing) for state, (doing, silence, whole) in PACES.items()
    }

"""The states of a POP3 session, which command is allowed in which, and how long a client may take."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from twisted_mta.core.effects import Pace
from twisted_mta.core.values import value


@value(kw_only=True)
class Pop3Times:
    """How long a client may take for a command, in seconds."""

    login: float = 60.0
    #: After the login. RFC 1939 §3: ten minutes at least.
    idle: float = 600.0


class State(enum.Enum):
    """Where a session stands: the states of RFC 1939 §3, and what lies between them."""

    AUTHORIZATION = "before login"
    SASL = "in a SASL exchange"
    TLS = "waiting for the handshake"
    TRANSACTION = "logged in"
    UPDATE = "QUIT given"
    CLOSED = "closed"


_BEFORE = frozenset({State.AUTHORIZATION})
_STRANGER = frozenset({State.AUTHORIZATION, State.SASL, State.TLS})
_AFTER = frozenset({State.TRANSACTION})

#: Command -> states in which it is allowed. RFC 1939 §4 to §7, RFC 2449 §5, RFC 2595 §4, RFC 5034 §4.
ALLOWED: Mapping[str, frozenset[State]] = {
    "CAPA": _BEFORE | _AFTER,
    "USER": _BEFORE,
    "PASS": _BEFORE,
    "AUTH": _BEFORE,
    "STLS": _BEFORE,
    "STAT": _AFTER,
    "LIST": _AFTER,
    "UIDL": _AFTER,
    "RETR": _AFTER,
    "TOP": _AFTER,
    "DELE": _AFTER,
    "RSET": _AFTER,
    "NOOP": _AFTER,
    "QUIT": _BEFORE | _AFTER,
}


def pace(state: State, times: Pop3Times) -> Pace:
    """How long to wait for the client."""
    seconds = times.login if state in _STRANGER else times.idle
    return Pace(seconds, seconds, "a command")

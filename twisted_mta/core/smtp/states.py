"""The states of an SMTP server session, and which command is allowed in which: RFC 5321 §4.1.4 as a table."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from twisted_mta.core.replies import Reply


class State(enum.Enum):
    """Where a session stands."""

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


def misplaced(verb: str, state: State) -> Reply | None:
    """What to answer to a command that is not allowed in `state`; None if it is."""
    allowed, refusal = ALLOWED[verb]
    if state in allowed:
        return None
    return HELO_FIRST if state is State.CONNECTED else refusal

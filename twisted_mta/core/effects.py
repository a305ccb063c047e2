"""What a protocol core asks of the world, and how the world talks to it.

Every protocol of this server (SMTP, POP3, IMAP) is a *core*: plain Python that is given bytes and gives
back effects, in the order in which they must happen. `twisted_mta.net.session` performs them on a
Twisted transport; tests perform them by looking at the list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from twisted_mta.core.values import value


@value
class Send:
    """Write these bytes to the peer."""

    data: bytes


@value
class Ask:
    """A question that the core cannot answer itself (does this recipient exist? is this the password?).

    At most one Ask is open. Until `Core.answer` is called the core only buffers what it receives, so the
    commands of a pipelining client keep their order.
    """

    question: Any


@value
class BodyChunk:
    """The next octets of the message now being received (CRLF line ends, dot-stuffing removed)."""

    data: bytes


@value
class StartTLS:
    """Begin the TLS handshake as the server, after everything sent so far. Nothing is buffered any more."""


@value
class Close:
    """Close the connection once everything sent so far has left."""


#: What a connection without TLS, or one that can't be bound to, gives `Core.secured`.
NO_BINDINGS: Mapping[str, bytes] = {}

Effect = Send | Ask | BodyChunk | StartTLS | Close


@value
class Pace:
    """How long the peer may take over what it does now. Seconds."""

    #: Without a single octet.
    silence: float
    #: For all of it, however busy the peer is: so an octet now and then keeps no session open. Begins anew when `doing`
    #: or `Core.begun` changes.
    whole: float = math.inf
    #: What it does, for the log.
    doing: str = "a command"


class Core(Protocol):
    """The surface of every server-side protocol core. Each method returns the effects it causes."""

    @property
    def pace(self) -> Pace:
        """How long to wait for the peer, as the session stands now."""
        ...

    @property
    def begun(self) -> int:
        """How many commands, messages or logins the peer has begun: tells one that it is doing from the next."""
        ...

    def greet(self) -> Sequence[Effect]:
        """The connection is there: speak first."""
        ...

    def receive(self, data: bytes) -> Sequence[Effect]:
        """Octets from the peer, split anywhere: any split of the same bytes gives the same effects."""
        ...

    def answer(self, answer: Any, *, more: bool = False) -> Sequence[Effect]:
        """The answer to the open Ask. With `more` it is one part of a long answer; the last has `more=False`.

        Raises RuntimeError when no Ask is open: that is a bug of the caller.
        """
        ...

    def fault(self) -> Sequence[Effect]:
        """The open Ask can't be answered because of a bug of ours: say so (SMTP 451, IMAP NO, POP3 -ERR) and go on."""
        ...

    def secured(self, bindings: Mapping[str, bytes] = NO_BINDINGS) -> Sequence[Effect]:
        """The TLS handshake asked for by StartTLS is done (or, before `greet`, the connection began with TLS).

        `bindings` are the channel bindings of the connection, by type: for SCRAM-SHA-256-PLUS.
        """
        ...

    def timed_out(self) -> Sequence[Effect]:
        """The peer took longer than `pace` allows: say so and close."""
        ...

    def shut_down(self) -> Sequence[Effect]:
        """The server stops: tell the peer (SMTP 421, IMAP BYE) and close."""
        ...

"""The SASL dialog as SMTP, IMAP and POP3 have it in common: which mechanisms are offered, and one exchange in steps.

A protocol core does this, with `step` from `start`, `respond` or `answer`, any of which may raise SaslError:

* Challenge: send `step.data` in base64, and give the line that comes to `respond`.
* Lookup, Credentials, Proof: ask the world. Give what it found to `answer`; if it refuses, drop the exchange.
* Done: the client is in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from twisted_mta.core.sasl import plain
from twisted_mta.core.sasl.base import Mechanism, SaslError, Step, decode_base64
from twisted_mta.core.sasl.scram import scram
from twisted_mta.core.values import value


class Cancelled(SaslError):
    """The client gave up the exchange."""


@value
class Done:
    """The client has proved who it is, as the last claim says."""


class Exchange:
    """One dialog of one client."""

    def __init__(self, mechanism: Mechanism) -> None:
        self._mechanism = mechanism

    def start(self, initial: bytes | None) -> Step | Done:
        """Begin, with the initial response as sent; None without one."""
        challenge = next(self._mechanism)
        if initial is None:
            return challenge
        # RFC 4954 §4, RFC 4959 §3, RFC 5034 §4: "=" is an initial response of no octets.
        return self.answer(b"" if initial == b"=" else decode_base64(initial))

    def respond(self, line: bytes) -> Step | Done:
        """The line that answers a Challenge, without its end."""
        if line == b"*":  # RFC 4954 §4, RFC 3501 §6.2.2, RFC 5034 §4
            raise Cancelled("the client gave up")
        return self.answer(decode_base64(line))

    def answer(self, answer: Any) -> Step | Done:
        """What the world found, or any sign that a claim was accepted."""
        try:
            return self._mechanism.send(answer)
        except StopIteration:
            return Done()


@value
class Offer:
    """The mechanisms of a session as it stands now."""

    #: Whether SCRAM is offered at all.
    scram: bool = False
    #: Channel bindings of the connection by type, RFC 5056: what -PLUS needs. None without TLS.
    bindings: Mapping[str, bytes] = attrs.field(factory=dict, repr=False)

    @property
    def names(self) -> list[str]:
        """What the client is told, the preferred first."""
        return [name for name, (available, _) in MECHANISMS.items() if available(self)]

    def begin(self, name: str) -> Exchange | None:
        """An exchange with the mechanism of that name, in any case; None if it is not offered."""
        available, make = MECHANISMS.get(name.upper(), (_never, lambda offer: plain.plain()))
        return Exchange(make(self)) if available(self) else None


def _never(offer: Offer) -> bool:
    return False


_Entry = tuple[Callable[[Offer], bool], Callable[[Offer], Mechanism]]

#: Name -> (whether it can be offered, what makes one), the preferred first.
MECHANISMS: Mapping[str, _Entry] = {
    # RFC 5802 §6: -PLUS only where there is something to bind to, and the other always beside it.
    "SCRAM-SHA-256-PLUS": (
        lambda offer: offer.scram and bool(offer.bindings),
        lambda offer: scram(True, offer.bindings),
    ),
    "SCRAM-SHA-256": (lambda offer: offer.scram, lambda offer: scram(False, offer.bindings)),
    "PLAIN": (lambda offer: True, lambda offer: plain.plain()),
    "LOGIN": (lambda offer: True, lambda offer: plain.login()),
}

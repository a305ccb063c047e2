"""What the POP3 server core asks (see core.effects.Ask), and the type of each answer."""

from __future__ import annotations

import attrs

from twisted_mta.core import sasl
from twisted_mta.core.values import value


@value
class Refusal:
    """A negative answer to any question. `code` is a response code of RFC 2449 §8 ("SYS/TEMP"), or ""."""

    code: str
    text: str


@value
class Login:
    """Is this right? Answer: a sequence of `Drop`, the messages of the maildrop; or a Refusal."""

    claim: sasl.Claim


@value
class Retrieve:
    """A message, or with `lines` its header and so many lines of its body: see `top`. Answer: octets with CRLF line ends,
    in as many parts as you like (one at least); or a Refusal in place of the first."""

    uid: int
    lines: int | None = None


@value
class Listing:
    """Send this long answer no faster than the peer reads, so that a pipeline of LISTs can't fill our memory. Answer: these
    octets, in as many parts as you like (one at least)."""

    octets: bytes = attrs.field(repr=False)


@value
class Update:
    """Remove these for good. Answer: None, or a Refusal."""

    uids: tuple[int, ...]


#: A `Lookup` is answered with a `sasl.Secret`, or a Refusal.
Question = Login | sasl.Lookup | Retrieve | Listing | Update


@value
class Drop:
    """One message of the maildrop. `size` is in octets, `name` the unique-id of RFC 1939 §7."""

    uid: int
    size: int
    name: str

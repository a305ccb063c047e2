"""What the SMTP server core asks (see core.effects.Ask), and the type of each answer."""

from __future__ import annotations

from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl import Claim, Lookup
from twisted_mta.core.values import value


@value
class Connected:
    """May this client talk to us? Answer: None to greet, or the Reply that refuses it."""


@value
class Hello:
    """HELO or EHLO. Answer: None to go on, or the Reply that refuses it."""

    name: str
    esmtp: bool


@value
class MailFrom:
    """Answer: a Reply; positive begins the transaction."""

    envelope: Envelope


@value
class RcptTo:
    """Answer: a Reply; positive adds the recipient to the envelope."""

    envelope: Envelope
    recipient: Recipient


@value
class Verify:
    """VRFY of a client that may. Answer: a Reply."""

    argument: str


@value
class Authenticate:
    """Answer: whether the claim is right (bool), or the Reply to give where that can't be told now."""

    mechanism: str
    claim: Claim


@value
class BeginMessage:
    """DATA: the body follows as BodyChunk effects. Answer: None, or the Reply that refuses it."""

    envelope: Envelope


@value
class EndMessage:
    """The body is complete. Answer: the Reply. With `refusal` the message broke a rule and must be forgotten."""

    refusal: Reply | None = None


@value
class DropMessage:
    """The client gave up the message whose body it had begun: forget it. Answer: None."""


@value
class Expand:
    """EXPN of a client that may. Answer: a Reply."""

    argument: str


@value
class ClientIs:
    """XCLIENT: the client speaks for another, who is to be judged in its place. Answer: who that is, or a Reply that refuses.

    `attributes` by name in capitals (NAME, ADDR, PORT, PROTO, HELO, LOGIN); "" where it is not known.
    """

    attributes: dict[str, str]


@value
class Standing:
    """What a client is allowed for who it is: an answer to ClientIs."""

    #: Whether it speaks for an account, as after AUTH.
    logged_in: bool = False
    #: Whether it is in a network that is trusted.
    trusted: bool = False


#: A `Lookup` is answered with a `sasl.Secret`, or with a Reply.
Question = (
    Connected
    | Lookup
    | Hello
    | MailFrom
    | RcptTo
    | Verify
    | Expand
    | Authenticate
    | BeginMessage
    | EndMessage
    | DropMessage
    | ClientIs
)

"""The envelope: who sent a message, for whom, and how it may be handled. RFC 5321 §2.3.1, RFC 3461."""

from __future__ import annotations

import enum

from twisted_mta.core.address import Address
from twisted_mta.core.values import value


class Notify(enum.Flag):
    """When the sender wants to be told about one recipient: RFC 3461 §4.1. NEVER stands alone.

    UNSAID: there was no NOTIFY, and so none is passed on (RFC 3461 §5.2.1 (c)).
    """

    NEVER = 0
    SUCCESS = 1
    FAILURE = 2
    DELAY = 4
    UNSAID = 8

    #: Each exists once, those that are several too. The hash of an Enum is a call of Python.
    __hash__ = object.__hash__


#: What holds when the client says nothing of NOTIFY (RFC 3461 §4.1: FAILURE, and DELAY at our discretion).
DEFAULT_NOTIFY = Notify.FAILURE | Notify.DELAY | Notify.UNSAID


@value
class Recipient:
    """One forward-path of an envelope, as given in RCPT TO."""

    address: Address
    notify: Notify = DEFAULT_NOTIFY
    #: RFC 3461 §4.2 original-recipient-address with its type ("rfc822;bob@example.org"), decoded from xtext; "" if none.
    orcpt: str = ""


@value
class DeliverBy:
    """RFC 2852: deliver before `time` (Unix seconds), or give it back (`returns`, else only tell the sender that it is late)."""

    time: float
    returns: bool
    trace: bool = False


class TlsWish(enum.Enum):
    """What the sender wants of TLS on the way, RFC 8689 §4.1."""

    #: Nothing: as this server and the recipient's domain have it.
    NONE = 0
    #: REQUIRETLS: over TLS with a certificate that proves the host, and to hosts that promise the same; else not at all.
    REQUIRED = 1
    #: "TLS-Required: No": delivery matters more than TLS, whatever the recipient's domain asks for.
    OPTIONAL = 2


@value
class Envelope:
    """One mail transaction. `sender` None is the null reverse-path ``<>``."""

    sender: Address | None
    recipients: tuple[Recipient, ...] = ()
    #: "7BIT", "8BITMIME" (RFC 6152) or "BINARYMIME" (RFC 3030).
    body: str = "7BIT"
    smtputf8: bool = False
    #: RFC 3461 §4.4 ENVID, decoded from xtext; "" if none.
    envid: str = ""
    #: RFC 3461 §4.3 RET: "FULL", "HDRS", or "" if not given.
    ret: str = ""
    #: RFC 1870: the SIZE declared at MAIL, octets; 0 if none.
    declared_size: int = 0
    #: RFC 8689: pass it on over verified TLS or not at all.
    require_tls: bool = False
    #: RFC 4865: not before this time (Unix seconds); 0: at once.
    hold_until: float = 0.0
    deliver_by: DeliverBy | None = None
    #: RFC 6710: -9 to 9, higher goes first.
    priority: int = 0

    def adding(self, recipient: Recipient) -> Envelope:
        """The same for one recipient more."""
        # What attrs.evolve does, without looking up which fields there are: that takes ten times as long.
        return Envelope(
            self.sender,
            (*self.recipients, recipient),
            self.body,
            self.smtputf8,
            self.envid,
            self.ret,
            self.declared_size,
            self.require_tls,
            self.hold_until,
            self.deliver_by,
            self.priority,
        )

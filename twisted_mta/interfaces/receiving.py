"""Receiving: what an SMTP session knows of its peer and asks about its mail."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import attrs
from zope.interface import Attribute, Interface

from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl import Claim, Secret
from twisted_mta.interfaces.people import Account


@attrs.define
class Peer:
    """What is known of the other side of an SMTP session; grows as it talks."""

    address: str
    port: int
    #: The role of the listener: "mx", "submission" or "submissions".
    role: str = "mx"
    helo: str = ""
    #: Whether it greeted with EHLO.
    esmtp: bool = False
    #: "TLSv1.3 TLS_AES_256_GCM_SHA384", or "" on a plaintext connection.
    tls: str = ""
    account: Account | None = None
    #: For the logs: one short id a session.
    session_id: str = ""
    #: The name of the address by the DNS, "" where there is none or it is not known yet, and whether that name leads
    #: back to the address. One that does not may be anybody's.
    host: str = ""
    host_verified: bool = False
    #: What the checks remember about this session, each under a name of its own.
    notes: dict[str, Any] = attrs.field(factory=dict, repr=False, eq=False)
    #: None for all real clients. In a rehearsal (`mta explain`) nobody is there: nothing may be counted, told or written in
    #: the log. What an administrator should know of a decision goes here.
    remarks: list[str] | None = attrs.field(default=None, repr=False, eq=False)


class IPolicyCheck(Interface):
    """One check of incoming mail. Each method gives a Reply to refuse with, or None to go on.

    With `Peer.remarks` it decides in the same way, and leaves everything but these as it is.
    """

    settings = Attribute("What decides, for an administrator: keys of the configuration (tuple of str).")
    needs_address = Attribute(
        "Whether it looks up who the client is, so that an invented one says nothing (bool)."
    )

    def on_connect(peer: Peer) -> Awaitable[Reply | None] | Reply | None:
        """The connection is there. A refusal is sent in place of the greeting."""

    def on_helo(peer: Peer) -> Awaitable[Reply | None] | Reply | None:
        """HELO or EHLO was given; `peer.helo` is set."""

    def on_mail(peer: Peer, envelope: Envelope) -> Awaitable[Reply | None] | Reply | None:
        """MAIL FROM; the envelope has no recipients yet."""

    def on_rcpt(
        peer: Peer, envelope: Envelope, recipient: Recipient
    ) -> Awaitable[Reply | None] | Reply | None:
        """RCPT TO; the envelope has the recipients accepted before."""

    def on_message(peer: Peer, envelope: Envelope, header: bytes) -> Awaitable[Reply | None] | Reply | None:
        """The message is complete; `header` is its header section."""


class IMessageSink(Interface):
    """Where the octets of one message go while it is received."""

    def write(data: bytes) -> Awaitable[None] | None:
        """As IBodyWriter.write, but never raises: what goes wrong is told by `finish`."""

    def finish() -> Awaitable[Reply]:
        """The message is complete: the reply to give. A 250 means that it is durable. Never raises."""

    def abort() -> None:
        """The session ended, or the message broke a rule: forget it."""


class IReception(Interface):
    """What an SMTP server session asks: the decisions about one peer's mail.

    The methods may answer at once (a value) or later (an Awaitable). Replies are final: positive ones too are sent as given.
    """

    def connected(peer: Peer) -> Awaitable[Reply | None] | Reply | None:
        """None to greet, or the refusal."""

    def helo(peer: Peer) -> Awaitable[Reply | None] | Reply | None:
        """None to go on, or the refusal."""

    def mail(peer: Peer, envelope: Envelope) -> Awaitable[Reply | None] | Reply | None:
        """MAIL FROM: always a Reply in the end."""

    def rcpt(peer: Peer, envelope: Envelope, recipient: Recipient) -> Awaitable[Reply | None] | Reply | None:
        """RCPT TO: always a Reply in the end."""

    def verify(peer: Peer, argument: str) -> Awaitable[Reply] | Reply:
        """VRFY of a peer that may use it."""

    def expand(peer: Peer, argument: str) -> Awaitable[Reply] | Reply:
        """EXPN of a peer that may use it."""

    def authenticate(peer: Peer, claim: Claim) -> Awaitable[Account | None]:
        """AUTH: see IAuthenticator."""

    def secret(peer: Peer, login: str) -> Awaitable[Secret]:
        """AUTH: see IAuthenticator."""

    def account(login: str) -> Account | None:
        """The account with that login, asked for by a client that is trusted to have checked the password (XCLIENT)."""

    def message(peer: Peer, envelope: Envelope) -> IMessageSink:
        """DATA was given for an envelope with at least one recipient."""

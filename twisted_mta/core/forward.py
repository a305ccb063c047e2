"""What mail that goes on to another host for one of our addresses gets, so that it arrives and does not come back for ever.

The message itself is left alone, octet for octet, so that its DKIM signature holds and with that DMARC. On top of it comes
Delivered-To with the address that it was sent to, by which we know it again if it comes back, and where it is forwarded to one
address only X-Forwarded-To, by which large hosts know mail that their own user has had forwarded. No Resent- fields: those are
for people who pass a message on, not for a mail system (RFC 5322 §3.6.6).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.message import fields
from twisted_mta.core.queue import NewRecipient, Transport
from twisted_mta.core.replies import Reply
from twisted_mta.core.srs import Srs
from twisted_mta.core.values import value


class Lookups(Protocol):
    """What is needed of a directory: see `twisted_mta.interfaces.IDirectory`."""

    def is_local(self, domain: str) -> bool: ...
    def account(self, address: Address) -> object | None: ...


@value
class HeaderTest:
    """True of messages with a field of that name (lower-case) whose value begins with that text, case ignored."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"

    def matches(self, header: bytes) -> bool:
        """Whether a header section has it."""
        key, begin = self.name.encode(), self.value.lower().encode("utf-8", "replace")
        return any(field.key == key and field.value.lower().startswith(begin) for field in fields(header))


@value(kw_only=True)
class Forwarding:
    """[forward]. No `srs`: senders stay as they are."""

    srs: Srs | None = None
    #: Whether nothing but bounces may be sent to rewritten senders.
    bounces_only: bool = True
    #: Whether a sender that is too long may be looked up by the queue id.
    tickets: bool = False
    #: What is not forwarded, and whether it is refused rather than kept.
    not_if: tuple[HeaderTest, ...] = ()
    refuse: bool = False


@value(kw_only=True)
class Passing:
    """The message that is passed on: its header section as received, with all that we know of it."""

    queue_id: str
    sender: Address | None
    header: bytes
    now: float


@value
class Forwarded:
    """The recipients, and for each that is not forwarded what there is to tell of it. `refused`: there is nowhere to keep it;
    of each of these `recipients` has one that will be refused by its delivery."""

    recipients: tuple[NewRecipient, ...]
    kept: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def is_forward(recipient: NewRecipient, rules: Forwarding) -> bool:
    """Whether a recipient is elsewhere because one of our addresses leads there. A bounce that goes home is none."""
    if recipient.transport is not Transport.SMTP or recipient.address == recipient.original:
        return False
    return rules.srs is None or not rules.srs.claims(recipient.original)


def forward(
    recipients: Sequence[NewRecipient], message: Passing, rules: Forwarding, directory: Lookups
) -> Forwarded:
    """The same recipients, those that are forwarded with a sender and a trace of their own."""
    passed = [one.original for one in recipients if is_forward(one, rules)]
    if not passed:
        return Forwarded(tuple(recipients))
    # How many places each address is forwarded to.
    places = Counter(passed)
    seen = {
        field.value.decode("utf-8", "surrogateescape").casefold()
        for field in fields(message.header)
        if field.key == b"delivered-to"
    }
    test = next((one for one in rules.not_if if one.matches(message.header)), None)
    made: dict[object, NewRecipient] = {}
    kept: list[str] = []
    refused: list[str] = []
    for one in recipients:
        new = one
        if is_forward(one, rules):
            names = {one.original.folded, *one.via}
            if names & seen:
                text = f"<{one.original}>: mail forwarding loop, it was forwarded from here before"
                new = _refuse(one, Reply(554, "5.4.6", text))  # RFC 3463 §3.5
            elif test is not None:
                home = None if rules.refuse else _home(one, directory)
                what = f"<{one.original}> is not forwarded: the message has {test}"
                (refused if home is None else kept).append(what)
                new = (
                    _refuse(one, Reply(550, "5.7.1", what))  # RFC 3463 §3.8
                    if home is None
                    else attrs.evolve(one, address=home, transport=Transport.LOCAL)
                )
            else:
                sender = _sender(one, message, rules, directory)
                new = attrs.evolve(one, sender=sender, prefix=_trace(one, places[one.original] == 1))
        made.setdefault(_place(new), new)
    return Forwarded(tuple(made.values()), tuple(dict.fromkeys(kept)), tuple(dict.fromkeys(refused)))


def _place(recipient: NewRecipient) -> object:
    """Two copies kept in one mailbox are one."""
    if recipient.transport is Transport.LOCAL:
        return recipient.address.folded
    return recipient.transport, recipient.address, recipient.target, recipient.original


def _home(recipient: NewRecipient, directory: Lookups) -> Address | None:
    """The mailbox of the last address on the way that has one."""
    for name in (*reversed(recipient.via), str(recipient.original)):
        local, found, domain = name.rpartition("@")
        address = Address(local, domain)
        if found and directory.is_local(domain) and directory.account(address) is not None:
            return address
    return None


def _refuse(recipient: NewRecipient, reply: Reply) -> NewRecipient:
    return attrs.evolve(recipient, transport=Transport.REFUSE, target=str(reply))


def _sender(
    recipient: NewRecipient, message: Passing, rules: Forwarding, directory: Lookups
) -> Address | None:
    """The envelope sender of the copy; None: that of the message, which is ours, null, or never to be rewritten."""
    sender = message.sender
    if (
        recipient.sender is not None
        or rules.srs is None
        or sender is None
        or directory.is_local(sender.domain)
    ):
        return recipient.sender
    # RFC 5321 §3.9: who forwards changes the forward-path alone; RFC 7208 §D.2: then SPF fails at the next host.
    made = rules.srs.rewrite(sender, message.now, message.queue_id if rules.tickets else "")
    return None if made == sender else made


def _trace(recipient: NewRecipient, alone: bool) -> bytes:
    found = (
        ("Delivered-To", recipient.original),
        *([("X-Forwarded-To", recipient.address)] if alone else []),
    )
    # A header of an ASCII message stays one.
    return "".join(f"{name}: {value}\r\n" for name, value in found if str(value).isascii()).encode()

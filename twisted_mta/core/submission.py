"""What a submission server mends in the header of a message from one of its users. RFC 6409 §8.

Only what is missing or must not leave is touched: every other octet stays as it came, and so do signatures over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.mailboxes import Mailbox, MailboxesError, parse_mailboxes
from twisted_mta.core.message import Field, Located, fields, format_date, located_fields
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value

#: Octets of a line without its CRLF, RFC 5322 §2.1.1.
MAX_LINE = 998

#: RFC 5322 §3.6.3: Bcc is removed here, since what names its recipients would reach all the others too.
_HIDDEN = frozenset((b"bcc", b"resent-bcc"))
#: Fields with addresses, and RFC 3463 §3.2: the status for one that is no good (of a recipient, of the sender).
_ADDRESSES: Mapping[bytes, str] = {
    b"to": "5.1.3",
    b"cc": "5.1.3",
    b"resent-to": "5.1.3",
    b"resent-cc": "5.1.3",
    b"from": "5.1.7",
    b"sender": "5.1.7",
    b"reply-to": "5.1.7",
    b"resent-from": "5.1.7",
    b"resent-sender": "5.1.7",
}


@value(kw_only=True)
class Facts:
    """What is known besides the message. `now` is in Unix seconds."""

    hostname: str
    queue_id: str
    now: float
    #: The address of the account that logged in.
    account: Address
    #: Whether an address is one of the account's own.
    own: Callable[[Address], bool]
    #: Whether the account may send as an address: its own, and those granted to it.
    may_send: Callable[[Address], bool]
    #: Whether an address in the account's domain exists.
    exists: Callable[[Address], bool]


class SubmissionError(Exception):
    """The message can't go out like this; `reply` tells the user why."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


@attrs.define
class _Seen:
    """What the header section was found to have."""

    counts: dict[bytes, int] = attrs.field(factory=dict)
    authors: tuple[Mailbox, ...] = ()
    sender: bool = False


def fix_header(header: bytes, facts: Facts) -> bytes:
    """The header section (with the empty line that ends it, if it has one) as it may leave.

    Raises SubmissionError.
    """
    if not header.endswith(b"\r\n"):
        header += b"\r\n"
    located = tuple(located_fields(header))
    _check_lines(header, located)
    seen = _Seen()
    pieces = [_fix_field(header[one.start : one.end], one, facts, seen) for one in located]
    _check_counts(seen.counts)
    end = located[-1].end if located else 0
    return b"".join([*_missing(facts, seen), *pieces, header[end:]])


def authors(header: bytes) -> tuple[Address, ...]:
    """The addresses of all From fields; those of one that can't be read are left out."""
    found: list[Address] = []
    for field in fields(header):
        if field.key == b"from":
            try:
                found += (mailbox.address for mailbox in parse_mailboxes(field.raw))
            except MailboxesError:
                continue
    return tuple(found)


def _check_lines(header: bytes, located: tuple[Located, ...]) -> None:
    """Refuse what stands between the fields: different programs would take it for different things."""
    at = 0
    for one in located:
        if one.start != at:
            break
        at = one.end
    else:
        if header[at:] in (b"", b"\r\n"):
            return
    line = header[at:].split(b"\r\n", 1)[0][:40].decode("ascii", "replace")
    shown = "".join(character if character.isprintable() else "?" for character in line)
    # RFC 6409 §6.3: 554 for what is wrong with the syntax of a message.
    raise SubmissionError(Reply(554, "5.6.0", f'The header has a line that is no field: "{shown}"'))


def _check_counts(counts: Mapping[bytes, int]) -> None:
    # RFC 5322 §3.6: each of these stands once. Readers differ in which of two they show.
    for name in ("From", "Sender", "Date", "Message-ID"):
        if counts.get(name.lower().encode(), 0) > 1:
            raise SubmissionError(Reply(554, "5.6.0", f"The message has more than one {name} field"))


def _fix_field(octets: bytes, one: Located, facts: Facts, seen: _Seen) -> bytes:
    key = one.field.key
    if key in _HIDDEN:
        return b""
    if key in (b"date", b"message-id", b"from") and not one.field.value:
        return b""  # as good as missing: it is written anew
    seen.counts[key] = seen.counts.get(key, 0) + 1
    if key not in _ADDRESSES:
        return octets
    try:
        mailboxes = parse_mailboxes(one.field.raw)
    except MailboxesError as error:
        if key == b"sender":
            return _sender(facts, seen)
        if key == b"from":  # RFC 6409 §5.1
            raise SubmissionError(Reply(554, "5.1.7", f"The From field can't be read: {error}")) from None
        return octets  # it misleads nobody but the reader of this field
    mailboxes, octets = _qualify(octets, one, mailboxes, facts)
    if key == b"from":
        if not mailboxes:
            raise SubmissionError(Reply(554, "5.1.7", "The From field names nobody"))
        seen.authors = mailboxes
    if key == b"sender":
        # RFC 6409 §8.1: who sent it is known here, so nothing else may be claimed.
        if len(mailboxes) != 1 or not facts.may_send(mailboxes[0].address):
            return _sender(facts, seen)
        seen.sender = True
    return octets


def _qualify(
    octets: bytes, one: Located, mailboxes: tuple[Mailbox, ...], facts: Facts
) -> tuple[tuple[Mailbox, ...], bytes]:
    """Complete bare names with the account's domain. RFC 6409 §4.2: no address leaves without one."""
    if all(mailbox.address.domain for mailbox in mailboxes):
        return mailboxes, octets
    complete: list[Mailbox] = []
    pieces: list[bytes] = []
    at = 0
    for mailbox in mailboxes:
        address, end = mailbox.address, mailbox.end + one.value - one.start
        if not address.domain:
            address = Address(address.local, facts.account.domain)
            # RFC 6409 §8: it must be verified to be somebody there before the domain is added.
            if not facts.exists(address):
                raise _no_domain(one.field, mailbox.address, address.domain)
            pieces += octets[at:end], f"@{address.domain}".encode()
            at = end
        complete.append(Mailbox(address, mailbox.end))
    octets = b"".join([*pieces, octets[at:]])
    if max(map(len, octets.split(b"\r\n"))) > MAX_LINE:
        name = one.field.name.decode()
        raise SubmissionError(
            Reply(554, "5.6.0", f"A line of the {name} field is too long to complete its addresses")
        )
    return tuple(complete), octets


def _no_domain(field: Field, address: Address, domain: str) -> SubmissionError:
    text = f"The {field.name.decode()} field has an address without a domain, {address}, and there is no {address} in {domain}"
    return SubmissionError(Reply(554, _ADDRESSES[field.key], text))


def _sender(facts: Facts, seen: _Seen) -> bytes:
    seen.sender = True
    return f"Sender: {facts.account}\r\n".encode("utf-8", "surrogateescape")


def _missing(facts: Facts, seen: _Seen) -> list[bytes]:
    """The fields to add, for the top of the header section."""
    added: list[bytes] = []
    # RFC 5322 §3.6 asks for From and Date; RFC 6409 §8.1 to §8.3 for what else. Who logged in is the author of what
    # has none: printers and scripts send such mail, and there is no doubt about what is meant.
    if not seen.authors:
        added.append(f"From: {facts.account}\r\n".encode("utf-8", "surrogateescape"))
    elif not seen.sender and (len(seen.authors) > 1 or not facts.own(seen.authors[0].address)):
        added.append(_sender(facts, seen))  # RFC 5322 §3.6.2: with several authors it is a must
    if not seen.counts.get(b"date"):
        added.append(f"Date: {format_date(facts.now)}\r\n".encode())
    if not seen.counts.get(b"message-id"):
        added.append(f"Message-ID: <{int(facts.now)}.{facts.queue_id}@{facts.hostname}>\r\n".encode())
    return added

"""Between the queue's vocabulary (core.queue) and rows of its tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import DeliverBy, Notify, TlsWish
from twisted_mta.core.queue import (
    Arrival,
    NewMessage,
    NewRecipient,
    QueuedMessage,
    QueuedRecipient,
    Status,
    Transport,
)

#: Longest last_reply that is kept, characters.
MAX_REPLY = 1000

MESSAGE_COLUMNS = (
    "m.id, m.sender, m.prefix, m.body, b.size, m.arrived, m.expires, m.body_type, m.smtputf8, "
    "m.envid, m.ret, m.parent, m.message_id, m.origin, m.not_before, m.deliver_by, m.by_mode, m.priority, m.tls, m.hold"
)
MESSAGE_WIDTH = 20
RECIPIENT_COLUMNS = (
    "r.message, r.row, r.address, r.transport, r.original, r.notify, r.orcpt, r.attempts, r.next_attempt, "
    "r.last_reply, r.warned, r.late, r.given_up, r.hop, r.sender, r.prefix, r.target"
)
RECIPIENT_WIDTH = 17
INSERT_MESSAGE = (
    "INSERT INTO message (id, body, shared, first, last, sender, arrived, expires, body_type, smtputf8, envid, ret, "
    "parent, message_id, origin, prefix, not_before, deliver_by, by_mode, priority, tls, size, arrival) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
INSERT_RECIPIENT = (
    "INSERT INTO recipient (row, message, owner, next_attempt, transport, notify, address, original, orcpt, via, sender, "
    "prefix, target) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

_WISHES = {wish.value: wish for wish in TlsWish}
# To call the class of an enum takes five times as long.
_TRANSPORTS = {transport.value: transport for transport in Transport}
_NOTIFIES = {bits: Notify(bits) for bits in range(2 ** len(Notify))}


#: As compact JSON, in ASCII.
encode = json.JSONEncoder(separators=(",", ":")).encode


class CorruptRow(Exception):
    """A row is not what this code can have written."""


def text(value: str) -> str | bytes:
    """As it is stored. SQLite takes no lone surrogates, which stand for octets that are no UTF-8."""
    return value if value.isascii() else value.encode("utf-8", "surrogateescape")


def read_text(value: Any) -> str:
    """The reverse of `text`; "" for what is neither."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value if isinstance(value, str) else ""


def decode(value: Any, default: Any) -> Any:
    """What `encode` wrote; the default for what it did not, or for something of another type."""
    try:
        found = json.loads(value)
    except (ValueError, TypeError):
        return default
    return found if isinstance(found, type(default)) else default


def pack_address(address: Address) -> str | bytes:
    """``local@domain``, the local part unquoted."""
    return text(f"{address.local}@{address.domain}")


def unpack_address(value: Any) -> Address:
    """The reverse of `pack_address`. Raises CorruptRow."""
    packed = value if type(value) is str else read_text(value)
    # A literal may have an @ inside, but no second bracket.
    at = packed.rfind("@[") if packed.endswith("]") else packed.rfind("@")
    if at < 0:
        raise CorruptRow(f"{value!r} is no address")
    return Address(packed[:at], packed[at + 1 :])


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first and the last of each stretch of rows that follow on one another: a statement for each, where the members of
    a list would be thousands."""
    ordered = sorted(numbers)
    if not ordered:
        return
    first = last = ordered[0]
    for number in ordered[1:]:
        if number > last + 1:
            yield first, last
            first = number
        last = number
    yield first, last


def past_message_row(message: NewMessage, size: int) -> tuple[Any, ...]:
    """id, sender, size (of the body, octets), arrived, parent, message_id, origin, arrival."""
    return (
        message.id,
        None if message.sender is None else pack_address(message.sender),
        size,
        message.arrived,
        message.parent,
        text(message.message_id),
        text(message.origin),
        _pack_arrival(message.arrival),
    )


def past_recipient_row(recipient: NewRecipient) -> tuple[Any, ...]:
    """address, transport, original, via, sender, target."""
    return (
        pack_address(recipient.address),
        recipient.transport._value_,
        None if recipient.original == recipient.address else pack_address(recipient.original),
        encode(recipient.via) if recipient.via else None,
        None if recipient.sender is None else pack_address(recipient.sender),
        text(recipient.target) if recipient.target else None,
    )


def message_row(message: NewMessage, body: int, size: int, shared: bool, first: int) -> tuple[Any, ...]:
    """The values for INSERT_MESSAGE."""
    return (
        message.id,
        body,
        int(shared),
        first,
        first + len(message.recipients) - 1,
        None if message.sender is None else pack_address(message.sender),
        message.arrived,
        message.expires,
        message.body_type,
        int(message.smtputf8),
        text(message.envid),
        message.ret,
        message.parent,
        text(message.message_id),
        text(message.origin),
        message.prefix,
        message.not_before,
        None if message.deliver_by is None else message.deliver_by.time,
        _by_mode(message.deliver_by),
        message.priority,
        message.tls.value,
        size,
        _pack_arrival(message.arrival),
    )


def _pack_arrival(arrival: Arrival | None) -> str | None:
    """The fields of an arrival in their order, as JSON. By hand, for it is written for every message: to set an encoder up
    takes ten times as long as to write these texts."""
    if arrival is None:
        return None
    one = arrival
    texts = (
        one.address,
        one.host,
        one.helo,
        one.protocol,
        one.tls,
        one.login,
        one.role,
        one.session,
    )
    checks = ",".join(map(encode_basestring_ascii, one.checks))
    return f"[{','.join(map(encode_basestring_ascii, texts))},[{checks}]]"


def read_arrival(packed: Any) -> Arrival:
    """The reverse; an empty one for what is none."""
    fields = attrs.fields_dict(Arrival)
    values = dict(zip(fields, decode(packed, []), strict=False))
    return Arrival(**values | {"checks": tuple(values.get("checks", ()))})


def _by_mode(deliver_by: DeliverBy | None) -> str:
    if deliver_by is None:
        return ""
    return ("R" if deliver_by.returns else "N") + "T" * deliver_by.trace


def _read_by(time: Any, mode: Any) -> DeliverBy | None:
    """Raises CorruptRow."""
    if time is None:
        return None
    if not isinstance(time, float) or mode not in ("R", "N", "RT", "NT"):
        raise CorruptRow(f"{time!r} {mode!r} is no deliver-by time")
    return DeliverBy(time, mode.startswith("R"), mode.endswith("T"))


def recipient_rows(message: NewMessage, first: int, owner: str | None) -> list[tuple[Any, ...]]:
    """The values for INSERT_RECIPIENT of each recipient, in rows from `first` on."""
    name, due = message.id, message.released
    return [
        (
            row,
            name,
            owner,
            due,
            one.transport._value_,  # `value` is a call of Python
            one.notify._value_,
            pack_address(one.address),
            None
            if one.original is one.address or one.original == one.address
            else pack_address(one.original),
            text(one.orcpt) if one.orcpt else "",
            encode(one.via) if one.via else None,
            None if one.sender is None else pack_address(one.sender),
            one.prefix or None,
            text(one.target) if one.target else None,
        )
        for row, one in enumerate(message.recipients, first)
    ]


def read_message(row: Sequence[Any]) -> QueuedMessage:
    """A message from MESSAGE_COLUMNS. Raises CorruptRow."""
    (
        name,
        sender,
        prefix,
        body,
        size,
        arrived,
        expires,
        body_type,
        smtputf8,
        envid,
        ret,
        parent,
        mid,
        origin,
        not_before,
        deliver_by,
        by_mode,
        priority,
        tls,
        hold,
    ) = row
    if not (
        isinstance(name, str)
        and isinstance(prefix, bytes)
        and isinstance(body, int)
        and isinstance(size, int)
        and isinstance(arrived, float)
        and isinstance(expires, float)
        and isinstance(not_before, float)
        and isinstance(priority, int)
        and tls in _WISHES
    ):
        raise CorruptRow(f"message {name!r} has a value of a wrong type, or no body")
    return QueuedMessage(
        id=name,
        sender=None if sender is None else unpack_address(sender),
        prefix=prefix,
        body_id=body,
        body_size=size,
        arrived=arrived,
        expires=expires,
        body_type=read_text(body_type),
        smtputf8=bool(smtputf8),
        envid=read_text(envid),
        ret=read_text(ret),
        parent=read_text(parent),
        message_id=read_text(mid),
        origin=read_text(origin),
        not_before=not_before,
        deliver_by=_read_by(deliver_by, by_mode),
        priority=priority,
        tls=_WISHES[tls],
        hold=read_text(hold),
    )


def _octets(value: Any) -> bytes:
    """Raises TypeError."""
    if not isinstance(value, bytes):
        raise TypeError(f"{value!r} is no octets")
    return value


def read_recipient(row: Sequence[Any]) -> QueuedRecipient:
    """A recipient from RECIPIENT_COLUMNS. Raises CorruptRow."""
    (
        _,
        number,
        packed,
        transport,
        original,
        notify,
        orcpt,
        attempts,
        next_attempt,
        last_reply,
        warned,
        late,
        given_up,
        hop,
        sender,
        prefix,
        target,
    ) = row
    address = unpack_address(packed)
    try:
        return QueuedRecipient(
            row=number,
            address=address,
            transport=_TRANSPORTS[transport],
            original=address if original is None else unpack_address(original),
            notify=_NOTIFIES[notify],
            orcpt=read_text(orcpt)
            if orcpt
            else "",  # as most: a call for nothing, thousands of times for a list
            status=Status.QUEUED,
            attempts=int(attempts),
            next_attempt=float(next_attempt),
            last_reply=read_text(last_reply) if last_reply else "",
            warned=bool(warned),
            late=bool(late),
            given_up=bool(given_up),
            hop=read_text(hop) if hop else "",
            sender=None if sender is None else unpack_address(sender),
            prefix=b"" if prefix is None else _octets(prefix),
            target=read_text(target) if target else "",
        )
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptRow(f"recipient {number}: {error!r}") from None

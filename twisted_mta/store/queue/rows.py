"""Between the queue's vocabulary (core.queue) and rows of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import DeliverBy, Notify, TlsWish
from twisted_mta.core.queue import (
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
    "r.row, r.address, r.transport, r.original, r.notify, r.orcpt, r.attempts, r.next_attempt, "
    "r.last_reply, r.warned, r.late"
)
RECIPIENT_WIDTH = 11
INSERT_MESSAGE = (
    "INSERT INTO message (id, body, shared, first, last, sender, arrived, expires, body_type, smtputf8, envid, ret, "
    "parent, message_id, origin, prefix, not_before, deliver_by, by_mode, priority, tls) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
INSERT_RECIPIENT = (
    "INSERT INTO recipient (row, message, owner, next_attempt, transport, notify, address, original, orcpt) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

_WISHES = {wish.value: wish for wish in TlsWish}


class CorruptRow(Exception):
    """A row is not what this code can have written."""


def text(value: str) -> str | bytes:
    """As it is stored. SQLite takes no lone surrogates, which stand for octets that are no UTF-8."""
    return value if value.isascii() else value.encode("utf-8", "surrogateescape")


def _read_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value if isinstance(value, str) else ""


def pack_address(address: Address) -> str | bytes:
    """``local@domain``, the local part unquoted."""
    return text(f"{address.local}@{address.domain}")


def unpack_address(value: Any) -> Address:
    """The reverse of `pack_address`. Raises CorruptRow."""
    packed = _read_text(value)
    # A literal may have an @ inside, but no second bracket.
    at = packed.rfind("@[") if packed.endswith("]") else packed.rfind("@")
    if at < 0:
        raise CorruptRow(f"{value!r} is no address")
    return Address(packed[:at], packed[at + 1 :])


def message_row(message: NewMessage, body: int, shared: bool, first: int) -> tuple[Any, ...]:
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
    )


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


def recipient_row(
    recipient: NewRecipient, row: int, message: NewMessage, owner: str | None
) -> tuple[Any, ...]:
    """The values for INSERT_RECIPIENT."""
    same = recipient.original == recipient.address
    return (
        row,
        message.id,
        owner,
        message.released,
        recipient.transport.value,
        recipient.notify.value,
        pack_address(recipient.address),
        None if same else pack_address(recipient.original),
        text(recipient.orcpt),
    )


def queued_message(message: NewMessage, body: int, size: int) -> QueuedMessage:
    """What `read_message` will give for a message just added."""
    return QueuedMessage(
        id=message.id,
        sender=message.sender,
        prefix=message.prefix,
        body_id=body,
        body_size=size,
        arrived=message.arrived,
        expires=message.expires,
        body_type=message.body_type,
        smtputf8=message.smtputf8,
        envid=message.envid,
        ret=message.ret,
        parent=message.parent,
        message_id=message.message_id,
        origin=message.origin,
        not_before=message.not_before,
        deliver_by=message.deliver_by,
        priority=message.priority,
        tls=message.tls,
    )


def queued_recipient(recipient: NewRecipient, row: int, message: NewMessage) -> QueuedRecipient:
    """What `read_recipient` will give for a recipient just added."""
    return QueuedRecipient(
        row=row,
        address=recipient.address,
        transport=recipient.transport,
        original=recipient.original,
        notify=recipient.notify,
        orcpt=recipient.orcpt,
        status=Status.QUEUED,
        attempts=0,
        next_attempt=message.released,
        last_reply="",
        warned=False,
    )


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
        body_type=_read_text(body_type),
        smtputf8=bool(smtputf8),
        envid=_read_text(envid),
        ret=_read_text(ret),
        parent=_read_text(parent),
        message_id=_read_text(mid),
        origin=_read_text(origin),
        not_before=not_before,
        deliver_by=_read_by(deliver_by, by_mode),
        priority=priority,
        tls=_WISHES[tls],
        hold=_read_text(hold),
    )


def read_recipient(row: Sequence[Any]) -> QueuedRecipient:
    """A recipient from RECIPIENT_COLUMNS. Raises CorruptRow."""
    number, packed, transport, original, notify, orcpt, attempts, next_attempt, last_reply, warned, late = row
    address = unpack_address(packed)
    try:
        return QueuedRecipient(
            row=number,
            address=address,
            transport=Transport(transport),
            original=address if original is None else unpack_address(original),
            notify=Notify(notify),
            orcpt=_read_text(orcpt),
            status=Status.QUEUED,
            attempts=int(attempts),
            next_attempt=float(next_attempt),
            last_reply=_read_text(last_reply),
            warned=bool(warned),
            late=bool(late),
        )
    except (ValueError, TypeError) as error:
        raise CorruptRow(f"recipient {number}: {error}") from None

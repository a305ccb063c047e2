"""From rows to messages, and what to make of rows that can't be read: a disk, or a hand, has damaged them.

They are set aside, with a reason, and the others go on. Where an administrator looks something stands in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Notify
from twisted_mta.core.queue import QueuedMessage, QueuedRecipient, Status, Transport, WorkItem
from twisted_mta.store.queue import rows

_WIDTH = rows.MESSAGE_WIDTH + rows.RECIPIENT_WIDTH


@attrs.define
class Reading:
    """What was found in rows of MESSAGE_COLUMNS and RECIPIENT_COLUMNS."""

    items: list[WorkItem] = attrs.field(factory=list)
    #: Queue ids of messages that can't be read, and why.
    messages: dict[str, str] = attrs.field(factory=dict)
    #: Rows of recipients that can't be read, of messages that can or that are not there at all, and why.
    recipients: dict[int, str] = attrs.field(factory=dict)


def read(found: Iterable[Sequence[Any]], *, show: bool = False) -> Reading:
    """The messages by first appearance. With `show` something stands for what can't be read."""
    reading = Reading()
    messages: dict[str, QueuedMessage] = {}
    recipients: dict[str, list[QueuedRecipient]] = {}
    for values in found:
        name, row = values[0], values[rows.MESSAGE_WIDTH]
        if not isinstance(name, str):
            reading.recipients[row] = "its message is gone"
            continue
        if name not in messages and name not in reading.messages:
            try:
                messages[name] = rows.read_message(values[: rows.MESSAGE_WIDTH])
            except rows.CorruptRow as error:
                reading.messages[name] = str(error)
                if show:
                    messages[name] = _instead_of_message(values, str(error))
        if name not in messages:
            continue
        try:
            recipients.setdefault(name, []).append(rows.read_recipient(values[rows.MESSAGE_WIDTH : _WIDTH]))
        except rows.CorruptRow as error:
            reading.recipients[row] = str(error)
            if show:
                recipients[name].append(_instead_of_recipient(row, str(error)))
    reading.items = [WorkItem(messages[name], tuple(each)) for name, each in recipients.items() if each]
    return reading


def readable(found: Iterable[Sequence[Any]]) -> list[WorkItem]:
    """What can be read; the rest is left out."""
    return read(found).items


def shown(found: Iterable[Sequence[Any]]) -> list[WorkItem]:
    """All of it, for an administrator."""
    return read(found, show=True).items


def _instead_of_message(values: Sequence[Any], reason: str) -> QueuedMessage:
    size, arrived, expires = values[4:7]
    return QueuedMessage(
        id=values[0],
        sender=None,
        prefix=b"",
        body_id=0,
        body_size=size if isinstance(size, int) else 0,
        arrived=arrived if isinstance(arrived, float) else 0.0,
        expires=expires if isinstance(expires, float) else 0.0,
        body_type="7BIT",
        smtputf8=False,
        envid="",
        ret="",
        parent="",
        message_id="",
        origin="",
        hold=f"damaged: {reason}",
    )


def _instead_of_recipient(row: int, reason: str) -> QueuedRecipient:
    address = Address(f"damaged-row-{row}", "invalid")  # a domain that nobody has
    return QueuedRecipient(
        row=row,
        address=address,
        transport=Transport.SMTP,
        original=address,
        notify=Notify(0),
        orcpt="",
        status=Status.QUEUED,
        attempts=0,
        next_attempt=0.0,
        last_reply=f"damaged, set aside: {reason}",
        warned=False,
    )

"""From rows to messages, and what to make of rows that can't be read: a disk, or a hand, has damaged them.

They are set aside, with a reason, and the others go on. Where an administrator looks something stands in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Notify
from twisted_mta.core.queue import QueuedMessage, QueuedRecipient, Status, Transport, WorkItem
from twisted_mta.store.queue import rows

_WIDTH = rows.MESSAGE_WIDTH + rows.RECIPIENT_WIDTH


@attrs.define
class Reading:
    """What rows of MESSAGE_COLUMNS and RECIPIENT_COLUMNS mean."""

    items: list[WorkItem] = attrs.field(factory=list)
    #: Queue ids of messages that can't be read, and why.
    messages: dict[str, str] = attrs.field(factory=dict)
    #: Rows of recipients that can't be read, of messages that can or that are not there at all, and why.
    recipients: dict[int, str] = attrs.field(factory=dict)


def read(
    messages: Mapping[str, Sequence[Any]], recipients: Iterable[Sequence[Any]], *, show: bool = False
) -> Reading:
    """The messages by first appearance, from rows of MESSAGE_COLUMNS (and whatever follows) by queue id, and rows of
    RECIPIENT_COLUMNS. With `show` something stands for what can't be read."""
    reading = Reading()
    known: dict[str, QueuedMessage] = {}
    found: dict[str, list[QueuedRecipient]] = {}
    for values in recipients:
        name, row = values[:2]
        if name not in messages:
            reading.recipients[row] = "its message is gone"
            continue
        if name not in known and name not in reading.messages:
            try:
                known[name] = rows.read_message(messages[name][: rows.MESSAGE_WIDTH])
            except rows.CorruptRow as error:
                reading.messages[name] = str(error)
                if show:
                    known[name] = _instead_of_message(messages[name], str(error))
        if name not in known:
            continue
        try:
            found.setdefault(name, []).append(rows.read_recipient(values))
        except rows.CorruptRow as error:
            reading.recipients[row] = str(error)
            if show:
                found[name].append(_instead_of_recipient(row, str(error)))
    reading.items = [WorkItem(known[name], tuple(each)) for name, each in found.items() if each]
    return reading


def _read_joined(found: Sequence[Sequence[Any]], *, show: bool) -> list[WorkItem]:
    """`found` are rows of MESSAGE_COLUMNS and RECIPIENT_COLUMNS."""
    messages = {values[0]: values for values in found}
    return read(messages, [values[rows.MESSAGE_WIDTH : _WIDTH] for values in found], show=show).items


def readable(found: Sequence[Sequence[Any]]) -> list[WorkItem]:
    """What can be read; the rest is left out."""
    return _read_joined(found, show=False)


def shown(found: Sequence[Sequence[Any]]) -> list[WorkItem]:
    """All of it, for an administrator."""
    return _read_joined(found, show=True)


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
        damaged=True,
    )

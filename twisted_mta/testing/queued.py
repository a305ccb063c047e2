"""Messages and recipients as they stand in the queue, for tests of what works on them."""

from __future__ import annotations

from typing import Any

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import DEFAULT_NOTIFY
from twisted_mta.core.queue import QueuedMessage, QueuedRecipient, Status, Transport


def queued_message(**fields: Any) -> QueuedMessage:
    """A message; `fields` are those of QueuedMessage that matter."""
    usual: dict[str, Any] = {
        "id": "q1",
        "sender": Address("sender", "example.org"),
        "prefix": b"",
        "body_id": 1,
        "body_size": 100,
        "arrived": 1000.0,
        "expires": 9000.0,
        "body_type": "7BIT",
        "smtputf8": False,
        "envid": "",
        "ret": "",
        "parent": "",
        "message_id": "",
        "origin": "",
    }
    return QueuedMessage(**(usual | fields))


def queued_recipient(address: str, **fields: Any) -> QueuedRecipient:
    """A recipient by SMTP that was not tried yet; `fields` are those of QueuedRecipient that matter."""
    parsed = Address.parse(address)
    usual: dict[str, Any] = {
        "row": 1,
        "address": parsed,
        "transport": Transport.SMTP,
        "original": parsed,
        "notify": DEFAULT_NOTIFY,
        "orcpt": "",
        "status": Status.QUEUED,
        "attempts": 0,
        "next_attempt": 0.0,
        "last_reply": "",
        "warned": False,
    }
    return QueuedRecipient(**(usual | fields))

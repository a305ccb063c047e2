"""What the queue remembers of a message, while it is there and for some time after it left."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import attrs

from twisted_mta.core.queue import Arrival
from twisted_mta.core.values import value


class State(enum.StrEnum):
    """What has become of a recipient."""

    QUEUED = "queued"
    DELIVERED = "delivered"
    FAILED = "failed"
    EXPANDED = "expanded"
    DELETED = "deleted"


class Kind(enum.StrEnum):
    """What else happened to a message. `Event.data` has the keys that are named here."""

    #: An attempt failed for now. "reply"; where they say something "remote", "took" (seconds), "contacts" (see
    #: `PastRecipient`); "next": when the first of the recipients is tried again.
    DEFERRED = "deferred"
    #: An administrator holds it. "reason".
    HELD = "held"
    RELEASED = "released"
    #: An administrator gave it up.
    EXPIRED = "expired"
    #: An administrator sends it elsewhere. "hop".
    REROUTED = "rerouted"


@value(kw_only=True)
class Event:
    """One thing that happened to recipients of a message."""

    #: Unix seconds.
    time: float
    kind: Kind
    #: The recipients that it is about, by `PastRecipient.row`; () for the whole message.
    rows: tuple[int, ...] = ()
    #: What JSON can say.
    data: Mapping[str, Any] = attrs.field(factory=dict)


@value(kw_only=True)
class PastRecipient:
    """A recipient, and the attempt that was its last."""

    row: int
    address: str
    transport: str
    #: The address at RCPT, and the aliases and :include: files between it and `address`.
    original: str
    via: tuple[str, ...] = ()
    #: The envelope sender of its copy, where it is not the message's; "".
    sender: str = ""
    #: Where `transport` took it, if not to the address: `core.queue.NewRecipient.target`.
    target: str = ""
    state: State
    attempts: int
    #: The rest tells of the end, or while it is queued of the last attempt. Unix seconds, and seconds.
    ended: float = 0.0
    took: float = 0.0
    reply: str = ""
    remote: str = ""
    #: The hosts that were turned to: the fields of `core.queue.Contact` but its transcript, the empty ones left out.
    contacts: tuple[Mapping[str, Any], ...] = ()
    #: While it is queued: when it is tried next, and where it was rerouted to.
    next_attempt: float = 0.0
    hop: str = ""


@value(kw_only=True)
class PastMessage:
    """A message and all that happened to it."""

    id: str
    #: "" for the null reverse-path.
    sender: str
    #: Octets of the body.
    size: int
    arrived: float
    message_id: str
    origin: str
    arrival: Arrival
    #: Whether it is in the queue, and why it is held there.
    queued: bool
    hold: str = ""
    #: The message it came of, and those that came of it: queue ids.
    parent: str = ""
    children: tuple[str, ...] = ()
    recipients: tuple[PastRecipient, ...] = ()
    #: By time.
    events: tuple[Event, ...] = ()


@value
class Transcript:
    """What was said in a session that ended an attempt badly."""

    #: When the session began, Unix seconds.
    time: float
    #: "mx.example.org [192.0.2.1]".
    remote: str
    text: str


def word(text: str) -> str:
    """An address or Message-ID as it is looked up: without angle brackets, in lower case."""
    return text.strip().removeprefix("<").removesuffix(">").lower()

"""What the queue manager works on: the due recipients of a message, and the attempts that they make up."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from twisted_mta.core.dsn import Report
from twisted_mta.core.queue import QueuedMessage, QueuedRecipient, Transport
from twisted_mta.interfaces import Update


@attrs.define(eq=False)
class Job:
    """One WorkItem: its failures wait until all its attempts are over, so that the sender gets one notification."""

    message: QueuedMessage
    attempts: int = 0
    held: list[tuple[Update, Report]] = attrs.field(factory=list)
    #: Whether an administrator removed the message meanwhile.
    deleted: bool = False


#: The transports of which no more than so many attempts may be under way at one destination.
_IN_TURN = frozenset({Transport.SMTP, Transport.FILE, Transport.COMMAND, Transport.HANDLER})


@attrs.frozen(eq=False)
class Attempt:
    """Recipients of one message that go to one destination together."""

    job: Job
    recipients: tuple[QueuedRecipient, ...]
    transport: Transport
    destination: str
    #: Whether an administrator wants no attempt, and these recipients to fail.
    given_up: bool = False

    @property
    def message(self) -> QueuedMessage:
        """The message as its delivery gets it: see `copy_key`."""
        message, first = self.job.message, self.recipients[0]
        match self.transport:
            case Transport.LOCAL:
                return message
            case Transport.SMTP:
                return (
                    attrs.evolve(message, prefix=first.prefix + message.prefix) if first.prefix else message
                )
        return message.copy_for(first)

    @property
    def lane(self) -> tuple[Transport, str] | None:
        """See `lane`."""
        return None if self.given_up else lane(self.transport, self.destination)

    @property
    def rows(self) -> Sequence[int]:
        """The recipients' rows in the queue."""
        return [recipient.row for recipient in self.recipients]


def copy_key(recipient: QueuedRecipient) -> tuple[object, ...]:
    """Recipients of one message for whom it differs can't go together: the same for those who can.

    Not so for mailboxes: what several addresses of one account get is one copy, and only their delivery can see that. On the
    way to another host senders may differ: one session carries a transaction for each.
    """
    match recipient.transport:
        case Transport.LOCAL:
            return ()
        case Transport.SMTP:
            return (recipient.prefix,)
    return recipient.sender, recipient.prefix


def lane(transport: Transport, destination: str) -> tuple[Transport, str] | None:
    """Where attempts for a destination wait their turn, and what people call that; None: nowhere."""
    if transport not in _IN_TURN:
        return None
    # All commands together are as many at a time as the configuration says.
    return transport, "commands" if transport is Transport.COMMAND else destination


def rank(attempt: Attempt) -> tuple[int, float]:
    """RFC 6710 §5.1: the higher priority first; among equals the older message."""
    message = attempt.job.message
    return -message.priority, message.released

"""What the outside shows to the core of messages and mailboxes: the shapes, and nothing of how they come about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Entry(Protocol):
    """One message of the selected mailbox, as `interfaces.MessageEntry` has it."""

    @property
    def uid(self) -> int:
        """Its unique identifier."""
        ...

    @property
    def flags(self) -> frozenset[str]:
        """Without \\Recent."""
        ...

    @property
    def size(self) -> int:
        """Octets."""
        ...

    @property
    def internal_date(self) -> float:
        """Unix time of arrival."""
        ...

    @property
    def recent(self) -> bool:
        """Whether this session is the first to be told of it."""
        ...


class Listed(Protocol):
    """One mailbox, as `interfaces.MailboxInfo` has it."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def selectable(self) -> bool:
        """False for a level that exists only for what is below it."""
        ...

    @property
    def has_children(self) -> bool:
        """Whether there is something below it."""
        ...


class Figures(Protocol):
    """What STATUS tells, as `interfaces.MailboxStatus` has it."""

    @property
    def messages(self) -> int:
        """How many."""
        ...

    @property
    def recent(self) -> int:
        """How many recent ones."""
        ...

    @property
    def uid_next(self) -> int:
        """The next UID."""
        ...

    @property
    def uid_validity(self) -> int:
        """The UIDVALIDITY."""
        ...

    @property
    def unseen(self) -> int:
        """How many without \\Seen."""
        ...


class Changes(Protocol):
    """What happened to the mailbox, as `interfaces.MailboxChanges` has it."""

    @property
    def expunged(self) -> Sequence[int]:
        """UIDs gone."""
        ...

    @property
    def changed(self) -> Sequence[Entry]:
        """Messages with other flags than before."""
        ...

    @property
    def added(self) -> Sequence[Entry]:
        """New messages by rising UID."""
        ...

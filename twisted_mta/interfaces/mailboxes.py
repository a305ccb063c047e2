"""Mailboxes, as POP3, IMAP and delivery see them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from zope.interface import Attribute, Interface

from twisted_mta.core.values import value
from twisted_mta.interfaces.people import Account


class MailboxError(Exception):
    """The operation can't be done; the text says why, fit for an IMAP NO."""


class NoSuchMailbox(MailboxError):
    """There is no mailbox of that name (IMAP: [NONEXISTENT], [TRYCREATE] for APPEND and COPY)."""


class MailboxExists(MailboxError):
    """CREATE or RENAME to a name that is taken."""


@value(kw_only=True)
class MailboxInfo:
    """One row of LIST."""

    #: Unicode, "/" between levels; INBOX in capitals.
    name: str
    selectable: bool = True
    has_children: bool = False
    subscribed: bool = False


@value(kw_only=True)
class MailboxStatus:
    """The figures of STATUS, RFC 3501 §6.3.10."""

    messages: int
    recent: int
    uid_next: int
    uid_validity: int
    unseen: int


@value(kw_only=True)
class MessageEntry:
    """One message of an open mailbox."""

    uid: int
    #: System flags ("\\Seen") and keywords ("$Forwarded"), without \\Recent.
    flags: frozenset[str]
    #: Octets, CRLF line ends counted: exactly what `IMailbox.read` gives.
    size: int
    #: Unix time of arrival, seconds.
    internal_date: float
    recent: bool = False
    #: A name that lasts for the life of the message: POP3 UIDL, RFC 1939 §7. 1 to 70 printable octets.
    unique_name: str = ""


@value(kw_only=True)
class MailboxChanges:
    """What happened since the last look, to be told in this order."""

    #: UIDs gone.
    expunged: tuple[int, ...] = ()
    #: Messages whose flags changed, as they are now.
    changed: tuple[MessageEntry, ...] = ()
    #: New messages, by rising UID.
    added: tuple[MessageEntry, ...] = ()


class IMailbox(Interface):
    """One opened mailbox: a view that changes only through `refresh`, so sequence numbers stay put between them.

    Other programs and sessions may change the mailbox at any time; `refresh` tells what they did.
    """

    name = Attribute("Its name.")
    read_only = Attribute("Whether opened by EXAMINE: flags are not changed, \\Recent is not consumed.")
    uid_validity = Attribute("RFC 3501 §2.3.1.1.")
    uid_next = Attribute("The UID that the next message will have at least.")
    entries = Attribute(
        "The view: a list of MessageEntry by rising UID; the sequence number is the index + 1."
    )

    def refresh() -> Awaitable[MailboxChanges]:
        """Look at the disk, bring `entries` up to date, and tell what changed, by whomever (but flag changes and expunges
        made through this very object were told by the method that made them)."""

    def read(uid: int) -> Awaitable[bytes]:
        """The whole message, CRLF line ends. Raises MailboxError if it is gone."""

    def set_flags(uids: Sequence[int], flags: Iterable[str], mode: str) -> Awaitable[Sequence[MessageEntry]]:
        """`mode` is "set", "add" or "remove". Returns the entries as they now are (for those that still exist)."""

    def expunge(uids: Sequence[int] | None = None) -> Awaitable[Sequence[int]]:
        """Remove messages flagged \\Deleted (only among `uids` if given, RFC 4315) and return their UIDs.

        `entries` no longer has them."""

    def remove(uids: Sequence[int]) -> Awaitable[None]:
        """Remove messages whatever their flags (POP3 QUIT); durable when done."""

    def copy(uids: Sequence[int], target: str) -> Awaitable[tuple[int, Sequence[int]]]:
        """Copy, all or none, with flags and dates: (UIDVALIDITY of the target, the new UIDs in order). Raises NoSuchMailbox."""

    def watch(changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` whenever `refresh` might find something; returns what stops it. May call too often, never too late
        by more than the store's polling interval."""

    def close() -> Awaitable[None]:
        """Let go of it. Nothing is expunged."""


class IMailboxStore(Interface):
    """The mailboxes of one account. Names are Unicode with "/" between levels; INBOX in any case is the inbox."""

    def list_mailboxes() -> Awaitable[Sequence[MailboxInfo]]:
        """All of them, INBOX first, then by name. Includes parents that exist only for their children (selectable False)."""

    def subscriptions() -> Awaitable[Sequence[str]]:
        """The subscribed names, whether or not they exist (RFC 3501 §6.3.6)."""

    def subscribe(name: str, on: bool) -> Awaitable[None]:
        """Subscribe, or unsubscribe with on=False."""

    def create(name: str) -> Awaitable[None]:
        """Raises MailboxExists, or MailboxError for a name that can't be."""

    def delete(name: str) -> Awaitable[None]:
        """Remove the mailbox and its messages; children stay. Raises NoSuchMailbox; MailboxError for INBOX."""

    def rename(old: str, new: str) -> Awaitable[None]:
        """With all children. INBOX: its messages move to the new mailbox and it stays, empty (RFC 3501 §6.3.5)."""

    def status(name: str) -> Awaitable[MailboxStatus]:
        """Raises NoSuchMailbox."""

    def open(name: str, read_only: bool = False) -> Awaitable[IMailbox]:
        """Open for a session. Raises NoSuchMailbox."""

    def append(
        name: str, message: bytes, flags: Iterable[str] = (), internal_date: float | None = None
    ) -> Awaitable[tuple[int, int]]:
        """Add a message, durable when done: (UIDVALIDITY, UID). Raises NoSuchMailbox, StoreFull."""


class IMailboxes(Interface):
    """Finds the mailboxes of an account, for the POP3 and IMAP servers."""

    def of(account: Account) -> IMailboxStore:
        """The store of that account; its INBOX exists from the first use."""

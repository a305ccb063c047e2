"""What the IMAP core asks, and the answers it takes. One class a question; no I/O.

There is `core.sasl.Lookup` besides. Any question may be answered with `Refused`.
A name is a mailbox's in Unicode, "/" between levels, "INBOX" in capitals.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted_mta.core.imap.entries import Entry
from twisted_mta.core.imap.fetch import Item
from twisted_mta.core.imap.search import Key
from twisted_mta.core.sasl import Claim, Lookup
from twisted_mta.core.values import value


@value
class Refused:
    """NO, to any question. `code` is a response code such as "TRYCREATE", without the brackets, or ""."""

    text: str
    code: str = ""


# --- Questions -----------------------------------------------------------------------------------


@value
class Login:
    """Is this right? Answer: True or False. With True the session belongs to that account from now on."""

    claim: Claim


@value
class Select:
    """Close the mailbox that is open, if any, and open this one. Answer: Opened."""

    name: str
    read_only: bool


@value(kw_only=True)
class Opened:
    """A mailbox as SELECT found it."""

    #: All messages by rising UID; looked at once, not kept.
    entries: Sequence[Entry]
    uid_validity: int
    uid_next: int
    read_only: bool


@value
class Leave:
    """Close the open mailbox; with `expunge` remove its deleted messages first (CLOSE). Answer: None."""

    expunge: bool


@value
class ListMailboxes:
    """Answer: a sequence of Listed."""


@value
class ListSubscriptions:
    """Answer: a sequence of names, whether or not they exist."""


@value
class Subscribe:
    """Answer: None."""

    name: str
    on: bool


@value
class Create:
    """Answer: None."""

    name: str


@value
class Delete:
    """Answer: None."""

    name: str


@value
class Rename:
    """Answer: None."""

    old: str
    new: str


@value
class Status:
    """Answer: Figures."""

    name: str


@value(kw_only=True)
class BeginAppend:
    """May a message of this size come? Answer: None; its octets follow as BodyChunks, then FinishAppend."""

    name: str
    flags: tuple[str, ...]
    #: Unix time, or None for now.
    internal_date: float | None
    size: int


@value
class FinishAppend:
    """All octets were given: store the message (answer: Appended), or without `keep` forget it (answer: None)."""

    keep: bool


@value
class Appended:
    """Where a message was stored."""

    uid_validity: int
    uid: int


@value
class Refresh:
    """What happened to the open mailbox? Answer: Changes. Refused means that the mailbox is lost."""


@value
class BeginIdle:
    """Call `ImapServer.mailbox_changed` whenever something may have changed, until EndIdle. Answer: Changes until now."""


@value
class EndIdle:
    """Answer: None."""


@value
class Expunge:
    """Remove deleted messages, among `uids` if given. Answer: the UIDs that are gone."""

    uids: tuple[int, ...] | None


@value
class Fetch:
    """Answer in parts: sequences of Fetched in order, then FetchDone (or Refused)."""

    uids: tuple[int, ...]
    items: tuple[Item, ...]
    #: Set \\Seen, and show the flags of the messages where that changed them.
    mark_seen: bool


@value
class Fetched:
    """One message: what stands inside of the parentheses of its FETCH response."""

    uid: int
    data: bytes


@value
class FetchDone:
    """The end of a Fetch. `missing`: some messages could not be read, they are gone."""

    missing: bool = False


@value
class Store:
    """Change flags; `mode` is "set", "add" or "remove". Answer: the Entries as they are now."""

    uids: tuple[int, ...]
    flags: tuple[str, ...]
    mode: str


@value
class Copy:
    """Answer: Copied."""

    uids: tuple[int, ...]
    target: str


@value
class Copied:
    """The UIDs that the copies got, in the order of the originals."""

    uid_validity: int
    uids: Sequence[int]


@value
class Search:
    """Answer in parts: sequences of the UIDs that match, by rising UID."""

    key: Key


Question = (
    Login | Lookup | Select | Leave | ListMailboxes | ListSubscriptions | Subscribe | Create | Delete | Rename | Status
    | BeginAppend | FinishAppend | Refresh | BeginIdle | EndIdle | Expunge | Fetch | Store | Copy | Search
)  # fmt: skip

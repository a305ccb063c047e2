"""The queue: bodies, the store that lasts, and what the rest of the server sees of the queue manager."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import BinaryIO

from zope.interface import Attribute, Interface

from twisted_mta.core.history import PastMessage, Transcript
from twisted_mta.core.queue import NewMessage, Order, Outcome, QueuedMessage, WorkItem
from twisted_mta.core.values import value


class StoreFull(Exception):
    """There is no room on the disk (or the quota is reached). Nothing was stored; trying later may work."""


class DamagedBody(Exception):
    """The body of a message is not what was stored: the text tells an administrator what is wrong with it."""


class IBodyWriter(Interface):
    """A body on its way in. Small ones stay in memory, large ones go to a file; the caller can't tell."""

    size = Attribute("Octets written so far.")

    def write(data: bytes) -> Awaitable[None] | None:
        """Append octets. An Awaitable means: stop producing until it is done (memory is bounded).

        Raises StoreFull, or the Awaitable does; the writer is then of no use but for `abort`.
        """

    def header(limit: int) -> Awaitable[bytes]:
        """The header section, with the empty line that ends it, or its first `limit` octets.

        For when everything was written, and before the body is added. Raises StoreFull.
        """

    def stored() -> Awaitable[IStoredBody]:
        """All that was written, to be read before the body is added or aborted, and no longer than that.

        For when everything was written. Raises StoreFull.
        """

    def in_memory() -> IStoredBody | None:
        """As `stored`, at once, where all of it is in memory; else None."""

    def abort() -> None:
        """Forget the body. Idempotent, and harmless after the body was added to a queue."""


class IStoredBody(Interface):
    """A body that can be read any number of times while its message is in the queue."""

    size = Attribute("Octets.")

    def open() -> BinaryIO:
        """A new file object at the start of the body: from memory, or a file's. The caller closes it."""


@value(kw_only=True)
class Update:
    """What an attempt changes for one recipient: see IQueueStore.record."""

    row: int
    #: None: try again at `next_attempt`. Otherwise the recipient is done and leaves the active queue.
    outcome: Outcome
    next_attempt: float = 0.0
    warned: bool = False
    late: bool = False
    #: For the history: when the attempt ended (Unix seconds), and how many seconds it took.
    at: float = 0.0
    took: float = 0.0


class IQueueStore(Interface):
    """The persistent queue. No method assumes that this is the only process working on it.

    What `add` and `record` return from is durable: on disk, fsynced. Calls are batched into commits.
    """

    def check_room(octets: int) -> None:
        """Raises StoreFull when there is no room for a body of so many octets. Asking takes none of it."""

    def new_body() -> IBodyWriter:
        """Start to receive a body."""

    def add(
        messages: Sequence[NewMessage], body: IBodyWriter, *, claim: bool = False
    ) -> Awaitable[Sequence[WorkItem]]:
        """Put messages that share one body into the queue, all or none; durable when the result is there.

        With `claim` the new recipients belong to the caller at once, as from `claim_due`, and are returned, but for
        those of messages that are held back (`NewMessage.held`); else the result is empty. Raises StoreFull.
        """

    def claim_due(now: float, limit: int) -> Awaitable[Sequence[WorkItem]]:
        """Take up to `limit` recipients whose next attempt is due, oldest due first; nobody else gets them until
        `record` or `release`. Recipients of one message come in one WorkItem."""

    def next_due() -> Awaitable[float | None]:
        """The earliest next attempt among recipients that nobody has claimed; None when there is none."""

    def body(message: QueuedMessage) -> Awaitable[IStoredBody]:
        """The body of a message. Raises KeyError when it is gone, DamagedBody when it can't be what was stored."""

    def record(updates: Sequence[Update], new: Sequence[tuple[NewMessage, bytes]] = ()) -> Awaitable[None]:
        """Note how attempts ended, in one commit, together with the messages they cause.

        `new` are messages with a body of their own (bounces, warnings). Those of an Expanded outcome share the body
        of the recipient's message. A message whose last recipient is done is removed, and so is a body without messages.
        """

    def note_delivered(message: NewMessage, size: int, update: Update) -> None:
        """A message for one recipient, with a body of so many octets, was delivered and never was in the queue. For the
        history only: it is written within a second, and before anybody looks into it. `update` has no row."""

    def release(rows: Sequence[int]) -> Awaitable[None]:
        """Give claimed recipients back unattempted (shutdown)."""

    def postpone(rows: Sequence[int], until: float, note: str = "") -> Awaitable[None]:
        """Give claimed recipients back unattempted, to be due at `until`; a `note` becomes their last reply. That is no
        attempt: it is not counted, and the history does not tell of it."""

    def hasten(rows: Sequence[int], now: float) -> Awaitable[int]:
        """Make recipients due now that would be later; returns how many. Those claimed, held or gone are left alone."""

    def listing(limit: int = 1000, after: str = "") -> Awaitable[Sequence[WorkItem]]:
        """The queue for an administrator, by rising queue id (oldest first): messages with all their unfinished
        recipients; only ids above `after`."""

    def find(queue_id: str) -> Awaitable[WorkItem | None]:
        """One message with its unfinished recipients; None if it is not (any more) in the queue."""

    def retry(queue_ids: Sequence[str] | None, now: float) -> Awaitable[int]:
        """Make recipients due at once (None: all); returns how many. Those being delivered, or held, are left alone."""

    def hold(queue_ids: Sequence[str], reason: str) -> Awaitable[int]:
        """Attempt nothing of these messages until `let_go`; returns how many were not held before.

        What is being delivered comes to its end, and is held if it must be tried again. `reason` (not "") is for the
        administrator, `QueuedMessage.hold` shows it; a message that is held already keeps the one it has. A message
        can be held even where it can't be read.
        """

    def let_go(queue_ids: Sequence[str]) -> Awaitable[int]:
        """End the hold of messages, which go back to their schedule; returns how many."""

    def order(
        order: Order, recipients: Sequence[tuple[str, int]], now: float, hop: str = ""
    ) -> Awaitable[int]:
        """Do that for recipients, by (queue id, row); returns for how many. Those being delivered are left alone (but for
        REROUTE, which then counts for the next attempt), and so is who is held by RETRY.

        EXPIRE sets `QueuedRecipient.given_up` and makes it due at once, held or not. REROUTE sets `hop` ("": as the
        configuration has it) of those whose transport is SMTP, and makes them due unless they are held.
        """

    def delete(queue_ids: Sequence[str]) -> Awaitable[int]:
        """Remove messages without a bounce; returns how many. One that is being delivered is removed when that ends."""

    def close() -> Awaitable[None]:
        """Finish the commits under way and close. Claims that are still held are given back."""


class IQueueHistory(Interface):
    """What a queue remembers of its messages, also of those that have left it: see `twisted_mta.core.history`.

    It is as durable as what it tells of, but for `IQueueStore.note_delivered`. How long it is kept is the queue's to know.
    """

    def recall(queue_ids: Sequence[str]) -> Awaitable[Sequence[PastMessage]]:
        """These messages, with all that happened to them, in that order; unknown and forgotten ones are left out."""

    def mentions(text: str, limit: int) -> Awaitable[Sequence[str]]:
        """The queue ids of messages from or to an address, or with that Message-ID (in angle brackets or without), the
        latest first. Addresses count as they were given at RCPT, as they became, and what was between."""

    def arrivals(start: float, end: float, limit: int) -> Awaitable[Sequence[str]]:
        """The queue ids of messages that came in between two times (Unix seconds), the latest first."""

    def transcripts(queue_id: str) -> Awaitable[Sequence[Transcript]]:
        """The last sessions that ended badly for a message, by host."""

    def tidy(now: float) -> Awaitable[bool]:
        """Forget what has become too old, a bounded step of it. To be called every now and then, and again soon when the
        result says that there is more."""


class IQueue(Interface):
    """The running queue: what reception and the deliveries see of the queue manager."""

    def check_room(octets: int) -> None:
        """See IQueueStore.check_room."""

    def new_body() -> IBodyWriter:
        """See IQueueStore.new_body."""

    def submit(messages: Sequence[NewMessage], body: IBodyWriter) -> Awaitable[None]:
        """Queue messages over one body and start their delivery, or deliver at once what can be. Durable when done, here or
        there. Raises StoreFull."""

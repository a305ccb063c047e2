"""Every seam of the server, as a zope.interface with its contract.

An implementation runs the contract suite of its interface (`twisted_mta.testing.contracts`), so what is
promised here is tested for each. Methods that return an Awaitable may be `async def` or return a Deferred;
they are called in the reactor's thread, and never block it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Sequence
from typing import Any, BinaryIO

import attrs
from zope.interface import Attribute, Interface

from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Alias, Target
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.history import PastMessage, Transcript
from twisted_mta.core.lists import MailingList
from twisted_mta.core.queue import NewMessage, Order, Outcome, QueuedMessage, QueuedRecipient, WorkItem
from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl import Claim, Secret
from twisted_mta.core.tls_policy.tlsa import TlsaRecord

# --- The queue -----------------------------------------------------------------------------------


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

    def abort() -> None:
        """Forget the body. Idempotent, and harmless after the body was added to a queue."""


class IStoredBody(Interface):
    """A body that can be read any number of times while its message is in the queue."""

    size = Attribute("Octets.")

    def open() -> BinaryIO:
        """A new file object at the start of the body: from memory, or a file's. The caller closes it."""


@attrs.frozen(kw_only=True)
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

    It is as durable as what it tells of. How long it is kept is the queue's to know.
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
        """Queue messages over one body and start their delivery. Durable when done. Raises StoreFull."""


# --- Delivery ------------------------------------------------------------------------------------


class IDelivery(Interface):
    """One transport. Attempts never raise for what goes wrong with a message: that is an Outcome."""

    def destination(recipient: QueuedRecipient) -> str:
        """The key by which recipients of one message share a transaction ("example.org"); fast, no I/O."""

    def deliver(
        message: QueuedMessage, body: IStoredBody, recipients: Sequence[QueuedRecipient], destination: str
    ) -> Awaitable[Sequence[Outcome]]:
        """Try once: one outcome for each recipient, in order. `recipients` share `destination`.

        May be called again for the same (queue id, recipient) after a crash; a local delivery then finds its own
        earlier work. An exception is a bug: the manager logs it and treats it as "try later".
        """

    def close() -> Awaitable[None]:
        """Finish or cut off what is under way, close cached connections."""


# --- Who exists ----------------------------------------------------------------------------------


@attrs.frozen
class Account:
    """One user with a mailbox. `name` is the login and the primary address ("alice@example.test")."""

    name: str
    #: Where the Maildir lies, absolute.
    maildir: str


class IDirectory(Interface):
    """Who exists here: a snapshot in memory, replaced whole on reload. Pure look-ups, no I/O.

    It says what is written where; what follows from that (the order of look-ups, chains, loops) is
    `twisted_mta.core.expand`. Addresses have a domain (not the bare ``postmaster``) and ignore case.
    """

    def is_local(domain: str) -> bool:
        """Whether mail for this domain (lower-case, or a literal in brackets) ends here."""

    def first_domain() -> str:
        """The local domain that completes names without one."""

    def postmaster() -> Address:
        """Who gets the mail for postmaster in every local domain."""

    def account(address: Address) -> Account | None:
        """The account whose mailbox this address is: exact, or without the +detail of its local part."""

    def without_detail(address: Address) -> Address | None:
        """The address without its +detail; None if it has none."""

    def alias(address: Address) -> Alias | None:
        """The alias of exactly this name: of the full address, else of the local part in any domain."""

    def catch_all(domain: str) -> Alias | None:
        """The alias for what nobody else in the domain takes."""

    def include(path: str) -> Sequence[Target]:
        """The targets in an ``:include:`` file, by the path in the `Include`; none if it could not be read."""

    def mailing_list(address: Address) -> MailingList | None:
        """The list whose posting address this is."""

    def list_owner(address: Address) -> MailingList | None:
        """The list whose -owner, -bounces or -request address this is."""

    def posters(address: Address) -> Container[str]:
        """The folded addresses that count as members of the list with that posting address: as the list has them, and
        those that they lead to. For `twisted_mta.core.lists.refuse_sender`."""


class AuthenticationUnavailable(Exception):
    """Passwords can't be checked for now (too many wait, the accounts can't be read): SMTP 454 4.7.0, IMAP NO
    [UNAVAILABLE], POP3 -ERR [SYS/TEMP]. The text is fit for the client."""


@attrs.frozen(kw_only=True)
class Client:
    """Who wants to log in: for limits and logs, and for app passwords that are good for one service only."""

    #: "smtp", "imap" or "pop3".
    service: str
    #: An IP address.
    address: str
    session_id: str = ""


class IAuthenticator(Interface):
    """Checks passwords."""

    def authenticate(claim: Claim, client: Client) -> Awaitable[Account | None]:
        """The account if the claim is right, else None: always for a Proof that is not.

        Takes as long for an unknown login as for a wrong password, and longer for clients that were wrong lately.
        Failures are logged here. Raises AuthenticationUnavailable.
        """

    def secret(login: str, client: Client) -> Awaitable[Secret]:
        """What is stored of a login for SCRAM. For one that has nothing it is made up, always the same, and
        authenticate then gives None. Raises AuthenticationUnavailable."""

    def offers_scram() -> bool:
        """Whether SCRAM is to be offered."""


@attrs.frozen(kw_only=True)
class Proof:
    """What DNSSEC says of a look-up."""

    #: Whether the answer, and every alias that led to it, was validated. A proven absence of records is secure too.
    secure: bool = False
    #: The name at the end of the aliases, in lower case.
    name: str
    #: The answer is not secure, but the first of the aliases is.
    alias_secure: bool = False


class IMailResolver(Interface):
    """DNS as mail needs it. Answers are cached for their TTL; each look-up has a deadline of its own.

    Methods raise `twisted_mta.core.route.NoSuchDomain` (NXDOMAIN) or `LookupFailed` (SERVFAIL, timeout);
    an existing name without such records gives an empty sequence.
    """

    def mx(domain: str) -> Awaitable[Sequence[tuple[int, str]]]:
        """(preference, host) pairs, unordered, hosts in lower case without the final dot; the null MX is (0, "")."""

    def addresses(host: str) -> Awaitable[Sequence[str]]:
        """The A and AAAA addresses of a host as text."""

    def txt(name: str) -> Awaitable[Sequence[bytes]]:
        """TXT records, each with its strings joined."""

    def ptr(address: str) -> Awaitable[Sequence[str]]:
        """The host names of an IP address."""

    def mx_proof(domain: str) -> Awaitable[Proof]:
        """Whether the answer of `mx` is proven. Nothing is, without a resolver that validates and is trusted to."""

    def address_proof(host: str) -> Awaitable[Proof]:
        """Whether the answer of `addresses` is proven."""

    def tlsa(name: str) -> Awaitable[Sequence[TlsaRecord]]:
        """The TLSA records of a name ("_25._tcp.mx.example.org"); those that DNSSEC does not prove are none."""


# --- Receiving -----------------------------------------------------------------------------------


@attrs.define
class Peer:
    """What is known of the other side of an SMTP session; grows as it talks."""

    address: str
    port: int
    #: The role of the listener: "mx", "submission" or "submissions".
    role: str = "mx"
    helo: str = ""
    #: Whether it greeted with EHLO.
    esmtp: bool = False
    #: "TLSv1.3 TLS_AES_256_GCM_SHA384", or "" on a plaintext connection.
    tls: str = ""
    account: Account | None = None
    #: For the logs: one short id a session.
    session_id: str = ""
    #: The name of the address by the DNS, "" where there is none or it is not known yet, and whether that name leads
    #: back to the address. One that does not may be anybody's.
    host: str = ""
    host_verified: bool = False
    #: What the checks remember about this session, each under a name of its own.
    notes: dict[str, Any] = attrs.field(factory=dict, repr=False, eq=False)


class IPolicyCheck(Interface):
    """One check of incoming mail. Each method gives a Reply to refuse with, or None to go on."""

    def on_connect(peer: Peer) -> Awaitable[Reply | None] | Reply | None:
        """The connection is there. A refusal is sent in place of the greeting."""

    def on_helo(peer: Peer) -> Awaitable[Reply | None] | Reply | None:
        """HELO or EHLO was given; `peer.helo` is set."""

    def on_mail(peer: Peer, envelope: Envelope) -> Awaitable[Reply | None] | Reply | None:
        """MAIL FROM; the envelope has no recipients yet."""

    def on_rcpt(
        peer: Peer, envelope: Envelope, recipient: Recipient
    ) -> Awaitable[Reply | None] | Reply | None:
        """RCPT TO; the envelope has the recipients accepted before."""

    def on_message(peer: Peer, envelope: Envelope, header: bytes) -> Awaitable[Reply | None] | Reply | None:
        """The message is complete; `header` is its header section."""


class IMessageSink(Interface):
    """Where the octets of one message go while it is received."""

    def write(data: bytes) -> Awaitable[None] | None:
        """As IBodyWriter.write, but never raises: what goes wrong is told by `finish`."""

    def finish() -> Awaitable[Reply]:
        """The message is complete: the reply to give. A 250 means that it is durable. Never raises."""

    def abort() -> None:
        """The session ended, or the message broke a rule: forget it."""


class IReception(Interface):
    """What an SMTP server session asks: the decisions about one peer's mail.

    The methods may answer at once (a value) or later (an Awaitable). Replies are final: positive ones too are sent as given.
    """

    def connected(peer: Peer) -> Awaitable[Reply | None] | Reply | None:
        """None to greet, or the refusal."""

    def helo(peer: Peer) -> Awaitable[Reply | None] | Reply | None:
        """None to go on, or the refusal."""

    def mail(peer: Peer, envelope: Envelope) -> Awaitable[Reply | None] | Reply | None:
        """MAIL FROM: always a Reply in the end."""

    def rcpt(peer: Peer, envelope: Envelope, recipient: Recipient) -> Awaitable[Reply | None] | Reply | None:
        """RCPT TO: always a Reply in the end."""

    def verify(peer: Peer, argument: str) -> Awaitable[Reply] | Reply:
        """VRFY of a peer that may use it."""

    def expand(peer: Peer, argument: str) -> Awaitable[Reply] | Reply:
        """EXPN of a peer that may use it."""

    def authenticate(peer: Peer, claim: Claim) -> Awaitable[Account | None]:
        """AUTH: see IAuthenticator."""

    def secret(peer: Peer, login: str) -> Awaitable[Secret]:
        """AUTH: see IAuthenticator."""

    def account(login: str) -> Account | None:
        """The account with that login, asked for by a client that is trusted to have checked the password (XCLIENT)."""

    def message(peer: Peer, envelope: Envelope) -> IMessageSink:
        """DATA was given for an envelope with at least one recipient."""


# --- Mailboxes -----------------------------------------------------------------------------------


class MailboxError(Exception):
    """The operation can't be done; the text says why, fit for an IMAP NO."""


class NoSuchMailbox(MailboxError):
    """There is no mailbox of that name (IMAP: [NONEXISTENT], [TRYCREATE] for APPEND and COPY)."""


class MailboxExists(MailboxError):
    """CREATE or RENAME to a name that is taken."""


@attrs.frozen(kw_only=True)
class MailboxInfo:
    """One row of LIST."""

    #: Unicode, "/" between levels; INBOX in capitals.
    name: str
    selectable: bool = True
    has_children: bool = False
    subscribed: bool = False


@attrs.frozen(kw_only=True)
class MailboxStatus:
    """The figures of STATUS, RFC 3501 §6.3.10."""

    messages: int
    recent: int
    uid_next: int
    uid_validity: int
    unseen: int


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
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


#: A long answer of a session in parts (see core.effects.Core.answer).
Parts = AsyncIterator[object]

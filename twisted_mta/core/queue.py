"""The queue's vocabulary: what is put in, what is worked on, and how an attempt ended.

One *body* (the octets as received, below our trace header) may serve several queued *messages*: a list post
is the same body under another sender and with more header lines. Each message has *recipients* with a state
of their own. Times are Unix seconds (float).
"""

from __future__ import annotations

import enum

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import DEFAULT_NOTIFY, DeliverBy, Notify, TlsWish
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value


class Transport(enum.StrEnum):
    """How a recipient is served: the name of the IDelivery that takes it."""

    LOCAL = "local"
    SMTP = "smtp"
    LIST = "list"
    #: An alias of several addresses, which are recipients themselves: the sender is told of it, and nothing else is done.
    ALIAS = "alias"
    #: An mbox, or a Maildir that is no account's. `target` is its absolute path, with a slash at the end of a Maildir's.
    FILE = "file"
    #: A program. `target` is its command line.
    COMMAND = "command"
    #: A function of a Twisted application. `target` names it.
    HANDLER = "handler"
    #: Whoever sent the message with the queue id `target`, which was forwarded and now bounces.
    RETURN = "return"
    #: A reply to the sender, if one is due: `address` is that of an account.
    VACATION = "vacation"
    #: Changes the rules of the account that `target` names, as the message says.
    RULES = "rules"
    #: Nowhere, on purpose.
    DISCARD = "discard"
    #: Nowhere, and the sender is told. `target` is the reply: "550 5.1.1 there is no user ...".
    REFUSE = "refuse"

    #: The hash of an Enum is a call of Python, and there are several for each recipient.
    __hash__ = str.__hash__


@value
class NewRecipient:
    """A recipient as it enters the queue.

    `address` is where it goes, `original` what the client said at RCPT (they differ behind an alias). For a transport that
    needs more than the address there is a `target`; the address is then that of the alias with this target.
    """

    address: Address
    transport: Transport
    original: Address
    notify: Notify = DEFAULT_NOTIFY
    orcpt: str = ""
    #: The aliases and :include: files on the way from `original`, for the history; no part of what it is.
    via: tuple[str, ...] = attrs.field(default=(), eq=False)
    #: The envelope sender of its copy; None: the message's. A message from the null reverse-path stays so for all.
    sender: Address | None = None
    #: Header fields that stand above `NewMessage.prefix` in its copy.
    prefix: bytes = b""
    #: What the transport goes by besides the address, see `Transport`; "" for most.
    target: str = ""

    def queued(self, row: int, due: float) -> QueuedRecipient:
        """As it stands in the queue when it has just come."""
        return QueuedRecipient(
            row=row,
            address=self.address,
            transport=self.transport,
            original=self.original,
            notify=self.notify,
            orcpt=self.orcpt,
            status=Status.QUEUED,
            attempts=0,
            next_attempt=due,
            last_reply="",
            warned=False,
            sender=self.sender,
            prefix=self.prefix,
            target=self.target,
        )


@value(kw_only=True)
class Arrival:
    """How a message came in, for the history."""

    #: The client's IP address and, where it has one for certain, its name.
    address: str = ""
    host: str = ""
    #: The name it gave with HELO.
    helo: str = ""
    #: "ESMTPS" and the like, RFC 3848.
    protocol: str = ""
    #: "TLSv1.3 TLS_AES_256_GCM_SHA384", or "".
    tls: str = ""
    login: str = ""
    #: The role of the listener.
    role: str = ""
    session: str = ""
    #: The checks that let it pass, in order.
    checks: tuple[str, ...] = ()


@value(kw_only=True)
class NewMessage:
    """A message as it enters the queue; its body comes beside it."""

    #: The queue id: 1 to 32 of [0-9A-Za-z], unique for ever, and sorting by arrival.
    id: str
    sender: Address | None
    recipients: tuple[NewRecipient, ...]
    #: Header fields that precede the body in every copy, CRLF line ends ("Received: ...", "List-Id: ...").
    prefix: bytes = b""
    arrived: float
    expires: float
    #: "7BIT" or "8BITMIME", RFC 6152.
    body_type: str = "7BIT"
    smtputf8: bool = False
    envid: str = ""
    ret: str = ""
    #: The queue id of the message that this one came from (a list post, a bounce); "" for one received.
    parent: str = ""
    #: For the logs and `mta queue show`: Message-ID without brackets, and who brought it.
    message_id: str = ""
    origin: str = ""
    #: RFC 4865: nothing is attempted before this time; 0: at once. `expires` is to be counted from it.
    not_before: float = 0.0
    #: RFC 2852.
    deliver_by: DeliverBy | None = None
    #: RFC 6710: -9 to 9, higher goes first.
    priority: int = 0
    #: RFC 8689.
    tls: TlsWish = TlsWish.NONE
    #: Goes into the history only. None for what was made here.
    arrival: Arrival | None = None

    @property
    def released(self) -> float:
        """When the first attempt is due."""
        return max(self.arrived, self.not_before)

    @property
    def held(self) -> bool:
        """Whether it is held back for a while."""
        return self.not_before > self.arrived

    def queued(self, body: int, size: int) -> QueuedMessage:
        """As it stands in the queue when it has just come, over the body of that number and so many octets."""
        return QueuedMessage(
            id=self.id,
            sender=self.sender,
            prefix=self.prefix,
            body_id=body,
            body_size=size,
            arrived=self.arrived,
            expires=self.expires,
            body_type=self.body_type,
            smtputf8=self.smtputf8,
            envid=self.envid,
            ret=self.ret,
            parent=self.parent,
            message_id=self.message_id,
            origin=self.origin,
            not_before=self.not_before,
            deliver_by=self.deliver_by,
            priority=self.priority,
            tls=self.tls,
        )


class Status(enum.StrEnum):
    """The state of one recipient."""

    QUEUED = "queued"
    DELIVERED = "delivered"
    FAILED = "failed"


@value(kw_only=True)
class QueuedRecipient:
    """A recipient as it stands in the queue."""

    #: The store's key of the row.
    row: int
    address: Address
    transport: Transport
    original: Address
    notify: Notify
    orcpt: str
    status: Status
    #: Attempts that have ended, whatever their outcome.
    attempts: int
    next_attempt: float
    #: The reply (a remote's, or our own words) that ended the last attempt; "" before the first.
    last_reply: str
    #: Whether a delay warning went out for it.
    warned: bool
    #: Whether the sender was told that the time of `QueuedMessage.deliver_by` has passed.
    late: bool = False
    #: An administrator gave it up: it fails without another attempt.
    given_up: bool = False
    #: It stands for a row that can't be read, and `last_reply` says why: nothing is tried.
    damaged: bool = False
    #: An administrator sends it there, whatever the configuration says: "mx.example.org:25", "[192.0.2.1]:25". "": nobody does.
    hop: str = ""
    #: As in NewRecipient.
    sender: Address | None = None
    prefix: bytes = b""
    target: str = ""


@value(kw_only=True)
class QueuedMessage:
    """A message as it stands in the queue, without its recipients."""

    id: str
    sender: Address | None
    prefix: bytes
    body_id: int
    #: Octets of the body, without `prefix`.
    body_size: int
    arrived: float
    expires: float
    body_type: str
    smtputf8: bool
    envid: str
    ret: str
    parent: str
    message_id: str
    origin: str
    not_before: float = 0.0
    deliver_by: DeliverBy | None = None
    priority: int = 0
    tls: TlsWish = TlsWish.NONE
    #: Why it is held: nothing is attempted until it is let go. "" for a message that is not.
    hold: str = ""

    @property
    def released(self) -> float:
        """When the first attempt was due."""
        return max(self.arrived, self.not_before)

    @property
    def size(self) -> int:
        """Octets that a recipient gets: the prefix and the body."""
        return len(self.prefix) + self.body_size

    def sender_for(self, recipient: QueuedRecipient) -> Address | None:
        """The envelope sender of a recipient's copy, who is told what becomes of it."""
        # RFC 5321 §4.5.5: nobody is to be told of a bounce, wherever it goes on to.
        return None if self.sender is None else recipient.sender or self.sender

    def copy_for(self, recipient: QueuedRecipient) -> QueuedMessage:
        """The message as a recipient gets it: from its own sender, with its own fields on top."""
        if recipient.sender is None and not recipient.prefix:
            return self
        return attrs.evolve(self, sender=self.sender_for(recipient), prefix=recipient.prefix + self.prefix)


@value
class WorkItem:
    """A message with those of its recipients that are due and now belong to us."""

    message: QueuedMessage
    recipients: tuple[QueuedRecipient, ...]


class Order(enum.StrEnum):
    """What an administrator may ask for single recipients."""

    #: Try now.
    RETRY = "retry"
    #: Fail untried, and tell the sender.
    EXPIRE = "expire"
    #: Remove it, and tell nobody.
    DELETE = "delete"
    #: Send it to another host, from now on.
    REROUTE = "reroute"


@value(kw_only=True)
class Contact:
    """One host that was turned to in an attempt, whether or not it could be reached."""

    #: "mx.example.org [192.0.2.1]".
    remote: str
    #: What it said in the end, or what we found.
    reply: Reply
    #: Unix time, and seconds until that.
    began: float
    took: float
    #: "TLSv1.3 TLS_AES_256_GCM_SHA384" or "plaintext", "" where there was no session; and whether the certificate had to
    #: prove the host's name.
    tls: str = ""
    verified: bool = False
    #: What was said in the session, without the message; "" where there was none.
    transcript: str = attrs.field(default="", repr=False)


@value
class Delivered:
    """The attempt succeeded: the recipient is done. `relayed` tells that the next host is now responsible.

    `confirms`: it offers DSN, got the recipient's NOTIFY, and so reports success itself; no notice of ours is due.
    `traced`: the sender is to be told that it was passed on, unless the recipient's NOTIFY is NEVER (RFC 2852 §4.1.4).
    `expanded`: the recipient is an alias of several addresses.
    """

    reply: Reply
    remote: str = ""
    relayed: bool = False
    confirms: bool = False
    traced: bool = False
    expanded: bool = False
    contacts: tuple[Contact, ...] = attrs.field(default=(), eq=False, repr=False)
    #: Messages, each with a body of its own, that enter the queue in the commit that records this.
    caused: tuple[tuple[NewMessage, bytes], ...] = attrs.field(default=(), repr=False)


@value
class TryLater:
    """The attempt failed for now: try again on schedule."""

    reply: Reply
    remote: str = ""
    #: The next host may have the message: it got all of it, and then nothing more was heard (RFC 1047).
    doubtful: bool = False
    #: False: no host could be asked, so no other message would have fared better.
    reached: bool = True
    contacts: tuple[Contact, ...] = attrs.field(default=(), eq=False, repr=False)


@value
class Failed:
    """The attempt failed for good: bounce."""

    reply: Reply
    remote: str = ""
    contacts: tuple[Contact, ...] = attrs.field(default=(), eq=False, repr=False)


@value
class Expanded:
    """The recipient (a list) became other messages over the same body: they enter the queue as it leaves, in one commit."""

    messages: tuple[NewMessage, ...]
    reply: Reply


#: `contacts` are the hosts that were turned to, in order; they tell how it came about, and are no part of what it is.
#: How one attempt for one recipient ended. `remote` is the host that said so ("mx1.example.org [192.0.2.1]"), "" for ourselves.
Outcome = Delivered | TryLater | Failed | Expanded

"""One message on its way from a peer into the queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.core.envelope import Envelope, TlsWish
from twisted_mta.core.expand import Kind, Routed, route
from twisted_mta.core.forward import Passing, forward
from twisted_mta.core.lists import bounced_member
from twisted_mta.core.message import HeaderCollector, first_field
from twisted_mta.core.queue import Arrival, NewMessage, NewRecipient, Transport
from twisted_mta.core.replies import Reply
from twisted_mta.core.submission import SubmissionError
from twisted_mta.core.trace import received_field, with_protocol
from twisted_mta.core.values import value
from twisted_mta.interfaces import IBodyWriter, IDirectory, IMessageSink, IQueue, Peer, StoreFull
from twisted_mta.service.inline import InlineHandlers
from twisted_mta.service.room import Room
from twisted_mta.service.rules import Rules, client_of, judge, refused
from twisted_mta.store.log_events import LogEvent

#: Octets of a header section that the checks see; a longer one is judged by its beginning, and refused at submission.
MAX_HEADER = 1 << 18

#: There is no room for a message.
FULL = Reply(452, "4.3.1", "No room on the disk here, try again later")
_FAULT = Reply(451, "4.3.0", "Something went wrong here; try again later")
_BUSY = Reply(452, "4.3.1", "Too many long headers at a time, try again later")
_LONG_HEADER = Reply(552, "5.3.4", f"The header of the message is longer than {MAX_HEADER} octets")
_received = LogEvent(
    f"{__name__}.Incoming",
    "{queue_id}: received from {client}, <{sender}> to {recipients}, {size} octets, message-id {message_id}",
)
#: The roles of listeners whose clients are our users.
_SUBMISSION = frozenset(("submission", "submissions"))


@value(kw_only=True)
class Intake:
    """What a message on its way in needs of the server. `ids` makes queue ids, `seconds` tells the Unix time."""

    queue: IQueue
    directory: IDirectory
    ids: Callable[[], str]
    seconds: Callable[[], float]
    inline: InlineHandlers | None = None
    #: For what has to be in memory whole.
    room: Room = attrs.field(factory=Room)


@implementer(IMessageSink)
class Incoming:
    """One message on its way from a peer into the queue."""

    log = Logger()

    def __init__(self, intake: Intake, rules: Rules, peer: Peer, envelope: Envelope) -> None:
        """`rules` are those in force when it begins; a reload meanwhile is for the next one."""
        self._intake = intake
        self._rules = rules
        self._peer = peer
        self._envelope = envelope
        self._body: IBodyWriter = intake.queue.new_body()
        # RFC 6409 §8: what our users send is put right; nobody else's mail is touched.
        submitted = peer.account is not None and peer.role in _SUBMISSION
        #: Holds a header section back that is to be mended, until it is whole and goes into the body.
        self._collector = HeaderCollector(MAX_HEADER) if submitted and rules.mend else None
        #: Octets that were taken of the room for the collector.
        self._taken = 0
        self._queue_id = ""
        self._failure: Reply | None = None

    def write(self, data: bytes) -> Awaitable[None] | None:
        """See IMessageSink."""
        if self._failure is not None:
            return None
        if self._collector is not None:
            data = self._collect(self._collector, data)
        return self._store(data)

    def _store(self, data: bytes) -> Awaitable[None] | None:
        if not data or self._failure is not None:
            return None
        try:
            pending = self._body.write(data)
        except Exception as error:  # noqa: BLE001  a sink never raises; told at the end of the message
            self._refused(error)
            return None
        return None if pending is None else self._written(pending)

    async def _written(self, pending: Awaitable[None]) -> None:
        try:
            await pending
        except Exception as error:  # noqa: BLE001  as above
            self._refused(error)

    def _refused(self, error: Exception) -> None:
        """The body can't be stored."""
        if not isinstance(error, StoreFull):
            self.log.error(
                "could not store a message from {peer}: {error}",
                peer=self._peer.address,
                session=self._peer.session_id,
                error=str(error),
            )
        self._fail(FULL if isinstance(error, StoreFull) else _FAULT)

    def _fail(self, reply: Reply) -> None:
        """The message can't be taken, which is told at its end; what there is of it need not take up room until then."""
        self._failure = reply
        self._collector = None
        self.abort()

    def _collect(self, collector: HeaderCollector, data: bytes) -> bytes:
        """What can be stored now: nothing before the end of the header section."""
        if not self._intake.room.take(len(data)):
            self._fail(_BUSY)
            return b""
        self._taken += len(data)
        rest = collector.feed(data)
        return self._mended(collector) + rest if collector.complete else b""

    def _mended(self, collector: HeaderCollector) -> bytes:
        """The header section that was collected, as it is to be stored. What is wrong with it becomes the failure."""
        assert self._rules.mend is not None  # else nothing is collected
        self._collector = None
        self._leave_room()
        if collector.too_long:
            self._fail(_LONG_HEADER)
            return b""
        try:
            return self._rules.mend(collector.header, self._peer, self._id(), self._intake.seconds())
        except SubmissionError as error:
            self._fail(refused(self._peer, error.reply))
        except Exception:  # noqa: BLE001  a sink never raises
            self.log.failure("could not mend a header from {peer}", peer=self._peer.address)
            self._fail(_FAULT)
        return b""

    def _id(self) -> str:
        self._queue_id = self._queue_id or self._intake.ids()
        return self._queue_id

    def _leave_room(self) -> None:
        taken, self._taken = self._taken, 0
        self._intake.room.give_back(taken)

    def abort(self) -> None:
        """See IMessageSink."""
        self._leave_room()
        self._body.abort()

    async def finish(self) -> Reply:
        """See IMessageSink."""
        try:
            if self._collector is not None:  # the message ended before its header section did
                pending = self._store(self._mended(self._collector))
                if pending is not None:
                    await pending
            reply = self._failure or await self._accept()
        except StoreFull:
            reply = FULL
        except Exception:  # noqa: BLE001  whatever it was, the client keeps the message and tries again
            self.log.failure(
                "could not queue a message from {peer}",
                peer=self._peer.address,
                session=self._peer.session_id,
            )
            reply = _FAULT
        if not reply.positive:
            self.abort()
        return reply

    async def _accept(self) -> Reply:
        peer, envelope = self._peer, self._envelope
        header = await self._body.header(MAX_HEADER)
        verdict = judge(self._rules.at_message, None, peer, envelope, header)
        refusal = verdict if verdict is None or isinstance(verdict, Reply) else await verdict
        if refusal is not None:
            return refusal
        message = self._new_message(header)
        if isinstance(message, Reply):
            return message
        inline = self._intake.inline
        if inline is not None and inline.concerns(message):
            refusal = await inline.ask(message, envelope, self._body)
            if refusal is not None:
                return refused(peer, refusal)
        size = self._body.size
        await self._intake.queue.submit([message], self._body)
        if peer.remarks is None:
            self._tell(message, size)
        # Also where it is in its mailbox by now: people and programs look for these words to find the id.
        return Reply(250, "2.0.0", f"Queued as {message.id}")

    def _tell(self, message: NewMessage, size: int) -> None:
        """The line in the log."""
        peer, envelope = self._peer, self._envelope
        _received(
            queue_id=message.id,
            client=client_of(peer),
            peer=peer.address or "this host",
            host=peer.host,
            host_verified=peer.host_verified,
            session=peer.session_id,
            login=peer.account.name if peer.account else "",
            tls=peer.tls,
            sender=str(envelope.sender or ""),
            recipients=", ".join([f"<{recipient.address}>" for recipient in envelope.recipients[:10]]),
            count=len(envelope.recipients),
            size=size,
            priority=envelope.priority,  # RFC 6710 §4.1
            message_id=message.message_id or "none",
        )
        for recipient in envelope.recipients if envelope.sender is None else ():
            bounced = bounced_member(recipient.address)
            settings = self._intake.directory.list_owner(recipient.address) if bounced else None
            if bounced and settings is not None:
                self.log.info(
                    "{queue_id}: {member} of {list} bounced",
                    event="member_bounced",
                    queue_id=message.id,
                    member=str(bounced[1]),
                    list=str(settings.address),
                    client=client_of(peer),
                )

    def _new_message(self, header: bytes) -> NewMessage | Reply:
        """The message for the queue, or why it is not taken after all."""
        intake, envelope = self._intake, self._envelope
        routed = route(envelope.recipients, intake.directory, self._body.size)
        if _too_large_for_all(routed):
            # Whoever declares its size hears so at RCPT. A bounce might go to somebody who never sent it.
            return refused(self._peer, routed.problems[0].reply)
        queue_id, protocol = self._id(), self._protocol()
        now = intake.seconds()
        forwarded = forward(
            [self._signed(one) for one in routed.recipients],
            Passing(queue_id=queue_id, sender=envelope.sender, header=header, now=now),
            intake.directory.forwarding(),
            intake.directory,
        )
        if forwarded.refused:
            # All of it, while its sender's server is there: a bounce would go to whom the spammer names.
            return refused(self._peer, Reply(550, "5.7.1", forwarded.refused[0]))
        for text in forwarded.kept if self._peer.remarks is None else ():
            self.log.info("{queue_id}: kept: {text}", event="not forwarded", queue_id=queue_id, text=text)
        for problem in routed.problems:
            # It is queued all the same, and fails at delivery: so the sender gets an ordinary bounce.
            if self._peer.remarks is None:
                self.log.warn(
                    "{queue_id}: {problem} ({source})",
                    queue_id=queue_id,
                    problem=problem.text,
                    source=problem.source,
                )
        return NewMessage(
            id=queue_id,
            sender=envelope.sender,
            recipients=forwarded.recipients,
            prefix=self._trace(queue_id, protocol, now),
            arrived=now,
            expires=max(now, envelope.hold_until) + self._rules.expire,
            body_type=envelope.body,
            smtputf8=envelope.smtputf8,
            envid=envelope.envid,
            # RFC 8689 §5: what requires TLS is not sent back whole.
            ret="HDRS" if envelope.require_tls else envelope.ret,
            message_id=_message_id(header),
            origin=self._origin(),
            not_before=envelope.hold_until if envelope.hold_until > now else 0.0,
            deliver_by=envelope.deliver_by,
            priority=envelope.priority,
            tls=_tls_wish(envelope, header),
            arrival=self._arrival(protocol),
        )

    def _signed(self, recipient: NewRecipient) -> NewRecipient:
        """Who changes rules is who logged in: nothing else says so."""
        peer = self._peer
        if recipient.transport is not Transport.RULES or peer.account is None or peer.role not in _SUBMISSION:
            return recipient
        return attrs.evolve(recipient, target=peer.account.name)

    def _arrival(self, protocol: str) -> Arrival:
        peer = self._peer
        return Arrival(
            address=peer.address,
            host=peer.host if peer.host_verified else "",
            helo=peer.helo,
            protocol=protocol,
            tls=peer.tls,
            login=peer.account.name if peer.account else "",
            role=peer.role,
            session=peer.session_id,
            checks=self._rules.check_names,
        )

    def _protocol(self) -> str:
        peer = self._peer
        return with_protocol(
            esmtp=peer.esmtp,
            tls=bool(peer.tls),
            authenticated=peer.account is not None,
            lmtp=peer.role == "lmtp",
            utf8=self._envelope.smtputf8,
        )

    def _trace(self, queue_id: str, protocol: str, now: float) -> bytes:
        """RFC 5321 §4.4: each server that takes a message adds a Received field on top."""
        peer, hostname, recipients = self._peer, self._rules.hostname, self._envelope.recipients
        return received_field(
            helo=peer.helo,
            address=peer.address,
            hostname=hostname,
            protocol=protocol,
            queue_id=queue_id,
            recipient=recipients[0].address if len(recipients) == 1 else None,
            timestamp=now,
            tls=peer.tls,
            host=peer.host if peer.host_verified else "",
            priority=self._envelope.priority,
        )

    def _origin(self) -> str:
        peer = self._peer
        login = f" as {peer.account.name}" if peer.account else ""
        return f"{peer.helo} [{peer.address}]{login}" if peer.address else f"this host, {peer.helo}"


def _too_large_for_all(routed: Routed) -> bool:
    """Whether the domains of all recipients take only smaller messages."""
    return (
        bool(routed.problems)
        and all(one.kind is Kind.SIZE for one in routed.problems)
        and all(one.transport is Transport.REFUSE for one in routed.recipients)
    )


def _tls_wish(envelope: Envelope, header: bytes) -> TlsWish:
    """RFC 8689 §4.1: the parameter of MAIL, else the TLS-Required field."""
    if envelope.require_tls:
        return TlsWish.REQUIRED
    field = first_field(header, "TLS-Required") or b""
    return TlsWish.OPTIONAL if field.strip().lower() == b"no" else TlsWish.NONE


def _message_id(header: bytes) -> str:
    """The Message-ID for logs and listings: one printable word, whatever the header says."""
    raw = first_field(header, "Message-ID") or b""
    text = raw.decode("ascii", "replace").strip("<> ")
    if not text.isprintable() or " " in text:
        text = "".join(c if c.isprintable() and c != " " else "?" for c in text)
    return text[:250]

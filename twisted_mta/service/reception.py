"""Reception: decides about one peer's mail and puts what is accepted into the queue.

The way of a message through here: `Reception.mail` and `.rcpt` ask the policy checks; `.message` opens an
`Incoming`, which streams the body into the queue's store; `Incoming.finish` shows the header to the checks, expands
the recipients, and answers 250 once the queue says that everything is on disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import attrs
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.core.address import Address, AddressError
from twisted_mta.core.envelope import Envelope, Recipient, TlsWish
from twisted_mta.core.expand import expand, resolves, route
from twisted_mta.core.message import HeaderCollector, first_field
from twisted_mta.core.queue import NewMessage
from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl import Claim, Secret
from twisted_mta.core.submission import SubmissionError
from twisted_mta.core.trace import received_field, with_protocol
from twisted_mta.interfaces import (
    Account,
    Client,
    IAuthenticator,
    IBodyWriter,
    IDirectory,
    IMessageSink,
    IPolicyCheck,
    IQueue,
    IReception,
    Peer,
    StoreFull,
)
from twisted_mta.service.binary import BinaryIncoming, BinaryRoom
from twisted_mta.store.threads import InlineWorkers, Workers

#: Addresses that EXPN shows.
MAX_EXPANDED = 500
#: Octets of a header section that the checks see; a longer one is judged by its beginning, and refused at submission.
MAX_HEADER = 1 << 18

_SENDER_OK = Reply(250, "2.1.0", "Sender OK")
_RECIPIENT_OK = Reply(250, "2.1.5", "Recipient OK")
_FULL = Reply(452, "4.3.1", "No room on the disk here, try again later")
_FAULT = Reply(451, "4.3.0", "Something went wrong here; try again later")
#: RFC 5321 §3.5.3: we neither confirm nor deny, so that nobody can harvest addresses.
_CANNOT_VERIFY = Reply(252, "2.1.5", "Send the mail and we will try")

_LONG_HEADER = Reply(552, "5.3.4", f"The header of the message is longer than {MAX_HEADER} octets")
#: The roles of listeners whose clients are our users.
_SUBMISSION = frozenset(("submission", "submissions"))

Verdict = Awaitable[Reply | None] | Reply | None


@attrs.frozen(kw_only=True)
class Rules:
    """What a configuration says about receiving; replaced whole on reload."""

    hostname: str
    #: Seconds that a message may stay in the queue.
    expire: float
    #: In the order in which they are asked; the first that objects decides.
    checks: tuple[IPolicyCheck, ...]
    #: Mends the header section of what users submit: (header section, peer, queue id, Unix time). Raises SubmissionError.
    mend: Callable[[bytes, Peer, str, float], bytes] | None = None


@implementer(IReception)
class Reception:
    """The decisions for all SMTP listeners.

    `seconds` tells the Unix time, `ids` makes queue ids, `workers` convert binary messages.
    """

    log = Logger()

    def __init__(
        self,
        rules: Rules,
        directory: IDirectory,
        queue: IQueue,
        authenticator: IAuthenticator,
        ids: Callable[[], str],
        seconds: Callable[[], float],
        workers: Workers | InlineWorkers | None = None,
    ) -> None:
        self.rules = rules
        self.directory = directory
        self.queue = queue
        self.ids = ids
        self.seconds = seconds
        self._authenticator = authenticator
        self._binary = BinaryRoom(workers or InlineWorkers())

    def connected(self, peer: Peer) -> Verdict:
        """See IReception."""
        return self._judge(peer, lambda check: check.on_connect(peer), None)

    def helo(self, peer: Peer) -> Verdict:
        """See IReception."""
        return self._judge(peer, lambda check: check.on_helo(peer), None)

    def mail(self, peer: Peer, envelope: Envelope) -> Verdict:
        """See IReception."""
        return self._judge(peer, lambda check: check.on_mail(peer, envelope), _SENDER_OK)

    def rcpt(self, peer: Peer, envelope: Envelope, recipient: Recipient) -> Verdict:
        """See IReception."""
        return self._judge(peer, lambda check: check.on_rcpt(peer, envelope, recipient), _RECIPIENT_OK)

    def judge_message(self, peer: Peer, envelope: Envelope, header: bytes) -> Verdict:
        """The last word of the checks; None to accept."""
        return self._judge(peer, lambda check: check.on_message(peer, envelope, header), None)

    def verify(self, peer: Peer, argument: str) -> Reply:
        """See IReception: those who logged in are told, to others we neither confirm nor deny."""
        if peer.account is None:
            return _CANNOT_VERIFY
        try:
            address = self._named(argument)
        except AddressError as error:
            return Reply(553, "5.1.3", f"Bad address: {error}")
        problem = resolves(address, self.directory)
        return Reply(250, "2.1.5", f"<{address}>") if problem is None else problem.reply

    def expand(self, peer: Peer, argument: str) -> Reply:
        """See IReception: the members of a list or an alias, for those who logged in."""
        if peer.account is None:
            return Reply(502, "5.7.0", "EXPN is for those who log in")  # RFC 5321 §7.3
        try:
            address = self._named(argument)
        except AddressError as error:
            return Reply(553, "5.1.3", f"Bad address: {error}")
        places = expand(address, self.directory).recipients
        if not places:
            return Reply(550, "5.1.1", f"There is no list or user {address} here")
        shown = [f"<{place.address}>" for place in places[:MAX_EXPANDED]]
        return Reply(250, "2.1.5", "\n".join(shown))

    def _named(self, argument: str) -> Address:
        """The address that VRFY or EXPN asks about; a bare name is one of ours (RFC 5321 §3.5.1)."""
        text = argument.strip("<> ")
        return Address.parse(text if "@" in text else f"{text}@{self.directory.first_domain()}")

    def authenticate(self, peer: Peer, claim: Claim) -> Awaitable[Account | None]:
        """See IReception."""
        return self._authenticator.authenticate(claim, _who(peer))

    def secret(self, peer: Peer, login: str) -> Awaitable[Secret]:
        """See IReception."""
        return self._authenticator.secret(login, _who(peer))

    def message(self, peer: Peer, envelope: Envelope) -> IMessageSink:
        """See IReception."""
        if envelope.body == "BINARYMIME":
            text = Incoming(self, peer, attrs.evolve(envelope, body="8BITMIME"))
            return BinaryIncoming(text, self._binary)
        return Incoming(self, peer, envelope)

    def _judge(self, peer: Peer, ask: Callable[[IPolicyCheck], Verdict], otherwise: Reply | None) -> Verdict:
        """The first refusal, else `otherwise`; without a detour as long as the checks answer at once."""
        checks = self.rules.checks
        for index, check in enumerate(checks):
            verdict = ask(check)
            if isinstance(verdict, Reply):
                return self._refused(peer, verdict)
            if verdict is not None:
                return self._judge_on(peer, verdict, checks[index + 1 :], ask, otherwise)
        return otherwise

    async def _judge_on(
        self,
        peer: Peer,
        pending: Awaitable[Reply | None],
        checks: Sequence[IPolicyCheck],
        ask: Callable[[IPolicyCheck], Verdict],
        otherwise: Reply | None,
    ) -> Reply | None:
        refusal = await pending
        for check in checks:
            if refusal is not None:
                break
            verdict = ask(check)
            refusal = verdict if verdict is None or isinstance(verdict, Reply) else await verdict
        return otherwise if refusal is None else self._refused(peer, refusal)

    def _refused(self, peer: Peer, reply: Reply) -> Reply:
        self.log.info(
            "refused {client}: {reply}",
            client=_client(peer),
            peer=peer.address,
            session=peer.session_id,
            login=peer.account.name if peer.account else "",
            reply=str(reply),
        )
        return reply


def _who(peer: Peer) -> Client:
    return Client(service="smtp", address=peer.address, session_id=peer.session_id)


@implementer(IMessageSink)
class Incoming:
    """One message on its way from a peer into the queue."""

    log = Logger()

    def __init__(self, reception: Reception, peer: Peer, envelope: Envelope) -> None:
        self._reception = reception
        self._peer = peer
        self._envelope = envelope
        self._body: IBodyWriter = reception.queue.new_body()
        #: The header section as it goes into the queue; empty until it ended.
        self._header = b""
        self._collector = HeaderCollector(MAX_HEADER)
        # RFC 6409 §8: what our users send is put right; nobody else's mail is touched.
        submitted = peer.account is not None and peer.role in _SUBMISSION
        self._mend = reception.rules.mend if submitted else None
        self._queue_id = ""
        self._failure: Reply | None = None

    def write(self, data: bytes) -> Awaitable[None] | None:
        """See IMessageSink."""
        if self._failure is not None:
            return None
        if not self._collector.complete:
            data = self._take_header(data)
        return self._store(data) if data and self._failure is None else None

    def _store(self, data: bytes) -> Awaitable[None] | None:
        try:
            pending = self._body.write(data)
        except StoreFull:
            self._failure = _FULL
            return None
        return None if pending is None else self._written(pending)

    async def _written(self, pending: Awaitable[None]) -> None:
        try:
            await pending
        except StoreFull:
            self._failure = _FULL

    def _take_header(self, data: bytes) -> bytes:
        """What can be stored now: all of it, or nothing before the end of a header section that is to be mended."""
        rest = self._collector.feed(data)
        header = self._end_header() if self._collector.complete else b""
        return data if self._mend is None else header + rest * self._collector.complete

    def _end_header(self) -> bytes:
        """The header section as it is to be stored; what is wrong with it becomes the failure."""
        self._header = self._collector.header
        if self._mend is None:
            return self._header
        if self._collector.too_long:
            self._failure = _LONG_HEADER
            return b""
        try:
            now = self._reception.seconds()
            self._header = self._mend(self._header, self._peer, self._id(), now)
        except SubmissionError as error:
            self.log.info(
                "refused {client}: {reply}",
                client=_client(self._peer),
                peer=self._peer.address,
                reply=str(error.reply),
            )
            self._failure = error.reply
        except Exception:  # noqa: BLE001  a sink never raises
            self.log.failure("could not mend a header from {peer}", peer=self._peer.address)
            self._failure = _FAULT
        return self._header

    def _id(self) -> str:
        self._queue_id = self._queue_id or self._reception.ids()
        return self._queue_id

    async def _flush_header(self) -> None:
        """A message may end before its header section does."""
        if self._collector.complete:
            return
        header = self._end_header()
        if self._mend is not None and self._failure is None:
            pending = self._store(header)
            if pending is not None:
                await pending

    def abort(self) -> None:
        """See IMessageSink."""
        self._body.abort()

    async def finish(self) -> Reply:
        """See IMessageSink."""
        try:
            await self._flush_header()
            reply = self._failure or await self._accept()
        except StoreFull:
            reply = _FULL
        except Exception:  # noqa: BLE001  whatever it was, the client keeps the message and tries again
            self.log.failure(
                "could not queue a message from {peer}",
                peer=self._peer.address,
                session=self._peer.session_id,
            )
            reply = _FAULT
        if not reply.positive:
            self._body.abort()
        return reply

    async def _accept(self) -> Reply:
        reception, peer, envelope = self._reception, self._peer, self._envelope
        verdict = reception.judge_message(peer, envelope, self._header)
        refusal = verdict if verdict is None or isinstance(verdict, Reply) else await verdict
        if refusal is not None:
            return refusal
        message = self._new_message()
        size = self._body.size
        await reception.queue.submit([message], self._body)
        self.log.info(
            "{queue_id}: received from {client}, <{sender}> to {recipients}, {size} octets, message-id {message_id}",
            queue_id=message.id,
            client=_client(peer),
            peer=peer.address or "this host",
            host=peer.host,
            host_verified=peer.host_verified,
            session=peer.session_id,
            login=peer.account.name if peer.account else "",
            tls=peer.tls,
            sender=str(envelope.sender or ""),
            recipients=", ".join(f"<{recipient.address}>" for recipient in envelope.recipients[:10]),
            count=len(envelope.recipients),
            size=size,
            message_id=message.message_id or "none",
        )
        return Reply(250, "2.0.0", f"Queued as {message.id}")

    def _new_message(self) -> NewMessage:
        reception, envelope = self._reception, self._envelope
        routed = route(envelope.recipients, reception.directory)
        queue_id = self._id()
        for problem in routed.problems:
            # It is queued all the same, and fails at delivery: so the sender gets an ordinary bounce.
            self.log.warn(
                "{queue_id}: {problem} ({source})",
                queue_id=queue_id,
                problem=problem.text,
                source=problem.source,
            )
        now = reception.seconds()
        return NewMessage(
            id=queue_id,
            sender=envelope.sender,
            recipients=routed.recipients,
            prefix=self._trace(queue_id, now),
            arrived=now,
            expires=max(now, envelope.hold_until) + reception.rules.expire,
            body_type=envelope.body,
            smtputf8=envelope.smtputf8,
            envid=envelope.envid,
            # RFC 8689 §5: what requires TLS is not sent back whole.
            ret="HDRS" if envelope.require_tls else envelope.ret,
            message_id=_message_id(self._header),
            origin=self._origin(),
            not_before=envelope.hold_until if envelope.hold_until > now else 0.0,
            deliver_by=envelope.deliver_by,
            priority=envelope.priority,
            tls=_tls_wish(envelope, self._header),
        )

    def _trace(self, queue_id: str, now: float) -> bytes:
        """RFC 5321 §4.4: each server that takes a message adds a Received field on top."""
        peer, hostname, recipients = self._peer, self._reception.rules.hostname, self._envelope.recipients
        return received_field(
            helo=peer.helo,
            address=peer.address,
            hostname=hostname,
            protocol=with_protocol(
                esmtp=peer.esmtp,
                tls=bool(peer.tls),
                authenticated=peer.account is not None,
                lmtp=peer.role == "lmtp",
                utf8=self._envelope.smtputf8,
            ),
            queue_id=queue_id,
            recipient=recipients[0].address if len(recipients) == 1 else None,
            timestamp=now,
            tls=peer.tls,
            host=peer.host if peer.host_verified else "",
        )

    def _origin(self) -> str:
        peer = self._peer
        login = f" as {peer.account.name}" if peer.account else ""
        return f"{peer.helo} [{peer.address}]{login}" if peer.address else f"this host, {peer.helo}"


def _client(peer: Peer) -> str:
    """For the log: the address, behind the name that it has for certain."""
    if not peer.address:
        return "this host"
    return f"{peer.host} [{peer.address}]" if peer.host_verified else peer.address


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
    return "".join(c if c.isprintable() and c != " " else "?" for c in text)[:250]

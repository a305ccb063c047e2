"""One attempt to hand a message to other hosts: who is still to be served, and what was said about each."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twisted_mta.core.address import Address
from twisted_mta.core.downgrade import Undowngradable
from twisted_mta.core.envelope import Notify, TlsWish
from twisted_mta.core.queue import (
    Contact,
    Delivered,
    Failed,
    Outcome,
    QueuedMessage,
    QueuedRecipient,
    TryLater,
)
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp.client import TransactionDone
from twisted_mta.core.smtp.transaction import TimeLeft, Transaction, peer_limits, unpromised
from twisted_mta.core.smtp.whole import MAX_WHOLE, Whole
from twisted_mta.delivery.body import MessageReader
from twisted_mta.delivery.convert import ConvertedBody, Converter
from twisted_mta.interfaces import IStoredBody
from twisted_mta.net.smtp_client import SmtpConnection
from twisted_mta.store.threads import InlineWorkers, Workers

#: Transactions of one message that are handed to a session at a time: so the next one stands behind the message of the
#: one before, where the host offers PIPELINING, in the same write.
AHEAD = 2
#: Characters of a peer's reply that go into the queue, the log and bounces.
MAX_TEXT = 1000


@attrs.define
class Trouble:
    """Why no host took it so far. Refusals are final only when every host was heard and refused."""

    reply: Reply
    remote: str = ""
    temporary: bool = False
    #: Whether any host was there.
    reached: bool = False

    def note(self, reply: Reply, remote: str = "", *, final: bool = False, reached: bool = False) -> None:
        """Another host that did not work. A temporary trouble is remembered over a refusal."""
        self.reached |= reached
        if final and self.temporary:
            return
        self.reply, self.remote = reply, remote
        self.temporary = not final

    def leave_open(self) -> None:
        """There was no time to hear every host: none of the refusals is final."""
        self.temporary = True


def needs_tls(message: QueuedMessage) -> bool:
    """Whether it goes out by the rules of REQUIRETLS, or not at all."""
    # RFC 8689 §4.2.1, §5: a bounce is not lost for want of it.
    return message.tls is TlsWish.REQUIRED and message.sender is not None


def prefers_tls(message: QueuedMessage) -> bool:
    """Whether it goes out by those rules if that is possible: a bounce of a message that required TLS."""
    return message.tls is TlsWish.REQUIRED and message.sender is None


class _Verdict(NamedTuple):
    """What was found of one recipient."""

    reply: Reply
    remote: str
    final: bool
    confirms: bool
    traced: bool
    doubtful: bool
    reached: bool

    def outcome(self, contacts: tuple[Contact, ...]) -> Outcome:
        """For the queue manager."""
        if self.reply.positive:
            return Delivered(self.reply, self.remote, True, self.confirms, self.traced, contacts=contacts)
        if self.final:
            return Failed(self.reply, self.remote, contacts)
        return TryLater(self.reply, self.remote, self.doubtful, self.reached, contacts)


class _Load(NamedTuple):
    """The message as one host gets it: the same for all transactions of a session."""

    #: What goes in its place; None: it goes as it is.
    converted: ConvertedBody | None
    #: All of it, where it is small.
    whole: Whole | None
    size: int
    body_type: str
    require_tls: bool


class _Flight(NamedTuple):
    """A transaction that was handed to a session."""

    #: The recipients, by index.
    batch: Sequence[int]
    done: Deferred[TransactionDone]
    reader: MessageReader
    traced: bool


class Attempt:
    """`recipients` are addressed by their index throughout."""

    log = Logger()

    def __init__(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        workers: Workers | InlineWorkers,
        converter: Converter,
        seconds: Callable[[], float],
        *,
        chunking: bool = True,
        eightbit: str = "convert",
    ) -> None:
        """`seconds` tells the Unix time; `chunking`: BDAT may be used; `eightbit` is as in Relay. To be closed in the end."""
        self._seconds = seconds
        self._chunking = chunking
        self._eightbit = eightbit
        #: RFC 6531 §3.2. Many clients ask for SMTPUTF8 always: where a host does not offer it we look whether it is needed.
        self._needs_utf8 = message.smtputf8
        self._looked = False
        self.message = message
        self.recipients = recipients
        self._body = body
        self._workers = workers
        self._converter = converter
        self._converted: ConvertedBody | None = None
        #: The message in memory, as it is (True) and converted.
        self._whole: dict[bool, Whole] = {}
        self._verdicts: dict[int, _Verdict] = {}
        #: The envelope senders.
        self.senders = [message.sender_for(recipient) for recipient in recipients]
        #: Whether the last session was left because the host names a limit for each.
        self.spent = False
        #: Those for whom another host may decide better than the last session did.
        self.put_off: list[int] = []
        #: What ended the last session that was lost.
        self.lost = Reply(451, "4.4.2", "lost the connection")
        self._contacts: list[Contact] = []
        #: When the last contact ended, or the attempt began.
        self._mark = seconds()

    def outcomes(self) -> Sequence[Outcome]:
        """One for each recipient; those whose verdict is the same object share theirs. All must have been decided."""
        contacts = tuple(self._contacts)
        found: list[Outcome] = []
        last: _Verdict | None = None
        for index in range(len(self.recipients)):
            verdict = self._verdicts[index]
            if verdict is not last:
                outcome, last = verdict.outcome(contacts), verdict
            found.append(outcome)
        return found

    def met(
        self, remote: str, reply: Reply, transcript: str = "", tls: str = "", verified: bool = False
    ) -> None:
        """A host was turned to, and said this in the end; for the history, which has one entry for what went well in a row."""
        began, self._mark = self._mark, self._seconds()
        last = self._contacts[-1] if self._contacts else None
        if last is not None and reply.positive and last.reply.positive and last.remote == remote:
            began = last.began
            self._contacts.pop()
        contact = Contact(
            remote=remote,
            reply=_cut(reply),
            began=began,
            took=self._mark - began,
            tls=tls,
            verified=verified,
            transcript=transcript,
        )
        self._contacts.append(contact)

    def _met_by(self, connection: SmtpConnection, reply: Reply) -> None:
        """A transaction ended with this."""
        said = "" if reply.positive else connection.transcript.text()
        self.met(connection.remote, reply, said, connection.tls or "plaintext", connection.verified)

    def close(self) -> None:
        """Let go of what was made for it."""
        if self._converted is not None:
            self._converted.close()

    def give_up(self, indexes: Sequence[int], trouble: Trouble) -> None:
        """No host was left to try for these."""
        final = trouble.reply.permanent and not trouble.temporary
        for index in indexes:
            self._decide(index, trouble.reply, trouble.remote, None, final=final, reached=trouble.reached)

    async def use(self, connection: SmtpConnection, indexes: Sequence[int], max_recipients: int) -> list[int]:
        """Send the message over a session; those that nothing was decided for, so that another one may be tried at once.

        `spent` then tells whether the session is only at the end of what the host takes in one. `put_off` has those who
        were decided and may still be offered to other hosts.
        """
        waiting = self._by_sender(indexes)
        undecided: list[int] = []
        flights: deque[_Flight] = deque()
        load: _Load | None = None
        self.spent = False
        self.put_off = []
        while waiting or flights:
            while waiting and len(flights) < AHEAD and not self.spent and not undecided:
                batch = self._batch(connection, waiting, max_recipients)
                if not batch:
                    self.spent = True
                    break
                load = load or await self._load(connection, batch)
                if load is not None:
                    flights.append(self._send(connection, batch, load))
            if not flights:
                break
            again, lost = await self._land(connection, flights.popleft())
            undecided += lost
            waiting.extendleft(reversed(again))
        self.spent = self.spent and not undecided
        return [*undecided, *waiting]

    def _by_sender(self, indexes: Sequence[int]) -> deque[int]:
        """Those side by side who share a sender, and so may share a transaction."""
        senders = self.senders
        found: dict[Address | None, list[int]] = {}
        for index in indexes:
            found.setdefault(senders[index], []).append(index)
        return deque(chain.from_iterable(found.values()))

    def _batch(self, connection: SmtpConnection, waiting: deque[int], most: int) -> list[int]:
        """Take the recipients of the next transaction on a session; none if the host takes no more on it (RFC 9422 §4)."""
        limits = peer_limits(connection.core.extensions)
        if limits.messages and connection.transactions >= limits.messages:
            return []
        most = min(most, limits.recipients or most)
        batch: list[int] = []
        elsewhere: list[int] = []
        senders = self.senders
        while waiting and len(batch) < most:
            index = waiting[0]
            if batch and senders[index] is not senders[batch[0]] and senders[index] != senders[batch[0]]:
                break
            waiting.popleft()
            domain = self.recipients[index].address.domain if limits.domains else ""
            if domain and domain not in connection.domains:
                if len(connection.domains) >= limits.domains:
                    elsewhere.append(index)
                    continue
                connection.domains.add(domain)
            batch.append(index)
        waiting.extendleft(reversed(elsewhere))
        return batch

    async def _load(self, connection: SmtpConnection, batch: Sequence[int]) -> _Load | None:
        """What goes over a session; None if nothing can, and the batch is decided."""
        try:
            converted = await self._body_for(connection)
        except (Undowngradable, OSError, KeyError) as error:
            reply = _not_converted(error)
            self._decide_all(batch, reply, connection)
            self.put_off += batch if reply.permanent else ()
            return None
        size = self.message.size if converted is None else converted.size
        whole = None
        if size <= MAX_WHOLE:
            try:
                whole = await self._in_memory(converted)
            except Exception:  # noqa: BLE001  a body that can't be read is this message's trouble only
                self.log.failure("a message can't be read to be sent to {remote}", remote=connection.remote)
                self._decide_all(batch, Reply(451, "4.3.0", "the message can't be read"), connection)
                return None
        as_it_is = self._eightbit == "send" and self._is_too_wide(connection)
        body_type = "7BIT" if converted is not None or as_it_is else self.message.body_type
        require_tls = needs_tls(self.message) or self._offers_to_require_tls(connection)
        return _Load(converted, whole, size, body_type, require_tls)

    def _send(self, connection: SmtpConnection, batch: Sequence[int], load: _Load) -> _Flight:
        """Send a transaction."""
        transaction = self._envelope(batch, load)
        reader = self._reader(load.converted)
        done = connection.send(transaction, reader.read, load.whole)
        return _Flight(batch, done, reader, self._is_traced(transaction, connection))

    async def _land(self, connection: SmtpConnection, flight: _Flight) -> tuple[list[int], list[int]]:
        """The end of a transaction: (those for the next one on this session, those undecided because it ended)."""
        try:
            done = await flight.done
        finally:
            flight.reader.close()
        batch, data = flight.batch, done.data
        if (
            data is not None
            and data.positive
            and done.replies.count(data) == len(batch)
            and not flight.traced
        ):
            # Nearly always: they are all told the same, and share the verdict.
            self._met_by(connection, data)
            confirms = "DSN" in connection.core.extensions
            verdict = _Verdict(_cut(data), connection.remote, False, confirms, False, False, True)
            self._verdicts.update(dict.fromkeys(batch, verdict))
            return [], []
        refusal = next((reply for reply in done.replies if not reply.positive), None)
        self._met_by(connection, refusal or done.replies[0])
        progress = any(reply.positive for reply in done.replies)
        again: list[int] = []
        lost: list[int] = []
        for position, (index, reply) in enumerate(zip(batch, done.replies, strict=True)):
            if position in done.undecided:
                self.lost = reply
                lost.append(index)
                continue
            if progress and _too_many(reply):
                again.append(index)
                continue
            self._decide(
                index,
                reply,
                connection.remote,
                connection,
                final=reply.permanent,
                traced=flight.traced,
                doubtful=position in done.doubtful,
            )
            if refusal is not None and position not in done.doubtful and _is_one_hosts_word(reply):
                self.put_off.append(index)
        return again, lost

    # --- what is sent --------------------------------------------------------------------------

    async def _body_for(self, connection: SmtpConnection) -> ConvertedBody | None:
        """What goes to this host in place of the message; None: the message as it is. Raises as Converter does."""
        if self._needs_utf8 and not self._looked and "SMTPUTF8" not in connection.core.extensions:
            self._needs_utf8 = await self._converter.needs_utf8(self.message.prefix, self._body)
            self._looked = True
        return await self._in_seven_bits() if self._must_convert(connection) else None

    def _reader(self, converted: ConvertedBody | None) -> MessageReader:
        if converted is None:
            return MessageReader(self.message.prefix, self._body, self._workers)
        return MessageReader(b"", converted, self._workers)

    async def _in_memory(self, converted: ConvertedBody | None) -> Whole:
        """A small message; read once for all its transactions. Raises as MessageReader does."""
        whole = self._whole.get(converted is None)
        if whole is None:
            reader = self._reader(converted)
            try:
                whole = Whole(await reader.read_all())
            finally:
                reader.close()
            self._whole[converted is None] = whole
        return whole

    def _time_left(self) -> TimeLeft | None:
        by = self.message.deliver_by
        if by is None:
            return None
        # Rounded towards the past: the last second is not ours to give.
        return TimeLeft(math.floor(by.time - self._seconds()), by.returns, by.trace)

    def _is_traced(self, transaction: Transaction, connection: SmtpConnection) -> bool:
        """Whether the sender is told that the next host has the message: RFC 2852 §4.1.4, §4.1.4.2."""
        left = transaction.time_left
        if left is None:
            return False
        return left.trace or (left.seconds > 0 and unpromised(transaction, connection.core.extensions))

    def _must_convert(self, connection: SmtpConnection) -> bool:
        """RFC 6152 §3: eight bits go only to a host that says it takes them. SMTPUTF8 is more than a conversion can give."""
        return self._eightbit == "convert" and not self._needs_utf8 and self._is_too_wide(connection)

    def _is_too_wide(self, connection: SmtpConnection) -> bool:
        """Whether the message has eight bits and the host takes only seven."""
        return self.message.body_type == "8BITMIME" and "8BITMIME" not in connection.core.extensions

    async def _in_seven_bits(self) -> ConvertedBody:
        """The message for hosts without 8BITMIME; made once. Raises as Converter does."""
        if self._converted is None:
            self._converted = await self._converter.seven_bits(self.message.prefix, self._body)
            self.log.info(
                "{queue_id}: converted to seven bits"
                + ", which broke its DKIM signature" * self._converted.signed,
                queue_id=self.message.id,
                dkim_broken=self._converted.signed,
            )
        return self._converted

    def _envelope(self, batch: Sequence[int], load: _Load) -> Transaction:
        chosen = tuple([self.recipients[index] for index in batch])
        return Transaction(
            sender=self.senders[batch[0]],
            recipients=chosen,
            size=load.size,
            body_type=load.body_type,
            smtputf8=self._needs_utf8,
            envid=self.message.envid,
            ret=self.message.ret,
            time_left=self._time_left(),
            priority=self.message.priority,
            # What failed once is sent in the old way: in case that it was the new one that the next host can't bear.
            chunking=self._chunking and not any(one.attempts for one in chosen),
            require_tls=load.require_tls,
        )

    def _offers_to_require_tls(self, connection: SmtpConnection) -> bool:
        """Whether a bounce can be protected on its way as what it tells of was: RFC 8689 §5."""
        return (
            prefers_tls(self.message) and connection.verified and "REQUIRETLS" in connection.core.extensions
        )

    def _decide_all(self, batch: Sequence[int], reply: Reply, connection: SmtpConnection) -> None:
        for index in batch:
            self._decide(index, reply, connection.remote, connection, final=reply.permanent)

    def _decide(
        self,
        index: int,
        reply: Reply,
        remote: str,
        connection: SmtpConnection | None,
        *,
        final: bool,
        traced: bool = False,
        doubtful: bool = False,
        reached: bool = True,
    ) -> None:
        """What better hosts left open is no failure because of a worse one, which may not know the recipients."""
        # RFC 3461 §5.2.1, §5.2.2: whoever got the NOTIFY parameter sends the notice.
        confirms = connection is not None and "DSN" in connection.core.extensions
        traced = traced and self.recipients[index].notify is not Notify.NEVER
        verdict = _Verdict(_cut(reply), remote, final, confirms, traced, doubtful, reached)
        before = self._verdicts.get(index)
        if before is None or before.final or verdict.reply.positive or verdict.doubtful:
            self._verdicts[index] = verdict


def _cut(reply: Reply) -> Reply:
    return reply if len(reply.text) <= MAX_TEXT else attrs.evolve(reply, text=reply.text[:MAX_TEXT])


def _not_converted(error: Exception) -> Reply:
    if isinstance(error, Undowngradable):
        text = f"the message is 8-bit, the next host takes only 7-bit, and it can't be converted: {error}"
        return Reply(554, "5.6.3", text)
    return Reply(
        451, "4.3.0", f"the message could not be converted for a host that takes only 7-bit: {error}"
    )


def _is_one_hosts_word(reply: Reply) -> bool:
    """Whether other hosts of the destination are asked too after this refusal."""
    # RFC 5321 §5.1: until an attempt succeeds. And what one host can't do another may: RFC 6531 §3.2, RFC 8689 §4.2.1.
    return not reply.positive and (reply.transient or not reply.heard)


def _too_many(reply: Reply) -> bool:
    # RFC 5321 §4.5.3.1.10: whoever did not fit in one transaction goes into the next.
    return reply.code == 452 and reply.enhanced in ("", "4.5.3")

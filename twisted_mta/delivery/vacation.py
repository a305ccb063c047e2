"""Vacation replies as a transport: a recipient of its own beside the mailbox's, so that the history tells what came of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Notify, Recipient
from twisted_mta.core.expand import expand, route
from twisted_mta.core.explanation import Note
from twisted_mta.core.queue import Delivered, NewMessage, Outcome, QueuedMessage, QueuedRecipient, Transport
from twisted_mta.core.replies import Reply
from twisted_mta.core.rules import Rules, Vacation
from twisted_mta.core.vacation import addressed, correspondent, handle, reply, why_not
from twisted_mta.core.values import value
from twisted_mta.delivery.body import read_head
from twisted_mta.interfaces import Foreseen, IDelivery, IDirectory, IForesight, IStoredBody
from twisted_mta.store.answers import AnswerFile
from twisted_mta.store.threads import InlineWorkers, Workers

_DAY = 86400.0
#: Seconds for which a reply is tried.
_EXPIRE = 2 * _DAY


#: How people get a copy, rather than files and programs.
_PEOPLE = (Transport.LOCAL, Transport.SMTP, Transport.LIST)


def _parsed(name: str) -> Address:
    """A name on the way to a recipient; ":include:" paths are among them, and nobody's address."""
    local, _, domain = name.rpartition("@")
    return Address(local, domain)


@value
class _Answer:
    """A reply that may be due: to whom, and as whom."""

    vacation: Vacation
    to: Address
    sender: Address
    header: bytes


@implementer(IDelivery, IForesight)
class VacationDelivery:
    """IDelivery for Transport.VACATION, whose recipients are accounts. No reply is no failure: the reason is in the outcome."""

    log = Logger()

    def __init__(
        self,
        directory: IDirectory,
        answers: AnswerFile,
        ids: Callable[[], str],
        clock: IReactorTime,
        workers: Workers | InlineWorkers,
        hostname: str,
    ) -> None:
        self._directory = directory
        self._answers = answers
        self._ids = ids
        self._clock = clock
        self._workers = workers
        self._hostname = hostname

    def destination(self, recipient: QueuedRecipient) -> str:
        """See IDelivery: the account."""
        return recipient.address.folded

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """See IDelivery. The reply enters the queue in the commit that records the outcome."""
        return [await self._deliver(message, body, recipient) for recipient in recipients]

    async def foresee(self, message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> Foreseen:
        """See IForesight. Whether the sender got one lately is not looked up."""
        found = self._judge(message, recipient, header)
        if isinstance(found, str):
            return Foreseen(Note("vacation", f"no vacation reply: {found}"))
        days = found.vacation.days
        return Foreseen(
            Note("vacation", f"vacation reply to {found.to}, unless there was one in the last {days} days")
        )

    async def close(self) -> None:
        """See IDelivery."""
        await self._workers.run(self._answers.close)

    async def _deliver(
        self, message: QueuedMessage, body: IStoredBody, recipient: QueuedRecipient
    ) -> Outcome:
        try:
            header = await self._workers.run(read_head, body)
            found = self._judge(message, recipient, header)
            if not isinstance(found, str) and not await self._workers.run(
                self._claim, message, recipient, found
            ):
                found = f"{found.to} got one in the last {found.vacation.days} days"
        except (OSError, sqlite3.Error) as error:
            self.log.error("no vacation reply to {queue_id}: {error}", queue_id=message.id, error=str(error))
            found = f"this server can't tell whether it is due ({error})"
        if isinstance(found, str):
            return Delivered(Reply(250, "2.0.0", f"no vacation reply: {found}"))
        return self._reply(message, recipient, found)

    def _judge(self, message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> _Answer | str:
        """The reply, or why there is none."""
        rules = self._directory.rules(recipient.address) or Rules()
        vacation = rules.vacation
        today = datetime.fromtimestamp(self._clock.seconds(), UTC).date()
        if vacation is None or not vacation.active(today):
            return "it is not the time for it"
        mine = [recipient.address, *rules.addresses]
        if self._leads_to_nobody_else(recipient.original, recipient.address):
            mine.append(recipient.original)
        own = frozenset(one.folded for one in mine)
        to = message.sender
        # What is kept away from other hosts since it is spam has a forged sender, who gets nothing from here.
        test = next((one for one in self._directory.forwarding().not_if if one.matches(header)), None)
        if test is not None:
            return f"it has {test}"
        why = why_not(header, to, own)
        if why or to is None:
            return why
        named = addressed(header, own)
        sender = vacation.sender or next(one for one in mine if one.folded == named)
        return _Answer(vacation, to, sender, header)

    def _leads_to_nobody_else(self, address: Address, user: Address) -> bool:
        """Whether an address is the user's, and no name for several people of whom each would reply (RFC 3834 §2)."""

        def is_user(name: Address) -> bool:
            base = self._directory.without_detail(name)
            return user.folded in (name.folded, base.folded if base else "")

        return is_user(address) or all(
            is_user(one.address) or any(is_user(_parsed(name)) for name in one.via)
            for one in expand(address, self._directory).recipients
            if one.transport in _PEOPLE
        )

    def _claim(self, message: QueuedMessage, recipient: QueuedRecipient, answer: _Answer) -> bool:
        vacation = answer.vacation
        return self._answers.claim(
            recipient.address.folded,
            correspondent(answer.to),
            handle(vacation),
            message.id,
            self._clock.seconds(),
            vacation.days * _DAY,
        )

    def _reply(self, message: QueuedMessage, recipient: QueuedRecipient, answer: _Answer) -> Outcome:
        now, queue_id = self._clock.seconds(), self._ids()
        made = reply(
            answer.vacation,
            answer.header,
            to=answer.to,
            sender=answer.sender,
            queue_id=queue_id,
            hostname=self._hostname,
            now=now,
        )
        letter = NewMessage(
            id=queue_id,
            sender=None,  # RFC 3834 §3.3
            recipients=route([Recipient(answer.to, Notify.NEVER)], self._directory).recipients,
            arrived=now,
            expires=now + _EXPIRE,
            body_type="8BITMIME" if made.smtputf8 else "7BIT",
            smtputf8=made.smtputf8,
            parent=message.id,
            message_id=made.message_id,
            origin=f"vacation of {recipient.address}",
        )
        text = f"vacation reply to {answer.to} as {queue_id}"
        return Delivered(Reply(250, "2.0.0", text), caused=((letter, made.data),))

"""Mail by which users change their rules, as a transport. The answer tells what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Notify, Recipient
from twisted_mta.core.expand import route
from twisted_mta.core.explanation import Finding, Note
from twisted_mta.core.message import header_length
from twisted_mta.core.mime import Part, parse_structure, part_text
from twisted_mta.core.queue import (
    Delivered,
    Failed,
    NewMessage,
    NewRecipient,
    Outcome,
    QueuedMessage,
    QueuedRecipient,
    Transport,
    TryLater,
)
from twisted_mta.core.replies import Reply
from twisted_mta.core.rules import Changed, Rules, RulesError, Vacation, format_rules
from twisted_mta.core.vacation import is_automatic, reply
from twisted_mta.interfaces import Foreseen, IDelivery, IDirectory, IForesight, IStoredBody
from twisted_mta.store.threads import InlineWorkers, Workers

#: Octets of a message that are looked at.
MAX_MESSAGE = 1 << 18
_EXPIRE = 2 * 86400.0
_NO_LOGIN = Reply(550, "5.7.1", "Rules are changed by mail from the user alone, over submission with a login")
_HELP = """\
Write lines like these, as plain text, and nothing else:

    forward: bob@example.org, keep
    forward: off
    vacation: I am away until Monday.
    vacation: off
    show

"keep" leaves a copy in your mailbox. Before "vacation:" there may be vacation-start: 2026-12-20,
vacation-end: 2027-01-03, vacation-days: 7, vacation-subject: and vacation-from: Your Name <your address>.
The text of the reply goes on to the end of your message, or to a line of "--"."""

#: (account, text of the order) -> what it changed. Raises RulesError and OSError.
Change = Callable[[str, str], Awaitable[Changed]]


@implementer(IDelivery, IForesight)
class RulesDelivery:
    """IDelivery for Transport.RULES. `target` of a recipient is the account that logged in, which reception alone sets."""

    log = Logger()

    def __init__(
        self,
        change: Change,
        directory: IDirectory,
        ids: Callable[[], str],
        clock: IReactorTime,
        workers: Workers | InlineWorkers,
        hostname: str,
    ) -> None:
        self._change = change
        self._directory = directory
        self._ids = ids
        self._clock = clock
        self._workers = workers
        self._hostname = hostname

    def destination(self, recipient: QueuedRecipient) -> str:
        """See IDelivery: the account."""
        return recipient.target

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """See IDelivery. A repeated attempt makes the same rules of the same message."""
        return [await self._deliver(message, body, recipient) for recipient in recipients]

    async def foresee(self, message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> Foreseen:
        """See IForesight."""
        if not recipient.target:
            return Foreseen(Note("rules", _NO_LOGIN.text, Finding.REFUSED), failure=_NO_LOGIN)
        return Foreseen(Note("rules", f"changes the rules of {recipient.target}"))

    async def close(self) -> None:
        """See IDelivery: there is nothing to let go of."""

    async def _deliver(
        self, message: QueuedMessage, body: IStoredBody, recipient: QueuedRecipient
    ) -> Outcome:
        account = recipient.target
        if not account:
            return Failed(_NO_LOGIN)
        told: Sequence[Address] = ()
        try:
            data = await self._workers.run(_read, body)
            head = data[: header_length(data)]
            if is_automatic(head):
                # Not answered either: two programs would write to each other for ever.
                return self._done(message, recipient, "not changed: it was sent by a program")
            made = await self._change(account, await self._workers.run(_plain_text, data))
        except RulesError as error:
            words = "Nothing was changed:\n\n" + "".join(f"    {problem}\n" for problem in error.problems)
            outcome, text = "not changed: " + "; ".join(error.problems), f"{words}\n{_HELP}"
        except OSError as error:
            self.log.error(
                "the rules of {account} can't be written: {error}", account=account, error=str(error)
            )
            return TryLater(Reply(451, "4.3.0", "the rules can't be written just now"))
        else:
            if made.after.forward != made.before.forward:
                # Who has all mail sent elsewhere looks there; so whoever took that away can't do it unseen.
                told = made.before.forward
            outcome, text = made.summary or "nothing changed", _told(made.after)
        return self._done(message, recipient, outcome, (self._letter(message, recipient, head, text, told),))

    def _done(
        self,
        message: QueuedMessage,
        recipient: QueuedRecipient,
        outcome: str,
        letters: tuple[tuple[NewMessage, bytes], ...] = (),
    ) -> Outcome:
        self.log.info(
            "{queue_id}: rules of {account} by mail: {outcome}",
            event="rules",
            queue_id=message.id,
            account=recipient.target,
            outcome=outcome,
        )
        return Delivered(Reply(250, "2.0.0", f"rules of {recipient.target}: {outcome}"[:400]), caused=letters)

    def _letter(
        self,
        message: QueuedMessage,
        recipient: QueuedRecipient,
        header: bytes,
        text: str,
        former: Sequence[Address],
    ) -> tuple[NewMessage, bytes]:
        """The answer, into the mailbox of the account: whoever wrote, its owner learns of it. Also to where it was forwarded
        until now."""
        now, queue_id = self._clock.seconds(), self._ids()
        local, _, domain = recipient.target.rpartition("@")
        user = Address(local, domain)
        elsewhere = route((Recipient(one, Notify.NEVER) for one in former), self._directory).recipients
        made = reply(
            Vacation(text=text, name="Rules for your mail"),
            header,
            to=user,
            sender=recipient.original,
            queue_id=queue_id,
            hostname=self._hostname,
            now=now,
        )
        letter = NewMessage(
            id=queue_id,
            sender=None,
            # The mailbox itself: not where somebody may just have had it all sent to.
            recipients=(NewRecipient(user, Transport.LOCAL, user, Notify.NEVER), *elsewhere),
            arrived=now,
            expires=now + _EXPIRE,
            parent=message.id,
            message_id=made.message_id,
            origin=f"rules of {recipient.target}",
        )
        return letter, made.data


def _told(rules: Rules) -> str:
    shown = "".join(f"    {line}\n" for line in format_rules(rules).splitlines()) or "    none\n"
    return (
        f"These are the rules for your mail now:\n\n{shown}\n"
        "Was this not you? Then somebody knows your password: change it, and ask the postmaster."
    )


def _read(body: IStoredBody) -> bytes:
    with body.open() as file:
        return file.read(MAX_MESSAGE)


def _plain_text(data: bytes) -> str:
    """The first part that is plain text; "" if there is none. In a thread: it may be large."""
    waiting: list[Part] = [parse_structure(data)]
    while waiting:
        part = waiting.pop(0)
        if part.is_multipart:
            waiting[:0] = part.children
        elif (part.type, part.subtype) == (b"TEXT", b"PLAIN"):
            return part_text(data, part)
    return ""

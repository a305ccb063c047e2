"""Mailing lists as a transport: one message to the posting address becomes one message to the members, over the same body."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.expand import Routed, members, route, without_list
from twisted_mta.core.explanation import Finding, Note
from twisted_mta.core.forward import Passing, forward
from twisted_mta.core.lists import (
    Distribute,
    MailingList,
    Refuse,
    ToOwner,
    Verdict,
    bounce_address,
    delivered_to,
    judge,
    list_fields,
    member_bounce_address,
)
from twisted_mta.core.message import header_length
from twisted_mta.core.queue import (
    Delivered,
    Expanded,
    Failed,
    NewMessage,
    Outcome,
    QueuedMessage,
    QueuedRecipient,
    Transport,
    TryLater,
)
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value
from twisted_mta.interfaces import Foreseen, IDelivery, IDirectory, IForesight, IStoredBody
from twisted_mta.store.threads import InlineWorkers, Workers

#: Octets of a message that are searched for its header fields.
MAX_HEADER = 256 << 10


@value
class _Findings:
    """What is to become of a message, and who gets it."""

    verdict: Verdict
    header: bytes
    routed: Routed = attrs.field(factory=lambda: Routed((), ()))


@implementer(IDelivery, IForesight)
class ListDelivery:
    """Takes recipients whose transport is LIST.

    `ids` gives a new queue id; `clock` is for the dates of posts; `workers` examine messages and look up members. A
    post lives as long as its original was given, counted from now. Delivery that is repeated after a crash is harmless: the post
    enters the queue in the commit in which its original leaves it.
    """

    _log = Logger()

    def __init__(
        self,
        directory: IDirectory,
        ids: Callable[[], str],
        clock: IReactorTime,
        workers: Workers | InlineWorkers,
    ) -> None:
        self._directory = directory
        self._ids = ids
        self._clock = clock
        self._workers = workers

    def destination(self, recipient: QueuedRecipient) -> str:
        """See IDelivery: the list."""
        return recipient.address.folded

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """See IDelivery. A list that stands among the recipients twice gets the message once."""
        first = recipients[0]
        settings = self._directory.mailing_list(first.address)
        if settings is None:  # a reload took it away since the message was queued
            outcome: Outcome = Failed(_no_list(first.address))
        else:
            try:
                findings = await self._workers.run(self._examine, settings, message, body, first)
            except OSError as error:
                self._log.failure("can't read the body of {queue_id}", queue_id=message.id)
                outcome = TryLater(Reply(451, "4.3.0", f"can't read the message: {error.strerror}"))
            else:
                outcome = self._outcome(settings, message, findings)
                self._tell(settings, message, findings, outcome)
        others: Outcome = outcome
        if isinstance(outcome, Expanded):
            others = Delivered(Reply(250, "2.1.5", f"{first.address} has this message already"))
        return [outcome, *(others for _ in recipients[1:])]

    async def foresee(self, message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> Foreseen:
        """See IForesight."""
        settings = self._directory.mailing_list(recipient.address)
        if settings is None:
            reply = _no_list(recipient.address)
            return Foreseen(Note("list", str(reply), Finding.REFUSED), failure=reply)
        findings = await self._workers.run(self._find, settings, message, header, recipient)
        problems = tuple(
            Note("problem", problem.text, Finding.REFUSED, problem.source)
            for problem in findings.routed.problems
        )
        outcome = self._outcome(settings, message, findings)
        name = f"list {settings.address}"
        if not isinstance(outcome, Expanded):
            note = Note("list", f"{name}: {outcome.reply}", Finding.REFUSED, "list", children=problems)
            return Foreseen(note, failure=outcome.reply)
        count = sum(len(new.recipients) for new in outcome.messages)
        text = f"{name}, {count} member" + "s" * (count != 1)
        if isinstance(findings.verdict, ToOwner):
            text = f"{name}, to its owner only, since {findings.verdict.why}"
        note = Note("list", text, where="list", data={"recipients": count}, children=problems)
        return Foreseen(note, messages=outcome.messages)

    async def close(self) -> None:
        """See IDelivery: there is nothing to let go of."""

    def _examine(
        self, settings: MailingList, message: QueuedMessage, body: IStoredBody, recipient: QueuedRecipient
    ) -> _Findings:
        """In a thread: read the header section."""
        return self._find(settings, message, message.prefix + _read_head(body), recipient)

    def _find(
        self, settings: MailingList, message: QueuedMessage, header: bytes, recipient: QueuedRecipient
    ) -> _Findings:
        """In a thread: look up however many members there are."""
        posters: Container[str] = frozenset()
        if settings.members_only:
            posters = self._directory.posters(settings.address)
        verdict = judge(settings, message.sender, header, posters)
        if isinstance(verdict, Distribute):
            routed = members(settings, self._directory)
            return _Findings(verdict, header, _with_senders(settings, routed) if settings.verp else routed)
        if isinstance(verdict, ToOwner):
            # As an alias would, with the sender's wishes; to the postmaster where the owner leads nowhere.
            for owner in (settings.owner, self._directory.postmaster()):
                routed = route([Recipient(owner, recipient.notify)], self._directory)
                routed = without_list(settings, routed)
                if routed.recipients and not routed.problems:
                    return _Findings(verdict, header, routed)
        return _Findings(verdict, header)

    def _outcome(self, settings: MailingList, message: QueuedMessage, findings: _Findings) -> Outcome:
        verdict, routed = findings.verdict, findings.routed
        name = str(settings.address)
        if isinstance(verdict, Refuse):
            return Failed(verdict.reply)
        if not routed.recipients:
            # RFC 3463 §3.3: mailing list expansion problem
            why = verdict.why if isinstance(verdict, ToOwner) else "there are none"
            return Failed(Reply(550, "5.2.4", f"not sent to the members of {name}: {why}"))
        if isinstance(verdict, ToOwner):
            letter = self._child(
                settings,
                message,
                findings,
                sender=message.sender,
                prefix=delivered_to(settings),
            )
            return Expanded(
                (letter,), Reply(250, "2.1.5", f"sent to the owner of {name}, since {verdict.why}")
            )
        # RFC 5321 §3.9: the errors of members go to the list's owner, not to the author.
        post = self._child(
            settings,
            message,
            findings,
            sender=bounce_address(settings.address),
            prefix=list_fields(settings, verdict.present),
        )
        return Expanded((post,), Reply(250, "2.1.5", f"sent to the members of {name} as {post.id}"))

    def _tell(
        self, settings: MailingList, message: QueuedMessage, findings: _Findings, outcome: Outcome
    ) -> None:
        """The lines in the log."""
        name, routed = str(settings.address), findings.routed
        for problem in routed.problems:
            self._log.warn(
                "{queue_id}: a member of {recipient} leads nowhere: {problem}",
                queue_id=message.id,
                recipient=name,
                problem=problem.text,
                source=problem.source,
            )
        self._log.info(
            "{queue_id}: {recipient}: {reply}",
            queue_id=message.id,
            recipient=name,
            reply=str(outcome.reply),
            copies=len(routed.recipients),
        )

    def _child(
        self,
        settings: MailingList,
        message: QueuedMessage,
        findings: _Findings,
        *,
        sender: Address | None,
        prefix: bytes,
    ) -> NewMessage:
        now = self._clock.seconds()
        queue_id = self._ids()
        passing = Passing(queue_id=queue_id, sender=sender, header=findings.header, now=now)
        directory = self._directory
        forwarded = forward(findings.routed.recipients, passing, directory.forwarding(), directory)
        return NewMessage(
            id=queue_id,
            sender=sender,
            recipients=forwarded.recipients,
            prefix=prefix + message.prefix,
            arrived=now,
            expires=now + max(0.0, message.expires - message.released),
            body_type=message.body_type,
            smtputf8=message.smtputf8,
            parent=message.id,
            message_id=message.message_id,
            origin=f"list {settings.address}",
            priority=message.priority,  # RFC 6710 §4.4
            tls=message.tls,  # RFC 8689 §4.1, §6
        )


def _no_list(address: Address) -> Reply:
    return Reply(550, "5.1.1", f"there is no list {address} here (any more)")


def _with_senders(settings: MailingList, routed: Routed) -> Routed:
    """The same, where each recipient on another host has a sender that names it."""
    recipients = [
        attrs.evolve(one, sender=member_bounce_address(settings.address, one.original))
        if one.transport is Transport.SMTP and one.sender is None
        else one
        for one in routed.recipients
    ]
    return attrs.evolve(routed, recipients=tuple(recipients))


def _read_head(body: IStoredBody) -> bytes:
    """The header section, or what of it stands in the first MAX_HEADER octets."""
    with body.open() as file:
        head = file.read(MAX_HEADER)
    return head[: header_length(head)]

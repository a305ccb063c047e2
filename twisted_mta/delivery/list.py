"""Mailing lists as a transport: one message to the posting address becomes one message to the members, over the same body."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Notify, Recipient
from twisted_mta.core.expand import Routed, route
from twisted_mta.core.lists import (
    MailingList,
    Refuse,
    ToOwner,
    bounce_address,
    delivered_to,
    judge,
    list_fields,
    refuse_sender,
)
from twisted_mta.core.message import header_length
from twisted_mta.core.queue import (
    Delivered,
    Expanded,
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
from twisted_mta.interfaces import IDelivery, IDirectory, IStoredBody
from twisted_mta.store.threads import InlineWorkers, Workers

#: Octets of a message that are searched for its header fields.
MAX_HEADER = 256 << 10


def members_of(settings: MailingList, directory: IDirectory) -> Routed:
    """Who gets the posts of a list: each place once, the list itself left out.

    RFC 3461 §5.2.7.1 (b): what the author asked for with NOTIFY and ORCPT does not reach the members; the owner hears of
    failures, and of nothing else.
    """
    return _without(
        settings, route((Recipient(member, Notify.FAILURE) for member in settings.members), directory)
    )


def may_post(settings: MailingList, sender: Address | None, directory: IDirectory) -> Reply | None:
    """Whether a sender may post, for use at RCPT so that nobody is bounced who can be refused: None, or the refusal."""
    if sender is None or not settings.members_only:
        return None
    return refuse_sender(settings, sender, _posters(settings, directory))


def _posters(settings: MailingList, directory: IDirectory) -> frozenset[str]:
    """The folded addresses that may post where only members may: as written in the list, and what they lead to."""
    found = [recipient.address for recipient in members_of(settings, directory).recipients]
    return frozenset(address.folded for address in (*settings.members, *found))


def _without(settings: MailingList, routed: Routed) -> Routed:
    ours = settings.address.folded
    kept = (
        new
        for new in routed.recipients
        if not (new.transport is Transport.LIST and new.address.folded == ours)
    )
    return Routed(tuple(kept), routed.problems)


@implementer(IDelivery)
class ListDelivery:
    """Takes recipients whose transport is LIST.

    `ids` gives a new queue id; `clock` is for the dates of posts; `workers` read header sections, which may lie in files. A
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
            outcome: Outcome = Failed(
                Reply(550, "5.1.1", f"there is no list {first.address} here (any more)")
            )
        else:
            try:
                head = await self._workers.run(_read_head, body)
            except OSError as error:
                self._log.failure("can't read the body of {queue_id}", queue_id=message.id)
                outcome = TryLater(Reply(451, "4.3.0", f"can't read the message: {error.strerror}"))
            else:
                outcome = self._outcome(settings, message, message.prefix + head, first)
        others: Outcome = outcome
        if isinstance(outcome, Expanded):
            others = Delivered(Reply(250, "2.1.5", f"{first.address} has this message already"))
        return [outcome, *(others for _ in recipients[1:])]

    async def close(self) -> None:
        """See IDelivery: there is nothing to let go of."""

    def _outcome(
        self, settings: MailingList, message: QueuedMessage, header: bytes, recipient: QueuedRecipient
    ) -> Outcome:
        posters = _posters(settings, self._directory) if settings.members_only else frozenset()
        verdict = judge(settings, message.sender, header, posters)
        if isinstance(verdict, Refuse):
            self._log.info(
                "{queue_id}: {recipient} refuses it: {reply}",
                queue_id=message.id,
                recipient=str(settings.address),
                reply=str(verdict.reply),
            )
            return Failed(verdict.reply)
        if isinstance(verdict, ToOwner):
            return self._to_owner(settings, message, recipient, verdict.why)
        return self._to_members(settings, message, verdict.present)

    def _to_members(
        self, settings: MailingList, message: QueuedMessage, present: frozenset[bytes]
    ) -> Outcome:
        routed = members_of(settings, self._directory)
        self._report(settings, message, routed)
        if not routed.recipients:
            # RFC 3463 §3.3: mailing list expansion problem
            return Failed(Reply(550, "5.2.4", f"the list {settings.address} has no members"))
        post = self._child(
            settings,
            message,
            routed.recipients,
            sender=bounce_address(settings.address),  # RFC 5321 §3.9
            prefix=list_fields(settings, present),
        )
        self._log.info(
            "{queue_id}: {recipient} distributes it to {members} members as {post_id}",
            queue_id=message.id,
            recipient=str(settings.address),
            members=len(routed.recipients),
            post_id=post.id,
        )
        return Expanded(
            (post,), Reply(250, "2.1.5", f"sent to the members of {settings.address} as {post.id}")
        )

    def _to_owner(
        self, settings: MailingList, message: QueuedMessage, recipient: QueuedRecipient, why: str
    ) -> Outcome:
        """Pass on mail of programs to the owner, or the postmaster, as an alias would; a list never amplifies it."""
        for owner in (settings.owner, self._directory.postmaster()):
            routed = _without(settings, route([Recipient(owner, recipient.notify)], self._directory))
            self._report(settings, message, routed)
            if routed.recipients and not routed.problems:
                break
        else:
            return Failed(Reply(550, "5.2.4", f"not for the members of {settings.address}: {why}"))
        letter = self._child(
            settings, message, routed.recipients, sender=message.sender, prefix=delivered_to(settings)
        )
        self._log.info(
            "{queue_id}: not for the members of {recipient}, {why}; its owner gets it as {post_id}",
            queue_id=message.id,
            recipient=str(settings.address),
            why=why,
            post_id=letter.id,
        )
        return Expanded(
            (letter,), Reply(250, "2.1.5", f"sent to the owner of {settings.address}, since {why}")
        )

    def _child(
        self,
        settings: MailingList,
        message: QueuedMessage,
        recipients: Iterable[NewRecipient],
        *,
        sender: Address | None,
        prefix: bytes,
    ) -> NewMessage:
        now = self._clock.seconds()
        return NewMessage(
            id=self._ids(),
            sender=sender,
            recipients=tuple(recipients),
            prefix=prefix + message.prefix,
            arrived=now,
            expires=now + max(0.0, message.expires - message.arrived),
            body_type=message.body_type,
            smtputf8=message.smtputf8,
            parent=message.id,
            message_id=message.message_id,
            origin=f"list {settings.address}",
        )

    def _report(self, settings: MailingList, message: QueuedMessage, routed: Routed) -> None:
        for problem in routed.problems:
            self._log.warn(
                "{queue_id}: {recipient} has an address that leads nowhere: {problem}",
                queue_id=message.id,
                recipient=str(settings.address),
                problem=problem.text,
                source=problem.source,
            )


def _read_head(body: IStoredBody) -> bytes:
    """The header section, or what of it stands in the first MAX_HEADER octets."""
    with body.open() as file:
        head = file.read(MAX_HEADER)
    return head[: header_length(head)]

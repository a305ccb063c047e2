"""Who is told what: from outcomes to notifications in the queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from twisted.logger import Logger

from twisted_mta.core.address import Address
from twisted_mta.core.dsn import Action, Report, Reporter
from twisted_mta.core.envelope import Notify
from twisted_mta.core.queue import NewMessage, NewRecipient, QueuedMessage, QueuedRecipient
from twisted_mta.interfaces import IStoredBody

#: What a recipient's NOTIFY must hold for it to be told (RFC 3461 §4.1).
_WANTED = {
    Action.FAILED: Notify.FAILURE,
    Action.DELAYED: Notify.DELAY,
    Action.DELIVERED: Notify.SUCCESS,
    Action.RELAYED: Notify.SUCCESS,
    Action.EXPANDED: Notify.SUCCESS,
}
#: `NewMessage.origin` of what we write to senders, and of what the postmaster gets instead.
NOTIFICATION, DOUBLE_BOUNCE = "notification", "double bounce"


@attrs.define(kw_only=True)
class Notices:
    """Turns reports about a message into messages to its sender."""

    log = Logger()

    reporter: Reporter
    ids: Callable[[], str]
    #: Where mail to an address goes; () if nowhere.
    route: Callable[[Address], tuple[NewRecipient, ...]]
    #: Seconds until a notification itself is given up.
    expire: float
    #: Whether an address is a sender that was rewritten here.
    rewritten: Callable[[Address], bool] = lambda address: False
    #: Whether the postmaster gets notifications that can't be delivered.
    double_bounces: bool = True

    def wanted(self, message: QueuedMessage, report: Report) -> bool:
        """Whether somebody is to be told. Never the null reverse-path: a bounce of a bounce would be a loop."""
        notify = report.recipient.notify
        if message.sender is None:
            # RFC 3461 §5.2: the postmaster hears of it; and if not even that can be delivered, nobody does.
            told = message.origin == NOTIFICATION or Notify.FAILURE in notify
            failed = report.action is Action.FAILED and message.origin != DOUBLE_BOUNCE
            return self.double_bounces and failed and told
        # RFC 5321 §4.5.5, RFC 3461 §4.1: NEVER is the empty set.
        return bool(notify if report.traced else _WANTED[report.action] & notify)

    def addressee(self, message: QueuedMessage, recipient: QueuedRecipient) -> Address | None:
        """The sender to be told of a recipient: that of its copy, or the one behind it where that was rewritten."""
        sender = message.sender_for(recipient)
        return message.sender if sender is not None and self.rewritten(sender) else sender

    def write(
        self, message: QueuedMessage, body: IStoredBody | None, reports: Sequence[Report], now: float
    ) -> list[tuple[NewMessage, bytes]]:
        """The notification about `reports`, all wanted, for IQueueStore.record. Empty if it can't go anywhere."""
        addressee = message.sender or self.reporter.postmaster
        recipients = self._recipients(addressee)
        if not recipients:
            self.log.error(
                "nobody can be told what became of {queue_id} from {sender}",
                queue_id=message.id,
                sender=str(message.sender or "<>"),
            )
            return []
        queue_id = self.ids()
        made = self.reporter.notify(
            message, reports, queue_id=queue_id, now=now, original=self._head(message, body)
        )
        notice = NewMessage(
            id=queue_id,
            sender=None,  # RFC 3461 §6.1
            recipients=recipients,
            arrived=now,
            expires=now + self.expire,
            body_type=made.body_type,
            smtputf8=made.smtputf8,
            parent=message.id,
            message_id=made.message_id,
            origin=NOTIFICATION if message.sender is not None else DOUBLE_BOUNCE,
            priority=message.priority,  # RFC 6710 §4.6
            tls=message.tls,  # RFC 8689 §5
        )
        self.log.info(
            "queued {queue_id}: notification about {parent} to {recipient}",
            event="queued",
            queue_id=queue_id,
            parent=message.id,
            recipient=str(addressee),
            size=len(made.data),
        )
        return [(notice, made.data)]

    def _recipients(self, sender: Address) -> tuple[NewRecipient, ...]:
        """Where the sender's mail goes; the postmaster gets what has nowhere to go."""
        for address in (sender, self.reporter.postmaster):
            try:
                found = self.route(address)
            except Exception:  # noqa: BLE001  the outcome must be recorded, whatever is wrong with the routing
                self.log.failure("can't route a notification to {recipient}", recipient=str(address))
                continue
            if found:
                # RFC 3461 §6.1: with NOTIFY, if at all, NEVER.
                return tuple(attrs.evolve(recipient, notify=Notify.NEVER, orcpt="") for recipient in found)
        return ()

    def _head(self, message: QueuedMessage, body: IStoredBody | None) -> bytes:
        """What may be quoted of the original."""
        if body is None:
            return message.prefix
        try:
            with body.open() as file:
                return message.prefix + file.read(self.reporter.quote + 1)
        except OSError:
            self.log.failure("can't read {queue_id} to quote it", queue_id=message.id)
            return message.prefix

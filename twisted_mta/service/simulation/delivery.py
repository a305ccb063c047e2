"""The deliveries of a simulation: nothing is sent, and what comes of it follows from the described conditions."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from twisted_mta.config.destinations import Destinations
from twisted_mta.core.conditions import Conditions, Kind
from twisted_mta.core.queue import Delivered, Failed, Outcome, QueuedMessage, QueuedRecipient, TryLater
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IDelivery, IDirectory, IStoredBody

_KEPT = Delivered(Reply(250, "2.0.0", "delivered to the mailbox"))
_UNKNOWN = Failed(Reply(550, "5.1.1", "no such mailbox here"))


@implementer(IDelivery)
class SimulatedSmtp:
    """Stands in for `delivery.smtp.SmtpDelivery`: the same destinations, and one host for each of them."""

    def __init__(self, conditions: Conditions, destinations: Destinations, clock: IReactorTime) -> None:
        """Conditions count from now on."""
        self._conditions = conditions
        self._destinations = destinations
        self._clock = clock
        self._begin = clock.seconds()
        #: (destination, sender, recipient) -> the first attempt.
        self._greeted: dict[tuple[str, str, str], float] = {}

    def destination(self, recipient: QueuedRecipient) -> str:
        """See IDelivery."""
        return self._destinations.of(recipient.address.domain, recipient.hop).key

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """See IDelivery."""
        domain = recipients[0].address.domain
        where = self._destinations.of(domain, recipients[0].hop)
        host = domain if where.hop is None else where.hop.host
        matter = self._conditions.at(host, self._clock.seconds() - self._begin)
        if Kind.DOWN in matter:
            await deferLater(self._clock, where.manner.connect_timeout)
            text = f"can't connect to {host}: the connection timed out"
            return [TryLater(Reply(451, "4.4.1", text), host, reached=False)] * len(recipients)
        if Kind.SLOW in matter:
            await deferLater(self._clock, matter[Kind.SLOW].seconds)
        if Kind.REJECT in matter:
            return [Failed(Reply(550, "5.7.1", "refused"), host)] * len(recipients)
        if Kind.TEMPFAIL in matter:
            return [TryLater(Reply(451, "4.3.2", "try again later"), host)] * len(recipients)
        if Kind.GREYLIST in matter:
            wait = matter[Kind.GREYLIST].seconds
            return [self._greylist(message, recipient, host, wait) for recipient in recipients]
        return [_taken(host)] * len(recipients)

    def _greylist(
        self, message: QueuedMessage, recipient: QueuedRecipient, host: str, wait: float
    ) -> Outcome:
        now = self._clock.seconds()
        key = host, str(message.sender or ""), recipient.address.folded
        if now - self._greeted.setdefault(key, now) >= wait:
            return _taken(host)
        return TryLater(Reply(451, "4.7.1", "greylisted, try again later"), host)

    async def close(self) -> None:
        """See IDelivery."""


def _taken(host: str) -> Delivered:
    return Delivered(Reply(250, "2.0.0", "taken"), host, relayed=True)


@implementer(IDelivery)
class SimulatedLocal:
    """Stands in for `delivery.local.LocalDelivery`: mailboxes take everything at once."""

    def __init__(self, directory: IDirectory) -> None:
        self._directory = directory

    def destination(self, recipient: QueuedRecipient) -> str:
        """See IDelivery."""
        return ""

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """See IDelivery."""
        return [
            _UNKNOWN if self._directory.account(recipient.address) is None else _KEPT
            for recipient in recipients
        ]

    async def close(self) -> None:
        """See IDelivery."""


def kept(recipient: QueuedRecipient) -> Outcome:
    """What else is on this machine takes everything too: for `delivery.settled.SettledDelivery`."""
    return _KEPT

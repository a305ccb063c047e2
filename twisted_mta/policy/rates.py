"""How much a login may send in an hour and in a day: a stolen password must not become a spam run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Protocol

from zope.interface import implementer

from twisted_mta.config.schema import Rates
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.rates import Counter, Ledger
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value
from twisted_mta.interfaces import Account, IPolicyCheck, Peer
from twisted_mta.policy.base import Accepting

#: Tells the postmaster: (account or "@domain", what was exceeded).
Alarm = Callable[[str, str], None]
#: (account or "@domain", what it may send).
Limit = tuple[str, Rates]


@value
class Excess:
    """A limit that one more message would exceed."""

    name: str
    #: "100 messages in an hour".
    what: str
    permanent: bool


class Meter(Protocol):
    """Counts what is sent, for this process or for all that are one server."""

    def look(self, limits: Sequence[Limit], recipients: int) -> Excess | None:
        """Whether one more message, to so many, is too much, as far as is known here."""
        ...

    def charge(self, limits: Sequence[Limit], recipients: int) -> Excess | Awaitable[Excess | None] | None:
        """Count one more message, unless that is too much."""
        ...

    def tell(self, name: str, alarm: Callable[[], None]) -> None:
        """Call `alarm`, if that is the first time today for that name."""
        ...


class LocalMeter:
    """Counts in a ledger."""

    def __init__(self, ledger: Ledger, seconds: Callable[[], float]) -> None:
        self.ledger = ledger
        self._seconds = seconds

    def look(self, limits: Sequence[Limit], recipients: int) -> Excess | None:
        """See Meter."""
        now = self._seconds()
        for name, rates in limits:
            usage = self.ledger.usage(name)
            what = _exceeded(usage.day, now, rates.messages_per_day, rates.recipients_per_day, recipients)
            if what:
                return Excess(name, f"{what} in a day", permanent=True)
            what = _exceeded(usage.hour, now, rates.messages_per_hour, rates.recipients_per_hour, recipients)
            if what:
                return Excess(name, f"{what} in an hour", permanent=False)
        return None

    def charge(self, limits: Sequence[Limit], recipients: int) -> Excess | None:
        """See Meter."""
        excess = self.look(limits, recipients)
        if excess is None:
            self.ledger.add((name for name, _ in limits), self._seconds(), recipients)
        return excess

    def tell(self, name: str, alarm: Callable[[], None]) -> None:
        """See Meter."""
        if self.ledger.tell(name, self._seconds()):
            alarm()


@implementer(IPolicyCheck)
@value(kw_only=True)
class RateCheck(Accepting):
    """Counts what is accepted of each account and each domain. It must be the last check: what it lets pass is counted."""

    meter: Meter
    account: Rates
    domain: Rates
    alarm: Alarm

    settings: ClassVar[tuple[str, ...]] = ("submission", "submission.domain")

    def on_mail(self, peer: Peer, envelope: Envelope) -> Reply | None:
        """See IPolicyCheck."""
        return self._look(peer, 0)

    def on_rcpt(self, peer: Peer, envelope: Envelope, recipient: Recipient) -> Reply | None:
        """See IPolicyCheck."""
        return self._look(peer, len(envelope.recipients) + 1)

    def on_message(
        self, peer: Peer, envelope: Envelope, header: bytes
    ) -> Reply | Awaitable[Reply | None] | None:
        """See IPolicyCheck. Judged again: other sessions of the account may have sent something meanwhile."""
        if peer.account is None or peer.remarks is not None:
            return self._look(peer, len(envelope.recipients))
        excess = self.meter.charge(self._limits(peer.account), len(envelope.recipients))
        if excess is None or isinstance(excess, Excess):
            return self._refuse(peer, excess)
        return self._later(peer, excess)

    async def _later(self, peer: Peer, pending: Awaitable[Excess | None]) -> Reply | None:
        return self._refuse(peer, await pending)

    def _look(self, peer: Peer, recipients: int) -> Reply | None:
        if peer.account is None:
            if peer.remarks is not None:
                peer.remarks.append("not limited: nobody has logged in")
            return None
        return self._refuse(peer, self.meter.look(self._limits(peer.account), recipients))

    def _limits(self, account: Account) -> tuple[Limit, ...]:
        name = account.name.casefold()
        return (name, self.account), (f"@{name.rpartition('@')[2]}", self.domain)

    def _refuse(self, peer: Peer, excess: Excess | None) -> Reply | None:
        if excess is None:
            return None
        name, what = excess.name, excess.what
        if peer.remarks is None:
            self.meter.tell(name, lambda: self.alarm(name, what))
        who = f"All accounts of {name[1:]} together" if name.startswith("@") else name
        text = f"{who} may not send more than {what}"
        if excess.permanent:
            return Reply(550, "5.7.1", f"{text}; ask the postmaster if you need to")
        return Reply(450, "4.7.1", f"{text}; try again later")


def _exceeded(counter: Counter, now: float, messages: int, recipients: int, count: int) -> str:
    """The limit that one more message to `count` recipients would exceed ("100 messages"); "" for none."""
    if not messages and not recipients:
        return ""
    sent, reached = counter.used(now)
    if messages and sent + 1 > messages:
        return f"{messages} messages"
    # At MAIL nobody is named yet, but there will be somebody.
    if recipients and reached + max(count, 1) > recipients:
        return f"{recipients} recipients"
    return ""

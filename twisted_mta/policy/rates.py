"""How much a login may send in an hour and in a day: a stolen password must not become a spam run."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import attrs
from zope.interface import implementer

from twisted_mta.config.schema import Rates
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.rates import Counter, Ledger
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import Account, IPolicyCheck, Peer
from twisted_mta.policy.base import Accepting

#: Tells the postmaster: (account or "@domain", what was exceeded).
Alarm = Callable[[str, str], None]


@implementer(IPolicyCheck)
@attrs.frozen(kw_only=True)
class RateCheck(Accepting):
    """Counts what is accepted of each account and each domain. It must be the last check: what it lets pass is counted."""

    ledger: Ledger
    account: Rates
    domain: Rates
    seconds: Callable[[], float]
    alarm: Alarm

    settings: ClassVar[tuple[str, ...]] = ("submission", "submission.domain")

    def on_mail(self, peer: Peer, envelope: Envelope) -> Reply | None:
        """See IPolicyCheck."""
        return self._judge(peer, 0)

    def on_rcpt(self, peer: Peer, envelope: Envelope, recipient: Recipient) -> Reply | None:
        """See IPolicyCheck."""
        return self._judge(peer, len(envelope.recipients) + 1)

    def on_message(self, peer: Peer, envelope: Envelope, header: bytes) -> Reply | None:
        """See IPolicyCheck. Judged again: other sessions of the account may have sent something meanwhile."""
        account, count = peer.account, len(envelope.recipients)
        refusal = self._judge(peer, count)
        if refusal is None and account is not None and peer.remarks is None:
            self.ledger.add((name for name, _ in self._limits(account)), self.seconds(), count)
        return refusal

    def _limits(self, account: Account) -> tuple[tuple[str, Rates], ...]:
        name = account.name.casefold()
        return (name, self.account), (f"@{name.rpartition('@')[2]}", self.domain)

    def _judge(self, peer: Peer, recipients: int) -> Reply | None:
        """Whether one more message, to so many, is too much."""
        account = peer.account
        if account is None:
            if peer.remarks is not None:
                peer.remarks.append("not limited: nobody has logged in")
            return None
        now = self.seconds()
        for name, rates in self._limits(account):
            usage = self.ledger.usage(name)
            what = _exceeded(usage.day, now, rates.messages_per_day, rates.recipients_per_day, recipients)
            if what:
                return self._refuse(peer, name, f"{what} in a day", permanent=True)
            what = _exceeded(usage.hour, now, rates.messages_per_hour, rates.recipients_per_hour, recipients)
            if what:
                return self._refuse(peer, name, f"{what} in an hour", permanent=False)
        return None

    def _refuse(self, peer: Peer, name: str, what: str, *, permanent: bool) -> Reply:
        if peer.remarks is None and self.ledger.tell(name, self.seconds()):
            self.alarm(name, what)
        who = f"All accounts of {name[1:]} together" if name.startswith("@") else name
        text = f"{who} may not send more than {what}"
        if permanent:
            return Reply(550, "5.7.1", f"{text}; ask the postmaster if you need to")
        return Reply(450, "4.7.1", f"{text}; try again later")


def _exceeded(counter: Counter, now: float, messages: int, recipients: int, count: int) -> str:
    """The limit that one more message to `count` recipients would exceed ("100 messages"); "" for none."""
    sent, reached = counter.used(now)
    if messages and sent + 1 > messages:
        return f"{messages} messages"
    # At MAIL nobody is named yet, but there will be somebody.
    if recipients and reached + max(count, 1) > recipients:
        return f"{recipients} recipients"
    return ""

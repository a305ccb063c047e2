"""What a worker has in common with the others: what they count together, and what they tell each other.

The parent is between them (`service.desk`). Counts of connections are as old as `DELAY` at worst: in that time each worker
may let in as many as all together. What accounts may send is exact: the parent counts it, message by message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from twisted_mta.core.admission import Admission
from twisted_mta.core.rates import DAY, HOUR, Counter, Ledger, Usage
from twisted_mta.policy.rates import Excess, Limit, LocalMeter
from twisted_mta.service.accounts import Accounts
from twisted_mta.service.channel import Channel
from twisted_mta.service.control import Handler
from twisted_mta.service.listeners import Listeners
from twisted_mta.store.maildir import MaildirMailboxes

#: Seconds until the others know of connections that were opened or closed.
DELAY = 0.1


class SharedMeter:
    """See policy.rates.Meter. It looks at a copy of the parent's ledger, and has the parent decide."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._copy = LocalMeter(Ledger({}), seconds)
        self._seconds = seconds
        #: Set once the parent can be asked, before the reactor runs.
        self.channel: Channel | None = None

    def look(self, limits: Sequence[Limit], recipients: int) -> Excess | None:
        """See Meter. The copy is never ahead of the ledger: what it refuses would be refused."""
        return self._copy.look(limits, recipients)

    async def charge(self, limits: Sequence[Limit], recipients: int) -> Excess | None:
        """See Meter. Fails with ControlError when the parent is gone, and with it the server."""
        assert self.channel is not None  # sessions begin after it was set
        wanted = {
            "limits": [(name, attrs.asdict(rates)) for name, rates in limits],
            "recipients": recipients,
        }
        if not any(any(attrs.astuple(rates)) for _, rates in limits):
            self.channel.tell("usage.charge", wanted)  # there is nothing to wait for
            return None
        answer = await self.channel.ask("usage.charge", wanted)
        return Excess(**answer) if answer is not None else None

    def tell(self, name: str, alarm: Callable[[], None]) -> None:
        """See Meter."""
        self._copy.tell(name, lambda: self._ask(name, alarm))

    def _ask(self, name: str, alarm: Callable[[], None]) -> None:
        assert self.channel is not None  # as above
        answer = self.channel.ask("usage.tell", {"name": name})
        # Who can't be asked is gone, and the server with it.
        answer.addCallbacks(lambda first: alarm() if first else None, lambda failure: None)

    def changed(self, entries: Mapping[str, Sequence[Any]]) -> None:
        """The parent's ledger has changed."""
        for name, (told, hour, day) in entries.items():
            self._copy.ledger.put(name, Usage(Counter(HOUR, *hour), Counter(DAY, *day), told))


class SharedUsage:
    """See service.usage.Usages: the parent keeps it."""

    def __init__(self, meter: SharedMeter) -> None:
        self.meter = meter

    def start(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""

    def status(self) -> list[dict[str, object]]:
        """The parent tells."""
        return []


class Common:
    """The worker's end. `join` it to the parts of the server once they are there."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.usage = SharedUsage(SharedMeter(reactor.seconds))
        self._channel: Channel | None = None
        #: Maildirs that sessions of other workers have open.
        self._watched: set[str] = set()
        self._admission: Admission | None = None

    def join(
        self,
        listeners: Listeners,
        mailboxes: MaildirMailboxes,
        accounts: Accounts,
    ) -> Mapping[str, Handler]:
        """Hear of what happens here from now on; what the parent may tell."""
        self._admission = listeners.admission
        accounts.failed = lambda address: self._tell("login.failed", {"address": address})
        mailboxes.share(self)
        listeners.admission.share(lambda: self._reactor.callLater(DELAY, self._tell_connections))

        async def connections(arguments: Mapping[str, Any]) -> None:
            listeners.admission.hear(**arguments)

        async def login_failed(arguments: Mapping[str, Any]) -> None:
            accounts.failed_elsewhere(arguments["address"])

        async def usage_changed(arguments: Mapping[str, Any]) -> None:
            self.usage.meter.changed(arguments["entries"])

        async def mail_changed(arguments: Mapping[str, Any]) -> None:
            mailboxes.changed_elsewhere(arguments["root"], arguments["directory"])

        async def mail_watched(arguments: Mapping[str, Any]) -> None:
            (self._watched.add if arguments["on"] else self._watched.discard)(arguments["root"])

        return {
            "connections": connections,
            "login.failed": login_failed,
            "usage.changed": usage_changed,
            "mail.changed": mail_changed,
            "mail.watched": mail_watched,
        }

    def speak(self, channel: Channel) -> None:
        """The parent can be told."""
        self._channel = self.usage.meter.channel = channel

    def _tell(self, command: str, arguments: Mapping[str, Any]) -> None:
        if self._channel is not None:
            self._channel.tell(command, arguments)

    def _tell_connections(self) -> None:
        assert self._admission is not None  # joined
        self._tell("connections", self._admission.take_news())

    # --- store.maildir.store.Elsewhere -----------------------------------------------------------

    def watching(self, root: str, on: bool) -> None:
        """Sessions here have that Maildir open, or none has it any more."""
        self._tell("mail.watch", {"root": root, "on": on})

    def changed(self, root: str, directory: str) -> None:
        """Something happened to a mailbox there."""
        if root in self._watched:
            self._tell("mail.changed", {"root": root, "directory": directory})

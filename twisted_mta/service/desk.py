"""Where the parent hears what its workers have to tell each other, and keeps what they count together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall

from twisted_mta.config.schema import Rates
from twisted_mta.core.rates import Usage
from twisted_mta.policy.rates import Limit
from twisted_mta.service.control import Handler
from twisted_mta.service.usage import UsageKeeper

#: Seconds until all workers know what an account has sent.
DELAY = 0.1

#: (worker, command, arguments): nothing happens if that worker is not there.
Tell = Callable[[int, str, Mapping[str, Any]], None]


class Desk:
    """One for all workers, which are told by `tell`."""

    def __init__(self, workers: int, usage: UsageKeeper, reactor: Any, tell: Tell) -> None:
        self._workers = range(workers)
        self._usage = usage
        self._reactor = reactor
        self._tell = tell
        self._totals = dict.fromkeys(self._workers, 0)
        self._counts: dict[int, dict[str, int]] = {worker: {} for worker in self._workers}
        #: Maildir -> the workers whose sessions have it open.
        self._watchers: dict[str, set[int]] = {}
        #: Accounts of which the workers have not been told.
        self._sent: set[str] = set()
        self._timer: IDelayedCall | None = None

    def handlers(self, worker: int) -> Mapping[str, Handler]:
        """What that worker may tell."""
        commands: Mapping[str, Callable[[int, Mapping[str, Any]], Any]] = {
            "connections": self._connections,
            "login.failed": self._login_failed,
            "usage.charge": self._charge,
            "usage.tell": self._first_today,
            "mail.watch": self._watch,
            "mail.changed": self._mail_changed,
        }
        return {command: _handler(partial(act, worker)) for command, act in commands.items()}

    def came(self, worker: int) -> None:
        """It is there, and knows nothing."""
        sums: Counter[str] = Counter()
        for other in self._others(worker):
            sums.update(self._counts[other])
        self._tell(
            worker, "connections", {"total": self._elsewhere(worker), "counts": dict(sums), "granted": {}}
        )
        for root, watchers in self._watchers.items():
            if watchers - {worker}:
                self._tell(worker, "mail.watched", {"root": root, "on": True})

    def went(self, worker: int) -> None:
        """It has ended, and its sessions with it."""
        nothing = dict.fromkeys(self._counts[worker], 0)
        self._connections(worker, {"total": 0, "counts": nothing, "granted": {}})
        for root in [root for root, watchers in self._watchers.items() if worker in watchers]:
            self._watch(worker, {"root": root, "on": False})

    def stop(self) -> None:
        """Tell no more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _others(self, worker: int) -> list[int]:
        return [other for other in self._workers if other != worker]

    # --- connections and logins ------------------------------------------------------------------

    def _elsewhere(self, worker: int) -> int:
        return sum(self._totals[other] for other in self._others(worker))

    def _connections(self, worker: int, news: Mapping[str, Any]) -> None:
        counts = self._counts[worker]
        self._totals[worker] = news["total"]
        for key, count in news["counts"].items():
            if count:
                counts[key] = count
            else:
                counts.pop(key, None)
        for other in self._others(worker):
            elsewhere = {
                key: sum(self._counts[each].get(key, 0) for each in self._others(other))
                for key in news["counts"]
            }
            self._tell(
                other,
                "connections",
                {"total": self._elsewhere(other), "counts": elsewhere, "granted": news["granted"]},
            )

    def _login_failed(self, worker: int, arguments: Mapping[str, Any]) -> None:
        for other in self._others(worker):
            self._tell(other, "login.failed", arguments)

    # --- what accounts send ----------------------------------------------------------------------

    def _charge(self, worker: int, wanted: Mapping[str, Any]) -> Any:
        limits = _limits(wanted)
        excess = self._usage.meter.charge(limits, wanted["recipients"])
        self._note(name for name, _ in limits)
        return attrs.asdict(excess) if excess is not None else None

    def _first_today(self, worker: int, arguments: Mapping[str, Any]) -> bool:
        first = self._usage.ledger.tell(arguments["name"], self._usage.seconds())
        self._note([arguments["name"]])
        return first

    def _note(self, names: Any) -> None:
        self._sent.update(names)
        if self._timer is None or not self._timer.active():
            self._timer = self._reactor.callLater(DELAY, self._tell_usage)

    def _tell_usage(self) -> None:
        names, self._sent = self._sent, set()
        entries = {name: _usage_entry(self._usage.ledger.usage(name)) for name in names}
        for worker in self._workers:
            self._tell(worker, "usage.changed", {"entries": entries})

    # --- mailboxes -------------------------------------------------------------------------------

    def _watch(self, worker: int, arguments: Mapping[str, Any]) -> None:
        root = arguments["root"]
        watchers = self._watchers.setdefault(root, set())
        (watchers.add if arguments["on"] else watchers.discard)(worker)
        for other in self._others(worker):
            self._tell(other, "mail.watched", {"root": root, "on": bool(watchers - {other})})
        if not watchers:
            del self._watchers[root]

    def _mail_changed(self, worker: int, arguments: Mapping[str, Any]) -> None:
        for other in self._watchers.get(arguments["root"], set()) - {worker}:
            self._tell(other, "mail.changed", arguments)


def _usage_entry(usage: Usage) -> list[Any]:
    """What `common.SharedMeter.changed` takes."""
    return [usage.told, attrs.astuple(usage.hour)[1:], attrs.astuple(usage.day)[1:]]


def _limits(wanted: Mapping[str, Any]) -> list[Limit]:
    """What `common.SharedMeter.charge` sends."""
    return [(name, Rates(**rates)) for name, rates in wanted["limits"]]


def _handler(act: Callable[[Mapping[str, Any]], Any]) -> Handler:
    async def handle(arguments: Mapping[str, Any]) -> Any:
        return act(arguments)

    return handle

"""How much each account sent of late, and whether it may send more.

Counted over a sliding hour and a sliding day, of which each is two numbers: this window's, and the one's before, which
counts less the further the new one has come. So memory is the same for a busy account as for a quiet one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

HOUR = 3600
DAY = 86400


@attrs.define
class Counter:
    """Messages and recipients in the current window, which is the `number`th since 1970, and in the one before."""

    length: int
    number: int = 0
    messages: int = 0
    recipients: int = 0
    messages_before: int = 0
    recipients_before: int = 0

    def used(self, now: float) -> tuple[float, float]:
        """(messages, recipients) in the last `length` seconds, taking those of the window before as evenly spread."""
        self._move(now)
        rest = 1 - min(max((now - self.number * self.length) / self.length, 0.0), 1.0)
        return self.messages + self.messages_before * rest, self.recipients + self.recipients_before * rest

    def add(self, now: float, recipients: int) -> None:
        """One more message."""
        self._move(now)
        self.messages += 1
        self.recipients += recipients

    def _move(self, now: float) -> None:
        number = int(now // self.length)
        # A clock that was set back by a little goes on in the window it was in; what is far ahead was a wrong clock.
        if number in (self.number, self.number - 1):
            return
        follows = number == self.number + 1
        self.messages_before = self.messages if follows else 0
        self.recipients_before = self.recipients if follows else 0
        self.number, self.messages, self.recipients = number, 0, 0


@attrs.define
class Usage:
    """What one account, or one domain, sent."""

    hour: Counter = attrs.field(factory=lambda: Counter(HOUR))
    day: Counter = attrs.field(factory=lambda: Counter(DAY))
    #: The day, counted since 1970, on which the postmaster was last told.
    told: int = -1

    def add(self, now: float, recipients: int) -> None:
        """One more message."""
        self.hour.add(now, recipients)
        self.day.add(now, recipients)

    def idle(self, now: float) -> bool:
        """Whether nothing of it counts any more."""
        return not any((*self.hour.used(now), *self.day.used(now))) and self.told < now // DAY


class Ledger:
    """The usage of all that sent something in the last two days. Remembers which entries changed since `take_changed`."""

    def __init__(self, entries: Mapping[str, Usage]) -> None:
        self._entries = dict(entries)
        self._changed: set[str] = set()
        self._tidied = 0

    def usage(self, name: str) -> Usage:
        """The entry of a folded account name, or of "@domain"; only to be looked at."""
        return self._entries.get(name) or Usage()

    def put(self, name: str, usage: Usage) -> None:
        """Take over an entry that is kept elsewhere."""
        self._entries[name] = usage

    def add(self, names: Iterable[str], now: float, recipients: int) -> None:
        """Count one message for each of these."""
        for name in names:
            self._entries.setdefault(name, Usage()).add(now, recipients)
            self._changed.add(name)

    def tell(self, name: str, now: float) -> bool:
        """Whether the postmaster is to be told today; it is then taken as done."""
        today = int(now // DAY)
        entry = self._entries.setdefault(name, Usage())
        if entry.told == today:
            return False
        entry.told = today
        self._changed.add(name)
        return True

    def take_changed(self, now: float) -> dict[str, Usage | None]:
        """What to write down, as copies: None for an entry that is no longer needed."""
        if self._tidied != now // HOUR:  # there may be very many
            self._tidied = int(now // HOUR)
            for name in [name for name, entry in self._entries.items() if entry.idle(now)]:
                del self._entries[name]
                self._changed.add(name)
        changed, self._changed = self._changed, set()
        return {name: _copy(self._entries.get(name)) for name in changed}

    def give_back(self, names: Iterable[str]) -> None:
        """These could not be written: they are changed still."""
        self._changed.update(names)

    def busiest(self, now: float, limit: int) -> list[tuple[str, Usage]]:
        """The accounts that had most recipients in the last day."""
        ranked = sorted(self._entries.items(), key=lambda item: -item[1].day.used(now)[1])
        return [(name, usage) for name, usage in ranked[:limit] if usage.day.used(now)[0]]


def _copy(usage: Usage | None) -> Usage | None:
    if usage is None:
        return None
    return attrs.evolve(usage, hour=attrs.evolve(usage.hour), day=attrs.evolve(usage.day))

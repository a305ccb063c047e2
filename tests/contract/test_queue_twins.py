"""The queue in memory and the one on the disk do the same, whatever is asked of them in whatever order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from twisted_mta.core.envelope import DeliverBy, TlsWish
from twisted_mta.core.queue import Expanded, Order, TryLater, WorkItem
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IQueueStore, Update
from twisted_mta.store.queue import SQLiteQueueStore
from twisted_mta.testing.contracts.queue import DELIVERED, FAILED, message, octets, put
from twisted_mta.testing.queue import MemoryQueueStore

Key = tuple[str, str]
TIMES = st.integers(1000, 1010).map(float)


def result(awaitable: Awaitable[Any]) -> Any:
    """What a store that does everything at once answers."""

    async def run() -> Any:
        return await awaitable

    found: list[Any] = []
    Deferred.fromCoroutine(run()).addCallbacks(found.append, lambda failure: failure.raiseException())
    return found[0]


def seen(items: list[WorkItem]) -> list[Any]:
    """What of WorkItems must be the same: all but the numbers of rows and bodies."""
    return [
        (
            item.message.id,
            item.message.parent,
            item.message.hold,
            item.message.arrived,
            item.message.not_before,
            item.message.deliver_by,
            item.message.priority,
            item.message.tls,
            [
                (
                    str(r.address),
                    r.attempts,
                    r.next_attempt,
                    r.last_reply,
                    r.warned,
                    r.late,
                    r.given_up,
                    r.hop,
                )
                for r in item.recipients
            ],
        )
        for item in items
    ]


class QueueTwins(RuleBasedStateMachine):
    """Two stores, and the rows that are claimed in each, by (queue id, address)."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.memory = MemoryQueueStore()
        self.disk: Any = self.reopen()
        self.claimed: dict[Key, tuple[int, int]] = {}
        self.postponed: list[tuple[int, int]] = []
        self.items: dict[str, tuple[WorkItem, WorkItem]] = {}
        self.count = 0

    def reopen(self) -> SQLiteQueueStore:
        return SQLiteQueueStore.inline(self.directory, Clock(), threshold=4)

    def teardown(self) -> None:
        self.kill()
        shutil.rmtree(self.directory)

    def kill(self) -> None:
        self.disk._writer.close()
        self.disk._reader.close()

    @property
    def stores(self) -> tuple[IQueueStore, IQueueStore]:
        return self.memory, self.disk

    def name(self) -> str:
        self.count += 1
        return f"m{self.count:04}"

    def take(self, both: list[list[WorkItem]]) -> None:
        ours, theirs = both
        assert seen(ours) == seen(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            self.items[mine.message.id] = (mine, other)
            for one, two in zip(mine.recipients, other.recipients, strict=True):
                self.claimed[mine.message.id, str(one.address)] = (one.row, two.row)

    @rule(
        sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
        when=TIMES,
        holds=st.lists(st.just(0.0) | TIMES, min_size=3, max_size=3),
        wishes=st.fixed_dictionaries(
            {
                "priority": st.integers(-9, 9),
                "tls": st.sampled_from(TlsWish),
                "deliver_by": st.none() | st.builds(DeliverBy, TIMES, st.booleans(), st.booleans()),
            }
        ),
        claim=st.booleans(),
        body=st.binary(max_size=8),
    )
    def add(
        self,
        sizes: list[int],
        when: float,
        holds: list[float],
        wishes: dict[str, Any],
        claim: bool,
        body: bytes,
    ) -> None:
        new = [
            message(self.name(), *"abc"[:size], arrived=when, not_before=hold, **wishes)
            for size, hold in zip(sizes, holds, strict=False)
        ]
        self.take([list(result(put(store, *new, body=body, claim=claim))) for store in self.stores])

    @rule(now=TIMES, limit=st.integers(1, 4))
    def claim(self, now: float, limit: int) -> None:
        self.take([list(result(store.claim_due(now, limit))) for store in self.stores])

    @precondition(lambda self: self.claimed)
    @rule(
        data=st.data(),
        kind=st.sampled_from(["delivered", "failed", "later", "expanded", "bounced"]),
        when=TIMES,
    )
    def record(self, data: st.DataObject, kind: str, when: float) -> None:
        keys = data.draw(st.lists(st.sampled_from(sorted(self.claimed)), min_size=1, max_size=3, unique=True))
        outcome: Any = {"failed": FAILED, "later": TryLater(Reply(451, "4.0.0", kind))}.get(kind, DELIVERED)
        if kind == "expanded":
            child = message(self.name(), "x", "y", parent=keys[0][0], arrived=when)
            outcome, keys = Expanded((child,), Reply(250, "2.0.0", "expanded")), keys[:1]
        new = [(message(self.name(), sender=None, arrived=when), b"bounce")] if kind == "bounced" else []
        rows = [self.claimed.pop(key) for key in keys]
        for twin, store in enumerate(self.stores):
            updates = [
                Update(
                    row=row[twin],
                    outcome=outcome,
                    next_attempt=when,
                    warned=kind == "later",
                    late=when > 1005,
                )
                for row in rows
            ]
            result(store.record(updates, new))

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        keys = data.draw(st.lists(st.sampled_from(sorted(self.claimed)), min_size=1, unique=True))
        rows = [self.claimed.pop(key) for key in keys]
        for twin, store in enumerate(self.stores):
            result(store.release([row[twin] for row in rows]))

    @precondition(lambda self: self.claimed)
    @rule(data=st.data(), until=TIMES, note=st.sampled_from(["", "451 not now"]))
    def postpone(self, data: st.DataObject, until: float, note: str) -> None:
        keys = data.draw(st.lists(st.sampled_from(sorted(self.claimed)), min_size=1, unique=True))
        rows = [self.claimed.pop(key) for key in keys]
        self.postponed += rows
        for twin, store in enumerate(self.stores):
            result(store.postpone([row[twin] for row in rows], until, note))

    @precondition(lambda self: self.postponed)
    @rule(when=TIMES)
    def hasten(self, when: float) -> None:
        one, two = (
            result(store.hasten([row[twin] for row in self.postponed], when))
            for twin, store in enumerate(self.stores)
        )
        assert one == two
        self.postponed.clear()

    @precondition(lambda self: self.count)
    @rule(data=st.data(), when=TIMES)
    def retry(self, data: st.DataObject, when: float) -> None:
        names = data.draw(st.none() | self.some_names())
        one, two = (result(store.retry(names, when)) for store in self.stores)
        assert one == two

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        names = data.draw(self.some_names())
        one, two = (result(store.delete(names)) for store in self.stores)
        assert one == two

    @precondition(lambda self: self.count)
    @rule(data=st.data(), on=st.booleans())
    def hold(self, data: st.DataObject, on: bool) -> None:
        names = data.draw(self.some_names())
        one, two = (
            result(store.hold(names, "why not") if on else store.let_go(names)) for store in self.stores
        )
        assert one == two

    @precondition(lambda self: self.count)
    @rule(data=st.data(), kind=st.sampled_from(Order), when=TIMES)
    def order(self, data: st.DataObject, kind: Order, when: float) -> None:
        names = data.draw(self.some_names())
        counts = []
        for store in self.stores:
            items = [item for name in names if (item := result(store.find(name))) is not None]
            rows = [(item.message.id, one.row) for item in items for one in item.recipients[:2]]
            counts.append(result(store.order(kind, rows, when, "mx:25")))
        assert counts[0] == counts[1]

    def some_names(self) -> st.SearchStrategy[list[str]]:
        return st.lists(st.integers(1, self.count).map("m{:04}".format), max_size=3, unique=True)

    @rule()
    def crash(self) -> None:
        self.kill()
        self.disk = self.reopen()
        result(self.memory.release([row for row, _ in self.claimed.values()]))
        self.claimed.clear()
        self.postponed.clear()

    @invariant()
    def same_queue(self) -> None:
        one, two = (list(result(store.listing())) for store in self.stores)
        assert seen(one) == seen(two)
        due = [result(store.next_due()) for store in self.stores]
        assert due[0] == due[1]

    @invariant()
    def same_bodies(self) -> None:
        for name, _ in self.claimed:
            mine, other = self.items[name]
            assert octets(result(self.memory.body(mine.message))) == octets(
                result(self.disk.body(other.message))
            )

    @invariant()
    def nothing_is_left_over(self) -> None:
        rows = self.disk._reader.execute("SELECT count(*), count(file) FROM body").fetchone()
        files = [path for path in (self.directory / "bodies").rglob("*") if path.is_file()]
        assert rows == (self.memory.body_count, len(files))


QueueTwinsTests = QueueTwins.TestCase
QueueTwinsTests.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    suppress_health_check=list(HealthCheck),
    # Every step waits for the disk: shrinking would take minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)

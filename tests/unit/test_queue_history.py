"""What the queue remembers of messages."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Awaitable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial import unittest
from zope.interface.verify import verifyObject

from twisted_mta.core.address import Address
from twisted_mta.core.history import Event, Kind, PastMessage, PastRecipient, State
from twisted_mta.core.queue import (
    Arrival,
    Contact,
    Delivered,
    Expanded,
    Failed,
    NewRecipient,
    Transport,
    TryLater,
)
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IQueueHistory, Update
from twisted_mta.service.history import INTERVAL, PAUSE, HistoryKeeper
from twisted_mta.store.queue import SQLiteQueueStore
from twisted_mta.store.queue.history import STEP, HistoryRules
from twisted_mta.testing.contracts.queue import DELIVERED, message, put, recipient, rows_of

ARRIVAL = Arrival(
    address="192.0.2.1",
    host="a.example.org",
    helo="a",
    protocol="ESMTPS",
    tls="TLSv1.3 X",
    role="mx",
    session="s1",
    checks=("relay", "loop"),
)
REMOTE = "mx.example.org [192.0.2.2]"
GONE = Reply(550, "5.1.1", "no such user")
BUSY = Reply(451, "4.3.0", "try later")


def contact(**changes: Any) -> Contact:
    made = Contact(remote=REMOTE, reply=BUSY, began=1001.0, took=1.5, tls="TLSv1.3 Y", transcript="220 hi\n")
    return attrs.evolve(made, **changes)


class HistoryTestCase(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.store = self.open()
        self.addCleanup(lambda: self.wait(self.store.close()))

    def open(self) -> SQLiteQueueStore:
        self.store = SQLiteQueueStore.inline(self.directory / "queue", Clock())
        return self.store

    def wait(self, awaitable: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await awaitable

        return self.successResultOf(Deferred.fromCoroutine(run()))

    def put(self, *messages: Any) -> list[int]:
        return rows_of(self.wait(put(self.store, *messages, claim=True)))

    def record(self, row: int, outcome: Any, at: float = 1010.0, **options: Any) -> None:
        self.wait(self.store.record([Update(row=row, outcome=outcome, at=at, **options)]))

    def recall(self, *names: str) -> list[PastMessage]:
        return list(self.wait(self.store.recall(names or ("a",))))

    def count(self, table: str) -> int:
        with closing(sqlite3.connect(self.directory / "queue" / "queue.sqlite")) as database:
            (count,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)


class SharedContactsTests(HistoryTestCase):
    """Contacts stand in the file once for those who were in one attempt."""

    def setUp(self) -> None:
        super().setUp()
        names = [f"member{number}" for number in range(6)]
        self.rows = self.put(message("a", *names), message("b", *names))

    def end(self, *ended: tuple[int, Any]) -> None:
        """By the place of a recipient in its message."""
        self.wait(
            self.store.record(
                [
                    Update(row=self.rows[place], outcome=outcome, at=1010.0, took=0.5)
                    for place, outcome in ended
                ]
            )
        )

    def stored(self) -> list[Any]:
        with closing(sqlite3.connect(self.directory / "queue" / "queue.sqlite")) as database:
            return [
                contacts
                for (contacts,) in database.execute("SELECT contacts FROM past_recipient ORDER BY row")
            ]

    def told(self, name: str) -> list[tuple[str, State, list[str]]]:
        """Of each recipient that is done: the reply, the state, and what the hosts said."""
        (found,) = self.recall(name)
        return [
            (one.reply, one.state, [each["reply"] for each in one.contacts])
            for one in found.recipients
            if one.state is not State.QUEUED
        ]

    def test_one_has_them_for_all(self) -> None:
        good, contacts = Reply(250, "2.0.0", "ok"), (contact(reply=Reply(250, "", "taken")),)
        taken, other = Delivered(good, REMOTE, contacts=contacts), Delivered(good, REMOTE, contacts=contacts)
        refused = Failed(GONE, REMOTE, contacts=contacts)
        self.end((0, taken), (1, other), (3, taken), (2, refused), (5, taken))
        first, *others = self.stored()
        self.assertIn("taken", first)
        self.assertEqual(others, [self.rows[0]] * 4)
        done = ("250 2.0.0 ok", State.DELIVERED, ["250 taken"])
        self.assertEqual(self.told("a"), [done, done, (str(GONE), State.FAILED, ["250 taken"]), done, done])

    def test_not_for_those_of_other_messages_and_attempts(self) -> None:
        contacts = (contact(),)
        same = Delivered(Reply(250, "2.0.0", "ok"), REMOTE, contacts=contacts)
        self.end((0, same), (5, same), (6, same), (7, Delivered(same.reply, REMOTE)))
        self.end((1, attrs.evolve(same, contacts=(contact(reply=GONE),))))
        busy, gone = str(BUSY), str(GONE)
        self.assertEqual([said for *_, said in self.told("a")], [[busy], [gone], [busy]])
        self.assertEqual([said for *_, said in self.told("b")], [[busy], []])


class RecallTests(HistoryTestCase):
    def test_interface(self) -> None:
        verifyObject(IQueueHistory, self.store)

    def test_a_message_that_waits_and_one_that_left(self) -> None:
        to = (
            recipient("bob"),
            NewRecipient(
                Address("jörg", "b.example"),
                Transport.LOCAL,
                Address("staff", "b.example"),
                via=("team@b.example",),
                sender=Address("owner-team", "b.example"),
                target="here",
            ),
        )
        (bob, joerg) = self.put(
            message("a", recipients=to, arrival=ARRIVAL, message_id="x@y", origin="somebody")
        )
        waiting = PastMessage(
            id="a",
            sender="alice@example.test",
            size=18,
            arrived=1000.0,
            message_id="x@y",
            origin="somebody",
            arrival=ARRIVAL,
            queued=True,
            recipients=(
                PastRecipient(
                    row=bob,
                    address="bob@example.org",
                    transport="smtp",
                    original="bob@example.org",
                    state=State.QUEUED,
                    attempts=0,
                    next_attempt=1000.0,
                ),
                PastRecipient(
                    row=joerg,
                    address="jörg@b.example",
                    transport="local",
                    original="staff@b.example",
                    via=("team@b.example",),
                    sender="owner-team@b.example",
                    target="here",
                    state=State.QUEUED,
                    attempts=0,
                    next_attempt=1000.0,
                ),
            ),
        )
        self.assertEqual(self.recall(), [waiting])
        self.record(joerg, Delivered(Reply(250, "2.0.0", "ok")), took=0.25)
        (found,) = self.recall("nothing", "a")
        done = attrs.evolve(
            waiting.recipients[1],
            state=State.DELIVERED,
            attempts=1,
            ended=1010.0,
            took=0.25,
            reply="250 2.0.0 ok",
            next_attempt=0.0,
        )
        self.assertEqual(found, attrs.evolve(waiting, recipients=(waiting.recipients[0], done)))
        self.record(bob, Failed(GONE, REMOTE, contacts=(contact(reply=GONE, verified=True),)), at=1020.0)
        (found,) = self.recall()
        self.assertFalse(found.queued)
        self.assertEqual((found.size, found.arrival, found.recipients[1]), (18, ARRIVAL, done))
        first = found.recipients[0]
        self.assertEqual((first.state, first.remote, first.ended), (State.FAILED, REMOTE, 1020.0))
        self.assertEqual(
            first.contacts,
            (
                {
                    "remote": REMOTE,
                    "reply": str(GONE),
                    "began": 1001.0,
                    "took": 1.5,
                    "tls": "TLSv1.3 Y",
                    "verified": True,
                },
            ),
        )

    def test_failed_attempts(self) -> None:
        rows = self.put(message("a", "bob", "carol", "dave"))
        later = TryLater(BUSY, REMOTE, contacts=(contact(),))
        self.wait(
            self.store.record(
                [
                    Update(row=row, outcome=later, next_attempt=2000.0 - row, at=1010.0, took=1.5)
                    for row in rows[:2]
                ]
                + [Update(row=rows[2], outcome=TryLater(BUSY), next_attempt=3000.0, at=1010.0)]
            )
        )
        (found,) = self.recall()
        told = {
            "remote": REMOTE,
            "reply": str(BUSY),
            "began": 1001.0,
            "took": 1.5,
            "tls": "TLSv1.3 Y",
            "verified": False,
        }
        self.assertEqual(
            found.events,
            (
                Event(
                    time=1010.0,
                    kind=Kind.DEFERRED,
                    rows=tuple(rows[:2]),
                    data={
                        "reply": str(BUSY),
                        "next": 2000.0 - rows[1],
                        "remote": REMOTE,
                        "took": 1.5,
                        "contacts": [told],
                    },
                ),
                Event(
                    time=1010.0,
                    kind=Kind.DEFERRED,
                    rows=(rows[2],),
                    data={"reply": str(BUSY), "next": 3000.0},
                ),
            ),
        )
        self.assertEqual([one.attempts for one in found.recipients], [1, 1, 1])
        self.assertEqual(found.recipients[0].reply, str(BUSY))

    def test_what_came_of_it(self) -> None:
        first, second = self.put(message("a", "list", "bob"))
        post = message("b", "x", "y", parent="a", origin="list l@example.test")
        self.record(first, Expanded((post,), Reply(250, "2.1.5", "sent")))
        bounce = message("c", "alice", sender=None, parent="a", arrived=1011.0)
        self.wait(
            self.store.record([Update(row=second, outcome=Failed(GONE))], [(bounce, b"Subject: no\r\n\r\n")])
        )
        found, child, notice = self.recall("a", "b", "c")
        self.assertEqual((found.children, found.queued), (("b", "c"), False))
        self.assertEqual([one.state for one in found.recipients], [State.EXPANDED, State.FAILED])
        self.assertEqual((child.parent, child.size, child.queued), ("a", 18, True))
        self.assertEqual((notice.parent, notice.size, notice.sender), ("a", 15, ""))

    def test_what_was_deleted(self) -> None:
        bob, carol = self.put(message("a", "bob", "carol"))
        self.record(bob, TryLater(BUSY), next_attempt=2000.0)
        self.wait(self.store.delete(["a"]))
        self.assertEqual(self.recall(), [])  # carol is being delivered: it is told when that ends
        self.record(carol, TryLater(BUSY), next_attempt=2000.0)
        (found,) = self.recall()
        self.assertEqual([(one.state, one.attempts) for one in found.recipients], [(State.DELETED, 1)] * 2)
        self.assertFalse(found.queued)

    def test_nothing_is_kept_that_need_not(self) -> None:
        self.store.history = HistoryRules(keep=0.0)
        bob, carol = self.put(message("a", "bob", "carol"))
        self.record(bob, TryLater(BUSY, REMOTE, contacts=(contact(),)), next_attempt=2000.0)
        self.record(carol, DELIVERED)
        self.wait(self.store.delete(["a"]))
        self.assertEqual(self.recall(), [])
        for table in ("past_message", "past_recipient", "event", "transcript"):
            self.assertEqual(self.count(table), 0)

    def test_a_damaged_row_does_not_hide_the_rest(self) -> None:
        (bob,) = self.put(message("a", arrival=ARRIVAL))
        self.record(bob, TryLater(BUSY), next_attempt=2000.0)
        with closing(sqlite3.connect(self.directory / "queue" / "queue.sqlite")) as database, database:
            database.execute("UPDATE message SET arrival = 'x'")
            database.execute("UPDATE event SET data = '[]', rows = '{'")
        (found,) = self.recall()
        self.assertEqual((found.arrival, found.events[0].data, found.events[0].rows), (Arrival(), {}, ()))


class SearchTests(HistoryTestCase):
    def setUp(self) -> None:
        super().setUp()
        via = NewRecipient(
            Address("bob", "example.org"),
            Transport.SMTP,
            Address("Staff", "b.example"),
            via=("team@b.example",),
        )
        (row, *_) = self.put(
            message("a", recipients=(via,), message_id="Abc.1@mail"), message("b", "carol", arrived=1500.0)
        )
        self.record(row, DELIVERED)

    def mentions(self, text: str, limit: int = 10) -> list[str]:
        return list(self.wait(self.store.mentions(text, limit)))

    def test_addresses(self) -> None:
        for text in (
            "bob@example.org",
            " <BOB@Example.ORG>",
            "staff@b.example",
            "team@b.example",
            "abc.1@mail",
            "<Abc.1@mail>",
        ):
            self.assertEqual(self.mentions(text), ["a"], text)
        self.assertEqual(self.mentions("carol@example.org"), ["b"])
        self.assertEqual(self.mentions("alice@example.test"), ["b", "a"])
        self.assertEqual(self.mentions("alice@example.test", 1), ["b"])
        self.assertEqual(self.mentions("nobody"), [])
        self.assertEqual(self.mentions('"%'), [])

    def test_an_odd_address(self) -> None:
        odd = Address('a "b"', "example.org")
        self.put(message("c", recipients=(NewRecipient(odd, Transport.SMTP, odd),)))
        self.assertEqual(self.mentions(f"<{odd}>"), ["c"])

    def test_by_time(self) -> None:
        for times, names in (((0, 9e9), ["b", "a"]), ((1000, 1499), ["a"]), ((1501, 9e9), [])):
            self.assertEqual(list(self.wait(self.store.arrivals(*times, 10))), names)
        self.assertEqual(list(self.wait(self.store.arrivals(0, 9e9, 1))), ["b"])


class TranscriptTests(HistoryTestCase):
    def try_later(self, *contacts: Contact) -> None:
        self.record(self.row, TryLater(BUSY, contacts=contacts), next_attempt=0.0)
        (self.row,) = rows_of(self.wait(self.store.claim_due(9e9, 10)))

    def setUp(self) -> None:
        super().setUp()
        (self.row,) = self.put(message("a"))

    def kept(self) -> list[tuple[str, str]]:
        return [(one.remote, one.text) for one in self.wait(self.store.transcripts("a"))]

    def test_the_last_ones_of_each_host_are_kept(self) -> None:
        self.store.history = HistoryRules(transcripts=2)
        self.try_later(contact(remote="other", transcript="1"))
        for number in range(2, 6):
            self.try_later(contact(transcript=str(number)), contact(remote="dead", transcript=""))
        self.assertEqual(self.kept(), [("other", "1"), (REMOTE, "4"), (REMOTE, "5")])

    def test_none_of_a_success_and_none_where_none_is_wanted(self) -> None:
        self.store.history = HistoryRules(transcripts=0)
        self.try_later(contact())
        self.store.history = HistoryRules()
        self.record(self.row, Delivered(Reply(250, "2.0.0", "ok"), REMOTE, contacts=(contact(),)))
        self.assertEqual(self.kept(), [])


class TidyTests(HistoryTestCase):
    def past(self) -> list[str]:
        with closing(sqlite3.connect(self.directory / "queue" / "queue.sqlite")) as database:
            return [name for (name,) in database.execute("SELECT id FROM past_message ORDER BY id")]

    def finish(self, name: str, arrived: float) -> None:
        (row,) = self.put(message(name, arrived=arrived))
        self.record(row, TryLater(BUSY, contacts=(contact(),)), next_attempt=0.0)
        ((row,)) = rows_of(self.wait(self.store.claim_due(9e9, 10)))
        self.record(row, DELIVERED)

    def test_by_age(self) -> None:
        self.store.history = HistoryRules(keep=100.0)
        for name, arrived in (("a", 1000.0), ("b", 1100.0)):
            self.finish(name, arrived)
        self.assertFalse(self.wait(self.store.tidy(1100.0)))
        self.assertEqual(self.past(), ["a", "b"])
        self.assertFalse(self.wait(self.store.tidy(1101.0)))
        self.assertEqual(self.past(), ["b"])
        for table in ("past_recipient", "event", "transcript"):
            self.assertEqual(self.count(table), 1)
        self.store.history = HistoryRules(keep=0.0)
        self.wait(self.store.tidy(1101.0))
        self.assertEqual((self.past(), self.count("event")), ([], 0))

    def test_what_was_begun_before_it_was_switched_off(self) -> None:
        bob, _ = self.put(message("a", "bob", "carol"))
        (row,) = self.put(message("b"))
        for each in (bob, row):
            self.record(each, TryLater(BUSY, contacts=(contact(),)), next_attempt=0.0)
        self.store.history = HistoryRules(keep=0.0)
        self.assertEqual(len(rows_of(self.wait(self.store.claim_due(9e9, 10)))), 2)
        self.record(row, DELIVERED)
        self.assertFalse(self.wait(self.store.tidy(9e9)))
        self.assertEqual([self.count(name) for name in ("event", "transcript")], [1, 1])

    def test_by_number_counted_from_what_was_there(self) -> None:
        for name in "abc":
            self.finish(name, 1000.0)
        self.wait(self.store.close())
        self.store = self.open()
        self.store.history = HistoryRules(limit=2)
        self.wait(self.store.tidy(1001.0))
        self.assertEqual(self.past(), ["b", "c"])
        self.finish("d", 1000.0)
        self.wait(self.store.tidy(1001.0))
        self.assertEqual(self.past(), ["c", "d"])

    def test_a_little_at_a_time(self) -> None:
        rows = self.put(*(message(f"m{number:04}") for number in range(STEP + 1)))
        self.wait(self.store.record([Update(row=row, outcome=DELIVERED) for row in rows]))
        self.assertTrue(self.wait(self.store.tidy(9e9)))
        self.assertEqual(self.count("past_message"), 1)
        self.assertFalse(self.wait(self.store.tidy(9e9)))
        self.assertEqual(self.count("past_recipient"), 0)


class KeeperTests(unittest.SynchronousTestCase):
    def test_looks_now_and_then_and_goes_on_while_there_is_more(self) -> None:
        clock = Clock()
        asked: list[float] = []
        answers: list[Deferred[bool]] = [
            succeed(True),
            succeed(True),
            succeed(False),
            fail(OSError("full")),
            Deferred(),
        ]

        class History:
            def tidy(self, now: float) -> Deferred[bool]:
                asked.append(now)
                return answers[len(asked) - 1]

        keeper = HistoryKeeper(History(), clock)
        keeper.start()
        for _ in range(6):
            clock.advance(0.0)
            for call in clock.getDelayedCalls():
                clock.advance(call.getTime() - clock.seconds())
        first = INTERVAL
        expected = [first, first + PAUSE, first + 2 * PAUSE, 2 * first + 2 * PAUSE, 3 * first + 2 * PAUSE]
        self.assertEqual(asked, expected)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        keeper.stop()
        keeper.stop()
        self.assertEqual(clock.getDelayedCalls(), [])

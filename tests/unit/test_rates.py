"""How much logins may send: core.rates, policy.rates, store.usage and service.usage."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.config.schema import Rates
from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.rates import DAY, HOUR, Counter, Ledger, Usage
from twisted_mta.interfaces import Account, IPolicyCheck, Peer, StoreFull
from twisted_mta.policy.rates import LocalMeter, RateCheck
from twisted_mta.service.reload import reload
from twisted_mta.service.usage import INTERVAL, Alarms, UsageKeeper
from twisted_mta.store.side_file import SideFileError
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.store.usage import UsageFile
from twisted_mta.testing.directory import make_directory
from twisted_mta.testing.world import World

START = 1000 * DAY


class CounterTests(SynchronousTestCase):
    def test_slides(self) -> None:
        counter = Counter(100)
        counter.add(1000, 5)
        counter.add(1050, 1)
        self.assertEqual(counter.used(1099), (2, 6))
        self.assertEqual(counter.used(1100), (2, 6))
        self.assertEqual(counter.used(1175), (0.5, 1.5))
        counter.add(1175, 1)
        self.assertEqual(counter.used(1175), (1.5, 2.5))
        self.assertEqual(counter.used(1200), (1, 1))
        self.assertEqual(counter.used(1300), (0, 0))

    def test_clock_set_back_a_little(self) -> None:
        counter = Counter(100)
        counter.add(1000, 1)
        self.assertEqual(counter.used(999), (1, 1))
        self.assertEqual(counter.used(1099), (1, 1))

    def test_clock_that_was_far_ahead(self) -> None:
        counter = Counter(100)
        counter.add(1e12, 1)
        self.assertEqual(counter.used(1000), (0, 0))

    @settings(max_examples=100)
    @given(st.lists(st.tuples(st.integers(0, 150), st.integers(1, 9)), max_size=30))
    def test_never_counts_what_was_never_sent(self, sent: list[tuple[int, int]]) -> None:
        counter, now, total = Counter(100), 1000, 0
        for wait, recipients in sent:
            now += wait
            total += recipients
            counter.add(now, recipients)
            messages, reached = counter.used(now)
            self.assertTrue(1 <= messages <= len(sent) and recipients <= reached <= total)


class LedgerTests(SynchronousTestCase):
    def test_changes_are_told_once_and_are_copies(self) -> None:
        ledger = Ledger({})
        ledger.add(["a", "@x"], START, 2)
        changed = ledger.take_changed(START)
        self.assertEqual(sorted(changed), ["@x", "a"])
        ledger.add(["a"], START, 2)
        copy = changed["a"]
        assert copy is not None
        self.assertEqual(copy.hour.recipients, 2)
        self.assertEqual(list(ledger.take_changed(START)), ["a"])
        self.assertEqual(ledger.take_changed(START), {})
        ledger.give_back(["a"])
        self.assertEqual(list(ledger.take_changed(START)), ["a"])

    def test_forgets_those_that_stopped(self) -> None:
        ledger = Ledger({})
        ledger.add(["a"], START, 2)
        ledger.take_changed(START)
        self.assertEqual(ledger.take_changed(START + DAY), {})
        self.assertEqual(ledger.take_changed(START + 2 * DAY), {"a": None})
        self.assertEqual(ledger.busiest(START + 2 * DAY, 9), [])

    def test_tells_once_a_day(self) -> None:
        ledger = Ledger({})
        told = [ledger.tell("a", START + hours * HOUR) for hours in (0, 1, 23, 24, 47)]
        self.assertEqual(told, [True, False, False, True, False])
        ledger.take_changed(START + DAY)
        self.assertFalse(ledger.tell("a", START + DAY))  # although it sent nothing, it is remembered
        self.assertEqual(ledger.take_changed(START + 2 * DAY), {"a": None})

    def test_busiest(self) -> None:
        ledger = Ledger({})
        for name, recipients in (("a", 1), ("b", 5), ("c", 3)):
            ledger.add([name], START, recipients)
        self.assertEqual([name for name, _ in ledger.busiest(START, 2)], ["b", "c"])


class CheckTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(START)
        self.alarms: list[tuple[str, str]] = []
        self.ledger = Ledger({})
        self.peer = Peer(address="192.0.2.1", port=1, account=Account("Alice@example.test", "/m"))

    def check(self, domain: Rates = Rates(), **account: int) -> RateCheck:  # noqa: B008
        return RateCheck(
            meter=LocalMeter(self.ledger, self.clock.seconds),
            account=Rates(**account),
            domain=domain,
            alarm=lambda *alarm: self.alarms.append(alarm),
        )

    def send(self, check: RateCheck, recipients: int = 1) -> str:
        """Send a message as a session would; the first refusal, or ""."""
        envelope = Envelope(None)
        recipient = Recipient(Address("bob", "x.test"))
        refusal = check.on_mail(self.peer, envelope)
        for _ in range(recipients):
            refusal = refusal or check.on_rcpt(self.peer, envelope, recipient)
            envelope = Envelope(None, (*envelope.recipients, recipient))
        return str(refusal or check.on_message(self.peer, envelope, b"") or "")

    def test_messages_in_an_hour(self) -> None:
        check = self.check(messages_per_hour=2)
        self.assertTrue(IPolicyCheck.providedBy(check))
        self.assertEqual([self.send(check) for _ in range(2)], ["", ""])
        text = "450 4.7.1 alice@example.test may not send more than 2 messages in an hour; try again later"
        self.assertEqual(self.send(check), text)
        self.assertEqual(self.alarms, [("alice@example.test", "2 messages in an hour")])
        self.clock.advance(HOUR * 1.5)
        self.assertEqual(self.send(check), "")

    def test_recipients_in_a_day(self) -> None:
        check = self.check(recipients_per_day=10, recipients_per_hour=100)
        self.assertEqual([self.send(check, 5), self.send(check, 4)], ["", ""])
        text = "550 5.7.1 alice@example.test may not send more than 10 recipients in a day; ask the postmaster if you need to"
        self.assertEqual(self.send(check, 2), text)
        self.assertEqual(self.send(check, 1), "")
        self.assertEqual(self.send(check, 0), text)  # at MAIL already
        self.assertEqual(len(self.alarms), 1)

    def test_what_other_sessions_sent_meanwhile_counts(self) -> None:
        check = self.check(messages_per_hour=1)
        self.assertIsNone(check.on_mail(self.peer, Envelope(None)))
        self.assertEqual(self.send(check), "")
        self.assertIn("450", str(check.on_message(self.peer, Envelope(None), b"")))

    def test_a_domain(self) -> None:
        check = self.check(Rates(messages_per_hour=2))
        self.send(check)
        self.peer.account = Account("bob@example.test", "/m")
        self.send(check)
        self.assertIn(
            "450 4.7.1 All accounts of example.test together may not send more than 2", self.send(check)
        )
        self.peer.account = Account("bob@example.org", "/m")
        self.assertEqual(self.send(check), "")
        self.assertEqual(self.alarms, [("@example.test", "2 messages in an hour")])

    def test_no_limits_and_no_login(self) -> None:
        check = self.check()
        self.assertEqual([self.send(check, 50) for _ in range(50)], [""] * 50)
        self.peer.account = None
        self.assertEqual(self.send(self.check(messages_per_hour=1)), "")
        self.assertEqual(self.ledger.usage("alice@example.test").day.recipients, 2500)


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def open(self) -> UsageFile:
        file = UsageFile(self.path)
        self.addCleanup(file.close)
        return file

    def test_what_was_saved_is_there_again(self) -> None:
        usage = Usage(told=7)
        usage.add(START, 3)
        usage.add(START + DAY, 4)
        file = self.open()
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        file.save({"a": usage, "b": Usage()})
        file.save({"b": None, "c": None})
        self.assertEqual(self.open().load(), {"a": usage})

    def test_damaged(self) -> None:
        self.path.write_bytes(b"this is no database, not at all" * 100)
        with self.assertRaisesRegex(SideFileError, "may be removed"):
            self.open()

    def test_newer(self) -> None:
        self.open()
        with closing(sqlite3.connect(self.path)) as database:
            database.execute("PRAGMA user_version=99")
        with self.assertRaisesRegex(SideFileError, "newer"):
            self.open()

    def test_can_not_be_read(self) -> None:
        file = self.open()
        with closing(sqlite3.connect(self.path)) as database:
            database.execute("DROP TABLE usage")
        with self.assertRaisesRegex(SideFileError, "may be removed"):
            file.load()

    def test_all_or_nothing(self) -> None:
        file = self.open()
        good, bad = Usage(told=1), Usage(told=None)  # type: ignore[arg-type]
        with self.assertRaises(sqlite3.Error):
            file.save({"a": good, "b": bad})
        self.assertEqual(file.load(), {})
        file.save({"a": good})
        self.assertEqual(file.load(), {"a": good})

    def test_no_such_directory(self) -> None:
        self.path = Path(self.mktemp(), "usage")
        with self.assertRaisesRegex(SideFileError, "No such file"):
            self.open()


class KeeperTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(START)
        self.path = Path(self.mktemp())

    def keeper(self) -> UsageKeeper:
        return UsageKeeper(UsageFile(self.path), InlineWorkers(), self.clock)

    def stop(self, keeper: UsageKeeper) -> None:
        self.successResultOf(Deferred.fromCoroutine(keeper.stop()))

    def saved(self) -> int:
        file = UsageFile(self.path)
        try:
            return file.load().get("a", Usage()).day.messages
        finally:
            file.close()

    def test_written_every_few_seconds_and_at_the_end(self) -> None:
        keeper = self.keeper()
        keeper.start()
        keeper.ledger.add(["a"], START, 1)
        self.assertEqual(self.saved(), 0)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.saved(), 1)
        keeper.ledger.add(["a"], START, 1)
        self.stop(keeper)
        self.assertEqual(self.saved(), 2)
        again = self.keeper()
        self.assertEqual(again.status(), [{"name": "a", "messages": 2, "recipients": 2}])
        self.stop(again)

    def test_what_can_not_be_written_is_tried_again(self) -> None:
        keeper = self.keeper()
        keeper.start()
        save = keeper._file.save
        full = [True]

        def fail(changed: Any) -> None:
            if full:
                full.clear()
                raise sqlite3.OperationalError("disk full")
            save(changed)

        self.patch(keeper._file, "save", fail)
        keeper.ledger.add(["a"], START, 1)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.saved(), 0)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.saved(), 1)
        self.stop(keeper)


class AlarmTests(SynchronousTestCase):
    def test_no_room(self) -> None:
        for error, logged in ((StoreFull(), 0), (ZeroDivisionError(), 1)):
            queue = FailingQueue(error)
            alarm = Alarms(
                queue, make_directory(["alice"], {}), lambda: "A", lambda: 0.0, "mx.example.test", 100
            )
            alarm("alice@example.test", "2 messages in an hour")
            self.assertTrue(queue.aborted)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), logged)


class FailingQueue:
    """An IQueue whose bodies can't be written."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.aborted = False

    def new_body(self) -> Any:
        return self

    def write(self, data: bytes) -> None:
        raise self.error

    def abort(self) -> None:
        self.aborted = True

    async def submit(self, messages: Any, body: Any) -> None:
        raise AssertionError("the body is not there")


class ServerTests(SynchronousTestCase):
    """On the simulated server: the postmaster is told once, counts outlive a restart, and a reload brings other limits."""

    def setUp(self) -> None:
        self.world = World(Path(self.mktemp()), "\n[submission]\nmessages_per_hour = 2\n")
        self.addCleanup(lambda: self.world.close())
        self.peer = Peer(address="192.0.2.1", port=1, role="submission", esmtp=True)
        self.peer.account = Account("alice@example.test", "/m")

    def send(self) -> str:
        reception = self.world.parts.reception
        envelope = Envelope(Address("alice", "example.test"), (Recipient(Address("bob", "example.test")),))
        refusal = reception.rules.checks[-1].on_mail(self.peer, envelope)
        if refusal is not None:
            return str(refusal)[:9]
        sink = reception.message(self.peer, envelope)
        sink.write(b"Subject: x\r\n\r\n")
        done = Deferred.fromCoroutine(sink.finish())
        self.world.advance(1)
        return str(self.successResultOf(done))[:9]

    def test_told_once(self) -> None:
        self.assertEqual(
            [self.send() for _ in range(4)], ["250 2.0.0", "250 2.0.0", "450 4.7.1", "450 4.7.1"]
        )
        self.world.advance(2)
        (mail,) = self.world.mail("postmaster")
        for part in (
            b"From: Mail Server <postmaster@mx.example.test>",
            b"Subject: alice@example.test reached its limit of 2 messages in an hour",
            b"Auto-Submitted: auto-generated",
            b"mta user passwd alice@example.test",
        ):
            self.assertIn(part, mail)
        self.world.restart()
        self.assertEqual(self.send(), "450 4.7.1")
        self.world.advance(2)
        self.assertEqual(len(self.world.mail("postmaster")), 1)

    def test_reload(self) -> None:
        self.assertEqual([self.send() for _ in range(3)][2], "450 4.7.1")
        file = self.world.directory / "mta.toml"
        file.write_text(file.read_text().replace("messages_per_hour = 2", "messages_per_hour = 3"))
        world = self.world
        result = self.successResultOf(
            Deferred.fromCoroutine(reload(world.listeners.serving, world.parts, world.listeners))
        )
        self.assertEqual(result.changed, ("submission.messages_per_hour",))
        self.assertEqual([self.send(), self.send()], ["250 2.0.0", "450 4.7.1"])

    def test_a_sender_of_somebody_else(self) -> None:
        envelope = Envelope(Address("bob", "example.test"))
        reply = self.world.parts.reception.mail(self.peer, envelope)
        self.assertIn("553 5.7.1", str(reply))

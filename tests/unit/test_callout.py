"""Callouts: whether the servers of a relay domain know an address, what is remembered of that, and what clients are told."""

from __future__ import annotations

import unittest
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.admin.callouts import lines
from twisted_mta.config.schema import Callout
from twisted_mta.core.address import Address
from twisted_mta.core.callout import Lifetimes, Verdict, Word, no_answer, refusal, verdict_of
from twisted_mta.core.replies import Reply
from twisted_mta.delivery.callouts import MAX_DOMAINS, MAX_OF_DOMAIN, PAUSE, Answer, Callouts
from twisted_mta.delivery.enquiry import Heard
from twisted_mta.service.callout_control import callout_handlers
from twisted_mta.service.control import ControlError
from twisted_mta.store.callouts import CalloutFile
from twisted_mta.store.threads import InlineWorkers

JOE = Address("joe", "backup.test")
YES = Heard(Verdict.EXISTS, Reply(250, "2.1.5", "ok"), "mx [192.0.2.1]")
NO = Heard(Verdict.UNKNOWN, Reply(550, "5.1.1", "no joe\nhere"), "mx [192.0.2.1]")
DOWN = Heard(Verdict.UNANSWERED, Reply(451, "4.4.1", "connection refused"))


class WordTests(unittest.TestCase):
    def test_what_replies_say_of_the_address(self) -> None:
        for reply, expected in (
            (Reply(250, "2.1.5", ""), Verdict.EXISTS),
            (Reply(251, "", ""), Verdict.EXISTS),
            (Reply(550, "5.1.1", ""), Verdict.UNKNOWN),
            (Reply(550, "", ""), Verdict.UNKNOWN),
            (Reply(550, "5.0.0", ""), Verdict.UNKNOWN),
            (Reply(552, "5.2.1", ""), Verdict.UNKNOWN),
            (Reply(554, "5.7.1", "your address is on a list"), Verdict.UNANSWERED),
            (Reply(550, "5.4.6", "loop"), Verdict.UNANSWERED),
            (Reply(450, "4.2.0", "greylisted"), Verdict.UNANSWERED),
            (Reply(421, "", ""), Verdict.UNANSWERED),
        ):
            self.assertIs(verdict_of(reply), expected, str(reply))
            self.assertIs(verdict_of(reply, sender_refused=True), Verdict.UNANSWERED)

    def test_how_long_words_count(self) -> None:
        times = Lifetimes(known=100, unknown=10, remember=1000)
        yes, no = Word(True, 0.0, "mx", "250"), Word(False, 0.0, "mx", "550")
        for word, now, fresh, good in (
            (yes, 99, True, True),
            (yes, 100, False, True),
            (yes, 1000, False, False),
            (no, 9, True, False),
            (no, 10, False, False),
        ):
            self.assertEqual((word.is_fresh(now, times), word.is_good(now, times)), (fresh, good))

    def test_replies_to_the_client(self) -> None:
        self.assertEqual(
            str(refusal(JOE, "mx", "550 no\n joe")),
            "550 5.1.1 joe@backup.test does not exist, says mx: 550 no joe",
        )
        self.assertEqual(str(refusal(JOE, "mx", "")), "550 5.1.1 joe@backup.test does not exist, says mx")
        reply = no_answer(JOE, "x" * 1000)
        self.assertEqual((reply.code, reply.enhanced), (450, "4.4.1"))
        self.assertLess(len(reply.text), 300)


class FileTests(unittest.TestCase):
    def setUp(self) -> None:
        self.path = Path(self.id())
        self.path.unlink(missing_ok=True)
        self.addCleanup(lambda: [each.unlink() for each in Path().glob(f"{self.path}*")])

    def test_words_are_kept_and_forgotten(self) -> None:
        times = Lifetimes()
        file = CalloutFile(self.path)
        file.close()  # it was never opened
        words = {
            f"{name}@{domain}": Word(name != "c", float(n), "mx", "x")
            for n, (name, domain) in enumerate([("a", "x.test"), ("b", "y_z.test"), ("c", "y-z.test")])
        }
        for address, word in words.items():
            file.note(address, word, times)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        file.close()
        file = CalloutFile(self.path)
        self.assertEqual(file.words(10), list(reversed(words.items())))
        self.assertEqual(file.word("a@x.test"), words["a@x.test"])
        self.assertIsNone(file.word("d@x.test"))
        self.assertEqual(file.forget("d@x.test"), 0)
        self.assertEqual(file.forget("@y_z.test"), 1)  # and nothing that only looks like it
        self.assertEqual(file.forget("a@x.test"), 1)
        self.assertEqual([address for address, _ in file.words(10)], ["c@y-z.test"])
        file.close()

    def test_it_does_not_grow_for_ever(self) -> None:
        times = Lifetimes(known=10, unknown=5, remember=1500)
        file = CalloutFile(self.path, limit=100)
        for n in range(1000):
            file.note(f"a{n}@x.test", Word(n % 2 == 0, float(n), "mx", ""), times)
        found = file.words(1000)
        self.assertEqual(len(found), 100)
        self.assertTrue(all(word.exists for _, word in found))  # what exists comes before what was guessed
        for n in range(1000):
            file.note("a@x.test", Word(True, 5000.0 + n, "mx", ""), times)
        self.assertEqual([address for address, _ in file.words(10)], ["a@x.test"])
        file.close()


class CalloutTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.asked: list[Address] = []
        self.open: list[Deferred[Heard]] = []
        self.says: Heard | None = YES

    def make(self, settings: Callout | None = None, *, path: Path | None = None) -> Callouts:
        file = CalloutFile(path or Path(self.mktemp()))
        callouts = Callouts(self.ask, file, InlineWorkers(), self.clock, settings or Callout())
        self.addCleanup(lambda: Deferred.fromCoroutine(callouts.close()))
        return callouts

    def ask(self, address: Address, until: float) -> Awaitable[Heard]:
        self.asked.append(address)
        answer: Deferred[Heard] = Deferred()
        if self.says is not None:
            answer.callback(self.says)
        self.open.append(answer)
        return answer

    def begin(self, callouts: Callouts, address: Address = JOE) -> Deferred[Answer]:
        return Deferred.fromCoroutine(callouts.verify(address))

    def verify(self, callouts: Callouts, address: Address = JOE) -> Answer:
        return self.successResultOf(self.begin(callouts, address))

    def refusal(self, callouts: Callouts) -> str:
        return str(self.verify(callouts).refusal or "")

    def test_a_yes_counts_for_a_day(self) -> None:
        callouts = self.make()
        self.assertEqual(
            self.verify(callouts), Answer(None, "mx [192.0.2.1] said of joe@backup.test: 250 2.1.5 ok")
        )
        self.clock.advance(3600)
        self.assertEqual(
            self.verify(callouts, Address("Joe", "backup.test")).remark,
            "mx [192.0.2.1] said of Joe@backup.test, 1 hour ago: 250 2.1.5 ok",
        )
        self.assertEqual(len(self.asked), 1)
        self.clock.advance(86400)
        self.says = NO
        self.assertIn("550 5.1.1 joe@backup.test does not exist", self.refusal(callouts))
        self.assertEqual(len(self.asked), 2)

    def test_a_no_counts_for_an_hour(self) -> None:
        callouts, self.says = self.make(), NO
        for _ in range(3):
            self.assertEqual(
                self.refusal(callouts),
                "550 5.1.1 joe@backup.test does not exist, says mx [192.0.2.1]: 550 5.1.1 no joe / here",
            )
        self.assertEqual(len(self.asked), 1)
        self.clock.advance(3600)
        self.says = YES
        self.assertEqual(self.refusal(callouts), "")

    def test_who_was_known_is_taken_while_nobody_can_be_asked(self) -> None:
        callouts = self.make()
        self.verify(callouts)
        self.clock.advance(10 * 86400)
        self.says = DOWN
        answer = self.verify(callouts)
        self.assertIsNone(answer.refusal)
        self.assertIn("taken since mx [192.0.2.1] knew joe@backup.test 10 days ago", answer.remark)
        self.assertIn(
            "450 4.4.1 Can't find out for now whether jim",
            str(self.verify(callouts, Address("jim", "backup.test")).refusal),
        )
        self.clock.advance(30 * 86400)
        self.assertIn("450 4.4.1", self.refusal(callouts))

    def test_it_is_remembered_over_a_restart(self) -> None:
        path = Path(self.mktemp())
        first = self.make(path=path)
        self.verify(first)
        self.successResultOf(Deferred.fromCoroutine(first.close()))
        self.verify(self.make(path=path))
        self.assertEqual(len(self.asked), 1)

    def test_without_answers_all_is_taken_if_so_set(self) -> None:
        self.says = DOWN
        answer = self.verify(self.make(Callout(unanswered="accept")))
        self.assertEqual(
            answer, Answer(None, "taken unverified (callout.unanswered): 451 4.4.1 connection refused")
        )

    def test_a_domain_that_is_down_is_left_alone_for_a_minute(self) -> None:
        callouts, self.says = self.make(), DOWN
        for name in "abc":
            self.verify(callouts, Address(name, "backup.test"))
        self.assertEqual(len(self.asked), 1)
        self.verify(callouts, Address("a", "other.test"))
        self.assertEqual(len(self.asked), 2)
        self.clock.advance(PAUSE)
        self.says = YES
        self.assertEqual(self.refusal(callouts), "")

    def test_a_host_that_answers_with_something_else_is_asked_again(self) -> None:
        callouts = self.make()
        self.says = Heard(Verdict.UNANSWERED, Reply(450, "4.7.1", "greylisted"), "mx [192.0.2.1]")
        for _ in range(2):
            self.assertIn("mx [192.0.2.1] said 450 4.7.1 greylisted", self.refusal(callouts))
        self.assertEqual(len(self.asked), 2)

    def test_several_who_ask_get_one_answer(self) -> None:
        callouts, self.says = self.make(), None
        waiting = [self.begin(callouts) for _ in range(3)]
        gone = waiting.pop()  # a client that went away
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.open[0].callback(YES)
        for each in waiting:
            self.assertIsNone(self.successResultOf(each).refusal)
        self.assertEqual(len(self.asked), 1)

    def test_not_too_many_at_a_time(self) -> None:
        callouts, self.says = self.make(), None
        waiting = [self.begin(callouts, Address(f"a{n}", "backup.test")) for n in range(MAX_OF_DOMAIN + 2)]
        self.assertEqual(len(self.asked), MAX_OF_DOMAIN)
        self.begin(callouts, Address("a", "other.test"))
        self.assertEqual(len(self.asked), MAX_OF_DOMAIN + 1)
        for each in self.open[:2]:
            each.callback(NO)
        self.assertEqual(len(self.asked), MAX_OF_DOMAIN + 3)
        for each in self.open[2:]:
            each.callback(NO)
        for result in waiting:
            self.assertIsNotNone(self.successResultOf(result).refusal)

    def test_patience_ends(self) -> None:
        callouts, self.says = self.make(Callout(timeout=7.0)), None
        waiting = [self.begin(callouts, Address(f"a{n}", "backup.test")) for n in range(MAX_OF_DOMAIN + 1)]
        self.clock.advance(6.9)
        self.assertNoResult(waiting[0])
        self.clock.advance(0.2)
        for each in waiting:
            self.assertIn("no answer within 7 seconds", str(self.successResultOf(each).refusal))
        self.assertEqual(len(self.asked), MAX_OF_DOMAIN)  # it makes no sense to ask for the next
        self.assertIn("no answer within 7 seconds", self.refusal(callouts))  # at once

    def test_who_never_gets_a_turn(self) -> None:
        callouts, self.says = self.make(Callout(timeout=7.0)), None
        for n in range(MAX_OF_DOMAIN):
            self.begin(callouts, Address(f"a{n}", "backup.test"))
        callouts.reconfigure(Callout(timeout=1.0))
        waiting = self.begin(callouts)
        self.clock.advance(1)
        self.assertIn("too many questions wait", str(self.successResultOf(waiting).refusal))
        for each in self.open:
            each.callback(YES)
        self.says = YES
        self.assertEqual(self.refusal(callouts), "")  # it was no fault of the host's

    def test_one_that_came_late_to_its_turn_says_nothing_of_the_host(self) -> None:
        callouts, self.says = self.make(Callout(timeout=10.0)), None
        for n in range(MAX_OF_DOMAIN):
            self.begin(callouts, Address(f"a{n}", "backup.test"))
        late = self.begin(callouts)
        self.clock.advance(9)
        for each in list(self.open):
            each.callback(YES)
        self.assertEqual(len(self.asked), MAX_OF_DOMAIN + 1)
        self.clock.advance(1)
        self.assertIn("no answer", str(self.successResultOf(late).refusal))
        self.says = YES
        self.assertEqual(self.refusal(callouts), "")

    def test_a_bug_refuses_for_now(self) -> None:
        callouts, self.says = self.make(), None
        waiting = self.begin(callouts)
        self.open[0].errback(RuntimeError("bug"))
        self.assertIn("450 4.4.1", str(self.successResultOf(waiting).refusal))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_file_that_can_t_be_used_stops_nothing(self) -> None:
        path = Path(self.mktemp())
        path.write_text("this is no database, and much too long for one" * 100)
        callouts = self.make(path=path)
        for _ in range(2):
            self.assertEqual(self.refusal(callouts), "")
        self.assertEqual(len(self.asked), 2)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(callouts.words(10))), ())

    def test_forgetting(self) -> None:
        callouts, self.says = self.make(), NO
        self.verify(callouts)
        ((address, word),) = self.successResultOf(Deferred.fromCoroutine(callouts.words(10)))
        self.assertEqual((address, word.exists), ("joe@backup.test", False))
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(callouts.forget("joe@backup.test"))), 1)
        self.says = YES
        self.assertEqual(self.refusal(callouts), "")

    def test_without_a_file(self) -> None:
        callouts = Callouts(self.ask, None, InlineWorkers(), self.clock, Callout())
        for _ in range(2):
            self.assertEqual(self.refusal(callouts), "")
        self.assertEqual(len(self.asked), 2)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(callouts.words(1))), ())
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(callouts.forget("x"))), 0)
        self.successResultOf(Deferred.fromCoroutine(callouts.close()))

    def test_many_domains_that_are_down(self) -> None:
        callouts, self.says = self.make(), DOWN
        for n in range(MAX_DOMAINS + 10):
            self.verify(callouts, Address("a", f"d{n}.test"))
        held: Any = callouts
        self.assertLessEqual(len(held._paused), MAX_DOMAINS)
        self.assertEqual(len(held._domains), 0)


class AdministratorTests(SynchronousTestCase):
    """The commands of the control socket, and `mta callouts`."""

    def setUp(self) -> None:
        self.file = CalloutFile(Path(self.mktemp()))
        for n, name in enumerate(("joe", "jim")):
            word = Word(
                name == "joe", 3600.0 * n, "mx [192.0.2.1]", "250 ok" if name == "joe" else "550 no\x1b"
            )
            self.file.note(f"{name}@backup.test", word, Lifetimes())

        def ask(address: Address, until: float) -> Awaitable[Heard]:
            raise AssertionError("nobody is asked")

        callouts = Callouts(ask, self.file, InlineWorkers(), Clock(), Callout())
        self.handlers = callout_handlers(callouts)
        self.addCleanup(lambda: Deferred.fromCoroutine(callouts.close()))

    def ask(self, command: str, **arguments: Any) -> Any:
        async def go() -> Any:
            return await self.handlers[f"callout.{command}"](arguments)

        return self.successResultOf(Deferred.fromCoroutine(go()))

    def test_listing(self) -> None:
        self.assertEqual(
            list(lines(self.ask("list"), 7200.0)),
            [
                "jim@backup.test does not exist: mx [192.0.2.1] said 550 no\ufffd, 1 hour ago",
                "joe@backup.test exists: mx [192.0.2.1] said 250 ok, 2 hours ago",
            ],
        )
        self.assertEqual(len(self.ask("list", limit=1)["words"]), 1)

    def test_forgetting(self) -> None:
        for address, count in (("JOE@backup.test", 1), ("joe@backup.test", 0), ("@Backup.test", 1)):
            self.assertEqual(self.ask("forget", address=address), {"forgotten": count})
        self.assertEqual(
            list(lines(self.ask("list"), 0.0)),
            ["No server was asked about an address yet (see callout in [[domain]])."],
        )

    def test_what_makes_no_sense(self) -> None:
        for command, arguments, text in (
            ("list", {"limit": 0}, "the limit is 1 to"),
            ("list", {"limit": "x"}, "the limit is 1 to"),
            ("forget", {}, "the address is missing"),
            ("forget", {"address": "joe"}, "'joe' is no address, and no @domain"),
            ("forget", {"address": "@"}, "'@' is no address, and no @domain"),
        ):
            failure = self.failureResultOf(self.failing(command, arguments), ControlError)
            self.assertIn(text, str(failure.value))

    def failing(self, command: str, arguments: Any) -> Deferred[Any]:
        async def go() -> Any:
            return await self.handlers[f"callout.{command}"](arguments)

        return Deferred.fromCoroutine(go())

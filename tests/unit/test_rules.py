"""What users decide about their mail: the syntax, and the limits."""

from __future__ import annotations

from datetime import date
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.rules import (
    MAX_WORDS,
    NONE,
    Changed,
    Limits,
    Rules,
    RulesError,
    Vacation,
    format_rules,
    parse_rules,
    within,
)

ALICE = Address("alice", "example.test")
BOB, CAROL = Address("bob", "example.org"), Address("carol", "example.net")
SALES = Address("sales", "example.test")
LIMITS = Limits(forwards=2, addresses=1, text=100)
ALL = Rules(
    forward=(BOB, CAROL),
    keep=True,
    addresses=(SALES,),
    vacation=Vacation(
        text="I am away.\n\n  Alice: call me",
        subject="Away",
        name="Alice Smith",
        sender=SALES,
        start=date(2026, 12, 20),
        end=date(2027, 1, 3),
        days=3,
    ),
)
TEXT = """\
forward: bob@example.org, carol@example.net, keep
addresses: sales@example.test
vacation-start: 2026-12-20
vacation-end: 2027-01-03
vacation-days: 3
vacation-from: Alice Smith <sales@example.test>
vacation-subject: Away
vacation:
I am away.

  Alice: call me
"""


class SyntaxTests(SynchronousTestCase):
    def problems(self, text: str, rules: Rules = NONE) -> tuple[str, ...]:
        with self.assertRaises(RulesError) as caught:
            parse_rules(text, rules)
        problems: tuple[str, ...] = caught.exception.problems
        return problems

    def test_there_and_back(self) -> None:
        self.assertEqual(format_rules(ALL), TEXT)
        self.assertEqual(parse_rules(TEXT).rules, ALL)
        self.assertEqual(format_rules(NONE), "")
        short = Rules(vacation=Vacation(text="off"), forward=(BOB,))
        self.assertEqual(parse_rules(format_rules(short)).rules, short)

    def test_what_is_not_named_stays(self) -> None:
        self.assertEqual(parse_rules("", ALL).rules, ALL)
        changed = parse_rules("Forward : carol@example.net", ALL).rules
        self.assertEqual((changed.forward, changed.keep, changed.vacation), ((CAROL,), False, ALL.vacation))
        changed = parse_rules(
            "vacation-days: 9\nvacation-end: off\nvacation-subject: off\nvacation-from: off", ALL
        ).rules
        assert changed.vacation is not None
        vacation = changed.vacation
        self.assertEqual(
            (vacation.days, vacation.end, vacation.subject, vacation.sender, vacation.name),
            (9, None, "", None, ""),
        )
        self.assertEqual(vacation.start, date(2026, 12, 20))

    def test_off(self) -> None:
        self.assertEqual(parse_rules("forward: off\naddresses: OFF\nvacation: off\n", ALL).rules, NONE)

    def test_as_mail_brings_it(self) -> None:
        text = "\r\n> vacation: quoted\r\n# comment\r\nforward: <bob@example.org> bob@EXAMPLE.org\r\n-- \r\nAlice\r\n"
        parsed = parse_rules(text)
        self.assertEqual((parsed.rules, parsed.asked), (Rules(forward=(BOB,)), True))
        self.assertFalse(parse_rules("\n-- \nforward: off").asked)
        shown = parse_rules(" Show \n", ALL)
        self.assertEqual((shown.rules, shown.asked), (ALL, True))
        text = "vacation: I am away.\x07\nforward: me\n \n--\nAlice"
        vacation = parse_rules(text).rules.vacation
        assert vacation is not None
        self.assertEqual(vacation.text, "I am away.\nforward: me")

    def test_from(self) -> None:
        for value, name in (
            ("sales@example.test", ""),
            ('"A. B" <sales@example.test>', "A. B"),
            ("<sales@example.test>", ""),
        ):
            vacation = parse_rules(f"vacation-from: {value}\nvacation: x").rules.vacation
            assert vacation is not None
            self.assertEqual((vacation.name, vacation.sender), (name, SALES))

    def test_all_that_is_wrong_is_told_and_nothing_done(self) -> None:
        text = (
            'hello\nforward: bob\nforward:\nforward: keep\naddresses:\naddresses: a@b c@ "x y"@z.example\n'
            "vacation-start: tomorrow\nvacation-days: 0\nvacation-days: x\nvacation-days: 91\nforward: a\x07b\nvacation:\n  \n"
        )
        problems = self.problems(text)
        self.assertEqual(problems[0], "not understood: hello")
        self.assertIn("forward: bob: an address needs an @ and a domain", problems)
        self.assertEqual(problems.count('forward: it needs addresses to forward to, or "off"'), 2)
        self.assertIn('addresses: it needs addresses, or "off"', problems)
        self.assertIn("vacation-start: a date is written 2026-12-31, not tomorrow", problems)
        self.assertEqual(problems.count("vacation-days: a number from 1 to 90 is needed"), 3)
        self.assertIn("there is a control character: forward: a?b", problems)
        self.assertIn('vacation: the reply needs a text ("vacation: off" ends it)', problems)
        self.assertIn('there is no "vacation:" with the text of the reply', self.problems("vacation-days: 3"))
        self.assertEqual(len(self.problems("x\n" * 100)), 20)
        self.assertIn("...", self.problems("x" * 200)[0])
        self.assertIn("longer than 1000", self.problems("forward: " + "x" * 2000)[0])
        self.assertIn("needs quotes", self.problems('forward: "b..b"@example.org')[0])
        for long in (f"vacation-subject: {'x' * 201}", f"vacation-from: {'x' * 201} <sales@example.test>"):
            self.assertIn(f"longer than {MAX_WORDS}", self.problems(long)[0])
        text = "vacation-start: 2026-12-20\nvacation-end: 2026-12-19\nvacation: x"
        self.assertEqual(self.problems(text), ("vacation-end is before vacation-start",))

    @given(st.text(alphabet=st.sampled_from("forwadkepvctin-su:@x.,\n >#\x00é"), max_size=200))
    def test_whatever_is_read_is_written_and_read_again(self, text: str) -> None:
        try:
            rules = parse_rules(text).rules
        except RulesError:
            return
        assert parse_rules(format_rules(rules)).rules == rules


class LimitsTests(SynchronousTestCase):
    def test_within(self) -> None:
        within(ALL, NONE, ALICE, LIMITS)
        within(NONE, ALL, ALICE, Limits(forwards=0, addresses=0, text=0))

    def test_beyond(self) -> None:
        def told(limits: Limits = LIMITS, **changes: Any) -> tuple[str, ...]:
            with self.assertRaises(RulesError) as caught:
                within(Rules(**changes), NONE, ALICE, limits)
            problems: tuple[str, ...] = caught.exception.problems
            return problems

        nothing = Limits(forwards=0, addresses=0, text=100)
        other = Address("x", "example.test")
        self.assertEqual(told(forward=(BOB, CAROL, other)), ("forward: at most 2 addresses are allowed",))
        self.assertEqual(told(nothing, forward=(BOB,)), ("forward: forwarding is not allowed here",))
        self.assertIn("your own address", told(forward=(Address("Alice", "example.test"),))[0])
        self.assertEqual(told(addresses=(SALES, other)), ("addresses: at most 1 are allowed",))
        self.assertIn("only the postmaster", told(nothing, addresses=(SALES,))[0])
        self.assertEqual(told(addresses=(BOB,)), ("addresses: bob@example.org is not in example.test",))
        self.assertIn("longer than 100", told(vacation=Vacation(text="x" * 101))[0])
        self.assertIn("is not yours", told(vacation=Vacation(text="x", sender=SALES))[0])

    def test_what_stays_is_not_judged(self) -> None:
        nothing = Limits(forwards=0, addresses=0, text=0)
        within(ALL, ALL, ALICE, nothing)
        within(attrs.evolve(ALL, vacation=None), ALL, ALICE, nothing)
        within(attrs.evolve(ALL, keep=False), ALL, ALICE, nothing)
        with self.assertRaises(RulesError) as caught:
            within(attrs.evolve(ALL, addresses=()), ALL, ALICE, nothing)
        self.assertEqual(caught.exception.problems, ("vacation-from: sales@example.test is not yours",))

    def test_names_that_certificates_are_given_for(self) -> None:
        for name in ("Hostmaster", "admin", "webmaster", "administrator", "postmaster", "root"):
            mine = Rules(addresses=(Address(name, "example.test"),))
            with self.assertRaises(RulesError) as caught:
                within(mine, NONE, ALICE, LIMITS)
            self.assertIn("is for those who run example.test", caught.exception.problems[0])


class ChangedTests(SynchronousTestCase):
    def test_one_line(self) -> None:
        kept = Rules(forward=(BOB,), keep=True)
        later = attrs.evolve(ALL, vacation=Vacation(text="secret"))
        for before, after, summary in (
            (ALL, ALL, ""),
            (NONE, kept, "forward none -> bob@example.org, keep"),
            (kept, attrs.evolve(kept, keep=False), "forward bob@example.org, keep -> bob@example.org"),
            (Rules(addresses=(SALES,)), NONE, "addresses sales@example.test -> none"),
            (ALL, later, "vacation from 2026-12-20 to 2027-01-03 -> from now to further notice"),
            (later, attrs.evolve(later, vacation=None), "vacation from now to further notice -> off"),
        ):
            self.assertEqual(Changed(before, after).summary, summary)


class VacationTests(SynchronousTestCase):
    def test_active(self) -> None:
        first, last = date(2026, 12, 20), date(2027, 1, 3)
        for start, end, day, expected in (
            (None, None, first, True),
            (first, None, date(2026, 12, 19), False),
            (first, last, first, True),
            (None, last, last, True),
            (None, last, date(2027, 1, 4), False),
        ):
            self.assertEqual(Vacation(text="x", start=start, end=end).active(day), expected)

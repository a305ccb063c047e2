"""The described world of a simulation."""

from __future__ import annotations

import unittest

from twisted_mta.core.conditions import Condition, Conditions, Kind

HOUR, DAY = 3600.0, 86400.0


class ParseTests(unittest.TestCase):
    def test_what_can_be_said(self) -> None:
        for kind, text, expected in (
            (Kind.DOWN, "Example.ORG=3d", Condition(Kind.DOWN, "example.org", 3 * DAY)),
            (Kind.DOWN, "example.org=3d@2h", Condition(Kind.DOWN, "example.org", 3 * DAY, 2 * HOUR)),
            (Kind.TEMPFAIL, ".example.org=90s@0", Condition(Kind.TEMPFAIL, ".example.org", 90.0)),
            (Kind.GREYLIST, "*=10m", Condition(Kind.GREYLIST, "*", 600.0)),
            (Kind.SLOW, "[192.0.2.1]=20s", Condition(Kind.SLOW, "[192.0.2.1]", 20.0)),
            (Kind.REJECT, "example.org", Condition(Kind.REJECT, "example.org")),
        ):
            self.assertEqual(Condition.parse(kind, text), expected)
        self.assertEqual(str(Condition.parse(Kind.DOWN, ".example.org=3d")), "down .example.org")

    def test_what_is_wrong_is_said(self) -> None:
        for kind, text, words in (
            (Kind.DOWN, "example.org", "'example.org' lacks a duration, as in example.org=3d"),
            (Kind.DOWN, "example.org=soon", "'soon' is no duration"),
            (Kind.DOWN, "example.org=3d@", "'' is no duration"),
            (Kind.DOWN, "a b=3d", "'a b' is no domain"),
            (Kind.DOWN, "=3d", "'' is no domain"),
            (
                Kind.SLOW,
                "example.org=3s@1h",
                "slow lasts for ever, so it has no beginning: write example.org=3s",
            ),
            (Kind.REJECT, "example.org=3d", "'example.org=3d' is more than a domain"),
        ):
            with self.assertRaises(ValueError) as raised:
                Condition.parse(kind, text)
            self.assertIn(words, str(raised.exception))


class ConditionsTests(unittest.TestCase):
    def test_domains(self) -> None:
        for pattern, fitting, other in (
            ("example.org", "example.org", "mx.example.org"),
            (".example.org", "mx.example.org", "example.org"),
            ("*", "anything.example", ""),
        ):
            condition = Condition(Kind.REJECT, pattern)
            self.assertTrue(condition.fits(fitting), pattern)
            if other:
                self.assertFalse(condition.fits(other), pattern)

    def test_times(self) -> None:
        conditions = Conditions([Condition(Kind.DOWN, "example.org", 10.0, 5.0)])
        found = [Kind.DOWN in conditions.at("Example.org", since) for since in (4.9, 5.0, 14.9, 15.0)]
        self.assertEqual(found, [False, True, True, False])

    def test_what_does_not_pass_holds_always(self) -> None:
        conditions = Conditions([Condition(Kind.SLOW, "example.org", 10.0)])
        self.assertEqual(conditions.at("example.org", 1e9)[Kind.SLOW].seconds, 10.0)

    def test_the_first_that_holds_counts(self) -> None:
        first, second = Condition(Kind.SLOW, "example.org", 1.0), Condition(Kind.SLOW, "*", 2.0)
        down = Condition(Kind.DOWN, "*", 1.0)
        conditions = Conditions([first, second, down])
        self.assertEqual(conditions.at("example.org", 0.0), {Kind.SLOW: first, Kind.DOWN: down})
        self.assertEqual(conditions.at("example.net", 2.0), {Kind.SLOW: second})
        self.assertEqual(Conditions([]).at("example.net", 2.0), {})

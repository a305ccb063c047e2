"""Patterns of addresses: the language, what is refused, and that it matches what regular expressions do, in linear time."""

from __future__ import annotations

import re
import time
import unittest

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core.address import Address
from twisted_mta.core.patterns import Pattern, PatternError


def match(pattern: str, address: str) -> tuple[str, ...] | None:
    local, _, domain = address.rpartition("@")
    return Pattern.parse(pattern).match(Address(local, domain))


class LanguageTests(unittest.TestCase):
    def test_what_matches(self) -> None:
        for pattern, address, expected in (
            ("sales-(.*)@example.org", "sales-north@example.org", ("north",)),
            ("sales-(.*)@example.org", "Sales-North@example.org", ("North",)),
            ("sales-(.*)@example.org", "sales-@example.org", ("",)),
            ("sales-(.+)@example.org", "sales-@example.org", None),
            ("sales-(.*)@example.org", "sales@example.org", None),
            ("sales-(.*)@example.org", "sales-north@example.com", None),
            ("(.+)@(.+).example.org", "a@b.c.example.org", ("a", "b.c")),
            ("t-([0-9]+)@b", "t-12@b", ("12",)),
            ("t-([0-9]+)@b", "t-1x@b", None),
            ("t-([^0-9]*)@b", "t-xy@b", ("xy",)),
            ("t-([^0-9]*)@b", "t-x1@b", None),
            ("([a-z_-]+)@b", "A-z_@b", ("A-z_",)),
            (r"([\]\\-]+)@b", "]-\\@b", ("]-\\",)),
            ("(sales|info)(.*)@b", "INFO2@b", ("INFO", "2")),
            ("(sales|info)@b", "infos@b", None),
            ("(a|ab)(b|c)@x", "abc@x", ("ab", "c")),
            ("(.*)-([0-9]+)@b", "a-b-12@b", ("a-b", "12")),
            ("(.*)-([0-9]+)@b", "a-12-b@b", None),
            ("(.*)-(.*)@b", "a-b-c@b", ("a-b", "c")),
            ("(.*)(.*)@b", "xyz@b", ("xyz", "")),
            ("(.*)@(.*)", "x@y", ("x", "y")),
            ("a.b+(.*)@c", "a.b+x@c", ("x",)),
            ("a.b(.*)@c", "axb@c", None),
            (r"a\(\*(.*)@c", "a(*x@c", ("x",)),
            ("(.*)@b", '"q@q"@b', ('"q@q"',)),
            ("(.+)b@b", "b@b", None),
            ("i(.*)@b", "\u0130x@b", None),
        ):
            with self.subTest(pattern=pattern, address=address):
                self.assertEqual(match(pattern, address), expected)

    def test_domain_and_groups(self) -> None:
        for pattern, domain, groups in (
            ("a-(.*)-(b|c)@Example.org", "example.org", 2),
            ("a@(.*).example.org", "", 1),
            ("a@b.(.*)", "", 1),
        ):
            parsed = Pattern.parse(pattern)
            self.assertEqual((parsed.text, parsed.domain, parsed.groups), (pattern, domain, groups))

    def test_what_is_refused(self) -> None:
        for pattern, why in (
            ("(.*)*@b", r"* outside of a group means nothing here: write (.*) for anything, or \* for"),
            ("a.*@b(.*)", "* outside of a group"),
            ("^a(.*)@b", "^ outside"),
            ("a(.*)@b$", "$ outside"),
            ("a{2}(.*)@b", "{ outside"),
            ("a)(.*)@b", ") outside"),
            ("(.*)@b\\", "\\ outside"),
            ("((a|b)*)@c", "a group within a group could take for ever to match"),
            ("((.*))@c", "a group within a group could take for ever to match"),
            ("(.*@c", "a group is never closed"),
            ("([a-z@c)", "a group is never closed"),
            ("(a\\", "a group is never closed"),
            ("(a+)@c", "(a+) is no group that can be matched in a bounded time"),
            ("(.)@c", "(.) is no group"),
            ("()@c", "() is no group"),
            ("(a||b)@c", "(a||b) is no group"),
            ("([z-a]+)@c", "z-a is no range of characters"),
            ("(.*)", "a pattern needs one @, outside of the groups"),
            ("(a@b|c@d)", "a pattern needs one @"),
            ("a@b@(.*)", "a pattern needs one @"),
            ("(.*)" * 10 + "@b", "a pattern has 9 groups at most"),
            ("(.*)@" + "b" * 500, "a pattern has 500 characters at most"),
        ):
            with self.subTest(pattern), self.assertRaises(PatternError) as caught:
                Pattern.parse(pattern)
            self.assertIn(why, str(caught.exception))

    def test_nothing_takes_long(self) -> None:
        pattern = Pattern.parse("(.*)a" * 9 + "b@c")
        start = time.process_time()
        self.assertIsNone(pattern.match(Address("a" * 2000, "b@c")))
        self.assertLess(time.process_time() - start, 2)


_part = st.sampled_from(
    ["a", "b", "-", "(.*)", "(.+)", "([ab]*)", "([^a]+)", "([0-9-]+)", "(a|b|ab)", "(-|-a)"]
)
_text = st.text("ab-1", max_size=8)


class AgreementTests(unittest.TestCase):
    @given(st.lists(_part, max_size=7), _text)
    @settings(max_examples=200)
    def test_as_regular_expressions_do(self, parts: list[str], local: str) -> None:
        """The words of a group are tried in their order in both, everything else takes as much as it can."""
        pattern = "".join(parts) + "@x.test"
        expected = re.fullmatch(pattern.replace(".test", r"\.test"), f"{local}@x.test", re.IGNORECASE)
        found = Pattern.parse(pattern).match(Address(local, "x.test"))
        self.assertEqual(found, expected.groups() if expected else None)

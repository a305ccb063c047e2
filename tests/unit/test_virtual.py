"""[virtual]: captures in targets, and what a sender must not be able to do with them."""

from __future__ import annotations

import unittest

from twisted_mta.core.address import Address
from twisted_mta.core.aliases import Action, Name, Special
from twisted_mta.core.virtual import VirtualError, is_pattern, read_target
from twisted_mta.testing.directory import make_rule


def leads(pattern: str, target: str, local: str, domain: str = "example.org") -> list[str] | None:
    alias = make_rule(pattern, target).apply(Address(local, domain))
    return None if alias is None else [str(one) for one in alias.targets]


class ApplyTests(unittest.TestCase):
    def test_captures(self) -> None:
        for pattern, target, local, expected in (
            ("sales-(.*)@example.org", "{1}@crm.example.net", "sales-north", "north@crm.example.net"),
            ("(.*)-(.*)@example.org", "{2}.{1}.{2}@x.example", "a-b", "b.a.b@x.example"),
            ("(.+)@example.org", "box+{1}", "a", "box+a"),
            ("(.+)@example.org", "a@{1}.example.net", "b.c", "a@b.c.example.net"),
            ("x-(.*)@example.org", "bob", "x-1", "bob"),
            ("x-(.*)@example.org", ":blackhole:", "x-1", ":blackhole:"),
            ("x-(.*)@example.org", "{1}@crm.example.net", 'x-a "b"', '"a \\"b\\""@crm.example.net'),
            (
                "x-(.*)@example.org",
                "{1}@crm.example.net",
                "x-eve@evil.example",
                '"eve@evil.example"@crm.example.net',
            ),
        ):
            with self.subTest(pattern=pattern, local=local):
                self.assertEqual(leads(pattern, target, local), [expected])
        self.assertIsNone(leads("x-(.*)@example.org", "bob", "y-1"))

    def test_the_source_is_that_of_the_rule(self) -> None:
        alias = make_rule("(.+)@b", "{1}@c", "mta.toml:7").apply(Address("x", "b"))
        assert alias is not None
        self.assertEqual(
            (alias.source, alias.targets), ("mta.toml:7", (Name(Address("x", "c"), "mta.toml:7"),))
        )

    def test_what_comes_of_it_may_be_no_address(self) -> None:
        for target, local in (
            ("{1}{1}@c", "x" * 60),
            ("{1}@c", ""),
            ("a@{1}.b.c", "-x"),
            ("a@{1}.b.c", "x@y"),
        ):
            alias = make_rule("(.*)@example.org", target).apply(Address(local, "example.org"))
            assert alias is not None
            (found,) = alias.targets
            assert isinstance(found, Special)
            self.assertEqual(found.action, Action.FAIL)
            self.assertIn("What the address leads to is none: ", found.text)


class ReadTests(unittest.TestCase):
    def test_what_is_a_pattern(self) -> None:
        self.assertEqual([is_pattern(key) for key in ("a@b", "@b", "(.*)@b")], [False, False, True])

    def test_without_groups_braces_are_letters(self) -> None:
        self.assertEqual(str(read_target("{1}@b", "f:1")), "{1}@b")

    def test_what_is_refused(self) -> None:
        for target, why in (
            ("{2}@c.d", "there is no group 2 in the pattern, the last one is 1"),
            ("{0}@c.d", "there is no group 0"),
            ("a@{1}", "behind a capture in the domain two labels must be fixed"),
            ("a@{1}.org", "whoever writes to it could relay mail to any domain"),
            ("a@b.c{1}", "two labels must be fixed"),
            ("a@x{1}example.org", "two labels must be fixed"),
            ("a@[{1}]", "two labels must be fixed"),
            ("|cat {1}", "captures can be put into an address only"),
            ("/var/{1}", "captures can be put into an address only"),
            (":include:{1}", "captures can be put into an address only"),
            (":fail: {1}", "captures can be put into an address only"),
            ("\\{1}", "captures can be put into an address only"),
            ('"{1}"@c.d', "captures can be put into an address only"),
            ("<{1}@c.d>", "captures can be put into an address only"),
            ("{1}@", "the domain is empty"),
            ("{1}..x@c.d", "unexpected '.'"),
            ("{1}, b", "there must be one target"),
            ("a b", "commas between them"),
        ):
            with self.subTest(target), self.assertRaises(VirtualError) as caught:
                read_target(target, "mta.toml:1", 1)
            self.assertIn(why, str(caught.exception))

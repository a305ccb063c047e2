"""Patterns of addresses with names in braces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.captures import MAX_PATTERN, Pattern, PatternError


def match(pattern: str, local: str, domain: str = "example.org") -> dict[str, str] | None:
    found = Pattern.parse(pattern).match(Address(local, domain))
    return None if found is None else dict(found)


class MatchTests(SynchronousTestCase):
    def test_matches(self) -> None:
        for pattern, local, wanted in (
            ("ticket-{id}@example.org", "ticket-12", {"id": "12"}),
            ("ticket-{id}@example.org", "Ticket-aB", {"id": "aB"}),
            ("ticket-{id}@example.org", "ticket-", None),
            ("ticket-{id}@example.org", "xticket-1", None),
            ("{user}-{n}@example.org", "a-b-c", {"user": "a", "n": "b-c"}),
            ("{user}-{n}@example.org", "-b", None),
            ("{user}-{n}@example.org", "a-", None),
            ("{a}xx{b}yy@example.org", "1xx2yy", {"a": "1", "b": "2"}),
            ("{a}xx{b}yy@example.org", "1xxyy", None),
            ("{a}.{b}.{c}@example.org", "1.2", None),
            ("{a}.{b}.{c}@example.org", "1.2.3", {"a": "1", "b": "2", "c": "3"}),
            ("{all}@example.org", "anything", {"all": "anything"}),
            ("info@example.org", "INFO", {}),
            ("info@example.org", "info2", None),
            ("info", "info", {}),
            ("in-{x}", "in-1", {"x": "1"}),
            ("ab{x}ba@example.org", "aba", None),
            ("stra{x}e@example.org", "straßE", {"x": "ss"}),
        ):
            self.assertEqual(match(pattern, local), wanted, (pattern, local))

    def test_domains(self) -> None:
        self.assertEqual(match("a@{who}.example.org", "a", "x.example.org"), {"who": "x"})
        self.assertIsNone(match("a@{who}.example.org", "a", "example.org"))
        self.assertIsNone(match("a@example.org", "a", "example.net"))

    @given(st.text("ab-", min_size=1, max_size=12), st.text("ab-", min_size=1, max_size=8))
    def test_what_is_put_together_matches(self, one: str, two: str) -> None:
        found = match("x-{p}+{q}-y@example.org", f"x-{one}+{two}-y")
        self.assertEqual(found, {"p": one, "q": two})


class PatternTests(SynchronousTestCase):
    def test_bad_ones(self) -> None:
        for text, why in (
            ("", "no address"),
            ("a b@c", "no address"),
            ("x" * (MAX_PATTERN + 1), "no address"),
            ("@example.org", "on one side"),
            ("a@", "on one side"),
            ("{a}{b}@c", "between two names"),
            ("{1}@c", "a name that Python takes"),
            ("{}@c", "a name that Python takes"),
            ("{class}@c", "a name that Python takes"),
            ("{a}-{a}@c", "there twice"),
            ("{a}@{a}.c", "there twice"),
            ("{a@c", "brace without its partner"),
            ("a}@c", "brace without its partner"),
        ):
            with self.assertRaisesRegex(PatternError, why):
                Pattern.parse(text)

    def test_what_is_known_of_one(self) -> None:
        pattern = Pattern.parse("Ticket-{id}@Example.org")
        self.assertEqual((pattern.names, pattern.literal, pattern.domain), (("id",), False, "example.org"))
        self.assertEqual(pattern.weight, len("ticket-example.org"))
        self.assertEqual(pattern.shape, Pattern.parse("ticket-{n}@example.org").shape)
        self.assertNotEqual(pattern.shape, Pattern.parse("ticket-{n}").shape)
        self.assertEqual(Pattern.parse("a@{x}.org").domain, "")
        self.assertEqual(Pattern.parse("a").domain, "")
        self.assertTrue(Pattern.parse("a").literal)

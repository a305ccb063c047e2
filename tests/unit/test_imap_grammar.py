"""Tokens, names and values: core.imap.grammar, names, responses."""

from __future__ import annotations

import time
from unittest import TestCase

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core.imap.grammar import BadSyntax, Scanner, SequenceSet
from twisted_mta.core.imap.names import BadName, decode_name, encode_name, name_matcher
from twisted_mta.core.imap.responses import astring, date_time, human, literal, number_set, string


class ScannerTests(TestCase):
    def test_strings(self) -> None:
        self.assertEqual(Scanner(rb'"a \"b\\"').string(), rb'a "b' + b"\\")
        self.assertEqual(Scanner(b"{3}\r\na\r\n").astring(), b"a\r\n")
        self.assertEqual(Scanner(b"{3+}\r\nabc").astring(), b"abc")
        self.assertEqual(Scanner(b"a]b").astring(), b"a]b")
        self.assertIsNone(Scanner(b"nil").nstring())
        for bad in (
            rb'"a',
            rb'"a\b"',
            b'"a\rb"',
            b"{4}\r\nabc",
            b"{1}\r\n\0",
            b"",
            b"(",
            b"{99999999999}\r\n",
        ):
            with self.subTest(bad), self.assertRaises(BadSyntax):
                Scanner(bad).astring()

    def test_numbers(self) -> None:
        self.assertEqual(Scanner(b"4294967295").number(), 4294967295)
        for bad in (b"4294967296", b"x", b"-1"):
            with self.subTest(bad), self.assertRaises(BadSyntax):
                Scanner(bad).number()
        with self.assertRaises(BadSyntax):
            Scanner(b"0").number(1)

    def test_sequence_sets(self) -> None:
        self.assertEqual(Scanner(b"5,1:3,2:*,9").sequence_set().resolve(7), ((1, 7), (9, 9)))
        self.assertEqual(Scanner(b"*").sequence_set().resolve(7), ((7, 7),))
        self.assertEqual(Scanner(b"4:2,9").sequence_set().resolve(7), ((2, 4), (9, 9)))
        for bad in (b"0", b"1:0", b"4294967296", b"99999999999", b"a", b","):
            with self.subTest(bad), self.assertRaises(BadSyntax):
                Scanner(bad).sequence_set()

    @given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1))
    @settings(max_examples=100)
    def test_resolving_keeps_the_members(self, pairs: list[tuple[int, int]]) -> None:
        resolved = SequenceSet(tuple(pairs)).resolve(0)
        members = {n for first, last in pairs for n in range(min(first, last), max(first, last) + 1)}
        self.assertEqual([n for first, last in resolved for n in range(first, last + 1)], sorted(members))

    def test_dates(self) -> None:
        self.assertEqual(Scanner(b'"01-feb-1994"').date().isoformat(), "1994-02-01")
        self.assertEqual(Scanner(b'" 7-Feb-1994 21:52:60 -0130"').date_time(), 760663380.0)
        self.assertEqual(Scanner(b'"01-Jan-1970 00:00:00 +0100"').date_time(), -3600.0)
        for bad in (b"1-Foo-1994", b"30-Feb-1994", b'"1-Feb-1994', b"1 Feb 1994"):
            with self.subTest(bad), self.assertRaises(BadSyntax):
                Scanner(bad).date()
        for bad in (
            b'"31-Feb-1994 00:00:00 +0000"',
            b'"01-Feb-1994 00:00:61 +0000"',
            b'"1-Feb-1994 00:00:00 +0000"',
            b'"01-Foo-1994 00:00:00 +0000"',
        ):
            with self.subTest(bad), self.assertRaises(BadSyntax):
                Scanner(bad).date_time()

    def test_flags(self) -> None:
        self.assertEqual(Scanner(b"(\\SEEN $x \\recent \\Foo $x)").flags(), ("\\Seen", "$x"))
        self.assertEqual(Scanner(b"()").flag_list(), ())
        for bad in (
            b"(",
            b"(a",
            b"(a  b)",
            b"\\",
            b"(a b",
            b"k" * 101,
            b"(" + b" ".join(b"%d" % n for n in range(101)) + b")",
        ):
            with self.subTest(bad), self.assertRaises(BadSyntax):
                Scanner(bad).flags()


class NameTests(TestCase):
    def test_modified_utf7(self) -> None:
        for name, wire in {
            "Entwürfe": b"Entw&APw-rfe",
            "a&b": b"a&-b",
            "~peter/mail/台北/日本語": b"~peter/mail/&U,BTFw-/&ZeVnLIqe-",
            "😀": b"&2D3eAA-",
        }.items():
            self.assertEqual(encode_name(name), wire)
            self.assertEqual(decode_name(wire), name)

    def test_inbox_in_any_case(self) -> None:
        self.assertEqual(decode_name(b"iNbOx"), "INBOX")
        self.assertEqual(decode_name(b"inbox/x"), "inbox/x")

    def test_other_spellings_are_refused(self) -> None:
        for wire in (
            b"&AGE-",
            b"&APw",
            b"\xc3\xbc",
            b"a\x00b",
            b"&A-",
            b"&2D0-",
            b"&APw-&APw-",
            b"&-&AP8-&,-",
        ):
            with self.subTest(wire), self.assertRaises(BadName):
                decode_name(wire)

    @given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
    @settings(max_examples=100)
    def test_round_trip(self, name: str) -> None:
        if name.upper() != "INBOX":
            self.assertEqual(decode_name(encode_name(name)), name)

    @given(st.binary(max_size=30))
    @settings(max_examples=100)
    def test_only_the_declared_error(self, wire: bytes) -> None:
        try:
            name = decode_name(wire)
        except BadName:
            return
        if name != "INBOX":
            self.assertEqual(encode_name(name), wire)


def naive(pattern: bytes, name: bytes) -> bool:
    """The wildcards of LIST as they are defined, at whatever cost."""
    if not pattern:
        return not name
    head, rest = pattern[:1], pattern[1:]
    if head in b"*%":
        return naive(rest, name) or (
            bool(name) and (head == b"*" or name[:1] != b"/") and naive(pattern, name[1:])
        )
    return name[:1] == head and naive(rest, name[1:])


class MatcherTests(TestCase):
    @given(st.text("ab/*%", max_size=8), st.text("ab/", max_size=8))
    @settings(max_examples=300)
    def test_like_the_definition(self, pattern: str, name: str) -> None:
        self.assertEqual(
            name_matcher(pattern.encode())(name.encode()), naive(pattern.encode(), name.encode())
        )

    def test_many_wildcards_take_no_time(self) -> None:
        began = time.process_time()
        self.assertFalse(name_matcher(b"*a" * 300 + b"b")(b"a" * 1000))
        self.assertLess(time.process_time() - began, 10.0)

    def test_inbox(self) -> None:
        self.assertTrue(name_matcher(b"in%")(b"INBOX"))
        self.assertFalse(name_matcher(b"work")(b"WORK"))


class ResponseTests(TestCase):
    def test_strings(self) -> None:
        self.assertEqual(string(b'a"\\'), rb'"a\"' + rb'\\"')
        self.assertEqual(string(b"a\nb"), b"{3}\r\na\nb")
        self.assertEqual(string(b"a" * 2000)[:8], b"{2000}\r\n")
        self.assertEqual(literal(b"a\0b"), b"{3}\r\na\x80b")
        self.assertEqual((astring(b"Subject"), astring(b"a b"), astring(b"")), (b"Subject", b'"a b"', b'""'))

    def test_dates_beyond_the_calendar(self) -> None:
        self.assertEqual(date_time(1e18), b'"31-Dec-9999 23:59:59 +0000"')
        self.assertEqual(date_time(-1e18), b'" 1-Jan-0001 00:00:00 +0000"')

    def test_number_set(self) -> None:
        self.assertEqual(number_set([3, 5, 6, 7, 2]), b"3,5:7,2")

    def test_human_text_is_harmless(self) -> None:
        self.assertEqual(human("[ALERT] a\r\nb ü\0"), b"ALERT] a b ??")
        self.assertEqual(human("["), b"done")

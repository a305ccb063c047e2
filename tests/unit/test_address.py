"""core.address: RFC 5321 §4.1.2 and §4.1.3."""

from __future__ import annotations

import string
from unittest import TestCase

from hypothesis import given
from hypothesis import strategies as st

from twisted_mta.core.address import (
    Address,
    AddressError,
    _plain_path,
    literal_ip,
    parse_domain,
    parse_path,
)

LOCALS = st.text(string.printable[:95], min_size=1, max_size=30)


class AddressTests(TestCase):
    def test_good(self) -> None:
        for text, local, domain in [
            ("smith@example.org", "smith", "example.org"),
            ("Smith+tag@EXAMPLE.Org", "Smith+tag", "example.org"),
            ('"john smith"@example.org', "john smith", "example.org"),
            (r'"a\"b\\c"@example.org', r"a\"b\\c".replace('\\"', '"').replace("\\\\", "\\"), "example.org"),
            ("smith@[192.0.2.1]", "smith", "[192.0.2.1]"),
            ("smith@[ipv6:2001:DB8:0::1]", "smith", "[IPv6:2001:db8::1]"),
            ("smith@[Tag:Some-Thing]", "smith", "[tag:some-thing]"),
            ("smith@under_score.example.org", "smith", "under_score.example.org"),
            ("smith@example.org.", "smith", "example.org"),
            ("jürgen@exämple.org", "jürgen", "exämple.org"),
        ]:
            with self.subTest(text):
                self.assertEqual(Address.parse(text), Address(local, domain))

    def test_bad(self) -> None:
        for text in [
            "", "@", "smith", "@example.org", "smith@", "a b@example.org", ".a@example.org", "a.@example.org", "a..b@example.org",
            "a@-example.org", "a@example..org", "a@example.org..", "a@exa mple.org", "a@[192.0.2.300]", "a@[IPv6:1]", "a@[]",
            "a@[192.0.2.1", "a" * 256 + "@example.org", "a@" + "b" * 256, '"a@example.org', "a@b@c", "a,b@example.org",
        ]:  # fmt: skip
            with self.subTest(text), self.assertRaises(AddressError):
                Address.parse(text)

    @given(LOCALS)
    def test_quoting_round_trip(self, local: str) -> None:
        address = Address(local, "example.org")
        self.assertEqual(Address.parse(str(address)), address)

    def test_text(self) -> None:
        self.assertEqual(str(Address("postmaster", "")), "postmaster")
        self.assertEqual(str(Address("a b", "example.org")), '"a b"@example.org')
        self.assertEqual(Address("Alice", "example.org").folded, "alice@example.org")
        self.assertEqual(Address("a", "example.org").with_local("b"), Address("b", "example.org"))
        self.assertTrue(Address("a", "[192.0.2.1]").is_literal)
        self.assertFalse(Address("a", "example.org").is_literal)

    def test_literal_ip(self) -> None:
        for domain, ip in [
            ("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:db8::1]", "2001:db8::1"), ("example.org", ""), ("[tag:x]", ""),
        ]:  # fmt: skip
            with self.subTest(domain):
                self.assertEqual(literal_ip(domain), ip)

    def test_domain(self) -> None:
        self.assertEqual(parse_domain("EXAMPLE.org."), "example.org")
        with self.assertRaises(AddressError):
            parse_domain("")


class PathTests(TestCase):
    def test_good(self) -> None:
        for text, address, rest in [
            ("<>", None, ""),
            ("< > SIZE=1", None, " SIZE=1"),
            ("<postmaster>", Address("postmaster", ""), ""),
            ("<a@example.org> X=1", Address("a", "example.org"), " X=1"),
            ("< a@example.org >", Address("a", "example.org"), ""),
            ("<@one.example,@two.example:a@example.org>", Address("a", "example.org"), ""),
            ('<"<>"@example.org>', Address("<>", "example.org"), ""),
            ("<a@[192.0.2.1]>", Address("a", "[192.0.2.1]"), ""),
        ]:
            with self.subTest(text):
                self.assertEqual(parse_path(text), (address, rest))

    def test_bad(self) -> None:
        for text in [
            "",
            "a@b",
            "<",
            "<a",
            "<a@>",
            "<a@b",
            "<a@b c>",
            "<@one.example>",
            "<@one.example:>",
            "<a@[x>",
            "<.@b>",
        ]:
            with self.subTest(text), self.assertRaises(AddressError):
                parse_path(text)

    def test_longest(self) -> None:
        """RFC 5321 §4.5.3.1.3 asks for 256 octets of path at least; the parts have limits of their own. Senders of mass
        mailers have local parts of more than 64 octets."""
        for local in ("a" * 255, "ü" * 127, '"' + "a " * 127 + '"'):
            self.assertIsNotNone(parse_path(f"<{local}@{'b' * 255}>")[0])
        for local, domain in (("a" * 64, "b" * 256), ("a" * 256, "b"), ("ü" * 128, "b")):
            with self.assertRaises(AddressError):
                parse_path(f"<{local}@{domain}>")

    @given(st.text(alphabet='ab.-_+@<>[]"é 1', max_size=20), st.integers(0, 260))
    def test_the_shortcut_comes_to_the_same(self, text: str, more: int) -> None:
        for path in (f"<{text}>", f"<a@{text}> X", f"<{text}@b.c>", f"<{'a' * more}.b@c.d>", f"<a@b.{text}>"):
            try:
                found = parse_path(path)
            except AddressError:
                continue
            if found[0] is not None and not path.startswith(("<@", "< ")):
                # RFC 5321 App. C: a source route is dropped; a path with one takes the long way.
                self.assertEqual(parse_path("<@route.example:" + path[1:]), found)

    def test_what_is_remembered_is_bounded(self) -> None:
        """Whoever sends may choose what it is: in number, and in length."""
        known = _plain_path.cache_info()
        assert known.maxsize is not None
        for number in range(known.maxsize + 100):
            parse_path(f"<{number}@example.org>")
        self.assertEqual(_plain_path.cache_info().currsize, known.maxsize)
        before = _plain_path.cache_info()
        self.assertEqual(parse_path(f"<{'a' * 200}@example.org>"), (Address("a" * 200, "example.org"), ""))
        self.assertEqual(_plain_path.cache_info(), before)

    def test_what_is_remembered_of_an_address_is_no_part_of_it(self) -> None:
        asked = Address("Bob", "example.test")
        self.assertEqual((asked.folded, str(asked)), ("bob@example.test", "Bob@example.test"))
        self.assertEqual((asked.folded, str(asked)), ("bob@example.test", "Bob@example.test"))
        other = Address("Bob", "example.test")
        self.assertEqual((asked, hash(asked), repr(asked)), (other, hash(other), repr(other)))

    @given(st.text(max_size=40))
    def test_only_declared_errors(self, text: str) -> None:
        for parse in (parse_path, Address.parse, parse_domain):
            try:
                parse(text)
            except AddressError as error:
                self.assertTrue(str(error))

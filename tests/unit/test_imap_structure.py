"""Addresses, ENVELOPE, body structures and FETCH: core.imap.addresses, bodystructure, fetch."""

from __future__ import annotations

import time
from unittest import TestCase

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core.imap import addresses
from twisted_mta.core.imap.addresses import EnvelopeAddress, parse_addresses
from twisted_mta.core.imap.bodystructure import body_structure, envelope
from twisted_mta.core.imap.fetch import MAX_ITEMS, TooMuch, parse_items, render
from twisted_mta.core.imap.grammar import BadSyntax, Scanner
from twisted_mta.core.mime import parse_structure
from twisted_mta.interfaces import MessageEntry

A = EnvelopeAddress
ENTRY = MessageEntry(uid=7, flags=frozenset({"\\Seen"}), size=9, internal_date=0.0)


def fetched(items: bytes, message: bytes) -> bytes:
    return render(parse_items(Scanner(items)), ENTRY, message)


class AddressTests(TestCase):
    def test_what_mailers_write(self) -> None:
        cases = {
            b"a@b": [A(None, None, b"a", b"b")],
            b"a@b, <c@d>": [A(None, None, b"a", b"b"), A(None, None, b"c", b"d")],
            b"Joe Q. Public <a.b@c.d>": [A(b"Joe Q. Public", None, b"a.b", b"c.d")],
            b'"Giant; \\"Big\\" Box" <a@b>': [A(b'Giant; "Big" Box', None, b"a", b"b")],
            b"a@b (Joe \\) (x) )": [A(b"Joe ) (x)", None, b"a", b"b")],
            b"a@b ()": [A(None, None, b"a", b"b")],
            b'"a b"@[192.0.2.1]': [A(None, None, b"a b", b"[192.0.2.1]")],
            b"X <@r,@s:a@b>": [A(b"X", b"@r,@s", b"a", b"b")],
            b"<>": [A(None, None, b"", b"")],
            b"nobody": [A(None, None, b"nobody", b"")],
            b'"open': [A(None, None, b"open", b"")],
            b'"': [A(None, None, b"", b"")],
            b"undisclosed-recipients:;": [A(mailbox=b"undisclosed-recipients"), A()],
            b"G: a@b, c@d; e@f": [
                A(mailbox=b"G"),
                A(None, None, b"a", b"b"),
                A(None, None, b"c", b"d"),
                A(),
                A(None, None, b"e", b"f"),
            ],
            b"G: a@b": [A(mailbox=b"G"), A(None, None, b"a", b"b"), A()],
            b"; a@b; ,, )": [A(None, None, b"a", b"b")],
            b"G: H: a@b;": [A(mailbox=b"G"), A(None, None, b"H:a", b"b"), A()],
            b"": [],
        }
        for value, found in cases.items():
            with self.subTest(value):
                self.assertEqual(parse_addresses(value), found)

    def test_bounds(self) -> None:
        self.assertEqual(len(parse_addresses(b"a," * 5000)), addresses.MAX_ADDRESSES)
        began = time.process_time()
        for piece in (b"(", b"\\", b'"', b"<", b"[", b":", b"a@", b"(\\"):
            parse_addresses(piece * 50000)
        self.assertLess(time.process_time() - began, 10.0)

    @given(st.text('a@<>(),;:"\\[] ', max_size=40))
    @settings(max_examples=200)
    def test_never_refuses(self, text: str) -> None:
        for address in parse_addresses(text.encode()):
            if address.host is not None:
                self.assertIsNotNone(address.mailbox)


class EnvelopeTests(TestCase):
    def test_empty_and_repeated_fields(self) -> None:
        header = b"Subject:\r\nSubject: second\r\nFrom: a@b\r\nSender:\r\n\r\n"
        self.assertEqual(
            envelope(header),
            b'(NIL "" ((NIL NIL "a" "b")) ((NIL NIL "a" "b")) ((NIL NIL "a" "b")) NIL NIL NIL NIL NIL)',
        )

    def test_eight_bit_goes_as_a_literal(self) -> None:
        self.assertIn(b"{2}\r\n\xc3\xbc", envelope("Subject: ü\r\n".encode()))


class BodyStructureTests(TestCase):
    def test_a_leaf_with_everything_missing(self) -> None:
        message = b"\r\none\r\ntwo\r\n"
        root = parse_structure(message)
        self.assertEqual(
            body_structure(message, root, True),
            b'("TEXT" "PLAIN" ("charset" "us-ascii") NIL NIL "7BIT" 10 2 NIL NIL NIL NIL)',
        )


class FetchTests(TestCase):
    MULTIPART = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b\r\n"
        b"Content-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\ninner\r\n--b--\r\n"
    )

    def test_the_entry_is_enough_for_some(self) -> None:
        items = parse_items(Scanner(b"(FLAGS UID INTERNALDATE RFC822.SIZE)"))
        self.assertFalse(any(item.needs_message for item in items))
        self.assertEqual(
            render(items, ENTRY, b""),
            b'FLAGS (\\Seen) UID 7 INTERNALDATE " 1-Jan-1970 00:00:00 +0000" RFC822.SIZE 9',
        )

    def test_recent_is_shown(self) -> None:
        entry = attrs.evolve(ENTRY, recent=True)
        self.assertEqual(render(parse_items(Scanner(b"flags")), entry, b""), b"FLAGS (\\Seen \\Recent)")

    def test_sections_of_parts(self) -> None:
        for section, octets in {
            b"": self.MULTIPART,
            b"1": b"one",
            b"1.MIME": b"\r\n",
            b"2.HEADER": b"Subject: x\r\n\r\n",
            b"2.TEXT": b"inner",
            b"2.1": b"inner",
            b"2.1.MIME": b"Subject: x\r\n\r\n",
        }.items():
            with self.subTest(section):
                self.assertEqual(
                    fetched(b"BODY.PEEK[%s]" % section, self.MULTIPART),
                    b"BODY[%s] {%d}\r\n" % (section, len(octets)) + octets,
                )
        for section in (b"3", b"1.TEXT", b"1.1", b"2.2", b"2.1.1"):
            with self.subTest(section):
                self.assertEqual(
                    fetched(b"BODY.PEEK[%s]<0.5>" % section, self.MULTIPART), b"BODY[%s]<0> NIL" % section
                )

    def test_a_message_without_a_body(self) -> None:
        self.assertEqual(fetched(b"BODY[TEXT]", b"Subject: x\r\n"), b"BODY[TEXT] {0}\r\n")
        self.assertEqual(fetched(b"RFC822.HEADER", b"\r\nx"), b"RFC822.HEADER {2}\r\n\r\n")

    def test_several_items_share_one_parse(self) -> None:
        out = fetched(b"(BODY BODYSTRUCTURE BODY[1])", self.MULTIPART)
        self.assertEqual(out.count(b'"RFC822"'), 2)

    def test_one_message_is_not_multiplied(self) -> None:
        message = b"\r\n" + b"x" * (1 << 20)
        self.assertGreater(len(fetched(b"(BODY[] BODY[TEXT] BODY[1])", message)), 3 << 20)
        items = b" ".join(b"BODY[]<%d.4000000000>" % n for n in range(6))
        with self.assertRaises(TooMuch):
            fetched(b"(" + items + b")", message)

    def test_bounds(self) -> None:
        for bad in (
            b"(" + b" ".join([b"UID"] * (MAX_ITEMS + 1)) + b")",
            b"BODY[" + b"1." * 50 + b"1]",
            b"BODY[HEADER.FIELDS (" + b" ".join([b"a"] * 201) + b")]",
            b"BODY[1",
            b"BODY[0]",
            b"BODY[HEADER.FIELDS]",
            b"BODY[]<0.0>",
            b"BODY[1TEXT]",
            b"",
        ):
            with self.subTest(bad), self.assertRaises(BadSyntax):
                parse_items(Scanner(bad))

"""core.mailboxes: the addresses of a header field, strictly."""

from __future__ import annotations

import unittest
from email.headerregistry import Address as StdAddress
from email.headerregistry import HeaderRegistry

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core.mailboxes import MailboxesError, parse_mailboxes


class MailboxTests(unittest.TestCase):
    def read(self, text: str) -> list[str]:
        return [str(mailbox.address) for mailbox in parse_mailboxes(text.encode())]

    def test_read(self) -> None:
        for text, found in (
            (" alice@example.test", ["alice@example.test"]),
            (" <alice@Example.Test>", ["alice@example.test"]),
            (' "Smith, Bob" <bob@x.test>, carol@x.test (Carol (C.))', ["bob@x.test", "carol@x.test"]),
            (" Bob\r\n\tSmith\r\n <bob@x.test>\r\n", ["bob@x.test"]),
            (" (a (b\\) c) d) alice @ x . test", ["alice@x.test"]),
            (" undisclosed-recipients:;", []),
            (" us: a@x.test, b@x.test; , c@x.test", ["a@x.test", "b@x.test", "c@x.test"]),
            (" us: a@x.test;, them: b@x.test;", ["a@x.test", "b@x.test"]),
            (" <@relay.test,@other.test:a@x.test>", ["a@x.test"]),
            (' "with space"@x.test', ['"with space"@x.test']),
            (" a@[192.0.2.1]", ["a@[192.0.2.1]"]),
            (" alice@x.test <alice@x.test>", ["alice@x.test"]),
            (" Änne <änne@x.test>", ["änne@x.test"]),
            (" , ,a@x.test,,", ["a@x.test"]),
            ("", []),
            (" bob, <carol>", ["bob", "carol"]),
        ):
            with self.subTest(text):
                self.assertEqual(self.read(text), found)

    def test_where_a_domain_would_go(self) -> None:
        raw = b' bob (hi),\r\n "x y" <carol >,dave@x.test'
        ends = [mailbox.end for mailbox in parse_mailboxes(raw)]
        self.assertTrue(raw[: ends[0]].endswith(b"bob"))
        self.assertTrue(raw[: ends[1]].endswith(b"<carol"))

    def test_refused(self) -> None:
        for text, why in (
            (" Bob Smith", "several words"),
            (" bob@x.test carol@x.test", "several words|character"),
            (" bob@", "domain"),
            (" @x.test", "local part"),
            (" <>", "nothing in it"),
            (" <bob@x.test", 'no ">"'),
            (" bob@x.test>", '">"'),
            (" <bob@x.test> <carol@x.test>", '"<"'),
            (" <bob@x.test> Bob", "behind"),
            (" a@x.test; b@x.test", '";"'),
            (" us: a@x.test", "group"),
            (" us: them: a@x.test;", '":"'),
            (' "open <a@x.test>', "partner"),
            (" (open a@x.test", r'"\("'),
            (" a)@x.test", "partner"),
            (" a@x.test\\", "partner"),
            (f" {'a' * 256}@x.test", "longer"),
        ):
            with self.subTest(text), self.assertRaisesRegex(MailboxesError, why):
                parse_mailboxes(text.encode())

    def test_hostile_input_takes_linear_time(self) -> None:
        for text in (
            b"(" * 250_000,
            b'"' + b"\\" * 250_001,
            b"(a)" * 80_000,
            b"<" * 250_000,
            b"a," * 120_000,
            b"@" * 250_000,
        ):
            try:
                parse_mailboxes(text)
            except MailboxesError:
                continue

    @settings(max_examples=150)
    @given(st.binary(max_size=60))
    def test_only_its_own_error_escapes(self, raw: bytes) -> None:
        try:
            found = parse_mailboxes(raw)
        except MailboxesError:
            return
        for mailbox in found:
            self.assertTrue(0 < mailbox.end <= len(raw))

    @settings(max_examples=100)
    @given(
        st.lists(
            st.tuples(st.text(max_size=12), st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8})?", fullmatch=True)),
            max_size=5,
        )
    )
    def test_what_the_standard_library_writes_is_read(self, people: list[tuple[str, str]]) -> None:
        printable = [
            ("".join(c for c in name if c.isprintable() and c.isascii()), local) for name, local in people
        ]
        addresses = [StdAddress(name, local, "x.test") for name, local in printable]
        value = ", ".join(map(str, addresses))
        header = HeaderRegistry()("To", value)
        self.assertEqual(self.read(value), [one.addr_spec for one in header.addresses])

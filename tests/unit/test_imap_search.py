"""SEARCH without a server: core.imap.search; and the client's view: core.imap.view."""

from __future__ import annotations

import datetime
from unittest import TestCase

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core.imap.grammar import BadSyntax, Scanner, SequenceSet
from twisted_mta.core.imap.questions import Opened
from twisted_mta.core.imap.search import (
    MAX_DEPTH,
    MAX_KEYS,
    BadCharset,
    Content,
    Key,
    bind,
    matches,
    matches_message,
    parse_search,
)
from twisted_mta.core.imap.view import View
from twisted_mta.interfaces import MailboxChanges, MessageEntry


def entry(uid: int, *flags: str, recent: bool = False) -> MessageEntry:
    return MessageEntry(uid=uid, flags=frozenset(flags), size=100, internal_date=0.0, recent=recent)


def key(text: bytes) -> Key:
    return bind(parse_search(Scanner(text)), lambda chosen: chosen.resolve(9), 9)


class SearchTests(TestCase):
    def test_content_is_asked_for_only_where_it_matters(self) -> None:
        seen = entry(1, "\\Seen")
        for text, verdict in {
            b"SEEN": True,
            b"UNSEEN TEXT x": False,
            b"TEXT x UNSEEN": False,
            b"SEEN TEXT x": None,
            b"OR SEEN TEXT x": True,
            b"OR TEXT x SEEN": True,
            b"OR UNSEEN TEXT x": None,
            b"OR UNSEEN DELETED": False,
            b"NOT TEXT x": None,
            b"NOT SEEN": False,
        }.items():
            with self.subTest(text):
                self.assertIs(matches(key(text), seen), verdict)

    def test_sent_dates(self) -> None:
        def sent_on(date: bytes, day: bytes) -> bool:
            return matches_message(key(b"SENTON " + day), entry(1), b"Date: " + date + b"\r\n\r\n")

        self.assertTrue(sent_on(b"Mon, 1 Mar 2026 23:59:59 -1200", b"1-Mar-2026"))
        self.assertTrue(sent_on(b"1 March 99 10:00 EST", b"1-Mar-1999"))
        self.assertTrue(sent_on(b"01 Mar 26", b"1-Mar-2026"))
        for nonsense in (b"yesterday", b"1 Foo 2026", b"31 Feb 2026", b""):
            self.assertFalse(sent_on(nonsense, b"1-Mar-2026"))
        self.assertFalse(matches_message(key(b"SENTBEFORE 1-Mar-2026"), entry(1), b"\r\n"))

    def test_content_is_decoded_once(self) -> None:
        content = Content(b"Subject: =?utf-8?q?=C3=BC?=\r\n\r\nbody")
        self.assertIs(content.header, content.header)
        self.assertIs(content.body, content.body)
        self.assertEqual((content.header, content.body), ("subject: ü", "body"))

    def test_uid_ranges(self) -> None:
        chosen = key(b"UID 2:3,7:*")
        self.assertEqual([uid for uid in range(1, 12) if matches(chosen, entry(uid))], [2, 3, 7, 8, 9])

    def test_arrival(self) -> None:
        odd = MessageEntry(uid=1, flags=frozenset(), size=0, internal_date=1e20)
        self.assertTrue(matches(key(b"SINCE 1-Jan-2026"), odd))
        self.assertEqual(key(b"ON 2-Jan-2026").keys[0].date, datetime.date(2026, 1, 2))

    def test_bounds(self) -> None:
        for bad in (b"NOT " * (MAX_DEPTH + 1) + b"ALL", b" ".join([b"ALL"] * (MAX_KEYS + 1)), b"(" * 100):
            with self.assertRaises(BadSyntax):
                parse_search(Scanner(bad))

    def test_charsets(self) -> None:
        with self.assertRaises(BadCharset):
            parse_search(Scanner(b"CHARSET X-NONE ALL"))
        self.assertEqual(parse_search(Scanner(b'charset "utf-8" ALL')), parse_search(Scanner(b"ALL")))

    @given(st.text('ALNOTRSE ()"1:*,', max_size=30))
    @settings(max_examples=200)
    def test_only_the_declared_errors(self, text: str) -> None:
        try:
            found = key(text.encode())
        except BadSyntax:
            return
        matches_message(found, entry(1), b"Subject: x\r\n\r\nx")


def view(*uids: int, read_only: bool = False) -> View:
    return View(Opened(entries=[entry(uid) for uid in uids], uid_validity=1, uid_next=9, read_only=read_only))


class ViewTests(TestCase):
    def test_numbers(self) -> None:
        some = view(2, 4, 6)
        self.assertEqual([some.number(uid) for uid in (1, 2, 4, 6, 7)], [None, 1, 2, 3, None])
        self.assertEqual(some.uids(SequenceSet(((3, None), (1, 1))), by_uid=False), (2, 6))
        self.assertIsNone(some.uids(SequenceSet(((1, 4),)), by_uid=False))
        self.assertEqual(some.uids(SequenceSet(((3, 5), (9, None))), by_uid=True), (4, 6))
        self.assertEqual(some.uid_ranges(SequenceSet(((2, 9), (5, 6)))), ((4, 6),))

    def test_expunges_are_told_from_the_end(self) -> None:
        some = view(2, 4, 6)
        self.assertEqual(some.expunge([2, 6, 99]), b"* 3 EXPUNGE\r\n* 1 EXPUNGE\r\n")
        self.assertEqual(some.number(4), 1)
        self.assertEqual(some.expunge([]), b"")

    def test_changes_in_order(self) -> None:
        some = view(2, 4)
        changes = MailboxChanges(
            expunged=(2,),
            changed=(entry(4, "$New"), entry(2)),
            added=(entry(7, recent=True), entry(4), entry(8)),
        )
        self.assertEqual(
            some.changes(changes, with_uid=True),
            b"* 1 EXPUNGE\r\n"
            b"* FLAGS ($New \\Answered \\Deleted \\Draft \\Flagged \\Seen)\r\n"
            b"* 1 FETCH (UID 4 FLAGS ($New))\r\n"
            b"* 3 EXISTS\r\n* 1 RECENT\r\n",
        )

    @given(st.lists(st.one_of(st.integers(1, 30), st.none())))
    @settings(max_examples=100)
    def test_a_client_that_follows_counts_alike(self, steps: list[int | None]) -> None:
        """Whatever is expunged and added: a client that does what it is told has the same list."""
        uids = [1, 2, 3]
        some = view(*uids)
        client = list(uids)
        top = 3
        for step in steps:
            if step is None:
                top += 1
                uids.append(top)
                told = some.changes(MailboxChanges(added=(entry(top),)), with_uid=False)
                self.assertIn(b"* %d EXISTS" % len(uids), told)
                client.append(top)
            else:
                gone = [uid for uid in uids if uid % step == 0]
                uids = [uid for uid in uids if uid % step]
                for line in some.expunge(gone).splitlines():
                    del client[int(line.split()[1]) - 1]
            self.assertEqual(client, uids)

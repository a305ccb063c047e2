"""Vacation replies: who gets one, and what it says."""

from __future__ import annotations

import email
import email.policy
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.rules import Vacation
from twisted_mta.core.vacation import addressed, correspondent, handle, is_automatic, reply, why_not

BOB = Address("bob", "example.org")
ALICE = Address("alice", "example.test")
OWN = frozenset({"alice@example.test", "sales@example.test"})
PLAIN = (
    b"From: bob@example.org\r\nTo: Alice <ALICE@example.test>\r\nSubject: lunch\r\nMessage-ID: <1@x>\r\n\r\n"
)
AWAY = Vacation(text="I am away.\n.\nBack soon: ümläut", days=7)


class WhetherTests(SynchronousTestCase):
    def test_a_letter_gets_one(self) -> None:
        self.assertEqual(why_not(PLAIN, BOB, OWN), "")
        for more in (
            b"Auto-Submitted: no\r\n",
            b"Auto-Submitted: (x) No; y=z\r\n",
            b"Precedence: normal\r\n",
            b"Delivered-To: bob@example.test\r\n",
        ):
            self.assertEqual(why_not(more + PLAIN, BOB, OWN), "")

    def test_what_programs_send(self) -> None:
        self.assertTrue(is_automatic(b"Auto-Submitted: auto-replied\r\n" + PLAIN))
        self.assertFalse(is_automatic(b"Auto-Submitted: NO\r\n" + PLAIN))
        self.assertFalse(is_automatic(PLAIN))

    def test_any_field_for_recipients_will_do(self) -> None:
        for name in ("To", "cc", "Bcc", "Resent-To", "Resent-Cc", "Resent-Bcc"):
            header = f'{name}: x@y, team: (a) "A, B" <sales@example.test>;\r\n\r\n'.encode()
            self.assertEqual(why_not(header, BOB, OWN), "")
            self.assertEqual(addressed(header, OWN), "sales@example.test")

    def test_who_gets_none(self) -> None:
        self.assertEqual(why_not(PLAIN, None, OWN), "it has the null sender")
        self.assertEqual(why_not(PLAIN, Address("Sales", "example.test"), OWN), "it is from the user")
        for local in (
            "MAILER-DAEMON", "owner-team", "team-request", "team-bounces", "team-owner", "noreply", "No-Reply", "do-not-reply",
            "bounces+bob=x", "bounce-123", "shop.noreply", "listserv", "postmaster", "SRS1=x=y==z",
        ):  # fmt: skip
            self.assertIn("not a person", why_not(PLAIN, Address(local, "example.org"), OWN), local)
        for local in ("bob", "norbert", "bouncer", "SRS0=a=b=example.com=carol", "requester"):
            self.assertEqual(why_not(PLAIN, Address(local, "example.org"), OWN), "", local)

    def test_what_gets_none(self) -> None:
        for field, why in (
            ("List-Id: <x.y>", "mailing list"),
            ("List-Unsubscribe: <mailto:x@y>", "mailing list"),
            ("Auto-Submitted: auto-replied", "Auto-Submitted"),
            ("Auto-Submitted: auto-generated; x=y", "Auto-Submitted"),
            ("Auto-Submitted:", "Auto-Submitted"),
            ("Precedence: Bulk", "precedence is bulk"),
            ("Precedence: junk", "precedence is junk"),
            ("Precedence: list", "precedence is list"),
            ("X-Auto-Response-Suppress: DR, OOF, AutoReply", "automatic response"),
            ("X-Auto-Response-Suppress: All", "automatic response"),
            ("X-Spam-Flag: YES", "spam"),
            ("Content-Type: multipart/report; report-type=x", "report"),
            ("Delivered-To: Sales@example.test", "delivered here before"),
        ):
            self.assertIn(why, why_not(f"{field}\r\n".encode() + PLAIN, BOB, OWN), field)

    def test_not_addressed_to_the_user(self) -> None:
        for header in (
            b"\r\n",
            b"To: undisclosed-recipients:;\r\n\r\n",
            b"X-To: alice@example.test\r\n\r\n",
            b"To: alice\r\n\r\n",
        ):
            self.assertIn("not addressed", why_not(header, BOB, OWN))
            self.assertEqual(addressed(header, OWN), "")

    @given(st.binary(max_size=300))
    def test_whatever_the_header(self, header: bytes) -> None:
        why_not(header, BOB, OWN)
        reply(AWAY, header, to=BOB, sender=ALICE, queue_id="q1", hostname="mx.test", now=0.0)


class KeysTests(SynchronousTestCase):
    def test_a_sender_is_known_again(self) -> None:
        self.assertEqual(correspondent(Address("prvs=1234ab=Bob", "example.org")), "bob@example.org")
        self.assertEqual(correspondent(Address("Bob", "example.org")), "bob@example.org")

    def test_another_text_is_another_reply(self) -> None:
        self.assertEqual(handle(AWAY), handle(attrs.evolve(AWAY, days=3)))
        for changes in ({"text": "x"}, {"subject": "x"}, {"sender": BOB}):
            self.assertNotEqual(handle(AWAY), handle(attrs.evolve(AWAY, **changes)))


class ReplyTests(SynchronousTestCase):
    def make(self, header: bytes = PLAIN, **changes: Any) -> Any:
        made = reply(
            attrs.evolve(AWAY, **changes),
            header,
            to=BOB,
            sender=ALICE,
            queue_id="q1",
            hostname="mx.test",
            now=0.0,
        )
        self.assertEqual(made.message_id, "q1@mx.test")
        self.assertNotIn(b"\n", made.data.replace(b"\r\n", b""))
        self.assertLessEqual(max(map(len, made.data.split(b"\r\n"))), 78)
        return email.message_from_bytes(made.data, policy=email.policy.default)

    def test_form(self) -> None:
        found = self.make()
        self.assertEqual(
            dict(found.items()),
            {
                "From": "alice@example.test",
                "To": "bob@example.org",
                "Subject": "Auto: lunch",
                "Date": "Thu, 01 Jan 1970 00:00:00 +0000",
                "Message-ID": "<q1@mx.test>",
                "In-Reply-To": "<1@x>",
                "References": "<1@x>",
                "Auto-Submitted": "auto-replied",
                "MIME-Version": "1.0",
                "Content-Type": 'text/plain; charset="utf-8"',
                "Content-Transfer-Encoding": "quoted-printable",
            },
        )
        self.assertEqual(found.get_content(), "I am away.\r\n.\r\nBack soon: ümläut\r\n")

    def test_name(self) -> None:
        self.assertEqual(
            self.make(name='Alice "A" Smith')["From"].addresses[0].display_name, 'Alice "A" Smith'
        )
        name = "Älice" * 12
        shown = self.make(name=name)["From"].addresses[0].display_name
        self.assertEqual(shown.replace(" ", ""), name, "the parser of the test puts in a space")

    def test_subject(self) -> None:
        self.assertEqual(self.make(subject="Away")["Subject"], "Away")
        self.assertEqual(self.make(subject="Äway " * 30)["Subject"].strip(), ("Äway " * 30).strip())
        long = " ".join(["word"] * 30)
        self.assertEqual(self.make(subject=long)["Subject"], long)
        for subject, expected in (
            (b"Subject: =?utf-8?q?=C3=84?= x\r\n", "Auto: Ä x"),
            (b"Subject: a\r\n\tb\r\n", "Auto: a b"),
            (b"", "Auto: your message"),
            (b"Subject: \xc3\xa4\r\n", "Auto: your message"),
            (b"Subject: a\x07\r\n", "Auto: your message"),
            (b"Subject: " + b"x " * 150 + b"\r\n", "Auto: your message"),
        ):
            self.assertEqual(self.make(subject + b"\r\n")["Subject"], expected)

    def test_threading(self) -> None:
        self.assertNotIn("In-Reply-To", self.make(b"Subject: x\r\n\r\n"))
        found = self.make(b"Message-ID: <3@x>\r\nIn-Reply-To: <2@x>\r\n\r\n")
        self.assertEqual((found["In-Reply-To"], found["References"]), ("<3@x>", "<2@x> <3@x>"))
        before = b" ".join(b"<%d@x>" % number for number in range(50))
        found = self.make(b"Message-ID: <50@x>\r\nReferences: " + before + b"\r\n\r\n")
        names = found["References"].split()
        self.assertEqual((names[0], names[1], names[-1], len(names)), ("<0@x>", "<30@x>", "<50@x>", 22))

    def test_addresses_beyond_ascii(self) -> None:
        made = reply(
            AWAY, PLAIN, to=Address("jörg", "b.example"), sender=ALICE, queue_id="q", hostname="h", now=0.0
        )
        self.assertTrue(made.smtputf8)
        self.assertIn("<jörg@b.example>".encode(), made.data)

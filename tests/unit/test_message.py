"""core.message, core.trace and core.replies."""

from __future__ import annotations

from unittest import TestCase

from hypothesis import example, given
from hypothesis import strategies as st

from twisted_mta.core.address import Address
from twisted_mta.core.message import (
    count_fields,
    fields,
    first_field,
    format_date,
    header_length,
    split_message,
)
from twisted_mta.core.replies import Reply
from twisted_mta.core.trace import received_field, with_protocol

MESSAGE = b"Received: from a\r\n by b\r\nReceived: from c\r\nSubject:  one\r\n\ttwo \r\nno field\r\n: no name\r\nX : spaced\r\n\r\nReceived: no\r\n"


PIECES = [
    b"Received",
    b"received",
    b"X",
    b" ",
    b"\t",
    b":",
    b"\r\n",
    b"a",
    b"\0",
    b"\xff",
    b"X: Received:\r\n",
]


class FieldTests(TestCase):
    def test_fields(self) -> None:
        header, body = split_message(MESSAGE)
        self.assertEqual(body, b"Received: no\r\n")
        self.assertEqual(
            [field.key for field in fields(header)], [b"received", b"received", b"subject", b"x"]
        )
        self.assertEqual(first_field(header, "SUBJECT"), b"one\ttwo")
        self.assertIsNone(first_field(header, "Date"))
        self.assertEqual(count_fields(header, "received"), 2)

    @given(st.lists(st.sampled_from(PIECES), max_size=16).map(b"".join))
    @example(b"X: a\r\nReceived\r\nReceived:b")
    def test_a_search_finds_what_reading_all_finds(self, header: bytes) -> None:
        for name in ("Received", "X"):
            values = [field.value for field in fields(header) if field.key == name.lower().encode()]
            self.assertEqual(count_fields(header, name), len(values))
            self.assertEqual(first_field(header, name), values[0] if values else None)

    def test_unfinished_header(self) -> None:
        self.assertEqual(first_field(b"Subject: x", "subject"), b"x")
        self.assertEqual(header_length(b"Subject: x"), 10)
        self.assertEqual(split_message(b"\r\nbody"), (b"\r\n", b"body"))
        self.assertEqual(list(fields(b"")), [])

    def test_date(self) -> None:
        self.assertEqual(format_date(0), "Thu, 1 Jan 1970 00:00:00 +0000")
        self.assertEqual(format_date(1000000000, -90), "Sun, 9 Sep 2001 00:16:40 -0130")


class TraceTests(TestCase):
    def test_full(self) -> None:
        field = received_field(
            helo="client.example.org", address="192.0.2.1", hostname="mx.example.test", protocol="ESMTPS", queue_id="Q1",
            recipient=Address("bob", "example.test"), timestamp=0, tls="TLSv1.3 X",
        )  # fmt: skip
        self.assertEqual(
            field,
            b"Received: from client.example.org ([192.0.2.1])\r\n\t(using TLSv1.3 X)\r\n\tby mx.example.test with ESMTPS id Q1\r\n"
            b"\tfor <bob@example.test>;\r\n\tThu, 1 Jan 1970 00:00:00 +0000\r\n",
        )

    def test_hostile_name(self) -> None:
        """Nothing that a client says at HELO can end the line or open a comment."""
        field = received_field(
            helo="a\r\nX: y(\xfc",
            address="2001:db8::1",
            hostname="h",
            protocol="SMTP",
            queue_id="Q",
            recipient=None,
            timestamp=0,
        )
        self.assertEqual(
            field,
            b"Received: from a??X:?y?? ([IPv6:2001:db8::1])\r\n\tby h with SMTP id Q;\r\n\tThu, 1 Jan 1970 00:00:00 +0000\r\n",
        )

    def test_host(self) -> None:
        field = received_field(
            helo="client", address="192.0.2.1", hostname="h", protocol="SMTP", queue_id="Q", recipient=None, timestamp=0,
            host="mail.example.org)\n",
        )  # fmt: skip
        self.assertTrue(
            field.startswith(b"Received: from client (mail.example.org?? [192.0.2.1])\r\n\tby h ")
        )

    def test_priority(self) -> None:
        """RFC 6710 §7: a clause behind all others, where there is something to say."""
        for priority, clause in (
            (4, b"\tpriority 4;\r\n"),
            (-9, b"\tpriority -9;\r\n"),
            (0, b"\tfor <bob@h>;\r\n"),
        ):
            field = received_field(
                helo="client", address="192.0.2.1", hostname="h", protocol="SMTP", queue_id="Q",
                recipient=Address("bob", "h"), timestamp=0, priority=priority,
            )  # fmt: skip
            self.assertIn(clause, field)
            self.assertEqual(field.count(b"priority"), int(priority != 0))

    def test_no_name_and_no_ascii_recipient(self) -> None:
        field = received_field(
            helo="",
            address="192.0.2.1",
            hostname="h",
            protocol="SMTP",
            queue_id="Q",
            recipient=Address("ü", "x"),
            timestamp=0,
        )
        self.assertTrue(field.startswith(b"Received: from unknown ([192.0.2.1])\r\n\tby h with SMTP id Q;"))

    def test_protocols(self) -> None:
        for esmtp, tls, authenticated, keyword in [
            (False, True, False, "SMTP"), (True, False, False, "ESMTP"), (True, True, False, "ESMTPS"),
            (True, True, True, "ESMTPSA"), (True, False, True, "ESMTPA"),
        ]:  # fmt: skip
            self.assertEqual(with_protocol(esmtp=esmtp, tls=tls, authenticated=authenticated), keyword)
        for lmtp, utf8, keyword in [
            (True, False, "LMTPS"),
            (True, True, "UTF8LMTPS"),
            (False, True, "UTF8SMTPS"),
        ]:
            made = with_protocol(esmtp=True, tls=True, authenticated=False, lmtp=lmtp, utf8=utf8)
            self.assertEqual(made, keyword)


class ReplyTests(TestCase):
    def test_encode(self) -> None:
        self.assertEqual(Reply(250, "2.0.0", "OK").encode(), b"250 2.0.0 OK\r\n")
        self.assertEqual(Reply(550, "5.1.1", "a\nb").encode(), b"550-5.1.1 a\r\n550 5.1.1 b\r\n")
        self.assertEqual(Reply(354, "", "go").encode(), b"354 go\r\n")

    def test_classes(self) -> None:
        self.assertTrue(Reply(354, "", "").positive)
        self.assertTrue(Reply(451, "", "").transient)
        self.assertTrue(Reply(550, "", "").permanent)
        self.assertEqual(Reply(550, "", "").status, "5.0.0")
        self.assertEqual(Reply(550, "5.1.1", "").status, "5.1.1")
        self.assertEqual(str(Reply(550, "5.1.1", "a\nb")), "550 5.1.1 a / b")

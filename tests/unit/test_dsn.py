"""Delivery status notifications, read back with the standard library's parser."""

from __future__ import annotations

import email
import email.policy
import unittest
from email.message import EmailMessage
from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core.address import Address
from twisted_mta.core.dsn import Action, Notification, Report, Reporter
from twisted_mta.core.envelope import DeliverBy
from twisted_mta.core.queue import Contact
from twisted_mta.core.replies import Reply
from twisted_mta.testing.queued import queued_message, queued_recipient

REPORTER = Reporter(hostname="mx.example.test", postmaster=Address("postmaster", "example.test"), quote=1000)
PREFIX = b"Received: by mx.example.test\r\n"
BODY = b"Subject: lunch\r\nTo: bob@example.org\r\n\r\nAt noon?\r\n"
NOW = 1_700_000_000.0

MESSAGE = queued_message(
    id="abc",
    sender=Address("alice", "example.test"),
    prefix=PREFIX,
    body_size=len(BODY),
    arrived=NOW - 90_000,
    expires=NOW + 342_000,
    message_id="lunch@example.test",
)
RECIPIENT = queued_recipient("bob@hidden.example", original=Address("bob", "example.org"))
REPORT = Report(
    recipient=RECIPIENT,
    action=Action.FAILED,
    reply=Reply(550, "5.1.1", "no such user\nreally not", heard=True),
    remote="mx.example.org [192.0.2.1]",
    attempted=NOW - 5,
)


def notify(
    *reports: Report,
    body: bytes = BODY,
    reporter: Reporter = REPORTER,
    prefix: bytes = PREFIX,
    readable: bool = True,
    **changes: Any,
) -> Notification:
    message = attrs.evolve(MESSAGE, body_size=len(body), prefix=prefix, **changes)
    original = (prefix + body)[: reporter.quote + 1] if readable else prefix
    return reporter.notify(message, reports or (REPORT,), queue_id="Q1", now=NOW, original=original)


def parsed(made: Notification) -> EmailMessage:
    message = email.message_from_bytes(made.data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def parts_of(made: Notification) -> list[Any]:
    return list(parsed(made).iter_parts())


def words_of(made: Notification) -> str:
    return str(parts_of(made)[0].get_content())


class FormTests(unittest.TestCase):
    def test_the_header(self) -> None:
        made = notify()
        message = parsed(made)
        self.assertEqual(message["From"], "Mail Delivery System <MAILER-DAEMON@mx.example.test>")
        self.assertEqual(message["To"], "alice@example.test")
        self.assertEqual(message["Auto-Submitted"], "auto-replied")
        self.assertEqual(message["Message-ID"], "<Q1@mx.example.test>")
        self.assertEqual(message["References"], "<lunch@example.test>")
        self.assertEqual(message.get_content_type(), "multipart/report")
        self.assertEqual(message.get_param("report-type"), "delivery-status")
        self.assertEqual(
            [part.get_content_type() for part in message.iter_parts()],
            ["text/plain", "message/delivery-status", "message/rfc822"],
        )
        self.assertEqual(
            (made.body_type, made.smtputf8, made.message_id), ("7BIT", False, "Q1@mx.example.test")
        )

    def test_lines_end_in_crlf(self) -> None:
        data = notify().data
        self.assertEqual(data.count(b"\n"), data.count(b"\r\n"))
        self.assertEqual(data.count(b"\r"), data.count(b"\r\n"))

    def test_a_hostile_message_id_stays_out(self) -> None:
        for message_id in ("", "a b", "a>\r\nBcc: x", "é@x", "x" * 300):
            with self.subTest(message_id):
                self.assertNotIn("References", parsed(notify(message_id=message_id)))

    def test_the_boundary_is_not_in_the_content(self) -> None:
        first = parsed(notify()).get_boundary()
        made = notify(body=BODY + b"--" + str(first).encode() + b"--\r\n")
        self.assertNotEqual(parsed(made).get_boundary(), first)
        self.assertEqual(len(parts_of(made)), 3)

    @settings(max_examples=50)
    @given(
        st.text(max_size=200).map(lambda text: text.replace("\r", "")),
        st.sampled_from([200, 421, 550]),
        st.text(max_size=80),
        st.text(max_size=40),
        st.sampled_from(list(Action)),
    )
    def test_no_reply_breaks_the_form(
        self, text: str, code: int, remote: str, orcpt: str, action: Action
    ) -> None:
        report = attrs.evolve(
            REPORT,
            reply=Reply(code, "", text),
            remote=remote,
            action=action,
            recipient=attrs.evolve(RECIPIENT, orcpt=orcpt),
        )
        made = notify(report, envid=orcpt)
        parts = parts_of(made)
        self.assertEqual(len(parts), 3)
        groups = parts[1].get_payload()
        self.assertEqual(len(groups), 2)
        self.assertEqual(groups[1]["Action"], action)
        self.assertLessEqual(max(map(len, made.data.split(b"\r\n"))), 998)
        self.assertFalse(groups[1].defects)


class StatusTests(unittest.TestCase):
    def fields(self, *reports: Report, **changes: Any) -> list[Any]:
        return list(parts_of(notify(*reports, **changes))[1].get_payload())

    def test_a_failure(self) -> None:
        message, recipient = self.fields(envid="QQ 314")
        self.assertEqual(
            message.items(),
            [
                ("Original-Envelope-Id", "QQ 314"),
                ("Reporting-MTA", "dns; mx.example.test"),
                ("Arrival-Date", "Mon, 13 Nov 2023 21:13:20 +0000"),
            ],
        )
        self.assertEqual(
            recipient.items(),
            [
                ("Final-Recipient", "rfc822; bob@example.org"),
                ("Action", "failed"),
                ("Status", "5.1.1"),
                ("Remote-MTA", "dns; mx.example.org (192.0.2.1)"),
                ("Diagnostic-Code", "smtp; 550-5.1.1 no such user 550 5.1.1 really not"),
                ("Last-Attempt-Date", "Tue, 14 Nov 2023 22:13:15 +0000"),
            ],
        )

    def test_each_recipient_has_its_group(self) -> None:
        other = attrs.evolve(
            REPORT,
            action=Action.DELAYED,
            remote="",
            recipient=attrs.evolve(RECIPIENT, orcpt="rfc822;Bob@Example.org"),
        )
        _, first, second = self.fields(REPORT, other)
        self.assertNotIn("Will-Retry-Until", first)
        self.assertNotIn("Original-Recipient", first)
        self.assertEqual(second["Original-Recipient"], "rfc822; Bob@Example.org")
        self.assertEqual(second["Will-Retry-Until"], "Sat, 18 Nov 2023 21:13:20 +0000")
        self.assertNotIn("Remote-MTA", second)
        self.assertNotIn("Original-Envelope-Id", _)

    def test_a_success_has_no_diagnostic(self) -> None:
        report = attrs.evolve(REPORT, action=Action.DELIVERED, reply=Reply(250, "2.1.5", "stored"), remote="")
        _, recipient = self.fields(report)
        self.assertEqual((recipient["Action"], recipient["Status"]), ("delivered", "2.1.5"))
        self.assertNotIn("Diagnostic-Code", recipient)

    def test_seven_bits_whatever_the_address(self) -> None:
        recipient = attrs.evolve(RECIPIENT, original=Address("jörg+a", "例.test"), orcpt="utf-8;jörg@例.test")
        made = notify(attrs.evolve(REPORT, recipient=recipient, reply=Reply(550, "", "unbekannt: jörg")))
        fields = parts_of(made)[1].get_payload()[1]
        self.assertEqual(fields["Final-Recipient"], r"utf-8; j\x{F6}rg\x{2B}a@\x{4F8B}.test")
        self.assertEqual(fields["Original-Recipient"], r"utf-8; j\x{F6}rg@\x{4F8B}.test")
        self.assertEqual(fields["Diagnostic-Code"], "smtp; 550 unbekannt: j?rg")
        self.assertEqual(fields["Status"], "5.0.0")
        self.assertEqual(made.body_type, "8BITMIME")
        self.assertIn("jörg+a@例.test", words_of(made))

    def test_a_remote_without_an_address(self) -> None:
        for remote, expected in (
            ("mx.example.org", "dns; mx.example.org"),
            ("mx.example.org [(]", "dns; mx.example.org"),
            ("mx.example.org x(y", "dns; mx.example.org"),
        ):
            with self.subTest(remote):
                _, fields = self.fields(attrs.evolve(REPORT, remote=remote))
                self.assertEqual(fields["Remote-MTA"], expected)


class WordsTests(unittest.TestCase):
    def test_who_what_and_what_now(self) -> None:
        words = words_of(notify())
        for expected in (
            "mx.example.test",
            "could not be delivered to:",
            "bob@example.org",
            "mx.example.org [192.0.2.1] said:",
            "550-5.1.1 no such user",
            "550 5.1.1 really not",
            "check the address",
            "postmaster@example.test",
        ):
            self.assertIn(expected, words)

    def test_what_we_found_is_not_said_to_be_the_words_of_another_host(self) -> None:
        silent = Reply(451, "4.4.2", "timeout, waiting for greeting")
        for changes, expected in (
            ({}, "    This server said of mx.example.org [192.0.2.1]:"),
            ({"expired": True}, "The last time, this server said of mx.example.org [192.0.2.1]:"),
            ({"action": Action.DELAYED}, "The last time, this server said of mx.example.org [192.0.2.1]:"),
            ({"action": Action.DELAYED, "remote": ""}, "The last time, this server said:"),
        ):
            words = words_of(notify(attrs.evolve(REPORT, reply=silent, **changes)))
            self.assertIn(f"{expected}\r\n      451 4.4.2 timeout, waiting for greeting", words)

    def test_where_an_alias_leads_stays_private(self) -> None:
        self.assertNotIn(b"hidden.example", notify().data)

    def test_advice_goes_by_the_status(self) -> None:
        for status, expected in (
            ("5.2.2", "mailbox is full"),
            ("5.2.3", "too large for the recipient"),
            ("5.3.4", "too large for the other server"),
            ("5.4.6", "round in circles"),
            ("5.7.1", "does not take this message from you"),
            ("", "to your administrator"),
        ):
            with self.subTest(status):
                report = attrs.evolve(REPORT, reply=Reply(550, status, "no"), remote="")
                words = words_of(notify(report))
                self.assertIn(expected, words)
                self.assertIn("This server said:", words)

    def test_an_expired_message(self) -> None:
        again = attrs.evolve(RECIPIENT, attempts=41)
        words = words_of(notify(attrs.evolve(REPORT, expired=True, recipient=again)))
        self.assertIn("It was tried for 25 hours (42 times), then given up.", words)

    def test_what_was_tried_last(self) -> None:
        lost = Reply(451, "4.4.2", "lost the connection")
        contacts = tuple(
            Contact(remote=f"mx{n}.x.test [192.0.2.{n}]", reply=lost, began=NOW - 60, took=1.0)
            for n in range(1, 13)
        )
        words = words_of(notify(attrs.evolve(REPORT, contacts=contacts))).replace("\r\n", "\n")
        self.assertIn(
            "These mail servers were tried then:\n      Tue, 14 Nov 2023 22:12:20 +0000: mx1.x.test", words
        )
        self.assertIn("mx10.x.test [192.0.2.10]: 451 4.4.2", " ".join(words.split()))
        self.assertNotIn("mx11", words)
        self.assertIn("      and 2 more\n", words)
        self.assertNotIn("were tried then", words_of(notify(attrs.evolve(REPORT, contacts=contacts[:1]))))

    def test_what_may_have_arrived(self) -> None:
        words = words_of(notify(attrs.evolve(REPORT, doubtful=True, expired=True)))
        self.assertIn("It may have arrived all the same", words)
        self.assertNotIn("all the same", words_of(notify()))

    def test_a_delay_asks_for_patience(self) -> None:
        made = notify(attrs.evolve(REPORT, action=Action.DELAYED))
        self.assertIn("need not send it again", " ".join(words_of(made).split()))
        self.assertIn("tried until Sat, 18 Nov 2023", words_of(made))
        self.assertEqual(parsed(made)["Subject"], "Your message is delayed")

    def test_a_success_needs_no_advice(self) -> None:
        relayed = attrs.evolve(REPORT, action=Action.RELAYED)
        made = notify(attrs.evolve(REPORT, action=Action.DELIVERED), relayed)
        self.assertEqual(parsed(made)["Subject"], "Your message was delivered")
        self.assertNotIn("said:", words_of(made))
        self.assertIn("may not report", words_of(made))

    def test_the_gravest_news_make_the_subject(self) -> None:
        made = notify(attrs.evolve(REPORT, action=Action.DELAYED), REPORT)
        self.assertEqual(parsed(made)["Subject"], "Your message could not be delivered")


class OriginalTests(unittest.TestCase):
    def test_a_short_message_comes_back_whole(self) -> None:
        data = notify().data
        self.assertIn(
            b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 7bit\r\n\r\n" + PREFIX + BODY, data
        )

    def test_of_a_long_one_the_beginning(self) -> None:
        made = notify(body=BODY + b"line\r\n" * 5000)
        self.assertIn(b"The beginning of your message is attached; it has ", made.data)
        head = made.data.partition(
            b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 7bit\r\n\r\n"
        )[2]
        head = head.partition(b"\r\n--")[0]
        self.assertTrue((PREFIX + BODY + b"line\r\n" * 5000).startswith(head))
        self.assertTrue(REPORTER.quote - 10 < len(head) <= REPORTER.quote)
        self.assertTrue(head.endswith(b"line\r\n"))

    def test_one_that_cannot_be_read_is_only_named(self) -> None:
        made = notify(body=BODY + b"line\r\n" * 5000, readable=False)
        self.assertEqual(parts_of(made)[2].get_content_type(), "text/rfc822-headers")

    def test_a_long_header_is_cut_at_a_line(self) -> None:
        lines = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 50) for n in range(100))
        made = notify(body=lines + b"\r\nbody\r\n")
        part = parts_of(made)[2].get_content()
        self.assertTrue((PREFIX + lines).decode().startswith(part))
        self.assertTrue(part.endswith("y" * 50 + "\r\n"))
        self.assertTrue(900 < len(part) <= 1000)

    def test_a_header_of_one_endless_line_is_left_out(self) -> None:
        made = notify(prefix=b"", body=b"X: " + b"y" * 2000)
        self.assertEqual(parts_of(made)[2].get_content().strip(), "")

    def test_ret(self) -> None:
        self.assertEqual(parts_of(notify(ret="HDRS"))[2].get_content_type(), "text/rfc822-headers")
        self.assertEqual(parts_of(notify(ret="FULL"))[2].get_content_type(), "message/rfc822")

    def test_what_is_no_failure_brings_the_header_only(self) -> None:
        for action in (Action.DELAYED, Action.DELIVERED, Action.RELAYED):
            with self.subTest(action):
                made = notify(attrs.evolve(REPORT, action=action), ret="FULL")
                self.assertEqual(parts_of(made)[2].get_content_type(), "text/rfc822-headers")

    def test_eight_bits_are_declared(self) -> None:
        made = notify(body=BODY + "schön\r\n".encode())
        self.assertEqual(made.body_type, "8BITMIME")
        self.assertEqual(parsed(made)["Content-Transfer-Encoding"], "8bit")
        part = parts_of(made)[2]
        self.assertEqual(
            (part.get_content_type(), part["Content-Transfer-Encoding"]), ("message/rfc822", "8bit")
        )
        self.assertIn("schön\r\n".encode(), made.data)

    def test_a_header_in_utf_8(self) -> None:
        body = "Subject: Grüße\r\n\r\nhi\r\n".encode()
        self.assertIn(
            b"Content-Type: message/global\r\nContent-Transfer-Encoding: 8bit", notify(body=body).data
        )
        made = notify(body=body, ret="HDRS")
        self.assertEqual(made.body_type, "7BIT")
        self.assertEqual(
            parts_of(made)[2].get_payload(decode=True), (PREFIX.decode() + "Subject: Grüße\r\n").encode()
        )

    def test_a_sender_beyond_ascii_needs_smtputf8(self) -> None:
        made = notify(sender=Address("ünï", "example.test"))
        self.assertEqual((made.smtputf8, made.body_type), (True, "8BITMIME"))
        self.assertIn("To: <ünï@example.test>\r\n".encode(), made.data)


class WishesTests(unittest.TestCase):
    """What the sender asked for at MAIL, and got or did not get."""

    def status(self, made: Notification) -> str:
        return made.data.decode().partition("Content-Type: message/delivery-status\r\n\r\n")[2]

    def test_the_time_to_deliver_by(self) -> None:
        by = DeliverBy(NOW - 60, returns=True)
        made = notify(attrs.evolve(REPORT, by_passed=True), deliver_by=by)
        self.assertIn("\r\nDeliver-By-Date: Tue, 14 Nov 2023 22:12:20 +0000\r\n", self.status(made))
        self.assertIn("\r\nStatus: 5.4.7\r\n", self.status(made))
        self.assertIn(b"not delivered by the time that you asked for, Tue, 14 Nov 2023 22:12:20", made.data)
        self.assertNotIn(b"It will be tried until", made.data)

    def test_late(self) -> None:
        late = attrs.evolve(
            REPORT, by_passed=True, action=Action.DELAYED, reply=Reply(451, "4.7.1", "greylisted")
        )
        made = notify(late, deliver_by=DeliverBy(NOW - 60, returns=False))
        self.assertIn("\r\nStatus: 4.4.7\r\n", self.status(made))
        self.assertIn("Diagnostic-Code: smtp; 451 4.7.1 greylisted\r\n", self.status(made))
        self.assertIn(b"    It will be tried until", made.data)

    def test_a_time_that_has_nothing_to_do_with_it(self) -> None:
        made = notify(deliver_by=DeliverBy(NOW + 60, returns=True))
        self.assertIn("\r\nStatus: 5.1.1\r\n", self.status(made))
        self.assertNotIn(b"time that you asked for", made.data)

    def test_held_back(self) -> None:
        delayed = attrs.evolve(REPORT, action=Action.DELAYED, reply=Reply(451, "4.7.1", "greylisted"))
        made = notify(delayed, not_before=NOW - 7200)
        self.assertIn("\r\nFuture-Release-Request: until;2023-11-14T20:13:20Z\r\n", self.status(made))
        self.assertIn(b"It has been tried for 2 hours (once).", made.data)
        self.assertNotIn(b"Future-Release-Request", notify().data)


class PostmasterTests(unittest.TestCase):
    """RFC 3461 §5.2: what the postmaster gets of a notification that can't be delivered."""

    def test_it_says_what_it_is(self) -> None:
        made = notify(sender=None)
        message = parsed(made)
        self.assertEqual(message["To"], "postmaster@example.test")
        self.assertEqual(message["Subject"], "A notification could not be delivered")
        words = " ".join(words_of(made).split())
        self.assertIn("You are its postmaster.", words)
        self.assertIn("The notification is attached.", words)
        self.assertNotIn("Questions about", words)
        self.assertNotIn("our message", words)

    def test_a_large_one(self) -> None:
        made = notify(sender=None, body=BODY + b"x\r\n" * 2000)
        self.assertIn("The beginning of the notification is attached", words_of(made))


class LogIdTests(unittest.TestCase):
    """RFC 3464 §2.3.8: ours where it was us who decided."""

    def test_it(self) -> None:
        self.assertNotIn(b"Final-Log-ID", notify().data)
        own = attrs.evolve(REPORT, remote="", action=Action.EXPANDED)
        self.assertIn(b"\r\nFinal-Log-ID: abc\r\n", notify(own).data)
        self.assertNotIn(b"Diagnostic-Code", notify(own).data)

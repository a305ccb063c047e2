"""What applications import: refusals, registration, the mail; and the table of handlers."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.config.handlers import HandlerTable
from twisted_mta.core.address import Address
from twisted_mta.core.captures import Pattern
from twisted_mta.core.envelope import Envelope
from twisted_mta.handlers import MARK, MAX_TEXT, Defer, Handler, Mail, Refusal, Reject, rcpt


def mail(data: bytes, **more: Any) -> Mail:
    fields: dict[str, Any] = {
        "envelope": Envelope(Address("a", "b.example")),
        "queue_id": "q1",
        "recipient": "ticket-1@example.test",
        "original": "support@example.test",
        "captures": {"id": "1"},
        "attempt": 1,
        "size": len(data),
        "opener": lambda: io.BytesIO(data),
        "in_thread": lambda function: succeed(function()),
    }
    return Mail(**fields | more)


class RefusalTests(SynchronousTestCase):
    def test_what_they_say(self) -> None:
        for refusal, wanted in (
            (Reject("no"), (550, "5.7.1", "no")),
            (Reject("no", 553, "5.1.3"), (553, "5.1.3", "no")),
            (Defer("later"), (451, "4.7.0", "later")),
            (Defer(" a\r\nb\x07 "), (451, "4.7.0", "a b?")),
            (Reject("x" * 1000), (550, "5.7.1", "x" * MAX_TEXT)),
        ):
            self.assertEqual((refusal.code, refusal.status, refusal.text), wanted)
            self.assertIsInstance(refusal, Refusal)

    def test_what_they_can_not_say(self) -> None:
        for make, why in (
            (lambda: Reject("x", 450), "500 to 599"),
            (lambda: Defer("x", 550), "400 to 499"),
            (lambda: Reject("x", status="4.1.1"), "like 5.7.1"),
            (lambda: Defer("x", status="4.1"), "like 4.7.0"),
            (lambda: Reject("x", status="5.1.1\r\n"), "like 5.7.1"),
        ):
            with self.assertRaisesRegex(ValueError, why):
                make()


class RegistrationTests(SynchronousTestCase):
    def test_a_function_stays_what_it_is(self) -> None:
        @rcpt("a@example.org", "b-{x}@example.org", inline=True)
        @rcpt("c", timeout=5, concurrency=2)
        def handler(mail: Mail, x: str = "") -> str:
            return f"called with {x}"

        self.assertEqual(handler(mail(b""), x="y"), "called with y")
        found = getattr(handler, MARK)
        self.assertEqual([one.pattern.text for one in found], ["c", "a@example.org", "b-{x}@example.org"])
        self.assertEqual([one.inline for one in found], [False, True, True])
        self.assertEqual((found[0].timeout, found[0].concurrency), (5, 2))
        self.assertTrue(found[0].name.endswith("handler"))

    def test_what_is_wrong_is_said_at_once(self) -> None:
        bad: list[tuple[Callable[[], Any], str]] = [
            (lambda: rcpt(), "needs a pattern"),
            (lambda: rcpt(lambda mail: None), "as text"),  # type: ignore[arg-type]
            (lambda: rcpt("a{b"), "brace"),
            (lambda: rcpt("a", concurrency=0), "at least 1"),
            (lambda: rcpt("a", timeout=0), "more than 0"),
        ]
        for make, why in bad:
            with self.assertRaisesRegex(ValueError, why):
                make()


class ImportTests(SynchronousTestCase):
    """In a fresh process: here, everything has been imported."""

    def test_what_parses_mail_is_there_from_the_first_handler_on(self) -> None:
        code = (
            "import sys; import twisted_mta.service.server; from twisted_mta.handlers import rcpt\n"
            "print('email.policy' in sys.modules); rcpt('a@b.example'); print('email.policy' in sys.modules)"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
        self.assertEqual(said.stdout.split(), ["False", "True"])


class MailTests(SynchronousTestCase):
    data = b"From: <a@b.example>\r\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n\r\nhello\r\n"

    def test_the_message(self) -> None:
        one = mail(self.data)
        self.assertEqual(one.message["subject"], "grüße")
        self.assertIs(one.message, one.message)
        self.assertIs(self.successResultOf(Deferred.fromCoroutine(one.parse())), one.message)
        self.assertEqual(one.octets(), self.data)

    def test_who(self) -> None:
        one = mail(self.data)
        self.assertEqual((one.sender, one.key), ("a@b.example", "q1:ticket-1@example.test"))
        self.assertEqual(mail(self.data, envelope=Envelope(None)).sender, "")


class TableTests(SynchronousTestCase):
    def table(self, *patterns: str) -> HandlerTable:
        return HandlerTable.of(
            Handler(pattern=Pattern.parse(pattern), function=lambda mail: None) for pattern in patterns
        )

    def found(self, table: HandlerTable, local: str) -> str:
        match = table.find(Address(local, "example.org"))
        return match.handler.pattern.text if match else ""

    def test_the_closest_comes_first(self) -> None:
        table = self.table("{x}@example.org", "a-{x}@example.org", "a-b", "{x}-longer@example.org")
        for local, wanted in (
            ("a-b", "a-b"),
            ("a-c", "a-{x}@example.org"),
            ("a-longer", "{x}-longer@example.org"),
            ("z", "{x}@example.org"),
        ):
            self.assertEqual(self.found(table, local), wanted)

    def test_roles_go_to_who_names_them(self) -> None:
        table = self.table("{x}@example.org", "abuse@example.org")
        for local, wanted in (("postmaster", ""), ("Abuse", "abuse@example.org"), ("mailer-daemon", "")):
            self.assertEqual(self.found(table, local), wanted)

"""What a client asks of the next host at MAIL and RCPT, and when it does not send at all."""

from __future__ import annotations

import unittest
from typing import Any

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import DEFAULT_NOTIFY, Notify, Recipient
from twisted_mta.core.smtp.transaction import (
    TimeLeft,
    Transaction,
    mail_command,
    rcpt_command,
    refuse_locally,
    unpromised,
)

BOB = Address("bob", "example.org")


def transaction(**wishes: Any) -> Transaction:
    return Transaction(sender=BOB, recipients=(Recipient(BOB),), size=10, **wishes)


class MailTests(unittest.TestCase):
    def command(self, *extensions: str, **wishes: Any) -> str:
        offered = dict(line.partition(" ")[::2] for line in extensions)
        return (
            mail_command(transaction(**wishes), offered).decode().removeprefix("MAIL FROM:<bob@example.org>")
        )

    def test_deliver_by(self) -> None:
        for left, expected in {
            TimeLeft(60, True): " BY=60;R\r\n",
            TimeLeft(60, True, True): " BY=60;RT\r\n",
            TimeLeft(-5, False): " BY=-5;N\r\n",
            TimeLeft(10**12, False): " BY=999999999;N\r\n",
            TimeLeft(-(10**12), False, True): " BY=-999999999;NT\r\n",
        }.items():
            with self.subTest(left):
                self.assertEqual(self.command("DELIVERBY 30", time_left=left), expected)
                self.assertEqual(self.command(time_left=left), "\r\n")

    def test_priority(self) -> None:
        self.assertEqual(self.command("MT-PRIORITY", priority=-9), " MT-PRIORITY=-9\r\n")
        self.assertEqual(self.command("MT-PRIORITY"), "\r\n")
        self.assertEqual(self.command(priority=3), "\r\n")

    def test_require_tls(self) -> None:
        self.assertEqual(self.command("REQUIRETLS", require_tls=True), " REQUIRETLS\r\n")
        self.assertEqual(self.command("REQUIRETLS"), "\r\n")


class RefusalTests(unittest.TestCase):
    def refusal(self, offered: dict[str, str], **wishes: Any) -> str:
        reply = refuse_locally(transaction(**wishes), offered)
        return "" if reply is None else reply.status

    def test_time(self) -> None:
        for offered, left, expected in (
            ({}, TimeLeft(60, True), "5.3.3"),
            ({}, TimeLeft(60, False), ""),
            ({}, TimeLeft(-60, False), ""),
            ({"DELIVERBY": ""}, TimeLeft(60, True), ""),
            ({"DELIVERBY": ""}, TimeLeft(1, True), ""),
            ({"DELIVERBY": ""}, TimeLeft(0, True), "5.4.7"),
            ({"DELIVERBY": "60"}, TimeLeft(60, True), ""),
            ({"DELIVERBY": "61"}, TimeLeft(60, True), "5.3.3"),
            ({"DELIVERBY": "61,later"}, TimeLeft(60, True), "5.3.3"),
            ({"DELIVERBY": "61"}, TimeLeft(60, False), ""),
            ({"DELIVERBY": "soon"}, TimeLeft(60, True), ""),
            ({"DELIVERBY": "9" * 5000}, TimeLeft(60, True), ""),
        ):
            with self.subTest(offered=str(offered)[:40], left=left):
                self.assertEqual(self.refusal(offered, time_left=left), expected)

    def test_tls(self) -> None:
        self.assertEqual(self.refusal({}, require_tls=True), "5.7.30")
        self.assertEqual(self.refusal({"REQUIRETLS": ""}, require_tls=True), "")


class RecipientTests(unittest.TestCase):
    def test_the_host_is_urged_to_tell_of_delays(self) -> None:
        wish = transaction(time_left=TimeLeft(60, False))
        self.assertTrue(unpromised(wish, {"DSN": ""}))
        self.assertFalse(unpromised(wish, {"DELIVERBY": ""}))
        self.assertFalse(unpromised(transaction(), {}))
        for notify, plain, urged in (
            (DEFAULT_NOTIFY, "", " NOTIFY=FAILURE,DELAY"),
            (Notify.SUCCESS, " NOTIFY=SUCCESS", " NOTIFY=SUCCESS,DELAY"),
            (Notify.NEVER, " NOTIFY=NEVER", " NOTIFY=NEVER"),
        ):
            for urge, expected in ((False, plain), (True, urged)):
                with self.subTest(notify=notify, urge=urge):
                    command = rcpt_command(Recipient(BOB, notify), {"DSN": ""}, urge=urge)
                    self.assertEqual(command.decode(), f"RCPT TO:<bob@example.org>{expected}\r\n")
        self.assertEqual(rcpt_command(Recipient(BOB), {}, urge=True), b"RCPT TO:<bob@example.org>\r\n")

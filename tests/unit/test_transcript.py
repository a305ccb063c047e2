"""The transcript of a session that sends mail."""

from __future__ import annotations

from twisted.trial import unittest

from twisted_mta.core.smtp.transcript import LIMIT, Transcript


class TranscriptTests(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.transcript = Transcript()

    def lines(self) -> list[str]:
        return self.transcript.text().splitlines()

    def test_the_last_transaction_behind_the_opening(self) -> None:
        self.assertEqual(self.transcript.text(), "")
        self.transcript.received(b"220 hi\r\n")
        self.transcript.sent(b"EHLO me\r\n")
        self.transcript.received(b"250-mx\r\n250 SIZE\r\n")
        for name in (b"one", b"two"):
            self.transcript.begin()
            self.transcript.sent(b"MAIL FROM:<" + name + b"@x>\r\nDATA\r\n")
            self.transcript.message(100)
            self.transcript.message(20)
            self.transcript.sent(b".\r\n")
            self.transcript.received(b"550 5.7.1 no, \xff\r\n")
        self.assertEqual(
            self.lines(),
            [
                "S: 220 hi",
                "C: EHLO me",
                "S: 250-mx",
                "S: 250 SIZE",
                "C: MAIL FROM:<two@x>",
                "C: DATA",
                "C: [120 octets of the message]",
                "C: .",
                "S: 550 5.7.1 no, \ufffd",
            ],
        )

    def test_no_passwords(self) -> None:
        self.transcript.sent(b"AUTH PLAIN c2VjcmV0\r\n", secret=True)
        self.transcript.sent(b"AUTH LOGIN\r\n", secret=True)
        self.transcript.received(b"334 c2VjcmV0\r\n")
        self.transcript.sent(b"c2VjcmV0\r\n", secret=True)
        self.transcript.received(b"235 2.7.0 ok\r\n")
        self.assertNotIn("c2Vj", self.transcript.text())
        self.assertEqual(
            self.lines(),
            ["C: AUTH PLAIN [...]", "C: AUTH LOGIN", "S: 334 [...]", "C: [...]", "S: 235 2.7.0 ok"],
        )

    def test_no_messages_behind_bdat(self) -> None:
        self.transcript.sent(b"MAIL FROM:<a@x>\r\nBDAT 8000\r\n")
        self.transcript.message(8000)
        self.transcript.sent(b"BDAT 10000\r\n")
        self.transcript.message(10000)
        self.assertEqual(
            self.lines(),
            [
                "C: MAIL FROM:<a@x>",
                "C: BDAT 8000",
                "C: [8000 octets of the message]",
                "C: BDAT 10000",
                "C: [10000 octets of the message]",
            ],
        )

    def test_of_two_that_overlap_both(self) -> None:
        self.transcript.sent(b"EHLO me\r\n")
        for name in (b"one", b"two", b"three"):
            self.transcript.begin(amid=name != b"one")
            self.transcript.sent(b"MAIL FROM:<" + name + b"@x>\r\n")
            self.transcript.message(9)
        self.transcript.received(b"250 two\r\n")
        self.assertEqual(
            self.lines(),
            [
                "C: EHLO me",
                "C: MAIL FROM:<two@x>",
                "C: [9 octets of the message]",
                "C: MAIL FROM:<three@x>",
                "C: [9 octets of the message]",
                "S: 250 two",
            ],
        )

    def test_it_is_bounded(self) -> None:
        for number in range(1000):
            self.transcript.received(b"250 %d " % number + b"x" * 100 + b"\r\n")
        self.transcript.received(b"y" * (2 * LIMIT))
        self.assertLess(len(self.transcript.text()), LIMIT + 100)
        self.assertEqual(self.lines()[0], "[...]")

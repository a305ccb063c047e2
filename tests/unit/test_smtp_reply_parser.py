"""Tests for twisted_mta.core.smtp.reply_parser."""

from __future__ import annotations

import unittest

from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp.reply_parser import MAX_LINE, MAX_LINES, ReplyError, ReplyParser


def parse(data: bytes) -> list[Reply]:
    parser = ReplyParser()
    parser.feed(data)
    found = []
    while (reply := parser.next()) is not None:
        found.append(reply)
    return found


class ReplyParserTests(unittest.TestCase):
    def test_forms_of_a_line(self) -> None:
        self.assertEqual(
            parse(b"250 OK\r\n250\r\n354 \n220-a\r\n220 b\r\n"),
            [Reply(250, "", "OK"), Reply(250, "", ""), Reply(354, "", ""), Reply(220, "", "a\nb")],
        )

    def test_enhanced_status(self) -> None:
        self.assertEqual(
            parse(b"550-5.1.1 No such\r\n550 5.1.1 user\r\n250 2.0.0\r\n550-5.7.1 a\r\n550 b\r\n"),
            [Reply(550, "5.1.1", "No such\nuser"), Reply(250, "2.0.0", ""), Reply(550, "5.7.1", "a\nb")],
        )

    def test_status_of_another_class_is_text(self) -> None:
        self.assertEqual(
            parse(b"450 5.1.1 x\r\n354 2.0.0 x\r\n"), [Reply(450, "", "5.1.1 x"), Reply(354, "", "2.0.0 x")]
        )

    def test_control_characters_do_not_reach_the_log(self) -> None:
        self.assertEqual(parse(b"250 a\x1b[2J\tb\r c\xff\r\n"), [Reply(250, "", "a?[2J b? c\ufffd")])

    def test_garbage(self) -> None:
        for line in (
            b"\r\n",
            b"hello\r\n",
            b"199 x\r\n",
            b"600 x\r\n",
            b"25 x\r\n",
            b"2500 x\r\n",
            b"250-a\r\n251 b\r\n",
            b"250x\r\n",
        ):
            with self.subTest(line=line), self.assertRaises(ReplyError):
                parse(line)

    def test_bounds(self) -> None:
        parse(b"250 " + b"x" * (MAX_LINE - 6) + b"\r\n")
        parse(b"250-x\r\n" * (MAX_LINES - 1) + b"250 x\r\n")
        for data in (b"250 " + b"x" * MAX_LINE, b"250-x\r\n" * MAX_LINES + b"250 x\r\n"):
            with self.assertRaises(ReplyError):
                parse(data)

    def test_clear_forgets_a_half_read_reply(self) -> None:
        parser = ReplyParser()
        parser.feed(b"250-a\r\n25")
        self.assertIsNone(parser.next())
        parser.clear()
        parser.feed(b"220 b\r\n")
        self.assertEqual(parser.next(), Reply(220, "", "b"))

"""Lines and literals: core.imap.wire."""

from __future__ import annotations

from unittest import TestCase

from twisted_mta.core.imap.wire import Chunk, Command, Limits, LiteralAhead, Overlong, Wasted, Wire

SMALL = Limits(line=20, command=40, waste=100)


class WireTests(TestCase):
    def wire(self, data: bytes) -> Wire:
        wire = Wire(SMALL)
        wire.feed(data)
        return wire

    def test_a_literal_within_a_command(self) -> None:
        wire = self.wire(b"a {3}\r\nb\r\n c\r\nnext\r\n")
        self.assertEqual(wire.next(), LiteralAhead(b"a ", 3, True))
        with self.assertRaises(RuntimeError):
            wire.next()
        wire.accept()
        self.assertEqual(wire.next(), Command(b"a {3}\r\nb\r\n c"))
        self.assertEqual(wire.next(), Command(b"next"))
        self.assertIsNone(wire.next())

    def test_a_line_may_be_as_long_as_the_limit(self) -> None:
        wire = Wire(SMALL)
        wire.feed(b"a" * 20 + b"\r")
        self.assertIsNone(wire.next())
        wire.feed(b"\n")
        self.assertEqual(wire.next(), Command(b"a" * 20))

    def test_a_line_that_is_too_long(self) -> None:
        wire = Wire(SMALL)
        wire.feed(b"tag " + b"a" * 17)
        self.assertEqual(wire.next(), Overlong(b"tag " + b"a" * 17))
        self.assertIsNone(wire.next())
        wire.feed(b"a" * 50)
        self.assertIsNone(wire.next())
        wire.feed(b" {5+}\r\n12345 tail\r\nb NOOP\r\n")
        self.assertEqual(wire.next(), Command(b"b NOOP"))

    def test_a_command_that_is_too_long(self) -> None:
        wire = self.wire(b"a {20+}\r\n" + b"x" * 20 + b" more than fits\r\nb\r\n")
        self.assertEqual(wire.next(), LiteralAhead(b"a ", 20, False))
        wire.accept()
        event = wire.next()
        assert isinstance(event, Overlong)
        self.assertTrue(event.start.startswith(b"a {20+}"))
        self.assertEqual(wire.next(), Command(b"b"))

    def test_waste_is_bounded(self) -> None:
        for pieces in (
            [b"x" * 60, b"x" * 60],
            [b"x" * 200],
            [b"x" * 200 + b"\r\n"],
            [b"x" * 19 + b"\r\n", b"y" * 300],
        ):
            wire = self.wire(b"x" * 21)
            self.assertIsInstance(wire.next(), Overlong)
            for piece in pieces:
                wire.feed(piece)
            events = [wire.next() for _ in range(3)]
            self.assertTrue(Wasted() in events or Overlong(b"y" * 32) in events, events)

    def test_a_refused_literal_is_passed_over(self) -> None:
        wire = self.wire(b"a {5+}\r\n12")
        wire.next()
        wire.refuse(synchronising=False)
        self.assertIsNone(wire.next())
        wire.feed(b"345\r\nb\r\n")
        self.assertEqual(wire.next(), Command(b"b"))

    def test_a_huge_refused_literal_is_waste(self) -> None:
        for size, count in ((10**15, 101), (150, 150), (101, 101)):
            wire = self.wire(b"a {%d+}\r\n" % size)
            wire.next()
            wire.refuse(synchronising=False)
            wire.feed(b"x" * count)
            self.assertEqual(wire.next(), Wasted())

    def test_a_streamed_literal(self) -> None:
        wire = self.wire(b"a {5}\r\n")
        wire.next()
        wire.stream()
        self.assertIsNone(wire.next())
        wire.feed(b"123")
        self.assertEqual(wire.next(), Chunk(b"123", last=False))
        wire.feed(b"45\r\n")
        self.assertEqual(wire.next(), Chunk(b"45", last=True))
        self.assertEqual(wire.next(), Command(b""))

    def test_an_empty_streamed_literal(self) -> None:
        wire = self.wire(b"a {0}\r\n")
        wire.next()
        wire.stream()
        self.assertEqual(wire.next(), Chunk(b"", last=True))

    def test_a_raw_line_is_no_literal(self) -> None:
        wire = self.wire(b"x {5+}\r\nb {1}\r\n")
        wire.expect_line()
        self.assertEqual(wire.next(), Command(b"x {5+}"))
        self.assertEqual(wire.next(), LiteralAhead(b"b ", 1, True))

    def test_reset_forgets_all(self) -> None:
        wire = self.wire(b"a {5+}\r\n1")
        wire.next()
        wire.accept()
        wire.reset()
        wire.feed(b"b\r\n")
        self.assertEqual(wire.next(), Command(b"b"))

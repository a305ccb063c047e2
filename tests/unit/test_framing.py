"""Tests for twisted_mta.core.framing."""

from __future__ import annotations

import itertools
import unittest

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core.framing import DotStuffer

_TEXT = st.lists(st.sampled_from([b"\r\n", b".", b"a", b"\r", b"\n", b"..", b"\r\n."]), max_size=12).map(
    b"".join
)


def stuff(*chunks: bytes) -> bytes:
    stuffer = DotStuffer()
    return b"".join([stuffer.feed(chunk) for chunk in chunks]) + stuffer.finish()


class DotStufferTests(unittest.TestCase):
    def test_leading_dots_are_doubled(self) -> None:
        self.assertEqual(stuff(b".a\r\n..b\r\nc.\r\n"), b"..a\r\n...b\r\nc.\r\n.\r\n")

    def test_empty_message(self) -> None:
        self.assertEqual(stuff(), b".\r\n")

    def test_last_line_is_ended(self) -> None:
        self.assertEqual(stuff(b"a"), b"a\r\n.\r\n")

    def test_dot_after_line_end_in_next_chunk(self) -> None:
        self.assertEqual(stuff(b"a\r", b"\n", b".\r\n"), b"a\r\n..\r\n.\r\n")

    def test_bare_line_ends_are_made_whole(self) -> None:
        """No smuggling through us: what a sloppy peer would take for the end of the message is stuffed."""
        self.assertEqual(stuff(b"a\n.\nb\r.\rc"), b"a\r\n..\r\nb\r\n..\r\nc\r\n.\r\n")

    def test_bare_cr_at_the_very_end(self) -> None:
        self.assertEqual(stuff(b"a\r"), b"a\r\n.\r\n")

    @settings(max_examples=150)
    @given(_TEXT, st.lists(st.integers(0, 40), max_size=6))
    def test_any_split_gives_the_same_octets(self, text: bytes, cuts: list[int]) -> None:
        points = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
        chunks = [text[a:b] for a, b in itertools.pairwise(points)]
        self.assertEqual(stuff(*chunks), stuff(text))

    @settings(max_examples=150)
    @given(_TEXT)
    def test_the_dot_stands_alone_only_at_the_end(self, text: bytes) -> None:
        wire = stuff(text)
        self.assertEqual((b"\r\n" + wire).find(b"\r\n.\r\n"), len(wire) - 3)
        self.assertNotIn(b"\n", wire.replace(b"\r\n", b""))
        self.assertNotIn(b"\r", wire.replace(b"\r\n", b""))

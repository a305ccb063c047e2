"""mboxrd: what is quoted, however the octets come."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.mbox import MboxLines, from_line

_PIECES = st.lists(
    st.sampled_from([b"From ", b">", b"\n", b"F", b"Fr", b"From", b"m ", b"x", b" ", b"\n\n"]), max_size=30
)


def quoted(*chunks: bytes) -> bytes:
    lines = MboxLines()
    return b"".join(map(lines.feed, chunks)) + lines.finish()


class QuotingTests(SynchronousTestCase):
    def test_lines(self) -> None:
        for given_lines, wanted in (
            (b"From x\n", b">From x\n\n"),
            (b">From x\n", b">>From x\n\n"),
            (b">>>From x\n", b">>>>From x\n\n"),
            (b"From\n", b"From\n\n"),
            (b" From x\n", b" From x\n\n"),
            (b"x From y\n", b"x From y\n\n"),
            (b"FROM x\n", b"FROM x\n\n"),
            (b"x\nFrom y\n", b"x\n>From y\n\n"),
            (b"", b"\n"),
            (b"x", b"x\n\n"),
            (b"From", b"From\n\n"),
            (b"From ", b">From \n\n"),
        ):
            self.assertEqual(quoted(given_lines), wanted)

    @given(_PIECES)
    def test_any_split_gives_the_same(self, pieces: list[bytes]) -> None:
        whole = b"".join(pieces)
        wanted = re.sub(rb"(?m)^(>*From )", rb">\1", whole)
        wanted += b"\n" if not wanted or wanted.endswith(b"\n") else b"\n\n"
        self.assertEqual(quoted(whole), wanted)
        self.assertEqual(quoted(*pieces), wanted)
        self.assertEqual(quoted(*(whole[at : at + 1] for at in range(len(whole)))), wanted)

    def test_what_is_held_back_is_bounded(self) -> None:
        lines = MboxLines()
        self.assertEqual(len(lines.feed(b">" * 100_000)), 100_000)
        self.assertEqual(lines.feed(b"From "), b">From ")


class FromLineTests(SynchronousTestCase):
    def test_senders(self) -> None:
        for sender, who in (
            (None, b"MAILER-DAEMON"),
            (Address("a", "b.example"), b"a@b.example"),
            (Address("a b", "c.example"), b'"a_b"@c.example'),
            (Address("caf\udce9", "c.example"), b"caf\xe9@c.example"),
        ):
            self.assertEqual(from_line(sender, 1_800_000_000.9), b"From %s Fri Jan 15 08:00:00 2027\n" % who)

    def test_short_days_are_padded(self) -> None:
        self.assertEqual(from_line(None, 0), b"From MAILER-DAEMON Thu Jan  1 00:00:00 1970\n")

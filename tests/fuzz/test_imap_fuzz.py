"""Hostile bytes at the IMAP server: only effects may come out, and memory stays bounded."""

from __future__ import annotations

from unittest import TestCase

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.imap_world import Whole
from twisted_mta.core.imap.bodystructure import body_structure, envelope
from twisted_mta.core.imap.commands import COMMANDS
from twisted_mta.core.imap.fetch import Section, section_octets
from twisted_mta.core.imap.session import ImapSettings
from twisted_mta.core.imap.wire import Limits
from twisted_mta.core.mime import body_text, header_text, parse_structure

SETTINGS = ImapSettings(
    hostname="h",
    plaintext_login=True,
    append_limit=50,
    errors=1000,
    limits=Limits(line=200, command=300, waste=2000),
)
MESSAGE = b"Subject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b--\r\n"

WORDS = [
    *COMMANDS, b"UID", b"INBOX", b"*", b"1", b"1:*", b"(", b")", b"()", b"NIL", b'""', b'"a', b"{3}\r\n", b"{3+}\r\nabc",
    b"{0+}\r\n", b"{60+}\r\n", b"~{1}", b"\\Seen", b"(\\Deleted $x)", b"+FLAGS", b"FLAGS.SILENT", b"BODY[]", b"BODY[1.MIME]",
    b"BODY.PEEK[HEADER.FIELDS (a)]<0.1>", b"ENVELOPE", b"BODYSTRUCTURE", b"FULL", b"OR", b"NOT", b"TEXT", b"HEADER", b"SINCE",
    b"1-Jan-2026", b"CHARSET", b"UTF-8", b"%", b"&AOk-", b"&", b"DONE", b"=", b"AGFsaWNlAHNlY3JldA==", b"MESSAGES", b"\0",
    b"\xff", b"\r", b"\n", b"99999999999", b"<", b"[", b"]",
]  # fmt: skip

line = st.lists(st.sampled_from(WORDS), max_size=6).map(lambda words: b"t " + b" ".join(words) + b"\r\n")
noise = st.binary(max_size=40)


class CommandFuzzTests(TestCase):
    @given(st.lists(st.one_of(line, line, line, noise), max_size=12), st.booleans())
    @settings(max_examples=150)
    def test_anything(self, pieces: list[bytes], logged_in: bool) -> None:
        whole = Whole(SETTINGS, [MESSAGE, b"\r\n"])
        start = b"a LOGIN alice secret\r\nb SELECT INBOX\r\n" if logged_in else b""
        whole.converse([start])
        out = whole.converse(pieces)
        self.assertNotIn(b"SERVERBUG", out)
        for reply in out.split(b"\r\n"):
            if reply.startswith(b"t "):
                self.assertIn(reply.split(b" ")[1], (b"OK", b"NO", b"BAD"))


MIME_PIECES = [
    b"Content-Type: multipart/mixed; boundary=b\r\n", b"Content-Type: multipart/digest; boundary=\"b\"\r\n",
    b"Content-Type: message/rfc822\r\n", b"Content-Type: text/html; charset=utf-16\r\n", b"Content-Type: text/plain; charset=",
    b"Content-Transfer-Encoding: base64\r\n", b"Content-Transfer-Encoding: quoted-printable\r\n", b"Content-Disposition: x; a=\"\r\n",
    b"From: a <b@c>, (\r\n", b"To: g: x@y;\r\n", b"Subject: =?utf-8?b?w7w=?= =?x?q?=?=\r\n", b"Date: 1 Jan 2026\r\n",
    b"\r\n", b"--b\r\n", b"--b--\r\n", b"text=\r\n", b"=C3=BC", b"\0", b"\xff\xfe", b"<p>&amp;&#xfffffff;", b"\n", b"\r",
]  # fmt: skip


class MessageFuzzTests(TestCase):
    @given(st.lists(st.one_of(st.sampled_from(MIME_PIECES), st.binary(max_size=10)), max_size=25))
    @settings(max_examples=200)
    def test_any_message_can_be_shown(self, pieces: list[bytes]) -> None:
        message = b"".join(pieces)
        root = parse_structure(message)
        for extended in (False, True):
            shown = body_structure(message, root, extended)
            self.assertTrue(shown.startswith(b"(") and shown.endswith(b")"))
        header = section_octets(message, root, Section(text=b"HEADER"))
        body = section_octets(message, root, Section(text=b"TEXT"))
        assert header is not None
        assert body is not None
        self.assertEqual(header + body, message)
        envelope(header)
        header_text(header)
        body_text(message, root)

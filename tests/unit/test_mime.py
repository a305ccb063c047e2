"""MIME structure and text: twisted_mta.core.mime."""

from __future__ import annotations

import time
from unittest import TestCase

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core import mime
from twisted_mta.core.mime import (
    MAX_DEPTH,
    MAX_PARTS,
    Part,
    body_text,
    decode_base64,
    decode_charset,
    decode_words,
    fold,
    parse_parameters,
    parse_structure,
    part_text,
)


def crlf(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def shape(part: Part) -> str:
    inner = ",".join(shape(child) for child in part.children)
    return f"{part.type.decode()}/{part.subtype.decode()}" + (f"({inner})" if inner else "")


class ParametersTests(TestCase):
    def test_quotes_comments_and_nonsense(self) -> None:
        value = b'text/plain; charset="us; \\"ascii"; x=y (a comment); =no; none; open="ab'
        main, parameters = parse_parameters(value)
        self.assertEqual(main, b"text/plain")
        self.assertEqual(parameters, ((b"charset", b'us; "ascii'), (b"x", b"y"), (b"open", b"ab")))

    def test_no_more_than_the_bound(self) -> None:
        _, parameters = parse_parameters(b"a" + b"; x=1" * 1000)
        self.assertEqual(len(parameters), mime.MAX_PARAMETERS)


class StructureTests(TestCase):
    def test_defaults(self) -> None:
        for header in ("", "Content-Type: nonsense\n", "Content-Type: text/\n"):
            part = parse_structure(crlf(header + "\nbody"))
            self.assertEqual(shape(part), "TEXT/PLAIN")
            self.assertEqual(part.parameters, ((b"charset", b"us-ascii"),))
            self.assertEqual(part.encoding, b"7BIT")

    def test_no_body_and_no_header(self) -> None:
        part = parse_structure(b"Subject: x\r\n")
        self.assertEqual((part.body, part.end), (12, 12))
        self.assertEqual(parse_structure(b"\r\nbody").body, 2)

    def test_delimiters(self) -> None:
        message = crlf(
            "Content-Type: multipart/mixed; boundary=b\n\n"
            "preamble --b\n--bb\nno delimiter\n--b  \n\none\n--bx\n--b\n\ntwo\n--b--\nepilogue\n--b\n\nnot a part"
        )
        root = parse_structure(message)
        bodies = [message[part.body : part.end] for part in root.children]
        self.assertEqual(bodies, [b"one\r\n--bx", b"two"])

    def test_an_unfinished_multipart_and_empty_parts(self) -> None:
        message = crlf("Content-Type: multipart/mixed; boundary=b\n\n--b\n--b\n\n--b\n\nlast")
        root = parse_structure(message)
        self.assertEqual([message[part.body : part.end] for part in root.children], [b"", b"", b"last"])
        cut = parse_structure(crlf("Content-Type: multipart/mixed; boundary=b\n\n--b"))
        self.assertEqual([(part.start, part.end) for part in cut.children], [(cut.end, cut.end)])

    def test_a_multipart_without_parts_is_text(self) -> None:
        for parameters in ("", "; boundary=b", '; boundary=""'):
            part = parse_structure(crlf(f"Content-Type: multipart/mixed{parameters}\n\nnothing"))
            self.assertEqual(shape(part), "TEXT/PLAIN")
            self.assertEqual(part.parameters, ())

    def test_an_encoded_message_is_not_looked_into(self) -> None:
        part = parse_structure(
            crlf("Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\nU3ViamVjdDogeA==")
        )
        self.assertEqual(shape(part), "APPLICATION/OCTET-STREAM")
        self.assertIsNone(part.embedded)
        plain = parse_structure(crlf("Content-Type: message/rfc822\n\nSubject: x\n\ny"))
        self.assertEqual(shape(plain), "MESSAGE/RFC822(TEXT/PLAIN)")

    def test_depth_is_bounded(self) -> None:
        nested = parse_structure(b"Content-Type: message/rfc822\r\n\r\n" * (MAX_DEPTH + 10))
        depth = 0
        while nested.embedded is not None:
            nested, depth = nested.embedded, depth + 1
        self.assertEqual(depth, MAX_DEPTH)
        wide = "".join(
            f"Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n" for n in range(MAX_DEPTH + 10)
        )
        node, depth = parse_structure(crlf(wide)), 0
        while node.children:
            node, depth = node.children[0], depth + 1
        self.assertEqual(depth, MAX_DEPTH)

    def test_parts_are_bounded(self) -> None:
        message = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\n" * (MAX_PARTS + 50)
        self.assertEqual(len(parse_structure(message).children), MAX_PARTS)

    def test_hostile_messages_take_no_time(self) -> None:
        began = time.process_time()
        header = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        for piece in (b"--b", b"\r\n--", b"--b\r", b"\n--b", b"\r\n--b \t", b"\r\n--b\r", b"a"):
            parse_structure(header + piece * 100000)
        self.assertLess(time.process_time() - began, 10.0)

    @given(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(
                [b"--b\r\n", b"--b--\r\n", b"\r\n", b"x", b"Content-Type: multipart/digest; boundary=b\r\n"]
            )
        ),
    )
    @settings(max_examples=100)
    def test_parts_lie_within_their_parents(self, noise: bytes, pieces: list[bytes]) -> None:
        message = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"".join(pieces) + noise

        def check(part: Part) -> None:
            self.assertTrue(part.start <= part.body <= part.end)
            at = part.body
            for child in part.children:
                self.assertTrue(at <= child.start and child.end <= part.end)
                at = child.end
                check(child)

        check(parse_structure(message))


class TextTests(TestCase):
    def test_encoded_words(self) -> None:
        cases = {
            b"plain": "plain",
            b"=?utf-8?Q?a_=C3=BC?=": "a ü",
            b"=?utf-8?b?w7w=?= =?utf-8?b?w7w=?= x": "üü x",
            b"=?utf-8?b?ww==?= =?utf-8?b?vA==?=": "ü",  # a character cut in two
            b"=?utf-8?q?=C3=BC?= and =?iso-8859-1?q?=FC?=": "ü and ü",
            b"=?utf-8?q?a?= =?iso-8859-1*de?q?b?=": "ab",
            b"=?x-unknown?q?=C3=BC?=": "ü",
            b"=?utf-8?x?no?= =?broken": "=?utf-8?x?no?= =?broken",
            "roh ü".encode(): "roh ü",
            "roh ü".encode("latin-1"): "roh ü",
        }
        for value, text in cases.items():
            with self.subTest(value):
                self.assertEqual(decode_words(value), text)

    def test_charsets(self) -> None:
        self.assertEqual(decode_charset(b"\xfc", "ISO-8859-1"), "ü")
        self.assertEqual(decode_charset(b"\x84", "windows-1252"), "„")
        # No text codecs, and slow ones.
        for name in ("zip", "punycode", "idna", "unicode_escape", "iso-8859-12", ""):
            self.assertEqual(decode_charset("ü".encode(), name), "ü")

    def test_base64(self) -> None:
        self.assertEqual(decode_base64(b"aGVs\r\nbG8=\r\n"), b"hello")
        self.assertEqual(decode_base64(b"aGVs!bG8"), b"hello")
        self.assertEqual(decode_base64(b"aGVsb"), b"hel")

    def test_part_text(self) -> None:
        def text(header: str, body: bytes) -> str:
            message = crlf(header + "\n") + body
            return part_text(message, parse_structure(message))

        self.assertEqual(text("", "ü".encode()), "ü")
        self.assertEqual(text("Content-Transfer-Encoding: base64\n", b"w7w="), "ü")
        self.assertEqual(
            text(
                "Content-Type: text/plain; charset=latin1\nContent-Transfer-Encoding: Quoted-Printable\n",
                b"=FC",
            ),
            "ü",
        )
        self.assertEqual(text("Content-Type: text/html\n", b"<p class='x'>a &amp; b</p> <"), "a & b <")

    def test_text_is_bounded(self) -> None:
        message = b"\r\n" + b"x" * (mime.MAX_TEXT + 10)
        self.assertEqual(len(part_text(message, parse_structure(message))), mime.MAX_TEXT)

    def test_body_text_has_the_headers_of_embedded_messages_and_no_attachments(self) -> None:
        message = crlf(
            "Content-Type: multipart/mixed; boundary=b\n\n--b\n\nfirst\n--b\nContent-Type: message/rfc822\n\n"
            "Subject: =?utf-8?q?=C3=BC?=\n\ninner\n--b\nContent-Type: image/png\n\npixels\n--b--\n"
        )
        text = body_text(message, parse_structure(message))
        self.assertEqual(text, "first\nSubject: ü\ninner")

    def test_fold(self) -> None:
        self.assertEqual(fold("STRASSE\r\n  u\u0308"), fold("straße ü"))

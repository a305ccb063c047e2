"""core.downgrade: the same content in octets that every host takes."""

from __future__ import annotations

import email
import email.message
import re
import unittest

from hypothesis import example, given, settings
from hypothesis import strategies as st

from twisted_mta.core.downgrade import Undowngradable, downgrade, has_utf8_header

MIME = b"MIME-Version: 1.0\r\n"


def crlf(text: str) -> bytes:
    return text.encode().replace(b"\n", b"\r\n")


class Cases(unittest.TestCase):
    def seven(self, message: bytes) -> bytes:
        result = downgrade(message, "7bit")
        self.check(result, "7bit")
        self.assertEqual(contents(message), contents(result))
        return result

    def check(self, message: bytes, to: str, changed: bool = True) -> None:
        """Nothing but what is allowed; where nothing had to be done, too much may be claimed still."""
        if to == "7bit":
            self.assertTrue(message.isascii())
        if to == "7bit" and changed:
            self.assertNotRegex(message.lower(), rb"(?m)^content-transfer-encoding:\s*(?:8bit|binary)")
        self.assertNotIn(b"\0", message)
        self.assertIsNone(re.search(rb"\r(?!\n)|(?<!\r)\n", message))
        self.assertLessEqual(max(map(len, message.split(b"\r\n"))), 998)

    def refused(self, message: bytes, why: str, to: str = "7bit") -> None:
        with self.assertRaisesRegex(Undowngradable, why):
            downgrade(message, to)


def contents(message: bytes) -> list[tuple[str, bytes]]:
    """The type and the decoded content of every leaf, by the standard library; line ends at the end do not count."""
    found = []
    for part in email.message_from_bytes(message).walk():
        assert isinstance(part, email.message.Message)
        if not part.is_multipart():
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            found.append((part.get_content_type(), payload.rstrip(b"\r\n")))
    return found


class DowngradeTests(Cases):
    def test_what_is_fine_is_the_same(self) -> None:
        for message in (
            b"",
            b"\r\n",
            b"Subject: x\r\n\r\nbody\r\n",
            MIME + b"Content-Transfer-Encoding: 8bit\r\n\r\nx",
        ):
            self.assertIs(downgrade(message, "7bit"), message)
        high = b"Subject: \xc3\xa4\r\n\r\n\xc3\xa4\r\n"
        self.assertIs(downgrade(high, "8bit"), high)
        with self.assertRaises(ValueError):
            downgrade(b"", "9bit")

    def test_text(self) -> None:
        text = "MIME-Version: 1.0\nContent-type: text/plain;\n charset=utf-8\nX: 1\ncontent-transfer-encoding: 8BIT\nY: 2\n\n"
        body = "Grüße = \t\n" + "x" * 80 + "ö\n\n trailing \n"
        self.assertEqual(
            self.seven(crlf(text + body)),
            crlf(
                text.replace("content-transfer-encoding: 8BIT", "Content-Transfer-Encoding: quoted-printable")
                + "Gr=C3=BC=C3=9Fe =3D =09\n"
                + "x" * 75
                + "=\n"
                + "x" * 5
                + "=C3=B6\n\n trailing=20\n"
            ),
        )

    def test_much_beyond_ascii_becomes_base64(self) -> None:
        header = MIME + b"Content-Type: text/plain; charset=utf-8\r\n"
        result = self.seven(header + b"\r\n" + "Привет, мир\r\n".encode())
        self.assertEqual(
            result, header + b"Content-Transfer-Encoding: base64\r\n\r\n0J/RgNC40LLQtdGCLCDQvNC40YANCg==\r\n"
        )

    def test_from_before_mime(self) -> None:
        self.assertEqual(
            self.seven(b"Subject: x\r\n\r\nna\xefve text of old\r\n"),
            b"Subject: x\r\nContent-Type: text/plain; charset=unknown-8bit\r\nMIME-Version: 1.0\r\n"
            b"Content-Transfer-Encoding: quoted-printable\r\n\r\nna=EFve text of old\r\n",
        )
        self.assertIn(
            b"Content-Type: text/html\r\nMIME-Version: 1.0\r\n",
            self.seven(b"Content-Type: text/html\r\n\r\nsome long text that is n\xe4ive\r\n"),
        )
        self.assertTrue(
            self.seven(b"\r\n\x80 is it all and nothing else").startswith(b"Content-Type: text/plain")
        )

    NESTED = (
        'Subject: s\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="a b"\nContent-Transfer-Encoding: 8bit\n\n'
        "für alte Programme\n--a b\nContent-Type: multipart/alternative; boundary=in\nContent-Transfer-Encoding: binary\n\n"
        "--in\n\nplain\n--in\nContent-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n<p>Grüße aus der Ferne</p>\n"
        "--in--\n--a b  \nContent-Type: image/png\nContent-Transfer-Encoding: base64\n\niVBORw0KGgo=\n"
        "--a b\nContent-Type: application/x\nContent-Transfer-Encoding: 8bit\n\nÄÖÜ\n"
        "--a b\nContent-Transfer-Encoding: 8bit\n\nonly said so\n"
        "--a b\nContent-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\n\n"
        "Subject: inner\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\ninnere Größe der Dinge\n"
        "--a b--\nnoch etwas für niemand\n"
    )

    def test_only_the_parts_that_need_it(self) -> None:
        result = self.seven(crlf(self.NESTED))
        expected = (
            self.NESTED.replace("für alte", "f??r alte")
            .replace("für niemand", "f??r niemand")
            .replace("Encoding: binary", "Encoding: 7bit")
            .replace("Encoding: 8bit\n\n<p>Grüße", "Encoding: quoted-printable\n\n<p>Gr=C3=BC=C3=9Fe")
            .replace("Encoding: 8bit\n\nÄÖÜ\n", "Encoding: base64\n\nw4TDlsOc\n")
            .replace("Encoding: 8bit\n\ninnere Größe", "Encoding: quoted-printable\n\ninnere Gr=C3=B6=C3=9Fe")
            .replace("8bit", "7bit")
        )
        self.assertEqual(result, crlf(expected))

    def test_binary(self) -> None:
        header = MIME + b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        for body in (
            b"\0",
            b"a\nb",
            b"a\rb",
            b"\n",
            b"x" * 999,
            b"\r\n" + b"x" * 999 + b"\r\n",
            b"a\r\n" + b"\xff" * 999,
        ):
            for to in ("7bit", "8bit"):
                result = downgrade(header + body, to)
                self.check(result, to)
                self.assertIn(b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", result)
                payload = email.message_from_bytes(result).get_payload(decode=True)
                self.assertEqual(payload, body)
        for body, label in ((b"x" * 998 + b"\r\n" + b"y" * 998, b"7bit"), (b"\xff\r\n", b"8bit")):
            self.assertEqual(downgrade(header + body, "8bit"), header.replace(b"binary", label) + body)

    def test_long_lines_of_text(self) -> None:
        message = MIME + b"Content-Type: text/plain\r\n\r\n" + b"word " * 1000 + b"\r\n" + b"x\ny\r\n"
        self.assertEqual(
            contents(downgrade(message, "8bit")), [("text/plain", message.split(b"\r\n\r\n")[1][:-2])]
        )

    def test_text_is_encoded_in_blocks(self) -> None:
        header = MIME + b"Content-Type: text/plain\r\n\r\n"
        lines = "ein schöner langer Tag\r\n\r\n".encode() * 9000
        result = self.seven(header + lines)
        self.assertEqual(result.count(b"ein sch=C3=B6ner langer Tag\r\n\r\n"), 9000)
        for body in (b"no line end " * 9000 + b"\xe4", b"\r\n" + b"x y\n" * 30000 + b"\xe4\r\n"):
            self.assertIn(b"base64", self.seven(header + body))

    def test_what_could_look_like_a_delimiter(self) -> None:
        text = "x" * 75 + "--b\n and ä\n"
        message = crlf(
            "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n"
            f"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n{text}\n--b--\n"
        )
        self.assertIn(b"base64", self.seven(message))

    def test_several_encodings_are_one_afterwards(self) -> None:
        message = (
            MIME
            + b"Content-Transfer-Encoding: 8bit\r\nX: y\r\nContent-Transfer-Encoding: binary\r\n\r\nlong enough text \xe4\r\n"
        )
        self.assertEqual(self.seven(message).lower().count(b"transfer-encoding"), 1)

    def test_globals_may_be_encoded(self) -> None:
        message = MIME + "Content-Type: message/global\r\n\r\nSubject: ä\r\n\r\nbody\r\n".encode()
        result = downgrade(message, "7bit")
        self.assertIn(b"Content-Transfer-Encoding: base64", result)

    def test_signed(self) -> None:
        def signed(text: str) -> bytes:
            return crlf(
                "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=o\nContent-Transfer-Encoding: 8bit\n\n"
                "--o\nContent-Type: text/plain\nContent-Transfer-Encoding: 8bit\n\nunsigned grüße to all of you\n"
                "--o\nContent-Type: multipart/signed; boundary=s; protocol=p\nContent-Transfer-Encoding: 8bit\n\n"
                f"--s\nContent-Transfer-Encoding: 8bit\n\n{text}\n--s\nContent-Type: application/p\n\nsig\n--s--\n--o--\n"
            )

        result = downgrade(signed("plain"), "7bit")
        self.assertIn(crlf("7bit\n\n--s\nContent-Transfer-Encoding: 8bit\n\nplain\n--s\n"), result)
        self.assertIn(b"gr=C3=BC=C3=9Fe", result)
        self.refused(signed("grüße"), "signed")

    def test_what_can_not_be_converted(self) -> None:
        self.refused("Subject: ä\r\n\r\n".encode(), "header")
        self.refused(MIME + b"Content-Type: message/partial; id=x\r\n\r\n\xff", "message/partial")
        self.refused(MIME + b"Content-Type: multipart/mixed\r\n\r\nno boundary \xff", "multipart/mixed")
        self.refused(
            MIME + b"Content-Transfer-Encoding: Quoted-Printable\r\n\r\n\xff", "says it is quoted-printable"
        )
        self.refused(MIME + b"Content-Transfer-Encoding: x-uu\x01\r\n\r\n\xff", r"says it is x-uu\?")
        self.refused(b"Subject: " + b"x" * 999 + b"\r\n\r\n", "allowed nowhere", "8bit")
        many = b"--b\r\n\r\n\r\n" * 1001 + b"--b\r\n\r\n\xff\r\n--b--\r\n"
        self.refused(MIME + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + many, "too many parts")

    def test_encoded_parts_beside_others(self) -> None:
        message = crlf(
            "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Transfer-Encoding: x-unknown\n\nxyz\n"
            "--b\nContent-Type: text/plain; charset=utf-8\n\nein schöner Tag war das\n--b--\n"
        )
        self.assertIn(b"x-unknown\r\n\r\nxyz\r\n--b", self.seven(message))


TEXTS = st.text(st.sampled_from("aä=\n\r \t.-€\0"), max_size=120)
TYPES = st.sampled_from(["text/plain; charset=utf-8", "text/html", "application/octet-stream", "image/png"])
LEAVES = st.tuples(TYPES, st.sampled_from(["", "7bit", "8bit", "binary"]), TEXTS)


class PropertyTests(Cases):
    @settings(max_examples=200)
    @given(st.lists(LEAVES, max_size=4), st.sampled_from(["7bit", "8bit"]))
    @example([("text/plain", "8bit", "ä" + "=" * 76)], "7bit")
    def test_the_content_stays(self, leaves: list[tuple[str, str, str]], to: str) -> None:
        parts = []
        for kind, encoding, text in leaves:
            label = f"Content-Transfer-Encoding: {encoding}\r\n" if encoding else ""
            parts.append(f"--=_b\r\nContent-Type: {kind}\r\n{label}\r\n".encode() + text.encode() + b"\r\n")
        message = (
            MIME + b'Content-Type: multipart/mixed; boundary="=_b"\r\n\r\n' + b"".join(parts) + b"--=_b--\r\n"
        )
        result = downgrade(message, to)
        self.check(result, to, changed=result != message)
        found = [payload for _, payload in contents(result)] if leaves else []
        self.assertEqual(found, [text.encode().rstrip(b"\r\n") for _, _, text in leaves])
        self.assertEqual(downgrade(result, to), result)

    @settings(max_examples=200)
    @given(
        st.lists(
            st.sampled_from(
                [
                    b"\r\n",
                    b"--b\r\n",
                    b"--b--\r\n",
                    b"Content-Type: multipart/mixed; boundary=b\r\n",
                    b"\xff",
                    b"\n",
                    b"\r",
                    b"\0",
                    b"Content-Type: message/rfc822\r\n",
                    b"Content-Transfer-Encoding: binary\r\n",
                    b"text\r\n",
                    b"x" * 999,
                    b"Content-Type: multipart/signed; boundary=b\r\n",
                ]
            ),
            max_size=16,
        ).map(b"".join),
        st.sampled_from(["7bit", "8bit"]),
    )
    def test_fit_to_be_sent_or_refused(self, message: bytes, to: str) -> None:
        try:
            result = downgrade(message, to)
        except Undowngradable:
            return
        self.check(result, to, changed=False)


class HeaderTests(unittest.TestCase):
    """RFC 6531 §3.2: what needs SMTPUTF8 for its header."""

    def test_where_it_is(self) -> None:
        parts = (
            b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n%b\r\n--b--\r\n"
        )
        for message, expected in (
            (b"Subject: x\r\n\r\nx\r\n", False),
            (b"Subject: x\r\n\r\n\xc3\xb6\r\n", False),
            (b"Subject: \xc3\xb6\r\n\r\nx\r\n", True),
            (parts % b"X: y\r\n\r\n\xc3\xb6", False),
            (parts % b"X: \xc3\xb6\r\n\r\ny", True),
            (parts % b"Content-Type: message/rfc822\r\n\r\nX: \xc3\xb6\r\n\r\ny", True),
        ):
            self.assertEqual(has_utf8_header(message), expected, message)

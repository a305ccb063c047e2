"""`mta sendmail` up to the wire: flags, line ends, header fields, recipients."""

from __future__ import annotations

import email
import email.policy
import io
import unittest
from itertools import pairwise

import attrs
from hypothesis import given
from hypothesis import strategies as st

from twisted_mta.admin.errors import AdminError
from twisted_mta.admin.message import Prepared, prepare, read_body
from twisted_mta.admin.sendmail import Flags, parse_flags
from twisted_mta.admin.smtp_client import TypedLines, mx_listener
from twisted_mta.config import schema
from twisted_mta.core.address import Address


class FlagsTests(unittest.TestCase):
    """The command line of cron, PHP, mutt, git and others."""

    def check(self, line: str, **expected: object) -> None:
        self.assertEqual(parse_flags(line.split()), Flags(**expected), line)  # type: ignore[arg-type]

    def test_known_callers(self) -> None:
        self.check("-t -i", from_header=True, ignore_dots=True)  # PHP
        self.check(
            "-FCronDaemon -i -B8BITMIME -oem root",
            full_name="CronDaemon",
            ignore_dots=True,
            recipients=["root"],
        )
        self.check("-oem -oi -f a@b -- c@d e@f", sender="a@b", ignore_dots=True, recipients=["c@d", "e@f"])
        self.check("-i -f a@b c@d", sender="a@b", ignore_dots=True, recipients=["c@d"])  # git send-email
        self.check("-ti -r bob", from_header=True, ignore_dots=True, sender="bob")

    def test_values_attached_or_not(self) -> None:
        self.check("-f a@b x", sender="a@b", recipients=["x"])
        self.check("-fa@b x", sender="a@b", recipients=["x"])
        self.check("-tfa@b", from_header=True, sender="a@b")
        self.check("-N never -R hdrs -V id -h 5 -O x=y -X log x", recipients=["x"])
        self.check("-q30m -v -m -n -U", verbose=True)
        self.assertEqual(parse_flags(["-F", "A B", "-f", "<>"]), Flags(full_name="A B", sender="<>"))

    def test_modes(self) -> None:
        for mode in "mspi":
            self.check(f"-b{mode}", mode=mode)
            self.check(f"-b {mode}", mode=mode)

    def test_mistakes(self) -> None:
        for line in ("-f", "-t -F", "-Z", "-bd", "-b", "--bogus"):
            with self.assertRaises(AdminError) as caught:
                parse_flags(line.split())
            self.assertEqual(caught.exception.status, 64)


class BodyTests(unittest.TestCase):
    """Line ends and dots."""

    def read(self, data: bytes, dots: bool = True) -> bytes:
        return read_body(io.BytesIO(data), dots=dots, limit=1000)

    def test_line_ends(self) -> None:
        for data in (b"a\nb\n", b"a\r\nb\r\n", b"a\rb\r", b"a\nb", b"a\r\nb"):
            self.assertEqual(self.read(data), b"a\r\nb\r\n")
        self.assertEqual(self.read(b""), b"")

    def test_dot_ends_it(self) -> None:
        for data in (b"a\n.\nb\n", b"a\n.", b"a\r\n.\r\nb", b"a\n.\n"):
            self.assertEqual(self.read(data), b"a\r\n", data)
        for data in (b".", b".\n", b".\r\na\r\n"):
            self.assertEqual(self.read(data), b"", data)

    def test_dot_does_not_with_i(self) -> None:
        self.assertEqual(self.read(b"a\n.\nb\n", dots=False), b"a\r\n.\r\nb\r\n")
        self.assertEqual(self.read(b"..\n. \n"), b"..\r\n. \r\n")

    def test_limit(self) -> None:
        self.assertEqual(len(self.read(b"x" * 998 + b"\n\n")), 1002)
        with self.assertRaises(AdminError) as caught:
            self.read(b"x" * 1001)
        self.assertEqual(caught.exception.status, 65)

    @given(st.binary(max_size=60), st.booleans())
    def test_never_a_bare_cr_or_lf(self, data: bytes, dots: bool) -> None:
        read = self.read(data, dots)
        self.assertEqual(read.replace(b"\r\n", b"").translate(None, b"\r\n"), read.replace(b"\r\n", b""))
        self.assertTrue(not read or read.endswith(b"\r\n"))


class PrepareTests(unittest.TestCase):
    """What is added, and what is taken away."""

    def prepare(self, data: bytes, from_header: bool = False, full_name: str = "") -> Prepared:
        return prepare(
            data,
            author=Address("alice", "example.test"),
            full_name=full_name,
            from_header=from_header,
            hostname="mail.example.test",
        )

    def test_missing_fields_are_added(self) -> None:
        data = self.prepare(b"Subject: hi\r\n\r\nbody\r\n").data
        message = email.message_from_bytes(data, policy=email.policy.default)
        self.assertEqual(message["From"], "alice@example.test")
        self.assertIsNotNone(message["Date"].datetime.tzinfo)
        self.assertRegex(message["Message-ID"], r"\A<[0-9a-f.]+@mail\.example\.test>\Z")
        self.assertTrue(data.endswith(b"Subject: hi\r\n\r\nbody\r\n"))

    def test_fields_that_are_there_stay(self) -> None:
        data = b"from: x@y\r\nDATE : now\r\nMessage-Id: <1@x>\r\nX: a\r\n\tb\r\n\r\nbody\r\n"
        self.assertEqual(self.prepare(data).data, data)

    def test_names(self) -> None:
        cases = {
            "Alice": b'From: "Alice" <alice@example.test>\r\n',
            'A "x" \\': b'From: "A \\"x\\" \\\\" <alice@example.test>\r\n',
            "A\r\nBcc: x": b'From: "ABcc: x" <alice@example.test>\r\n',
        }
        for name, expected in cases.items():
            self.assertTrue(self.prepare(b"\r\n", full_name=name).data.startswith(expected), name)
        data = self.prepare(b"\r\n", full_name="Zoë").data
        self.assertTrue(data.isascii())
        sender = email.message_from_bytes(data, policy=email.policy.default)["From"]
        self.assertEqual(sender.addresses[0].display_name, "Zoë")

    def test_text_without_a_header_is_body(self) -> None:
        for text in (b"hello\r\nyou\r\n", b" x\r\n", b"\r\nhello\r\n"):
            data = self.prepare(text).data
            self.assertEqual(data.partition(b"\r\n\r\n")[2], text.removeprefix(b"\r\n"))

    def test_header_without_a_blank_line(self) -> None:
        data = self.prepare(b"Subject: x\r\nhello\r\n").data
        self.assertTrue(data.endswith(b"Subject: x\r\n\r\nhello\r\n"))
        self.assertTrue(self.prepare(b"Subject: x\r\n").data.endswith(b"Subject: x\r\n\r\n"))

    def test_mbox_separator_goes(self) -> None:
        data = self.prepare(b"From bob Thu Jan 1\r\nSubject: x\r\n\r\nb\r\n").data
        self.assertNotIn(b"From bob", data)
        self.assertIn(b"Subject: x\r\n\r\nb\r\n", data)

    def test_recipients_of_the_header(self) -> None:
        prepared = self.prepare(
            b'To: bob, "C, D" <carol@x.example>,\r\n dave@x.example\r\nCc: e@x.example (E)\r\n'
            b"bcc: f@x.example,\r\n g@x.example\r\nX-To: no@x.example\r\n\r\n",
            from_header=True,
        )
        self.assertIn("bob", prepared.recipients)
        for name in ("carol", "dave", "e"):
            self.assertIn(f"{name}@x.example", prepared.recipients)
        self.assertNotIn("no@x.example", prepared.recipients)

    def test_bcc_is_removed_with_its_continuation_only_with_t(self) -> None:
        text = b"To: a@x\r\nBcc: b@x,\r\n c@x\r\nSubject: s\r\n\r\nBcc: stays\r\n"
        prepared = self.prepare(text, from_header=True)
        self.assertEqual(prepared.recipients, ("a@x", "b@x", "c@x"))
        self.assertTrue(prepared.data.endswith(b"To: a@x\r\nSubject: s\r\n\r\nBcc: stays\r\n"))
        self.assertIn(b"b@x", self.prepare(text).data)
        self.assertEqual(self.prepare(text).recipients, ())

    def test_resent_fields_replace_the_others(self) -> None:
        prepared = self.prepare(b"To: a@x\r\nResent-To: b@x\r\nResent-Bcc: c@x\r\n\r\n", from_header=True)
        self.assertEqual(prepared.recipients, ("b@x", "c@x"))
        self.assertNotIn(b"c@x", prepared.data)

    def test_groups(self) -> None:
        prepared = self.prepare(b"To: undisclosed-recipients:;\r\nBcc: b@x\r\n\r\n", from_header=True)
        self.assertEqual(prepared.recipients, ("b@x",))

    def test_unreadable_recipients_are_told(self) -> None:
        with self.assertRaises(AdminError) as caught:
            self.prepare(b"To: a@x b@x\r\n\r\n", from_header=True)
        self.assertEqual(caught.exception.status, 65)

    @given(st.binary(max_size=80))
    def test_any_input_gives_one_header_and_the_same_body(self, data: bytes) -> None:
        text = read_body(io.BytesIO(data), dots=False, limit=1000)
        prepared = self.prepare(text)
        header, blank, _ = prepared.data.partition(b"\r\n\r\n")
        self.assertTrue(blank)
        self.assertIn(b"Message-ID:".lower(), header.lower())


class ListenerTests(unittest.TestCase):
    """Where sendmail finds the server."""

    def test_endpoints(self) -> None:
        cases: dict[str, object] = {
            "tcp:2525:interface=127.0.0.1": ("127.0.0.1", 2525),
            "tcp:25": ("127.0.0.1", 25),
            "tcp:port=25:interface=192.0.2.1": ("192.0.2.1", 25),
            r"tcp6:25:interface=\:\:1": ("::1", 25),
            "tcp6:25": ("::1", 25),
            "unix:/run/x": "/run/x",
        }
        for endpoint, expected in cases.items():
            config = self.config((schema.Role.IMAP, "tcp:143"), (schema.Role.MX, endpoint))
            self.assertEqual(mx_listener(config), expected)

    def test_none(self) -> None:
        config = self.config((schema.Role.IMAP, "tcp:143"), (schema.Role.MX, "systemd:domain=INET:index=0"))
        with self.assertRaises(AdminError) as caught:
            mx_listener(config)
        self.assertEqual(caught.exception.status, 78)

    def test_not_that_of_a_load_balancer(self) -> None:
        """It would wait for a PROXY header."""
        config = self.config((schema.Role.MX, "tcp:25"), (schema.Role.MX, "tcp:2525:interface=127.0.0.1"))
        behind = attrs.evolve(config.listen[0], proxy=True)
        self.assertEqual(
            mx_listener(attrs.evolve(config, listen=(behind, config.listen[1]))), ("127.0.0.1", 2525)
        )

    def config(self, *listen: tuple[schema.Role, str]) -> schema.Config:
        from pathlib import Path

        return schema.Config(
            path=Path("x"),
            hostname="h",
            domains=("d",),
            data=Path("data"),
            postmaster=Address("p", "d"),
            listen=tuple(schema.Listen(role=role, endpoint=endpoint) for role, endpoint in listen),
            accounts=schema.Accounts(file=Path("users"), maildir="m"),
        )


class TypedLinesTests(unittest.TestCase):
    """Line ends of -bs."""

    def feed(self, data: bytes, cuts: list[int]) -> bytes:
        lines = TypedLines()
        edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
        return b"".join(lines.for_server(data[start:end]) for start, end in pairwise(edges))

    @given(st.text("a.\r\n", max_size=12).map(str.encode), st.lists(st.integers(0, 15), max_size=5))
    def test_text_becomes_crlf_however_it_is_cut(self, rest: bytes, cuts: list[int]) -> None:
        expected = (b"EHLO x\n" + rest).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        self.assertEqual(self.feed(b"EHLO x\n" + rest, cuts), expected)

    @given(st.text("a.\r\n", max_size=12).map(str.encode), st.lists(st.integers(0, 15), max_size=5))
    def test_after_crlf_nothing_is_changed(self, rest: bytes, cuts: list[int]) -> None:
        self.assertEqual(self.feed(b"EHLO x\r\n" + rest, cuts), b"EHLO x\r\n" + rest)

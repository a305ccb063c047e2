"""Messages that are hard to keep: what goes in by SMTP comes out of the Maildir, IMAP and POP3 octet for octet."""

from __future__ import annotations

import base64
import imaplib
import poplib
import random
import smtplib
import ssl
from pathlib import Path

import pytest

from tests.interop.conftest import User, crlf
from tests.peers import run

_HEADER = b"From: sender@example.org\r\nSubject: hard\r\nMIME-Version: 1.0\r\n"


def attachment(size: int) -> bytes:
    """A message with an attachment of so many octets."""
    lines = base64.encodebytes(random.Random(1).randbytes(size)).replace(b"\n", b"\r\n")
    return (
        _HEADER
        + b'Content-Type: multipart/mixed; boundary="=_x"\r\n\r\n'
        + b"--=_x\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGr\xc3\xbc\xc3\x9fe\r\n"
        + b"--=_x\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + lines
        + b"--=_x--\r\n"
    )


_MESSAGES = {
    "dots": _HEADER + b"\r\n.\r\n..\r\n...\r\n.text\r\n text.\r\n.\r\n",
    "a dot in the header": b".Odd: yes\r\n" + _HEADER + b"\r\nHello\r\n",
    "8-bit text": _HEADER + b"\r\n" + bytes(n for n in range(1, 256) if n not in b"\r\n") * 2 + b"\r\n",
    "long lines": _HEADER
    + b"\r\n"
    + (b"x" * 998 + b"\r\n") * 5
    + b"."
    + b"y" * 997
    + b"\r\n"
    + b"\xff" * 998
    + b"\r\n",
    "empty lines": _HEADER + b"\r\n" + b"\r\n" * 100 + b" \r\n\t\r\n\r\n",
    "no body": _HEADER + b"\r\n",
    "no header": b"\r\nonly a body\r\n",
    "tabs and spaces": _HEADER + b"\r\nends with blanks  \t \r\nFrom the start\r\n>From\r\n-- \r\n",
    "attachment": attachment(5_000_000),
}


@pytest.mark.parametrize("name", _MESSAGES)
class OctetsTests:
    @pytest.mark.parametrize("role", ["mx", "submissions"])
    def test_there_and_back(self, user: User, name: str, role: str) -> None:
        content = _MESSAGES[name]
        context = ssl._create_unverified_context()
        if role == "mx":
            smtp = smtplib.SMTP("127.0.0.1", user.site.port(role))
        else:
            smtp = smtplib.SMTP_SSL("127.0.0.1", user.site.port(role), context=context)
            smtp.login(user.address, user.password)
        with smtp:
            smtp.sendmail(user.address, [user.address], content, ["BODY=8BITMIME"])
        stored = crlf(user.site.wait_for(user.files)[0].read_bytes())
        assert stored.startswith(b"Return-Path: <" + user.address.encode() + b">\r\n")
        assert end_of(stored, content) == content

        with imaplib.IMAP4_SSL("127.0.0.1", user.site.port("imaps"), ssl_context=context) as imap:
            imap.login(user.address, user.password)
            imap.select("INBOX", readonly=True)
            [(answer, fetched), *_] = imap.fetch("1", "(RFC822.SIZE BODY.PEEK[])")[1]
            assert fetched == stored
            assert b"RFC822.SIZE %d " % len(stored) in answer
            [(_, part), *_] = imap.fetch("1", "(BODY.PEEK[]<100.4000>)")[1]
            assert part == stored[100:4100]
            imap.create("Copy")
            imap.append("Copy", None, None, stored)
            imap.select("Copy", readonly=True)
            assert imap.fetch("1", "(BODY.PEEK[])")[1][0][1] == stored

        pop = poplib.POP3_SSL("127.0.0.1", user.site.port("pop3s"), context=context)
        pop.user(user.address)
        pop.pass_(user.password)
        assert pop.stat() == (1, len(stored))
        assert b"".join(line + b"\r\n" for line in pop.retr(1)[1]) == stored
        pop.quit()

    def test_with_curl(self, user: User, name: str, tmp_path: Path) -> None:
        content = _MESSAGES[name]
        (tmp_path / "message").write_bytes(content)
        common = (
            "-sS",
            "-4",
            "--cacert",
            f"{user.site.directory}/cert.pem",
            "--user",
            f"{user.address}:{user.password}",
        )
        run(
            *("curl", *common, "--mail-from", user.address, "--mail-rcpt", user.address),
            *("-T", str(tmp_path / "message"), f"smtps://localhost:{user.site.port('submissions')}"),
        )
        stored = crlf(user.site.wait_for(user.files)[0].read_bytes())
        assert end_of(stored, content) == content
        for url in (
            f"imaps://localhost:{user.site.port('imaps')}/INBOX;UID=1",
            f"pop3s://localhost:{user.site.port('pop3s')}/1",
        ):
            run("curl", *common, "-o", str(tmp_path / "back"), url)
            assert (tmp_path / "back").read_bytes() == stored


def end_of(stored: bytes, content: bytes) -> bytes:
    """The part of a stored message that came from the sender: behind the trace that was put before it."""
    return stored[-len(content) :]

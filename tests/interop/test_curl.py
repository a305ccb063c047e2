"""curl speaks all three protocols, with TLS checked against the site's certificate."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interop.conftest import User, crlf, message
from tests.peers import run

# What curl exits with.
_LOGIN_DENIED, _SEND_FAILED, _BAD_CERTIFICATE = 67, 55, 60


def curl(user: User, scheme: str, path: str, *options: str, password: str = "", expect: int = 0) -> bytes:
    """What curl writes to its output; the login is the user's. Plain schemes use STARTTLS or STLS.

    A wrong password is answered the later, the more of them the tests before had: after 16 seconds in the end.
    """
    role = {"smtp": "submission", "smtps": "submissions"}.get(scheme, scheme)
    output = Path("output")
    output.unlink(missing_ok=True)
    run(
        "curl",
        *("-sS", "-4", "-v", "--ssl-reqd", "--max-time", "120"),
        *("--cacert", f"{user.site.directory}/cert.pem"),
        *("--user", f"{user.address}:{password or user.password}", "-o", str(output), *options),
        f"{scheme}://localhost:{user.site.port(role)}/{path}",
        expect=expect,
    )
    return output.read_bytes() if output.exists() else b""


@pytest.mark.parametrize("scheme", ["imap", "imaps"])
class ImapTests:
    def test_list_and_examine(self, user: User, scheme: str) -> None:
        user.receive(message("one"))
        curl(user, scheme, "", "-X", "CREATE Work/Plans")
        listed = curl(user, scheme, "").decode()
        names = re.findall(r'^\* LIST \([^)]*\) "/" "?([^"\r]+)"?\r$', listed, re.M)
        assert {"INBOX", "Work/Plans"} <= set(names)
        assert b"* 1 EXISTS" in curl(user, scheme, "", "-X", "EXAMINE INBOX")

    def test_fetch_by_uid(self, user: User, scheme: str) -> None:
        [_, second] = user.receive(message("one"), message("two", "ü\r\n" * 500))
        assert curl(user, scheme, "INBOX;UID=2") == second
        header, _, body = second.partition(b"\r\n\r\n")
        assert curl(user, scheme, "INBOX;UID=2;SECTION=TEXT") == body
        assert curl(user, scheme, "INBOX;UID=2;SECTION=HEADER") == header + b"\r\n\r\n"
        assert curl(user, scheme, "INBOX;MAILINDEX=2") == second

    def test_search_and_store(self, user: User, scheme: str) -> None:
        user.receive(message("one"), message("two"), message("three"))
        assert curl(user, scheme, "INBOX?SUBJECT%20two") == b"* SEARCH 2\r\n"
        assert curl(user, scheme, "INBOX?FROM%20nobody").strip() == b"* SEARCH"
        curl(user, scheme, "INBOX", "-X", "STORE 2 +FLAGS.SILENT (\\Flagged todo)")
        assert curl(user, scheme, "INBOX?FLAGGED") == b"* SEARCH 2\r\n"
        assert curl(user, scheme, "INBOX?KEYWORD%20todo") == b"* SEARCH 2\r\n"

    def test_append(self, user: User, scheme: str, tmp_path: Path) -> None:
        content = message("appended", "x" * 100_000)
        (tmp_path / "message").write_bytes(content)
        curl(user, scheme, "INBOX", "-T", str(tmp_path / "message"))
        [path] = user.files()
        assert crlf(path.read_bytes()) == content
        assert curl(user, scheme, "INBOX;UID=1") == content

    def test_a_wrong_password(self, user: User, scheme: str) -> None:
        curl(user, scheme, "", password="wrong", expect=_LOGIN_DENIED)


@pytest.mark.parametrize("scheme", ["pop3", "pop3s"])
class Pop3Tests:
    def test_retrieve_and_delete(self, user: User, scheme: str) -> None:
        contents = user.receive(message("one"), message("two", ".\r\n..\r\nü"))
        listed = [line.split() for line in curl(user, scheme, "").splitlines()]
        assert listed == [[b"%d" % n, b"%d" % len(content)] for n, content in enumerate(contents, 1)]
        assert curl(user, scheme, "2") == contents[1]
        assert b"\r\n1 " in b"\r\n" + curl(user, scheme, "", "-X", "UIDL")
        curl(user, scheme, "1", "-X", "DELE", "-I")
        user.site.wait_for(lambda: len(user.files()) == 1)
        assert crlf(user.files()[0].read_bytes()) == contents[1]

    def test_a_wrong_password(self, user: User, scheme: str) -> None:
        curl(user, scheme, "", password="wrong", expect=_LOGIN_DENIED)


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
class SmtpTests:
    @pytest.mark.parametrize("kind", ["PLAIN", "LOGIN"])
    def test_send(self, user: User, scheme: str, kind: str, tmp_path: Path) -> None:
        (tmp_path / "message").write_bytes(message("sent", "first\r\n.\r\n..\r\n.dot"))
        addresses = ("--mail-from", user.address, "--mail-rcpt", user.address)
        options = (*addresses, "--login-options", f"AUTH={kind}", "-T", str(tmp_path / "message"))
        curl(user, scheme, "client.example.org", *options)
        text = user.site.wait_for(user.files)[0].read_text()
        assert "with ESMTPSA id" in text
        assert text.endswith("\n\nfirst\n.\n..\n.dot\n")

    def test_a_wrong_password(self, user: User, scheme: str, tmp_path: Path) -> None:
        (tmp_path / "message").write_bytes(message("sent"))
        options = ("--mail-from", user.address, "--mail-rcpt", user.address, "-T", str(tmp_path / "message"))
        curl(user, scheme, "", *options, password="wrong", expect=_LOGIN_DENIED)

    def test_relaying_refused_recipient(self, user: User, scheme: str, tmp_path: Path) -> None:
        (tmp_path / "message").write_bytes(message("sent"))
        addresses = ("--mail-from", user.address, "--mail-rcpt", "nobody@example.test")
        curl(user, scheme, "", *addresses, "-T", str(tmp_path / "message"), expect=_SEND_FAILED)


class TlsTests:
    @pytest.mark.parametrize("scheme", ["imaps", "pop3s", "smtps"])
    def test_another_name_is_noticed(self, user: User, scheme: str) -> None:
        """That the tests above check the certificate at all."""
        role = {"smtps": "submissions"}.get(scheme, scheme)
        port = user.site.port(role)
        run(
            *("curl", "-sS", "--cacert", f"{user.site.directory}/cert.pem"),
            f"{scheme}://127.0.0.1:{port}/",
            expect=_BAD_CERTIFICATE,
        )

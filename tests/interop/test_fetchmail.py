"""fetchmail, which empties mailboxes over POP3 and IMAP."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.conftest import User, message
from tests.peers import run

_NOTHING_NEW, _WRONG_PASSWORD = 1, 3


def fetchmail(
    user: User, role: str, tmp_path: Path, *options: str, password: str = "", expect: int = 0
) -> str:
    """Fetch into the file "fetched"; the server's certificate must be right."""
    tls = "ssl" if role.endswith("s") else "sslproto tls1.2+"
    uidl = " uidl" if role.startswith("pop3") and "keep" in options else ""
    configuration = tmp_path / "fetchmailrc"
    configuration.write_text(
        f"poll localhost protocol {role.removesuffix('s')} service {user.site.port(role)}{uidl}\n"
        f'  user "{user.address}" password "{password or user.password}"\n'
        f"  {tls} sslcertck sslcertfile {user.site.directory}/cert.pem\n"
        f'  {" ".join(options)} mda "cat >> {tmp_path}/fetched"\n'
    )
    configuration.chmod(0o600)
    environment = {"FETCHMAILHOME": str(tmp_path), "HOME": str(tmp_path)}
    return run(
        "fetchmail",
        "-v",
        "-f",
        str(configuration),
        "--nosyslog",
        "--invisible",
        environment=environment,
        expect=expect,
    )


@pytest.mark.parametrize("role", ["pop3", "pop3s", "imap", "imaps"])
class FetchmailTests:
    def test_it_takes_all(self, user: User, tmp_path: Path, role: str) -> None:
        originals = user.receive(
            message("one", ".\r\n..\r\nlast"), message("two", "ü" * 400), message("three")
        )
        fetchmail(user, role, tmp_path, "nokeep", "fetchall")
        fetched = (tmp_path / "fetched").read_bytes()
        for original in originals:
            assert body(original) in fetched
        user.site.wait_for(lambda: user.files() == [])
        fetchmail(user, role, tmp_path, "nokeep", expect=_NOTHING_NEW)

    def test_it_keeps(self, user: User, tmp_path: Path, role: str) -> None:
        user.receive(message("one"), message("two"))
        fetchmail(user, role, tmp_path, "keep")
        assert len(user.files()) == 2
        fetchmail(user, role, tmp_path, "keep", expect=_NOTHING_NEW)
        user.receive(message("three"))
        fetchmail(user, role, tmp_path, "keep")
        fetched = (tmp_path / "fetched").read_text()
        assert [fetched.count(f"Subject: {name}\n") for name in ("one", "two", "three")] == [1, 1, 1]
        assert len(user.files()) == 3

    def test_a_wrong_password(self, user: User, tmp_path: Path, role: str) -> None:
        user.receive(message("one"))
        fetchmail(user, role, tmp_path, "nokeep", "fetchall", password="wrong", expect=_WRONG_PASSWORD)
        assert len(user.files()) == 1


def body(content: bytes) -> bytes:
    """What comes after the header, as the file has it."""
    return content.replace(b"\r\n", b"\n").partition(b"\n\n")[2]

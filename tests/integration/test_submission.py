"""Submission on the real server: what is mended, who may send as whom, and how much."""

from __future__ import annotations

import json
import smtplib
import ssl
import subprocess
from collections.abc import Iterator

import pytest

from twisted_mta.testing.site import PASSWORD, Site, program

TLS = ssl._create_unverified_context()
LIMIT = 5
CONFIG = f"""
[submission]
messages_per_hour = {LIMIT}

[[submission.grant]]
account = "alice"
addresses = ["@example.net"]
"""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(CONFIG, aliases="sales: alice, bob\n") as running:
        yield running


def login(site: Site, user: str = "alice") -> smtplib.SMTP_SSL:
    client = smtplib.SMTP_SSL("127.0.0.1", site.port("submissions"), context=TLS, timeout=30)
    client.login(f"{user}@example.test", PASSWORD)
    return client


def received(site: Site, user: str, count: int) -> bytes:
    site.wait_for(lambda: len(site.maildir(user)) >= count)
    return site.maildir(user)[-1].read_bytes().replace(b"\r\n", b"\n")


def test_the_header_is_mended(site: Site) -> None:
    with login(site) as client:
        text = b"To: bob, <carol@example.org>\r\nBcc: bob@example.test,\r\n postmaster\r\nSubject: x\r\n\r\nBcc: body\r\n"
        client.sendmail("sales@example.test", ["bob@example.test"], text)
        header, _, body = received(site, "bob", 1).partition(b"\n\n")
        assert body == b"Bcc: body\n"
        assert b"Bcc" not in header
        for part in (
            b"\nTo: bob@example.test, <carol@example.org>\n",
            b"\nFrom: alice@example.test\n",
            b"\nDate: ",
            b"@mx.example.test>\n",
        ):
            assert part in header
        assert b"\nSender:" not in header
        client.sendmail("alice@example.test", ["bob" + "@example.test"], b"From: Us <us@example.net>\r\n\r\n")
        assert b"\nSender: alice@example.test\n" in received(site, "bob", 2)


def test_nobody_sends_as_somebody_else(site: Site) -> None:
    with login(site) as client:
        assert client.mail("bob@example.test")[0] == 553
        assert client.mail("eve@example.org")[0] == 553
        for sender in (
            "alice@example.test",
            "ALICE+x@example.test",
            "sales@example.test",
            "who@example.net",
            "",
        ):
            assert client.mail(sender)[0] == 250
            client.rset()
        with pytest.raises(smtplib.SMTPDataError, match="in the From field is not owned by alice"):
            client.sendmail("alice@example.test", ["bob@example.test"], b"From: bob@example.test\r\n\r\n")
        with pytest.raises(smtplib.SMTPDataError) as caught:
            client.sendmail("alice@example.test", ["bob@example.test"], b"To: nobody-here\r\n\r\n")
        assert caught.value.smtp_code == 554


def test_limits_outlive_a_restart_and_the_postmaster_is_told(site: Site) -> None:
    with login(site) as client:
        for _ in range(LIMIT):
            client.sendmail("alice@example.test", ["bob@example.test"], b"Subject: x\r\n\r\n")
        assert client.mail("alice@example.test")[0] == 450
        assert client.mail("alice@example.test")[0] == 450
    with login(site, "bob") as client:
        client.sendmail("bob@example.test", ["bob@example.test"], b"Subject: x\r\n\r\n")
    warning = received(site, "postmaster", 1)
    assert b"\nSubject: alice@example.test reached its limit of 5 messages in an hour\n" in warning
    site.stop()
    site.start()
    with login(site) as client:
        assert client.mail("alice@example.test")[0] == 450
    assert len(site.maildir("postmaster")) == 1
    told = subprocess.run(
        [program("mta"), "--config", site.config_file, "status", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    sent = {entry["name"]: entry["messages"] for entry in json.loads(told.stdout)["sent in the last day"]}
    assert sent == {"alice@example.test": LIMIT, "bob@example.test": 1, "@example.test": LIMIT + 1}

"""Forwarded mail at a Postfix, whose bounces come back by way of us to whoever wrote."""

from __future__ import annotations

import email
import re
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import message
from tests.peers import Postfix, wait_for
from twisted_mta.testing.site import Site

#: 8-bit text too, and spaces that a careless program would take away.
SIGNED = b"DKIM-Signature: v=1; a=rsa-sha256;\r\n\tb=abc=  \r\n" + message(
    "signed", "  J\u00f6rg \r\n.\r\n..\r\n"
)


@pytest.fixture(scope="module")
def postfix() -> Iterator[tuple[Postfix, Site]]:
    """A Postfix for both: where mail is forwarded to, and the home of whoever wrote."""
    postfix = Postfix(
        domains="example.net origin.example",
        mailboxes="inline:{ bob@origin.example=bob/, carol@example.net=carol/ }",
    )
    routes = "".join(
        f'"{domain}" = "127.0.0.1:{postfix.port}"\n' for domain in ("example.net", "origin.example")
    )
    aliases = "carol: carol@example.net\ngone: gone@example.net\n"
    with Site(f"[relay.routes]\n{routes}", aliases=aliases) as site:
        with (postfix.config / "main.cf").open("a") as main:
            # Unknown users are accepted, and bounce later: by way of us.
            main.write(f"smtpd_reject_unlisted_recipient = no\nrelayhost = [127.0.0.1]:{site.port('mx')}\n")
        with postfix:
            yield postfix, site


def received(postfix: Postfix, name: str) -> list[Path]:
    return list((postfix.directory / "mail" / name / "new").glob("*"))


@pytest.fixture(scope="module")
def forwarded(postfix: tuple[Postfix, Site]) -> Path:
    """A message that was forwarded."""
    target, site = postfix
    send(site, "carol", SIGNED)
    (path,) = site.wait_for(lambda: received(target, "carol"))
    return path


def send(site: Site, to: str, content: bytes) -> None:
    with smtplib.SMTP("127.0.0.1", site.port("mx")) as client:
        client.sendmail("bob@origin.example", [f"{to}@example.test"], content, ["BODY=8BITMIME"])


def test_not_an_octet_is_changed(forwarded: Path) -> None:
    found = forwarded.read_bytes()
    sender = re.search(rb"^Return-Path: <(SRS0=\w{6}=\w\w=origin\.example=bob@example\.test)>\n", found, re.M)
    assert sender, found
    assert b"\nDelivered-To: carol@example.test\nX-Forwarded-To: carol@example.net\n" in found
    assert found.endswith(SIGNED.replace(b"\r\n", b"\n"))


def test_a_bounce_reaches_whoever_wrote(postfix: tuple[Postfix, Site]) -> None:
    target, site = postfix
    send(site, "gone", message("gone"))
    (path,) = site.wait_for(lambda: received(target, "bob"), 60)
    bounce = email.message_from_bytes(path.read_bytes())
    assert bounce["Return-Path"] == "<>"
    assert bounce.get_content_type() == "multipart/report"
    assert "MAILER-DAEMON" in bounce["From"], "it is Postfix's"
    assert "gone@example.net" in bounce.as_string()
    # Out, back here with the rewritten sender as its recipient, and home.
    target.wait_for_log(r"to=<SRS0=\w{6}=\w\w=origin\.example=bob@example\.test>.*status=sent")
    wait_for(lambda: not target.queued(), "Postfix's queue to be empty")
    trees = site.control("trace", what="bob@origin.example")["trees"]
    assert any(
        to["address"].startswith("SRS0=") or to["address"] == "bob@origin.example"
        for tree in trees
        for to in tree["recipients"]
    )


def test_nobody_uses_it_to_send(postfix: tuple[Postfix, Site], forwarded: Path) -> None:
    """Another address in the place of the old one, or a message that is no bounce."""
    _, site = postfix
    sender = re.search(rb"<(SRS0=[^>]+)>", forwarded.read_bytes())
    assert sender
    address = sender[1].decode()
    with smtplib.SMTP("127.0.0.1", site.port("mx")) as client:
        client.ehlo()
        client.mail("")
        assert client.rcpt(address.replace("=bob@", "=eve@"))[0] == 550
        assert client.rcpt(address.swapcase())[0] == 250, "hosts that change the case do no harm"
        client.rset()
        client.mail("eve@origin.example")
        assert client.rcpt(address)[0] == 550

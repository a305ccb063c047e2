"""Rules of users on the real server, with one process and with workers: by mail, by `mta user rules`, by hand."""

from __future__ import annotations

import contextlib
import io
import smtplib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from twisted_mta.admin.main import main
from twisted_mta.testing.site import PASSWORD, Site

TLS = ssl._create_unverified_context()
_READ = "rules of users were read again"


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "workers"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with Site('[rules]\naddress = "rules@example.test"\n', workers=request.param) as running:
        yield running


def mta(site: Site, *arguments: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["--config", str(site.config_file), *arguments]) == 0
    return out.getvalue()


def rules_file(site: Site, user: str) -> Path:
    return site.directory / "data" / "rules" / f"{user}@example.test"


def order(site: Site, text: str, login: str = "alice") -> str:
    """What the answer to a mail with these lines says."""
    before = set(site.maildir(login))
    with smtplib.SMTP_SSL("127.0.0.1", site.port("submissions"), context=TLS, timeout=30) as client:
        client.login(f"{login}@example.test", PASSWORD)
        client.sendmail(f"{login}@example.test", ["rules@example.test"], f"Subject: rules\r\n\r\n{text}\r\n")
    (answer,) = site.wait_for(lambda: set(site.maildir(login)) - before)
    return answer.read_text()


def send(site: Site, subject: str, sender: str = "dave@example.org", to: str = "alice") -> None:
    """Each time another connection, which any of the workers may take."""
    with smtplib.SMTP("127.0.0.1", site.port("mx"), timeout=30) as client:
        text = f"From: {sender}\r\nTo: {to}@example.test\r\nSubject: {subject}\r\n\r\nx\r\n"
        client.sendmail(sender, [f"{to}@example.test"], text)


def arrived(site: Site, user: str, subject: str) -> int:
    return sum(f"\nSubject: {subject}\n" in path.read_text() for path in site.maildir(user))


def forwarded_everywhere(site: Site, subject: str, kept: int) -> None:
    """All workers know the rules: of twelve connections each gets some."""
    for _ in range(12):
        send(site, subject)
    site.wait_for_empty_queue()
    assert (arrived(site, "bob", subject), arrived(site, "alice", subject)) == (12, kept)


def test_by_mail(site: Site) -> None:
    before = site.log().count(_READ)
    answer = order(site, "forward: bob@example.test")
    assert "forward: bob@example.test" in answer
    # The worker that took the order knows at once, the others within seconds.
    site.wait_for(lambda: site.log().count(_READ) >= before + len_workers(site))
    forwarded_everywhere(site, "by mail", kept=0)
    site.wait_for_log("rules of alice@example.test by mail: forward none -> bob@example.test")
    assert "Nothing was changed" in order(site, "forward: a@b.example\r\nwhatever")
    assert "none" in order(site, "forward: off")


def len_workers(site: Site) -> int:
    return len(site.control("status").get("workers") or [None])


def test_nobody_without_a_login(site: Site) -> None:
    with smtplib.SMTP("127.0.0.1", site.port("mx"), timeout=30) as client:
        client.ehlo()
        client.mail("alice@example.test")
        code, text = client.rcpt("rules@example.test")
    assert (code, text[:5]) == (550, b"5.7.1")


def test_by_command_while_it_runs(site: Site) -> None:
    file = site.directory / "order"
    file.write_text("forward: bob@example.test, keep\n")
    assert mta(site, "user", "rules", "alice", "--set", str(file)) == "forward: bob@example.test, keep\n"
    forwarded_everywhere(site, "by command", kept=12)
    assert mta(site, "user", "rules") == "alice@example.test\tforward: bob@example.test, keep\n"
    assert "rules of alice@example.test" in mta(site, "expand", "alice@example.test")
    mta(site, "user", "rules", "alice", "--clear")
    send(site, "cleared")
    site.wait_for_empty_queue()
    assert (arrived(site, "bob", "cleared"), arrived(site, "alice", "cleared")) == (0, 1)


def test_broken_by_hand_and_mended(site: Site) -> None:
    file = site.directory / "order"
    file.write_text("forward: bob@example.test, keep\n")
    mta(site, "user", "rules", "alice", "--set", str(file))
    with rules_file(site, "alice").open("a") as text:
        text.write("forwrad: off\n")
    site.wait_for(lambda: site.log().count("not understood: forwrad: off") >= len_workers(site))
    assert "not understood: forwrad: off" in mta(site, "status")
    forwarded_everywhere(site, "still the last good one", kept=12)
    rules_file(site, "alice").write_text("forward: off\n")
    site.wait_for(lambda: "not understood" not in mta(site, "status"))
    send(site, "mended")
    site.wait_for_empty_queue()
    assert (arrived(site, "bob", "mended"), arrived(site, "alice", "mended")) == (0, 1)


def test_one_reply_whoever_takes_the_mail(site: Site) -> None:
    file = site.directory / "order"
    file.write_text("vacation-subject: Away\nvacation: I am away.\n")
    mta(site, "user", "rules", "postmaster", "--set", str(file))
    for _ in range(12):
        send(site, "holiday", sender="bob@example.test", to="postmaster")
    site.wait_for_empty_queue()
    assert (arrived(site, "postmaster", "holiday"), arrived(site, "bob", "Away")) == (12, 1)
    trees = site.control("trace", what="postmaster@example.test")["trees"]
    told = [to["reply"] for tree in trees for to in tree["recipients"] if to["transport"] == "vacation"]
    assert len(told) == 12
    assert sum("got one in the last 7 days" in text for text in told) == 11
    mta(site, "user", "rules", "postmaster", "--clear")

"""Postfix as the server that relays to us, and as the one that we relay to."""

from __future__ import annotations

import email
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import User, message, submit
from tests.peers import PATIENCE, Postfix, accepts, run, wait_for
from twisted_mta.admin.init import self_signed
from twisted_mta.testing.site import Site


class FromPostfixTests:
    @pytest.fixture
    def postfix(self, site: Site) -> Iterator[Postfix]:
        with Postfix(relayhost=f"[127.0.0.1]:{site.port('mx')}", domains="example.net") as postfix:
            yield postfix

    def test_one_message_comes_over_tls(self, postfix: Postfix, user: User) -> None:
        run(
            "sendmail",
            *("-i", "-C", str(postfix.config), "-f", "sender@example.net", user.address),
            feed=b"Subject: through Postfix\n\nfirst\n.\n.dot\n",
        )
        text = user.site.wait_for(user.files)[0].read_text()
        assert "Return-Path: <sender@example.net>" in text
        trace = re.search(r"^Received: from postfix\.example\.net .*?\n(?!\s)", text, re.M | re.S)
        assert trace
        assert "(using TLSv1.3 " in trace[0]
        assert "with ESMTPS id" in trace[0]
        assert text.endswith("\n\nfirst\n.\n.dot\n")
        postfix.wait_for_log(r"status=sent \(250 2\.")
        postfix.wait_for_log(r"Untrusted TLS connection established to 127\.0\.0\.1")

    def test_a_refused_recipient_bounces_at_postfix(self, postfix: Postfix, user: User) -> None:
        run(
            "sendmail",
            *("-i", "-C", str(postfix.config), "-f", user.address, "nobody@example.test", user.address),
            feed=b"Subject: half of it\n\nHello\n",
        )
        user.site.wait_for(lambda: len(user.files()) == 2)
        bounce = next(
            parsed
            for parsed in (email.message_from_bytes(path.read_bytes()) for path in user.files())
            if parsed.get_content_type() == "multipart/report"
        )
        assert bounce["Return-Path"] == "<>"
        assert "550 5.1.1" in bounce.as_string()

    def test_many_sessions_at_once(self, postfix: Postfix, user: User) -> None:
        count = 400
        run(
            "smtp-source",
            *("-s", "20", "-m", str(count), "-l", "3000", "-f", "load@example.net", "-t", user.address),
            f"127.0.0.1:{postfix.port}",
        )
        user.site.wait_for(lambda: len(user.files()) >= count, PATIENCE)
        wait_for(lambda: postfix.log().count("status=sent (250 2.") == count, "Postfix to note all")
        wait_for(lambda: not postfix.queued(), "Postfix's queue to be empty")
        assert "status=deferred" not in postfix.log()
        _each_once(user.files(), count)

    def test_many_sessions_straight(self, user: User) -> None:
        count = 400
        run(
            "smtp-source",
            *("-s", "20", "-m", str(count), "-l", "3000", "-f", "load@example.net", "-t", user.address),
            f"127.0.0.1:{user.site.port('mx')}",
        )
        user.site.wait_for(lambda: len(user.files()) >= count, PATIENCE)
        # A file stands in its mailbox before the queue hears of it.
        user.site.wait_for(lambda: user.site.control("status")["queue"] == {"being delivered": 0})
        _each_once(user.files(), count)


def _each_once(files: list[Path], count: int) -> None:
    seen = Counter(email.message_from_bytes(path.read_bytes())["Message-Id"] for path in files)
    assert len(seen) == count
    assert set(seen.values()) == {1}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postfix]:
    directory = tmp_path_factory.mktemp("certificate")
    for name, content in zip(("cert.pem", "key.pem"), self_signed("postfix.example.net", ()), strict=True):
        (directory / name).write_text(content)
    with Postfix(
        certificate=directory / "cert.pem",
        key=directory / "key.pem",
        domains="example.net",
        mailboxes="inline:{ bob@example.net=bob/, carol@example.net=carol/, dave@example.net=dave/ }",
    ) as postfix:
        yield postfix


@pytest.fixture(scope="module")
def relaying(target: Postfix) -> Iterator[Site]:
    config = (
        f'[submission]\ncheck_sender = false\n[relay.routes]\n"example.net" = "127.0.0.1:{target.port}"\n'
    )
    with Site(config) as site:
        yield site


def about(postfix: Postfix, name: str, subject: str) -> list[Path]:
    """The messages with that subject in a Maildir of Postfix's."""
    files = (postfix.directory / "mail" / name / "new").glob("*")
    return [path for path in files if f"Subject: {subject}\n" in path.read_text()]


def deferred(site: Site) -> list[str]:
    """The queue ids of messages that an attempt left in the queue."""
    messages = site.control("queue.list")["messages"]
    return [
        each["id"]
        for each in messages
        if any(to["attempts"] and to["last_reply"] for to in each["recipients"])
    ]


class ToPostfixTests:
    def test_it_arrives_over_tls(self, target: Postfix, relaying: Site) -> None:
        submit(relaying, "alice@example.test", ["bob@example.net"], message("arrives", "first\r\n..\r\n.dot"))
        text = relaying.wait_for(lambda: about(target, "bob", "arrives"))[0].read_text()
        assert "Return-Path: <alice@example.test>" in text
        assert text.endswith("\n\nfirst\n..\n.dot\n")
        target.wait_for_log(r"Anonymous TLS connection established from .*: TLSv1\.3 with cipher")
        assert re.search(r"Received: from mx\.example\.test \(.*\[127\.0\.0\.1\]\)", text)

    def test_a_large_one_comes_in_chunks(self, target: Postfix, relaying: Site) -> None:
        """RFC 3030: a small message in one, a large one in several, and every octet is there."""
        lines = "\r\n".join([".", "..", *(f"{number} " + "x" * 900 for number in range(300)), "."])
        submit(relaying, "alice@example.test", ["dave@example.net"], message("chunks", lines))
        path = relaying.wait_for(lambda: about(target, "dave", "chunks"))[0]
        assert path.read_text().endswith("\n\n" + lines.replace("\r\n", "\n") + "\n")
        # What Postfix counts of a session, which ends when it was idle for a while.
        target.wait_for_log(r"disconnect from .* bdat=(?:[3-9]|\d\d)")
        assert not re.search(r"disconnect from .* data=", target.log())

    def test_recipients_of_one_domain_share_a_transaction(self, target: Postfix, relaying: Site) -> None:
        to = ["carol@example.net", "dave@example.net", "bob@example.net"]
        submit(relaying, "alice@example.test", to, message("together"))
        for name in ("bob", "carol", "dave"):
            relaying.wait_for(lambda name=name: about(target, name, "together"))
        queue_id = target.wait_for_log(r"cleanup\[\d+\]: (\w+): message-id=<together@")[1]
        target.wait_for_log(rf"{queue_id}: from=<alice@example\.test>, .*nrcpt=3 ")
        assert target.log().count("message-id=<together@example.org>") == 1

    def test_an_unknown_recipient_bounces(self, target: Postfix, relaying: Site) -> None:
        to = ["nobody@example.net", "carol@example.net"]
        submit(relaying, "alice@example.test", to, message("half"))
        path = relaying.wait_for(lambda: relaying.maildir("alice"))[0]
        bounce = email.message_from_bytes(path.read_bytes())
        assert bounce["Return-Path"] == "<>"
        assert bounce.get_content_type() == "multipart/report"
        assert bounce.get_param("report-type") == "delivery-status"
        status = bounce.get_payload()[1]
        assert status.get_content_type() == "message/delivery-status"
        fields = status.get_payload()[1]
        assert fields["Final-Recipient"].replace(" ", "") == "rfc822;nobody@example.net"
        assert (fields["Action"], fields["Status"]) == ("failed", "5.1.1")
        assert "550 5.1.1 <nobody@example.net>" in fields["Diagnostic-Code"]
        assert len(status.get_payload()) == 2
        assert "Subject: half" in bounce.get_payload()[2].as_string()
        relaying.wait_for(lambda: about(target, "carol", "half"))
        assert len(relaying.maildir("alice")) == 1

    def test_a_server_that_is_away(self, target: Postfix, relaying: Site) -> None:
        target.command("postfix", "stop")
        wait_for(lambda: not accepts(target.port), "Postfix to stop")
        submit(relaying, "alice@example.test", ["bob@example.net"], message("late"))
        [waiting] = relaying.wait_for(lambda: deferred(relaying))
        target.command("postfix", "start")
        wait_for(lambda: accepts(target.port), "Postfix to start")
        relaying.control("queue.retry", ids=[waiting])
        relaying.wait_for(lambda: about(target, "bob", "late"))

"""swaks: each way to hand a message in, and each way to be refused."""

from __future__ import annotations

import re

import pytest

from tests.peers import run
from twisted_mta.testing.site import PASSWORD, Site

# What swaks exits with.
_MAIL_REFUSED, _RCPT_REFUSED, _AUTH_FAILED = 23, 24, 28


def swaks(site: Site, role: str, recipient: str, *options: str, expect: int = 0) -> str:
    """The transcript of one attempt."""
    server = ("--server", "127.0.0.1", "--port", str(site.port(role)), "--timeout", "120s")
    names = ("--ehlo", "client.example.org", "--to", recipient)
    sender = () if "--from" in options else ("--from", "sender@example.org")
    return run("swaks", *server, *names, *sender, *options, expect=expect)


def auth(address: str, kind: str = "PLAIN", password: str = PASSWORD) -> tuple[str, ...]:
    return ("--from", address, "--auth", kind, "--auth-user", address, "--auth-password", password)


class ReceivingTests:
    def test_plain(self, site, user):
        transcript = swaks(
            site, "mx", user.address, "--body", "first\n.\n..dots\n.last", "--h-Subject", "dots"
        )
        assert re.search(r"^<-  250 2\.\d\.\d ", transcript, re.M)
        text = site.wait_for(user.files)[0].read_text()
        assert "Return-Path: <sender@example.org>" in text
        assert f"Delivered-To: {user.address}" in text
        assert re.search(
            r"Received: from client.example.org \(\[127.0.0.1\]\)\s+by mx.example.test with ESMTP id", text
        )
        assert text.endswith("\n\nfirst\n.\n..dots\n.last\n\n\n")

    def test_starttls(self, site, user, certificate):
        transcript = swaks(site, "mx", user.address, "-tls", "--tls-verify", "--tls-ca-path", certificate)
        assert "TLSv1.3" in transcript
        text = site.wait_for(user.files)[0].read_text()
        assert re.search(r"\(using TLSv1\.3 \S+\)\s+by mx.example.test with ESMTPS id", text)

    def test_tls_1_2(self, site, user):
        swaks(site, "mx", user.address, "-tls", "--tls-protocol", "tlsv1_2")
        assert "(using TLSv1.2 " in site.wait_for(user.files)[0].read_text()

    def test_old_tls_is_refused(self, site, user):
        swaks(site, "mx", user.address, "-tls", "--tls-protocol", "tlsv1_1", expect=29)
        assert not user.files()

    def test_helo(self, site, user):
        swaks(site, "mx", user.address, "--protocol", "SMTP")
        assert "with SMTP id" in site.wait_for(user.files)[0].read_text()

    def test_pipelining(self, site, user):
        transcript = swaks(site, "mx", user.address, "--pipeline")
        assert "PIPELINING" in transcript
        assert len(site.wait_for(user.files)) == 1

    def test_several_recipients(self, site, user):
        swaks(site, "mx", f"{user.address},bob@example.test,nobody@example.test", "--h-Subject", "several")
        site.wait_for(user.files)
        # Who gets mail of other tests too.
        site.wait_for(lambda: any("Subject: several" in path.read_text() for path in site.maildir("bob")))


class BehindAProxyTests:
    """XCLIENT, as the proxy in front says it."""

    @pytest.fixture(scope="class")
    @staticmethod
    def behind():
        with Site('[relay]\nxclient_networks = ["127.0.0.1"]\n') as site:
            yield site

    def test_the_client_that_it_names(self, behind):
        transcript = swaks(
            behind, "mx", "alice@example.test", "--xclient-addr", "198.51.100.7", "--xclient-port", "4711"
        )
        assert re.search(r"^ -> XCLIENT ", transcript, re.M)
        text = behind.wait_for(lambda: behind.maildir("alice"))[-1].read_text()
        assert "Received: from client.example.org ([198.51.100.7])" in text

    def test_the_login_that_it_names(self, behind):
        """On a submission port, and without a password or TLS."""
        options = ("--from", "alice@example.test", "--xclient-addr", "198.51.100.7", "--xclient-login")
        swaks(behind, "submission", "bob@example.test", *options, "alice@example.test")
        text = behind.wait_for(lambda: behind.maildir("bob"))[-1].read_text()
        assert "Return-Path: <alice@example.test>" in text
        refused = swaks(
            behind, "submission", "bob@example.test", *options, "[UNAVAILABLE]", expect=_MAIL_REFUSED
        )
        assert re.search(r"^<\*\* 530 5\.7\.0 ", refused, re.M)

    def test_an_unknown_login(self, behind):
        options = ("--xclient-addr", "198.51.100.7", "--xclient-login", "nobody@example.test")
        transcript = swaks(behind, "mx", "alice@example.test", *options, expect=None)
        assert re.search(r"^<\*\* 550 5\.7\.1 ", transcript, re.M)


class RefusalTests:
    def test_unknown_user(self, site):
        transcript = swaks(site, "mx", "nobody@example.test", expect=_RCPT_REFUSED)
        assert re.search(r"^<\*\* 550 5\.1\.1 ", transcript, re.M)

    @pytest.mark.parametrize(
        "recipient",
        ["victim@example.net", '"victim@example.net"@example.test', "victim%example.net@example.test"],
    )
    def test_relaying(self, site, recipient):
        transcript = swaks(site, "mx", recipient, expect=_RCPT_REFUSED)
        assert re.search(r"^<\*\* 55\d 5\.", transcript, re.M)

    def test_relaying_in_the_name_of_a_user(self, site):
        transcript = swaks(
            site, "mx", "victim@example.net", "--from", "alice@example.test", expect=_RCPT_REFUSED
        )
        assert re.search(r"^<\*\* 550 5\.7\.1 ", transcript, re.M)

    def test_submission_without_login(self, site, user):
        transcript = swaks(site, "submission", user.address, "-tls", expect=_MAIL_REFUSED)
        assert re.search(r"^<~\* 530 5\.7\.0 ", transcript, re.M)

    @pytest.mark.parametrize("kind", ["PLAIN", "LOGIN"])
    def test_wrong_password(self, site, user, kind):
        options = auth(user.address, kind, "wrong")
        transcript = swaks(
            site, "submissions", user.address, "--tls-on-connect", *options, expect=_AUTH_FAILED
        )
        assert re.search(r"^<~\* 535 5\.7\.8 ", transcript, re.M)

    @pytest.mark.parametrize("role", ["submission", "mx"])
    def test_no_login_before_tls(self, site, user, role):
        transcript = swaks(site, role, user.address, *auth(user.address), expect=_AUTH_FAILED)
        assert "Host did not advertise authentication" in transcript


class SubmissionTests:
    @pytest.mark.parametrize("kind", ["PLAIN", "LOGIN"])
    def test_starttls(self, site, user, kind):
        swaks(site, "submission", user.address, "-tls", *auth(user.address, kind))
        assert "with ESMTPSA id" in site.wait_for(user.files)[0].read_text()

    @pytest.mark.parametrize("kind", ["PLAIN", "LOGIN"])
    def test_implicit_tls(self, site, user, kind):
        swaks(site, "submissions", user.address, "--tls-on-connect", *auth(user.address, kind))
        assert "with ESMTPSA id" in site.wait_for(user.files)[0].read_text()

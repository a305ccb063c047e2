"""Postfix's posttls-finger (what TLS does a server speak, and for whom?) and smtp-source (load) against our ports."""

from __future__ import annotations

import re
import smtplib
from collections import Counter
from contextlib import ExitStack
from email import message_from_bytes

from tests.interop.conftest import User
from tests.peers import PATIENCE, run
from twisted_mta.testing.site import Site


def finger(site: Site, level: str, *options: str, match: str = "", expect: int | None = 0) -> str:
    """What posttls-finger says of port mx, whose certificate should be for `match`."""
    settings = ("-o", "inet_protocols=ipv4", "-l", level, "-L", "summary,certmatch", *options)
    names = (match,) if match else ()
    return run("posttls-finger", *settings, f"[127.0.0.1]:{site.port('mx')}", *names, expect=expect)


class PosttlsFingerTests:
    def test_opportunistic(self, site: Site) -> None:
        said = finger(site, "may")
        assert re.search(
            r"(Anonymous|Untrusted) TLS connection established to .*: TLSv1\.3 with cipher TLS_AES_256_GCM",
            said,
        )

    def test_verified_by_the_name_in_the_certificate(self, site: Site, certificate: str) -> None:
        said = finger(site, "secure", "-F", certificate, match="mx.example.test")
        assert "Verified TLS connection established" in said
        said = finger(site, "secure", "-F", certificate, match="other.example.test", expect=None)
        assert "Verified TLS connection" not in said

    def test_tls_1_2(self, site: Site) -> None:
        said = finger(site, "encrypt", "-p", "TLSv1.2")
        assert re.search(r"TLSv1\.2 with cipher ECDHE-\S+-GCM-SHA", said)

    def test_resumption(self, site: Site) -> None:
        """-r: connect again after a second, with the session of the first."""
        said = finger(site, "encrypt", "-r", "1", "-m", "1")
        assert said.count("TLS connection") >= 2, said


class SmtpSourceTests:
    def load(
        self, user: User, *options: str, role: str = "mx", site: Site | None = None, count: int = 200
    ) -> None:
        """Send messages and see that each arrived once."""
        at = site or user.site
        run(
            "smtp-source",
            *(*options, "-m", str(count), "-f", "load@example.net", "-t", user.address),
            f"127.0.0.1:{at.port(role)}",
        )
        at.wait_for(lambda: len(at.maildir(user.name)) >= count, PATIENCE)
        seen = Counter(message_from_bytes(path.read_bytes())["Message-Id"] for path in at.maildir(user.name))
        assert (len(seen), set(seen.values())) == (count, {1})

    def test_connections_kept(self, user: User) -> None:
        self.load(user, "-d", "-s", "20", "-l", "2000")

    def test_short_connections(self, user: User) -> None:
        self.load(user, "-s", "20", "-l", "500")

    def test_large_messages(self, user: User) -> None:
        self.load(user, "-s", "4", "-l", "3000000", count=8)

    def test_lmtp(self) -> None:
        with Site(roles=("lmtp",)) as site:
            self.load(User(site, "alice"), "-L", "-d", "-s", "10", "-l", "2000", role="lmtp", site=site)

    def test_clients_that_wait(self, user: User) -> None:
        """-w: before each message and behind the greeting."""
        self.load(user, "-w", "1", "-s", "20", count=40)

    def test_slow_clients_do_not_hold_up_others(self, user: User) -> None:
        """They stop in the middle of their messages, and go on when all others are served."""
        with ExitStack() as open_:
            slow = [open_.enter_context(smtplib.SMTP("127.0.0.1", user.site.port("mx"))) for _ in range(20)]
            for number, client in enumerate(slow):
                client.ehlo()
                client.mail("slow@example.net")
                client.rcpt(user.address)
                assert client.docmd("DATA")[0] == 354
                client.send(f"Message-ID: <{number}@example.net>\r\n\r\nthe first ha")
            self.load(user, "-s", "20", count=40)
            for client in slow:
                client.send("lf and the second\r\n.\r\n")
                assert client.getreply()[0] == 250
        user.site.wait_for(lambda: len(user.files()) == 60)

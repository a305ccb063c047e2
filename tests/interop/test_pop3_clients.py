"""curl and fetchmail read and empty a maildrop of the whole server."""

from __future__ import annotations

import os
import shutil
import smtplib
import subprocess
from unittest import SkipTest, TestCase

from tests.peers import PATIENCE
from twisted_mta.testing.site import PASSWORD, Site

BODY = b"Subject: dots\r\n\r\n.one\r\n..\r\nend\r\n"


def run(*command: str, home: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, check=False, capture_output=True, timeout=PATIENCE, env={**os.environ, "HOME": home}
    )


class Pop3ClientTests(TestCase):
    def setUp(self) -> None:
        self.site = self.enterContext(Site(roles=("mx", "pop3", "pop3s")))
        self.home = str(self.site.directory)
        with smtplib.SMTP("127.0.0.1", self.site.port("mx")) as client:
            for _ in range(2):
                client.sendmail("a@example.org", ["alice@example.test"], BODY)
        maildir = self.site.directory / "mail" / "alice@example.test"
        self.site.wait_for(lambda: len(list(maildir.glob("new/*"))) == 2)

    def curl(self, url: str, *options: str) -> bytes:
        done = run(
            "curl", "-sS", "-k", "--ssl-reqd", "-u", f"alice:{PASSWORD}", *options, url, home=self.home
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_curl(self) -> None:
        if shutil.which("curl") is None:
            raise SkipTest("there is no curl here")
        plain = f"pop3://127.0.0.1:{self.site.port('pop3')}/"
        tls = f"pop3s://127.0.0.1:{self.site.port('pop3s')}/"
        listing = self.curl(plain).split()
        self.assertEqual(listing[::2], [b"1", b"2"])
        message = self.curl(tls + "1")
        self.assertTrue(
            message.startswith(b"Return-Path: <a@example.org>\r\nDelivered-To: alice@example.test\r\n")
        )
        self.assertTrue(message.endswith(BODY))
        self.assertEqual(len(message), int(listing[1]))
        self.assertEqual(self.curl(plain, "-X", "UIDL"), self.curl(tls, "-X", "UIDL"))
        wrong = run("curl", "-sS", "-k", "-u", "alice:wrong", tls, home=self.home)
        self.assertEqual(wrong.returncode, 67)  # login denied

    def test_fetchmail(self) -> None:
        if shutil.which("fetchmail") is None:
            raise SkipTest("there is no fetchmail here")
        settings = self.site.directory / "fetchmailrc"
        settings.touch(0o600)
        got = self.site.directory / "got"
        settings.write_text(
            f"poll 127.0.0.1 proto pop3 port {self.site.port('pop3')} uidl\n"
            f'  user "alice" password "{PASSWORD}" sslproto "tls1.2+" no sslcertck nokeep\n'
            f'  mda "cat >> {got}"\n'
        )
        files = ("--idfile", f"{self.home}/ids", "--pidfile", f"{self.home}/pid")
        done = run("fetchmail", "-f", str(settings), *files, home=self.home)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(got.read_bytes().count(b"\n.one\n..\nend\n"), 2)
        self.assertEqual(self.curl(f"pop3://127.0.0.1:{self.site.port('pop3')}/").strip(), b"")

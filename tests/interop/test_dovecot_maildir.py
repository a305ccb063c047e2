"""Dovecot and we work on one Maildir: doveadm reads what we wrote, and we what it wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar
from unittest import SkipTest

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.peers import PATIENCE
from twisted_mta.interfaces import Account
from twisted_mta.store.maildir import MaildirMailboxes
from twisted_mta.store.threads import InlineWorkers

T = TypeVar("T")

CONFIG = """\
base_dir = {top}/run
state_dir = {top}/run
log_path = /dev/stderr
mail_location = maildir:{top}/Maildir
mail_uid = {user}
mail_gid = {group}
first_valid_uid = 1
first_valid_gid = 0
ssl = no
"""


class DovecotTests(SynchronousTestCase):
    def setUp(self) -> None:
        if shutil.which("doveadm") is None:
            raise SkipTest("there is no doveadm here")
        self.top = Path(tempfile.mkdtemp(prefix="mta-dovecot-"))
        self.addCleanup(shutil.rmtree, self.top)
        # Dovecot handles no mail as root.
        root = os.geteuid() == 0
        self.user, self.group = (65534, 65534) if root else (os.geteuid(), os.getegid())
        text = CONFIG.format(top=self.top, user=self.user, group=self.group)
        (self.top / "dovecot.conf").write_text(text)
        self.own()
        mailboxes = MaildirMailboxes(InlineWorkers(), Clock())
        self.addCleanup(lambda: self.get(mailboxes.close()))
        self.store = mailboxes.of(Account("alice@example.test", str(self.top / "Maildir")))

    def own(self) -> None:
        """Give everything to the user that Dovecot runs as."""
        for directory, _, files in os.walk(self.top):
            for name in (".", *files):
                os.chown(os.path.join(directory, name), self.user, self.group)

    def get(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def doveadm(self, *arguments: str) -> list[str]:
        self.own()
        done = subprocess.run(
            ["doveadm", "-c", str(self.top / "dovecot.conf"), *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            user=self.user,
            group=self.group,
            extra_groups=[] if os.geteuid() == 0 else None,
            env={"USER": "alice", "HOME": str(self.top), "PATH": os.environ["PATH"]},
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.splitlines()

    def test_both_read_what_the_other_wrote(self) -> None:
        self.get(self.store.create("Entwürfe & mehr/Sub"))
        self.get(self.store.subscribe("Entwürfe & mehr/Sub", True))
        self.get(
            self.store.append(
                "INBOX", b"Subject: one\r\n\r\nbody\r\n", ["\\Seen", "$Forwarded", "Work"], 86400.0
            )
        )
        self.get(self.store.append("INBOX", b"Subject: two\r\n\r\nbody\r\r\nx"))
        self.assertEqual(
            sorted(self.doveadm("mailbox", "list")), ["Entwürfe & mehr", "Entwürfe & mehr.Sub", "INBOX"]
        )
        self.assertEqual(self.doveadm("mailbox", "list", "-s"), ["Entwürfe & mehr.Sub"])
        fields = "flags size.virtual size.physical date.received.unixtime hdr.subject"
        first, second = self.doveadm("-f", "tab", "fetch", fields, "mailbox", "INBOX")[1:]
        flags, *rest = first.split("\t")
        self.assertLessEqual({"\\Seen", "$Forwarded", "Work"}, set(flags.split()))
        self.assertEqual(rest, ["22", "19", "86400", "one"])
        self.assertEqual(second.split("\t")[1:3], ["24", "22"])

        inbox = self.get(self.store.open("INBOX"))
        self.doveadm("flags", "add", "\\Flagged NewOne", "mailbox", "INBOX", "1")
        self.doveadm("expunge", "mailbox", "INBOX", "2")
        self.doveadm("mailbox", "create", "-s", "Lists.new")
        changes = self.get(inbox.refresh())
        self.assertEqual(changes.expunged, (2,))
        self.assertEqual(
            [entry.flags for entry in changes.changed],
            [{"\\Seen", "\\Flagged", "$Forwarded", "Work", "NewOne"}],
        )
        self.assertIn("Lists/new", self.get(self.store.subscriptions()))
        self.assertIn("Lists/new", [info.name for info in self.get(self.store.list_mailboxes())])

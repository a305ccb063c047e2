"""The mailbox contract, run by each implementation."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.task import Clock

from twisted_mta.interfaces import Account, MessageEntry
from twisted_mta.store.maildir import MaildirMailboxes
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.testing.contracts.mailboxes import MailboxContract
from twisted_mta.testing.mailboxes import MemoryMailboxes

LETTERS = {"\\Draft": "D", "\\Flagged": "F", "\\Answered": "R", "\\Seen": "S", "\\Deleted": "T"}


class MemoryMailboxTests(MailboxContract):
    __test__ = True

    def setUp(self) -> None:
        self.store = MemoryMailboxes().of(Account("alice@example.test", "/nowhere"))

    def deliver(self, message: bytes) -> None:
        self.store.deliver(message)

    def change_flags(self, entry: MessageEntry, flags: set[str]) -> None:
        self.store.change_flags(entry.uid, flags)

    def vanish(self, entry: MessageEntry) -> None:
        self.store.vanish(entry.uid)


class MaildirMailboxTests(MailboxContract):
    __test__ = True

    def setUp(self) -> None:
        root = os.path.join(self.mktemp(), "alice", "Maildir")
        self.root = Path(root).absolute()
        self.mailboxes = MaildirMailboxes(InlineWorkers(), Clock())
        self.store = self.mailboxes.of(Account("alice@example.test", str(self.root)))
        self.delivered = 0

    def tearDown(self) -> None:
        self.get(self.mailboxes.close())

    def deliver(self, message: bytes) -> None:
        self.delivered += 1
        path = self.root / "new" / f"99999999{self.delivered:02}.P1Q1.other.example"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(message.replace(b"\r\n", b"\n"))

    def find(self, entry: MessageEntry) -> Path:
        return next(
            path for part in ("new", "cur") for path in (self.root / part).glob(f"{entry.unique_name}*")
        )

    def change_flags(self, entry: MessageEntry, flags: set[str]) -> None:
        path = self.find(entry)
        base = path.name.partition(":")[0]
        path.rename(self.root / "cur" / f"{base}:2,{''.join(sorted(LETTERS[flag] for flag in flags))}")

    def vanish(self, entry: MessageEntry) -> None:
        self.find(entry).unlink()

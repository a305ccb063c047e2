"""Many sessions and deliveries on one Maildir at once, in real threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from twisted_mta.core.address import Address
from twisted_mta.core.queue import Delivered, Transport
from twisted_mta.delivery.local import LocalDelivery
from twisted_mta.interfaces import Account
from twisted_mta.store.maildir import MaildirMailboxes
from twisted_mta.store.queue.bodies import MemoryBody
from twisted_mta.store.threads import Workers
from twisted_mta.testing.queued import queued_message, queued_recipient

reactor: Any = _reactor
SESSIONS = 4
MESSAGES = 40


class ConcurrencyTests(TestCase):
    timeout = 600

    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute() / "Maildir"
        self.account_ = Account("alice@example.test", str(self.root))
        self.workers = Workers(reactor, 8, "disk")
        self.mailboxes = MaildirMailboxes(self.workers, reactor)
        self.store = self.mailboxes.of(self.account_)
        self.delivery = LocalDelivery(
            self,  # type: ignore[arg-type]
            self.workers,
            hostname="mx.example.test",
            started=0.0,
            told=self.mailboxes.delivered,
        )

    async def tearDown(self) -> None:
        await self.delivery.close()
        await self.mailboxes.close()
        self.workers.close()

    def account(self, address: Address) -> Account:
        """IDirectory: everybody is alice."""
        return self.account_

    async def deliver(self, number: int) -> None:
        recipient = queued_recipient("alice@example.test", row=number, transport=Transport.LOCAL)
        message = queued_message(id=f"q{number}", sender=None, body_id=number, body_size=1)
        (outcome,) = await self.delivery.deliver(
            message, MemoryBody(b"X: delivered\r\n\r\n"), [recipient], "local"
        )
        self.assertIsInstance(outcome, Delivered)

    async def session(self, seen: dict[int, str]) -> None:
        """Append, look, change flags and remove, checking that a UID never means another message."""
        mailbox = await self.store.open("INBOX")
        for number in range(MESSAGES // SESSIONS):
            await self.store.append("INBOX", b"X: appended %d\r\n\r\n" % number)
            changes = await mailbox.refresh()
            uids = [entry.uid for entry in mailbox.entries]
            self.assertEqual(uids, sorted(set(uids)))
            for entry in (*changes.added, *mailbox.entries):
                self.assertEqual(seen.setdefault(entry.uid, entry.unique_name), entry.unique_name)
            if uids:
                await mailbox.set_flags(uids[:3], ["\\Flagged", f"k{number}"], "add")
                await mailbox.remove(uids[number % len(uids) :][:1])
        await mailbox.close()

    async def test_uids_stay_with_their_messages(self) -> None:
        seen: dict[int, str] = {}
        work = [self.session(seen) for _ in range(SESSIONS)]
        work += [self.deliver(number) for number in range(MESSAGES)]
        await gatherResults([Deferred.fromCoroutine(each) for each in work])
        mailbox = await self.store.open("INBOX")
        self.assertEqual(len(os.listdir(self.root / "cur")), len(mailbox.entries))
        self.assertEqual(os.listdir(self.root / "new") + os.listdir(self.root / "tmp"), [])
        for entry in mailbox.entries:
            self.assertEqual(len(await mailbox.read(entry.uid)), entry.size)
        names = set(seen.values())
        self.assertEqual(len(names), len(seen))
        await mailbox.close()

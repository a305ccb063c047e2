"""What a broken disk leaves of the queue: one message is set aside with a reason, and all else goes on."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.queue import WorkItem
from twisted_mta.interfaces import StoreFull
from twisted_mta.service.start import StartError
from twisted_mta.store.faults import STEPS, Fault, Faults, arm
from twisted_mta.testing.world import World

HOUR = 3600.0
MESSAGE = b"From: alice@example.test\r\nMessage-ID: <1@example.test>\r\n\r\nhello\r\n"
LARGE = MESSAGE + b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 5000
RELAY = '\n[relay]\nnetworks = ["127.0.0.0/8"]\n[limits]\ndisk_reserve = 0\n'


class DamageTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(Path(self.mktemp()), RELAY)
        self.addCleanup(self.world.close)
        self.addCleanup(arm, None)
        self.peer = self.world.host("example.org", "192.0.2.1")

    def send(self, recipient: str, message: bytes = MESSAGE) -> int:
        return self.world.send("alice@example.test", [recipient], message).code

    def queue(self) -> list[WorkItem]:
        items: list[Any] = []
        Deferred.fromCoroutine(self.world.parts.store.listing()).addCallback(items.extend)
        return items


class DamagedMessageTests(DamageTestCase):
    def wait_for_a_peer(self, message: bytes) -> None:
        """Have a message in the queue that nobody holds in memory."""
        self.up, self.world.network.servers = self.world.network.servers, {}
        self.assertEqual(self.send("carol@example.org", message), 250)
        self.world.restart()

    def test_missing_body(self) -> None:
        self.wait_for_a_peer(LARGE)
        (body,) = (self.world.config.queue_directory / "bodies").glob("mta-*")
        away = body.rename(body.with_name("elsewhere"))
        self.world.network.servers = self.up
        self.world.advance(HOUR)
        (item,) = self.queue()
        self.assertRegex(item.message.hold, "^damaged: its body file .*mta-1 is missing$")
        self.assertIn("451 4.3.0 the message is damaged and held", item.recipients[0].last_reply)
        self.assertEqual(len(self.flushLoggedErrors()), 0)
        self.assertEqual(self.send("carol@example.org"), 250)
        self.world.advance(HOUR)
        self.assertEqual(len(self.peer.messages), 1, "the other one goes on")
        # Found again, and released: as if nothing had been.
        away.rename(body)
        Deferred.fromCoroutine(self.world.parts.store.let_go([item.message.id]))
        self.world.restart()
        self.world.advance(5 * HOUR)
        self.assertEqual([len(each.data) > 1000 for each in self.peer.messages], [False, True])
        self.assertEqual(self.queue(), [])

    def test_truncated_body(self) -> None:
        self.wait_for_a_peer(LARGE)
        (body,) = (self.world.config.queue_directory / "bodies").glob("mta-*")
        body.write_bytes(body.read_bytes()[:1000])
        self.world.network.servers = self.up
        self.world.advance(HOUR)
        (item,) = self.queue()
        self.assertRegex(item.message.hold, f"has 1000 octets instead of {len(LARGE)}$")
        self.assertEqual(self.peer.messages, [])

    def test_nonsense_in_a_row(self) -> None:
        self.wait_for_a_peer(MESSAGE)
        with closing(sqlite3.connect(self.world.config.queue_directory / "queue.sqlite")) as database:
            database.execute("UPDATE message SET expires = 'never'")
            database.commit()
        self.world.network.servers = self.up
        self.assertEqual(self.send("carol@example.org"), 250)
        self.world.advance(HOUR)
        self.assertEqual(len(self.peer.messages), 1)
        (item,) = self.queue()
        self.assertIn("damaged: ", item.message.hold)


class DamagedDatabaseTests(DamageTestCase):
    def test_a_start_is_refused_with_what_to_do(self) -> None:
        self.world.crash()
        path = self.world.config.queue_directory / "queue.sqlite"
        with path.open("r+b") as file:
            file.write(b"no database here")
        error = self.assertRaises(StartError, self.world.start)
        self.assertRegex(str(error), "queue.sqlite.* is damaged: file is not a database .*docs/operations.md")
        path.unlink()
        self.world.start()


class FullDiskTests(DamageTestCase):
    """Each step fails for some time: mail is put off, nothing else happens, and then it all goes on."""

    def fail_at(self, point: str, error: int) -> None:
        plan = Faults([Fault(point, 1, True, error)])
        arm(plan)
        codes = [self.send("bob@example.test", message) for message in (MESSAGE, LARGE)]
        self.world.advance(60)
        self.assertTrue(set(codes) <= {250, 451, 452}, codes)
        if error == errno.ENOSPC:
            self.assertNotIn(451, codes, "a full disk is called that")
        self.assertEqual(len(self.world.mail("bob")) + len(self.queue()), codes.count(250))
        arm(None)
        codes += [self.send("bob@example.test", message) for message in (MESSAGE, LARGE)]
        self.assertEqual(codes[2:], [250, 250], "it works on without a restart")
        self.world.advance(2 * HOUR)
        self.assertEqual(self.queue(), [])
        self.assertEqual(len(self.world.mail("bob")), codes.count(250))
        for failure in self.flushLoggedErrors():
            self.assertIsInstance(
                failure.value, OSError | StoreFull, "else it is a bug that the error led to"
            )


#: Those on the way of a message.
_POINTS = (
    *(
        point
        for point in STEPS
        if point.startswith(("queue.", "body.")) and point not in ("queue.migrate", "body.sweep")
    ),
    *(f"maildir.{step}" for step in ("create", "write", "sync", "deliver", "sync-directory")),
)


def _add_tests() -> None:
    for point in _POINTS:
        for error in (errno.ENOSPC, errno.EIO, errno.EROFS):

            def test(self: FullDiskTests, point: str = point, error: int = error) -> None:
                self.fail_at(point, error)

            name = f"test_{point}_{errno.errorcode[error]}".replace(".", "_").replace("-", "_")
            setattr(FullDiskTests, name, test)


_add_tests()

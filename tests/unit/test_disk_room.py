"""Mail is refused before the disk is full, and an administrator is told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.interfaces import StoreFull
from twisted_mta.store.queue.disk import DiskRoom, DiskStatus


class Disk:
    """What os.statvfs tells."""

    f_frsize = 10

    def __init__(self, free: int) -> None:
        self.f_bavail = free // 10


class DiskRoomTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.free = 10_000
        self.looks = 0
        self.patch(os, "statvfs", self.statvfs)
        self.room = DiskRoom(Path("/nowhere"), self.clock, 1000)
        self.log: list[str] = []
        globalLogPublisher.addObserver(self.note)
        self.addCleanup(globalLogPublisher.removeObserver, self.note)

    def note(self, event: dict[str, object]) -> None:
        if event.get("log_namespace", "") == f"{DiskRoom.__module__}.DiskRoom":
            self.log.append(str(event["log_format"]).partition(" {")[0])

    def statvfs(self, path: Path) -> Disk:
        self.looks += 1
        if self.free < 0:
            raise OSError(errno.EIO, "broken")
        return Disk(self.free)

    def fits(self, octets: int) -> bool:
        try:
            self.room.check(octets)
        except StoreFull:
            return False
        return True

    def test_what_is_announced(self) -> None:
        self.assertTrue(self.fits(9000))
        self.assertTrue(self.fits(9000))  # asking takes nothing
        self.assertFalse(self.fits(9001))
        self.assertTrue(self.fits(9000))  # and one that is too large is no matter of the next one
        self.room.use(1000)
        self.assertTrue(self.fits(9000))  # it was a guess that so much is gone: look again
        self.free = 9000
        self.clock.advance(1)
        self.assertTrue(self.fits(8000))
        self.assertFalse(self.fits(8001))
        self.assertEqual(self.log, [])

    def test_told_once_and_when_it_is_over(self) -> None:
        self.free = 999 // 10 * 10
        for _ in range(3):
            self.assertFalse(self.fits(0))
            self.assertRaises(StoreFull, self.room.use, 1)
            self.clock.advance(1)
        self.assertEqual(self.log, ["mail is refused for lack of room:"])
        self.free = 2000
        self.assertTrue(self.fits(0))
        self.assertEqual(self.log[1:], ["there is room for mail again,"])

    def test_status(self) -> None:
        self.assertEqual(self.room.status(), DiskStatus(10_000, 1000, ""))
        self.free = 100
        refusal = "100 octets are free on the disk of the queue, of which 1000 must stay free"
        self.assertEqual(self.room.status(), DiskStatus(100, 1000, refusal))
        self.assertFalse(self.fits(0))
        self.free = -1
        self.assertEqual(self.room.status().refusal, "can't tell the free space: [Errno 5] broken")

    def test_off(self) -> None:
        self.room.reconfigure(0)
        self.free = 10
        self.assertTrue(self.fits(1 << 40))
        self.room.use(1 << 40)
        self.assertEqual(self.looks, 0)
        self.assertEqual(self.room.status(), DiskStatus(10, 0, ""))

    def test_the_disk_is_asked_once_a_second(self) -> None:
        for _ in range(10):
            self.room.use(1)
            self.room.check(1)
        self.assertEqual(self.looks, 1)
        self.clock.advance(1)
        self.room.check(1)
        self.assertEqual(self.looks, 2)
        self.clock.advance(-100)  # it was set back
        self.room.check(1)
        self.assertEqual(self.looks, 3)

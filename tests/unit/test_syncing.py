"""store.maildir.syncing: when a file system is synced as a whole, and when it is not."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

import attrs
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.store.maildir.syncing import ENOUGH, PAUSE, SLOW, Syncs, SystemSync


@attrs.define
class Disk:
    """A syncfs that takes `takes` seconds, and fails with `error`."""

    trusted: bool = True
    takes: float = 0.0
    error: int = 0
    now: float = 1000.0
    synced: int = 0

    def trusts(self, descriptor: int) -> bool:
        os.fstat(descriptor)
        return self.trusted

    def __call__(self, descriptor: int) -> None:
        self.now += self.takes
        self.synced += 1
        if self.error:
            raise OSError(self.error, os.strerror(self.error))


class SyncsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.top = self.mktemp()
        os.mkdir(self.top)
        self.device = os.stat(self.top).st_dev
        self.disk = Disk()
        self.syncs = Syncs(self.disk, lambda: self.disk.now)
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def sync(self, count: int = ENOUGH, *directories: str) -> bool:
        with self.syncs.batch(directories or [self.top, self.top], count) as batch:
            return batch.sync(self.device, count)

    def test_from_a_few_files_on(self) -> None:
        self.assertFalse(self.sync(ENOUGH - 1))
        self.assertTrue(self.sync(ENOUGH))
        self.assertEqual(self.disk.synced, 1)

    def test_only_what_was_open_before(self) -> None:
        self.assertFalse(self.sync(100, str(Path(self.top, "yet-to-be-made"))))
        with self.syncs.batch([self.top], 100) as batch:
            self.assertFalse(batch.sync(self.device + 1, 100))

    def test_a_batch_may_come_to_less_than_was_thought(self) -> None:
        with self.syncs.batch([self.top], 100) as batch:
            self.assertFalse(batch.sync(self.device, ENOUGH - 1))

    def test_the_device_of_a_directory(self) -> None:
        with self.syncs.batch([self.top], ENOUGH) as batch:
            self.assertEqual(batch.device(self.top), self.device)
            self.assertEqual(batch.device(str(Path(self.top, "yet-to-be-made"))), -1)
        with self.syncs.batch([self.top], ENOUGH - 1) as batch:  # nobody needs it
            self.assertEqual(batch.device(self.top), -1)

    def test_not_where_it_may_do_nothing(self) -> None:
        self.disk.trusted = False
        self.assertFalse(self.sync())

    def test_no_descriptor_is_left(self) -> None:
        before = os.listdir("/proc/self/fd")
        for self.disk.trusted in (True, False):
            self.sync()
        self.assertEqual(os.listdir("/proc/self/fd"), before)

    def test_trouble_is_for_each_file_to_tell(self) -> None:
        self.disk.error = errno.EIO
        self.assertFalse(self.sync())
        self.assertEqual([event["error"] for event in self.events], ["[Errno 5] Input/output error"])

    def test_a_slow_one_is_not_tried_again_for_a_while(self) -> None:
        self.disk.takes = SLOW
        self.assertEqual([self.sync(), self.sync()], [True, True])
        self.disk.takes = SLOW + 1.0
        self.assertEqual([self.sync(), self.sync()], [True, False])
        self.assertEqual(len(self.events), 1)
        self.disk.now += PAUSE
        self.assertTrue(self.sync())


class SystemTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, self.descriptor)

    def test_the_real_thing(self) -> None:
        SystemSync()(self.descriptor)
        error = self.assertRaises(OSError, SystemSync(), -1)
        self.assertEqual(error.errno, errno.EBADF)

    def test_which_file_systems(self) -> None:
        kind = 0xEF53

        def fstatfs(descriptor: int, status: Any) -> int:
            status._obj[0] = kind
            return 0 if descriptor >= 0 else -1

        system = SystemSync("5.8.0-1-amd64")
        self.patch(system, "_fstatfs", fstatfs)
        self.assertTrue(system.trusts(self.descriptor))
        self.assertFalse(system.trusts(-1))
        kind = 0x65735546  # FUSE
        self.assertFalse(system.trusts(self.descriptor))
        self.assertEqual(ctypes.sizeof(ctypes.c_long * 64), 512)  # struct statfs has 120 octets

    def test_old_kernels_keep_silent_about_trouble(self) -> None:
        for release, trusted in (("4.19.0", False), ("5.7.19", False), ("x", False)):
            self.assertEqual(SystemSync(release).trusts(self.descriptor), trusted)

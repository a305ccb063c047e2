"""The lock of the data directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from twisted_mta.service.control import AlreadyRunning
from twisted_mta.service.lock import DataLock


class DataLockTests(unittest.TestCase):
    """One holder at a time."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.data = Path(directory.name, "var", "data")

    def test_one_at_a_time(self) -> None:
        first, second = DataLock(self.data), DataLock(self.data)
        second.release()
        first.acquire()
        self.assertRaisesRegex(AlreadyRunning, "another server", second.acquire)
        first.release()
        second.acquire()
        first.release()
        self.assertRaises(AlreadyRunning, DataLock(self.data).acquire)
        second.release()

    def test_is_private(self) -> None:
        lock = DataLock(self.data)
        lock.acquire()
        lock.release()
        self.assertEqual(self.data.stat().st_mode & 0o777, 0o700)
        self.assertEqual((self.data / "lock").stat().st_mode & 0o777, 0o600)

    def test_made_by_root_it_belongs_to_the_owner_of_the_directory(self) -> None:
        with mock.patch("os.geteuid", return_value=0), mock.patch("os.fchown") as fchown:
            lock = DataLock(self.data)
            lock.acquire()
            lock.release()
        owner = self.data.stat()
        fchown.assert_called_once_with(mock.ANY, owner.st_uid, owner.st_gid)

    def test_a_killed_process_holds_nothing(self) -> None:
        code = (
            "import sys; from pathlib import Path; from twisted_mta.service.lock import DataLock; "
            "lock = DataLock(Path(sys.argv[1])); lock.acquire(); print(flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(self.data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            lock = DataLock(self.data)
            self.assertRaises(AlreadyRunning, lock.acquire)
            os.kill(process.pid, signal.SIGKILL)
        lock.acquire()
        lock.release()

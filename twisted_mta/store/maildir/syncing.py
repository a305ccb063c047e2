"""Puts many files on disk at once: by one syncfs where that is safe, else by an fsync for each.

An fsync of a new file waits for the disk, and so does the next one: 64 files took 50 to 80 ms, and 0.1 ms of processor
time each. One syncfs for all of them took 7 ms, and half of that time. But it waits for whatever else is to be written on
the file system, so after one that took long the files are synced one by one for a while.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol

import attrs
from twisted.logger import Logger

from twisted_mta.core.values import value
from twisted_mta.store.faults import fault

#: Files from which on they are synced as a whole.
ENOUGH = 4
#: Seconds: after a syncfs that took longer there is none for a while.
SLOW = 1.0
PAUSE = 60.0

#: ext2 to ext4, xfs, btrfs, f2fs, zfs: the file systems on which syncfs waits until all of it is on the disk. Others may
#: not even tell their other side of it (FUSE).
_TRUSTED = frozenset((0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x2FC12FC1))
#: struct statfs, which begins with f_type. Made once: to make a type takes as long as all the rest of a batch's beginning.
_Status = ctypes.c_long * 64


class SyncAll(Protocol):
    """Syncs a whole file system."""

    def trusts(self, descriptor: int) -> bool:
        """Whether it works on the file system that this is a file of."""
        ...

    def __call__(self, descriptor: int) -> None:
        """Wait until all of it is on the disk. Raises OSError, also for the files of others."""
        ...


class SystemSync:
    """The system's syncfs."""

    def __init__(self, release: str = "") -> None:
        """`release`: the kernel's, where it is not this one."""
        found = re.match(r"([0-9]+)\.([0-9]+)", release or platform.release())
        version = (int(found[1]), int(found[2])) if found else (0, 0)
        # Before Linux 5.8 it kept silent about what could not be written.
        self._works = platform.system() == "Linux" and version >= (5, 8)
        libc = ctypes.CDLL(None, use_errno=True)
        self._fstatfs, self._syncfs = libc.fstatfs, libc.syncfs
        # Said once, or it is found out at each call.
        self._fstatfs.argtypes = (ctypes.c_int, ctypes.POINTER(_Status))
        self._syncfs.argtypes = (ctypes.c_int,)

    def trusts(self, descriptor: int) -> bool:
        """See SyncAll."""
        if not self._works:
            return False
        status = _Status()
        return self._fstatfs(descriptor, ctypes.byref(status)) == 0 and status[0] in _TRUSTED

    def __call__(self, descriptor: int) -> None:
        """See SyncAll."""
        if self._syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


@attrs.define
class Syncs:
    """Decides how batches are synced."""

    log = Logger()

    syncfs: SyncAll = attrs.field(factory=SystemSync)
    now: Callable[[], float] = time.monotonic
    _not_before: float = 0.0

    def batch(self, directories: Iterable[str], count: int) -> Batch:
        """To be made before the first of at most `count` files below these directories: syncfs tells of the trouble since
        then. To be left by `with`."""
        batch = Batch(self)
        if count >= ENOUGH and self.now() >= self._not_before:
            for directory in directories:
                self._open(directory, batch.descriptors)
        return batch

    def _open(self, directory: str, descriptors: dict[int, int]) -> None:
        try:
            device = os.stat(directory).st_dev
            if device in descriptors:
                return
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # it is yet to be made, say; who writes there will tell what is wrong
            return
        if self.syncfs.trusts(descriptor):
            descriptors[device] = descriptor
        else:
            os.close(descriptor)

    def run(self, descriptor: int) -> bool:
        """Sync a file system; False: each file must be."""
        began = self.now()
        try:
            fault("maildir.sync-all")
            self.syncfs(descriptor)
        except OSError as error:  # whose files that is about, their own fsync knows
            self.log.warn("can't sync all of a file system: {error}", error=str(error))
            return False
        took = self.now() - began
        if took > SLOW:
            self._not_before = self.now() + PAUSE
            self.log.info(
                "to sync all of a file system took {took:.1f} s: for {pause:.0f} s each file is synced by itself",
                took=took,
                pause=PAUSE,
            )
        return True


@value
class Batch:
    """What may be synced as a whole in one batch."""

    _syncs: Syncs
    #: Device -> an open directory on it.
    descriptors: dict[int, int] = attrs.field(factory=dict)
    #: Directory -> its device: asked once for all that a batch puts there.
    _devices: dict[str, int] = attrs.field(factory=dict)

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)

    def device(self, directory: str) -> int:
        """The file system (st_dev) that a directory is on; -1 where that makes no difference."""
        if not self.descriptors:
            return -1
        found = self._devices.get(directory)
        if found is None:
            try:
                found = os.stat(directory).st_dev
            except OSError:  # whoever renames something into it will tell what is wrong
                found = -1
            self._devices[directory] = found
        return found

    def sync(self, device: int, count: int) -> bool:
        """Put `count` files or directories of a device on disk, with all that is on it; False: each must be."""
        descriptor = self.descriptors.get(device)
        return descriptor is not None and count >= ENOUGH and self._syncs.run(descriptor)

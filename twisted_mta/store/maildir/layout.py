"""The directories of one account's Maildir++ tree, and its subscriptions file. Everything here blocks: worker threads only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from twisted_mta.store.durable import make_directories
from twisted_mta.store.faults import fault
from twisted_mta.store.maildir.files import sync_directory
from twisted_mta.store.maildir.names import directory_of, name_of

_PARTS = ("tmp", "new", "cur")
#: A mailbox on its way out. Two dots: no Maildir++ program takes it for a mailbox.
_TRASH = "..deleted-"
#: Seconds until a file in tmp/ is nobody's.
_ABANDONED = 36 * 3600.0
_SUBSCRIPTIONS = "subscriptions"
_VERSION_2 = "V\t2\n\n"


class Layout:
    """Below `root` lie cur, new and tmp of INBOX, and a directory ".Name" for every other mailbox."""

    def __init__(self, root: str) -> None:
        self.root = root

    def path(self, directory: str) -> str:
        """The path of a mailbox by the name of its directory ("" is INBOX)."""
        return os.path.join(self.root, directory) if directory else self.root

    def exists(self, directory: str) -> bool:
        """Whether that mailbox is there. Dovecot too goes by cur/ alone."""
        return os.path.isdir(os.path.join(self.path(directory), "cur"))

    def ensure(self) -> None:
        """Make INBOX if it isn't there; durable."""
        if not all(os.path.isdir(os.path.join(self.root, part)) for part in _PARTS):
            make_directories(self.root, sync_directory)
            self._fill("")

    def create(self, directory: str) -> None:
        """Make a mailbox; durable. One that another program left half-made is completed."""
        path = self.path(directory)
        fault("maildir.make")
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        # Tells delivery agents that quotas and the like are those of the directory above.
        Path(path, "maildirfolder").touch(0o600)
        self._fill(directory)
        sync_directory(self.root)

    def _fill(self, directory: str) -> None:
        path = self.path(directory)
        for part in _PARTS:  # cur last: it is what makes it a mailbox
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.join(path, part), 0o700)
        sync_directory(path)

    def directories(self) -> tuple[list[str], list[str]]:
        """(the mailboxes' directories, INBOX's "" first; those whose names we can't read)."""
        good: list[str] = [""]
        odd: list[str] = []
        with os.scandir(self.root) as found:
            for entry in found:
                if entry.name.startswith(".") and not entry.name.startswith("..") and self.exists(entry.name):
                    (good if name_of(entry.name) else odd).append(entry.name)
        return good, odd

    def remove(self, directory: str, trash_key: str) -> None:
        """Remove a mailbox with its messages: it is gone at once, its files go after."""
        trash = f"{_TRASH}{trash_key}"
        fault("maildir.trash")
        os.rename(self.path(directory), self.path(trash))
        sync_directory(self.root)
        for name in os.listdir(self.root):  # and what a crash left over
            if name.startswith(_TRASH):
                shutil.rmtree(self.path(name), ignore_errors=True)

    def sweep(self, directory: str, now: float) -> None:
        """Remove what deliveries that never ended left in tmp/ (the Maildir specification says: after 36 hours)."""
        with os.scandir(os.path.join(self.path(directory), "tmp")) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):  # another sweeper
                    if (
                        entry.is_file(follow_symlinks=False)
                        and now - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED
                    ):
                        os.unlink(entry.path)

    def rename(self, old: str, new: str) -> None:
        """Give a mailbox another directory; the caller has seen that it is free."""
        fault("maildir.rename")
        os.rename(self.path(old), self.path(new))
        sync_directory(self.root)

    # --- subscriptions ---------------------------------------------------------------------------

    def subscriptions(self) -> list[str]:
        """The subscribed names, as Dovecot writes them in either version of its file."""
        lines, version = self._subscription_lines()
        directories = (line.replace("\t", ".") if version == 2 else line for line in lines)
        names = (name_of("" if directory == "INBOX" else "." + directory) for directory in directories)
        return list(dict.fromkeys(name for name in names if name))

    def subscribe(self, name: str, on: bool) -> None:
        """Add or take out one name; other lines stay as they are. Durable."""
        with self._alone():
            self._subscribe(name, on)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Without another process of this server, which may serve the same account."""
        lock = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _subscribe(self, name: str, on: bool) -> None:
        lines, version = self._subscription_lines()
        line = directory_of(name).removeprefix(".") or "INBOX"
        if version == 2:
            line = line.replace(".", "\t")
        if (line in lines) == on:
            return
        lines = [*lines, line] if on else [other for other in lines if other != line]
        text = (_VERSION_2 if version == 2 else "") + "".join(f"{each}\n" for each in lines)
        fresh = Path(self.root, f"{_SUBSCRIPTIONS}.twisted-mta")
        with os.fdopen(
            os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb"
        ) as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            fault("subscriptions.sync")
            os.fsync(file.fileno())
        fault("subscriptions.rename")
        fresh.rename(Path(self.root, _SUBSCRIPTIONS))
        sync_directory(self.root)

    def _subscription_lines(self) -> tuple[list[str], int]:
        try:
            text = Path(self.root, _SUBSCRIPTIONS).read_bytes().decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return [], 1
        version = 2 if text.startswith(_VERSION_2) else 1
        return [line for line in text.removeprefix(_VERSION_2).split("\n") if line], version

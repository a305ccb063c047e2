"""Flags as letters in file names: five system flags in capitals, keywords as a..z through the file ``dovecot-keywords``."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from twisted_mta.interfaces import MailboxError
from twisted_mta.store.faults import fault
from twisted_mta.store.maildir.files import sync_directory

FILE = "dovecot-keywords"
SYSTEM = {"\\Draft": "D", "\\Flagged": "F", "\\Answered": "R", "\\Seen": "S", "\\Deleted": "T"}
_BY_LETTER = {letter: flag for flag, letter in SYSTEM.items()}
_BY_FOLDED = {flag.lower(): flag for flag in SYSTEM}
_LINE = re.compile(r"([0-9]{1,2}) (\S+)")
# RFC 3501 §9 flag-keyword is an atom.
_KEYWORD = re.compile(r'[^\x00-\x20\x7f-\U0010ffff(){%*"\\\]]{1,100}')
#: Seconds: a lock older than this was left behind by a dead program; how long we wait for one, and between two looks.
_STALE_LOCK = 30.0
_LOCK_PATIENCE = 5.0
_LOCK_WAIT = 0.05


class Keywords:
    """The keyword letters of one mailbox directory. Used in worker threads only."""

    def __init__(self, directory: str) -> None:
        self._path = Path(directory, FILE)
        self._names: dict[str, str] = {}

    def load(self) -> bool:
        """Read the file again; whether anything changed. A mailbox without the file has no keywords yet."""
        names: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_text("utf-8", "replace").splitlines():
                match = _LINE.fullmatch(line)
                if match and int(match[1]) < 26:
                    names[chr(ord("a") + int(match[1]))] = match[2]
        changed = names != self._names
        self._names = names
        return changed

    def flags(self, letters: str) -> frozenset[str]:
        """The flags that letters stand for; those nobody named are passed over."""
        known = (_BY_LETTER.get(letter) or self._names.get(letter) for letter in letters)
        return frozenset(flag for flag in known if flag)

    def letters(self, flags: Iterable[str], create: bool = True) -> str:
        """The letters for flags. With `create` new keywords get one, which is durable on return; else they are left out.

        Raises MailboxError for what can't be a flag, and when all 26 letters are taken.
        """
        wanted = [flag for flag in flags if flag.lower() != "\\recent"]
        found: list[str] = []
        unknown: list[str] = []
        for flag in wanted:
            letter = self._letter(flag)
            if letter:
                found.append(letter)
            elif flag.startswith("\\") or not _KEYWORD.fullmatch(flag):
                raise MailboxError(f"{flag[:100]!r} can't be a flag")
            else:
                unknown.append(flag)
        if unknown and create:
            self._add(unknown)
            found += [self._letter(flag) for flag in unknown]
        return "".join(found)

    def _letter(self, flag: str) -> str:
        folded = flag.lower()
        if folded in _BY_FOLDED:
            return SYSTEM[_BY_FOLDED[folded]]
        return next((letter for letter, name in self._names.items() if name.lower() == folded), "")

    def _add(self, keywords: Iterable[str]) -> None:
        lock = self._lock()
        try:
            self.load()  # another program may have added some meanwhile
            names = dict(self._names)
            for keyword in keywords:
                if keyword.lower() in {name.lower() for name in names.values()}:
                    continue
                free = next((letter for letter in map(chr, range(97, 123)) if letter not in names), None)
                if free is None:
                    raise MailboxError("the mailbox has 26 keywords already, which is all a Maildir can hold")
                names[free] = keyword
            lines = [f"{ord(letter) - 97} {name}\n" for letter, name in sorted(names.items())]
            with os.fdopen(os.open(lock, os.O_WRONLY | os.O_CLOEXEC), "w", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                fault("keywords.sync")
                os.fsync(file.fileno())
            fault("keywords.rename")
            lock.rename(self._path)
            sync_directory(str(self._path.parent))
            self._names = names
        finally:
            lock.unlink(missing_ok=True)

    def _lock(self) -> Path:
        """Dovecot's way: the new file, created under the name of the lock, is renamed over the old one."""
        lock = self._path.with_name(f"{FILE}.lock")
        deadline = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                os.close(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                return lock
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - lock.stat().st_mtime > _STALE_LOCK:
                        lock.unlink()
                        continue
            if time.monotonic() > deadline:
                raise MailboxError("another program keeps the keywords locked")
            time.sleep(_LOCK_WAIT)  # a worker thread, never the reactor's

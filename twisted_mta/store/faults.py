"""Fault points: the places where a crash or a failing disk hurts most, by name, so that tests can be cut off exactly there.

Each durable step calls `fault` before it begins, and once more behind it where "done, and nobody knows yet" is a state of
its own. Off, which is always in production, that is one comparison. Armed, by `arm` or by the environment, a point kills
the process or fails as the disk would:

    MTA_FAULT=queue.commit:3:kill             dies at the third commit of the queue
    MTA_FAULT=body.sync:1+:ENOSPC             every fsync of a body file finds the disk full
    MTA_FAULT=maildir.write:2:EIO,...         several, separated by commas
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping

import attrs

#: The environment variable that arms.
VARIABLE = "MTA_FAULT"

#: Before a step: it may be cut off here, or fail.
STEPS: Mapping[str, str] = {
    "queue.migrate": "the commit that makes the queue's tables, or brings them up to date",
    "queue.begin": "a transaction of the queue",
    "queue.commit": "its commit",
    "body.create": "a body file is made",
    "body.write": "octets are written to it",
    "body.sync": "its fsync",
    "body.rename": "it gets its name",
    "body.sync-directory": "the fsync of the directory that it is in",
    "body.remove": "a body file without a message is removed",
    "body.sweep": "what a crash left is removed at the start",
    "maildir.create": "a message file is made in tmp/",
    "maildir.write": "octets are written to it",
    "maildir.sync": "its fsync",
    "maildir.sync-all": "all of a file system is synced for a batch of deliveries",
    "maildir.deliver": "it is renamed into new/ by a delivery",
    "maildir.add": "it is renamed into the mailbox by APPEND or COPY",
    "maildir.sync-directory": "the fsync of a directory of mail",
    "maildir.link": "COPY links a message",
    "maildir.flags": "a message is renamed to other flags",
    "maildir.remove": "a message is removed",
    "maildir.make": "a mailbox is made",
    "maildir.rename": "a mailbox gets another name",
    "maildir.trash": "a mailbox is removed",
    "file.sync-directory": "the fsync of the directory above one that is made for a file of an alias",
    "mbox.lock": "the dot-lock of an mbox, with the process in it, gets its name",
    "mbox.write": "octets are appended to it",
    "mbox.sync": "its fsync",
    "mbox.sync-directory": "the fsync of the directory of a new one",
    "mbox.cut": "what was not appended whole is cut off",
    "index.commit": "the commit of a mailbox's index",
    "subscriptions.sync": "the fsync of the new subscriptions",
    "subscriptions.rename": "they replace the old ones",
    "keywords.sync": "the fsync of the new dovecot-keywords",
    "keywords.rename": "they replace the old ones",
    "tls.policy": "a policy of MTA-STS is written and synced",
    "edit.sync": "the fsync of a new text file (accounts, a secret)",
    "edit.rename": "it replaces the old one",
    "edit.sync-directory": "the fsync of its directory",
}
#: Behind a step: it is done and can't fail any more, but nobody has been told.
DONE: Mapping[str, str] = {
    "queue.migrated": "the queue's tables are up to date",
    "queue.committed": "a transaction of the queue is on the disk",
    "body.published": "a body file is on the disk under its name",
    "body.removed": "a body file is gone",
    "maildir.synced": "a directory of mail is on the disk",
    "maildir.removed": "a message is gone, its directory not synced",
    "mbox.synced": "a message is in an mbox, which is still locked",
    "index.committed": "the index of a mailbox is on the disk",
    "edit.replaced": "a text file is on the disk under its name",
}

_SPECIFICATION = re.compile(r"([a-z.-]+)(?::([0-9]+)(\+?))?(?::([A-Za-z]+))?")
_armed: Callable[[str], None] | None = None


def fault(point: str) -> None:
    """Pass a point. Raises OSError, or does not return, where a test has asked for that."""
    if _armed is not None:
        _armed(point)


def arm(hook: Callable[[str], None] | None) -> None:
    """Call `hook` with the name of each point that is passed, in whatever thread passes it; None: no more."""
    global _armed  # noqa: PLW0603  the one switch of the process
    _armed = hook


def arm_from(environment: Mapping[str, str]) -> bool:
    """Arm as the variable says; whether it says anything. Raises ValueError."""
    text = environment.get(VARIABLE, "")
    if text:
        arm(Faults([Fault.parse(part) for part in text.split(",")]))
    return bool(text)


@attrs.define
class Fault:
    """One thing that is to go wrong: at the `first` pass through `point`, and at all later ones if `lasting`."""

    point: str
    first: int = 1
    lasting: bool = False
    #: An errno; 0 kills the process.
    error: int = 0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """POINT[:N[+]][:kill or the name of an errno]. Raises ValueError."""
        match = _SPECIFICATION.fullmatch(text)
        if not match:
            raise ValueError(f"{VARIABLE}: {text!r} is not POINT:N:WHAT")
        point, first, lasting, what = match.groups()
        error = 0 if what in (None, "kill") else getattr(errno, what, None)
        if point not in STEPS and (error or point not in DONE):
            raise ValueError(f"{VARIABLE}: there is no point {point!r}, or none that can fail")
        if error is None:
            raise ValueError(f"{VARIABLE}: {what!r} is neither kill nor an errno")
        return cls(point, int(first or 1), bool(lasting), error)


class Faults:
    """Counts the passes of all threads, and strikes when it is time."""

    def __init__(self, faults: list[Fault], kill: Callable[[], None] | None = None) -> None:
        """`kill` ends the process: SIGKILL, unless a test has something else in mind."""
        self._faults = faults
        self._kill = kill or _kill
        self._lock = threading.Lock()
        #: Point -> passes so far.
        self.passes: dict[str, int] = {}

    def __call__(self, point: str) -> None:
        """A point is passed."""
        with self._lock:
            count = self.passes[point] = self.passes.get(point, 0) + 1
        for each in self._faults:
            if each.point == point and (count == each.first or (each.lasting and count > each.first)):
                if each.error:
                    raise OSError(each.error, f"{os.strerror(each.error)} (asked for by {VARIABLE})")
                self._kill()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

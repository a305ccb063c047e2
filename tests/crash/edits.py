"""`mta user` and `mta init`'s kind of edits, cut off at every step: the old file or the new one is there, never a half."""

from __future__ import annotations

import signal

from tests.crash.mail import Lost
from tests.crash.nursery import Nursery
from twisted_mta.store.faults import VARIABLE
from twisted_mta.testing.site import Site


class EditTrial:
    """One accounts file that `mta user` changes without a server."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self.site = Site(accounts=("alice", "postmaster"))
        self._users = self.site.directory / "users"
        self._number = 0
        self.kills = 0

    def close(self) -> None:
        """Take everything away."""
        self.site.__exit__(None, None, None)

    def kill_at(self, fault: str) -> bool:
        """Add a user; whether that died of the fault."""
        self._number += 1
        self.kills += 1
        before = self._users.read_text().splitlines()
        died = self._add(f"user{self._number}", fault) == -signal.SIGKILL
        after = self._users.read_text().splitlines()
        added = after[len(before) :]
        whole = after[: len(before)] == before and len(added) <= 1
        if not whole or (added and not added[0].startswith(f"user{self._number}@example.test:{{")):
            raise Lost(f"the accounts are {after} after {before}")
        if not died and not added:
            raise Lost(f"there is no user{self._number}:\n{self.site.log()}")
        return died

    def settle(self) -> None:
        """What the killed ones left is gone after the next edit."""
        self._number += 1
        if self._add(f"user{self._number}", ""):
            raise Lost(self.site.log())
        left = [path.name for path in self.site.directory.iterdir() if path.name.startswith(".")]
        if left:
            raise Lost(f"left: {left}")

    def _add(self, name: str, fault: str) -> int:
        with (self.site.directory / "log").open("ab") as log:
            command = ["mta", "--config", str(self.site.config_file), "user", "add", name, "--random"]
            return self._nursery.spawn(command, log, {VARIABLE: fault}).wait(300)

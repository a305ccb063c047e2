"""A server whose power fails. kill -9 leaves all that was written, since the kernel has it; a power failure what was synced.

strace(1) writes down what a server does under load. What a disk would have kept at some moment of that is put back, a server
starts on it, and what it delivers must be what was acknowledged until that moment.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import STDOUT
from typing import IO

from tests.crash import strace
from tests.crash.disk import Disk, write_tree
from tests.crash.mail import WAYS, Lost, MailTrial
from tests.crash.nursery import Nursery
from twisted_mta.testing.site import Process

#: Not into mbox files: what stands in their locks is not synced, and so a beginning may stay (`twisted_mta.store.mbox`).
_WAYS = tuple(way for way in WAYS if "log" not in way[1])


class PowerTrial:
    """A life of a server, by a seed, and failures of its power at any moment of it."""

    def __init__(self, nursery: Nursery, seed: int) -> None:
        self._chance = random.Random(seed)
        self._nursery = nursery
        #: Outside of what the server can see.
        self._place = Path(tempfile.mkdtemp(prefix="mta-power-"))
        self._traces = True
        self._mail = MailTrial(nursery, seed, ways=_WAYS, spawn=self._spawn)
        self.site = self._mail.site

    def close(self) -> None:
        """Take everything away."""
        self._mail.close()
        shutil.rmtree(self._place)

    def _spawn(self, command: list[str], output: IO[bytes], environment: Mapping[str, str]) -> Process:
        if not self._traces:
            return self._nursery.spawn(command, output, environment)
        return strace.Traced(
            strace.command(self._place / "trace", command),
            stdout=output,
            stderr=STDOUT,
            env=environment,
        )

    def live(self) -> None:
        """The life, until all mail is delivered."""
        shutil.copytree(self.site.directory, self._place / "before")
        self._mail.live_through("")
        self._traces = False
        self._mail.end_of_history()

    def fail(self, failures: int) -> None:
        """Let the power fail so often, half of the times on the worst disk, and see each time what is left. Raises Lost."""
        moments = list(self._replay(self._disk()))
        told = self._acknowledged(moments)
        # The first promises stand on what the start has made, and little else was synced by then.
        chosen = set(sorted(told.values())[:3])
        chosen.update(self._chance.sample(range(len(moments)), min(failures, len(moments)) - len(chosen)))
        disk = self._disk()
        for number, moment in enumerate(self._replay(disk)):
            if number not in chosen:
                continue
            print(number, time.time(), flush=True)
            chance = random.Random(number) if self._chance.random() < 0.5 else None
            for path in self.site.directory.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_tree(disk.left(chance), self.site.directory)
            self._mail.back_to(moment.when, {name for name, when in told.items() if when <= number})
            try:
                self._mail.settle()
            except Exception as error:
                kind = "by chance" if chance else "the least"
                raise Lost(f"at moment {number} of {len(moments)}, {moment}, {kind}: {error}") from error

    def _disk(self) -> Disk:
        return Disk(self._place / "before")

    def _replay(self, disk: Disk) -> Iterator[strace.Moment]:
        with (self._place / "trace").open() as lines:
            yield from strace.replay(lines, disk, self.site.directory)

    def _acknowledged(self, moments: list[strace.Moment]) -> Mapping[str, int]:
        """Name -> the moment when it was told: what was sent last before the client knew."""
        return {
            name: max(n for n, one in enumerate(moments) if one.port == port and one.when <= knew)
            for name, (port, knew) in self._mail.answers().items()
        }

"""Commands that are not run: a test says how they end."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import attrs
from twisted.internet.defer import Deferred

from twisted_mta.core.commands import Exit


@attrs.frozen
class Run:
    """One command that was to be run."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    timeout: float
    #: What it would have read.
    message: bytes


class ScriptedCommands:
    """A CommandRunner. `script` decides; None lets the command go on until `end`, or until it is cancelled."""

    def __init__(self, script: Callable[[Run], Exit | None] = lambda run: Exit()) -> None:
        self.script = script
        self.runs: list[Run] = []
        self.cancelled = 0
        self._going: list[Deferred[Exit]] = []

    @property
    def going(self) -> int:
        """How many go on."""
        return len(self._going)

    def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        directory: str,
        timeout: float,
        message: int,
    ) -> Deferred[Exit]:
        """See twisted_mta.net.commands.CommandRunner."""
        data = os.pread(message, os.fstat(message).st_size, 0)
        run = Run(tuple(argv), dict(environment), directory, timeout, data)
        self.runs.append(run)
        done: Deferred[Exit] = Deferred(self._cancel)
        end = self.script(run)
        if end is None:
            self._going.append(done)
        else:
            done.callback(end)
        return done

    def end(self, how: Exit) -> None:
        """The oldest command that goes on ends."""
        self._going.pop(0).callback(how)

    def _cancel(self, done: Deferred[Exit]) -> None:
        self.cancelled += 1
        self._going.remove(done)

    def close(self) -> None:
        """See CommandRunner."""

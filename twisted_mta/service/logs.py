"""The log: where its lines go. One line an event (`log_lines`), without the debug events."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from typing import Any, TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel
from twisted.python import threadable
from zope.interface import implementer

from twisted_mta.service.log_lines import FORMATS

#: Seconds between looks whether the file was moved away (by logrotate, say).
_LOOK_EVERY = 1.0


class LogFile:
    """A file that is opened anew when it was moved away; what can't be written is lost, never the server."""

    def __init__(self, path: Path, seconds: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._seconds = seconds
        self._file = self._open()
        self._looked = seconds()

    def _open(self) -> TextIO:
        return self._path.open("a", encoding="utf-8", errors="backslashreplace")

    def write(self, text: str) -> None:
        """Append, and flush."""
        now = self._seconds()
        try:
            if now - self._looked >= _LOOK_EVERY:
                self._looked = now
                self._reopen_if_moved()
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            print(f"mta: can't write the log {self._path}: {error}", file=sys.__stderr__)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _reopen_if_moved(self) -> None:
        opened = self._file.fileno()
        try:
            moved = not self._path.samefile(f"/proc/self/fd/{opened}")
        except OSError:
            moved = True
        if moved:
            opened_anew = self._open()  # where that fails, the old file still takes the lines
            self._file.close()
            self._file = opened_anew


class Stream:
    """The terminal, or what the service manager reads."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        """Write, and flush."""
        self._file.write(text)
        self._file.flush()


#: Seconds that a line may wait for more.
_DELAY = 0.01


class Batches:
    """Lines of a short while leave in one write: a system call a line is much of what a message costs, and each may hand
    the interpreter to another thread."""

    def __init__(self, write: Callable[[str], None], reactor: Any) -> None:
        """`reactor` provides IReactorCore and IReactorTime."""
        self._write = write
        self._reactor = reactor
        self._lines: deque[str] = deque()
        self._due = False
        reactor.addSystemEventTrigger("after", "shutdown", self._flush)

    def write(self, text: str) -> None:
        """Write soon; at once where no time passes (before the start, after the stop, in a thread)."""
        self._lines.append(text)
        if not self._reactor.running or not _in_reactor():
            self._flush()
        elif not self._due:
            self._due = True
            self._reactor.callLater(_DELAY, self._flush)

    def _flush(self) -> None:
        self._due = False
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        if lines:
            self._write("".join(lines))


def _in_reactor() -> bool:
    """What threadable.isInIOThread asks, in a fifth of its time."""
    return get_ident() == threadable.ioThread


@implementer(ILogObserver)
class Writer:
    """Writes events in one of the FORMATS."""

    def __init__(self, write: Callable[[str], None], log_format: str, worker: int | None = None) -> None:
        """`worker` is the number of this process, if it is one of several."""
        self._write = write
        self._format = FORMATS[log_format]
        self._worker = worker

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level")
        if level is LogLevel.debug or level is None:
            return
        # Twisted's notes on ports opened and closed say what ours say better.
        if event.get("log_namespace") == "log_legacy" and not event.get("isError"):
            return
        if self._worker is not None:
            event = {**event, "log_worker": self._worker}
        text = self._format(event)
        if text:
            self._write(text)


def observer(
    log_format: str, logfile: str | None, stdout: TextIO, reactor: Any, worker: int | None = None
) -> ILogObserver:
    """What twistd is to log with. `logfile` is twistd's option: None or "-" is `stdout`. `worker` as in Writer.

    Raises OSError.
    """
    target = Stream(stdout) if not logfile or logfile == "-" else LogFile(Path(logfile))
    return Writer(Batches(target.write, reactor).write, log_format, worker)

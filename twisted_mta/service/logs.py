"""The log: one line an event, for people ("plain") or for programs ("json"), without the debug events."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from twisted.logger import (
    FilteringLogObserver,
    ILogFilterPredicate,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    PredicateResult,
    eventAsText,
    formatTime,
)
from zope.interface import implementer, provider

#: Seconds between looks whether the file was moved away (by logrotate, say).
_LOOK_EVERY = 1.0


def _text(event: LogEvent) -> str:
    """What happened, with a traceback where there is one; a line of a peer's never begins a line of ours."""
    text = eventAsText(event, includeTimestamp=False, includeSystem=False)
    return (
        "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text).strip().replace("\n", "\n\t")
    )


def plain(event: LogEvent) -> str:
    """``2026-11-21T23:16:57+0000 incoming: 08Dn...: received from ...``; a traceback goes on in further lines."""
    text = _text(event)
    level = event.get("log_level", LogLevel.info)
    shown = "" if level is LogLevel.info else f"{level.name}: "
    source = str(event.get("log_namespace", "-")).rpartition("twisted_mta.")[2].split(".")
    place = next((part for part in reversed(source) if part.islower()), source[-1])
    return f"{formatTime(event.get('log_time'))} {place}: {shown}{text}\n" if text else ""


#: What Twisted adds to each event for itself.
_INTERNAL = (
    "log_",
    "isError",
    "message",
    "time",
    "format",
    "logLevel",
    "printed",
    "system",
    "failure",
    "why",
)


def as_json(event: LogEvent) -> str:
    """One JSON object a line: time, level, source, text, and the event's own fields."""
    text = _text(event)
    if not text:
        return ""
    fields: dict[str, Any] = {
        "time": event.get("log_time"),
        "level": event.get("log_level", LogLevel.info).name,
        "source": str(event.get("log_namespace", "-")),
        "text": text,
    }
    for key, value in event.items():
        if key not in _INTERNAL and not key.startswith("log_"):
            fields[key] = value if isinstance(value, int | float | str | bool | None) else str(value)
    return json.dumps(fields) + "\n"


FORMATS: Mapping[str, Callable[[LogEvent], str]] = {"plain": plain, "json": as_json}


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


@implementer(ILogObserver)
class Writer:
    """Writes events in one of the FORMATS."""

    def __init__(self, write: Callable[[str], None], log_format: str) -> None:
        self._write = write
        self._format = FORMATS[log_format]

    def __call__(self, event: LogEvent) -> None:
        text = self._format(event)
        if text:
            self._write(text)


@provider(ILogFilterPredicate)
def worth_a_line(event: LogEvent) -> Any:
    """Twisted's notes on ports opened and closed say what ours say better."""
    chatter = event.get("log_namespace") == "log_legacy" and not event.get("isError")
    return PredicateResult.no if chatter else PredicateResult.maybe


def observer(log_format: str, logfile: str | None, stdout: TextIO) -> ILogObserver:
    """What twistd is to log with. `logfile` is twistd's option: None or "-" is `stdout`. Raises OSError."""
    write = Stream(stdout).write if not logfile or logfile == "-" else LogFile(Path(logfile)).write
    from_info = LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)
    filtered: ILogObserver = FilteringLogObserver(Writer(write, log_format), [worth_a_line, from_info])
    return filtered

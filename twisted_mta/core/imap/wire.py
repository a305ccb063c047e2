"""Cuts what a client sends into commands: lines, literals, and what has to be passed over. RFC 3501 §2.2, RFC 7888.

`Wire.next` gives one event at a time and goes no further, so that the server decides about a literal before its
octets are looked at. Memory is bounded by `Limits` and the size of one read.
"""

from __future__ import annotations

import enum
import re

from twisted_mta.core.values import value

_ANNOUNCED = re.compile(rb"\{([0-9]{1,20})(\+?)\}\Z")
#: A line that is passed over still has to be looked at for a literal at its end: this many octets of it.
_TAIL = 32


@value
class Limits:
    """Octets that one command may have."""

    #: One line.
    line: int = 65536
    #: The whole command with its literals (but for the message of APPEND).
    command: int = 131072
    #: What is read only to be thrown away, until the connection is cut instead.
    waste: int = 67108864


@value
class Command:
    """A whole command, its literals in place, without the final CRLF."""

    data: bytes


@value
class LiteralAhead:
    """The line ended in a literal's size. Answer with `accept`, `stream` or `refuse` before anything else."""

    #: The command so far, without the size.
    so_far: bytes
    size: int
    #: Whether the client waits for our word before it sends the octets.
    synchronising: bool


@value
class Chunk:
    """Octets of a streamed literal; `last` with its end."""

    data: bytes
    last: bool


@value
class Overlong:
    """A line or command was too long and is passed over; `start` is how it began."""

    start: bytes


@value
class Wasted:
    """Too much was passed over: give up on this client."""


Event = Command | LiteralAhead | Chunk | Overlong | Wasted


class _Mode(enum.Enum):
    LINE = enum.auto()
    #: A line that is one event whatever it ends in: IDLE's DONE, a SASL response.
    RAW = enum.auto()
    DECIDE = enum.auto()
    LITERAL = enum.auto()
    STREAM = enum.auto()
    SKIP_LITERAL = enum.auto()
    SKIP_LINE = enum.auto()


class Wire:
    """The input of one connection."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._buffer = bytearray()
        #: How much of the buffer has been searched for the end of its line.
        self._searched = 0
        self._command = bytearray()
        self._mode = _Mode.LINE
        self._left = 0
        self._size = 0
        self._line = b""
        self._wasted = 0
        #: Lines and literals that were begun so far.
        self.begun = 0

    @property
    def streaming(self) -> bool:
        """Whether the octets of a streamed literal are coming in."""
        return self._mode is _Mode.STREAM

    def feed(self, data: bytes) -> None:
        """Octets from the client."""
        self._buffer += data

    def reset(self) -> None:
        """Forget everything received."""
        self._buffer.clear()
        self._command.clear()
        self._searched = 0
        self._mode = _Mode.LINE

    def expect_line(self) -> None:
        """The next line is no command: it comes as it is, as a Command."""
        self._mode = _Mode.RAW

    # --- answers to LiteralAhead ---------------------------------------------------------------

    def accept(self) -> None:
        """The literal becomes part of the command."""
        self._command += self._line + b"\r\n"
        self._mode, self._left = _Mode.LITERAL, self._size

    def stream(self) -> None:
        """The literal comes as Chunks, and what follows it as a Command of its own."""
        self._command.clear()
        self._mode, self._left = _Mode.STREAM, self._size

    def refuse(self, synchronising: bool) -> None:
        """The command is over. Octets that the client sends nevertheless are passed over with the rest of it."""
        self._command.clear()
        self._mode, self._left = (_Mode.LINE, 0) if synchronising else (_Mode.SKIP_LITERAL, self._size)

    # --- events --------------------------------------------------------------------------------

    def next(self) -> Event | None:
        """The next event; None if more octets are needed."""
        while True:
            match self._mode:
                case _Mode.LINE | _Mode.RAW:
                    return self._next_line()
                case _Mode.LITERAL:
                    if len(self._buffer) < self._left:
                        return None
                    self._command += self._take(self._left)
                    self._mode = _Mode.LINE
                case _Mode.STREAM:
                    return self._next_chunk()
                case _Mode.DECIDE:
                    raise RuntimeError("a literal was announced and nothing decided")
                case _:
                    if not self._skip():
                        return Wasted() if self._wasted > self.limits.waste else None

    def _take(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._searched = 0
        return data

    def _next_line(self) -> Event | None:
        end = self._buffer.find(b"\r\n", self._searched)
        # A CR at the end may be half of the line end and doesn't count yet.
        length = len(self._buffer) - self._buffer.endswith(b"\r") if end < 0 else end
        if length > self.limits.line or length + len(self._command) > self.limits.command:
            start = bytes((self._command or self._buffer)[:_TAIL])
            self._command.clear()
            self._mode = _Mode.SKIP_LINE
            return Overlong(start)
        if end < 0:
            self._searched = max(0, length - 1)
            return None
        self.begun += 1
        line = self._take(end + 2)[:-2]
        if self._mode is _Mode.RAW:
            self._mode = _Mode.LINE
            return Command(line)
        announced = _ANNOUNCED.search(line, max(0, len(line) - _TAIL))
        if announced is None:
            data = bytes(self._command) + line
            self._command.clear()
            return Command(data)
        self._mode, self._line, self._size = _Mode.DECIDE, line, int(announced[1])
        return LiteralAhead(bytes(self._command) + line[: announced.start()], self._size, not announced[2])

    def _next_chunk(self) -> Event | None:
        if not self._buffer and self._left:
            return None
        data = self._take(min(self._left, len(self._buffer)))
        self._left -= len(data)
        if not self._left:
            self._mode = _Mode.LINE
        return Chunk(data, last=not self._left)

    def _skip(self) -> bool:
        """Pass over octets; whether it came any further."""
        if self._mode is _Mode.SKIP_LITERAL:
            count = min(self._left, len(self._buffer))
            self._wasted += count
            self._take(count)
            self._left -= count
            if self._left:
                return False
            self._mode = _Mode.SKIP_LINE
            return self._wasted <= self.limits.waste
        end = self._buffer.find(b"\r\n")
        if end < 0:
            # The tail stays: it may be the size of a literal.
            count = max(0, len(self._buffer) - _TAIL)
            self._wasted += count
            self._take(count)
            return False
        line = self._take(end + 2)[:-2]
        self._wasted += len(line)
        announced = _ANNOUNCED.search(line, max(0, len(line) - _TAIL))
        if announced is not None and announced[2]:
            # RFC 7888 §3: its octets come whatever we said, and must not be taken for commands.
            self._mode, self._left = _Mode.SKIP_LITERAL, int(announced[1])
        else:
            self._mode = _Mode.LINE
            if self._wasted <= self.limits.waste:
                self._wasted = 0
        return self._wasted <= self.limits.waste

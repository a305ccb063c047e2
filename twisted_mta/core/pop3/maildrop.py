"""The messages of a POP3 session, and how they go out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from twisted_mta.core.message import header_length
from twisted_mta.core.pop3.questions import Drop
from twisted_mta.core.pop3.replies import Wrong

_NUMBER = re.compile(rb"[0-9]{1,10}")


def top(message: bytes, lines: int) -> bytes:
    """The header section with its empty line, and the first lines of the body: RFC 1939 §7 TOP."""
    end = header_length(message)
    if lines > message.count(b"\r\n", end):  # fetchmail asks for 99999999
        return message
    for _ in range(lines):
        end = message.index(b"\r\n", end) + 2
    return message[:end]


def is_number(argument: bytes) -> bool:
    """Whether it is a number that a command may have."""
    return _NUMBER.fullmatch(argument) is not None


class Maildrop:
    """The messages as the login found them, and the marks of those that are to be deleted."""

    def __init__(self, drops: Sequence[Drop] = ()) -> None:
        self._drops = drops
        #: Indexes into `_drops`.
        self._deleted: set[int] = set()
        #: Of what is left: how many octets.
        self.octets = sum(drop.size for drop in drops)

    @property
    def count(self) -> int:
        """How many messages are left."""
        return len(self._drops) - len(self._deleted)

    @property
    def deleted(self) -> tuple[int, ...]:
        """The UIDs of the messages that are marked."""
        return tuple(self._drops[index].uid for index in sorted(self._deleted))

    def find(self, argument: bytes) -> tuple[int, Drop]:
        """The message of that number, with it. Raises Wrong."""
        argument = argument.strip()
        if not is_number(argument):
            raise Wrong("A message number is needed")
        found = int(argument)
        if not 1 <= found <= len(self._drops) or found - 1 in self._deleted:
            raise Wrong("There is no such message")
        return found, self._drops[found - 1]

    def rows(self, tell: Callable[[Drop], object]) -> list[str]:
        """A line for each message that is left."""
        return [
            f"{index + 1} {tell(drop)}"
            for index, drop in enumerate(self._drops)
            if index not in self._deleted
        ]

    def delete(self, argument: bytes) -> int:
        """Mark the message of that number, and give the number. Raises Wrong."""
        found, drop = self.find(argument)
        self._deleted.add(found - 1)
        self.octets -= drop.size
        return found

    def undelete(self) -> None:
        """Take all marks back."""
        self._deleted.clear()
        self.octets = sum(drop.size for drop in self._drops)

    def __str__(self) -> str:
        return f"{self.count} messages ({self.octets} octets)"


class Stuffer:
    """The text of one message with the dots at the start of lines doubled (RFC 1939 §3), wherever its parts were cut."""

    def __init__(self) -> None:
        #: The last octets so far, which decide about dots.
        self._tail = b"\r\n"

    def feed(self, part: bytes) -> bytes:
        """The next part as it goes out."""
        joined = self._tail + part
        stuffed = joined.replace(b"\r\n.", b"\r\n..")[len(self._tail) :]
        self._tail = joined[-2:]
        return stuffed

    def finish(self) -> bytes:
        """What ends the text."""
        return b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n"

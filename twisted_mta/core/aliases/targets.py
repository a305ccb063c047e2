"""What an alias says: its name, its targets, and what of its file could not be read."""

from __future__ import annotations

import enum
import re

from twisted_mta.core.address import Address
from twisted_mta.core.values import value

#: How much of a bad line a problem quotes.
_QUOTED = 120

#: Not valid UTF-8 (the reader decodes with surrogateescape), or characters that no name has and a terminal may obey.
UNREADABLE = re.compile(r"[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]")


@value
class Name:
    """A target that is an address. `address.domain` is "" where only a name was written; `source` is "aliases:12".

    `final`: written with a backslash. It means the mailbox of that name, whatever aliases it has.
    """

    address: Address
    source: str
    final: bool = False

    def __str__(self) -> str:
        return f"\\{self.address}" if self.final else str(self.address)


@value
class Include:
    """A target that stands for the targets in a file, by its path as written."""

    path: str
    source: str

    def __str__(self) -> str:
        return f":include:{self.path}"


@value
class File:
    """A target that is a file: an mbox, or a Maildir where the path was written with a slash at its end.

    `path` is absolute and has no slash at its end.
    """

    path: str
    maildir: bool
    source: str

    def __str__(self) -> str:
        return self.path + "/" * self.maildir


@value
class Command:
    """A target that is a program: the command line after the bar, its outer quotes gone."""

    text: str
    source: str

    def __str__(self) -> str:
        return f"|{self.text}"


class Action(enum.StrEnum):
    """What a `Special` target does with the mail."""

    BLACKHOLE = "blackhole"
    FAIL = "fail"
    DEFER = "defer"


@value
class Special:
    """A target that takes no mail: it vanishes, or is refused for good or for now. `text` is for the sender, may be "",
    and is printable ASCII."""

    action: Action
    text: str
    source: str

    def __str__(self) -> str:
        return f":{self.action}: {self.text}".rstrip()


Target = Name | Include | File | Command | Special


@value
class Alias:
    """One entry. `name.domain` is "" for a name that holds in all domains, `name.local` is "" for ``@domain``."""

    name: Address
    targets: tuple[Target, ...]
    file: str
    line: int

    @property
    def source(self) -> str:
        """Where it stands: "aliases:12"."""
        return f"{self.file}:{self.line}"


@value
class AliasProblem:
    """Something in a file that was passed over. `line` counts from 1; 0 is for the file as a whole."""

    file: str
    line: int
    #: The part that is wrong, shortened, without control characters; may be "".
    text: str
    why: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.why}" + (f": {self.text}" if self.text else "")


@value
class AliasFile:
    """What a file says: entries in its order, and what could not be read."""

    entries: tuple[Alias, ...]
    problems: tuple[AliasProblem, ...]


@value
class IncludeFile:
    """What an include file says."""

    targets: tuple[Target, ...]
    problems: tuple[AliasProblem, ...]


def shorten(text: str) -> str:
    """Text from a file as a log or a terminal may show it."""
    text = UNREADABLE.sub("?", text.strip())
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "..."

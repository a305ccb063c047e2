"""Commands that get messages: how their text becomes arguments, what they find in their environment, and what the
codes mean with which they end (sysexits.h)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from twisted_mta.core.address import Address
from twisted_mta.core.queue import Delivered, Failed, TryLater
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value

#: Characters of a command's output that go into the queue, the log and the bounce.
MAX_OUTPUT = 700
#: Characters that tell of a shell, wherever they stand.
_EXPANDS = re.compile(r"[$`]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: RFC 3463, at the start of the output: the command says itself what is wrong.
_STATUS = re.compile(r"([45])\.[0-9]{1,3}\.[0-9]{1,3}(?= |$)")

SHELL = "/bin/sh"


class CommandError(ValueError):
    """A command that can't be run as it is written; the text says why."""


def split_command(text: str, *, shell: bool) -> tuple[str, ...]:
    """The arguments of a command, the program first. Raises CommandError.

    Without `shell` quotes and backslashes have their meaning and nothing else does: what would need a shell is refused,
    lest "> file" becomes an argument.
    """
    if not text.strip() or "\0" in text:
        raise CommandError("there is no command")
    if shell:
        return SHELL, "-c", text
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
        plain = tuple(shlex.split(text))
    except ValueError:
        raise CommandError("a quote is never closed") from None
    special = next((word for word in words if not word.strip("();<>|&") and word), None)
    special = special or next((found[0] for found in _EXPANDS.finditer(text)), None)
    if special is not None:
        raise CommandError(f'"{special}" means something to a shell only, and commands are run without one')
    return plain


@value(kw_only=True)
class Delivery:
    """What a command is told of its message."""

    queue_id: str
    sender: Address | None
    #: Where the message goes, and what the sender wrote.
    recipient: Address
    original: Address


def environment(delivery: Delivery, *, user: str, home: str, path: str) -> Mapping[str, str]:
    """All that a command finds in its environment."""
    recipient = delivery.recipient
    values = {
        "SENDER": str(delivery.sender or ""),
        "RECIPIENT": str(recipient),
        "ORIGINAL_RECIPIENT": str(delivery.original),
        "LOCAL": recipient.local,
        "DOMAIN": recipient.domain,
        "QUEUE_ID": delivery.queue_id,
        "USER": user,
        "LOGNAME": user,
        "HOME": home,
        "SHELL": SHELL,
        "PATH": path,
        "LANG": "C.UTF-8",
    }
    # Old shells took a value that begins with "() {" for the definition of a function.
    return {name: _CONTROL.sub("_", value).replace("() {", "()_{") for name, value in values.items()}


@value(kw_only=True)
class Exit:
    """How a command ended: `code` of its exit, else the number of the `signal`; `late`: because it took too long."""

    code: int = 0
    signal: int = 0
    late: bool = False
    #: The beginning of what it printed.
    output: str = ""
    #: Why it could not be run at all; "" if it could.
    error: str = ""


@value
class _Meaning:
    code: int
    status: str
    text: str


#: sysexits.h. All others are for good: "the program ended with 1" will be so the next time.
_MEANINGS: Mapping[int, _Meaning] = {
    64: _Meaning(550, "5.3.5", "the command was used wrongly"),  # EX_USAGE
    65: _Meaning(550, "5.6.0", "the message is not what the command expects"),  # EX_DATAERR
    66: _Meaning(550, "5.3.0", "the command has no input"),  # EX_NOINPUT
    67: _Meaning(550, "5.1.1", "there is no such user"),  # EX_NOUSER
    68: _Meaning(550, "5.1.2", "there is no such host"),  # EX_NOHOST
    69: _Meaning(550, "5.3.0", "the service is not available"),  # EX_UNAVAILABLE
    70: _Meaning(550, "5.3.0", "the command failed"),  # EX_SOFTWARE
    71: _Meaning(451, "4.3.0", "the system failed the command"),  # EX_OSERR
    72: _Meaning(451, "4.3.5", "a file of the system is missing"),  # EX_OSFILE
    73: _Meaning(550, "5.2.0", "the command can't make a file"),  # EX_CANTCREAT
    74: _Meaning(451, "4.3.0", "the command could not read or write"),  # EX_IOERR
    75: _Meaning(451, "4.3.0", "the command asks to be tried again later"),  # EX_TEMPFAIL
    76: _Meaning(550, "5.5.0", "the command met a wrong protocol"),  # EX_PROTOCOL
    77: _Meaning(550, "5.7.0", "the command may not do that"),  # EX_NOPERM
    78: _Meaning(451, "4.3.5", "the command is configured wrongly"),  # EX_CONFIG
}
_OTHER = _Meaning(550, "5.3.0", "the command failed")


def judge(end: Exit) -> Delivered | TryLater | Failed:
    """What the end of a command means for the message."""
    if end.error:
        return TryLater(Reply(451, "4.3.5", f"the command can't be run: {printable(end.error)}"))
    if end.late:
        return _failed(_Meaning(451, "4.3.0", "the command took too long and was ended"), end, "")
    if end.signal:
        return _failed(_Meaning(451, "4.3.0", "the command was killed"), end, f" by signal {end.signal}")
    if end.code == 0:
        return Delivered(Reply(250, "2.0.0", "delivered to the command"))
    return _failed(_MEANINGS.get(end.code, _OTHER), end, f" (it ended with {end.code})")


def _failed(meaning: _Meaning, end: Exit, how: str) -> TryLater | Failed:
    output = printable(end.output)
    code, status = meaning.code, meaning.status
    own = _STATUS.match(output)
    if own is not None and int(own[1]) == code // 100:
        status = own[0]
        output = output[own.end() :].lstrip()
    text = meaning.text + how + (f": {output}" if output else "")
    reply = Reply(code, status, text)
    return TryLater(reply) if reply.transient else Failed(reply)


def printable(text: str) -> str:
    """The beginning of a text in one line, without what a terminal may obey."""
    words = " / ".join(line.strip() for line in text.splitlines() if line.strip())
    words = "".join(char if char.isprintable() else "?" for char in words)
    return words if len(words) <= MAX_OUTPUT else words[:MAX_OUTPUT] + "..."

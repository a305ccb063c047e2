"""Readable transcripts of protocol sessions, played against a core.

A transcript is a text file::

    # A comment.
    set size_limit=1000 submission=true
    S: 220 mx.example.test ESMTP
    C: HELO client.example.org
    S: 250 mx.example.test greets client.example.org
    C| RSET\\r\\nNOOP\\r\\n
    S: 250 2.0.0 OK
    S: 250 2.0.0 OK
    event: timeout
    S: 421 4.4.2 mx.example.test Timeout, closing the connection
    closed

``C:`` sends a line with CRLF, ``C|`` sends exactly what it says after Python escapes; ``event:`` is "tls" (the
handshake is done), "tls+bindings" (with those of `testing.scram`), "timeout" or "shutdown"; ``body:`` is one line of
a message handed on, ``starttls`` and ``closed`` what the core asked of the transport. ``b64(text)`` at the end of a line
stands for base64. Playing gives the transcript as it really went.
"""

from __future__ import annotations

import base64
import codecs
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import attrs

from twisted_mta.core.effects import Ask, BodyChunk, Close, Core, Effect, Send, StartTLS
from twisted_mta.testing.scram import BINDINGS

S = TypeVar("S")

_BASE64 = re.compile(r"\bb64\((.*)\)$")


@attrs.frozen
class Transcript:
    """A parsed transcript: its settings and its lines, comments and blank lines left out."""

    settings: dict[str, Any]
    lines: list[str]

    @classmethod
    def parse(cls, text: str) -> Transcript:
        """Read a transcript file."""
        settings: dict[str, Any] = {}
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith("set "):
                for word in line[4:].split():
                    key, _, value = word.partition("=")
                    settings[key] = (
                        int(value)
                        if value.isdigit()
                        else value == "true"
                        if value in ("true", "false")
                        else value
                    )
            elif line.strip() and not line.startswith("#"):
                lines.append(_BASE64.sub(lambda match: base64.b64encode(match[1].encode()).decode(), line))
        return cls(settings, lines)

    def configure(self, settings: S) -> S:
        """The settings (an attrs object) with those that the transcript sets."""
        converted = {key: _like(getattr(settings, key), value) for key, value in self.settings.items()}
        changed: S = attrs.evolve(settings, **converted)  # type: ignore[misc]
        return changed


def _like(present: Any, value: Any) -> Any:
    """A set value in the type of the setting: words with commas become a set, names of an enum its members."""
    if isinstance(present, frozenset):
        return frozenset(word for word in str(value).split(",") if word)
    return type(present)(value)


def play(core: Core, lines: Iterable[str], answer: Callable[[Any], Any]) -> list[str]:
    """Feed the client's lines and events of a transcript to `core`; the transcript as it really went.

    `answer` answers the core's questions at once.
    """
    output: list[str] = []
    sent = bytearray()
    body = bytearray()

    def flush(prefix: str, octets: bytearray) -> None:
        text = octets.decode("utf-8", "backslashreplace")
        octets.clear()
        output.extend((prefix + line).rstrip() for line in text.removesuffix("\r\n").split("\r\n") if text)

    def perform(effects: Iterable[Effect]) -> None:
        pending = list(effects)
        while pending:
            match pending.pop(0):
                case Send(data):
                    sent.extend(data)
                case BodyChunk(data):
                    body.extend(data)
                case Ask(question):
                    if body:  # only now it is known to be complete
                        flush("S: ", sent)
                        flush("body: ", body)
                    pending[:0] = core.answer(answer(question))
                case StartTLS():
                    flush("S: ", sent)
                    output.append("starttls")
                case Close():
                    flush("S: ", sent)
                    output.append("closed")

    events = {
        "tls": core.secured,
        "tls+bindings": lambda: core.secured(BINDINGS),
        "timeout": core.timed_out,
        "shutdown": core.shut_down,
    }
    perform(core.greet())
    for line in lines:
        kind, text = line[:3].ljust(3), line[3:]
        if kind == "C: ":
            given = text.encode() + b"\r\n"
        elif kind == "C| ":
            given = codecs.escape_decode(text.encode())[0]
        elif line.startswith("event: "):
            flush("S: ", sent)
            output.append(line)
            perform(events[line.removeprefix("event: ")]())
            continue
        else:
            continue
        flush("S: ", sent)
        output.append(line)
        perform(core.receive(given))
    flush("S: ", sent)
    return output

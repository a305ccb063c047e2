"""Replies of POP3, and why a command is not done."""

from __future__ import annotations

from collections.abc import Sequence

from twisted_mta.core.effects import Send
from twisted_mta.core.pop3.questions import Refusal


class Wrong(Exception):
    """The command can't be done as it stands: -ERR, and it counts as an error."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.refusal = Refusal(code, text)


def ok(text: str) -> Send:
    """A positive reply of one line."""
    return Send(f"+OK {text}\r\n".encode())


def err(refusal: Refusal) -> Send:
    """A negative reply."""
    code = f"[{refusal.code}] " if refusal.code else ""
    return Send(f"-ERR {code}{refusal.text}\r\n".encode())


def lines(title: str, rows: Sequence[str]) -> Send:
    """A multi-line response, RFC 1939 §3. None of our lines begins with a dot."""
    return Send("".join(f"{row}\r\n" for row in (f"+OK {title}", *rows, ".")).encode())

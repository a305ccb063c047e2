"""What all commands of an SMTP session share: where it stands, how it answers, what it asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted_mta.core.effects import Ask, Close, Effect, Send
from twisted_mta.core.envelope import Envelope
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp import questions as q
from twisted_mta.core.smtp.lines import LineBuffer
from twisted_mta.core.smtp.settings import ServerSettings
from twisted_mta.core.smtp.states import State

_NO_ENVELOPE = Envelope(None)


class Talk:
    """One session. The methods add the effects of what they do to `effects`."""

    __slots__ = ("_errors", "asked", "effects", "envelope", "idle", "input", "settings", "state")

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.state = State.CONNECTED
        #: What was received and not yet used.
        self.input = LineBuffer()
        #: The transaction under way.
        self.envelope = _NO_ENVELOPE
        #: Takes the answer to the open Ask; None when none is open.
        self.asked: Callable[[Any], None] | None = None
        #: What has to happen, in order, and was not yet taken.
        self.effects: list[Effect] = []
        self._errors = 0
        #: Commands since the last message that brought none forward.
        self.idle = 0

    def take_effects(self) -> list[Effect]:
        """What came of all that was done since the last time."""
        effects, self.effects = self.effects, []
        return effects

    def reply(self, reply: Reply, *, utf8: bool = False) -> None:
        """Answer a command; `utf8`: one whose answer may be more than ASCII."""
        if not utf8 and not reply.text.isascii():
            # RFC 6531 §3.7.4.2: no reply is, but to VRFY and EXPN that ask for it.
            reply = _in_ascii(reply)
        self.effects.append(Send(reply.encode()))
        if reply.code == 421:
            # RFC 5321 §4.2.3: 421 tells that the channel closes, whoever decided it.
            self._end()

    def error(self, reply: Reply) -> None:
        """Answer a wrong command: it is counted, and only too many of them end the session."""
        self._errors += 1
        if self._errors > self.settings.error_limit:
            reply = self.last_words("4.7.0", "Too many errors, closing the connection")
        self.reply(reply)

    def count_idle(self) -> bool:
        """Count a command that brings no message forward; False if it was one too many, which has ended the session."""
        self.idle += 1
        if self.idle <= self.settings.idle_limit:
            return True
        # RFC 5321 §7.8: a server may defend itself. §4.1.1.9 has NOOP at any time, but says nothing of its number.
        self.reply(self.last_words("4.7.0", "Too many commands without a message, closing the connection"))
        return False

    def last_words(self, status: str, text: str) -> Reply:
        """A reply that ends the session."""
        return Reply(421, status, f"{self.settings.hostname} {text}")

    def close(self, reply: Reply) -> None:
        """Say this, and end the session."""
        self.effects.append(Send(_in_ascii(reply).encode()))
        self._end()

    def _end(self) -> None:
        self.state = State.CLOSED
        self.input.clear()
        self.effects.append(Close())

    def ask(self, question: q.Question, then: Callable[[Any], None]) -> None:
        """Ask the world; `then` takes its answer."""
        self.asked = then
        self.effects.append(Ask(question))

    def over(self) -> None:
        """The transaction is over."""
        self.envelope = _NO_ENVELOPE
        if self.state is not State.CLOSED:
            self.state = State.READY


def _in_ascii(reply: Reply) -> Reply:
    return Reply(reply.code, reply.enhanced, reply.text.encode("ascii", "backslashreplace").decode())

"""What all commands of an SMTP session share: where it stands, how it answers, what it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from twisted_mta.core.effects import Ask, Close, Effect, Send
from twisted_mta.core.envelope import Envelope
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp import questions as q
from twisted_mta.core.smtp.lines import LineBuffer
from twisted_mta.core.smtp.settings import ServerSettings
from twisted_mta.core.smtp.states import State


class Talk:
    """One session. The methods give the effects of what they do, to be yielded on."""

    __slots__ = ("_errors", "asked", "envelope", "input", "settings", "state")

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.state = State.CONNECTED
        #: What was received and not yet used.
        self.input = LineBuffer()
        #: The transaction under way.
        self.envelope = Envelope(None)
        #: Takes the answer to the open Ask; None when none is open.
        self.asked: Callable[[Any], Iterator[Effect]] | None = None
        self._errors = 0

    def reply(self, reply: Reply) -> Iterator[Effect]:
        """Answer a command."""
        yield Send(reply.encode())
        if reply.code == 421:
            # RFC 5321 §4.2.3: 421 tells that the channel closes, whoever decided it.
            yield from self._end()

    def error(self, reply: Reply) -> Iterator[Effect]:
        """Answer a wrong command: it is counted, and only too many of them end the session."""
        self._errors += 1
        if self._errors > self.settings.error_limit:
            reply = self.last_words("4.7.0", "Too many errors, closing the connection")
        yield from self.reply(reply)

    def last_words(self, status: str, text: str) -> Reply:
        """A reply that ends the session."""
        return Reply(421, status, f"{self.settings.hostname} {text}")

    def close(self, reply: Reply) -> Iterator[Effect]:
        """Say this, and end the session."""
        yield Send(reply.encode())
        yield from self._end()

    def _end(self) -> Iterator[Effect]:
        self.state = State.CLOSED
        self.input.clear()
        yield Close()

    def ask(self, question: q.Question, then: Callable[[Any], Iterator[Effect]]) -> Iterator[Effect]:
        """Ask the world; `then` takes its answer."""
        self.asked = then
        yield Ask(question)

    def over(self) -> None:
        """The transaction is over."""
        self.envelope = Envelope(None)
        if self.state is not State.CLOSED:
            self.state = State.READY

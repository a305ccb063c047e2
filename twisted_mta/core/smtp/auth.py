"""The dialogue of AUTH, RFC 4954: what a SASL exchange asks of the client and of the world, as moves of the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted_mta.core import sasl
from twisted_mta.core.effects import NO_BINDINGS
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp import questions as q
from twisted_mta.core.smtp.commands import CommandError, syntax_error
from twisted_mta.core.values import value

_LOGGED_IN = Reply(235, "2.7.0", "You are logged in")
_FAILED = Reply(535, "5.7.8", "Authentication failed: login or password is wrong")


@value
class Prompt:
    """Send this line, and wait for the client's answer."""

    line: bytes


@value
class Question:
    """Ask the world; its answer goes to `Login.answer`."""

    question: sasl.Lookup | q.Authenticate


@value
class Over:
    """The exchange has ended. `wrong`: by an error of the client, which counts as one."""

    reply: Reply
    wrong: bool = False


Move = Prompt | Question | Over


class Login:
    """Whether a session is logged in, and the exchange by which it comes to be. One object a connection, and another once
    it has TLS."""

    __slots__ = ("_exchange", "_mechanism", "_offer", "done")

    def __init__(self, scram: bool, bindings: Mapping[str, bytes] = NO_BINDINGS) -> None:
        """`scram`: whether it is among the mechanisms; `bindings`: what it can be bound to, once there is TLS."""
        self._offer = sasl.Offer(scram, bindings)
        self._mechanism = ""
        self._exchange: sasl.Exchange
        self.done = False

    @property
    def mechanisms(self) -> list[str]:
        """What the client is told, the preferred first."""
        return self._offer.names

    def begin(self, argument: str) -> Move:
        """The argument of AUTH: a mechanism, and maybe its initial response. Raises CommandError."""
        if self.done:
            raise CommandError(Reply(503, "5.5.1", "You are logged in already"))
        name, _, initial = argument.partition(" ")
        if not name:
            raise syntax_error("Syntax: AUTH mechanism [initial-response]")
        exchange = self._offer.begin(name)
        if exchange is None:
            raise CommandError(Reply(504, "5.5.4", "Mechanisms offered: " + " ".join(self.mechanisms)))
        self._mechanism, self._exchange = name.upper(), exchange
        return self._move(lambda: exchange.start(initial.encode() or None))

    def respond(self, line: bytes) -> Move:
        """A line that answers a Prompt."""
        return self._move(lambda: self._exchange.respond(line))

    def answer(self, answer: sasl.Secret | bool | Reply) -> Move:
        """What the world says to a Question."""
        if isinstance(answer, Reply):
            return Over(answer)
        if answer is False:
            return Over(_FAILED, wrong=True)  # RFC 4954 §6
        return self._move(lambda: self._exchange.answer(answer))

    def _move(self, step: Callable[[], Any]) -> Move:
        try:
            outcome: sasl.Step | sasl.Done = step()
        except sasl.Cancelled:  # RFC 4954 §4
            return Over(Reply(501, "5.7.0", "Authentication cancelled"), wrong=True)
        except sasl.SaslError as error:
            return Over(Reply(501, "5.5.2", f"Authentication failed: {error}"), wrong=True)
        match outcome:
            case sasl.Done():
                self.done = True
                return Over(_LOGGED_IN)
            case sasl.Challenge(data):
                return Prompt(b"334 " + sasl.encode_base64(data) + b"\r\n")
            case sasl.Lookup():
                return Question(outcome)
            case _:
                return Question(q.Authenticate(self._mechanism, outcome))

"""An IMAP core with its handler and mailboxes in memory, as one: for transcripts and properties."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from twisted_mta.core.effects import Ask, BodyChunk, Effect, Send
from twisted_mta.core.imap.server import ImapServer
from twisted_mta.core.imap.session import ImapSettings
from twisted_mta.core.sasl import Claim, Credentials, Proof, Secret
from twisted_mta.interfaces import Account, AuthenticationUnavailable, Client
from twisted_mta.net.imap import ImapHandler
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.testing.mailboxes import MemoryMailboxes
from twisted_mta.testing.scram import known_secret

ALICE = Account("alice", "/nowhere")


class Authenticator:
    """Knows alice."""

    async def authenticate(self, claim: Claim, client: Client) -> Account | None:
        if isinstance(claim, Proof):
            return ALICE if claim.right and claim.login == "alice" else None
        return ALICE if claim == Credentials("alice", b"secret") else None

    async def secret(self, login: str, client: Client) -> Secret:
        if login == "busy":
            raise AuthenticationUnavailable("too many logins")
        return known_secret(login)


class Whole:
    """A core and its handler as one core that is asked nothing: its own world."""

    def __init__(self, settings: ImapSettings, messages: Iterable[bytes]) -> None:
        self.core = ImapServer(settings)
        mailboxes = MemoryMailboxes()
        for message in messages:
            mailboxes.of(ALICE).deliver(message)
        run = InlineWorkers().run
        self.handler = ImapHandler(self.core, mailboxes, Authenticator(), Clock(), run, "192.0.2.1")
        self.secured, self.timed_out, self.shut_down = (
            self.core.secured,
            self.core.timed_out,
            self.core.shut_down,
        )

    def greet(self) -> Sequence[Effect]:
        return self.core.greet()

    def receive(self, data: bytes) -> Sequence[Effect]:
        return self._noting(self.core.receive(data))

    def answer(self, parts: list[Any], *, more: bool = False) -> Sequence[Effect]:
        effects: list[Effect] = []
        for position, part in enumerate(parts, 1):
            effects += self._noting(self.core.answer(part, more=position < len(parts)))
        return effects

    def _noting(self, effects: Sequence[Effect]) -> Sequence[Effect]:
        for effect in effects:
            if isinstance(effect, BodyChunk):
                self.handler.body(effect.data)
        return effects

    def ask(self, question: Any) -> list[Any]:
        """The parts of the answer."""

        async def collect() -> list[Any]:
            answer = self.handler.ask(question)
            if isinstance(answer, AsyncIterator):
                return [part async for part in answer]
            return [await answer]

        found: list[list[Any]] = []
        Deferred.fromCoroutine(collect()).addCallback(found.append).addErrback(
            lambda failure: failure.raiseException()
        )
        return found[0]

    def converse(self, chunks: Iterable[bytes]) -> bytes:
        """Feed octets, answer what is asked; all that was sent, with message octets and other effects named in it."""
        out = bytearray()
        for chunk in chunks:
            pending = list(self.receive(chunk))
            while pending:
                effect = pending.pop(0)
                match effect:
                    case Send(data):
                        out += data
                    case BodyChunk(data):
                        out += b"<%s>\r\n" % data.hex().encode()
                    case Ask(question):
                        pending[:0] = self.answer(self.ask(question))
                    case _:
                        out += repr(effect).encode()
        # How a message was cut into chunks is no difference.
        return bytes(out).replace(b">\r\n<", b"")

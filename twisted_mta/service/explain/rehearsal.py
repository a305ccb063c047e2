"""A session with this server that nobody has: the commands that would bring a message, played against the real core, the real
reception and the real checks, over a queue that keeps nothing."""

from __future__ import annotations

import base64
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence

import attrs
from zope.interface import implementer

from twisted_mta.core.effects import Ask, BodyChunk, Close, Effect, Send, StartTLS
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.explanation import Finding, Note
from twisted_mta.core.queue import NewMessage
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp.reply_parser import ReplyParser
from twisted_mta.core.smtp.server import SmtpServer
from twisted_mta.core.smtp.settings import Role, ServerSettings
from twisted_mta.core.values import value
from twisted_mta.interfaces import IBodyWriter, IPolicyCheck, IQueue, IReception, Peer
from twisted_mta.net.smtp import SmtpHandler
from twisted_mta.policy.base import Accepting
from twisted_mta.service.rules import Rules, Verdict
from twisted_mta.store.queue.memory import MemoryBodyWriter

#: Octets of a message between two looks at what the core makes of them.
_CHUNK = 65536
#: What decides where it was no check that refused, by the status of the reply.
_KEYS = {
    "4.3.1": "limits.disk_reserve",
    "4.5.3": "limits.recipients",
    "5.3.4": "limits.message_size",
    "5.7.0": "listen",
}


@implementer(IQueue)
class NoQueue:
    """Keeps the envelopes that would be queued, and nothing else. What it has room for is up to the real queue."""

    def __init__(self, check_room: Callable[[int], None]) -> None:
        self.messages: list[NewMessage] = []
        self.check_room = check_room
        self.body: MemoryBodyWriter | None = None

    def new_body(self) -> IBodyWriter:
        """See IQueue."""
        self.body = MemoryBodyWriter()
        return self.body

    async def submit(self, messages: Sequence[NewMessage], body: IBodyWriter) -> None:
        """See IQueue, but nothing is queued."""
        self.messages += messages


@implementer(IPolicyCheck)
class Witness:
    """Asks a check, and notes what it says."""

    def __init__(self, check: IPolicyCheck, name: str, notes: list[Note], *, skip: bool) -> None:
        """`skip`: the check is not asked, since what it would look at was invented."""
        self.settings = tuple(check.settings)
        self.needs_address = bool(check.needs_address)
        self._check = check
        self._name = name
        self._notes = notes
        self._skip = skip

    def on_connect(self, peer: Peer) -> Verdict:
        """See IPolicyCheck."""
        return self._watch("on_connect", peer)

    def on_helo(self, peer: Peer) -> Verdict:
        """See IPolicyCheck."""
        return self._watch("on_helo", peer)

    def on_mail(self, peer: Peer, envelope: Envelope) -> Verdict:
        """See IPolicyCheck."""
        return self._watch("on_mail", peer, envelope)

    def on_rcpt(self, peer: Peer, envelope: Envelope, recipient: Recipient) -> Verdict:
        """See IPolicyCheck."""
        return self._watch("on_rcpt", peer, envelope, recipient)

    def on_message(self, peer: Peer, envelope: Envelope, header: bytes) -> Verdict:
        """See IPolicyCheck."""
        return self._watch("on_message", peer, envelope, header)

    def _watch(self, stage: str, peer: Peer, *what: object) -> Verdict:
        # One that looks at nothing in this stage has nothing to say about it.
        if self._skip or getattr(type(self._check), stage) is getattr(Accepting, stage):
            return None
        verdict: Verdict = getattr(self._check, stage)(peer, *what)
        if verdict is None or isinstance(verdict, Reply):
            return self._note(peer, verdict)
        return self._wait(peer, verdict)

    async def _wait(self, peer: Peer, verdict: Awaitable[Reply | None]) -> Reply | None:
        return self._note(peer, await verdict)

    def _note(self, peer: Peer, refusal: Reply | None) -> Reply | None:
        assert peer.remarks is not None  # nobody else has a witness
        remarks = "; ".join(peer.remarks)
        peer.remarks.clear()
        finding = finding_of(refusal) if refusal is not None else Finding.PASSES
        text = f"{self._name}: {refusal or remarks or 'passes'}"
        data = {"check": self._name, "reply": str(refusal or "")}
        self._notes.append(Note("check", text, finding, ", ".join(self.settings), data))
        return refusal


def witnessed(rules: Rules, notes: list[Note], *, invented: bool) -> Rules:
    """The rules, with what each check says added to `notes`. `invented`: the address of the client was."""
    checks = tuple(
        Witness(check, name, notes, skip=invented and bool(check.needs_address))
        for check, name in zip(rules.checks, rules.check_names, strict=True)
    )
    return attrs.evolve(rules, checks=checks)


def finding_of(reply: Reply) -> Finding:
    """What a reply means for the mail."""
    if reply.positive:
        return Finding.PASSES
    return Finding.REFUSED if reply.permanent else Finding.LATER


@value(kw_only=True)
class Lines:
    """What the client says."""

    helo: str
    #: STARTTLS, or from the first octet on.
    tls: bool = False
    login: str = ""
    mail: str
    rcpt: str
    #: CRLF line ends.
    message: bytes


class Rehearsal:
    """One session. The checks that `reception` asks must be witnessed, and write into `notes`."""

    def __init__(
        self,
        settings: ServerSettings,
        reception: IReception,
        peer: Peer,
        notes: list[Note],
        *,
        implicit_tls: bool,
        trusts: Callable[[str], bool],
        seconds: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._core = SmtpServer(settings, seconds)
        self._handler = SmtpHandler(reception, peer, trusts)
        self._peer = peer
        self._heard = notes
        self._implicit_tls = implicit_tls
        self._parser = ReplyParser()
        #: The reply that the last command got.
        self.reply = Reply(250, "", "")
        #: What was said, with the checks below it.
        self.notes: list[Note] = []

    async def play(self, lines: Lines) -> bool:
        """Say everything up to the first refusal; whether there was none."""
        if self._implicit_tls:
            await self._secure()
        if not await self._step("connection", self._core.greet()):
            return False
        hello = f"{'LHLO' if self._settings.role is Role.LMTP else 'EHLO'} {lines.helo}"
        commands = [hello]
        if lines.tls and not self._implicit_tls:
            commands += ["STARTTLS", hello]
        if lines.login:
            commands.append(f"AUTH PLAIN {base64.b64encode(_plain(lines.login)).decode()}")
        commands += [lines.mail, lines.rcpt, "DATA"]
        for command in commands:
            shown = f"AUTH PLAIN as {lines.login}" if command.startswith("AUTH ") else command
            if not await self._step(shown, self._core.receive(command.encode() + b"\r\n")):
                return False
        return await self._message(lines.message)

    async def _message(self, message: bytes) -> bool:
        text = (b"\r\n" + message).replace(b"\r\n.", b"\r\n..")[2:]
        text += b".\r\n" if text.endswith(b"\r\n") else b"\r\n.\r\n"
        for start in range(0, len(text) - _CHUNK, _CHUNK):
            await self._perform(self._core.receive(text[start : start + _CHUNK]))
        rest = text[(len(text) - 1) // _CHUNK * _CHUNK :]
        return await self._step("the message", self._core.receive(rest))

    async def _step(self, said: str, effects: Iterable[Effect]) -> bool:
        """One thing that is said, and its reply."""
        assert self._peer.remarks is not None  # nobody rehearses as a real client
        self._heard.clear()
        self._peer.remarks.clear()
        await self._perform(effects)
        while (reply := self._parser.next()) is not None:
            self.reply = reply
        remarks = [Note("remark", remark) for remark in self._peer.remarks]
        text = f"{said}: {self.reply.code} {self.reply.enhanced}".rstrip()
        where = ""
        if not self.reply.positive:
            text = f"{said}: {self.reply}"
            objected = any(note.finding is not Finding.PASSES for note in self._heard)
            where = "" if objected else _KEYS.get(self.reply.enhanced, "")
        data = {"said": said, "reply": str(self.reply)}
        children = (*self._heard, *remarks)
        self.notes.append(Note("command", text, finding_of(self.reply), where, data, children))
        return self.reply.positive

    async def _secure(self) -> None:
        self._handler.secured("TLS")
        await self._perform(self._core.secured())

    async def _perform(self, effects: Iterable[Effect]) -> None:
        """What `net.session.Session` does, without a transport."""
        pending = list(effects)
        while pending:
            match pending.pop(0):
                case Send(data):
                    self._parser.feed(data)
                case Ask(question):
                    answer = self._handler.ask(question)
                    if inspect.isawaitable(answer):
                        answer = await answer
                    pending[:0] = self._core.answer(answer)
                case BodyChunk(data):
                    written = self._handler.body(data)
                    if written is not None:
                        await written
                case StartTLS():
                    await self._secure()
                case Close():
                    return


def _plain(login: str) -> bytes:
    """What PLAIN sends, with a password that nobody looks at."""
    return f"\0{login}\0-".encode()

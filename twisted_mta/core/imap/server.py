"""The IMAP server core: bytes in, effects out. RFC 3501.

`ImapServer` is a `core.effects.Core`. It reads commands off the wire, looks them up in `commands.COMMANDS`, and
knows what may be given when; what they do is in their functions, and what they say goes through `session.Session`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted_mta.core.effects import NO_BINDINGS, Effect, Pace
from twisted_mta.core.imap import questions as q
from twisted_mta.core.imap.access import capabilities
from twisted_mta.core.imap.commands import COMMANDS
from twisted_mta.core.imap.grammar import BadSyntax, Scanner, is_tag
from twisted_mta.core.imap.names import BadName
from twisted_mta.core.imap.session import ImapSettings, Rule, Session
from twisted_mta.core.imap.wire import Command, Event, LiteralAhead, Overlong, Wasted
from twisted_mta.core.sasl import Offer


class ImapServer:
    """One IMAP session. `secure`: the connection began with TLS, or is as good as that."""

    def __init__(self, settings: ImapSettings, secure: bool = False) -> None:
        self._session = Session(settings, secure)

    # --- Core ----------------------------------------------------------------------------------

    @property
    def pace(self) -> Pace:
        """See Core."""
        return self._session.pace

    @property
    def begun(self) -> int:
        """See Core."""
        return self._session.wire.begun

    def greet(self) -> Sequence[Effect]:
        """See Core."""
        host = self._session.settings.hostname.encode("ascii", "replace")
        can = capabilities(self._session)
        self._session.send(b"* OK [CAPABILITY " + can + b"] " + host + b" IMAP4rev1 ready\r\n")
        return self._session.drain()

    def receive(self, data: bytes) -> Sequence[Effect]:
        """See Core."""
        if not self._session.closed and not self._session.handshaking:
            self._session.wire.feed(data)
            self._advance()
        return self._session.drain()

    def answer(self, answer: Any, *, more: bool = False) -> Sequence[Effect]:
        """See Core. The answers are those that `questions` names."""
        asked = self._session.asked
        if asked is None:
            raise RuntimeError("nothing was asked")
        if more:
            assert asked.part is not None  # only Fetch and Search are answered in parts
            asked.part(answer)
            return self._session.drain()
        self._session.asked = None
        if not isinstance(answer, q.Refused):
            asked.then(answer)
        elif asked.refused is not None:
            asked.refused(answer)
        else:
            self._session.no(answer.text, answer.code)
        self._advance()
        return self._session.drain()

    def fault(self) -> Sequence[Effect]:
        """See Core."""
        if self._session.asked is None:
            return self._end("internal error")
        return self.answer(q.Refused("internal error, it was logged", "SERVERBUG"))  # RFC 5530 §3

    def secured(self, bindings: Mapping[str, bytes] = NO_BINDINGS) -> Sequence[Effect]:
        """See Core."""
        session = self._session
        session.offer = Offer(session.settings.scram, bindings)
        # RFC 3501 §6.2.1: nothing learnt or received before counts any more.
        session.wire.reset()
        session.secure, session.handshaking = True, False
        return session.drain()

    def timed_out(self) -> Sequence[Effect]:
        """See Core."""
        return self._end("you were silent for too long")

    def shut_down(self) -> Sequence[Effect]:
        """See Core."""
        return self._end("the server is going down", "UNAVAILABLE")

    def mailbox_changed(self) -> Sequence[Effect]:
        """Something may have happened to the selected mailbox; told at once while the client idles (RFC 2177)."""
        session = self._session
        if session.idling and session.asked is None and not session.closed:
            session.look_again()
        else:
            session.stale = True
        return session.drain()

    def _end(self, text: str, code: str = "") -> Sequence[Effect]:
        self._session.bye(text, code)
        return self._session.drain()

    # --- input ---------------------------------------------------------------------------------

    def _advance(self) -> None:
        session = self._session
        while session.asked is None and not session.closed and not session.handshaking:
            event = session.wire.next()
            if event is None:
                return
            if isinstance(event, Wasted):
                session.bye("too much was sent in vain")
            elif session.listener is not None:
                session.listener(event)
            else:
                self._command_event(event)

    def _command_event(self, event: Event) -> None:
        session = self._session
        if isinstance(event, Command):
            self._guard(event.data, lambda rule, scanner: rule.run(session, scanner))
        elif isinstance(event, LiteralAhead):
            self._guard(event.so_far, lambda rule, scanner: self._literal(rule, scanner, event), event)
        else:
            assert isinstance(event, Overlong)  # Chunks come only to a listener
            tag, space, _ = event.start.partition(b" ")
            session.tag, session.rule = tag if space and is_tag(tag) else b"*", None
            session.bad("the command is too long")

    def _guard(
        self, data: bytes, act: Callable[[Rule, Scanner], None], ahead: LiteralAhead | None = None
    ) -> None:
        """Read tag and name of a command, see whether it may be given, and act; errors become BAD or NO."""
        session, scanner = self._session, Scanner(data)
        refusal: Callable[[], None]
        try:
            rule = self._begin(scanner)
            if not (rule.secret and not session.may_log_in):
                act(rule, scanner)
                return
            text = "the connection must be encrypted before you log in"
            refusal = lambda: session.no(text, "PRIVACYREQUIRED")  # noqa: E731  RFC 5530 §3
        except BadName as error:
            reason = str(error)
            refusal = lambda: session.no(reason, "CANNOT")  # noqa: E731  RFC 5530 §3
        except BadSyntax as error:
            reason = str(error)
            refusal = lambda: session.bad(reason)  # noqa: E731
        if ahead is not None:
            session.refuse_literal(ahead)
        refusal()

    def _begin(self, scanner: Scanner) -> Rule:
        session = self._session
        session.tag, session.rule = b"*", None
        session.tag = scanner.tag()
        scanner.space()
        name = scanner.keyword()
        session.by_uid = name == b"UID"
        if session.by_uid:
            scanner.space()
            name += b" " + scanner.keyword()
        rule = COMMANDS.get(name)
        if rule is None:
            raise BadSyntax("there is no such command")
        if not rule.allowed & session.state:
            raise BadSyntax("that command is not allowed now")
        session.rule = rule
        return rule

    def _literal(self, rule: Rule, scanner: Scanner, ahead: LiteralAhead) -> None:
        session = self._session
        if rule.literal(session, scanner, ahead):
            return
        if len(ahead.so_far) + ahead.size > session.wire.limits.command:
            raise BadSyntax("the literal is too large")
        session.wire.accept()
        if ahead.synchronising:
            session.continuation(b"go on")

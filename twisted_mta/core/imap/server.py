"""The IMAP server core: bytes in, effects out. RFC 3501.

`ImapServer` is a `core.effects.Core`. It knows framing, states and what may be told when; the commands are
functions in `access`, `mailboxes` and `messages`, listed in `state.COMMANDS`, and use the methods under
"the commands' side". What only the outside knows is asked with the classes of `questions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from twisted_mta.core.effects import NO_BINDINGS, Ask, Close, Effect, Send
from twisted_mta.core.imap import mailboxes
from twisted_mta.core.imap import questions as q
from twisted_mta.core.imap.access import capabilities
from twisted_mta.core.imap.grammar import BadSyntax, Scanner, is_tag
from twisted_mta.core.imap.names import BadName
from twisted_mta.core.imap.responses import human
from twisted_mta.core.imap.state import COMMANDS, Rule, State
from twisted_mta.core.imap.view import View
from twisted_mta.core.imap.wire import Command, Event, Limits, LiteralAhead, Overlong, Wasted, Wire
from twisted_mta.core.sasl import Offer

#: What a client that is not logged in may send in one command.
STRANGER = Limits(line=8192, command=16384, waste=65536)


@attrs.frozen(kw_only=True)
class ImapSettings:
    """What one listener's sessions have in common."""

    #: The host in the greeting.
    hostname: str
    #: Whether STARTTLS can be offered.
    tls_available: bool = False
    #: Let passwords travel in the clear: for tests and loopback only.
    plaintext_login: bool = False
    #: Octets of the largest message that APPEND takes.
    append_limit: int = 52428800
    #: Wrong commands, and wrong passwords, until the session is ended.
    errors: int = 20
    login_failures: int = 5
    #: Whether SCRAM is offered.
    scram: bool = False
    #: What ID calls us.
    name: str = "twisted_mta"
    #: What one command may cost after login.
    limits: Limits = Limits()  # noqa: RUF009  frozen


class ImapServer:
    """One IMAP session. `secure`: the connection began with TLS, or is as good as that."""

    def __init__(self, settings: ImapSettings, secure: bool = False) -> None:
        self.settings = settings
        #: The SASL mechanisms as they can be used now.
        self.offer = Offer(settings.scram)
        self.state = State.NOT_AUTHENTICATED
        #: The selected mailbox and its name; None and "" without one.
        self.view: View | None = None
        self.selected = ""
        self._secure = secure
        self._wire = Wire(STRANGER)
        self._out: list[Effect] = []
        self._tag = b"*"
        self._rule: Rule | None = None
        self._by_uid = False
        self._listener: Callable[[Event], None] | None = None
        self._then: Callable[[Any], None] | None = None
        self._part: Callable[[Any], None] | None = None
        self._refused: Callable[[q.Refused], None] | None = None
        self._handshaking = False
        self._closed = False
        self._idling = False
        self._stale = False
        self._errors = 0
        self._login_failures = 0

    # --- Core ----------------------------------------------------------------------------------

    def greet(self) -> Sequence[Effect]:
        """See Core."""
        host = self.settings.hostname.encode("ascii", "replace")
        self.send(b"* OK [CAPABILITY " + capabilities(self) + b"] " + host + b" IMAP4rev1 ready\r\n")
        return self._drain()

    def receive(self, data: bytes) -> Sequence[Effect]:
        """See Core."""
        if not self._closed and not self._handshaking:
            self._wire.feed(data)
            self._advance()
        return self._drain()

    def answer(self, answer: Any, *, more: bool = False) -> Sequence[Effect]:
        """See Core. The answers are those that `questions` names."""
        then, part, refused = self._then, self._part, self._refused
        if then is None:
            raise RuntimeError("nothing was asked")
        if more:
            assert part is not None  # only Fetch and Search are answered in parts
            part(answer)
            return self._drain()
        self._then = self._part = self._refused = None
        if not isinstance(answer, q.Refused):
            then(answer)
        elif refused is not None:
            refused(answer)
        else:
            self.no(answer.text, answer.code)
        self._advance()
        return self._drain()

    def fault(self) -> Sequence[Effect]:
        """See Core."""
        if self._then is None:
            return self._bye("internal error")
        return self.answer(q.Refused("internal error, it was logged", "SERVERBUG"))  # RFC 5530 §3

    def secured(self, bindings: Mapping[str, bytes] = NO_BINDINGS) -> Sequence[Effect]:
        """See Core."""
        self.offer = Offer(self.settings.scram, bindings)
        # RFC 3501 §6.2.1: nothing learnt or received before counts any more.
        self._wire.reset()
        self._secure, self._handshaking = True, False
        return self._drain()

    def timed_out(self) -> Sequence[Effect]:
        """See Core."""
        return self._bye("you were silent for too long")

    def shut_down(self) -> Sequence[Effect]:
        """See Core."""
        return self._bye("the server is going down", "UNAVAILABLE")

    def mailbox_changed(self) -> Sequence[Effect]:
        """Something may have happened to the selected mailbox; told at once while the client idles (RFC 2177)."""
        if self._idling and self._then is None and not self._closed:
            self.ask(q.Refresh(), self.idle, refused=self._mailbox_lost)
        else:
            self._stale = True
        return self._drain()

    def _drain(self) -> Sequence[Effect]:
        out, self._out = self._out, []
        return out

    def _bye(self, text: str, code: str = "") -> Sequence[Effect]:
        self._say_bye(text, code)
        return self._drain()

    def _say_bye(self, text: str, code: str = "") -> None:
        if not self._closed:
            self.send(b"* BYE " + _code(code) + human(text) + b"\r\n")
            self.effect(Close())

    # --- input ---------------------------------------------------------------------------------

    def _advance(self) -> None:
        while self._then is None and not self._closed and not self._handshaking:
            event = self._wire.next()
            if event is None:
                return
            if isinstance(event, Wasted):
                self._say_bye("too much was sent in vain")
            elif self._listener is not None:
                self._listener(event)
            else:
                self._command_event(event)

    def _command_event(self, event: Event) -> None:
        if isinstance(event, Command):
            self._guard(event.data, lambda rule, scanner: rule.run(self, scanner))
        elif isinstance(event, LiteralAhead):
            self._guard(event.so_far, lambda rule, scanner: self._literal(rule, scanner, event), event)
        else:
            assert isinstance(event, Overlong)  # Chunks come only to a listener
            tag, space, _ = event.start.partition(b" ")
            self._tag, self._rule = tag if space and is_tag(tag) else b"*", None
            self.bad("the command is too long")

    def _guard(
        self, data: bytes, act: Callable[[Rule, Scanner], None], ahead: LiteralAhead | None = None
    ) -> None:
        """Read tag and name of a command, see whether it may be given, and act; errors become BAD or NO."""
        scanner = Scanner(data)
        refusal: Callable[[], None]
        try:
            rule = self._begin(scanner)
            if not (rule.secret and not self.may_log_in):
                act(rule, scanner)
                return
            text = "the connection must be encrypted before you log in"
            refusal = lambda: self.no(text, "PRIVACYREQUIRED")  # noqa: E731  RFC 5530 §3
        except BadName as error:
            reason = str(error)
            refusal = lambda: self.no(reason, "CANNOT")  # noqa: E731  RFC 5530 §3
        except BadSyntax as error:
            reason = str(error)
            refusal = lambda: self.bad(reason)  # noqa: E731
        if ahead is not None:
            self.refuse_literal(ahead)
        refusal()

    def _begin(self, scanner: Scanner) -> Rule:
        self._tag, self._rule = b"*", None
        self._tag = scanner.tag()
        scanner.space()
        name = scanner.keyword()
        self._by_uid = name == b"UID"
        if self._by_uid:
            scanner.space()
            name += b" " + scanner.keyword()
        rule = COMMANDS.get(name)
        if rule is None:
            raise BadSyntax("there is no such command")
        if not rule.allowed & self.state:
            raise BadSyntax("that command is not allowed now")
        self._rule = rule
        return rule

    def _literal(self, rule: Rule, scanner: Scanner, ahead: LiteralAhead) -> None:
        if rule.run is mailboxes.append and mailboxes.append_literal(self, scanner, ahead):
            return
        if len(ahead.so_far) + ahead.size > self._wire.limits.command:
            raise BadSyntax("the literal is too large")
        self._wire.accept()
        if ahead.synchronising:
            self.continuation(b"go on")

    # --- the commands' side --------------------------------------------------------------------

    @property
    def may_log_in(self) -> bool:
        """Whether passwords are accepted on this connection."""
        return self._secure or self.settings.plaintext_login

    @property
    def offers_tls(self) -> bool:
        """Whether STARTTLS is possible now."""
        return self.settings.tls_available and not self._secure and self.state is State.NOT_AUTHENTICATED

    def effect(self, effect: Effect) -> None:
        """Add an effect; nothing more is done after a Close."""
        self._out.append(effect)
        if isinstance(effect, Close):
            self._closed = True

    def send(self, data: bytes) -> None:
        """Write octets."""
        if data:
            self._out.append(Send(data))

    def untagged(self, line: bytes) -> None:
        """Write an untagged response, given without ``*`` and CRLF."""
        self.send(b"* " + line + b"\r\n")

    def continuation(self, text: bytes) -> None:
        """Write a continuation request."""
        self.send(b"+ " + text + b"\r\n")

    def ask(
        self,
        question: q.Question,
        then: Callable[[Any], None],
        part: Callable[[Any], None] | None = None,
        refused: Callable[[q.Refused], None] | None = None,
    ) -> None:
        """Ask. `part` gets the parts of a long answer but for the last; without `refused` a Refused is a tagged NO."""
        self._then, self._part, self._refused = then, part, refused
        self._out.append(Ask(question))

    def listen(self, listener: Callable[[Event], None] | None, raw: bool = False) -> None:
        """Give the next events to `listener` instead of reading commands; with `raw` the next is a bare line."""
        self._listener = listener
        if listener is None:
            self._idling = False
        if raw:
            self._wire.expect_line()

    def stream_literal(self, ahead: LiteralAhead) -> None:
        """The announced literal may come, as Chunks."""
        self._wire.stream()
        if ahead.synchronising:
            self.continuation(b"go on")

    def refuse_literal(self, ahead: LiteralAhead) -> None:
        """The announced literal is not wanted."""
        self._wire.refuse(ahead.synchronising)

    def ok(self, text: str, code: Callable[[], bytes] | None = None) -> None:
        """The command worked: its state is entered, then changes are told, then the tagged OK is sent."""
        rule = self._rule
        assert rule is not None
        if rule.ok is not None:
            self._enter(rule.ok)
        words = b"[" + code() + b"] " if code is not None else b""
        self._complete(b" OK " + words + human(text))

    def no(self, text: str, code: str = "") -> None:
        """The command can't be done."""
        self._complete(b" NO " + _code(code) + human(text))

    def _complete(self, rest: bytes) -> None:
        line = self._tag + rest + b"\r\n"
        rule, view = self._rule, self.view
        if rule is None or not rule.tells or view is None:
            self.send(line)
            return

        def refreshed(changes: q.Changes) -> None:
            self.send(view.changes(changes, self._by_uid) + line)

        self._stale = False
        self.ask(q.Refresh(), refreshed, refused=self._mailbox_lost)

    def bad(self, text: str) -> None:
        """The client made a mistake; too many end the session."""
        self.send(self._tag + b" BAD " + human(text) + b"\r\n")
        self._errors += 1
        if self._errors >= self.settings.errors:
            self._say_bye("too many mistakes")

    def login_failed(self) -> None:
        """A wrong password was given; too many end the session."""
        self._login_failures += 1
        if self._login_failures >= self.settings.login_failures:
            self._say_bye("too many wrong passwords")

    def begin_tls(self) -> None:
        """Drop all input until `secured`."""
        self._wire.reset()
        self._handshaking = True

    def _enter(self, state: State) -> None:
        if self.state is State.NOT_AUTHENTICATED and state is State.AUTHENTICATED:
            self._wire.limits = self.settings.limits
        self.state = state
        if state is not State.SELECTED:
            self.view, self.selected = None, ""

    def select(self, name: str, view: View) -> None:
        """A mailbox was opened: tell what is in it."""
        self.view, self.selected = view, name
        self.send(view.greeting())

    def deselect(self) -> None:
        """No mailbox is selected any more."""
        self._enter(State.AUTHENTICATED)

    def lose_mailbox(self) -> None:
        """The selected mailbox was deleted or renamed by this very session."""
        self.deselect()
        self.untagged(b"OK [CLOSED] the selected mailbox is gone")

    def idle(self, changes: q.Changes) -> None:
        """The client waits for news: here are some, and `mailbox_changed` will bring more."""
        assert self.view is not None
        self._idling = True
        self.send(self.view.changes(changes, with_uid=False))
        if self._stale:
            self._stale = False
            self.ask(q.Refresh(), self.idle, refused=self._mailbox_lost)

    def _mailbox_lost(self, refused: q.Refused) -> None:
        # RFC 2180 §3.3: the one way that leaves the client with no wrong idea.
        self._say_bye(refused.text, refused.code)


def _code(code: str) -> bytes:
    return f"[{code}] ".encode("ascii") if code else b""

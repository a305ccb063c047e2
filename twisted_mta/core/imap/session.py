"""One IMAP session as its commands see it: its state, what they may say, and what they may ask.

The commands are functions in `access`, `mailboxes` and `messages`, listed in `commands.COMMANDS`; what only the
outside knows is asked with the classes of `questions`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from twisted_mta.core.effects import Ask, Close, Effect, Pace, Send
from twisted_mta.core.imap import questions as q
from twisted_mta.core.imap.entries import Changes
from twisted_mta.core.imap.grammar import Scanner
from twisted_mta.core.imap.responses import human
from twisted_mta.core.imap.view import View
from twisted_mta.core.imap.wire import Event, Limits, LiteralAhead, Wire
from twisted_mta.core.sasl import Offer
from twisted_mta.core.values import value

#: What a client that is not logged in may send in one command.
STRANGER = Limits(line=8192, command=16384, waste=65536)


class State(enum.Flag):
    """Where a session stands; also sets of states."""

    NOT_AUTHENTICATED = enum.auto()
    AUTHENTICATED = enum.auto()
    SELECTED = enum.auto()
    LOGOUT = enum.auto()


@value
class Rule:
    """One command."""

    #: Reads the arguments and acts. Raises BadSyntax and BadName.
    run: Callable[[Session, Scanner], None]
    #: The states in which it may be given.
    allowed: State
    #: The state that a tagged OK leads to; None: stays.
    ok: State | None = None
    #: Whether to tell, before the tagged response, what happened to the mailbox. Never so for FETCH, STORE and SEARCH
    #: by message numbers (RFC 3501 §7.4.1); nor for UID FETCH and UID STORE, which clients send by the hundred.
    tells: bool = False
    #: Whether it carries a password, so that it is refused on a plaintext connection.
    secret: bool = False
    #: Sees a literal coming, and takes it over (True) or leaves it to be read as an argument (False). Raises as `run`.
    literal: Callable[[Session, Scanner, LiteralAhead], bool] = lambda session, scanner, ahead: False


@value(kw_only=True)
class ImapTimes:
    """How long a client may take, in seconds."""

    #: For a command before the login.
    login: float = 60.0
    #: RFC 3501 §5.4: half an hour at least, until it is logged out.
    idle: float = 1800.0
    #: For the octets of a message that it appends.
    message: float = 3600.0


@value(kw_only=True)
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
    times: ImapTimes = ImapTimes()
    #: What one command may cost after login.
    limits: Limits = Limits()


@value
class Asked:
    """What is to be done with the answer to a question."""

    then: Callable[[Any], None]
    #: Gets the parts of a long answer, but for the last.
    part: Callable[[Any], None] | None
    #: Gets a Refused; None: it becomes a tagged NO.
    refused: Callable[[q.Refused], None] | None


class Session:
    """See the module. `secure`: the connection began with TLS, or is as good as that."""

    def __init__(self, settings: ImapSettings, secure: bool) -> None:
        self.settings = settings
        #: The SASL mechanisms as they can be used now.
        self.offer = Offer(settings.scram)
        self.state = State.NOT_AUTHENTICATED
        #: The selected mailbox and its name; None and "" without one.
        self.view: View | None = None
        self.selected = ""
        self.secure = secure
        self.wire = Wire(STRANGER)
        #: What answers the command under way: its tag ("*": it could not be read), its rule, whether it goes by UID.
        self.tag = b"*"
        self.rule: Rule | None = None
        self.by_uid = False
        #: The question that is open.
        self.asked: Asked | None = None
        #: Who gets the events of the wire in place of the commands.
        self.listener: Callable[[Event], None] | None = None
        self.handshaking = False
        self.closed = False
        self.idling = False
        #: Whether the mailbox may have changed since it was last looked at.
        self.stale = False
        self._out: list[Effect] = []
        self._errors = 0
        self._login_failures = 0

    # --- what is possible ----------------------------------------------------------------------

    @property
    def may_log_in(self) -> bool:
        """Whether passwords are accepted on this connection."""
        return self.secure or self.settings.plaintext_login

    @property
    def offers_tls(self) -> bool:
        """Whether STARTTLS is possible now."""
        return self.settings.tls_available and not self.secure and self.state is State.NOT_AUTHENTICATED

    @property
    def pace(self) -> Pace:
        """How long to wait for the client."""
        times, wire = self.settings.times, self.wire
        if self.state is State.NOT_AUTHENTICATED:
            return Pace(times.login, times.login, "a command")
        if wire.streaming:
            return Pace(times.idle, times.message, "a message")
        return Pace(times.idle, times.idle, "a command")

    # --- effects -------------------------------------------------------------------------------

    def drain(self) -> list[Effect]:
        """The effects since the last call."""
        out, self._out = self._out, []
        return out

    def effect(self, effect: Effect) -> None:
        """Add an effect; nothing more is done after a Close."""
        self._out.append(effect)
        if isinstance(effect, Close):
            self.closed = True

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

    def bye(self, text: str, code: str = "") -> None:
        """End the session, and say why."""
        if not self.closed:
            self.send(b"* BYE " + _code(code) + human(text) + b"\r\n")
            self.effect(Close())

    def ask(
        self,
        question: q.Question,
        then: Callable[[Any], None],
        part: Callable[[Any], None] | None = None,
        refused: Callable[[q.Refused], None] | None = None,
    ) -> None:
        """Ask. `part` gets the parts of a long answer but for the last; without `refused` a Refused is a tagged NO."""
        self.asked = Asked(then, part, refused)
        self._out.append(Ask(question))

    # --- input of another kind -----------------------------------------------------------------

    def listen(self, listener: Callable[[Event], None] | None, raw: bool = False) -> None:
        """Give the next events to `listener` instead of reading commands; with `raw` the next is a bare line."""
        self.listener = listener
        if listener is None:
            self.idling = False
        if raw:
            self.wire.expect_line()

    def stream_literal(self, ahead: LiteralAhead) -> None:
        """The announced literal may come, as Chunks."""
        self.wire.stream()
        if ahead.synchronising:
            self.continuation(b"go on")

    def refuse_literal(self, ahead: LiteralAhead) -> None:
        """The announced literal is not wanted."""
        self.wire.refuse(ahead.synchronising)

    def begin_tls(self) -> None:
        """Drop all input until the handshake is done."""
        self.wire.reset()
        self.handshaking = True

    # --- how a command ends --------------------------------------------------------------------

    def ok(self, text: str, code: Callable[[], bytes] | None = None) -> None:
        """The command worked: its state is entered, then changes are told, then the tagged OK is sent."""
        rule = self.rule
        assert rule is not None
        if rule.ok is not None:
            self._enter(rule.ok)
        words = b"[" + code() + b"] " if code is not None else b""
        self._complete(b" OK " + words + human(text))

    def no(self, text: str, code: str = "") -> None:
        """The command can't be done."""
        self._complete(b" NO " + _code(code) + human(text))

    def _complete(self, rest: bytes) -> None:
        line = self.tag + rest + b"\r\n"
        rule, view = self.rule, self.view
        if rule is None or not rule.tells or view is None:
            self.send(line)
            return

        def refreshed(changes: Changes) -> None:
            self.send(view.changes(changes, self.by_uid) + line)

        self.stale = False
        self.ask(q.Refresh(), refreshed, refused=self.mailbox_lost)

    def bad(self, text: str) -> None:
        """The client made a mistake; too many end the session."""
        self.send(self.tag + b" BAD " + human(text) + b"\r\n")
        self._errors += 1
        if self._errors >= self.settings.errors:
            self.bye("too many mistakes")

    def login_failed(self) -> None:
        """A wrong password was given; too many end the session."""
        self._login_failures += 1
        if self._login_failures >= self.settings.login_failures:
            self.bye("too many wrong passwords")

    # --- the selected mailbox ------------------------------------------------------------------

    def _enter(self, state: State) -> None:
        if self.state is State.NOT_AUTHENTICATED and state is State.AUTHENTICATED:
            self.wire.limits = self.settings.limits
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

    def mailbox_lost(self, refused: q.Refused) -> None:
        """The selected mailbox went away behind our back."""
        # RFC 2180 §3.3: the one way that leaves the client with no wrong idea.
        self.bye(refused.text, refused.code)

    def idle(self, changes: Changes) -> None:
        """The client waits for news: here are some, and `look_again` will bring more."""
        assert self.view is not None
        self.idling = True
        self.send(self.view.changes(changes, with_uid=False))
        if self.stale:
            self.stale = False
            self.look_again()

    def look_again(self) -> None:
        """Tell a client that idles what happened meanwhile."""
        self.ask(q.Refresh(), self.idle, refused=self.mailbox_lost)


def _code(code: str) -> bytes:
    return f"[{code}] ".encode("ascii") if code else b""

"""The POP3 server core: octets in, effects out. RFC 1939, 2449, 2595 (STLS), 3206, 5034.

What it can't know (passwords, messages) it asks: see `core.pop3.questions`. Deletions are marks of the session until QUIT
asks for them; a session that ends in any other way deletes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from twisted_mta.core import sasl
from twisted_mta.core.effects import NO_BINDINGS, Ask, Close, Effect, Pace, Send, StartTLS
from twisted_mta.core.pop3.maildrop import Maildrop, Stuffer, is_number
from twisted_mta.core.pop3.questions import Drop, Listing, Login, Question, Refusal, Retrieve, Update
from twisted_mta.core.pop3.replies import Wrong, err, lines, ok
from twisted_mta.core.pop3.states import ALLOWED, Pop3Times, State, pace
from twisted_mta.core.values import value

#: RFC 2449 §4: octets of a command, CRLF included.
MAX_COMMAND = 255
#: Octets of a SASL response; RFC 5034 §4 frees these from the limit on commands.
MAX_RESPONSE = 12288
#: Octets of a line that are thrown away before the connection is cut.
MAX_GARBAGE = 65536


@value(kw_only=True)
class Pop3Settings:
    """What a session is told about its listener."""

    hostname: str
    #: Whether STLS can be offered (it is not on a connection that has TLS already).
    tls_available: bool = False
    #: Whether SCRAM is offered (under TLS, as all logins).
    scram: bool = False
    error_limit: int = 20
    times: Pop3Times = Pop3Times()


_IN_THE_CLEAR = Refusal("AUTH", "Send STLS first: passwords never travel in the clear")
_FAULT = Refusal("SYS/TEMP", "Something went wrong here; try again later")


class Pop3Server:
    """One session; implements `core.effects.Core`."""

    def __init__(self, settings: Pop3Settings) -> None:
        self._settings = settings
        self._state = State.AUTHORIZATION
        self._tls = False
        self._login = ""
        #: The SASL mechanisms as they can be used now, and the exchange under way.
        self._offer = sasl.Offer(settings.scram)
        self._exchange: sasl.Exchange | None = None
        self._maildrop = Maildrop()
        self._buffer = b""
        self._discarded = 0
        self._lines = 0
        self._errors = 0
        self._shutting_down = False
        #: Takes the answer to the open Ask, and whether more parts follow; None when none is open.
        self._asked: Callable[[Any, bool], Iterator[Effect]] | None = None
        self._stuffer = Stuffer()
        #: Whether an answer in parts has begun.
        self._begun = False
        self._handlers: Mapping[str, Callable[[bytes], Iterator[Effect]]] = {
            "CAPA": self._capa,
            "USER": self._user,
            "PASS": self._pass,
            "AUTH": self._auth,
            "STLS": self._stls,
            "STAT": self._stat,
            "LIST": self._list,
            "UIDL": self._uidl,
            "RETR": self._retr,
            "TOP": self._top,
            "DELE": self._dele,
            "RSET": self._rset,
            "NOOP": self._noop,
            "QUIT": self._quit,
        }

    # --- core.effects.Core -----------------------------------------------------------------------

    @property
    def pace(self) -> Pace:
        """See Core."""
        return pace(self._state, self._settings.times)

    @property
    def begun(self) -> int:
        """See Core."""
        return self._lines

    def greet(self) -> list[Effect]:
        """See Core."""
        # No timestamp in angle brackets: that would offer APOP (RFC 1939 §7), which needs passwords in the clear on disk.
        return [ok(f"{self._settings.hostname} POP3 ready")]

    def receive(self, data: bytes) -> list[Effect]:
        """See Core."""
        if self._state in (State.CLOSED, State.TLS):
            return []
        self._buffer += data
        return list(self._run())

    def answer(self, answer: Any, *, more: bool = False) -> list[Effect]:
        """See Core. Only Retrieve is answered in parts."""
        if self._asked is None:
            raise RuntimeError("no question is open")
        then = self._asked
        if not more:
            self._asked = None
        effects = list(then(answer, more))
        self._begun = more
        if self._shutting_down:
            self._state = State.CLOSED  # whatever the answer began
        return [*effects, *self._run()]

    def fault(self) -> list[Effect]:
        """See Core."""
        if self._asked is None:
            raise RuntimeError("no question is open")
        self._asked = None
        if self._begun:
            # Only the end of the connection tells that the answer is not whole.
            return list(self._end())
        effects: list[Effect] = [err(_FAULT)]
        if self._state is State.UPDATE:
            effects += self._end()
        return [*effects, *self._run()]

    def secured(self, bindings: Mapping[str, bytes] = NO_BINDINGS) -> list[Effect]:
        """See Core."""
        self._offer = sasl.Offer(self._settings.scram, bindings)
        # RFC 2595 §4: what was learnt in the clear is forgotten.
        self._tls = True
        self._state = State.AUTHORIZATION
        self._login = ""
        self._buffer = b""
        return []

    def timed_out(self) -> list[Effect]:
        """See Core."""
        return list(self._end())  # RFC 1939 §3: without a word, and without removing anything

    def shut_down(self) -> list[Effect]:
        """See Core."""
        self._shutting_down = True  # an open question is still answered before this
        return [
            err(Refusal("SYS/TEMP", "The server is shutting down; try again later")),
            *self._end(),
        ]

    # --- input -----------------------------------------------------------------------------------

    def _run(self) -> Iterator[Effect]:
        """Work off the buffer until it needs more input, an answer, or the session is over."""
        while self._asked is None and self._buffer and self._state not in (State.CLOSED, State.TLS):
            end = self._buffer.find(b"\n")
            # A bare LF ends a command too, for those who type by hand.
            line = self._buffer if end < 0 else self._buffer[:end].removesuffix(b"\r")
            limit = MAX_RESPONSE if self._state is State.SASL else MAX_COMMAND - 2
            if self._discarded + len(line) > MAX_GARBAGE:
                yield err(Refusal("", "Too much input without a line end"))
                yield from self._end()
            elif end < 0:
                if self._discarded or len(line) > limit + 1:  # it may be the CR that ends it
                    self._discarded += len(line)
                    self._buffer = b""
                return
            else:
                self._buffer = self._buffer[end + 1 :]
                too_long = self._discarded or len(line) > limit
                self._discarded = 0
                self._lines += 1
                yield from self._too_long() if too_long else self._line(line)

    def _too_long(self) -> Iterator[Effect]:
        if self._state is State.SASL:
            self._state = State.AUTHORIZATION  # and the exchange is over
        return self._error(Refusal("", "Line too long"))

    def _line(self, line: bytes) -> Iterator[Effect]:
        try:
            if self._state is State.SASL:
                yield from self._sasl_response(line)
                return
            word, _, argument = line.partition(b" ")
            verb = word.decode("ascii", "replace").upper()
            handler = self._handlers.get(verb)
            if handler is None:
                raise Wrong("Unknown command")
            if self._state not in ALLOWED[verb]:
                raise Wrong(
                    "Log in first" if self._state is State.AUTHORIZATION else "You are logged in already"
                )
            yield from handler(argument)
        except Wrong as wrong:
            yield from self._error(wrong.refusal)

    def _error(self, refusal: Refusal) -> Iterator[Effect]:
        """A wrong command: answered, counted, and only too many of them end the session."""
        self._errors += 1
        if self._errors > self._settings.error_limit:
            yield err(Refusal("", "Too many errors, closing the connection"))
            yield from self._end()
        else:
            yield err(refusal)

    def _end(self) -> Iterator[Effect]:
        self._state = State.CLOSED
        self._buffer = b""
        yield Close()

    def _ask(self, question: Question, then: Callable[[Any, bool], Iterator[Effect]]) -> Iterator[Effect]:
        self._asked = then
        yield Ask(question)

    # --- before login ----------------------------------------------------------------------------

    def _capa(self, argument: bytes) -> Iterator[Effect]:
        # RFC 2449 §6; AUTH-RESP-CODE is RFC 3206 §6.
        names = ["TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "EXPIRE NEVER"]
        if self._tls:
            names += [
                "USER",
                "SASL " + " ".join(self._offer.names),
            ]  # RFC 5034 §3: and it stays in the list after the login
        elif self._settings.tls_available and self._state is State.AUTHORIZATION:
            names.append("STLS")
        yield lines("Capabilities follow", names)

    def _user(self, argument: bytes) -> Iterator[Effect]:
        self._need_tls()
        try:
            self._login = argument.strip().decode("utf-8")
        except UnicodeDecodeError:
            raise Wrong("The login is not UTF-8") from None
        if not self._login:
            raise Wrong("Syntax: USER login")
        yield ok("Send the password")  # RFC 1939 §7: whether there is such a user is not told

    def _pass(self, argument: bytes) -> Iterator[Effect]:
        self._need_tls()
        if not self._login:
            raise Wrong("Send USER first")
        login, self._login = self._login, ""
        # RFC 1939 §7: the whole argument is the password, spaces and all.
        return self._ask(Login(sasl.Credentials(login, argument)), self._logged_in)

    def _auth(self, argument: bytes) -> Iterator[Effect]:
        self._need_tls()
        name, _, initial = argument.strip().partition(b" ")
        exchange = self._offer.begin(name.decode("ascii", "replace"))
        if exchange is None:
            raise Wrong("Mechanisms offered: " + " ".join(self._offer.names))
        self._exchange = exchange
        return self._sasl_step(lambda: exchange.start(initial or None))

    def _sasl_response(self, line: bytes) -> Iterator[Effect]:
        self._state = State.AUTHORIZATION
        exchange = self._running()
        return self._sasl_step(lambda: exchange.respond(line))

    def _running(self) -> sasl.Exchange:
        assert self._exchange is not None  # set by AUTH, the only way here
        return self._exchange

    def _sasl_step(self, move: Callable[[], sasl.Step | sasl.Done]) -> Iterator[Effect]:
        """Make the next move of the exchange, and carry out the step that follows."""
        try:
            step = move()
        except sasl.Cancelled:
            yield from self._error(Refusal("", "Authentication cancelled"))
            return
        except sasl.SaslError as error:
            yield from self._error(Refusal("AUTH", f"Authentication failed: {error}"))
            return
        match step:
            case sasl.Challenge(data):
                self._state = State.SASL
                yield Send(b"+ " + sasl.encode_base64(data) + b"\r\n")
            case sasl.Done():
                yield from self._enter()
            case sasl.Lookup():
                yield from self._ask(step, self._looked_up)
            case _:
                yield from self._ask(Login(step), self._accepted)

    def _looked_up(self, answer: sasl.Secret | Refusal, more: bool) -> Iterator[Effect]:
        if isinstance(answer, Refusal):
            return self._error(answer)
        return self._sasl_step(lambda: self._running().answer(answer))

    def _accepted(self, answer: Sequence[Drop] | Refusal, more: bool) -> Iterator[Effect]:
        if isinstance(answer, Refusal):
            return self._error(answer)
        self._maildrop = Maildrop(answer)
        return self._sasl_step(lambda: self._running().answer(True))

    def _logged_in(self, answer: Sequence[Drop] | Refusal, more: bool) -> Iterator[Effect]:
        if isinstance(answer, Refusal):
            return self._error(answer)
        self._maildrop = Maildrop(answer)
        return self._enter()

    def _enter(self) -> Iterator[Effect]:
        self._state = State.TRANSACTION
        self._exchange = None
        yield ok(f"{self._maildrop} in the maildrop")

    def _stls(self, argument: bytes) -> Iterator[Effect]:
        if self._tls:
            raise Wrong("TLS is active already")
        if not self._settings.tls_available:
            raise Wrong("STLS is not offered here")
        yield ok("Go ahead with TLS")
        # RFC 2595 §4: what the client sent before the handshake must have no effect after it.
        self._buffer = b""
        self._state = State.TLS
        yield StartTLS()

    def _need_tls(self) -> None:
        if not self._tls:
            raise Wrong(_IN_THE_CLEAR.text, _IN_THE_CLEAR.code)

    # --- logged in -------------------------------------------------------------------------------

    def _stat(self, argument: bytes) -> Iterator[Effect]:
        yield ok(f"{self._maildrop.count} {self._maildrop.octets}")

    def _list(self, argument: bytes) -> Iterator[Effect]:
        return self._listing(argument, str(self._maildrop), lambda drop: drop.size)

    def _uidl(self, argument: bytes) -> Iterator[Effect]:
        return self._listing(argument, "Unique-ids follow", lambda drop: drop.name)

    def _listing(self, argument: bytes, title: str, tell: Callable[[Drop], object]) -> Iterator[Effect]:
        if argument.strip():
            found, drop = self._maildrop.find(argument)
            return iter((ok(f"{found} {tell(drop)}"),))
        listing = lines(title, self._maildrop.rows(tell))
        return self._ask(Listing(listing.data), lambda part, more: iter((Send(part),)))

    def _retr(self, argument: bytes) -> Iterator[Effect]:
        _, drop = self._maildrop.find(argument)
        return self._ask(Retrieve(drop.uid), lambda part, more: self._part(f"{drop.size} octets", part, more))

    def _top(self, argument: bytes) -> Iterator[Effect]:
        words = argument.split()
        if len(words) != 2 or not is_number(words[1]):
            raise Wrong("Syntax: TOP message lines")
        _, drop = self._maildrop.find(words[0])
        return self._ask(
            Retrieve(drop.uid, int(words[1])),
            lambda part, more: self._part("Top of the message follows", part, more),
        )

    def _part(self, title: str, part: bytes | Refusal, more: bool) -> Iterator[Effect]:
        if isinstance(part, Refusal):
            yield err(part)
            return
        begin = b""
        if not self._begun:
            begin = ok(title).data
            self._stuffer = Stuffer()
        yield Send(begin + self._stuffer.feed(part) + (b"" if more else self._stuffer.finish()))

    def _dele(self, argument: bytes) -> Iterator[Effect]:
        yield ok(f"Message {self._maildrop.delete(argument)} will be deleted at QUIT")

    def _rset(self, argument: bytes) -> Iterator[Effect]:
        self._maildrop.undelete()
        yield ok(f"{self._maildrop} in the maildrop")

    def _noop(self, argument: bytes) -> Iterator[Effect]:
        yield ok("Still here")

    def _quit(self, argument: bytes) -> Iterator[Effect]:
        self._state = State.UPDATE  # RFC 1939 §6
        if not self._maildrop.deleted:
            return self._bye(None, False)
        return self._ask(Update(self._maildrop.deleted), self._bye)

    def _bye(self, refusal: Refusal | None, more: bool) -> Iterator[Effect]:
        yield ok("Bye") if refusal is None else err(refusal)
        yield from self._end()

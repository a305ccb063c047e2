"""The SMTP server core: octets in, effects out. RFC 5321, 1870, 2034, 2920, 3207, 4954, 6152.

It knows the language and its order; what it can't know (who may send, who exists, where a message goes) it asks:
see `core.smtp.questions`. Which command is allowed in which state stands in one table, `_ALLOWED`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from twisted_mta.core import sasl
from twisted_mta.core.effects import Ask, BodyChunk, Close, Effect, Send, StartTLS
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp import questions as q
from twisted_mta.core.smtp.commands import (
    MAX_LINE,
    Command,
    CommandError,
    parse_mail,
    parse_rcpt,
    syntax_error,
)
from twisted_mta.core.smtp.data import DataReader

#: Octets of a line (or of a message over the limit) that are thrown away before the connection is cut.
MAX_GARBAGE = 1 << 20


@attrs.frozen(kw_only=True)
class ServerSettings:
    """What an SMTP server session is told about its listener. Sizes in octets."""

    hostname: str
    #: Text behind the host name in the greeting.
    greeting: str = ""
    size_limit: int = 52428800
    recipient_limit: int = 1000
    error_limit: int = 20
    #: Whether STARTTLS can be offered (it is not on a connection that has TLS already).
    tls_available: bool = False
    #: Whether AUTH is offered (under TLS only), and mail refused without it: the submission roles.
    submission: bool = False


class State(enum.Enum):
    """Where a session stands."""

    CONNECTED = "before HELO"
    READY = "no transaction"
    MAIL = "MAIL given"
    RCPT = "recipients given"
    DATA = "receiving a message"
    AUTH = "in a SASL exchange"
    TLS = "waiting for the handshake"
    CLOSED = "closed"


_GREETED = frozenset({State.READY, State.MAIL, State.RCPT})
_ALWAYS = _GREETED | {State.CONNECTED}
_HELO_FIRST = Reply(503, "5.5.1", "Send HELO or EHLO first")
_NESTED = Reply(503, "5.5.1", "A transaction is open: finish it or send RSET")

#: Command -> (states in which it is allowed, what is answered elsewhere). RFC 5321 §4.1.4.
_ALLOWED: Mapping[str, tuple[frozenset[State], Reply]] = {
    "HELO": (_ALWAYS, _HELO_FIRST),
    "EHLO": (_ALWAYS, _HELO_FIRST),
    "MAIL": (frozenset({State.READY}), _NESTED),
    "RCPT": (frozenset({State.MAIL, State.RCPT}), Reply(503, "5.5.1", "Send MAIL first")),
    "DATA": (frozenset({State.RCPT}), Reply(503, "5.5.1", "Send MAIL and RCPT first")),
    "RSET": (_ALWAYS, _HELO_FIRST),
    "NOOP": (_ALWAYS, _HELO_FIRST),
    "QUIT": (_ALWAYS, _HELO_FIRST),
    "HELP": (_ALWAYS, _HELO_FIRST),
    "VRFY": (_ALWAYS, _HELO_FIRST),
    "STARTTLS": (_ALWAYS, _HELO_FIRST),
    "AUTH": (frozenset({State.READY}), _NESTED),
}

_OK = Reply(250, "2.0.0", "OK")
_GO_AHEAD = Reply(354, "", "Send the message; end it with <CR><LF>.<CR><LF>")
_LINE_TOO_LONG = Reply(500, "5.5.2", f"Line longer than {MAX_LINE} octets")
_FAULT = Reply(451, "4.3.0", "Something went wrong here; try again later")
_BARE_NEWLINE = Reply(554, "5.6.0", "Message has a CR or LF that stands alone; lines must end with CRLF")
_AUTH_FAILED = Reply(535, "5.7.8", "Authentication failed: login or password is wrong")


class SmtpServer:
    """One session; implements `core.effects.Core`."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._state = State.CONNECTED
        self._tls = False
        self._esmtp = False
        self._authenticated = False
        self._envelope = Envelope(None)
        self._buffer = b""
        self._discarded = 0
        self._errors = 0
        self._shutting_down = False
        self._data = DataReader()
        self._mechanism: tuple[str, sasl.Mechanism] | None = None
        #: Takes the answer to the open Ask; None when none is open.
        self._asked: Callable[[Any], Iterator[Effect]] | None = None
        self._handlers: Mapping[str, Callable[[str], Iterator[Effect]]] = {
            "HELO": self._helo,
            "EHLO": self._ehlo,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data_command,
            "RSET": self._rset,
            "NOOP": lambda _: self._reply(_OK),
            "QUIT": self._quit,
            "HELP": self._help,
            "VRFY": self._vrfy,
            "STARTTLS": self._starttls,
            "AUTH": self._auth,
        }

    # --- core.effects.Core ---------------------------------------------------------------------

    def greet(self) -> list[Effect]:
        """See Core."""
        return list(self._ask(q.Connected(), self._connected))

    def receive(self, data: bytes) -> list[Effect]:
        """See Core."""
        if self._state in (State.CLOSED, State.TLS):
            return []
        self._buffer += data
        return list(self._run())

    def answer(self, answer: Any, *, more: bool = False) -> list[Effect]:
        """See Core. No answer here comes in parts."""
        if self._asked is None or more:
            raise RuntimeError("no question is open, or it has no answer in parts")
        then, self._asked = self._asked, None
        effects = list(then(answer))
        if self._shutting_down:
            self._state = State.CLOSED  # whatever the answer began
        return [*effects, *self._run()]

    def fault(self) -> list[Effect]:
        """See Core."""
        if self._asked is None:
            raise RuntimeError("no question is open")
        self._asked = None
        if self._state is State.DATA:
            self._reset()
        elif self._state is State.AUTH:
            self._state = State.READY
        return [*self._reply(_FAULT), *self._run()]

    def secured(self) -> list[Effect]:
        """See Core."""
        # RFC 3207 §4.2: the session begins anew, and nothing learnt in the clear is kept.
        self._tls = True
        self._state = State.CONNECTED
        self._esmtp = False
        self._buffer = b""
        return []

    def timed_out(self) -> list[Effect]:
        """See Core."""
        return list(
            self._close(Reply(421, "4.4.2", f"{self._settings.hostname} Timeout, closing the connection"))
        )

    def shut_down(self) -> list[Effect]:
        """See Core."""
        # RFC 5321 §3.8: 421 may be sent at any time. An open question is still answered before it.
        self._shutting_down = True
        return list(
            self._close(Reply(421, "4.3.2", f"{self._settings.hostname} Shutting down, try again later"))
        )

    # --- input ---------------------------------------------------------------------------------

    def _run(self) -> Iterator[Effect]:
        """Work off the buffer until it needs more input, an answer, or the session is over."""
        while self._asked is None and self._buffer and self._state not in (State.CLOSED, State.TLS):
            if self._state is State.DATA:
                yield from self._read_data()
                continue
            end = self._buffer.find(b"\n")
            if end < 0:
                yield from self._bound_line()
                return
            # RFC 5321 §2.3.8 wants CRLF; a bare LF ends a command too, for those who type by hand. Not so in a message.
            line = self._buffer[:end].removesuffix(b"\r")
            self._buffer = self._buffer[end + 1 :]
            too_long = self._discarded or len(line) > MAX_LINE
            self._discarded = 0
            if too_long:
                if self._state is State.AUTH:
                    self._state = State.READY  # RFC 4954 §4: and the exchange is over
                yield from self._error(_LINE_TOO_LONG)
            else:
                yield from self._line(line)

    def _bound_line(self) -> Iterator[Effect]:
        """The buffer is the beginning of a line: throw it away where it can't become a good one."""
        if len(self._buffer) > MAX_LINE + 1:
            self._discarded += len(self._buffer)
            self._buffer = b""
            if self._discarded > MAX_GARBAGE:
                yield from self._close(Reply(421, "4.7.0", "Too much input without a line end"))

    def _line(self, line: bytes) -> Iterator[Effect]:
        if self._state is State.AUTH:
            yield from self._auth_response(line)
            return
        try:
            command = Command.parse(line)
            handler = self._handlers.get(command.verb)
            if handler is None:
                # RFC 5321 §4.2.4: 500 for a command that is not recognised.
                raise CommandError(Reply(500, "5.5.1", f"Unknown command {command.verb[:20]!r}"))
            allowed, refusal = _ALLOWED[command.verb]
            if self._state not in allowed:
                raise CommandError(_HELO_FIRST if self._state is State.CONNECTED else refusal)
            yield from handler(command.argument)
        except CommandError as error:
            yield from self._error(error.reply)

    # --- output --------------------------------------------------------------------------------

    def _reply(self, reply: Reply) -> Iterator[Effect]:
        yield Send(reply.encode())
        if reply.code == 421:
            # RFC 5321 §4.2.3: 421 tells that the channel closes, whoever decided it.
            yield from self._end()

    def _error(self, reply: Reply) -> Iterator[Effect]:
        """A wrong command: answered, counted, and only too many of them end the session."""
        self._errors += 1
        if self._errors > self._settings.error_limit:
            reply = Reply(421, "4.7.0", f"{self._settings.hostname} Too many errors, closing the connection")
        yield from self._reply(reply)

    def _close(self, reply: Reply) -> Iterator[Effect]:
        yield Send(reply.encode())
        yield from self._end()

    def _end(self) -> Iterator[Effect]:
        self._state = State.CLOSED
        self._buffer = b""
        yield Close()

    def _ask(self, question: q.Question, then: Callable[[Any], Iterator[Effect]]) -> Iterator[Effect]:
        self._asked = then
        yield Ask(question)

    def _reset(self) -> None:
        self._envelope = Envelope(None)
        if self._state is not State.CLOSED:
            self._state = State.READY

    # --- greeting ------------------------------------------------------------------------------

    def _connected(self, refusal: Reply | None) -> Iterator[Effect]:
        if refusal is not None:
            yield from self._close(refusal)
            return
        text = f"{self._settings.hostname} ESMTP {self._settings.greeting}".rstrip()
        yield Send(f"220 {text}\r\n".encode())

    def _helo(self, argument: str) -> Iterator[Effect]:
        return self._hello(argument, esmtp=False)

    def _ehlo(self, argument: str) -> Iterator[Effect]:
        return self._hello(argument, esmtp=True)

    def _hello(self, argument: str, *, esmtp: bool) -> Iterator[Effect]:
        name = argument.split(" ", 1)[0]
        if not name or len(name) > 255:
            raise syntax_error(f"Syntax: {'EHLO' if esmtp else 'HELO'} your-host-name")

        def then(refusal: Reply | None) -> Iterator[Effect]:
            if refusal is not None:
                yield from self._reply(refusal)
                return
            self._esmtp = esmtp
            self._reset()  # RFC 5321 §4.1.4: EHLO in a session has the effect of RSET
            lines = [f"{self._settings.hostname} greets {name}", *(self._extensions() if esmtp else ())]
            yield Send(Reply(250, "", "\n".join(lines)).encode())

        return self._ask(q.Hello(name, esmtp), then)

    def _extensions(self) -> Iterator[str]:
        yield "PIPELINING"
        yield f"SIZE {self._settings.size_limit}"
        yield "8BITMIME"
        yield "ENHANCEDSTATUSCODES"
        if self._settings.tls_available and not self._tls:  # RFC 3207 §4.2: not again after the handshake
            yield "STARTTLS"
        if self._settings.submission and self._tls:
            yield "AUTH " + " ".join(sasl.MECHANISMS)

    # --- the transaction -----------------------------------------------------------------------

    def _mail(self, argument: str) -> Iterator[Effect]:
        if self._settings.submission and not self._authenticated:
            # RFC 4954 §6, and RFC 6409 §4.3: submission is for those who log in.
            hint = "Log in first" if self._tls else "Send STARTTLS and log in first"
            yield from self._error(Reply(530, "5.7.0", hint))
            return
        path = parse_mail(argument)
        envelope = Envelope(path.address)
        for name, value in path.parameters.items():
            envelope = self._mail_parameter(envelope, name, value)
        if path.address is not None and not path.address.domain:
            raise CommandError(Reply(553, "5.1.7", "The sender needs a domain: <user@example.org>"))

        def then(reply: Reply) -> Iterator[Effect]:
            if reply.positive:
                self._envelope = envelope
                self._state = State.MAIL
            yield from self._reply(reply)

        yield from self._ask(q.MailFrom(envelope), then)

    def _mail_parameter(self, envelope: Envelope, name: str, value: str) -> Envelope:
        if not self._esmtp:
            # RFC 5321 §4.1.1.11: parameters only after EHLO.
            raise CommandError(Reply(555, "5.5.4", "Parameters need EHLO"))
        match name:
            case "SIZE":
                if not value.isascii() or not value.isdigit() or len(value) > 20:
                    raise syntax_error("SIZE is a number of octets")
                if int(value) > self._settings.size_limit:  # RFC 1870 §6.1
                    raise CommandError(self._too_big())
                return attrs.evolve(envelope, declared_size=int(value))
            case "BODY":
                body = value.upper()
                if body not in ("7BIT", "8BITMIME"):  # RFC 6152 §2
                    raise syntax_error("BODY is 7BIT or 8BITMIME")
                return attrs.evolve(envelope, body=body)
            case "AUTH":
                return envelope  # RFC 4954 §5: whoever it names, we vouch for nobody; it is as AUTH=<>
        raise CommandError(Reply(555, "5.5.4", f"Parameter {name[:20]} is not supported"))

    def _rcpt(self, argument: str) -> Iterator[Effect]:
        path = parse_rcpt(argument)
        if path.parameters:
            raise CommandError(
                Reply(555, "5.5.4", f"Parameter {next(iter(path.parameters))[:20]} is not supported")
            )
        if len(self._envelope.recipients) >= self._settings.recipient_limit:
            # RFC 5321 §4.5.3.1.10: 452, and the client sends the rest in another transaction.
            yield from self._reply(
                Reply(452, "4.5.3", "Too many recipients in one transaction, send the rest in another")
            )
            return
        assert path.address is not None  # parse_rcpt gives an address
        recipient = Recipient(path.address)

        def then(reply: Reply) -> Iterator[Effect]:
            if reply.positive:
                self._envelope = attrs.evolve(
                    self._envelope, recipients=(*self._envelope.recipients, recipient)
                )
                self._state = State.RCPT
            yield from self._reply(reply)

        yield from self._ask(q.RcptTo(self._envelope, recipient), then)

    def _data_command(self, argument: str) -> Iterator[Effect]:
        if argument:
            raise syntax_error("Syntax: DATA")

        def then(refusal: Reply | None) -> Iterator[Effect]:
            if refusal is not None:
                yield from self._reply(refusal)
                return
            self._data = DataReader()
            self._state = State.DATA
            yield from self._reply(_GO_AHEAD)

        yield from self._ask(q.BeginMessage(self._envelope), then)

    def _read_data(self) -> Iterator[Effect]:
        piece, self._buffer = self._data.feed(self._buffer)
        refusal = None
        if self._data.size > self._settings.size_limit:
            refusal = self._too_big()  # RFC 1870 §6.3: refused at the end, whatever was declared
            if self._data.size > 2 * self._settings.size_limit + MAX_GARBAGE:
                yield from self._close(
                    Reply(421, "4.3.4", "Message is far over the size limit, closing the connection")
                )
                return
        elif self._data.bare_newline:
            refusal = _BARE_NEWLINE
        elif piece:
            yield BodyChunk(piece)
        if self._data.done:
            yield from self._ask(q.EndMessage(refusal), self._message_done)

    def _message_done(self, reply: Reply) -> Iterator[Effect]:
        self._reset()
        yield from self._reply(reply)

    def _too_big(self) -> Reply:
        return Reply(552, "5.3.4", f"Message is bigger than the limit of {self._settings.size_limit} octets")

    # --- the small commands --------------------------------------------------------------------

    def _rset(self, argument: str) -> Iterator[Effect]:
        if self._state is not State.CONNECTED:
            self._reset()
        yield from self._reply(_OK)

    def _quit(self, argument: str) -> Iterator[Effect]:
        yield from self._close(Reply(221, "2.0.0", f"{self._settings.hostname} closing the connection"))

    def _help(self, argument: str) -> Iterator[Effect]:
        yield from self._reply(
            Reply(214, "2.0.0", "Commands: " + " ".join(self._handlers) + "\nSee RFC 5321")
        )

    def _vrfy(self, argument: str) -> Iterator[Effect]:
        if not argument:
            raise syntax_error("Syntax: VRFY address")
        yield from self._ask(q.Verify(argument), self._reply)

    # --- TLS and AUTH --------------------------------------------------------------------------

    def _starttls(self, argument: str) -> Iterator[Effect]:
        if argument:
            raise syntax_error("Syntax: STARTTLS")
        if self._tls:
            raise CommandError(Reply(503, "5.5.1", "TLS is active already"))
        if not self._settings.tls_available:
            raise CommandError(Reply(502, "5.5.1", "STARTTLS is not offered here"))
        yield from self._reply(Reply(220, "2.0.0", "Go ahead with TLS"))
        # RFC 3207 §4.2: what the client sent before the handshake must have no effect after it.
        self._buffer = b""
        self._envelope = Envelope(None)
        self._state = State.TLS
        yield StartTLS()

    def _auth(self, argument: str) -> Iterator[Effect]:
        if not self._settings.submission:
            raise CommandError(Reply(502, "5.5.1", "AUTH is not offered here; use the submission port"))
        if not self._tls:
            # RFC 4954 §4: no mechanism of ours may be used without TLS.
            raise CommandError(
                Reply(538, "5.7.11", "Send STARTTLS first: passwords never travel in the clear")
            )
        if self._authenticated:
            raise CommandError(Reply(503, "5.5.1", "You are logged in already"))
        name, _, initial = argument.partition(" ")
        make = sasl.MECHANISMS.get(name.upper())
        if make is None:
            raise CommandError(Reply(504, "5.5.4", "Mechanisms offered: " + " ".join(sasl.MECHANISMS)))
        self._mechanism = (name.upper(), make())
        # RFC 4954 §4: "=" is an initial response of no octets.
        yield from self._auth_step(None if not initial else b"" if initial == "=" else initial.encode())

    def _auth_response(self, line: bytes) -> Iterator[Effect]:
        self._state = State.READY
        if line == b"*":  # RFC 4954 §4: the client cancels
            yield from self._error(Reply(501, "5.7.0", "Authentication cancelled"))
            return
        yield from self._auth_step(line)

    def _auth_step(self, response: bytes | None) -> Iterator[Effect]:
        assert self._mechanism is not None  # set by AUTH, the only way here
        name, mechanism = self._mechanism
        try:
            step = mechanism.step(sasl.decode_base64(response) if response is not None else None)
        except sasl.SaslError as error:
            yield from self._error(Reply(501, "5.5.2", f"Authentication failed: {error}"))
            return
        self._state = State.AUTH
        if isinstance(step, sasl.Challenge):
            yield Send(b"334 " + sasl.encode_base64(step.data) + b"\r\n")
        else:
            yield from self._ask(q.Authenticate(name, step), self._authenticated_as)

    def _authenticated_as(self, success: bool | Reply) -> Iterator[Effect]:
        self._state = State.READY
        if isinstance(success, Reply):
            yield from self._reply(success)
            return
        if not success:
            yield from self._error(_AUTH_FAILED)  # RFC 4954 §6
            return
        self._authenticated = True
        yield from self._reply(Reply(235, "2.7.0", "You are logged in"))

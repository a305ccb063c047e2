"""The SMTP and LMTP server core: octets in, effects out. RFC 5321, 2033, 3030, 3207, 4954, 6531 and others.

It knows the language and its order; what it can't know (who may send, who exists, where a message goes) it asks:
see `core.smtp.questions`. Which command is allowed in which state stands in one table in `core.smtp.states`; what
the parameters of MAIL and RCPT mean in `core.smtp.parameters`; which extensions are offered in `core.smtp.settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.effects import NO_BINDINGS, Ask, BodyChunk, Close, Effect, Pace, Send, StartTLS
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp import auth
from twisted_mta.core.smtp import questions as q
from twisted_mta.core.smtp.body import Body
from twisted_mta.core.smtp.commands import (
    MAX_LINE,
    Command,
    CommandError,
    parse_chunk,
    parse_mail,
    parse_rcpt,
    parse_xclient,
    syntax_error,
)
from twisted_mta.core.smtp.data import ChunkReader, DataReader
from twisted_mta.core.smtp.lines import LineBuffer, LineTooLong
from twisted_mta.core.smtp.parameters import Context, read_mail, read_rcpt, too_big
from twisted_mta.core.smtp.settings import Audience, Role, ServerSettings, extensions
from twisted_mta.core.smtp.states import DEAF, ENVELOPE_FIRST, HELO_FIRST, ONGOING, State, misplaced, pace

_OK = Reply(250, "2.0.0", "OK")
_GO_AHEAD = Reply(354, "", "Send the message; end it with <CR><LF>.<CR><LF>")
_LINE_TOO_LONG = Reply(500, "5.5.2", f"Line longer than {MAX_LINE} octets")
#: RFC 5321 §7.3: where the commands are not for a client, it is told neither that an address exists nor that it does not.
_NOT_VERIFIED = Reply(252, "2.1.5", "Send the mail and we will try")
_NOT_EXPANDED = Reply(252, "2.1.5", "Not expanded for you; send the mail and we will try")
_FAULT = Reply(451, "4.3.0", "Something went wrong here; try again later")


class SmtpServer:
    """One session; implements `core.effects.Core`. `seconds` tells the Unix time."""

    def __init__(self, settings: ServerSettings, seconds: Callable[[], float] = lambda: 0.0) -> None:
        self._settings = settings
        self._seconds = seconds
        self._state = State.CONNECTED
        self._tls = False
        #: The keywords offered; none after HELO.
        self._offered: frozenset[str] = frozenset()
        self._login = auth.Login(settings.scram)
        self._trusted = settings.trusted
        self._envelope = Envelope(None)
        self._transactions = 0
        self._input = LineBuffer()
        #: What the client has begun so far: commands, and with them messages and logins.
        self._begun = 0
        self._errors = 0
        self._shutting_down = False
        self._body: Body
        #: Where the chunks of BDAT end; None for a message after DATA.
        self._chunks: ChunkReader | None = None
        #: Whether BeginMessage was granted, and neither EndMessage nor DropMessage followed yet.
        self._message_open = False
        #: The state to return to when a chunk was refused.
        self._outside = State.READY
        #: Takes the answer to the open Ask; None when none is open.
        self._asked: Callable[[Any], Iterator[Effect]] | None = None
        # RFC 2033 §4.1: LMTP says LHLO, and knows neither HELO nor EHLO.
        hello = (
            {"LHLO": self._ehlo} if settings.role is Role.LMTP else {"HELO": self._helo, "EHLO": self._ehlo}
        )
        self._handlers: Mapping[str, Callable[[str], Iterator[Effect]]] = {
            **hello,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "BDAT": self._bdat,
            "RSET": self._rset,
            "NOOP": lambda _: self._reply(_OK),
            "QUIT": self._quit,
            "HELP": self._help,
            "VRFY": self._vrfy,
            "EXPN": self._expn,
            "STARTTLS": self._starttls,
            "AUTH": self._auth,
            **({"XCLIENT": self._xclient} if settings.xclient else {}),
        }

    # --- core.effects.Core ---------------------------------------------------------------------

    @property
    def pace(self) -> Pace:
        """See Core."""
        return pace(self._state, self._settings.times, self._begun)

    def greet(self) -> list[Effect]:
        """See Core."""
        return list(self._ask(q.Connected(), self._connected))

    def receive(self, data: bytes) -> list[Effect]:
        """See Core."""
        if self._state in DEAF:
            return []
        self._input.data += data
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
        if self._state is State.BODY and not self._body.done:
            self._body.refuse(_FAULT)  # the octets of the chunk are still to come
            return list(self._run())
        # Between chunks a message is open, but while it is being dropped: then it is gone, and its chunks with it.
        dropping = self._state is State.CHUNKS and not self._message_open
        if self._state is State.BODY or dropping:
            self._reset()
        elif self._state is State.AUTH:
            self._state = State.READY
        return [*self._reply(_FAULT), *self._run()]

    def secured(self, bindings: Mapping[str, bytes] = NO_BINDINGS) -> list[Effect]:
        """See Core."""
        self._login = auth.Login(self._settings.scram, bindings)
        # RFC 3207 §4.2: the session begins anew, and nothing learnt in the clear is kept.
        self._tls = True
        self._state = State.CONNECTED
        self._offered = frozenset()
        self._input.clear()
        return []

    def timed_out(self) -> list[Effect]:
        """See Core."""
        return list(self._close(self._last_words("4.4.2", "Timeout, closing the connection")))

    def shut_down(self) -> list[Effect]:
        """See Core."""
        # RFC 5321 §3.8: 421 may be sent at any time. An open question is still answered before it.
        self._shutting_down = True
        return list(self._close(self._last_words("4.3.2", "Shutting down, try again later")))

    # --- input ---------------------------------------------------------------------------------

    def _run(self) -> Iterator[Effect]:
        """Work off the input until it needs more, an answer, or the session is over."""
        while self._asked is None and self._state not in DEAF:
            if self._state is State.BODY:
                if not self._input.data and not self._body.done:
                    return
                yield from self._read_body()
                continue
            try:
                line = self._input.line()
            except LineTooLong:
                if self._state is State.AUTH:
                    self._state = State.READY  # RFC 4954 §4: and the exchange is over
                yield from self._error(_LINE_TOO_LONG)
                continue
            if line is None:
                if self._input.flooded:
                    yield from self._close(Reply(421, "4.7.0", "Too much input without a line end"))
                return
            yield from self._line(line)

    def _line(self, line: bytes) -> Iterator[Effect]:
        if self._state not in ONGOING:
            self._begun += 1
        if self._state is State.AUTH:
            yield from self._auth_move(self._login.respond(line))
            return
        try:
            command = Command.parse(line)
            handler = self._handlers.get(command.verb)
            if handler is None:
                # RFC 5321 §4.2.4: 500 for a command that is not recognised.
                raise CommandError(Reply(500, "5.5.1", f"Unknown command {command.verb[:20]!r}"))
            refusal = misplaced(command.verb, self._state)
            if refusal is not None:
                raise CommandError(refusal)
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
            reply = self._last_words("4.7.0", "Too many errors, closing the connection")
        yield from self._reply(reply)

    def _last_words(self, status: str, text: str) -> Reply:
        return Reply(421, status, f"{self._settings.hostname} {text}")

    def _close(self, reply: Reply) -> Iterator[Effect]:
        yield Send(reply.encode())
        yield from self._end()

    def _end(self) -> Iterator[Effect]:
        self._state = State.CLOSED
        self._input.clear()
        yield Close()

    def _ask(self, question: q.Question, then: Callable[[Any], Iterator[Effect]]) -> Iterator[Effect]:
        self._asked = then
        yield Ask(question)

    def _reset(self) -> None:
        """The transaction is over."""
        self._envelope = Envelope(None)
        self._chunks = None
        self._message_open = False
        if self._state is not State.CLOSED:
            self._state = State.READY

    def _drop(self, then: Callable[[], Iterator[Effect]]) -> Iterator[Effect]:
        """Have a message that was begun forgotten, and go on."""
        if not self._message_open:
            return then()
        self._message_open = False
        return self._ask(q.DropMessage(), lambda _: then())

    # --- greeting ------------------------------------------------------------------------------

    def _connected(self, refusal: Reply | None) -> Iterator[Effect]:
        if refusal is not None:
            yield from self._close(refusal)
            return
        protocol = "LMTP" if self._settings.role is Role.LMTP else "ESMTP"
        text = f"{self._settings.hostname} {protocol} {self._settings.greeting}".rstrip()
        yield Send(f"220 {text}\r\n".encode())

    def _helo(self, argument: str) -> Iterator[Effect]:
        return self._hello(argument, extended=False)

    def _ehlo(self, argument: str) -> Iterator[Effect]:
        return self._hello(argument, extended=True)

    def _hello(self, argument: str, *, extended: bool) -> Iterator[Effect]:
        name = argument.split(" ", 1)[0]
        if not name or len(name) > 255:
            verb = ("LHLO" if self._settings.role is Role.LMTP else "EHLO") if extended else "HELO"
            raise syntax_error(f"Syntax: {verb} your-host-name")

        def then(refusal: Reply | None) -> Iterator[Effect]:
            if refusal is not None:
                yield from self._reply(refusal)
                return
            yield from self._drop(welcome)

        def welcome() -> Iterator[Effect]:
            offers = self._extensions() if extended else []
            self._offered = frozenset(offer.split(" ", 1)[0] for offer in offers)
            self._reset()  # RFC 5321 §4.1.4: EHLO in a session has the effect of RSET
            lines = [f"{self._settings.hostname} greets {name}", *offers]
            yield Send(Reply(250, "", "\n".join(lines)).encode())

        return self._ask(q.Hello(name, extended), then)

    def _extensions(self) -> list[str]:
        return extensions(
            self._settings,
            tls=self._tls,
            now=self._seconds(),
            mechanisms=self._login.mechanisms,
            expn=self._admitted(self._settings.expn),
        )

    # --- the envelope --------------------------------------------------------------------------

    def _context(self) -> Context:
        return Context(
            size_limit=self._settings.size_limit,
            offered=self._offered,
            now=self._seconds(),
            hold_limit=self._settings.hold_limit,
            deliver_by_minimum=self._settings.deliver_by_minimum,
        )

    def _mail(self, argument: str) -> Iterator[Effect]:
        if self._settings.submission and not self._login.done:
            # RFC 4954 §6, and RFC 6409 §4.3: submission is for those who log in.
            hint = "Log in first" if self._tls else "Send STARTTLS and log in first"
            raise CommandError(Reply(530, "5.7.0", hint))
        if self._settings.message_limit and self._transactions >= self._settings.message_limit:
            # RFC 9422 §4.1: it was told MAILMAX, or could have asked.
            yield from self._reply(self._last_words("4.7.0", "Too many messages in one session"))
            return
        path = parse_mail(argument)
        if path.parameters and not self._offered:
            # RFC 5321 §4.1.1.11: parameters only after EHLO.
            raise CommandError(Reply(555, "5.5.4", "Parameters need EHLO"))
        envelope = read_mail(Envelope(path.address), path.parameters, self._context())
        if path.address is not None and not path.address.domain:
            raise CommandError(Reply(553, "5.1.7", "The sender needs a domain: <user@example.org>"))
        _needs_ascii(path.address, envelope)

        def then(reply: Reply) -> Iterator[Effect]:
            if reply.positive:
                self._transactions += 1
                self._envelope = envelope
                self._state = State.MAIL
            yield from self._reply(reply)

        yield from self._ask(q.MailFrom(envelope), then)

    def _rcpt(self, argument: str) -> Iterator[Effect]:
        path = parse_rcpt(argument)
        assert path.address is not None  # parse_rcpt gives an address
        recipient = read_rcpt(Recipient(path.address), path.parameters, self._context())
        _needs_ascii(path.address, self._envelope)
        if len(self._envelope.recipients) >= self._settings.recipient_limit:
            # RFC 5321 §4.5.3.1.10: 452, and the client sends the rest in another transaction.
            text = "Too many recipients in one transaction, send the rest in another"
            yield from self._reply(Reply(452, "4.5.3", text))
            return

        def then(reply: Reply) -> Iterator[Effect]:
            if reply.positive:
                recipients = (*self._envelope.recipients, recipient)
                self._envelope = attrs.evolve(self._envelope, recipients=recipients)
                self._state = State.RCPT
            yield from self._reply(reply)

        yield from self._ask(q.RcptTo(self._envelope, recipient), then)

    # --- the message ---------------------------------------------------------------------------

    def _data(self, argument: str) -> Iterator[Effect]:
        if argument:
            raise syntax_error("Syntax: DATA")
        if self._envelope.body == "BINARYMIME":  # RFC 3030 §3
            raise CommandError(Reply(503, "5.5.1", "A BINARYMIME message needs BDAT"))

        def then(refusal: Reply | None) -> Iterator[Effect]:
            if refusal is not None:
                yield from self._reply(refusal)
                return
            self._message_open = True
            self._body = self._new_body(DataReader())
            self._state = State.BODY
            yield from self._reply(_GO_AHEAD)

        yield from self._ask(q.BeginMessage(self._envelope), then)

    def _bdat(self, argument: str) -> Iterator[Effect]:
        try:
            size, last = parse_chunk(argument)
        except CommandError as error:
            # A message may follow, and nobody can tell where it ends: none of it may be taken for commands.
            yield from self._close(attrs.evolve(error.reply, code=421, enhanced="4.5.4"))
            return
        before, self._state = self._state, State.BODY
        if self._chunks is None:
            self._chunks = ChunkReader()
            self._body = self._new_body(self._chunks)
        self._chunks.begin(size, last)
        if before not in (State.RCPT, State.CHUNKS):
            # RFC 3030 §2: what can't be taken is read all the same before it is refused.
            self._body.refuse(HELO_FIRST if before is State.CONNECTED else ENVELOPE_FIRST)
            self._outside = before
            return
        self._outside = State.BROKEN
        if self._body.size + size > self._settings.size_limit:
            self._body.refuse(too_big(self._settings.size_limit))
        elif before is State.RCPT:
            yield from self._ask(q.BeginMessage(self._envelope), self._first_chunk)

    def _first_chunk(self, refusal: Reply | None) -> Iterator[Effect]:
        self._message_open = refusal is None
        if refusal is not None:
            self._body.refuse(refusal)
        return iter(())

    def _new_body(self, reader: DataReader | ChunkReader) -> Body:
        binary = self._envelope.body == "BINARYMIME"
        return Body(reader, self._settings.size_limit, None if binary else self._settings.bare_newlines)

    def _read_body(self) -> Iterator[Effect]:
        body = self._body
        piece, self._input.data = body.feed(self._input.data)
        if body.flooded:
            text = "Message is far over the size limit, closing the connection"
            yield from self._close(Reply(421, "4.3.4", text))
            return
        if body.done and (self._chunks is None or self._chunks.last):
            piece += body.end()
        if piece:
            yield BodyChunk(piece)
        if body.done:
            yield from self._body_read(body)

    def _body_read(self, body: Body) -> Iterator[Effect]:
        """The octets announced, or the final dot, are here."""
        if self._chunks is not None:
            if body.refusal is not None:
                yield from self._chunk_refused(body.refusal)
                return
            if not self._chunks.last:
                self._state = State.CHUNKS
                yield from self._reply(Reply(250, "2.0.0", f"{body.size} octets received so far"))
                return
        self._message_open = False
        yield from self._ask(q.EndMessage(body.refusal), self._message_done)

    def _chunk_refused(self, refusal: Reply) -> Iterator[Effect]:
        """RFC 3030 §2: the transaction has failed; further chunks are read and refused until RSET."""

        def then() -> Iterator[Effect]:
            self._state = self._outside
            self._chunks = None
            yield from self._error(refusal) if self._outside is not State.BROKEN else self._reply(refusal)

        yield from self._drop(then)

    def _message_done(self, reply: Reply) -> Iterator[Effect]:
        # RFC 2033 §4.2: LMTP answers for each recipient. All of them are in one queue, so all fare alike.
        count = len(self._envelope.recipients) if self._settings.role is Role.LMTP else 1
        self._reset()
        for _ in range(count):
            yield from self._reply(reply)

    # --- the small commands --------------------------------------------------------------------

    def _rset(self, argument: str) -> Iterator[Effect]:
        def then() -> Iterator[Effect]:
            if self._state is not State.CONNECTED:
                self._reset()
            yield from self._reply(_OK)

        yield from self._drop(then)

    def _quit(self, argument: str) -> Iterator[Effect]:
        yield from self._close(Reply(221, "2.0.0", f"{self._settings.hostname} closing the connection"))

    def _help(self, argument: str) -> Iterator[Effect]:
        lines = ["Commands: " + " ".join(self._handlers), self._settings.help, "See RFC 5321"]
        yield from self._reply(Reply(214, "2.0.0", "\n".join(filter(None, lines))))

    def _vrfy(self, argument: str) -> Iterator[Effect]:
        if not argument:
            raise syntax_error("Syntax: VRFY address")
        if not self._admitted(self._settings.vrfy):
            return self._reply(_NOT_VERIFIED)
        return self._ask(q.Verify(argument), self._reply)

    def _expn(self, argument: str) -> Iterator[Effect]:
        if not argument:
            raise syntax_error("Syntax: EXPN address")
        if not self._admitted(self._settings.expn):
            return self._reply(_NOT_EXPANDED)
        return self._ask(q.Expand(argument), self._reply)

    def _admitted(self, audience: Audience) -> bool:
        return audience.admits(logged_in=self._login.done, trusted=self._trusted)

    def _xclient(self, argument: str) -> Iterator[Effect]:
        attributes = parse_xclient(argument)

        def then(standing: q.Standing | Reply) -> Iterator[Effect]:
            if isinstance(standing, Reply):
                yield from self._reply(standing)
                return
            # The session begins anew with the client that was named; a login was that of the one which speaks for it.
            self._reset()
            self._login.done, self._trusted = standing.logged_in, standing.trusted
            self._state = State.CONNECTED
            self._offered = frozenset()
            yield from self._ask(q.Connected(), self._connected)

        yield from self._ask(q.ClientIs(attributes), then)

    # --- TLS and AUTH --------------------------------------------------------------------------

    def _starttls(self, argument: str) -> Iterator[Effect]:
        if argument:
            raise syntax_error("Syntax: STARTTLS")
        if self._tls:
            raise CommandError(Reply(503, "5.5.1", "TLS is active already"))
        if not self._settings.tls_available:
            raise CommandError(Reply(502, "5.5.1", "STARTTLS is not offered here"))
        # RFC 3207 §4.2: what the client sent before the handshake must have no effect after it.
        yield from self._drop(self._begin_tls)

    def _begin_tls(self) -> Iterator[Effect]:
        yield from self._reply(Reply(220, "2.0.0", "Go ahead with TLS"))
        self._reset()
        self._input.clear()
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
        yield from self._auth_move(self._login.begin(argument))

    def _auth_move(self, move: auth.Move) -> Iterator[Effect]:
        self._state = State.READY if isinstance(move, auth.Over) else State.AUTH
        match move:
            case auth.Prompt(line):
                yield Send(line)
            case auth.Question(question):
                yield from self._ask(question, lambda answer: self._auth_move(self._login.answer(answer)))
            case auth.Over(reply, wrong):
                yield from self._error(reply) if wrong else self._reply(reply)


def _needs_ascii(address: Address | None, envelope: Envelope) -> None:
    """RFC 6531 §3.5: an address beyond ASCII is for transactions with SMTPUTF8 only."""
    if address is not None and not envelope.smtputf8 and not str(address).isascii():
        raise CommandError(Reply(553, "5.6.7", "Addresses beyond ASCII need the parameter SMTPUTF8 at MAIL"))

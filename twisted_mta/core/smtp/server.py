"""The SMTP and LMTP server core: octets in, effects out. RFC 5321, 2033, 3030, 3207, 4954, 6531 and others.

It knows the language and its order; what it can't know (who may send, who exists, where a message goes) it asks:
see `core.smtp.questions`. Which command is allowed in which state stands in one table in `core.smtp.states`; what
the parameters of MAIL and RCPT mean in `core.smtp.parameters`; which extensions are offered in `core.smtp.settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from twisted_mta.core.address import Address
from twisted_mta.core.effects import NO_BINDINGS, Effect, Pace, Send, StartTLS
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp import auth
from twisted_mta.core.smtp import questions as q
from twisted_mta.core.smtp.commands import (
    MAX_LINE,
    CommandError,
    parse_command,
    parse_lookup,
    parse_mail,
    parse_rcpt,
    parse_xclient,
    syntax_error,
)
from twisted_mta.core.smtp.lines import LineTooLong
from twisted_mta.core.smtp.parameters import Context, read_mail, read_rcpt
from twisted_mta.core.smtp.settings import NO_OFFERS, Audience, Offers, Role, ServerSettings, extensions
from twisted_mta.core.smtp.states import ALLOWED, DEAF, ONGOING, State, misplaced
from twisted_mta.core.smtp.talk import Talk
from twisted_mta.core.smtp.transfer import Transfer

_OK = Reply(250, "2.0.0", "OK")
_LINE_TOO_LONG = Reply(500, "5.5.2", f"Line longer than {MAX_LINE} octets")
_RESPONSE_TOO_LONG = Reply(500, "5.5.6", _LINE_TOO_LONG.text)  # RFC 4954 §4
#: RFC 5321 §7.3: where the commands are not for a client, it is told neither that an address exists nor that it does not.
_NOT_VERIFIED = Reply(252, "2.5.0", "Send the mail and we will try")
_NOT_EXPANDED = Reply(252, "2.5.0", "Not expanded for you; send the mail and we will try")
#: RFC 6531 §3.7.4.2: it is told only to who takes it.
_NOT_IN_ASCII = Reply(252, "2.6.8", "The answer is not ASCII; ask again with the parameter SMTPUTF8")

#: What is asked for each line: to get a member from its Enum costs as much as a call.
_AUTH, _BODY = State.AUTH, State.BODY


class SmtpServer:
    """One session; implements `core.effects.Core`. `seconds` tells the Unix time."""

    def __init__(self, settings: ServerSettings, seconds: Callable[[], float] = lambda: 0.0) -> None:
        self._settings = settings
        self._seconds = seconds
        self._talk = Talk(settings)
        self._transfer = Transfer(self._talk)
        self._tls = False
        #: The keywords offered; none after HELO.
        self._offered: frozenset[str] = frozenset()
        self._login = auth.Login(settings.scram)
        self._trusted = settings.trusted
        self._transactions = 0
        self._refused_recipients = 0
        #: See Core: commands, and with them messages and logins.
        self.begun = 0
        self._shutting_down = False
        self._commands = _TABLES[settings.role is Role.LMTP, settings.xclient]
        self._paces = settings.paces

    # --- core.effects.Core ---------------------------------------------------------------------

    @property
    def pace(self) -> Pace:
        """See Core."""
        return self._paces[self._talk.state]

    def greet(self) -> list[Effect]:
        """See Core."""
        self._talk.ask(q.Connected(), self._connected)
        return self._talk.take_effects()

    def receive(self, data: bytes) -> list[Effect]:
        """See Core."""
        talk = self._talk
        if talk.state in DEAF:
            return []
        talk.input.data += data
        self._run()
        return talk.take_effects()

    def answer(self, answer: Any, *, more: bool = False) -> list[Effect]:
        """See Core. No answer here comes in parts."""
        talk = self._talk
        then = talk.asked
        if then is None or more:
            raise RuntimeError("no question is open, or it has no answer in parts")
        talk.asked = None
        then(answer)
        if self._shutting_down:
            talk.state = State.CLOSED  # whatever the answer began
        if talk.input.data or talk.state is _BODY:
            self._run()
        return talk.take_effects()

    def fault(self) -> list[Effect]:
        """See Core."""
        if self._talk.asked is None:
            raise RuntimeError("no question is open")
        self._talk.asked = None
        reply = self._transfer.fault()
        if self._talk.state is _AUTH:
            self._talk.state = State.READY
        if reply is not None:
            self._talk.reply(reply)
        self._run()
        return self._talk.take_effects()

    def secured(self, bindings: Mapping[str, bytes] = NO_BINDINGS) -> list[Effect]:
        """See Core."""
        self._login = auth.Login(self._settings.scram, bindings)
        # RFC 3207 §4.2: the session begins anew, and nothing learnt in the clear is kept.
        self._tls = True
        self._talk.state = State.CONNECTED
        self._offered = frozenset()
        self._talk.input.clear()
        return []

    def timed_out(self) -> list[Effect]:
        """See Core."""
        self._talk.close(self._talk.last_words("4.4.2", "Timeout, closing the connection"))
        return self._talk.take_effects()

    def shut_down(self) -> list[Effect]:
        """See Core."""
        # RFC 5321 §3.8: 421 may be sent at any time. An open question is still answered before it.
        self._shutting_down = True
        self._talk.close(self._talk.last_words("4.3.2", "Shutting down, try again later"))
        return self._talk.take_effects()

    # --- input ---------------------------------------------------------------------------------

    def _run(self) -> None:
        """Work off the input until it needs more, an answer, or the session is over."""
        talk = self._talk
        while talk.asked is None and talk.state not in DEAF:
            if talk.state is _BODY:
                if self._transfer.waits:
                    return
                self._transfer.read()
                continue
            try:
                line = talk.input.line()
            except LineTooLong:
                talk.error(_RESPONSE_TOO_LONG if talk.state is _AUTH else _LINE_TOO_LONG)
                if talk.state is _AUTH:
                    talk.state = State.READY  # RFC 4954 §4: and the exchange is over
                continue
            if line is None:
                if talk.input.flooded:
                    talk.close(Reply(421, "4.7.0", "Too much input without a line end"))
                return
            self._line(line)

    def _line(self, line: bytes) -> None:
        state = self._talk.state
        if state not in ONGOING:
            self.begun += 1
        if state is _AUTH:
            self._auth_move(self._login.respond(line))
            return
        try:
            verb, argument = parse_command(line)
            perform = self._commands.get(verb)
            if perform is None:
                # RFC 5321 §4.2.4: 500 for a command that is not recognised.
                raise CommandError(Reply(500, "5.5.1", f"Unknown command {verb[:20]!r}"))
            if state not in ALLOWED[verb][0]:
                raise CommandError(misplaced(verb, state))
            perform(self, argument)
        except CommandError as error:
            self._talk.error(error.reply)

    # --- greeting ------------------------------------------------------------------------------

    def _connected(self, refusal: Reply | None) -> None:
        if refusal is not None:
            self._talk.close(refusal)
            return
        protocol = "LMTP" if self._settings.role is Role.LMTP else "ESMTP"
        text = f"{self._settings.hostname} {protocol} {self._settings.greeting}".rstrip()
        self._talk.effects.append(Send(f"220 {text}\r\n".encode()))

    def _helo(self, argument: str) -> None:
        self._hello(argument, extended=False)

    def _ehlo(self, argument: str) -> None:
        self._hello(argument, extended=True)

    def _hello(self, argument: str, *, extended: bool) -> None:
        name = argument.split(" ", 1)[0]
        if not name or len(name) > 255:
            verb = ("LHLO" if self._settings.role is Role.LMTP else "EHLO") if extended else "HELO"
            raise syntax_error(f"Syntax: {verb} your-host-name")

        def then(refusal: Reply | None) -> None:
            if refusal is not None:
                self._talk.reply(refusal)
                return
            self._transfer.drop(welcome)

        def welcome() -> None:
            offers = self._extensions() if extended else NO_OFFERS
            self._offered = offers.keywords
            self._transfer.reset()  # RFC 5321 §4.1.4: EHLO in a session has the effect of RSET
            self._talk.reply(Reply(250, "", f"{self._settings.hostname} greets {name}{offers.text}"))

        self._talk.ask(q.Hello(name, extended), then)

    def _extensions(self) -> Offers:
        return extensions(
            self._settings,
            tls=self._tls,
            now=self._seconds(),
            mechanisms=self._login.mechanisms if self._settings.submission else (),
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

    def _mail(self, argument: str) -> None:
        if self._settings.submission and not self._login.done:
            # RFC 4954 §6, and RFC 6409 §4.3: submission is for those who log in.
            hint = "Log in first" if self._tls else "Send STARTTLS and log in first"
            raise CommandError(Reply(530, "5.7.0", hint))
        if self._settings.message_limit and self._transactions >= self._settings.message_limit:
            # RFC 9422 §4.1: it was told MAILMAX, or could have asked.
            self._talk.reply(self._talk.last_words("4.7.0", "Too many messages in one session"))
            return
        sender, parameters = parse_mail(argument)
        envelope = Envelope(sender)
        if parameters:
            if not self._offered:
                # RFC 5321 §4.1.1.11: parameters only after EHLO.
                raise CommandError(Reply(555, "5.5.4", "Parameters need EHLO"))
            envelope = read_mail(envelope, parameters, self._context())
        if sender is not None and not sender.domain:
            raise CommandError(Reply(553, "5.1.7", "The sender needs a domain: <user@example.org>"))
        if not argument.isascii():
            _needs_ascii(sender, envelope)

        def then(reply: Reply) -> None:
            if reply.positive:
                self._transactions += 1
                self._talk.envelope = envelope
                self._talk.state = State.MAIL
            self._talk.reply(reply)

        self._talk.ask(q.MailFrom(envelope), then)

    def _rcpt(self, argument: str) -> None:
        talk = self._talk
        address, parameters = parse_rcpt(argument)
        recipient = Recipient(address)
        if parameters:
            recipient = read_rcpt(recipient, parameters, self._context())
        if not argument.isascii():
            _needs_ascii(address, talk.envelope)
        if len(talk.envelope.recipients) >= self._settings.recipient_limit:
            # RFC 5321 §4.5.3.1.10: 452, and the client sends the rest in another transaction.
            text = "Too many recipients in one transaction, send the rest in another"
            talk.reply(Reply(452, "4.5.3", text))
            return

        def then(reply: Reply) -> None:
            if reply.positive:
                talk.envelope = talk.envelope.adding(recipient)
                talk.state = State.RCPT
            elif reply.permanent and self._asks_too_much():
                reply = talk.last_words("4.7.0", "Too many recipients were refused, try again later")
            talk.reply(reply)

        talk.ask(q.RcptTo(talk.envelope, recipient), then)

    def _asks_too_much(self) -> bool:
        """Count one more recipient that does not exist: who tries names to find those that do should not be quick."""
        limit = self._settings.refusal_limit
        if not limit or self._trusted or self._login.done or self._settings.role is Role.LMTP:
            return False
        self._refused_recipients += 1
        return self._refused_recipients > limit

    def _data(self, argument: str) -> None:
        self._transfer.data(argument)

    def _bdat(self, argument: str) -> None:
        self._transfer.bdat(argument)

    # --- the small commands --------------------------------------------------------------------

    def _rset(self, argument: str) -> None:
        def then() -> None:
            if self._talk.state is not State.CONNECTED:
                self._transfer.reset()
            self._talk.reply(_OK)

        self._transfer.drop(then)

    def _noop(self, argument: str) -> None:
        self._talk.reply(_OK)

    def _quit(self, argument: str) -> None:
        self._talk.close(Reply(221, "2.0.0", f"{self._settings.hostname} closing the connection"))

    def _help(self, argument: str) -> None:
        lines = ["Commands: " + " ".join(self._commands), self._settings.help, "See RFC 5321"]
        self._talk.reply(Reply(214, "2.0.0", "\n".join(filter(None, lines))))

    def _vrfy(self, argument: str) -> None:
        name, utf8 = parse_lookup(argument, "VRFY")
        if not self._admitted(self._settings.vrfy):
            self._talk.reply(_NOT_VERIFIED)
            return
        self._talk.ask(q.Verify(name), partial(self._found, utf8))

    def _expn(self, argument: str) -> None:
        name, utf8 = parse_lookup(argument, "EXPN")
        if not self._admitted(self._settings.expn):
            self._talk.reply(_NOT_EXPANDED)
            return
        self._talk.ask(q.Expand(name), partial(self._found, utf8))

    def _found(self, utf8: bool, reply: Reply) -> None:
        """The answer to VRFY or EXPN; `utf8`: the client takes one beyond ASCII."""
        if reply.positive and not utf8 and not reply.text.isascii():
            reply = _NOT_IN_ASCII
        self._talk.reply(reply, utf8=utf8)

    def _admitted(self, audience: Audience) -> bool:
        return audience.admits(logged_in=self._login.done, trusted=self._trusted)

    def _xclient(self, argument: str) -> None:
        attributes = parse_xclient(argument)

        def then(standing: q.Standing | Reply) -> None:
            if isinstance(standing, Reply):
                self._talk.reply(standing)
                return
            # The session begins anew with the client that was named; a login was that of the one which speaks for it.
            self._transfer.reset()
            self._talk.idle = 0
            self._login.done, self._trusted = standing.logged_in, standing.trusted
            self._refused_recipients = 0
            self._talk.state = State.CONNECTED
            self._offered = frozenset()
            self._talk.ask(q.Connected(), self._connected)

        self._talk.ask(q.ClientIs(attributes), then)

    # --- TLS and AUTH --------------------------------------------------------------------------

    def _starttls(self, argument: str) -> None:
        if argument:
            raise syntax_error("Syntax: STARTTLS")
        if self._tls:
            raise CommandError(Reply(503, "5.5.1", "TLS is active already"))
        if not self._settings.tls_available:
            raise CommandError(Reply(502, "5.5.1", "STARTTLS is not offered here"))
        # RFC 3207 §4.2: what the client sent before the handshake must have no effect after it.
        self._transfer.drop(self._begin_tls)

    def _begin_tls(self) -> None:
        self._talk.reply(Reply(220, "2.0.0", "Go ahead with TLS"))
        self._transfer.reset()
        self._talk.input.clear()
        self._talk.state = State.TLS
        self._talk.effects.append(StartTLS())

    def _auth(self, argument: str) -> None:
        if not self._settings.submission:
            raise CommandError(Reply(502, "5.5.1", "AUTH is not offered here; use the submission port"))
        if not self._tls:
            # RFC 4954 §4: no mechanism of ours may be used without TLS.
            raise CommandError(
                Reply(538, "5.7.11", "Send STARTTLS first: passwords never travel in the clear")
            )
        self._auth_move(self._login.begin(argument))

    def _auth_move(self, move: auth.Move) -> None:
        self._talk.state = State.READY if isinstance(move, auth.Over) else State.AUTH
        match move:
            case auth.Prompt(line):
                self._talk.effects.append(Send(line))
            case auth.Question(question):
                self._talk.ask(question, lambda answer: self._auth_move(self._login.answer(answer)))
            case auth.Over(reply, wrong=True):
                self._talk.error(reply)
            case _:
                self._talk.reply(move.reply)


def _needs_ascii(address: Address | None, envelope: Envelope) -> None:
    """RFC 6531 §3.5: an address beyond ASCII is for transactions with SMTPUTF8 only."""
    if address is not None and not address.is_ascii and not envelope.smtputf8:
        raise CommandError(Reply(553, "5.6.7", "Addresses beyond ASCII need the parameter SMTPUTF8 at MAIL"))


_Perform = Callable[[SmtpServer, str], None]


def _idle(perform: _Perform) -> _Perform:
    """The same for a command that brings no message forward: a client may not go on with those for ever."""

    def counted(server: SmtpServer, argument: str) -> None:
        if server._talk.count_idle():
            perform(server, argument)

    return counted


def _table(*, lmtp: bool, xclient: bool) -> Mapping[str, _Perform]:
    """What performs each command that is known to such a listener."""
    # RFC 2033 §4.1: LMTP says LHLO, and knows neither HELO nor EHLO.
    ehlo = _idle(SmtpServer._ehlo)
    hello = {"LHLO": ehlo} if lmtp else {"HELO": _idle(SmtpServer._helo), "EHLO": ehlo}
    return {
        **hello,
        "MAIL": SmtpServer._mail,
        "RCPT": SmtpServer._rcpt,
        "DATA": SmtpServer._data,
        "BDAT": SmtpServer._bdat,
        "RSET": _idle(SmtpServer._rset),
        "NOOP": _idle(SmtpServer._noop),
        "QUIT": SmtpServer._quit,
        "HELP": _idle(SmtpServer._help),
        "VRFY": _idle(SmtpServer._vrfy),
        "EXPN": _idle(SmtpServer._expn),
        "STARTTLS": _idle(SmtpServer._starttls),
        "AUTH": _idle(SmtpServer._auth),
        **({"XCLIENT": SmtpServer._xclient} if xclient else {}),
    }


#: By whether it is LMTP, and whether XCLIENT is for this client.
_TABLES = {
    (lmtp, xclient): _table(lmtp=lmtp, xclient=xclient) for lmtp in (False, True) for xclient in (False, True)
}

"""Commands that need no mailbox: getting in, getting out, getting to know each other. RFC 3501 §6.1, §6.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted_mta.core.effects import Close, StartTLS
from twisted_mta.core.imap import questions as q
from twisted_mta.core.imap.grammar import BadSyntax, Scanner
from twisted_mta.core.imap.responses import quoted
from twisted_mta.core.imap.session import Session
from twisted_mta.core.imap.wire import Command, Event
from twisted_mta.core.sasl import (
    Cancelled,
    Challenge,
    Claim,
    Credentials,
    Done,
    Exchange,
    Lookup,
    SaslError,
    Step,
    encode_base64,
)

#: RFC 2971 §3.3.
_MAX_ID_FIELDS = 30


def capabilities(session: Session) -> bytes:
    """What we can do, as CAPABILITY and the response code list it."""
    words = [b"IMAP4rev1", b"LITERAL+", b"SASL-IR", b"ID"]
    if session.may_log_in:
        words += [b"AUTH=" + name.encode("ascii") for name in session.offer.names]
    else:
        words.append(b"LOGINDISABLED")  # RFC 3501 §6.2.3
    if session.offers_tls:
        words.append(b"STARTTLS")
    words += [b"IDLE", b"UIDPLUS", b"NAMESPACE", b"UNSELECT", b"CHILDREN"]
    words.append(b"APPENDLIMIT=%d" % session.settings.append_limit)  # RFC 7889 §2
    return b" ".join(words)


def capability(session: Session, scanner: Scanner) -> None:
    """RFC 3501 §6.1.1."""
    scanner.end()
    session.untagged(b"CAPABILITY " + capabilities(session))
    session.ok("that is all")


def noop(session: Session, scanner: Scanner) -> None:
    """NOOP and CHECK: what matters is what is told before the OK. RFC 3501 §6.1.2, §6.4.1."""
    scanner.end()
    session.ok("done")


def logout(session: Session, scanner: Scanner) -> None:
    """RFC 3501 §6.1.3."""
    scanner.end()
    session.untagged(b"BYE see you")
    session.ok("logged out")
    session.effect(Close())


def identify(session: Session, scanner: Scanner) -> None:
    """ID, RFC 2971: we tell our name, and do nothing with the client's."""
    scanner.space()
    if not scanner.take(b"NIL"):
        fields = 0
        words = scanner.items()
        for _ in words:
            scanner.string()
            scanner.space()
            scanner.nstring()
            fields += 1
        if fields > _MAX_ID_FIELDS:
            raise BadSyntax(f"more than {_MAX_ID_FIELDS} fields")
    scanner.end()
    session.untagged(b'ID ("name" ' + quoted(session.settings.name.encode("ascii")) + b")")
    session.ok("pleased to meet you")


def namespace(session: Session, scanner: Scanner) -> None:
    """RFC 2342: all mailboxes are the user's own, and stand at the top."""
    scanner.end()
    session.untagged(b'NAMESPACE (("" "/")) NIL NIL')
    session.ok("that is all")


def starttls(session: Session, scanner: Scanner) -> None:
    """RFC 3501 §6.2.1."""
    scanner.end()
    if not session.offers_tls:
        session.bad("TLS is not available, or there already")
        return
    session.ok("begin the handshake")
    session.begin_tls()
    session.effect(StartTLS())


def login(session: Session, scanner: Scanner) -> None:
    """RFC 3501 §6.2.3."""
    scanner.space()
    name = scanner.astring()
    scanner.space()
    password = scanner.astring()
    scanner.end()
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        _refuse_login(session)
        return
    _check(session, Credentials(text, password), lambda: _in(session))


def authenticate(session: Session, scanner: Scanner) -> None:
    """RFC 3501 §6.2.2, with the initial response of RFC 4959."""
    scanner.space()
    exchange = session.offer.begin(scanner.keyword().decode("ascii"))
    initial: bytes | None = None
    if not scanner.done:
        scanner.space()
        initial = scanner.rest()
    if exchange is None:
        session.no("there is no such mechanism")
        return
    _go_on(session, exchange, lambda: exchange.start(initial))


def _go_on(session: Session, exchange: Exchange, move: Callable[[], Step | Done]) -> None:
    """Make the next move of an exchange, and carry out the step that follows."""
    try:
        step = move()
    except Cancelled:
        session.bad("cancelled")
        return
    except SaslError as error:
        session.bad(str(error))
        return
    match step:
        case Challenge(data):
            session.continuation(encode_base64(data))
            session.listen(lambda event: _continued(session, exchange, event), raw=True)
        case Done():
            _in(session)
        case Lookup():
            session.ask(step, lambda secret: _go_on(session, exchange, lambda: exchange.answer(secret)))
        case _:
            _check(session, step, lambda: _go_on(session, exchange, lambda: exchange.answer(True)))


def _continued(session: Session, exchange: Exchange, event: Event) -> None:
    session.listen(None)
    if not isinstance(event, Command):
        session.bad("the response is too long")
        return
    line = event.data
    _go_on(session, exchange, lambda: exchange.respond(line))


def _check(session: Session, claim: Claim, then: Callable[[], None]) -> None:
    def answered(right: Any) -> None:
        if right:
            then()
        else:
            _refuse_login(session)

    session.ask(q.Login(claim), answered)


def _in(session: Session) -> None:
    session.ok("logged in", lambda: b"CAPABILITY " + capabilities(session))


def _refuse_login(session: Session) -> None:
    session.no("login or password is wrong", "AUTHENTICATIONFAILED")  # RFC 5530 §3
    session.login_failed()

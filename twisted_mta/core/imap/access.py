"""Commands that need no mailbox: getting in, getting out, getting to know each other. RFC 3501 §6.1, §6.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted_mta.core.effects import Close, StartTLS
from twisted_mta.core.imap import questions as q
from twisted_mta.core.imap.grammar import BadSyntax, Scanner
from twisted_mta.core.imap.responses import quoted
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

if TYPE_CHECKING:
    from twisted_mta.core.imap.server import ImapServer

#: RFC 2971 §3.3.
_MAX_ID_FIELDS = 30


def capabilities(server: ImapServer) -> bytes:
    """What we can do, as CAPABILITY and the response code list it."""
    words = [b"IMAP4rev1", b"LITERAL+", b"SASL-IR", b"ID"]
    if server.may_log_in:
        words += [b"AUTH=" + name.encode("ascii") for name in server.offer.names]
    else:
        words.append(b"LOGINDISABLED")  # RFC 3501 §6.2.3
    if server.offers_tls:
        words.append(b"STARTTLS")
    words += [b"IDLE", b"UIDPLUS", b"NAMESPACE", b"UNSELECT", b"CHILDREN"]
    words.append(b"APPENDLIMIT=%d" % server.settings.append_limit)  # RFC 7889 §2
    return b" ".join(words)


def capability(server: ImapServer, scanner: Scanner) -> None:
    """RFC 3501 §6.1.1."""
    scanner.end()
    server.untagged(b"CAPABILITY " + capabilities(server))
    server.ok("that is all")


def noop(server: ImapServer, scanner: Scanner) -> None:
    """NOOP and CHECK: what matters is what is told before the OK. RFC 3501 §6.1.2, §6.4.1."""
    scanner.end()
    server.ok("done")


def logout(server: ImapServer, scanner: Scanner) -> None:
    """RFC 3501 §6.1.3."""
    scanner.end()
    server.untagged(b"BYE see you")
    server.ok("logged out")
    server.effect(Close())


def identify(server: ImapServer, scanner: Scanner) -> None:
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
    server.untagged(b'ID ("name" ' + quoted(server.settings.name.encode("ascii")) + b")")
    server.ok("pleased to meet you")


def namespace(server: ImapServer, scanner: Scanner) -> None:
    """RFC 2342: all mailboxes are the user's own, and stand at the top."""
    scanner.end()
    server.untagged(b'NAMESPACE (("" "/")) NIL NIL')
    server.ok("that is all")


def starttls(server: ImapServer, scanner: Scanner) -> None:
    """RFC 3501 §6.2.1."""
    scanner.end()
    if not server.offers_tls:
        server.bad("TLS is not available, or there already")
        return
    server.ok("begin the handshake")
    server.begin_tls()
    server.effect(StartTLS())


def login(server: ImapServer, scanner: Scanner) -> None:
    """RFC 3501 §6.2.3."""
    scanner.space()
    name = scanner.astring()
    scanner.space()
    password = scanner.astring()
    scanner.end()
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        _refuse_login(server)
        return
    _check(server, Credentials(text, password), lambda: _in(server))


def authenticate(server: ImapServer, scanner: Scanner) -> None:
    """RFC 3501 §6.2.2, with the initial response of RFC 4959."""
    scanner.space()
    exchange = server.offer.begin(scanner.keyword().decode("ascii"))
    initial: bytes | None = None
    if not scanner.done:
        scanner.space()
        initial = scanner.rest()
    if exchange is None:
        server.no("there is no such mechanism")
        return
    _go_on(server, exchange, lambda: exchange.start(initial))


def _go_on(server: ImapServer, exchange: Exchange, move: Callable[[], Step | Done]) -> None:
    """Make the next move of an exchange, and carry out the step that follows."""
    try:
        step = move()
    except Cancelled:
        server.bad("cancelled")
        return
    except SaslError as error:
        server.bad(str(error))
        return
    match step:
        case Challenge(data):
            server.continuation(encode_base64(data))
            server.listen(lambda event: _continued(server, exchange, event), raw=True)
        case Done():
            _in(server)
        case Lookup():
            server.ask(step, lambda secret: _go_on(server, exchange, lambda: exchange.answer(secret)))
        case _:
            _check(server, step, lambda: _go_on(server, exchange, lambda: exchange.answer(True)))


def _continued(server: ImapServer, exchange: Exchange, event: Event) -> None:
    server.listen(None)
    if not isinstance(event, Command):
        server.bad("the response is too long")
        return
    line = event.data
    _go_on(server, exchange, lambda: exchange.respond(line))


def _check(server: ImapServer, claim: Claim, then: Callable[[], None]) -> None:
    def answered(right: Any) -> None:
        if right:
            then()
        else:
            _refuse_login(server)

    server.ask(q.Login(claim), answered)


def _in(server: ImapServer) -> None:
    server.ok("logged in", lambda: b"CAPABILITY " + capabilities(server))


def _refuse_login(server: ImapServer) -> None:
    server.no("login or password is wrong", "AUTHENTICATIONFAILED")  # RFC 5530 §3
    server.login_failed()

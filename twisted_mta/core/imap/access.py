"""Commands that need no mailbox: getting in, getting out, getting to know each other. RFC 3501 §6.1, §6.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted_mta.core.effects import Close, StartTLS
from twisted_mta.core.imap import questions as q
from twisted_mta.core.imap.grammar import BadSyntax, Scanner
from twisted_mta.core.imap.responses import quoted
from twisted_mta.core.imap.wire import Command, Event
from twisted_mta.core.sasl import (
    MECHANISMS,
    Challenge,
    Mechanism,
    SaslError,
    decode_base64,
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
        words += [b"AUTH=" + name.encode("ascii") for name in MECHANISMS]
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
    _check(server, text, password)


def authenticate(server: ImapServer, scanner: Scanner) -> None:
    """RFC 3501 §6.2.2, with the initial response of RFC 4959."""
    scanner.space()
    make = MECHANISMS.get(scanner.keyword().decode("ascii"))
    initial: bytes | None = None
    if not scanner.done:
        scanner.space()
        initial = scanner.rest()
    if make is None:
        server.no("there is no such mechanism")
        return
    mechanism = make()
    if initial is None:
        _step(server, mechanism, None)
    else:
        _respond(server, mechanism, b"" if initial == b"=" else initial)  # RFC 4959 §3


def _respond(server: ImapServer, mechanism: Mechanism, line: bytes) -> None:
    try:
        response = decode_base64(line)
    except SaslError as error:
        server.bad(str(error))
        return
    _step(server, mechanism, response)


def _step(server: ImapServer, mechanism: Mechanism, response: bytes | None) -> None:
    try:
        result = mechanism.step(response)
    except SaslError as error:
        server.bad(str(error))
        return
    if isinstance(result, Challenge):
        server.continuation(encode_base64(result.data))
        server.listen(lambda event: _continued(server, mechanism, event), raw=True)
    else:
        _check(server, result.login, result.password)


def _continued(server: ImapServer, mechanism: Mechanism, event: Event) -> None:
    server.listen(None)
    if not isinstance(event, Command):
        server.bad("the response is too long")
    elif event.data == b"*":  # RFC 3501 §6.2.2
        server.bad("cancelled")
    else:
        _respond(server, mechanism, event.data)


def _check(server: ImapServer, name: str, password: bytes) -> None:
    def answered(right: bool) -> None:
        if not right:
            _refuse_login(server)
            return
        server.ok("logged in", lambda: b"CAPABILITY " + capabilities(server))

    server.ask(q.Login(name, password), answered)


def _refuse_login(server: ImapServer) -> None:
    server.no("login or password is wrong", "AUTHENTICATIONFAILED")  # RFC 5530 §3
    server.login_failed()

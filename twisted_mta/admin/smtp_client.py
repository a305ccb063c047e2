"""Hands a message to a listener of this machine's server over SMTP. Blocking; for `mta sendmail` only."""

from __future__ import annotations

import contextlib
import os
import select
import smtplib
import socket
from collections.abc import Sequence

import attrs

from twisted_mta.admin.errors import EX_CONFIG, EX_OK, EX_TEMPFAIL, AdminError
from twisted_mta.config.endpoints import split_endpoint
from twisted_mta.config.schema import Config, Role
from twisted_mta.core.address import Address

#: Seconds for one answer of the server; it may wait for the disk.
TIMEOUT = 300.0
#: Seconds that -bs waits for more answers after the end of its input.
LINGER = 10.0

#: (host, port) or the path of a UNIX socket.
Listener = tuple[str, int] | str


@attrs.define
class Outcome:
    """How it ended: `error` "" means that the message was taken, but for the `refused` recipients."""

    error: str = ""
    #: Whether trying again may help; nothing was sent then.
    temporary: bool = False
    refused: list[tuple[str, str]] = attrs.field(factory=list)
    replies: list[str] = attrs.field(factory=list)


def mx_listener(config: Config) -> Listener:
    """Where a program on this machine reaches a listener of role mx. Raises AdminError if there is none."""
    for listen in config.listen:
        if (
            listen.role is not Role.MX or listen.proxy
        ):  # a load balancer's: it wants a header that we don't have
            continue
        kind, arguments, options = split_endpoint(listen.endpoint)
        first = arguments[0] if arguments else options.get("port", options.get("address", ""))
        interface = options.get("interface", "")
        if kind == "unix":
            return first
        if kind == "tcp":
            return ("127.0.0.1" if interface in ("", "0.0.0.0") else interface), int(first)  # noqa: S104
        if kind == "tcp6":
            return ("::1" if interface in ("", "::") else interface), int(first)
    raise AdminError(
        "sendmail: no listener of role mx with a known port and without proxy: add one to the configuration",
        EX_CONFIG,
    )


def connect(listener: Listener) -> socket.socket:
    """Raises AdminError when the server is down."""
    try:
        if isinstance(listener, str):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(TIMEOUT)
            connection.connect(listener)
            return connection
        return socket.create_connection(listener, TIMEOUT)
    except OSError as error:
        where = listener if isinstance(listener, str) else f"{listener[0]} port {listener[1]}"
        raise AdminError(
            f"sendmail: no server answers at {where}: {error.strerror or error}", EX_TEMPFAIL
        ) from None


def submit(
    listener: Listener, hostname: str, sender: Address | None, recipients: Sequence[Address], data: bytes
) -> Outcome:
    """Send one message. Recipients that do not exist are told apart; anything temporary sends to nobody.

    `data` has CRLF line ends. Raises AdminError when the server is down or hangs up.
    """
    session = smtplib.SMTP(local_hostname=hostname, timeout=TIMEOUT)
    session.sock = connect(listener)
    outcome = Outcome()
    try:
        code, greeting = session.getreply()
        if _failed(outcome, code, greeting, 220):
            return outcome
        session.ehlo_or_helo_if_needed()
        _transaction(session, sender, recipients, data, outcome)
        with contextlib.suppress(smtplib.SMTPServerDisconnected):
            session.quit()
    except (smtplib.SMTPException, OSError) as error:
        raise AdminError(f"sendmail: the server did not take the message: {error}", EX_TEMPFAIL) from None
    finally:
        session.close()
    return outcome


def _transaction(
    session: smtplib.SMTP,
    sender: Address | None,
    recipients: Sequence[Address],
    data: bytes,
    outcome: Outcome,
) -> None:
    options = _options(session, sender, recipients, data, outcome)
    if outcome.error:
        return
    if _failed(outcome, *session.mail(str(sender) if sender else "", options), 250):
        return
    taken = 0
    for recipient in recipients:
        code, text = session.rcpt(str(recipient))
        reply = _reply(code, text)
        outcome.replies.append(reply)
        if code in (250, 251):
            taken += 1
        else:
            outcome.refused.append((str(recipient), reply))
            outcome.temporary |= code < 500
    if not taken or outcome.temporary:
        session.rset()
        return
    try:
        _failed(outcome, *session.data(data), 250)
    except smtplib.SMTPDataError as error:  # DATA itself was refused
        words = error.smtp_error
        _failed(outcome, error.smtp_code, words if isinstance(words, bytes) else words.encode(), 250)


def _options(
    session: smtplib.SMTP,
    sender: Address | None,
    recipients: Sequence[Address],
    data: bytes,
    outcome: Outcome,
) -> list[str]:
    """The parameters of MAIL."""
    options = []
    if session.has_extn("size"):
        options.append(f"SIZE={len(data)}")
    if session.has_extn("8bitmime") and not data.isascii():
        options.append("BODY=8BITMIME")
    addresses = [str(address) for address in (sender, *recipients) if address]
    if not all(address.isascii() for address in addresses):
        if session.has_extn("smtputf8"):
            options.append("SMTPUTF8")
            session.command_encoding = "utf-8"
        else:
            outcome.error = "the server takes no addresses beyond ASCII"
    return options


def _failed(outcome: Outcome, code: int, text: bytes, expected: int) -> bool:
    reply = _reply(code, text)
    outcome.replies.append(reply)
    if code == expected:
        return False
    outcome.error, outcome.temporary = reply, code < 500
    return True


def _reply(code: int, text: bytes) -> str:
    words = text.decode("utf-8", "replace").replace("\n", " / ")
    return f"{code} {''.join(character for character in words if character.isprintable())}"


def bridge(listener: Listener, source: int, sink: int) -> int:
    """Join two descriptors to the server (-bs) until it closes the connection, or has nothing more to say at their end."""
    lines = TypedLines()
    with connect(listener) as connection:
        connection.settimeout(None)
        server = connection.fileno()
        readable = [server, source]
        while True:
            # The connection is not half closed at the end of input: the server would take that for a client that left.
            ready, _, _ = select.select(readable, [], [], None if source in readable else LINGER)
            if source in ready:
                data = os.read(source, 65536)
                if data:
                    connection.sendall(lines.for_server(data))
                else:
                    readable.remove(source)
            if server in ready:
                data = connection.recv(65536)
                if not data:
                    return EX_OK
                _write_all(sink, data)
            if not ready:
                return EX_OK


class TypedLines:
    """The line ends of what is typed or piped into -bs.

    Who ends the first line with a bare LF, as people and scripts do, writes text: it becomes CRLF, without which the server
    takes neither the end of a message nor its lines. Who ends it with CRLF speaks SMTP, and not an octet is changed: TLS or
    a chunk may follow.
    """

    def __init__(self) -> None:
        self._last = b""
        self._text: bool | None = None

    def for_server(self, data: bytes) -> bytes:
        """What the server gets of the next octets; they may be cut anywhere."""
        before, self._last = self._last, data[-1:] or self._last
        if self._text is None and b"\n" in data:
            self._text = not (before + data).partition(b"\n")[0].endswith(b"\r")
        if not self._text:
            return data
        changed = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        # A CRLF among them stays one, even where a read ended between its halves.
        return changed[1:] if before == b"\r" and data[:1] == b"\n" else changed


def _write_all(sink: int, data: bytes) -> None:
    while data:
        data = data[os.write(sink, data) :]

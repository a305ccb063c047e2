"""SMTP server sessions: joins the core (`core.smtp.server`) to an IReception."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address
from typing import Any

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl import Lookup, Secret
from twisted_mta.core.smtp import questions as q
from twisted_mta.core.smtp.server import SmtpServer
from twisted_mta.core.smtp.settings import ServerSettings
from twisted_mta.interfaces import Account, AuthenticationUnavailable, IMessageSink, IReception, Peer
from twisted_mta.net.session import Session
from twisted_mta.net.tls import ServerTls


class SmtpHandler:
    """Answers the questions of one SMTP session; a `net.session.SessionHandler`."""

    log = Logger()

    def __init__(self, reception: IReception, peer: Peer, trusts: Callable[[str], bool]) -> None:
        """`trusts` tells whether an IP address is in a network that is trusted."""
        self._reception = reception
        self._peer = peer
        self._trusts = trusts
        #: Who is connected, whomever it speaks for.
        self._speaker = peer.address
        #: Whom XCLIENT named as the login.
        self._named: Account | None = None
        #: Where the message under way goes; None between messages.
        self._sink: IMessageSink | None = None

    def attached(self, session: Session) -> None:
        """See SessionHandler. SMTP never speaks unasked."""

    def secured(self, tls: str) -> None:
        """See SessionHandler."""
        self._peer.tls = tls
        self._peer.account = self._named = None  # RFC 3207 §4.2

    def closed(self) -> None:
        """See SessionHandler."""
        self._drop()

    def body(self, data: bytes) -> Awaitable[None] | None:
        """See SessionHandler."""
        assert self._sink is not None  # the core asks BeginMessage first
        return self._sink.write(data)

    def ask(self, question: q.Question) -> Any:
        """See SessionHandler."""
        return _ANSWERS[type(question)](self, question)

    def _rcpt(self, question: q.RcptTo) -> Any:
        return self._reception.rcpt(self._peer, question.envelope, question.recipient)

    def _mail(self, question: q.MailFrom) -> Any:
        return self._reception.mail(self._peer, question.envelope)

    def _begin(self, question: q.BeginMessage) -> None:
        self._sink = self._reception.message(self._peer, question.envelope)

    def _end(self, question: q.EndMessage) -> Any:
        if question.refusal is not None:
            self._drop()
            return self._refuse(question.refusal)
        assert self._sink is not None  # the core asks BeginMessage first
        sink, self._sink = self._sink, None
        return sink.finish()

    def _hello(self, question: q.Hello) -> Any:
        self._peer.helo, self._peer.esmtp = question.name, question.esmtp
        return self._reception.helo(self._peer)

    async def _authenticate(self, question: q.Authenticate) -> bool | Reply:
        try:
            account = await self._reception.authenticate(self._peer, question.claim)
        except AuthenticationUnavailable as error:
            return Reply(454, "4.7.0", str(error))  # RFC 4954 §6
        self._peer.account = account
        return account is not None

    async def _secret(self, login: str) -> Secret | Reply:
        try:
            return await self._reception.secret(self._peer, login)
        except AuthenticationUnavailable as error:
            return Reply(454, "4.7.0", str(error))

    def _speak_for(self, attributes: dict[str, str]) -> q.Standing | Reply:
        """XCLIENT: judge the client that this one names. What it does not say stays as it was."""
        peer = self._peer
        address, account = peer.address, self._named
        if attributes.get("ADDR"):
            try:
                address = str(ip_address(attributes["ADDR"].removeprefix("IPV6:")))
            except ValueError:
                return Reply(501, "5.5.4", "XCLIENT ADDR is no IP address")
        if "LOGIN" in attributes:
            login = attributes["LOGIN"]
            account = self._reception.account(login) if login else None
            if login and account is None:
                return Reply(550, "5.7.1", "XCLIENT LOGIN is no account here")
        self.log.info(
            "{peer} speaks for {client}",
            peer=self._speaker,
            client=address,
            login=account.name if account else "",
            session=peer.session_id,
        )
        peer.address = address
        # What the checks found out about the one that speaks says nothing of the one it speaks for.
        peer.host, peer.host_verified = "", False
        peer.account = self._named = account
        peer.notes.clear()
        port = attributes.get("PORT", "")
        peer.port = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else peer.port
        peer.helo = attributes.get("HELO") or peer.helo
        return q.Standing(logged_in=account is not None, trusted=self._trusts(address))

    def _refuse(self, refusal: Reply) -> Reply:
        if self._peer.remarks is not None:
            return refusal
        self.log.info(
            "message from {peer} refused: {reply}",
            peer=self._peer.address,
            session=self._peer.session_id,
            reply=str(refusal),
        )
        return refusal

    def _drop(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.abort()


def session_settings(
    settings: ServerSettings, address: str, *, tls: bool, trusts: Callable[[str], bool]
) -> ServerSettings:
    """The settings for a client at an IP address; `tls`: STARTTLS can be offered."""
    return attrs.evolve(settings, tls_available=tls, trusted=trusts(address))


#: What answers each question.
_ANSWERS: Mapping[type, Callable[[SmtpHandler, Any], Any]] = {
    q.Connected: lambda handler, _: handler._reception.connected(handler._peer),
    q.Hello: SmtpHandler._hello,
    q.MailFrom: SmtpHandler._mail,
    q.RcptTo: SmtpHandler._rcpt,
    q.BeginMessage: SmtpHandler._begin,
    q.EndMessage: SmtpHandler._end,
    q.DropMessage: lambda handler, _: handler._drop(),
    q.Authenticate: SmtpHandler._authenticate,
    Lookup: lambda handler, question: handler._secret(question.login),
    q.Verify: lambda handler, question: handler._reception.verify(handler._peer, question.argument),
    q.Expand: lambda handler, question: handler._reception.expand(handler._peer, question.argument),
    q.ClientIs: lambda handler, question: handler._speak_for(question.attributes),
}


def smtp_session(
    settings: ServerSettings,
    reception: IReception,
    peer: Peer,
    clock: IReactorTime,
    *,
    tls: ServerTls | None = None,
    implicit_tls: bool = False,
    handshake: float = 60.0,
    trusts: Callable[[str], bool] = lambda address: False,
) -> Session:
    """A session ready for a transport; `tls` is what STARTTLS begins. `handshake`: see Session. `trusts`: see SmtpHandler."""
    core = SmtpServer(settings, clock.seconds)
    return Session(core, SmtpHandler(reception, peer, trusts), clock, tls, implicit_tls, handshake)

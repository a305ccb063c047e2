"""SMTP server sessions: joins the core (`core.smtp.server`) to an IReception."""

from __future__ import annotations

from collections.abc import Awaitable
from ipaddress import ip_address
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall, IOpenSSLServerConnectionCreator, IReactorTime
from twisted.logger import Logger

from twisted_mta.core.replies import Reply
from twisted_mta.core.sasl import Lookup, Secret
from twisted_mta.core.smtp import questions as q
from twisted_mta.core.smtp.server import SmtpServer
from twisted_mta.core.smtp.settings import ServerSettings
from twisted_mta.interfaces import AuthenticationUnavailable, IMessageSink, IReception, Peer
from twisted_mta.net.session import Session


class SmtpHandler:
    """Answers the questions of one SMTP session; a `net.session.SessionHandler`."""

    log = Logger()

    def __init__(
        self, reception: IReception, peer: Peer, clock: IReactorTime, idle: float, message_time: float
    ) -> None:
        self._reception = reception
        self._peer = peer
        self._idle = idle
        self._clock = clock
        #: Seconds for the octets of one message, and the call that ends the session when they are over.
        self._message_time = message_time
        self._deadline: IDelayedCall | None = None
        self._session: Session | None = None
        #: Where the message under way goes; None between messages.
        self._sink: IMessageSink | None = None

    def attached(self, session: Session) -> None:
        """See SessionHandler."""
        self._session = session

    def timeout(self) -> float:
        """See SessionHandler."""
        return self._idle

    def secured(self, tls: str) -> None:
        """See SessionHandler."""
        self._peer.tls = tls

    def closed(self) -> None:
        """See SessionHandler."""
        self._drop()

    def body(self, data: bytes) -> Awaitable[None] | None:
        """See SessionHandler."""
        assert self._sink is not None  # the core asks BeginMessage first
        return self._sink.write(data)

    def ask(self, question: q.Question) -> Any:
        """See SessionHandler."""
        peer, reception = self._peer, self._reception
        match question:
            case q.RcptTo(envelope, recipient):
                return reception.rcpt(peer, envelope, recipient)
            case q.MailFrom(envelope):
                return reception.mail(peer, envelope)
            case q.BeginMessage(envelope):
                self._sink = reception.message(peer, envelope)
                assert self._session is not None  # attached before anything is asked
                self._deadline = self._clock.callLater(self._message_time, self._session.time_out)
                return None
            case q.EndMessage(None):
                assert self._sink is not None  # the core asks BeginMessage first
                self._stop_the_clock()
                sink, self._sink = self._sink, None
                return sink.finish()
            case q.DropMessage():
                return self._drop()
            case q.EndMessage(Reply() as refusal):
                self._drop()
                return self._refuse(refusal)
            case q.Hello(name, esmtp):
                peer.helo, peer.esmtp = name, esmtp
                return reception.helo(peer)
            case q.Connected():
                return reception.connected(peer)
            case Lookup(login):
                return self._secret(login)
            case q.Authenticate():
                return self._authenticate(question)
            case q.Verify(argument):
                return reception.verify(peer, argument)
            case q.Expand(argument):
                return reception.expand(peer, argument)
            case q.ClientIs(attributes):
                return self._speak_for(attributes)

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

    def _speak_for(self, attributes: dict[str, str]) -> Reply | None:
        """XCLIENT: judge the client that this one names. What it does not say stays as it was."""
        peer = self._peer
        try:
            address = (
                str(ip_address(attributes["ADDR"].removeprefix("IPV6:")))
                if attributes.get("ADDR")
                else peer.address
            )
        except ValueError:
            return Reply(501, "5.5.4", "XCLIENT ADDR is no IP address")
        self.log.info(
            "{peer} speaks for {client}", peer=peer.address, client=address, session=peer.session_id
        )
        peer.address = address
        # What the checks found out about the one that speaks says nothing of the one it speaks for.
        peer.host, peer.host_verified, peer.account = "", False, None
        peer.notes.clear()
        port = attributes.get("PORT", "")
        peer.port = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else peer.port
        peer.helo = attributes.get("HELO") or peer.helo
        return None

    def _refuse(self, refusal: Reply) -> Reply:
        self.log.info(
            "message from {peer} refused: {reply}",
            peer=self._peer.address,
            session=self._peer.session_id,
            reply=str(refusal),
        )
        return refusal

    def _stop_the_clock(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None

    def _drop(self) -> None:
        self._stop_the_clock()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.abort()


def smtp_session(
    settings: ServerSettings,
    reception: IReception,
    peer: Peer,
    clock: IReactorTime,
    *,
    idle: float,
    message_time: float = 3600.0,
    tls: IOpenSSLServerConnectionCreator | None = None,
    implicit_tls: bool = False,
) -> Session:
    """A session ready for a transport; `tls` None turns STARTTLS off.

    `idle` is how many seconds the client may be silent, `message_time` how many it has for the octets of one message.
    """
    settings = attrs.evolve(settings, tls_available=tls is not None)
    handler = SmtpHandler(reception, peer, clock, idle, message_time)
    return Session(SmtpServer(settings, clock.seconds), handler, clock, tls, implicit_tls)

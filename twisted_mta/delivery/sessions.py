"""Sessions with other hosts: opened with as much TLS as is needed or can be had, and kept for the next message."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import attrs
from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger

from twisted_mta.core.replies import Reply
from twisted_mta.core.route import NextHop, Target
from twisted_mta.core.smtp.client import Login, SmtpClient, State, TlsUse
from twisted_mta.delivery.connections import ConnectionCache
from twisted_mta.delivery.hosts import Way
from twisted_mta.net.scram_client import ScramHelper
from twisted_mta.net.smtp_client import OpportunisticTls, SessionError, SmtpConnection, connect


class Need(enum.Enum):
    """What a message asks of TLS (RFC 8689)."""

    NONE = "none"
    #: A bounce of a message that required TLS: with a host that is proven if possible, or else without.
    PROOF_IF_POSSIBLE = "proof if possible"
    #: TLS, with a certificate that proves the host, or not at all.
    PROOF = "proof"


@attrs.frozen
class Line:
    """What sessions must have in common for a message to go over any of them."""

    #: As IDelivery.destination gives it.
    destination: str
    need: Need = Need.NONE


class Sessions:
    """Opens sessions, and keeps those that are idle."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        hostname: str,
        tls_context: SSL.Context,
        keep_open: float,
        login: Login | None,
        scram: ScramHelper,
    ) -> None:
        """`reactor` provides IReactorTCP and IReactorTime; `tls_context` is that of net.smtp_client.opportunistic_context.

        A `login` is for the `smarthost`, given to it only under TLS with a certificate that proves its name.
        """
        self._reactor = reactor
        self._hostname = hostname
        self._tls_context = tls_context
        self._cache = ConnectionCache(reactor, keep_open)
        self._opening: set[Deferred[SmtpConnection]] = set()
        self._closed = False
        self.login = login
        self._scram = scram
        #: Where to log in.
        self.smarthost: NextHop | None = None

    def renew(self, keep_open: float) -> None:
        """The settings have changed: idle sessions end, since a route may lead elsewhere now."""
        self._cache.keep_open = keep_open
        self._cache.quit_idle()

    def take(self, line: Line) -> SmtpConnection | None:
        """An idle session, or None."""
        return self._cache.take(line)

    def give_back(self, line: Line, connection: SmtpConnection) -> None:
        """A session that is not needed now: it is kept, or ended."""
        self._cache.give_back(line, connection)

    async def close(self) -> None:
        """Give up what is being opened, and end all sessions."""
        self._closed = True
        for opening in list(self._opening):
            opening.cancel()
        await self._cache.close()

    # --- opening -------------------------------------------------------------------------------

    async def open(self, way: Way, target: Target, address: str, remote: str, need: Need) -> SmtpConnection:
        """A new session with one address of a host. Raises SessionError."""
        uses = self._tls_uses(way, target, need)
        for use in uses[:-1]:
            try:
                return await self._connect(way, target, address, remote, use)
            except SessionError as error:
                if not lacks_tls(error):
                    raise
                self.log.warn(
                    "TLS with {remote} failed ({use}), trying with less: {reply}",
                    remote=remote,
                    use=use.name.lower(),
                    reply=str(error.reply),
                )
        return await self._connect(way, target, address, remote, uses[-1])

    def _tls_uses(self, way: Way, target: Target, need: Need) -> Sequence[TlsUse]:
        """How a session with this host may be encrypted: the best first, the next where that one fails for want of TLS.

        Whatever else says what to expect of a host has its say here.
        """
        if self._logs_in(way) or need is Need.PROOF:
            return (TlsUse.REQUIRED,)
        # RFC 7435 §3: encryption where possible must not cost the delivery where it is not.
        opportunistic = TlsUse.OPPORTUNISTIC, TlsUse.NEVER
        if need is Need.PROOF_IF_POSSIBLE and way.fixed:
            return TlsUse.REQUIRED, *opportunistic
        return opportunistic

    def _logs_in(self, way: Way) -> bool:
        if self.login is None or self.smarthost is None or way.hop is None or not way.fixed:
            return False
        return (way.hop.host, way.hop.port) == (self.smarthost.host, self.smarthost.port)

    async def _connect(
        self, way: Way, target: Target, address: str, remote: str, tls: TlsUse
    ) -> SmtpConnection:
        if self._closed:
            raise SessionError(None, Reply(451, "4.3.2", "the mail server is stopping"))
        creator: IOpenSSLClientConnectionCreator
        if tls is TlsUse.REQUIRED:
            creator = optionsForClientTLS(target.host)
        else:
            creator = OpportunisticTls(self._tls_context, "" if target.literal else target.host)
        login = self.login if self._logs_in(way) else None
        core = SmtpClient(self._hostname, tls=tls, login=login, nonces=self._scram.nonce)
        opening = Deferred.fromCoroutine(
            connect(self._reactor, address, target.port, core, creator, remote, self._scram)
        )
        self._opening.add(opening)
        try:
            connection = await opening
        except CancelledError:
            raise SessionError(None, Reply(451, "4.3.2", "the mail server is stopping")) from None
        finally:
            self._opening.discard(opening)
        connection.verified = tls is TlsUse.REQUIRED
        self._cache.opened(connection)
        return connection


def lacks_tls(error: SessionError) -> bool:
    """Whether a session failed for want of TLS that can be trusted."""
    return error.state in (State.STARTTLS, State.HANDSHAKE) or error.reply.enhanced == "4.7.10"

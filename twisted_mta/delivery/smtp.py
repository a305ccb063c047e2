"""Remote delivery by SMTP: finds the hosts of a destination and tries them until one takes the message."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.config.schema import Relay
from twisted_mta.core.queue import Outcome, QueuedMessage, QueuedRecipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.route import (
    LookupFailed,
    NextHop,
    NoSuchDomain,
    Routing,
    Shuffler,
    Target,
    Unroutable,
    by_mx,
    dns_name,
    literal_target,
    lookup_failed,
    no_address,
    no_such_domain,
)
from twisted_mta.core.smtp.client import AUTH_STATES, Login, SmtpClient, State, TlsUse
from twisted_mta.delivery.attempt import Attempt, Trouble
from twisted_mta.delivery.connections import ConnectionCache
from twisted_mta.delivery.convert import Converter
from twisted_mta.interfaces import IDelivery, IMailResolver, IStoredBody
from twisted_mta.net.smtp_client import OpportunisticTls, SessionError, SmtpConnection, connect
from twisted_mta.store.threads import InlineWorkers, Workers

#: Addresses that are tried in one attempt, of all hosts of a destination. RFC 5321 §5.1 allows a limit.
MAX_TRIES = 20

#: Behind a destination in the cache: its sessions have TLS, with a certificate that proves the host.
_PROVEN = " (proven)"
#: The same for bounces, which need not have it.
_PROVEN_IF_POSSIBLE = " (proven if possible)"


@implementer(IDelivery)
class SmtpDelivery:
    """IDelivery for Transport.SMTP. How many attempts run at a time is the queue manager's to limit."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        resolver: IMailResolver,
        random: Shuffler,
        settings: Relay,
        hostname: str,
        workers: Workers | InlineWorkers,
        tls_context: SSL.Context,
        login: Login | None = None,
    ) -> None:
        """`reactor` provides IReactorTCP and IReactorTime; `tls_context` is that of net.smtp_client.opportunistic_context.

        A `login` is for the smarthost, given to it only under TLS with a certificate that proves its name.
        """
        self._reactor = reactor
        self._resolver = resolver
        self._random = random
        self._hostname = hostname
        self._workers = workers
        self._converter = Converter(workers)
        self._tls_context = tls_context
        self._login = login
        self._connections = ConnectionCache(reactor, settings.keep_open)
        self._opening: set[Deferred[SmtpConnection]] = set()
        self._closed = False
        self.reconfigure(settings)

    def reconfigure(self, settings: Relay) -> None:
        """Take on new settings, but for the login; attempts under way go on with the hosts that they chose."""
        self._settings = settings
        self._routing = Routing(smarthost=settings.smarthost, routes=settings.routes, port=settings.port)
        self._connections.keep_open = settings.keep_open
        self._connections.quit_idle()  # a route may lead elsewhere now

    def set_login(self, login: Login | None) -> None:
        """Log in with this at the smarthost from the next session on; None: do not log in."""
        self._login = login
        self._connections.quit_idle()

    # --- IDelivery -----------------------------------------------------------------------------

    def destination(self, recipient: QueuedRecipient) -> str:
        """See IDelivery: the domain, or the configured next hop."""
        return self._routing.destination(recipient.address.domain)

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """See IDelivery."""
        attempt = Attempt(
            message,
            body,
            recipients,
            self._workers,
            self._settings.max_recipients,
            self._converter,
            self._reactor.seconds,
        )
        try:
            await self._deliver_all(attempt, recipients)
        finally:
            attempt.close()
        return attempt.outcomes()

    async def _deliver_all(self, attempt: Attempt, recipients: Sequence[QueuedRecipient]) -> None:
        # A reload since `destination` was asked may have parted what travelled together.
        groups: dict[str, list[int]] = {}
        for index, recipient in enumerate(recipients):
            groups.setdefault(self.destination(recipient), []).append(index)
        for key, indexes in groups.items():
            await self._deliver_group(attempt, key, indexes)

    async def close(self) -> None:
        """See IDelivery. Attempts under way end in "try later"."""
        self._closed = True
        for opening in list(self._opening):
            opening.cancel()
        await self._connections.close()

    # --- one destination -----------------------------------------------------------------------

    async def _deliver_group(self, attempt: Attempt, destination: str, left: list[int]) -> None:
        if attempt.needs_tls:
            refusal = self._refuse_unproven(attempt.recipients[left[0]].address.domain)
            if refusal is not None:
                attempt.give_up(left, Trouble(refusal))
                return
            destination += _PROVEN
        elif attempt.prefers_tls:
            destination += _PROVEN_IF_POSSIBLE
        while left and (idle := self._connections.take(destination)) is not None:
            left = await self._use(attempt, destination, idle, left)
        if not left:
            return
        domain = attempt.recipients[left[0]].address.domain
        try:
            targets = await self._targets(domain)
        except Unroutable as error:
            attempt.give_up(left, Trouble(error.reply))
            return
        trouble = Trouble(no_address(domain, [target.host for target in targets]).reply)
        if self._routing.next_hop(domain) is not None:
            trouble = Trouble(_bad_route(domain, trouble.reply))
        tries = MAX_TRIES
        for target in targets:
            for address in (await self._addresses(target, trouble))[:tries]:
                tries -= 1
                left = await self._try_address(attempt, destination, target, address, trouble, left)
                if not left:
                    return
        attempt.give_up(left, trouble)

    async def _try_address(
        self,
        attempt: Attempt,
        destination: str,
        target: Target,
        address: str,
        trouble: Trouble,
        left: list[int],
    ) -> list[int]:
        """One address of one host: the recipients that are still to be served."""
        remote = f"{target.host} [{address}]"
        try:
            connection = await self._open(target, address, remote, attempt)
        except SessionError as error:
            self.log.info(
                "{queue_id}: no session with {remote}: {reply}",
                queue_id=attempt.message.id,
                remote=remote,
                reply=str(error.reply),
            )
            # RFC 5321 §5.1: a 554 greeting, or a refused EHLO, is one host's word; there may be others. What it
            # thinks of our password is a matter between us and the smarthost, and no fault of the message.
            final = error.reply.permanent and error.state not in AUTH_STATES
            reply = error.reply
            if attempt.needs_tls and _no_tls(error):
                reply, final = _tls_needed(reply), True
            trouble.note(reply, remote, final=final)
            return left
        left = await self._use(attempt, destination, connection, left)
        if left:
            trouble.note(attempt.lost, remote)
        return left

    async def _use(
        self, attempt: Attempt, destination: str, connection: SmtpConnection, left: list[int]
    ) -> list[int]:
        try:
            return await attempt.use(connection, left)
        finally:
            self._connections.give_back(destination, connection)

    def _refuse_unproven(self, domain: str) -> Reply | None:
        """Why a message that requires TLS can't go to a domain at all, or None."""
        if self._is_fixed(domain):
            return None
        # RFC 8689 §2: the MX records must be signed, or the host stand in an MTA-STS policy; we look at neither yet.
        return Reply(
            550,
            "5.7.30",
            f"the message requires TLS on all of its way (REQUIRETLS), and this server can't yet prove which hosts "
            f"take the mail for {domain}",
        )

    def _is_fixed(self, domain: str) -> bool:
        """Whether the configuration names the host, so that its certificate can prove it."""
        hop = self._routing.next_hop(domain)
        return hop is not None and not hop.mx

    # --- where to ------------------------------------------------------------------------------

    async def _targets(self, domain: str) -> Sequence[Target]:
        """The hosts to try, in order. Raises Unroutable."""
        hop = self._routing.next_hop(domain)
        if hop is None:
            return await self._mail_hosts(domain, self._settings.port)
        try:
            return await self._mail_hosts(hop.host, hop.port) if hop.mx else [_fixed(hop)]
        except Unroutable as error:
            # A wrong route is the administrator's to mend: no reason to bounce.
            raise Unroutable(_bad_route(domain, error.reply)) from None

    async def _mail_hosts(self, domain: str, port: int) -> Sequence[Target]:
        literal = literal_target(domain, port)
        if literal is not None:
            return [literal]
        name = dns_name(domain)
        try:
            answer = await self._resolver.mx(name)
        except NoSuchDomain:
            raise no_such_domain(domain) from None
        except LookupFailed as error:
            raise lookup_failed(domain, str(error)) from None
        return by_mx(name, answer, {self._hostname.lower()}, port, self._random)

    async def _addresses(self, target: Target, trouble: Trouble) -> Sequence[str]:
        """The addresses of a host; none if it has none, or they can't be found, which is then the trouble."""
        if target.literal:
            return [target.host]
        try:
            return await self._resolver.addresses(target.host)
        except NoSuchDomain:
            return ()
        except LookupFailed as error:
            trouble.note(lookup_failed(target.host, str(error)).reply)
            return ()

    # --- sessions ------------------------------------------------------------------------------

    async def _open(self, target: Target, address: str, remote: str, attempt: Attempt) -> SmtpConnection:
        """A new session, encrypted if that works. Raises SessionError."""
        if self._logs_in(target) or attempt.needs_tls:
            return await self._connect(target, address, remote, TlsUse.REQUIRED)
        if attempt.prefers_tls and self._is_fixed(attempt.recipients[0].address.domain):
            try:
                return await self._connect(target, address, remote, TlsUse.REQUIRED)
            except SessionError as error:
                if not _no_tls(error):
                    raise
        try:
            return await self._connect(target, address, remote, TlsUse.OPPORTUNISTIC)
        except SessionError as error:
            if error.state is not State.HANDSHAKE:
                raise
            # RFC 7435 §3: encryption where possible must not cost the delivery where it is not.
            self.log.warn(
                "TLS with {remote} failed, trying without: {reply}", remote=remote, reply=str(error.reply)
            )
        return await self._connect(target, address, remote, TlsUse.NEVER)

    async def _connect(self, target: Target, address: str, remote: str, tls: TlsUse) -> SmtpConnection:
        if self._closed:
            raise SessionError(None, Reply(451, "4.3.2", "the mail server is stopping"))
        creator: IOpenSSLClientConnectionCreator
        if tls is TlsUse.REQUIRED:
            creator = optionsForClientTLS(target.host)
        else:
            creator = OpportunisticTls(self._tls_context, "" if target.literal else target.host)
        core = SmtpClient(self._hostname, tls=tls, login=self._login if self._logs_in(target) else None)
        opening = Deferred.fromCoroutine(connect(self._reactor, address, target.port, core, creator, remote))
        self._opening.add(opening)
        try:
            connection = await opening
        except CancelledError:
            raise SessionError(None, Reply(451, "4.3.2", "the mail server is stopping")) from None
        finally:
            self._opening.discard(opening)
        connection.verified = tls is TlsUse.REQUIRED
        self._connections.opened(connection)
        return connection

    def _logs_in(self, target: Target) -> bool:
        smarthost = self._settings.smarthost
        return self._login is not None and smarthost is not None and target == _fixed(smarthost)


def _no_tls(error: SessionError) -> bool:
    """Whether a session failed for want of TLS that can be trusted."""
    return error.state in (State.STARTTLS, State.HANDSHAKE) or error.reply.enhanced == "4.7.10"


def _tls_needed(reply: Reply) -> Reply:
    # RFC 8689 §4.2.1: the sender is told, and nothing is tried again.
    return Reply(550, "5.7.10", f"the message requires TLS (REQUIRETLS), which can't be had: {reply}")


def _bad_route(domain: str, reply: Reply) -> Reply:
    return Reply(451, "4.4.4", f"the route for {domain} leads nowhere: {reply.text}")


def _fixed(hop: NextHop) -> Target:
    """A configured host, which may be an IP address, with or without brackets."""
    literal = literal_target(hop.host, hop.port)
    if literal is not None:
        return literal
    try:
        return Target(str(ipaddress.ip_address(hop.host)), hop.port, literal=True)
    except ValueError:
        return Target(hop.host, hop.port)

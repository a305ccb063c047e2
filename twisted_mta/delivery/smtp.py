"""Remote delivery by SMTP: finds the hosts of a destination and tries them until one takes the message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from OpenSSL import SSL
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.config.schema import Relay
from twisted_mta.core.queue import Outcome, QueuedMessage, QueuedRecipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.route import Routing, Shuffler, Unroutable
from twisted_mta.core.smtp.client import AUTH_STATES, Login
from twisted_mta.delivery.attempt import Attempt, Trouble
from twisted_mta.delivery.convert import Converter
from twisted_mta.delivery.hosts import Host, Hosts, IsOwn, Way
from twisted_mta.delivery.sessions import Line, Need, Sessions, lacks_tls
from twisted_mta.interfaces import IDelivery, IMailResolver, IStoredBody
from twisted_mta.net.scram_client import ScramHelper
from twisted_mta.net.smtp_client import SessionError, SmtpConnection
from twisted_mta.store.threads import InlineWorkers, Workers

#: Addresses that are tried in one attempt, of all hosts of a destination. RFC 5321 §5.1 allows a limit.
MAX_TRIES = 20


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
        *,
        is_own: IsOwn = lambda address, port: False,
    ) -> None:
        """`reactor` provides IReactorTCP and IReactorTime; `tls_context` is that of net.smtp_client.opportunistic_context.

        A `login` is for the smarthost, given to it only under TLS with a certificate that proves its name. `is_own` knows
        where this server listens itself.
        """
        self._reactor = reactor
        self._workers = workers
        self._converter = Converter(workers)
        self._hosts = Hosts(resolver, random, hostname, Routing(), is_own)
        self._sessions = Sessions(
            reactor, hostname, tls_context, settings.keep_open, login, ScramHelper(workers)
        )
        self.reconfigure(settings)

    def reconfigure(self, settings: Relay) -> None:
        """Take on new settings, but for the login; attempts under way go on with the hosts that they chose."""
        self._settings = settings
        self._hosts.routing = Routing(
            smarthost=settings.smarthost, routes=settings.routes, port=settings.port
        )
        self._sessions.smarthost = settings.smarthost
        self._sessions.renew(settings.keep_open)

    def set_login(self, login: Login | None) -> None:
        """Log in with this at the smarthost from the next session on; None: do not log in."""
        self._sessions.login = login
        self._sessions.renew(self._settings.keep_open)

    # --- IDelivery -----------------------------------------------------------------------------

    def destination(self, recipient: QueuedRecipient) -> str:
        """See IDelivery: the domain, or the configured next hop."""
        return self._hosts.routing.destination(recipient.address.domain)

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
            chunking=self._settings.chunking,
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
        await self._sessions.close()

    # --- one destination -----------------------------------------------------------------------

    async def _deliver_group(self, attempt: Attempt, destination: str, left: list[int]) -> None:
        domain = attempt.recipients[left[0]].address.domain
        line = Line(destination, _need(attempt))
        if line.need is Need.PROOF and (refusal := self._refuse_unproven(domain)) is not None:
            attempt.give_up(left, Trouble(refusal))
            return
        while left and (idle := self._sessions.take(line)) is not None:
            left = await self._use(attempt, line, idle, left)
        if not left:
            return
        try:
            way = await self._hosts.way(domain)
        except Unroutable as error:
            attempt.give_up(left, Trouble(error.reply))
            return
        trouble = Trouble(way.nowhere())
        left = await self._try_hosts(attempt, line, way, trouble, left)
        if left:
            attempt.give_up(left, trouble)

    async def _try_hosts(
        self, attempt: Attempt, line: Line, way: Way, trouble: Trouble, left: list[int]
    ) -> list[int]:
        """All hosts in their order: the recipients that none of them served."""
        tries = MAX_TRIES
        for level in way.levels():
            try:
                hosts = await self._hosts.resolve(way, level)
            except Unroutable as error:
                if tries == MAX_TRIES:  # RFC 5321 §5.1: where better hosts were tried, what they said counts
                    trouble.note(error.reply, final=error.reply.permanent)
                break
            for host in hosts:
                if host.reply is not None:
                    trouble.note(host.reply)
                for address in host.addresses[:tries]:
                    tries -= 1
                    left = await self._try_address(attempt, line, way, host, address, trouble, left)
                    if not left:
                        return left
        return left

    async def _try_address(
        self,
        attempt: Attempt,
        line: Line,
        way: Way,
        host: Host,
        address: str,
        trouble: Trouble,
        left: list[int],
    ) -> list[int]:
        """One address of one host: the recipients that are still to be served."""
        remote = f"{host.target.host} [{address}]"
        try:
            connection = await self._sessions.open(way, host.target, address, remote, line.need)
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
            if line.need is Need.PROOF and lacks_tls(error):
                reply, final = _tls_needed(reply), True
            trouble.note(reply, remote, final=final)
            return left
        left = await self._use(attempt, line, connection, left)
        if left:
            trouble.note(attempt.lost, remote)
        return left

    async def _use(
        self, attempt: Attempt, line: Line, connection: SmtpConnection, left: list[int]
    ) -> list[int]:
        try:
            return await attempt.use(connection, left)
        finally:
            self._sessions.give_back(line, connection)

    def _refuse_unproven(self, domain: str) -> Reply | None:
        """Why a message that requires TLS can't go to a domain at all, or None."""
        hop = self._hosts.routing.next_hop(domain)
        if hop is not None and not hop.mx:
            return None
        # RFC 8689 §2: the MX records must be signed, or the host stand in an MTA-STS policy; we look at neither yet.
        return Reply(
            550,
            "5.7.30",
            f"the message requires TLS on all of its way (REQUIRETLS), and this server can't yet prove which hosts "
            f"take the mail for {domain}",
        )


def _need(attempt: Attempt) -> Need:
    if attempt.needs_tls:
        return Need.PROOF
    return Need.PROOF_IF_POSSIBLE if attempt.prefers_tls else Need.NONE


def _tls_needed(reply: Reply) -> Reply:
    # RFC 8689 §4.2.1: the sender is told, and nothing is tried again.
    return Reply(550, "5.7.10", f"the message requires TLS (REQUIRETLS), which can't be had: {reply}")

"""Remote delivery by SMTP: finds the hosts of a destination and tries them until one takes the message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from OpenSSL import SSL
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.config.destinations import Destination, Destinations, Manner
from twisted_mta.config.schema import Relay, Route
from twisted_mta.core.address import Address
from twisted_mta.core.envelope import TlsWish
from twisted_mta.core.queue import Outcome, QueuedMessage, QueuedRecipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.route import Shuffler, Target, Unroutable
from twisted_mta.core.smtp.client import AUTH_STATES, Login, State
from twisted_mta.delivery.attempt import Attempt, Trouble, needs_tls, prefers_tls
from twisted_mta.delivery.convert import Converter
from twisted_mta.delivery.enquiry import Enquiry, Heard
from twisted_mta.delivery.hosts import Hosts, IsOwn, Way
from twisted_mta.delivery.sessions import Line, Sessions, lacks_tls
from twisted_mta.delivery.survey import survey
from twisted_mta.delivery.tls_policy import Need, Pin, TlsPolicies
from twisted_mta.delivery.tls_steps import TlsSteps
from twisted_mta.interfaces import Foreseen, IDelivery, IForesight, IMailResolver, IStoredBody
from twisted_mta.net.scram_client import ScramHelper
from twisted_mta.net.smtp_client import SessionError, SmtpConnection
from twisted_mta.net.tls_verify import CertificateCheck, system_authorities
from twisted_mta.store.threads import InlineWorkers, Workers

#: Addresses that are tried in one attempt, of all hosts of a destination. RFC 5321 §5.1 allows a limit.
MAX_TRIES = 20
#: Seconds after which no more hosts are tried in one attempt: the queue goes on with other work.
MAX_TIME = 900.0


@attrs.define
class _Errand:
    """The part of an attempt that goes to one destination."""

    attempt: Attempt
    line: Line
    manner: Manner
    #: The next hop that the configuration, or an administrator, names; None: by MX.
    hop: Route | None
    #: The recipients still to be served, by their index.
    left: list[int]
    #: Those whom a host could not take for now, or at all, and others may; and the addresses of such hosts.
    put_off: list[int] = attrs.field(factory=list)
    heard: set[str] = attrs.field(factory=set)
    trouble: Trouble = attrs.field(init=False)


@implementer(IDelivery, IForesight)
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
        tls: TlsSteps | None = None,
    ) -> None:
        """`reactor` provides IReactorTCP and IReactorTime; `tls_context` is that of net.smtp_client.opportunistic_context.

        A `login` is for the smarthost, given to it only under TLS with a certificate that proves its name. `is_own` knows
        where this server listens itself. `tls` says which TLS a host must have (None: no MTA-STS, nothing remembered).
        """
        self._reactor = reactor
        self._workers = workers
        self._converter = Converter(workers)
        self._destinations = Destinations(settings)
        self._hosts = Hosts(resolver, random, hostname, self._destinations.routing, is_own)
        self._tls = tls or TlsSteps(TlsPolicies(resolver, None), CertificateCheck(system_authorities()), None)
        self._sessions = Sessions(reactor, hostname, tls_context, login, ScramHelper(workers), self._tls)
        self.reconfigure(settings)

    def reconfigure(self, settings: Relay) -> None:
        """Take on new settings, but for the login; attempts under way go on with the hosts that they chose."""
        self._chunking = settings.chunking
        self._eightbit = settings.eightbit
        self._destinations = Destinations(settings)
        self._hosts.routing = self._destinations.routing
        self._hosts.own_addresses = settings.own_addresses
        self._tls.policies.mta_sts, self._tls.policies.dane = settings.mta_sts, settings.dane
        self._sessions.reconfigure(settings)

    def set_login(self, login: Login | None) -> None:
        """Log in with this at the smarthost from the next session on; None: do not log in."""
        self._sessions.set_login(login)

    # --- IDelivery -----------------------------------------------------------------------------

    def destination(self, recipient: QueuedRecipient) -> str:
        """See IDelivery: the domain, or the configured next hop."""
        return self._destinations.of(recipient.address.domain, recipient.hop).key

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
            self._converter,
            self._reactor.seconds,
            chunking=self._chunking,
            eightbit=self._eightbit,
        )
        try:
            await self._deliver_all(attempt, recipients)
        finally:
            attempt.close()
        return attempt.outcomes()

    async def foresee(self, message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> Foreseen:
        """See IForesight."""
        found = self._destinations.of(recipient.address.domain, recipient.hop)
        line = self._line(message, found, message.sender_for(recipient))
        return await survey(self._hosts, self._sessions, found, line, recipient.address.domain)

    async def ask(self, address: Address, until: float) -> Heard:
        """What the hosts that an address's mail would go to say of it, until a time of the reactor's clock."""
        found = self._destinations.of(address.domain)
        manner = found.manner
        source = self._destinations.source(None, manner)
        line = Line(found.key, Need.NONE, source, Pin(require=manner.require, hosts=manner.hosts))
        return await Enquiry(self._hosts, self._sessions, self._reactor, found, line, address).ask(until)

    def _line(self, message: QueuedMessage, found: Destination, sender: Address | None) -> Line:
        manner = found.manner
        source = self._destinations.source(sender, manner)
        return Line(found.key, _need(message), source, Pin(require=manner.require, hosts=manner.hosts))

    async def _deliver_all(self, attempt: Attempt, recipients: Sequence[QueuedRecipient]) -> None:
        # A reload since `destination` was asked may have parted what travelled together.
        # And as whom we send is a matter of the sender's domain, which may differ.
        groups: dict[tuple[str, str], tuple[Destination, Address | None, list[int]]] = {}
        for index, (recipient, sender) in enumerate(zip(recipients, attempt.senders, strict=True)):
            found = self._destinations.of(recipient.address.domain, recipient.hop)
            key = (found.key, sender.domain if sender is not None else "")
            group = groups.get(key)
            if group is None:
                groups[key] = (found, sender, [index])
            else:
                group[2].append(index)
        for found, sender, indexes in groups.values():
            line = self._line(attempt.message, found, sender)
            errand = _Errand(attempt, line, found.manner, found.hop, indexes)
            await self._run(errand)

    async def close(self) -> None:
        """See IDelivery. Attempts under way end in "try later"."""
        await self._sessions.close()

    # --- one destination -----------------------------------------------------------------------

    async def _run(self, errand: _Errand) -> None:
        domain = errand.attempt.recipients[errand.left[0]].address.domain
        while errand.left and (idle := self._sessions.take(errand.line)) is not None:
            await self._use(errand, idle)
        if not errand.left and not errand.put_off:
            return
        try:
            way = await self._hosts.way(domain, errand.hop)
        except Unroutable as error:
            errand.attempt.give_up(errand.left, Trouble(error.reply))
            return
        errand.trouble = Trouble(way.nowhere())
        await self._try_hosts(errand, way)
        if errand.left:
            errand.attempt.give_up(errand.left, errand.trouble)

    async def _try_hosts(self, errand: _Errand, way: Way) -> None:
        """All hosts in their order, until everybody is served."""
        tries = MAX_TRIES
        until = self._reactor.seconds() + MAX_TIME
        for level in way.levels():
            try:
                hosts = await self._hosts.resolve(way, level)
            except Unroutable as error:
                if tries == MAX_TRIES:  # RFC 5321 §5.1: where better hosts were tried, what they said counts
                    errand.trouble.note(error.reply, final=error.reply.permanent)
                return
            for host in hosts:
                if host.reply is not None:
                    errand.trouble.note(host.reply)
                addresses = self._sessions.order(host.addresses, errand.line)[:tries]
                tries -= len(addresses)
                while addresses := self._worth_trying(errand, addresses):
                    if self._reactor.seconds() >= until:
                        errand.trouble.leave_open()
                        return
                    await self._try_host(errand, way, host.target, addresses)
                    if not errand.left and not errand.put_off:
                        return

    def _worth_trying(self, errand: _Errand, addresses: list[str]) -> list[str]:
        """Without those that have told all that is left to ask."""
        return addresses if errand.left else [one for one in addresses if one not in errand.heard]

    async def _try_host(self, errand: _Errand, way: Way, target: Target, addresses: list[str]) -> None:
        """One session with a host, if any of its addresses gives one; what was tried is taken out of `addresses`."""

        def failed(remote: str, error: SessionError) -> None:
            self._no_session(errand, remote, error)

        connection = await self._sessions.open(
            way, target, addresses, errand.line, errand.manner.connect_timeout, failed
        )
        if connection is None:
            return
        if connection.address not in errand.heard:
            errand.left += errand.put_off
            errand.put_off = []
        await self._use(errand, connection)
        if not errand.left:
            return
        if errand.attempt.spent:
            addresses.insert(0, connection.address)  # for another session with the same host
            reply = Reply(451, "4.5.3", "the host takes only so much in one session")
        else:
            reply = errand.attempt.lost
        errand.trouble.note(reply, connection.remote, reached=True)

    def _no_session(self, errand: _Errand, remote: str, error: SessionError) -> None:
        self.log.info(
            "{queue_id}: no session with {remote}: {reply}",
            queue_id=errand.attempt.message.id,
            remote=remote,
            reply=str(error.reply),
        )
        errand.attempt.met(remote, error.reply, error.transcript)
        # RFC 5321 §5.1: a 554 greeting, or a refused EHLO, is one host's word; there may be others. What it
        # thinks of our password is a matter between us and the smarthost, and no fault of the message.
        final = error.reply.permanent and error.state not in AUTH_STATES
        reply = error.reply
        if errand.line.need is Need.PROOF and lacks_tls(error):
            reply, final = _tls_needed(reply), True
        errand.trouble.note(reply, remote, final=final, reached=_spoke(error))

    async def _use(self, errand: _Errand, connection: SmtpConnection) -> None:
        manner = errand.manner
        # One that only stands in for a better host must not get the mail that comes next.
        stands_in = not errand.heard <= {connection.address}
        try:
            errand.left = await errand.attempt.use(connection, errand.left, manner.max_recipients)
        finally:
            errand.put_off += errand.attempt.put_off
            if errand.attempt.put_off:
                errand.heard.add(connection.address)
            # One that takes no more of this message is of little use to the next.
            most = 0 if errand.attempt.spent or stands_in else manner.max_messages
            self._sessions.give_back(errand.line, connection, most)


def _spoke(error: SessionError) -> bool:
    """Whether there was a mail server. What accepts a connection and never greets is none.

    What we have against its TLS is no reason to keep other messages from it.
    """
    # RFC 3463 §3.5: X.4.1 no answer, X.4.2 bad connection.
    return error.state not in (None, State.GREETING) or not error.reply.enhanced.startswith("4.4.")


def _need(message: QueuedMessage) -> Need:
    if message.tls is TlsWish.OPTIONAL:
        return Need.IGNORE  # RFC 8689 §4.2.2
    if needs_tls(message):
        return Need.PROOF
    return Need.PROOF_IF_POSSIBLE if prefers_tls(message) else Need.NONE


def _tls_needed(reply: Reply) -> Reply:
    # RFC 8689 §4.2.1: the sender is told, and nothing is tried again.
    return Reply(550, "5.7.10", f"the message requires TLS (REQUIRETLS), which can't be had: {reply}")

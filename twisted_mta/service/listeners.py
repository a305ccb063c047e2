"""The listening sockets: binds each [[listen]], and makes the right session for who connects."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from ipaddress import IPv6Address, ip_address
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.logger import Logger

from twisted_mta.config.schema import Config, Listen, Role
from twisted_mta.core.admission import Admission, Bounds
from twisted_mta.core.imap.session import ImapSettings, ImapTimes
from twisted_mta.core.pop3.server import Pop3Settings
from twisted_mta.core.pop3.states import Pop3Times
from twisted_mta.core.replies import Reply
from twisted_mta.core.smtp.settings import Audience, BareNewlines, ServerSettings
from twisted_mta.core.smtp.settings import Role as SmtpRole
from twisted_mta.core.smtp.states import Times
from twisted_mta.interfaces import IAuthenticator, IMailboxes, IReception, Peer
from twisted_mta.net.eager import send_at_once
from twisted_mta.net.imap import imap_session
from twisted_mta.net.pop3 import pop3_session
from twisted_mta.net.proxy import ProxyFactory
from twisted_mta.net.session import Session, SessionFactory
from twisted_mta.net.shared_port import SharedPort
from twisted_mta.net.smtp import session_settings, smtp_session
from twisted_mta.net.tls import ServerTls
from twisted_mta.policy.base import is_within
from twisted_mta.service.sockets import bound_port, shown
from twisted_mta.store.threads import InlineWorkers, Workers

log = Logger()


@attrs.define(kw_only=True)
class Serving:
    """What new sessions are made from. A reload replaces fields; sessions that are open keep what they began with."""

    reactor: Any
    config: Config
    tls: ServerTls | None
    reception: IReception
    mailboxes: IMailboxes
    authenticator: IAuthenticator
    workers: Workers | InlineWorkers
    #: The settings of SMTP sessions made so far, by what they depend on, and from what they were made.
    _made: dict[object, ServerSettings] = attrs.field(init=False, factory=dict)
    _made_from: object = attrs.field(init=False, default=None)

    def smtp_settings(self, role: Role, host: str) -> ServerSettings:
        """For a session with a client at an IP address: made once for all clients that are alike."""
        config, scram = self.config, self.authenticator.offers_scram()
        if self._made_from != (config, self.tls):
            self._made, self._made_from = {}, (config, self.tls)
        relay = config.relay
        key = (role, scram, is_within(host, relay.networks), is_within(host, relay.xclient_networks))
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = session_settings(
                smtp_settings(config, role, host, scram=scram),
                host,
                tls=self.tls is not None,
                trusts=partial(is_within, networks=relay.networks),
            )
        return found


def peer_host(address: IAddress | None) -> tuple[str, int]:
    """The IP address and port of a peer. An IPv4 client on an IPv6 socket is an IPv4 client; a UNIX socket is this host."""
    return _ip(getattr(address, "host", "127.0.0.1")), getattr(address, "port", 0)


@lru_cache(1024)
def _ip(host: str) -> str:
    parsed = ip_address(host.partition("%")[0])
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return str(parsed)


#: The rules of each listener that speaks SMTP.
_RULES = {
    Role.MX: SmtpRole.MX,
    Role.SUBMISSION: SmtpRole.SUBMISSION,
    Role.SUBMISSIONS: SmtpRole.SUBMISSION,
    Role.LMTP: SmtpRole.LMTP,
}


_EARLY = Reply(554, "5.7.1", "You spoke before the greeting: a mail client waits for it")


def _spoke_early(peer: Peer) -> bytes:
    # RFC 5321 §4.3.1: the client waits for the greeting; §3.1: 554 stands in its place. Programs that do not
    # wait do not listen either, so that waiting for their QUIT would only cost a connection.
    log.info("refused {peer}: it spoke before the greeting", peer=peer.address, session=peer.session_id)
    return _EARLY.encode()


def smtp_settings(config: Config, role: Role, host: str, *, scram: bool) -> ServerSettings:
    """The rules of a session with a client at an IP address; `scram`: SCRAM is offered. What TLS and trust add is
    `net.smtp.session_settings`'s."""
    limits = config.limits
    return ServerSettings(
        hostname=config.hostname,
        greeting=config.greeting,
        size_limit=limits.message_size,
        recipient_limit=limits.recipients,
        message_limit=limits.messages,
        error_limit=limits.errors,
        idle_limit=limits.idle_commands,
        refusal_limit=limits.refused_recipients,
        times=Times(
            command=limits.smtp_timeout,
            block=limits.data_timeout,
            message=limits.message_time,
            login=limits.login_timeout,
        ),
        bare_newlines=BareNewlines(limits.bare_newlines),
        deliver_by_minimum=int(limits.deliver_by_minimum),
        vrfy=Audience(limits.vrfy),
        expn=Audience(limits.expn),
        help=config.help,
        role=_RULES[role],
        scram=scram,
        hold_limit=int(limits.hold),
        xclient=is_within(host, config.relay.xclient_networks),
    )


def greeting_delay(config: Config, role: Role, host: str) -> float:
    """How many seconds a client at an IP address waits for the greeting."""
    delay = config.limits.greeting_delay
    return 0.0 if not delay or role is not Role.MX or is_within(host, config.relay.networks) else delay


def _smtp(serving: Serving, role: Role, address: IAddress | None) -> Session:
    config, limits = serving.config, serving.config.limits
    host, port = peer_host(address)
    settings = serving.smtp_settings(role, host)
    peer = Peer(address=host, port=port, role=role.value, session_id=os.urandom(4).hex())
    session = smtp_session(
        settings,
        serving.reception,
        peer,
        serving.reactor,
        tls=serving.tls,
        implicit_tls=role.implicit_tls,
        handshake=limits.handshake_timeout,
        trusts=partial(is_within, networks=config.relay.networks),
    )
    delay = greeting_delay(config, role, host)
    if delay:
        session.hold_greeting(delay, partial(_spoke_early, peer))
    return session


def _imap(serving: Serving, role: Role, address: IAddress | None) -> Session:
    limits = serving.config.limits
    settings = ImapSettings(
        hostname=serving.config.hostname,
        tls_available=serving.tls is not None,
        append_limit=limits.message_size,
        scram=serving.authenticator.offers_scram(),
        errors=limits.errors,
        times=ImapTimes(login=limits.login_timeout, idle=limits.imap_timeout, message=limits.message_time),
    )
    return imap_session(
        settings,
        serving.mailboxes,
        serving.authenticator,
        serving.reactor,
        serving.workers.run,
        peer=peer_host(address)[0],
        tls=serving.tls,
        implicit_tls=role.implicit_tls,
        handshake=limits.handshake_timeout,
    )


def _pop3(serving: Serving, role: Role, address: IAddress | None) -> Session:
    limits = serving.config.limits
    return pop3_session(
        Pop3Settings(
            hostname=serving.config.hostname,
            error_limit=limits.errors,
            scram=serving.authenticator.offers_scram(),
            times=Pop3Times(login=limits.login_timeout, idle=limits.pop3_timeout),
        ),
        serving.mailboxes,
        serving.authenticator,
        peer_host(address)[0],
        serving.reactor,
        tls=serving.tls,
        implicit_tls=role.implicit_tls,
        handshake=limits.handshake_timeout,
    )


def _bounds(config: Config) -> Bounds:
    limits, relay = config.limits, config.relay
    proxies = (network for listen in config.listen for network in listen.proxy_networks)
    sure = limits.connections * limits.connections_share // 100
    return Bounds(
        total=limits.connections,
        per_address=limits.connections_per_address,
        per_network=limits.connections_per_network,
        rate=limits.connection_rate,
        # Those who are trusted may well be many: the clients of a web mail, or behind a filter.
        exempt=(*limits.exempt_networks, *relay.networks, *relay.xclient_networks, *proxies),
        sure={listen.role.service: sure for listen in config.listen},
    )


Maker = Callable[[Serving, Role, IAddress | None], Session]

# What a client over the connection limit hears: RFC 5321 §3.8, RFC 3501 §7.1.5, RFC 3206 §4.
_SMTP_BUSY = b"421 4.7.0 Too many connections, try again later\r\n"
_IMAP_BUSY = b"* BYE Too many connections, try again later\r\n"
_POP3_BUSY = b"-ERR [SYS/TEMP] Too many connections, try again later\r\n"

#: Role -> what makes its sessions, and what a client hears when there are too many.
_ROLES: Mapping[Role, tuple[Maker, bytes]] = {
    Role.MX: (_smtp, _SMTP_BUSY),
    Role.SUBMISSION: (_smtp, _SMTP_BUSY),
    Role.SUBMISSIONS: (_smtp, _SMTP_BUSY),
    Role.LMTP: (_smtp, _SMTP_BUSY),
    Role.IMAP: (_imap, _IMAP_BUSY),
    Role.IMAPS: (_imap, _IMAP_BUSY),
    Role.POP3: (_pop3, _POP3_BUSY),
    Role.POP3S: (_pop3, _POP3_BUSY),
}


@attrs.define
class Listener:
    """One bound socket."""

    listen: Listen
    factory: SessionFactory
    port: IListeningPort

    @property
    def address(self) -> str:
        """Where it really listens ("127.0.0.1:2525"): of interest where the configuration says port 0."""
        return shown(self.port.getHost())


class Listeners:
    """All listening sockets of the server."""

    log = Logger()

    def __init__(self, reactor: Any, config: Config) -> None:
        self._reactor = reactor
        #: Counts connections.
        self.admission = Admission(_bounds(config), reactor.seconds)
        #: Set before the reactor accepts the first connection.
        self._serving: Serving | None = None
        self.bound: list[Listener] = []
        #: Worker -> its sockets, of which the others take care while it is not there.
        self._others: dict[int, list[SharedPort]] = {}

    def serve(self, serving: Serving) -> None:
        """Make sessions from this from now on."""
        self._serving = serving

    @property
    def serving(self) -> Serving:
        """What sessions are made from."""
        assert self._serving is not None  # startService comes before the reactor runs
        return self._serving

    def bind(self, listens: Sequence[Listen]) -> None:
        """Bind every socket. Raises BindError; what was bound until then stays so (the program ends)."""
        for listen in listens:
            factory = self.factory(listen.role)
            port = bound_port(listen, self._wrapped(listen, factory), self._reactor)
            send_at_once(port)
            listener = Listener(listen, factory, port)
            self.bound.append(listener)
            self.log.info("{role} listens on {address}", role=listen.role.value, address=listener.address)

    def inherit(self, listens: Sequence[Listen], sockets: Sequence[Sequence[int]], worker: int) -> None:
        """Take over what the parent has bound: for each listener one socket for all workers, or one for each of them."""
        for listen, descriptors in zip(listens, sockets, strict=True):
            factory = self.factory(listen.role)
            wrapped = self._wrapped(listen, factory)
            ports = [SharedPort(descriptor, wrapped, self._reactor) for descriptor in descriptors]
            own = ports[worker % len(ports)]
            self.bound.append(Listener(listen, factory, own))
            own.startListening()
            for number, port in enumerate(ports):
                if port is not own:
                    self._others.setdefault(number, []).append(port)

    def cover(self, workers: Collection[int]) -> None:
        """Serve those too who would have come to these workers, which are not there now."""
        for number, ports in self._others.items():
            for port in ports:
                (port.startListening if number in workers else port.rest)()

    def _wrapped(self, listen: Listen, factory: SessionFactory) -> Any:
        return ProxyFactory(factory, listen.proxy_networks, self._reactor) if listen.proxy else factory

    def factory(self, role: Role) -> SessionFactory:
        """What makes the sessions of one socket of that role."""
        make, busy = _ROLES[role]
        return SessionFactory(
            lambda address: make(self.serving, role, address),
            b"" if role.implicit_tls else busy,
            self.admission,
            role.service,
        )

    def reconfigure(self) -> None:
        """Take over changed limits."""
        self.admission.bounds = _bounds(self.serving.config)

    def refusal(self, host: str, role: Role) -> str:
        """Why a client at that IP address would not be let in now; "" if it would be."""
        return self.admission.refusal(self.admission.counted(host), role.service)

    @property
    def connections(self) -> int:
        """How many are open, at all sockets together."""
        return self.admission.total

    def services(self) -> list[dict[str, object]]:
        """For `mta status`: the connections of each service, and how many it is sure of."""
        return [
            {"service": service, "connections": self.admission.open(service), "sure of": sure}
            for service, sure in self.admission.bounds.sure.items()
        ]

    async def stop(self) -> None:
        """Stop listening, tell open sessions, and wait until they are gone."""
        ports = [listener.port for listener in self.bound] + [
            port for each in self._others.values() for port in each
        ]
        await DeferredList([maybeDeferred(port.stopListening) for port in ports])
        endings = [
            Deferred.fromCoroutine(listener.factory.shut_down(self._reactor)) for listener in self.bound
        ]
        await DeferredList(endings)

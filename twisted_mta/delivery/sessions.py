"""Sessions with other hosts: opened with as much TLS as is needed or can be had, and kept for the next message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import attrs
from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.logger import Logger

from twisted_mta.config.destinations import Source
from twisted_mta.config.schema import Relay, Route
from twisted_mta.core.replies import Reply
from twisted_mta.core.route import Target, dns_name
from twisted_mta.core.smtp.client import Login, SmtpClient, State, Timeouts
from twisted_mta.core.values import value
from twisted_mta.delivery.connections import ConnectionCache
from twisted_mta.delivery.families import Families, family
from twisted_mta.delivery.hosts import Way
from twisted_mta.delivery.race import race
from twisted_mta.delivery.tls_policy import Demand, Need, Next, Pin
from twisted_mta.delivery.tls_steps import Step, TlsSteps
from twisted_mta.net.scram_client import ScramHelper
from twisted_mta.net.smtp_client import OpportunisticTls, SessionError, SmtpConnection, dial

T = TypeVar("T")

#: Seconds after which the next address of a host is tried beside the one that does not answer: RFC 8305 §5.
STAGGER = 0.25


@value
class Line:
    """What sessions must have in common for a message to go over any of them."""

    #: As IDelivery.destination gives it.
    destination: str
    need: Need = Need.NONE
    source: Source = attrs.field(factory=Source)
    pin: Pin = attrs.field(factory=Pin)


#: Told of each address that gave no session: what it is called, and why.
OnFailure = Callable[[str, SessionError], None]


class Sessions:
    """Opens sessions, and keeps those that are idle."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        hostname: str,
        tls_context: SSL.Context,
        login: Login | None,
        scram: ScramHelper,
        tls: TlsSteps,
    ) -> None:
        """`reactor` provides IReactorTCP and IReactorTime; `tls_context` is that of net.smtp_client.opportunistic_context.

        A `login` is for the `smarthost`, given to it only under TLS with a certificate that proves its name.
        """
        self._reactor = reactor
        self._hostname = hostname
        self._tls_context = tls_context
        self._cache = ConnectionCache(reactor)
        self._families = Families(reactor, ())
        self._opening: set[Deferred[Any]] = set()
        self._closed = False
        self.login = login
        self._scram = scram
        self._timeouts = Timeouts()
        self._tls = tls
        #: Where to log in.
        self.smarthost: Route | None = None

    def reconfigure(self, settings: Relay) -> None:
        """The settings have changed: idle sessions end, since a route may lead elsewhere now."""
        self._cache.keep_open = settings.keep_open
        self._families.preferred = settings.families
        self.smarthost = settings.smarthost
        self._timeouts = Timeouts(**attrs.asdict(settings.timeouts))
        self._cache.quit_idle()

    def set_login(self, login: Login | None) -> None:
        """Log in with this at the smarthost from the next session on."""
        self.login = login
        self._cache.quit_idle()

    def take(self, line: Line) -> SmtpConnection | None:
        """An idle session, or None."""
        return self._cache.take(line)

    def give_back(self, line: Line, connection: SmtpConnection, max_messages: int) -> None:
        """A session that is not needed now: it is kept, or ended after so many messages."""
        self._cache.give_back(line, connection, max_messages)

    async def close(self) -> None:
        """Give up what is being opened, and end all sessions."""
        self._closed = True
        for opening in list(self._opening):
            opening.cancel()
        await self._cache.close()

    async def foresee(self, way: Way, target: Target, line: Line) -> Sequence[Step] | Demand:
        """Which TLS a session with a host would have: see TlsSteps.foresee."""
        login = self._logs_in(way)
        return await self._tls.foresee(_next(way, target), line.pin, line.need, login=login)

    def name(self, line: Line) -> str:
        """What we say at EHLO."""
        return line.source.helo or self._hostname

    # --- opening -------------------------------------------------------------------------------

    def order(self, addresses: Sequence[str], line: Line) -> list[str]:
        """The addresses of a host in the order in which to try them; without those of families that we do not use."""
        return self._families.order(addresses, {family(address) for address in line.source.bind})

    async def open(
        self, way: Way, target: Target, left: list[str], line: Line, timeout: float, failed: OnFailure
    ) -> SmtpConnection | None:
        """A session with the address that answers first; None if it gives none, or no address answers.

        `left` are the addresses of one host; those that were tried are taken out of it, one at least. `timeout` is for
        connecting.
        """
        login = self._logs_in(way)
        planning = self._tls.plan(_next(way, target), line.pin, line.need, login=login)
        try:
            steps = await self._cancellable(Deferred.fromCoroutine(planning))
            dialled = await self._fastest(way, target, left, line, steps[0], timeout, failed)
        except SessionError as error:  # the host gets no mail, or the server stops
            failed(target.host, error)
            left.clear()
            return None
        if dialled is None:
            return None
        address, connection = dialled
        try:
            return await self._ready_with(way, target, address, connection, line, steps, timeout)
        except SessionError as error:
            failed(_remote(target, address), error)
            return None

    async def _fastest(
        self,
        way: Way,
        target: Target,
        left: list[str],
        line: Line,
        step: Step,
        timeout: float,
        failed: OnFailure,
    ) -> tuple[str, SmtpConnection] | None:
        """The address that is connected first; it and those that failed are taken out of `left`."""
        addresses = list(left)
        running = race(
            self._reactor,
            [partial(self._dial, way, target, one, line, step, timeout) for one in addresses],
            STAGGER,
            _drop,
        )
        result = await self._cancellable(running)
        for number, error in sorted(result.failures.items()):
            if not isinstance(error, SessionError):
                raise RuntimeError(f"no connection to {addresses[number]}, because of a bug") from error
            left.remove(addresses[number])
            failed(_remote(target, addresses[number]), error)
        if result.winner is None or result.prize is None:
            return None
        address = addresses[result.winner]
        left.remove(address)
        silent = [
            one
            for number, one in enumerate(addresses[: result.winner])
            if not _refused(result.failures.get(number))
        ]
        self._families.ended(address, silent)
        return address, result.prize

    async def _ready_with(
        self,
        way: Way,
        target: Target,
        address: str,
        connection: SmtpConnection,
        line: Line,
        steps: Sequence[Step],
        timeout: float,
    ) -> SmtpConnection:
        """The connection as a session, or another one with less TLS. Raises SessionError."""
        problem = ""
        for step, less in pairwise((*steps, None)):
            assert step is not None  # only the last is
            try:
                await self._cancellable(connection.ready)
            except SessionError as error:
                if not lacks_tls(error):
                    raise
                explained = self._tls.failed(connection, step, address, error)
                if less is None:
                    raise explained from None
                problem = error.reply.text
                self.log.warn(
                    "TLS with {remote} failed, trying with less: {reply}",
                    remote=connection.remote,
                    reply=str(error.reply),
                )
            else:
                self._tls.opened(connection, step, address, problem)
                break
            connection = await self._cancellable(
                Deferred.fromCoroutine(self._dial(way, target, address, line, less, timeout))
            )
        self._cache.opened(connection)
        return connection

    async def _dial(
        self, way: Way, target: Target, address: str, line: Line, step: Step, timeout: float
    ) -> SmtpConnection:
        """One connection to one address. Raises SessionError."""
        if self._closed:
            raise _stopping()
        creator = OpportunisticTls(self._tls_context, step.demand.policy.sni)
        login = self.login if self._logs_in(way) else None
        core = SmtpClient(
            self.name(line),
            tls=step.use,
            login=login,
            nonces=self._scram.nonce,
            timeouts=self._timeouts,
        )
        connection = SmtpConnection(core, self._reactor, creator, self._scram)
        connection.remote = _remote(target, address)
        connection.address = address
        self._tls.prepare(connection, step)
        bind = bound(line, address)
        return await dial(self._reactor, connection, address, target.port, timeout=timeout, bind=bind)

    async def _cancellable(self, waiting: Deferred[T]) -> T:
        """What `close` need not wait for. Raises SessionError where it was cut off."""
        self._opening.add(waiting)
        try:
            return await waiting
        except CancelledError:
            raise _stopping() from None
        finally:
            self._opening.discard(waiting)

    def _logs_in(self, way: Way) -> bool:
        if self.login is None or self.smarthost is None or way.hop is None or not way.fixed:
            return False
        return (way.hop.host, way.hop.port) == (self.smarthost.host, self.smarthost.port)


def bound(line: Line, address: str) -> str:
    """Our own address on sessions with an address; "": whichever the system chooses."""
    return next((one for one in line.source.bind if family(one) == family(address)), "")


def _next(way: Way, target: Target) -> Next:
    domain = ""
    if way.hop is None:
        domain = "" if target.literal else dns_name(way.domain)
    elif way.hop.mx:
        domain = way.hop.host
    return Next(domain=domain, host=target.host, port=target.port, fixed=way.fixed, literal=target.literal)


def _remote(target: Target, address: str) -> str:
    return f"{target.host} [{address}]"


def _drop(connection: SmtpConnection) -> None:
    """Nobody wants this one."""
    connection.ready.addErrback(lambda _: None)
    connection.ready.cancel()


def _refused(error: Exception | None) -> bool:
    """Whether the other host said no: so there is a way to it."""
    return error is not None and isinstance(error.__cause__, ConnectionRefusedError)


def _stopping() -> SessionError:
    return SessionError(None, Reply(451, "4.3.2", "the mail server is stopping"))


def lacks_tls(error: SessionError) -> bool:
    """Whether a session failed for want of TLS that can be trusted."""
    return error.state in (State.STARTTLS, State.HANDSHAKE) or error.reply.enhanced == "4.7.10"

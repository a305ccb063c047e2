"""Asking the hosts of a destination whether they would take mail for an address, without a message."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twisted_mta.config.destinations import Destination
from twisted_mta.core.address import Address
from twisted_mta.core.callout import Verdict, verdict_of
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.route import Unroutable
from twisted_mta.core.smtp.transaction import Transaction
from twisted_mta.core.values import value
from twisted_mta.delivery.hosts import Hosts, Way
from twisted_mta.delivery.sessions import Line, Sessions
from twisted_mta.net.smtp_client import SessionError, SmtpConnection

#: Addresses of hosts that are tried for one answer.
MAX_TRIES = 6
#: Seconds before the end in which nothing is begun.
_LATE = 0.001


@value
class Heard:
    """What came of it: the reply, the host that said it ("": nobody, it is ours), and what it says of the address."""

    verdict: Verdict
    reply: Reply
    remote: str = ""


class Enquiry:
    """One question."""

    log = Logger()

    def __init__(
        self,
        hosts: Hosts,
        sessions: Sessions,
        clock: IReactorTime,
        found: Destination,
        line: Line,
        address: Address,
    ) -> None:
        self._hosts = hosts
        self._sessions = sessions
        self._clock = clock
        self._found = found
        self._line = line
        self._address = address
        self._heard = Heard(Verdict.UNANSWERED, Reply(451, "4.4.1", "no host was reached"))
        self._until = 0.0

    async def ask(self, until: float) -> Heard:
        """The first answer of a host before that time; else the last thing that was heard. To be cancelled then."""
        self._until = until
        while (idle := self._sessions.take(self._line)) is not None:
            if await self._question(idle):
                return self._heard
        try:
            way = await self._hosts.way(self._address.domain, self._found.hop)
            await self._ask_hosts(way)
        except Unroutable as error:
            self._heard = Heard(Verdict.UNANSWERED, error.reply)
        return self._heard

    async def _ask_hosts(self, way: Way) -> None:
        """All hosts in their order, until one says something. Raises Unroutable."""
        self._heard = Heard(Verdict.UNANSWERED, way.nowhere())
        tries = MAX_TRIES
        for level in way.levels():
            for host in await self._hosts.resolve(way, level):
                addresses = self._sessions.order(host.addresses, self._line)[:tries]
                tries -= len(addresses)
                if host.reply is not None:
                    self._heard = Heard(Verdict.UNANSWERED, host.reply)
                while addresses:
                    if self._is_late:
                        return
                    timeout = min(self._until - self._clock.seconds(), self._found.manner.connect_timeout)
                    connection = await self._sessions.open(
                        way, host.target, addresses, self._line, timeout, self._no_session
                    )
                    if connection is not None and await self._question(connection):
                        return

    @property
    def _is_late(self) -> bool:
        return self._until - self._clock.seconds() < _LATE

    def _no_session(self, remote: str, error: SessionError) -> None:
        if self._is_late:  # it was cancelled, which looks as if the server stopped
            self._heard = Heard(Verdict.UNANSWERED, Reply(451, "4.4.1", f"{remote} does not answer in time"))
            return
        self.log.info(
            "no callout about {recipient} at {remote}: {reply}",
            recipient=str(self._address),
            remote=remote,
            reply=str(error.reply),
        )
        # Whatever a host has against us, it says nothing of the address.
        self._heard = Heard(Verdict.UNANSWERED, error.reply)

    async def _question(self, connection: SmtpConnection) -> bool:
        """Ask over a session; whether there was an answer."""
        # RFC 5321 §4.5.5: the null sender, so that nothing can ever come back of it.
        transaction = Transaction(sender=None, recipients=(Recipient(self._address),), size=0, probe=True)
        try:
            done = await connection.send(transaction, _nothing)
        except CancelledError:  # it takes too long
            connection.abort()
            raise
        (reply,) = done.replies
        self._sessions.give_back(self._line, connection, self._found.manner.max_messages)
        verdict = verdict_of(reply, sender_refused=done.sender_refused)
        self._heard = Heard(verdict, reply, connection.remote)
        return not done.undecided


async def _nothing() -> bytes:
    """A probe has no message."""
    return b""

"""The name that a client's address has in the DNS, and whether that name leads back to the address.

The look-up begins when the client connects and runs beside the session; the session waits for it only where the result
is needed, and never longer than PATIENCE after the start.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, ClassVar

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_mta.config.schema import Network
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.replies import Reply
from twisted_mta.core.route import LookupFailed, NoSuchDomain
from twisted_mta.core.values import value
from twisted_mta.interfaces import IMailResolver, IPolicyCheck, Peer
from twisted_mta.policy.base import Accepting, Verdict, is_loopback, is_stranger

#: Seconds for all look-ups of one client together.
PATIENCE = 5.0
#: Names of one address that are tried: a client could have thousands.
MAX_NAMES = 5

_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*")
_NOTE = "reverse_dns"


class Finding(enum.Enum):
    """How a look-up ended."""

    NAME = "a name that leads back to the address"
    TEMPORARY = "the DNS did not answer"
    NONE = "no such name"


@value
class Host:
    """What the DNS says about an address. A `name` without Finding.NAME may be anybody's."""

    finding: Finding
    name: str = ""


async def find_host(resolver: IMailResolver, address: str) -> Host:
    """Ask for the names of an IP address, and for the addresses of these. Never raises for what the DNS says."""
    try:
        answer = await resolver.ptr(address)
    except NoSuchDomain:
        answer = ()
    except LookupFailed:
        return Host(Finding.TEMPORARY)
    names = [name.lower() for name in answer[:MAX_NAMES] if _NAME.fullmatch(name)]
    wanted = ip_address(address)

    async def leads_back(name: str) -> bool:
        return any(ip_address(found) == wanted for found in await resolver.addresses(name))

    results: Any = await DeferredList(
        [Deferred.fromCoroutine(leads_back(name)) for name in names], consumeErrors=True
    )
    finding = Finding.NONE
    for name, (success, result) in zip(names, results, strict=True):
        if success and result:
            return Host(Finding.NAME, name)
        if isinstance(result, Failure):
            if isinstance(result.value, LookupFailed):
                finding = Finding.TEMPORARY
            elif not isinstance(result.value, NoSuchDomain):
                result.raiseException()
    return Host(finding, names[0] if names else "")


class _Lookup:
    """One look-up under way, for one client."""

    log = Logger()

    def __init__(self, peer: Peer, resolver: IMailResolver, clock: IReactorTime) -> None:
        self.address = peer.address
        self.host: Host | None = None
        #: Whether it was said what "require" would do.
        self.told = False
        self._peer = peer
        self._waiting: list[Deferred[Host]] = []
        self._patience: IDelayedCall = clock.callLater(PATIENCE, self._found, Host(Finding.TEMPORARY))
        looking = Deferred.fromCoroutine(find_host(resolver, peer.address))
        looking.addCallback(self._found).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self.log.failure("reverse look-up of {peer} failed", failure=failure, peer=self.address)
        self._found(Host(Finding.TEMPORARY))

    def _found(self, host: Host) -> None:
        if self.host is not None:
            return  # the answer came too late
        self.host = host
        if self._patience.active():
            self._patience.cancel()
        if self._peer.address == self.address:
            self._peer.host, self._peer.host_verified = host.name, host.finding is Finding.NAME
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(host)

    def wait(self) -> Deferred[Host]:
        """Fires with the host, sooner or later; cancelling does nothing to the look-up."""
        result: Deferred[Host] = Deferred()
        self._waiting.append(result)
        return result


@implementer(IPolicyCheck)
class ReverseDnsCheck(Accepting):
    """Looks at the names of the clients of mx listeners; with `require` strangers without one can't send."""

    log = Logger()
    settings: ClassVar[tuple[str, ...]] = ("checks.reverse_dns",)
    needs_address: ClassVar[bool] = True

    def __init__(
        self, resolver: IMailResolver, clock: IReactorTime, trusted: Sequence[Network], *, require: bool
    ) -> None:
        """`trusted` are the networks whose clients need no name; theirs stands in Received: if it is there in time."""
        self._resolver = resolver
        self._clock = clock
        self._trusted = tuple(trusted)
        self._require = require

    def on_connect(self, peer: Peer) -> Verdict:
        """See IPolicyCheck."""
        if peer.role == "mx" and not is_loopback(peer.address):
            self._lookup(peer)
        return None

    def on_rcpt(self, peer: Peer, envelope: Envelope, recipient: Recipient) -> Verdict:
        """See IPolicyCheck."""
        # RFC 5321 §4.5.1: the postmaster hears those too who are refused.
        if not self._require or recipient.address.local.lower() == "postmaster":
            return None
        return self._judge(peer)

    def on_message(self, peer: Peer, envelope: Envelope, header: bytes) -> Verdict:
        """See IPolicyCheck: the last moment before the name goes into Received:."""
        if not is_stranger(peer, self._trusted):
            return None
        lookup = self._lookup(peer)
        if lookup.host is None:
            return self._wait_and_tell(peer, lookup)
        self._tell(peer, lookup)
        return None

    def _lookup(self, peer: Peer) -> _Lookup:
        """The look-up for this client: the one under way, or another where it turned out to be somebody else."""
        lookup = peer.notes.get(_NOTE)
        if not isinstance(lookup, _Lookup) or lookup.address != peer.address:
            peer.host, peer.host_verified = "", False
            lookup = peer.notes[_NOTE] = _Lookup(peer, self._resolver, self._clock)
        return lookup

    def _judge(self, peer: Peer) -> Verdict:
        if not is_stranger(peer, self._trusted):
            return None
        lookup = self._lookup(peer)
        return _refusal(peer, lookup.host) if lookup.host is not None else self._wait_and_judge(peer, lookup)

    async def _wait_and_judge(self, peer: Peer, lookup: _Lookup) -> Reply | None:
        return _refusal(peer, await lookup.wait())

    async def _wait_and_tell(self, peer: Peer, lookup: _Lookup) -> None:
        await lookup.wait()
        self._tell(peer, lookup)

    def _tell(self, peer: Peer, lookup: _Lookup) -> None:
        """Say once a session what "require" would have done."""
        refusal = None if lookup.host is None else _refusal(peer, lookup.host)
        if refusal is None or self._require or lookup.told:
            return
        lookup.told = True
        if peer.remarks is not None:
            peer.remarks.append(f'would be refused with checks.reverse_dns = "require": {refusal}')
        else:
            self.log.info(
                '{peer} ({host}) would be refused with checks.reverse_dns = "require": {reply}',
                peer=peer.address,
                host=peer.host or "no name",
                session=peer.session_id,
                reply=str(refusal),
            )


def _refusal(peer: Peer, host: Host) -> Reply | None:
    # RFC 7372 §3.3: X.7.25 says that the reverse DNS of the client failed.
    match host.finding:
        case Finding.NAME:
            return None
        case Finding.TEMPORARY:
            text = f"The DNS does not tell the host name of your address {peer.address} just now, try again later"
            return Reply(450, "4.7.25", text)
        case Finding.NONE:
            text = f"Your address {peer.address} needs a host name in the DNS (PTR) that leads back to it (A, AAAA)"
            return Reply(550, "5.7.25", text)

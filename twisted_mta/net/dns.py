"""The stub resolver: asks recursive name servers what mail needs to know, and remembers it. Implements IMailResolver."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.logger import Logger
from twisted.names import dns
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_mta.core.route import LookupFailed, NoSuchDomain
from twisted_mta.core.tls_policy.tlsa import TlsaRecord
from twisted_mta.interfaces import IMailResolver, Proof
from twisted_mta.net.dns_exchange import Forged, NoAnswer, Server, ask_tcp, ask_udp
from twisted_mta.net.dns_message import (
    TLSA,
    Answer,
    Question,
    Response,
    host_text,
    is_host,
    read_additional,
    read_answer,
)

#: Seconds to wait for one server in each round over all of them.
WAITS = (2.0, 3.0, 5.0)
#: Answers remembered.
CACHE_SIZE = 10000
#: Questions on the wire at a time (each has a socket); more wait.
IN_FLIGHT = 200


class RandomId(Protocol):
    """The part of random.SystemRandom that is needed here."""

    def randrange(self, stop: int, /) -> int:
        """A number from 0 up to, but not including, `stop`, that nobody can guess."""
        ...


_Cache = OrderedDict[Question, tuple[float, Answer]]


@implementer(IMailResolver)
class StubResolver:
    """Asks `servers` in order, each with a time-out, until one gives a usable answer or `timeout` seconds are over."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        random: RandomId,
        servers: Sequence[Server],
        timeout: float = 10.0,
        *,
        validating: bool = False,
    ) -> None:
        """`reactor` provides IReactorUDP, IReactorTCP and IReactorTime; `random` must be unguessable (SystemRandom).

        `validating`: the servers check DNSSEC, and nobody can change what they say on its way here. Only then does the
        AD bit mean anything.
        """
        self._reactor = reactor
        self._random = random
        self._servers = tuple(servers)
        self._timeout = timeout
        self._validating = validating
        self._cache: _Cache = OrderedDict()
        #: Addresses that came with MX records. RFC 2181 §5.4.1: they are no answers, and only `addresses` looks here.
        self._additional: _Cache = OrderedDict()
        self._waiting: dict[Question, list[Deferred[Answer]]] = {}
        self._slots = DeferredSemaphore(IN_FLIGHT)
        self._running: set[Deferred[Answer]] = set()

    def reconfigure(self, servers: Sequence[Server], timeout: float, *, validating: bool = False) -> None:
        """Ask these servers from now on. What was remembered is forgotten: another view of the DNS may hold there."""
        self._servers = tuple(servers)
        self._timeout = timeout
        self._validating = validating
        self._cache.clear()
        self._additional.clear()

    def close(self) -> None:
        """Give up what is under way: whoever waits gets LookupFailed."""
        for running in list(self._running):
            running.cancel()

    # --- IMailResolver -------------------------------------------------------------------------

    async def mx(self, domain: str) -> Sequence[tuple[int, str]]:
        """See IMailResolver. Records that name no possible host are left out."""
        answer = await self.lookup(domain, dns.MX)
        found = [(record.preference, host_text(record.name.name)) for record in answer.records]
        usable = [(preference, host) for preference, host in found if host == "" or is_host(host)]
        if found and not usable:
            raise LookupFailed(f"the MX records of {domain} name no possible host")
        return usable

    async def addresses(self, host: str) -> Sequence[str]:
        """See IMailResolver. IPv4 comes first: many hosts have an IPv6 address that mail is not welcome from."""
        asked = [settle(self._lookup_address(host, kind)) for kind in (dns.A, dns.AAAA)]  # side by side
        results = [await one for one in asked]
        found: list[str] = []
        for result in results:
            if isinstance(result, Answer):
                found += [_address(record) for record in result.records]
        for result in results:
            # One family that can't be looked up does not matter while the other has something.
            if isinstance(result, Exception) and not found:
                raise result
        return found

    async def _lookup_address(self, host: str, kind: int) -> Answer:
        question = Question(_plain(host), kind)
        known = self._remembered(question) or self._remembered(question, self._additional)
        return known if known is not None and known.records else await self.lookup(host, kind)

    async def txt(self, name: str) -> Sequence[bytes]:
        """See IMailResolver."""
        answer = await self.lookup(name, dns.TXT)
        return [b"".join(record.data) for record in answer.records]

    async def ptr(self, address: str) -> Sequence[str]:
        """See IMailResolver. Names that no host can have are left out."""
        answer = await self.lookup(ipaddress.ip_address(address).reverse_pointer, dns.PTR)
        names = [host_text(record.name.name) for record in answer.records]
        return [name for name in names if is_host(name)]

    async def mx_proof(self, domain: str) -> Proof:
        """See IMailResolver."""
        answer = await self.lookup(domain, dns.MX)
        return Proof(secure=self._is_secure(answer), name=answer.name)

    async def address_proof(self, host: str) -> Proof:
        """See IMailResolver."""
        asked = [settle(self.lookup(host, kind)) for kind in (dns.A, dns.AAAA)]
        results = [await one for one in asked]
        answers = [result for result in results if isinstance(result, Answer)]
        for result in results:
            if isinstance(result, Exception) and not any(answer.records for answer in answers):
                raise result
        found = [answer for answer in answers if answer.records] or answers
        proof = Proof(secure=all(map(self._is_secure, found)), name=found[0].name)
        if proof.secure or not self._validating or proof.name == _plain(host):
            return proof
        # RFC 7672 §2.1.3: one of several aliases is not signed; was it the first?
        alias = await self.lookup(host, dns.CNAME)
        return attrs.evolve(proof, alias_secure=self._is_secure(alias))

    async def tlsa(self, name: str) -> Sequence[TlsaRecord]:
        """See IMailResolver."""
        answer = await self.lookup(name, TLSA)
        if not self._is_secure(answer):
            return ()
        records = (TlsaRecord.from_wire(record.data) for record in answer.records)
        return [record for record in records if record is not None]

    def _is_secure(self, answer: Answer) -> bool:
        return self._validating and answer.authentic

    # --- questions -----------------------------------------------------------------------------

    async def lookup(self, name: str, record_type: int) -> Answer:
        """The answer for one name and type; it has records, or is empty. Raises NoSuchDomain, LookupFailed."""
        question = Question(_plain(name), record_type)
        if not question.name.isascii() or not is_host(question.name):
            raise NoSuchDomain(f"{name!r} can't be a name in the DNS")
        answer = self._remembered(question)
        if answer is None:
            answer = await self._join(question)
        if not answer.exists:
            raise NoSuchDomain(f"{question.name} does not exist")
        return answer

    def _remembered(self, question: Question, cache: _Cache | None = None) -> Answer | None:
        cache = self._cache if cache is None else cache
        until, answer = cache.get(question, (0.0, None))
        if answer is None:
            return None
        if until <= self._reactor.seconds():
            del cache[question]
            return None
        cache.move_to_end(question)
        return answer

    def _remember(self, question: Question, answer: Answer, cache: _Cache) -> None:
        if answer.ttl <= 0:
            return
        cache[question] = (self._reactor.seconds() + answer.ttl, answer)
        while len(cache) > CACHE_SIZE:
            cache.popitem(last=False)

    def _join(self, question: Question) -> Deferred[Answer]:
        """Wait for the answer to a question, together with all others who ask the same."""
        mine: Deferred[Answer] = Deferred()
        waiting = self._waiting.get(question)
        if waiting is not None:
            waiting.append(mine)
            return mine
        self._waiting[question] = [mine]

        running = Deferred.fromCoroutine(self._resolve(question))
        self._running.add(running)

        def tell(result: Answer | Failure) -> None:
            self._running.discard(running)
            if isinstance(result, Failure) and isinstance(result.value, CancelledError):
                result = Failure(LookupFailed("the resolver was closed"))  # type: ignore[no-untyped-call]
            for one in self._waiting.pop(question):
                if not one.called:  # a waiter that was cancelled
                    one.callback(result)

        running.addBoth(tell)
        return mine

    async def _resolve(self, question: Question) -> Answer:
        await self._slots.acquire()
        try:
            answer = await self._ask_servers(question)
        finally:
            self._slots.release()
        self._remember(question, answer, self._cache)
        return answer

    async def _ask_servers(self, question: Question) -> Answer:
        deadline = self._reactor.seconds() + self._timeout
        problem = "no name server is configured"
        for wait in WAITS:
            for server in self._servers:
                left = deadline - self._reactor.seconds()
                if left <= 0:
                    raise LookupFailed(f"{problem} (gave up after {self._timeout:g} s)")
                try:
                    response = await self._ask(server, question, min(wait, left), deadline)
                except NoAnswer as error:
                    problem = str(error)
                    continue
                if response.rcode in (dns.OK, dns.ENAME):
                    answer = read_answer(response, question)
                    for asked, found in read_additional(response, question, answer).items():
                        self._remember(asked, found, self._additional)
                    return answer
                problem = f"{server.address} answered {_RCODES.get(response.rcode, response.rcode)}"
        raise LookupFailed(problem)

    async def _ask(self, server: Server, question: Question, wait: float, deadline: float) -> Response:
        """One server: by datagram, without EDNS if it knows none, over TCP if the answer does not fit."""
        edns = True
        try:
            response = await ask_udp(self._reactor, server, question, self._new_id(), edns, wait)
            if response.rcode in (dns.EFORMAT, dns.ENOTIMP):  # RFC 6891 §7: from before EDNS
                edns = False
                response = await ask_udp(self._reactor, server, question, self._new_id(), edns, wait)
            if not response.truncated:
                return response
        except Forged as forged:
            self.log.warn(
                "possibly forged DNS answers for {name}: {reason}", name=question.name, reason=str(forged)
            )
        left = max(deadline - self._reactor.seconds(), 0.0)
        return await ask_tcp(self._reactor, server, question, self._new_id(), edns, left)  # RFC 7766 §5

    def _new_id(self) -> int:
        return self._random.randrange(65536)  # RFC 5452 §9.2


_RCODES = {dns.EFORMAT: "FORMERR", dns.ESERVER: "SERVFAIL", dns.ENOTIMP: "NOTIMP", dns.EREFUSED: "REFUSED"}


def _plain(name: str) -> str:
    return name.removesuffix(".").lower()


def _address(record: Any) -> str:
    return str(ipaddress.ip_address(record.address))


def settle(awaitable: Awaitable[Answer]) -> Deferred[Answer | Exception]:
    """Start it now; the result is the answer, or the error of the DNS as a value."""

    async def run() -> Answer | Exception:
        try:
            return await awaitable
        except (NoSuchDomain, LookupFailed) as error:
            return error

    return Deferred.fromCoroutine(run())


def system_servers(path: Path = Path("/etc/resolv.conf")) -> tuple[Server, ...]:
    """The servers of resolv.conf(5), at most three; the local host where it names none or is not there."""
    try:
        text = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        text = ""
    return parse_resolv_conf(text)


def parse_resolv_conf(text: str) -> tuple[Server, ...]:
    """The "nameserver" lines of resolv.conf(5); addresses that are none (or need a zone) are passed over."""
    servers: list[Server] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                servers.append(Server(str(ipaddress.ip_address(words[1]))))
            except ValueError:
                continue
    return tuple(servers[:3]) or (Server("127.0.0.1"),)

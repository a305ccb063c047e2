"""A mail resolver for tests that answers from a dict, late or wrongly if told so, and a small real name server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet import protocol
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.names import dns
from twisted.protocols.basic import Int16StringReceiver
from zope.interface import implementer

from twisted_mta.core.route import LookupFailed, NoSuchDomain
from twisted_mta.core.tls_policy.tlsa import TlsaRecord
from twisted_mta.interfaces import IMailResolver, Proof


@implementer(IMailResolver)
class FakeResolver:
    """Knows what it is told; every other name does not exist.

        FakeResolver(mx={"x.test": [(10, "mx.x.test")]}, addresses={"mx.x.test": ["192.0.2.1"]})

    A value may also be an exception to raise. With `delay` (seconds) and a `clock` answers take that long.
    `asked` has every question: ("mx", "x.test").
    """

    def __init__(
        self,
        mx: dict[str, Any] | None = None,
        addresses: dict[str, Any] | None = None,
        txt: dict[str, Any] | None = None,
        ptr: dict[str, Any] | None = None,
        tlsa: dict[str, Any] | None = None,
        clock: IReactorTime | None = None,
        delay: float = 0.0,
    ) -> None:
        self.data: dict[str, dict[str, Any]] = {
            "mx": mx or {},
            "addresses": addresses or {},
            "txt": txt or {},
            "ptr": ptr or {},
            "tlsa": tlsa or {},
        }
        self.asked: list[tuple[str, str]] = []
        #: Names whose look-ups fail with LookupFailed.
        self.failing: set[str] = set()
        #: Names whose records DNSSEC proves.
        self.secure: set[str] = set()
        #: Alias -> the name behind it, for what the proofs say; the data must be there under both.
        self.aliases: dict[str, str] = {}
        self.delay = delay
        self._clock = clock

    async def _answer(self, kind: str, name: str) -> Any:
        self.asked.append((kind, name))
        if self.delay and self._clock is not None:
            waiting: Deferred[None] = Deferred()
            timer = self._clock.callLater(self.delay, waiting.callback, None)
            try:
                await waiting
            finally:
                if timer.active():
                    timer.cancel()
        if name in self.failing:
            raise LookupFailed(f"{name}: told to fail")
        value = self.data[kind].get(name)
        if isinstance(value, Exception):
            raise value
        if value is None:
            if not any(name in table for table in self.data.values()):
                raise NoSuchDomain(f"{name} does not exist")
            return ()
        return value

    async def mx(self, domain: str) -> Sequence[tuple[int, str]]:
        """See IMailResolver."""
        return await self._answer("mx", domain)  # type: ignore[no-any-return]

    async def addresses(self, host: str) -> Sequence[str]:
        """See IMailResolver."""
        return await self._answer("addresses", host)  # type: ignore[no-any-return]

    async def txt(self, name: str) -> Sequence[bytes]:
        """See IMailResolver."""
        return await self._answer("txt", name)  # type: ignore[no-any-return]

    async def ptr(self, address: str) -> Sequence[str]:
        """See IMailResolver."""
        return await self._answer("ptr", address)  # type: ignore[no-any-return]

    async def mx_proof(self, domain: str) -> Proof:
        """See IMailResolver."""
        return await self._proof("mx", domain)

    async def address_proof(self, host: str) -> Proof:
        """See IMailResolver."""
        return await self._proof("addresses", host)

    async def _proof(self, kind: str, name: str) -> Proof:
        await self._answer(kind, name)
        end = self.aliases.get(name, name)
        secure = {name, end} <= self.secure
        return Proof(secure=secure, name=end, alias_secure=not secure and end != name and name in self.secure)

    async def tlsa(self, name: str) -> Sequence[TlsaRecord]:
        """See IMailResolver."""
        found = await self._answer("tlsa", name)
        return found if name in self.secure else ()


class FakeNameServer:
    """The data of a name server: (name, type) -> records, with knobs for what servers do wrong."""

    def __init__(self) -> None:
        #: {("x.test", dns.MX): [dns.Record_MX(10, "mx.x.test", ttl=60)]}; a CNAME is followed within the data.
        self.records: dict[tuple[str, int], list[Any]] = {}
        #: Name -> response code.
        self.rcodes: dict[str, int] = {}
        #: The SOA of negative answers: (ttl, minimum); None: they have none.
        self.soa: tuple[int, int] | None = (300, 60)
        #: Truncate datagrams, as for an answer that does not fit.
        self.truncate = False
        #: Answer FORMERR to queries with EDNS.
        self.without_edns = False
        #: Whether answers are validated, but for those that touch a name in `insecure`.
        self.authentic = False
        #: Names whose addresses come along with MX records.
        self.additional: list[str] = []
        self.insecure: set[str] = set()
        #: Every query received, decoded.
        self.queries: list[dns.Message] = []

    def respond(self, wire: bytes, datagram: bool) -> bytes:
        """The response to one query."""
        query = dns.Message()
        query.fromStr(wire)
        self.queries.append(query)
        asked = query.queries[0]
        response = dns.Message(id=query.id, answer=1, recDes=1, recAv=1, maxSize=0)
        response.queries = query.queries
        if self.without_edns and query.additional:
            response.rCode = dns.EFORMAT
        elif datagram and self.truncate:
            response.trunc = 1
        else:
            self._fill(response, asked.name.name.decode().lower(), asked.type)
            if asked.type == dns.MX:
                self._add(response)
        return response.toStr()

    def _add(self, response: dns.Message) -> None:
        for name in self.additional:
            for kind in (dns.A, dns.AAAA):
                for record in self.records.get((name, kind), ()):
                    header = dns.RRHeader(name, kind, ttl=record.ttl or 0, payload=record)
                    response.additional.append(header)

    def _fill(self, response: dns.Message, name: str, record_type: int) -> None:
        if name in self.rcodes:
            response.rCode = self.rcodes[name]
        seen: set[str] = set()
        while record_type != dns.CNAME and (name, dns.CNAME) in self.records and name not in seen:
            seen.add(name)
            alias = self.records[name, dns.CNAME][0]
            response.answers.append(dns.RRHeader(name, dns.CNAME, ttl=alias.ttl, payload=alias))
            name = alias.name.name.decode()
        for record in self.records.get((name, record_type), ()):
            response.answers.append(dns.RRHeader(name, record_type, ttl=record.ttl or 0, payload=record))
        response.authenticData = int(self.authentic and self.insecure.isdisjoint({*seen, name}))
        if response.answers or response.rCode not in (dns.OK, dns.ENAME):
            return
        if not any(known == name for known, _ in self.records):
            response.rCode = dns.ENAME
        if self.soa is not None:
            ttl, minimum = self.soa
            soa = dns.Record_SOA("ns.test", "root.test", 1, 2, 3, 4, minimum, ttl)  # type: ignore[no-untyped-call]
            response.authority.append(dns.RRHeader("test", dns.SOA, ttl=ttl, payload=soa))


class NameServerDatagrams(protocol.DatagramProtocol):
    """Serves a FakeNameServer over UDP."""

    transport: Any

    def __init__(self, server: FakeNameServer) -> None:
        self._server = server

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.transport.write(self._server.respond(datagram, True), addr)


class NameServerFactory(protocol.ServerFactory):
    """Serves a FakeNameServer over TCP."""

    noisy = False

    def __init__(self, server: FakeNameServer) -> None:
        self._server = server

    def buildProtocol(self, addr: Any) -> protocol.Protocol:
        return _NameServerStream(self._server)


class _NameServerStream(Int16StringReceiver):
    def __init__(self, server: FakeNameServer) -> None:
        self._server = server

    def stringReceived(self, string: bytes) -> None:
        self.sendString(self._server.respond(string, False))  # type: ignore[no-untyped-call]

"""Every IMailResolver keeps its contract."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.task import Clock
from twisted.names import dns

from twisted_mta.core.tls_policy.tlsa import TlsaRecord
from twisted_mta.net.dns import StubResolver
from twisted_mta.net.dns_exchange import Server
from twisted_mta.net.dns_message import TLSA
from twisted_mta.testing.contracts.resolver import ResolverContract
from twisted_mta.testing.dns import FakeNameServer, FakeResolver


class FakeResolverTests(ResolverContract):
    __test__ = True

    def setUp(self) -> None:
        self.resolver = FakeResolver(
            mx={"x.test": [(20, "b.x.test"), (10, "a.x.test")], "null.test": [(0, "")]},
            addresses={
                "a.x.test": ["192.0.2.7", "2001:db8::7"],
                "alias.test": ["192.0.2.7", "2001:db8::7"],
            },
            txt={"x.test": [b"one two"]},
            ptr={"192.0.2.7": ["a.x.test"]},
            tlsa={"_25._tcp.a.x.test": [TlsaRecord(3, 1, 1, b"\xab" * 32)]},
        )
        self.resolver.secure = {"x.test", "a.x.test", "alias.test", "_25._tcp.a.x.test"}
        self.resolver.aliases = {"alias.test": "a.x.test"}
        self.resolver.failing = {"fail.test"}


class LateFakeResolverTests(FakeResolverTests):
    """The same when answers take a while."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        late = FakeResolver(clock=self.clock, delay=5.0)
        late.data, late.failing = self.resolver.data, self.resolver.failing
        late.secure, late.aliases = self.resolver.secure, self.resolver.aliases
        self.resolver = late

    def settle(self) -> None:
        self.clock.advance(5.0)


class Network(Clock):
    """UDP ports that all lead to one name server."""

    def __init__(self, server: FakeNameServer) -> None:
        super().__init__()
        self._server = server

    def listenUDP(self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192) -> None:
        protocol.makeConnection(_Port(self, self._server, protocol))


class _Port:
    def __init__(self, clock: Clock, server: FakeNameServer, protocol: Any) -> None:
        self._clock = clock
        self._server = server
        self._protocol = protocol
        self._peer = ("", 0)

    def connect(self, host: str, port: int) -> None:
        self._peer = (host, port)

    def write(self, data: bytes) -> None:
        answer = self._server.respond(data, True)
        self._clock.callLater(0, self._protocol.datagramReceived, answer, self._peer)

    def stopListening(self) -> None:
        pass


class StubResolverTests(ResolverContract):
    __test__ = True

    def setUp(self) -> None:
        server = FakeNameServer()
        server.records = {
            ("x.test", dns.MX): [
                dns.Record_MX(20, "B.x.test", ttl=60),
                dns.Record_MX(10, "a.X.test", ttl=90),
            ],
            ("x.test", dns.TXT): [dns.Record_TXT(b"one ", b"two", ttl=60)],
            ("a.x.test", dns.A): [dns.Record_A("192.0.2.7", ttl=60)],
            ("a.x.test", dns.AAAA): [dns.Record_AAAA("2001:db8::7", ttl=60)],
            ("null.test", dns.MX): [dns.Record_MX(0, "", ttl=60)],
            ("alias.test", dns.CNAME): [dns.Record_CNAME("A.x.test", ttl=60)],
            ("_25._tcp.a.x.test", TLSA): [dns.UnknownRecord(b"\3\1\1" + b"\xab" * 32, ttl=60)],
            ("7.2.0.192.in-addr.arpa", dns.PTR): [dns.Record_PTR("A.x.test", ttl=60)],
        }
        server.rcodes = {"fail.test": dns.ESERVER}
        server.authentic, server.insecure = True, {"null.test"}
        self.network = Network(server)
        self.resolver = StubResolver(self.network, random.Random(1), [Server("192.0.2.53")], validating=True)

    def settle(self) -> None:
        for _ in range(6):
            self.network.advance(0)

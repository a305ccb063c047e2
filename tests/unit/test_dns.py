"""Tests for twisted_mta.net.dns, on a simulated network."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.names import dns
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.route import LookupFailed, NoSuchDomain
from twisted_mta.interfaces import IMailResolver, Proof
from twisted_mta.net import dns as resolver_module
from twisted_mta.net.dns import StubResolver, parse_resolv_conf, system_servers
from twisted_mta.net.dns_exchange import MAX_STRAY, Server
from twisted_mta.net.dns_message import TLSA, BadMessage, Question, parse_response, read_answer
from twisted_mta.testing.dns import FakeNameServer

CLOSED = Failure(ConnectionDone())
ONE, TWO = Server("192.0.2.1"), Server("2001:db8::2", 5353)


class FakePort:
    """One UDP port of the simulated network."""

    def __init__(self, network: FakeNetwork, protocol: Any, interface: str) -> None:
        self.network = network
        self.protocol = protocol
        self.interface = interface
        self.peer: tuple[str, int] = ("", 0)
        self.open = True

    def connect(self, host: str, port: int) -> None:
        self.peer = (host, port)

    def write(self, data: bytes) -> None:
        self.network.sent.append((self, data))
        self.network.handlers.get(self.peer[0], lambda port, wire: None)(self, data)

    def receive(self, data: bytes, source: tuple[str, int] | None = None) -> None:
        if self.open:
            self.protocol.datagramReceived(data, source or self.peer)

    def stopListening(self) -> None:
        assert self.open
        self.open = False
        self.network.ports.remove(self)


class FakeNetwork(MemoryReactorClock):
    """A reactor with UDP: what is written to an address goes to its handler, which may call `port.receive`."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: list[FakePort] = []
        self.sent: list[tuple[FakePort, bytes]] = []
        self.handlers: dict[str, Callable[[FakePort, bytes], None]] = {}
        self.full = False

    def listenUDP(self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192) -> FakePort:
        assert port == 0  # random, by the kernel
        if self.full:
            raise CannotListenError(interface, port, OSError("no more ports"))
        opened = FakePort(self, protocol, interface)
        self.ports.append(opened)
        protocol.makeConnection(opened)
        return opened


class ResolverCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = FakeNetwork()
        self.server = FakeNameServer()
        self.server.records = {
            ("x.test", dns.MX): [
                dns.Record_MX(20, "B.x.test", ttl=60),
                dns.Record_MX(10, "a.x.test", ttl=90),
            ],
            ("a.x.test", dns.A): [dns.Record_A("192.0.2.7", ttl=60)],
            ("a.x.test", dns.AAAA): [dns.Record_AAAA("2001:db8::7", ttl=60)],
            ("x.test", dns.TXT): [dns.Record_TXT(b"v=spf1 ", b"-all", ttl=60)],
            ("7.2.0.192.in-addr.arpa", dns.PTR): [
                dns.Record_PTR("A.x.test", ttl=60),
                dns.Record_PTR("b$d", ttl=60),
            ],
            ("alias.test", dns.CNAME): [dns.Record_CNAME("x.test", ttl=5)],
            ("loop.test", dns.CNAME): [dns.Record_CNAME("loop.test", ttl=5)],
            ("null.test", dns.MX): [dns.Record_MX(0, "", ttl=60)],
            ("bad.test", dns.MX): [dns.Record_MX(0, "no spaces", ttl=60)],
        }
        self.resolver = StubResolver(self.network, random.Random(1), [ONE, TWO])
        self.serve(ONE)

    def serve(self, server: Server, delay: float = 0.0) -> None:
        def handle(port: FakePort, wire: bytes) -> None:
            self.network.callLater(delay, port.receive, self.server.respond(wire, True))

        self.network.handlers[server.address] = handle

    def run_(self, awaitable: Awaitable[Any], *, advance: list[float] | None = None) -> Any:
        async def go() -> Any:
            return await awaitable

        running = Deferred.fromCoroutine(go())
        for step in advance if advance is not None else [0.0, 0.0]:
            self.network.advance(step)
        return self.successResultOf(running)

    def fails(
        self, awaitable: Awaitable[Any], kind: type[Exception], advance: list[float] | None = None
    ) -> str:
        async def go() -> Any:
            return await awaitable

        running = Deferred.fromCoroutine(go())
        for step in advance if advance is not None else [0.0, 0.0]:
            self.network.advance(step)
        return str(self.failureResultOf(running, kind).value)

    def tearDown(self) -> None:
        self.assertEqual(self.network.ports, [])
        self.assertEqual([call for call in self.network.getDelayedCalls() if call.active()], [])


class AnswerTests(ResolverCase):
    def test_interface(self) -> None:
        self.assertTrue(IMailResolver.providedBy(self.resolver))

    def test_mx(self) -> None:
        self.assertEqual(self.run_(self.resolver.mx("X.test.")), [(20, "b.x.test"), (10, "a.x.test")])

    def test_null_mx(self) -> None:
        self.assertEqual(self.run_(self.resolver.mx("null.test")), [(0, "")])

    def test_mx_that_names_no_host(self) -> None:
        self.assertIn("no possible host", self.fails(self.resolver.mx("bad.test"), LookupFailed))

    def test_both_families_are_asked_side_by_side(self) -> None:
        self.assertEqual(
            self.run_(self.resolver.addresses("a.x.test"), advance=[0.0]), ["192.0.2.7", "2001:db8::7"]
        )

    def test_proofs_need_a_resolver_that_is_trusted(self) -> None:
        self.server.authentic = True
        self.server.records["_25._tcp.a.x.test", TLSA] = [dns.UnknownRecord(b"\3\1\1" + b"x" * 32, ttl=60)]
        self.assertFalse(self.run_(self.resolver.mx_proof("x.test")).secure)
        self.assertFalse(self.run_(self.resolver.address_proof("a.x.test")).secure)
        self.assertEqual(self.run_(self.resolver.tlsa("_25._tcp.a.x.test")), ())
        self.resolver.reconfigure([ONE], 10.0, validating=True)
        self.assertTrue(self.run_(self.resolver.mx_proof("x.test")).secure)
        self.assertTrue(self.run_(self.resolver.address_proof("a.x.test")).secure)
        self.assertEqual(len(self.run_(self.resolver.tlsa("_25._tcp.a.x.test"))), 1)

    def test_proofs_of_aliases(self) -> None:
        """RFC 7672 §2.2.2: a signed alias of a host whose own zone is not signed."""
        self.resolver.reconfigure([ONE], 10.0, validating=True)
        self.server.authentic, self.server.insecure = True, {"a.x.test"}
        self.server.records["mx.y.test", dns.CNAME] = [dns.Record_CNAME("a.x.test", ttl=5)]
        proof = self.run_(self.resolver.address_proof("MX.y.test."), advance=[0.0] * 4)
        self.assertEqual(proof, Proof(secure=False, name="a.x.test", alias_secure=True))
        self.server.insecure.add("mx.z.test")
        self.server.records["mx.z.test", dns.CNAME] = [dns.Record_CNAME("a.x.test", ttl=5)]
        proof = self.run_(self.resolver.address_proof("mx.z.test"), advance=[0.0] * 4)
        self.assertEqual(proof, Proof(secure=False, name="a.x.test", alias_secure=False))

    def test_proof_where_one_family_is_not_there_or_fails(self) -> None:
        self.resolver.reconfigure([ONE], 10.0, validating=True)
        self.server.authentic = True
        self.server.records["four.test", dns.A] = [dns.Record_A("192.0.2.8", ttl=60)]
        self.assertTrue(self.run_(self.resolver.address_proof("four.test")).secure)
        self.assertEqual(self.run_(self.resolver.address_proof("x.test")), Proof(secure=True, name="x.test"))
        self.fails(self.resolver.address_proof("nowhere.test"), NoSuchDomain)

    def test_tlsa_records_too_short_to_be_any_are_left_out(self) -> None:
        self.resolver.reconfigure([ONE], 10.0, validating=True)
        self.server.authentic = True
        self.server.records["_25._tcp.a.x.test", TLSA] = [dns.UnknownRecord(b"\3\1\1", ttl=60)]
        self.assertEqual(self.run_(self.resolver.tlsa("_25._tcp.a.x.test")), [])

    def test_one_family_fails(self) -> None:
        """A broken AAAA must not keep mail from an IPv4 host; but with nothing known the failure counts."""
        good = self.network.handlers[ONE.address]

        def handle(port: FakePort, wire: bytes) -> None:
            if b"\0\x1c\0\1" in wire:
                return
            good(port, wire)

        self.network.handlers[ONE.address] = handle
        self.assertEqual(
            self.run_(self.resolver.addresses("a.x.test"), advance=[0.0, 2, 2, 3, 3]), ["192.0.2.7"]
        )
        self.fails(self.resolver.addresses("x.test"), LookupFailed, [0.0, 2, 2, 3, 3])

    def test_txt(self) -> None:
        self.assertEqual(self.run_(self.resolver.txt("x.test")), [b"v=spf1 -all"])

    def test_ptr(self) -> None:
        self.assertEqual(self.run_(self.resolver.ptr("192.0.2.7")), ["a.x.test"])

    def test_alias_is_followed_and_its_ttl_counts(self) -> None:
        self.assertEqual(len(self.run_(self.resolver.mx("alias.test"))), 2)
        self.assertEqual(self.run_(self.resolver.lookup("alias.test", dns.MX)).ttl, 5)

    def test_alias_loop(self) -> None:
        self.assertEqual(self.run_(self.resolver.mx("loop.test")), [])

    def test_existing_name_without_such_records(self) -> None:
        self.assertEqual(self.run_(self.resolver.txt("a.x.test")), [])

    def test_no_such_domain(self) -> None:
        self.fails(self.resolver.mx("nowhere.test"), NoSuchDomain)

    def test_names_that_cannot_be_are_not_asked(self) -> None:
        for name in ("", ".", "a..b", "a b", "ü.test", "a" * 64, "x" * 300):
            self.fails(self.resolver.mx(name), NoSuchDomain)
        self.assertEqual(self.network.sent, [])

    def test_the_ad_bit_is_asked_for_and_kept(self) -> None:
        self.server.authentic = True
        self.assertTrue(self.run_(self.resolver.lookup("x.test", dns.MX)).authentic)
        self.server.authentic = False
        self.assertFalse(self.run_(self.resolver.lookup("x.test", dns.TXT)).authentic)
        self.assertTrue(self.server.queries[0].authenticData)

    def test_edns_is_offered(self) -> None:
        self.run_(self.resolver.mx("x.test"))
        [opt] = self.server.queries[0].additional
        self.assertEqual((opt.type, opt.cls, opt.ttl), (41, 1232, 0))


class CacheTests(ResolverCase):
    def asked(self) -> int:
        return len(self.network.sent)

    def test_answers_are_kept_for_their_lowest_ttl(self) -> None:
        self.run_(self.resolver.mx("x.test"))
        self.run_(self.resolver.mx("x.test"), advance=[59])
        self.assertEqual(self.asked(), 1)
        self.run_(self.resolver.mx("x.test"), advance=[1])
        self.run_(self.resolver.mx("x.test"))
        self.assertEqual(self.asked(), 2)

    def test_negative_answers_are_kept_as_the_soa_says(self) -> None:
        """RFC 2308 §5: the lesser of the SOA's TTL and its minimum."""
        self.fails(self.resolver.mx("nowhere.test"), NoSuchDomain)
        self.network.advance(59)
        self.fails(self.resolver.mx("nowhere.test"), NoSuchDomain)
        self.assertEqual(self.asked(), 1)
        self.network.advance(1)
        self.fails(self.resolver.mx("nowhere.test"), NoSuchDomain)
        self.assertEqual(self.asked(), 2)

    def test_negative_answers_without_soa_are_not_kept(self) -> None:
        self.server.soa = None
        self.assertEqual(self.run_(self.resolver.txt("a.x.test")), [])
        self.assertEqual(self.run_(self.resolver.txt("a.x.test")), [])
        self.assertEqual(self.asked(), 2)

    def test_the_same_question_is_asked_once(self) -> None:
        first = Deferred.fromCoroutine(self.resolver.mx("x.test"))
        second = Deferred.fromCoroutine(self.resolver.mx("x.test"))
        third = Deferred.fromCoroutine(self.resolver.mx("x.test"))
        third.cancel()
        self.failureResultOf(third)
        self.network.advance(0)
        self.assertEqual(self.successResultOf(first), self.successResultOf(second))
        self.assertEqual(self.asked(), 1)

    def test_bounded(self) -> None:
        self.patch(resolver_module, "CACHE_SIZE", 2)
        for name in ("x.test", "alias.test", "null.test"):
            self.run_(self.resolver.mx(name))
        self.run_(self.resolver.mx("alias.test"))
        self.assertEqual(self.asked(), 3)
        self.run_(self.resolver.mx("x.test"))
        self.assertEqual(self.asked(), 4)

    def test_reconfigured_resolver_forgets(self) -> None:
        self.run_(self.resolver.mx("x.test"))
        self.network.handlers.clear()
        self.serve(TWO)
        self.resolver.reconfigure([TWO], 5.0)
        self.run_(self.resolver.mx("x.test"))
        self.assertEqual(
            [port.peer for port, _ in self.network.sent], [("192.0.2.1", 53), ("2001:db8::2", 5353)]
        )


class FailureTests(ResolverCase):
    def test_silent_server_then_the_next(self) -> None:
        self.network.handlers.clear()
        self.serve(TWO)
        self.assertEqual(len(self.run_(self.resolver.mx("x.test"), advance=[1.9, 0.2, 0.0])), 2)
        self.assertEqual([port.interface for port, _ in self.network.sent], ["0.0.0.0", "::"])

    def test_deadline(self) -> None:
        self.network.handlers.clear()
        text = self.fails(self.resolver.mx("x.test"), LookupFailed, [2, 2, 3, 3])
        self.assertIn("did not answer", text)
        self.assertEqual(self.network.seconds(), 10)

    def test_servfail_goes_to_the_next_server(self) -> None:
        self.server.rcodes = {"x.test": dns.ESERVER}
        self.serve(TWO)
        self.assertIn("answered SERVFAIL", self.fails(self.resolver.mx("x.test"), LookupFailed, [0.0] * 8))
        self.assertEqual(len(self.network.sent), 6)

    def test_closed(self) -> None:
        self.network.handlers.clear()
        asking = Deferred.fromCoroutine(self.resolver.mx("x.test"))
        self.resolver.close()
        self.assertIn("closed", str(self.failureResultOf(asking, LookupFailed).value))

    def test_no_more_on_the_wire_than_allowed(self) -> None:
        self.network.handlers.clear()
        limited = resolver_module.IN_FLIGHT
        asking = [Deferred.fromCoroutine(self.resolver.mx(f"n{n}.test")) for n in range(limited + 1)]
        self.assertEqual(len(self.network.sent), limited)
        self.resolver.close()
        for one in asking:
            self.failureResultOf(one, LookupFailed)

    def test_nothing_is_remembered_of_a_failure(self) -> None:
        self.test_servfail_goes_to_the_next_server()
        self.server.rcodes = {}
        self.run_(self.resolver.mx("x.test"))

    def test_no_name_server_there(self) -> None:
        self.network.handlers[ONE.address] = lambda port, wire: port.protocol.connectionRefused()
        self.serve(TWO)
        self.assertEqual(len(self.run_(self.resolver.mx("x.test"))), 2)

    def test_server_without_edns(self) -> None:
        self.server.without_edns = True
        self.assertEqual(len(self.run_(self.resolver.mx("x.test"))), 2)
        self.assertEqual(self.server.queries[1].additional, [])

    def test_no_ports(self) -> None:
        self.network.full = True
        self.assertIn("no port to ask from", self.fails(self.resolver.mx("x.test"), LookupFailed))

    def test_unreachable_network(self) -> None:
        def handle(port: FakePort, wire: bytes) -> None:
            raise OSError(101, "Network is unreachable")

        self.network.handlers = {ONE.address: handle, TWO.address: handle}
        self.assertIn("Network is unreachable", self.fails(self.resolver.mx("x.test"), LookupFailed))

    def test_no_servers(self) -> None:
        self.assertIn(
            "no name server",
            self.fails(StubResolver(self.network, random.Random(1), []).mx("x.test"), LookupFailed),
        )

    def test_cut_off_response(self) -> None:
        def handle(port: FakePort, wire: bytes) -> None:
            port.receive(self.server.respond(wire, True)[:-4])

        self.network.handlers = {ONE.address: handle, TWO.address: handle}
        self.assertIn("ends early", self.fails(self.resolver.mx("x.test"), LookupFailed))


class TcpTests(ResolverCase):
    def setUp(self) -> None:
        super().setUp()
        self.server.truncate = True

    def connect(self) -> tuple[Any, StringTransport]:
        transport = StringTransport()
        factory = self.network.tcpClients[-1][2]
        protocol = factory.buildProtocol(None)
        protocol.makeConnection(transport)
        return protocol, transport

    def ask(self) -> Deferred[Any]:
        asking: Deferred[Any] = Deferred.fromCoroutine(self.resolver.mx("x.test"))
        self.network.advance(0)
        return asking

    def test_truncated_answers_are_asked_for_over_tcp(self) -> None:
        asking = self.ask()
        protocol, transport = self.connect()
        answer = self.server.respond(transport.value()[2:], False)
        framed = len(answer).to_bytes(2, "big") + answer
        protocol.dataReceived(framed[:9])
        protocol.dataReceived(framed[9:])
        self.assertEqual(len(self.successResultOf(asking)), 2)
        self.assertTrue(transport.disconnecting)
        protocol.connectionLost(CLOSED)

    def test_closed_without_an_answer(self) -> None:
        self.resolver.reconfigure([ONE], 10.0)
        asking = self.ask()
        for _ in range(3):
            self.connect()[0].connectionLost(CLOSED)
            self.network.advance(0)
        self.assertIn("closed the connection", str(self.failureResultOf(asking, LookupFailed).value))

    def test_answer_to_another_question(self) -> None:
        self.resolver.reconfigure([ONE], 10.0)
        asking = self.ask()
        for answer in (b"\0\x02hi", b"\0\x02hi", b"\0\x02hi"):
            self.connect()[0].dataReceived(answer)
            self.network.advance(0)
        self.assertIn("another question", str(self.failureResultOf(asking, LookupFailed).value))

    def test_malformed_answer(self) -> None:
        self.resolver.reconfigure([ONE], 10.0)
        asking = self.ask()
        for _ in range(3):
            protocol, transport = self.connect()
            answer = self.server.respond(transport.value()[2:], False)[:-4]
            protocol.dataReceived(len(answer).to_bytes(2, "big") + answer)
            self.network.advance(0)
        self.assertIn("ends early", str(self.failureResultOf(asking, LookupFailed).value))

    def test_over_ipv6(self) -> None:
        self.serve(TWO)
        self.resolver.reconfigure([TWO], 10.0)
        asking = self.ask()
        self.assertEqual(self.network.tcpClients[-1][:2], (TWO.address, TWO.port))
        self.resolver.close()
        self.failureResultOf(asking, LookupFailed)

    def test_closed_by_us(self) -> None:
        asking = self.ask()
        _, transport = self.connect()
        self.resolver.close()
        self.assertTrue(transport.disconnecting)
        self.assertIn("closed", str(self.failureResultOf(asking, LookupFailed).value))

    def test_silence(self) -> None:
        asking = self.ask()
        self.network.advance(10)
        self.assertIn("over TCP", str(self.failureResultOf(asking, LookupFailed).value))


class ForgeryTests(ResolverCase):
    """RFC 5452 §9.1: what does not match in all is not an answer."""

    def test_wrong_id_address_or_question_is_ignored(self) -> None:
        def handle(port: FakePort, wire: bytes) -> None:
            right = self.server.respond(wire, True)
            other = Question("y.test", dns.MX).encode(int.from_bytes(wire[:2], "big"), False)
            forged = right.replace(b"192", b"666")
            port.receive(bytes([right[0] ^ 1]) + forged[1:])
            port.receive(forged, ("203.0.113.66", 53))
            port.receive(forged, (ONE.address, 54))
            port.receive(self.server.respond(other, True))
            port.receive(wire)  # a query is no answer
            port.receive(b"")
            port.receive(right)
            port.receive(right)  # the port is closed by now

        self.network.handlers[ONE.address] = handle
        self.assertEqual(len(self.run_(self.resolver.mx("x.test"))), 2)

    def test_a_flood_of_wrong_answers_leads_to_tcp(self) -> None:
        def handle(port: FakePort, wire: bytes) -> None:
            for _ in range(MAX_STRAY + 1):
                port.receive(bytes([wire[0] ^ 1]) + wire[1:])

        self.network.handlers = {ONE.address: handle, TWO.address: handle}
        asking = Deferred.fromCoroutine(self.resolver.mx("x.test"))
        [(host, port, *_)] = self.network.tcpClients
        self.assertEqual((host, port), (ONE.address, 53))
        self.network.advance(10)
        self.failureResultOf(asking, LookupFailed)

    def test_ids_are_random(self) -> None:
        for number in range(20):
            self.fails(self.resolver.mx(f"n{number}.test"), NoSuchDomain)
        self.assertGreater(len({wire[:2] for _, wire in self.network.sent}), 15)


class MessageTests(SynchronousTestCase):
    def test_random_octets_raise_only_bad_message(self) -> None:
        generator = random.Random(3)
        good = FakeNameServer()
        good.records = {
            ("x.test", dns.CNAME): [dns.Record_CNAME("y.test", ttl=9)],
            ("y.test", dns.MX): [dns.Record_MX(1, "a.test", ttl=9)],
            ("y.test", dns.A): [dns.Record_A("192.0.2.1", ttl=9)],
            ("y.test", dns.TXT): [dns.Record_TXT(b"text", ttl=9)],
        }
        read = 0
        for kind in (dns.MX, dns.A, dns.TXT, dns.AAAA):
            question = Question("x.test", kind)
            wire = good.respond(question.encode(7, True), True)
            for _ in range(700):
                data = bytearray(wire)
                for _ in range(generator.randrange(1, 4)):
                    data[generator.randrange(2, len(data))] = generator.randrange(256)
                try:
                    response = parse_response(bytes(data), question, 7)
                except BadMessage:
                    continue
                if response is not None:
                    read += 1
                    self.assertLessEqual(read_answer(response, question).ttl, 86400)
        self.assertGreater(read, 100)

    def test_compression_loop(self) -> None:
        question = Question("x.test", dns.MX)
        wire = bytearray(FakeNameServer().respond(question.encode(7, False), True))
        wire[12:14] = b"\xc0\x0c"
        with self.assertRaises(BadMessage):
            parse_response(bytes(wire), question, 7)

    def test_extended_response_codes(self) -> None:
        """RFC 6891 §6.1.3"""
        question = Question("x.test", dns.MX)
        server = FakeNameServer()
        server.rcodes = {"x.test": dns.ESERVER}
        wire = bytearray(server.respond(question.encode(7, False), True))
        wire[11] = 1
        response = parse_response(bytes(wire) + b"\0\0\x29\x04\xd0\x01\0\0\0\0\0", question, 7)
        assert response is not None
        self.assertEqual(response.rcode, 16 + dns.ESERVER)

    def test_ttl_with_the_top_bit_counts_as_zero(self) -> None:
        """RFC 2181 §8"""
        question = Question("x.test", dns.MX)
        server = FakeNameServer()
        server.records = {("x.test", dns.MX): [dns.Record_MX(1, "a.test", ttl=2**31 + 5)]}
        response = parse_response(server.respond(question.encode(7, False), True), question, 7)
        assert response is not None
        self.assertEqual(read_answer(response, question).ttl, 0)


class ServerTests(SynchronousTestCase):
    def test_parse(self) -> None:
        for text, expected in (
            ("192.0.2.53", Server("192.0.2.53")),
            ("192.0.2.53:5353", Server("192.0.2.53", 5353)),
            ("2001:db8::53", Server("2001:db8::53")),
            ("[2001:db8::53]", Server("2001:db8::53")),
            ("[2001:db8::53]:5353", Server("2001:db8::53", 5353)),
        ):
            self.assertEqual(Server.parse(text), expected)
        for text in (
            "",
            "localhost",
            "192.0.2.1:",
            "192.0.2.1:x",
            "192.0.2.1:0",
            "192.0.2.1:65536",
            "[::1]x",
        ):
            with self.assertRaises(ValueError):
                Server.parse(text)

    def test_resolv_conf(self) -> None:
        text = "# x\nnameserver 192.0.2.1\nnameserver fe80::1%eth0%\nnameserver\nsearch x\nnameserver ::1\n"
        self.assertEqual(parse_resolv_conf(text), (Server("192.0.2.1"), Server("::1")))
        self.assertEqual(parse_resolv_conf(""), (Server("127.0.0.1"),))
        self.assertEqual(len(parse_resolv_conf("nameserver 192.0.2.1\n" * 5)), 3)

    def test_system_servers(self) -> None:
        from pathlib import Path

        path = Path(self.mktemp())
        self.assertEqual(system_servers(path), (Server("127.0.0.1"),))
        path.write_text("nameserver 192.0.2.9\n")
        self.assertEqual(system_servers(path), (Server("192.0.2.9"),))


class AdditionalTests(ResolverCase):
    """Addresses that come along with MX records."""

    def setUp(self) -> None:
        super().setUp()
        self.server.additional = ["a.x.test"]

    def addresses(self, host: str = "a.x.test") -> tuple[list[str], int]:
        """The addresses, and how many questions they took."""
        before = len(self.server.queries)
        found = list(self.run_(self.resolver.addresses(host)))
        return found, len(self.server.queries) - before

    def test_no_question_is_needed(self) -> None:
        self.run_(self.resolver.mx("x.test"))
        self.assertEqual(self.addresses(), (["192.0.2.7", "2001:db8::7"], 0))

    def test_only_for_the_family_that_is_missing(self) -> None:
        del self.server.records["a.x.test", dns.AAAA]
        self.run_(self.resolver.mx("x.test"))
        self.assertEqual(self.addresses(), (["192.0.2.7"], 1))

    def test_for_their_time(self) -> None:
        self.run_(self.resolver.mx("x.test"))
        self.network.advance(61)
        self.assertEqual(self.addresses()[1], 2)

    def test_they_are_no_answers(self) -> None:
        """What asks for records itself may want a proof, and these have none."""
        self.run_(self.resolver.mx("x.test"))
        self.run_(self.resolver.lookup("a.x.test", dns.A))
        self.assertEqual(len(self.server.queries), 2)

    def test_not_of_another_domain_nor_of_other_hosts(self) -> None:
        self.server.records["evil.test", dns.MX] = [dns.Record_MX(1, "a.x.test", ttl=60)]
        self.server.records["www.x.test", dns.A] = [dns.Record_A("192.0.2.9", ttl=60)]
        self.server.additional = ["a.x.test", "www.x.test"]
        self.run_(self.resolver.mx("evil.test"))
        self.assertEqual(self.addresses()[1], 2)
        self.run_(self.resolver.mx("x.test"))
        self.assertEqual(self.addresses("www.x.test")[1], 2)

    def test_another_view_of_the_dns_forgets_them(self) -> None:
        self.run_(self.resolver.mx("x.test"))
        self.resolver.reconfigure([ONE], 5.0)
        self.assertEqual(self.addresses()[1], 2)

"""core.proxy and net.proxy: headers of both versions, whole and in pieces, from proxies and from others."""

from __future__ import annotations

import struct
from ipaddress import ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import protocol
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.proxy import MAX_BINARY, MAX_TEXT, ProxyError, ProxyHeader, parse
from twisted_mta.net.proxy import DEADLINE, ProxyFactory

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
FOUR = bytes([192, 0, 2, 1, 198, 51, 100, 1]) + struct.pack("!HH", 40000, 25)
SIX = bytes.fromhex("20010db8000000000000000000000001" * 2) + struct.pack("!HH", 40000, 25)


def binary(command: int, family: int, rest: bytes = b"", length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length) + rest


GOOD = {
    b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 25\r\n": ProxyHeader("192.0.2.1", 40000),
    b"PROXY TCP6 2001:db8::1 2001:db8::2 40000 25\r\n": ProxyHeader("2001:db8::1", 40000),
    b"PROXY UNKNOWN\r\n": ProxyHeader(),
    b"PROXY UNKNOWN whatever they say\r\n": ProxyHeader(),
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535".ljust(MAX_TEXT - 2, b"x")
    + b"\r\n": ProxyHeader(),
    binary(0x21, 0x11, FOUR): ProxyHeader("192.0.2.1", 40000),
    binary(0x21, 0x21, SIX): ProxyHeader("2001:db8::1", 40000),
    binary(0x21, 0x11, FOUR + b"\x04\x00\x03abc"): ProxyHeader("192.0.2.1", 40000),
    binary(0x21, 0x11, FOUR.ljust(MAX_BINARY, b"\x04")): ProxyHeader("192.0.2.1", 40000),
    binary(0x21, 0x31, bytes(216)): ProxyHeader(),
    binary(0x21, 0x00): ProxyHeader(),
    binary(0x21, 0x00, b"\x04\x00\x00"): ProxyHeader(),
    binary(0x20, 0x00): ProxyHeader(),
    binary(0x20, 0x11, FOUR): ProxyHeader(),
    binary(0x20, 0x77, b"?"): ProxyHeader(),
}
BAD = [
    b"EHLO client.example\r\n",
    b"PROXY\r\n",
    b"PROXY \r\n",
    b"PROXY TCP5 192.0.2.1 198.51.100.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 1\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2 3\r\n",
    b"PROXY TCP4  192.0.2.1 198.51.100.1 1 2\r\n",
    b"PROXY TCP4 2001:db8::1 198.51.100.1 1 2\r\n",
    b"PROXY TCP6 192.0.2.1 198.51.100.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 2\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 1 -2\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 \xb2 2\r\n",
    b"PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n".ljust(MAX_TEXT, b"x"),
    b"PROXY UNKNOWN".ljust(MAX_TEXT - 1, b"x") + b"\r\n",
    binary(0x11, 0x11, FOUR),
    binary(0x22, 0x11, FOUR),
    binary(0x21, 0x12, FOUR),
    binary(0x21, 0x41, FOUR),
    binary(0x21, 0x11, FOUR[:-1]),
    binary(0x21, 0x21, FOUR),
    binary(0x21, 0x11, FOUR, length=MAX_BINARY + 1),
    b"\r\n\r\n\x00\r\nQUIT\r",
]


class ParseTests(SynchronousTestCase):
    def test_good(self) -> None:
        for data, header in GOOD.items():
            with self.subTest(data):
                self.assertEqual(parse(data + b"EHLO"), (header, len(data)))
                for end in range(len(data)):
                    self.assertIsNone(parse(data[:end]), data[:end])

    def test_bad(self) -> None:
        for data in BAD:
            with self.subTest(data):
                self.assertRaises(ProxyError, parse, data)
                self.assertRaises(ProxyError, parse, data + bytes(MAX_BINARY))

    @settings(max_examples=300)
    @given(
        st.one_of(
            st.binary(max_size=40),
            st.binary(max_size=120).map(b"PROXY ".__add__),
            st.binary(max_size=60).map(SIGNATURE.__add__),
            st.builds(
                binary,
                st.integers(0x1F, 0x22),
                st.sampled_from([0, 0x11, 0x21, 0x31, 0x12]),
                st.binary(max_size=240),
            ),
            st.from_regex(
                rb"PROXY (TCP[46]|UNKNOWN) [0-9a-f:.]{1,9} [0-9:.]{1,9} [0-9]{1,6} [0-9]{1,5}\r\n",
                fullmatch=True,
            ),
        )
    )
    def test_any_octets_have_one_outcome_however_they_arrive(self, data: bytes) -> None:
        """Whatever an early piece says (a header, a refusal), the whole says too."""
        outcomes = []
        for end in range(len(data) + 1):
            try:
                found: Any = parse(data[:end])
            except ProxyError:
                found = ProxyError
            if found is not None:
                outcomes.append(found)
        self.assertLessEqual(len({str(found) for found in outcomes}), 1)

    def test_no_header_can_keep_us_waiting_for_ever(self) -> None:
        for data in (
            b"PROXY ".ljust(MAX_TEXT, b"x"),
            binary(0x21, 0x11, b"", MAX_BINARY) + bytes(MAX_BINARY),
        ):
            try:
                found = parse(data)
            except ProxyError:
                continue
            self.assertIsNotNone(found)


#: A proxy that is trusted.
PROXY = IPv4Address("TCP", "192.0.2.9", 5000)


class Recorder(protocol.Protocol):
    """A server that speaks first."""

    def __init__(self, address: Any) -> None:
        self.address = address
        self.data = b""
        self.lost = 0

    def connectionMade(self) -> None:
        self.transport.write(b"220 hello\r\n")  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost += 1


class Recorders(protocol.ServerFactory):
    noisy = False

    def __init__(self) -> None:
        self.made: list[Recorder] = []
        self.refuse = False

    def buildProtocol(self, addr: Any) -> Recorder | None:
        if self.refuse:
            return None
        self.made.append(Recorder(addr))
        return self.made[-1]


class Transport(StringTransport):  # type: ignore[misc]
    """Gives what arrives to whoever is its protocol, as a TCP transport does."""

    protocol: Any


class FactoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.inner = Recorders()
        self.factory = ProxyFactory(
            self.inner, [ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")], self.clock
        )
        self.factory.doStart()

    def connect(self, address: Any = PROXY) -> Transport | None:
        proto = self.factory.buildProtocol(address)
        if proto is None:
            return None
        transport = Transport()
        transport.protocol = proto
        proto.makeConnection(transport)
        return transport

    def test_the_session_begins_behind_the_header(self) -> None:
        for octets in (1, 7, 1000):
            transport = self.connect()
            assert transport is not None
            data = b"PROXY TCP4 203.0.113.5 198.51.100.1 40000 25\r\nEHLO x\r\n"
            for start in range(0, len(data), octets):
                transport.protocol.dataReceived(data[start : start + octets])
            session = self.inner.made[-1]
            self.assertEqual(session.address, IPv4Address("TCP", "203.0.113.5", 40000))
            self.assertEqual(transport.value(), b"220 hello\r\n")
            self.assertEqual(session.data, b"EHLO x\r\n")
            self.assertIs(transport.protocol, session)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_says_nothing_before_the_header(self) -> None:
        transport = self.connect()
        assert transport is not None
        transport.protocol.dataReceived(b"PROXY TCP4")
        self.assertEqual(transport.value(), b"")
        self.assertEqual(self.inner.made, [])

    def test_ipv6(self) -> None:
        transport = self.connect(IPv6Address("TCP", "2001:db8::9%eth0", 5000))
        assert transport is not None
        transport.protocol.dataReceived(binary(0x21, 0x21, SIX))
        self.assertEqual(self.inner.made[0].address, IPv6Address("TCP", "2001:db8::1", 40000))

    def test_the_proxy_for_itself(self) -> None:
        transport = self.connect()
        assert transport is not None
        transport.protocol.dataReceived(binary(0x20, 0))
        self.assertEqual(self.inner.made[0].address.host, "192.0.2.9")

    def test_strangers(self) -> None:
        self.assertIsNone(self.connect(IPv4Address("TCP", "198.51.100.9", 1)))
        self.assertIsNone(self.connect(IPv6Address("TCP", "2001:db9::9", 1)))
        self.assertIsNotNone(self.connect(IPv6Address("TCP", "::ffff:192.0.2.7", 1)))
        self.assertIsNotNone(self.connect(UNIXAddress(None)))

    def test_no_header(self) -> None:
        transport = self.connect()
        assert transport is not None
        transport.protocol.dataReceived(b"EHLO client\r\n")
        self.assertTrue(transport.disconnected)
        transport.protocol.dataReceived(b"PROXY UNKNOWN\r\n")
        self.assertEqual((self.inner.made, transport.value()), ([], b""))

    def test_too_late(self) -> None:
        transport = self.connect()
        assert transport is not None
        transport.protocol.dataReceived(b"PROXY ")
        self.clock.advance(DEADLINE)
        self.assertTrue(transport.disconnected)

    def test_gone_before_the_header(self) -> None:
        transport = self.connect()
        assert transport is not None
        transport.protocol.connectionLost()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.inner.made, [])

    def test_refused_by_the_factory(self) -> None:
        self.inner.refuse = True
        transport = self.connect()
        assert transport is not None
        transport.protocol.dataReceived(b"PROXY UNKNOWN\r\n")
        self.assertTrue(transport.disconnected)

    def test_stop_cuts_off_those_without_a_header(self) -> None:
        transport = self.connect()
        assert transport is not None
        self.factory.doStop()
        self.assertTrue(transport.disconnected)

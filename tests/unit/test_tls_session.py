"""net.session and net.tls_layer: sessions with real TLS, both ends in memory."""

from __future__ import annotations

import contextlib
import gc
import weakref
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.interpreter import counts_references
from tests.unit.test_session import EchoCore, Handler, Transport
from twisted_mta.admin.init import self_signed
from twisted_mta.net.session import Session, SessionFactory
from twisted_mta.net.tls import ServerTls


class SecuredCore(EchoCore):
    """Remembers what it was told."""

    bindings: Any = None

    def secured(self, bindings: Any = None) -> list[Any]:
        self.bindings = bindings
        return []


class TlsCase(SynchronousTestCase):
    implicit = True

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        paths = [directory / "cert.pem", directory / "key.pem"]
        for path, content in zip(paths, self_signed("mx.example.test", ()), strict=True):
            path.write_text(content)
        self.clock = Clock()
        self.handler = Handler()
        self.core = SecuredCore()
        self.tls = ServerTls(*paths)
        self.factory = SessionFactory(
            lambda _: Session(
                self.core, self.handler, self.clock, self.tls, implicit_tls=self.implicit, handshake=30
            ),
            b"",
        )
        self.client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        self.client.set_connect_state()
        protocol: Any = self.factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1000))
        self.protocol = protocol
        self.transport = Transport()
        self.protocol.makeConnection(self.transport)

    def hello(self) -> bytes:
        """What the client begins its handshake with."""
        with contextlib.suppress(SSL.WantReadError):
            self.client.do_handshake()
        return self.client.bio_read(100000)

    def exchange(self) -> bytes:
        """Pass octets between both ends until they have nothing to say; what the client read."""
        read = b""
        for _ in range(8):
            with contextlib.suppress(SSL.WantReadError, SSL.ZeroReturnError):
                while True:
                    read += self.client.recv(100000)
            with contextlib.suppress(SSL.WantReadError):
                self.protocol.dataReceived(self.client.bio_read(100000))
            if self.transport.value():
                self.client.bio_write(self.transport.value())
                self.transport.clear()
        return read


class StartTlsTests(TlsCase):
    implicit = False

    def test_what_is_said_before_and_after(self) -> None:
        self.assertEqual(self.transport.value(), b"hi")
        self.transport.clear()
        self.protocol.dataReceived(b"1!")
        self.assertEqual(self.transport.value(), b"1")
        self.transport.clear()
        self.exchange()
        self.client.send(b"2")
        self.assertEqual(self.exchange(), b"2")

    def test_the_last_words_of_the_handshake_are_the_servers(self) -> None:
        """So it is with TLS 1.2."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        self.client = SSL.Connection(context, None)
        self.client.set_connect_state()
        self.transport.clear()
        self.protocol.dataReceived(b"!")
        self.protocol.dataReceived(self.hello())
        self.exchange()
        self.client.do_handshake()
        self.assertEqual(self.client.get_protocol_version_name(), "TLSv1.2")

    def test_a_handshake_that_never_begins(self) -> None:
        self.protocol.dataReceived(b"!")
        self.clock.advance(29)
        self.assertFalse(self.transport.aborted)
        self.clock.advance(1)
        self.assertTrue(self.transport.aborted)
        self.assertEqual(self.transport.value(), b"hi")


class HandshakeTests(TlsCase):
    def test_one_that_takes_too_long(self) -> None:
        """It has a time of its own, however many octets come, and nothing can be said to such a peer."""
        hello = self.hello()
        for second in range(29):
            self.protocol.dataReceived(hello[second : second + 1])
            self.clock.advance(1)
        self.assertFalse(self.transport.aborted)
        self.clock.advance(1)
        self.assertTrue(self.transport.aborted)
        self.assertEqual(self.transport.value(), b"")

    def test_octets_that_are_none(self) -> None:
        self.protocol.dataReceived(b"EHLO client.example.org\r\n")
        self.assertTrue(self.transport.disconnecting)

    def test_one_that_fails(self) -> None:
        """The peer is told why by an alert (RFC 8446 §6), and whatever else it says is let pass."""
        self.protocol.dataReceived(bytes.fromhex("1603010005 0100000100"))
        self.assertEqual(self.transport.value()[:1], b"\x15")
        self.assertTrue(self.transport.disconnecting)
        self.transport.clear()
        self.protocol.dataReceived(b"QUIT\r\n")
        self.assertEqual(self.transport.value(), b"")

    def test_octet_by_octet(self) -> None:
        for octet in self.hello():
            self.protocol.dataReceived(bytes([octet]))
        self.assertEqual(self.exchange(), b"hi")

    def test_a_command_that_comes_with_its_end(self) -> None:
        self.protocol.dataReceived(self.hello())
        self.client.bio_write(self.transport.value())
        self.transport.clear()
        self.client.do_handshake()
        self.client.send(b"12")
        self.assertEqual(self.exchange(), b"hi12")

    def test_the_server_stops_meanwhile(self) -> None:
        self.protocol.dataReceived(self.hello()[:10])
        ending = self.protocol.shut_down()
        self.assertEqual(self.transport.value(), b"", "there is no way to tell it")
        self.assertTrue(self.transport.disconnecting)
        self.protocol.connectionLost()
        self.successResultOf(ending)

    def test_channel_bindings(self) -> None:
        self.exchange()
        mine = self.client.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
        self.assertEqual(self.core.bindings["tls-exporter"], mine)
        self.assertEqual(list(self.core.bindings), ["tls-exporter", "tls-server-end-point"])


class SecureTests(TlsCase):
    """After the handshake."""

    def setUp(self) -> None:
        super().setUp()
        self.exchange()

    def test_a_long_answer(self) -> None:
        self.handler.answers[b"a"] = answer = bytes(100_000)
        self.client.send(b"a")
        self.assertEqual(self.exchange(), answer)

    def test_octets_that_were_changed(self) -> None:
        self.client.send(b"1")
        record = bytearray(self.client.bio_read(1000))
        record[-1] ^= 1
        self.protocol.dataReceived(bytes(record))
        self.assertEqual(self.transport.value()[:1], b"\x17", "an alert, which is encrypted too")
        self.assertTrue(self.transport.disconnecting)
        self.transport.clear()
        self.protocol.perform(self.core.shut_down())
        self.assertEqual(self.transport.value(), b"")

    def test_goodbye(self) -> None:
        """The peer learns that the session is over, and the connection ends when it has agreed."""
        self.client.send(b"1.")
        self.assertEqual(self.exchange(), b"1bye")
        self.assertEqual(self.client.get_shutdown(), SSL.RECEIVED_SHUTDOWN)
        self.assertFalse(self.transport.disconnecting)
        self.client.shutdown()
        self.exchange()
        self.assertTrue(self.transport.disconnecting)

    def test_goodbye_while_we_do_not_read(self) -> None:
        self.handler.answers[b"a"] = late = Deferred()
        self.client.send(b"a")
        self.exchange()
        self.client.send(b"1.")
        self.exchange()
        self.assertEqual(self.transport.producerState, "paused")
        late.callback(b"A")
        self.assertEqual(self.exchange(), b"A1bye")
        self.assertEqual(self.transport.producerState, "producing")
        self.client.shutdown()
        self.exchange()
        self.assertTrue(self.transport.disconnecting)

    def test_the_peer_says_goodbye(self) -> None:
        """What it said before is heard, and it hears our goodbye."""
        self.client.send(b"1B")
        self.client.shutdown()
        self.exchange()
        self.assertEqual(self.handler.chunks, [b"B"])
        self.assertEqual(self.client.get_shutdown(), SSL.RECEIVED_SHUTDOWN | SSL.SENT_SHUTDOWN)
        self.assertTrue(self.transport.disconnecting)

    @counts_references
    def test_nothing_is_left_to_the_garbage_collector(self) -> None:
        gc.disable()
        self.addCleanup(gc.enable)
        gone = weakref.ref(self.protocol)
        self.client.send(b"1.")
        self.exchange()
        self.protocol.connectionLost()
        del self.protocol, self.transport, self.handler.session
        self.assertIsNone(gone())

    def test_a_peer_that_never_says_goodbye_is_cut_off(self) -> None:
        self.client.send(b".")
        self.exchange()
        self.clock.advance(10)
        self.assertTrue(self.transport.aborted)

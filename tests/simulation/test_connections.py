"""What a whole server thinks of those who connect: host names, HELO, rates, and what a reload changes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.certificates import self_signed_files
from twisted_mta.config.schema import Role
from twisted_mta.net.session import SessionFactory
from twisted_mta.service.reload import reload
from twisted_mta.testing.world import World

MESSAGE = b"Subject: x\r\n\r\n"


class ConnectionTests(SynchronousTestCase):
    def world(self, config: str) -> World:
        world = World(Path(self.mktemp()), config)
        self.addCleanup(world.close)
        world.resolver.data["ptr"]["192.0.2.1"] = ["mail.example.org"]
        world.resolver.data["addresses"]["mail.example.org"] = ["192.0.2.1"]
        self.file = world.directory / "mta.toml"
        return world

    def send(self, world: World, client: str) -> str:
        return str(world.send("dave@example.org", ["bob@example.test"], MESSAGE, client))

    def change(self, world: World, old: str, new: str) -> None:
        text = self.file.read_text()
        self.assertIn(old, text)
        self.file.write_text(text.replace(old, new))
        result: Any = self.successResultOf(
            Deferred.fromCoroutine(reload(world.listeners.serving, world.parts, world.listeners))
        )
        self.assertFalse(result.failed, result.problems)

    def test_a_host_that_is_proven_stands_in_received(self) -> None:
        world = self.world("")
        for client in ("192.0.2.1", "192.0.2.2"):
            self.assertIn("250 2.0.0", self.send(world, client))
        world.advance(1, step=1)
        first, second = world.mail("bob")
        self.assertIn(b"Received: from client.example.org (mail.example.org [192.0.2.1])", first)
        self.assertIn(b"Received: from client.example.org ([192.0.2.2])", second)

    def test_required_after_a_reload(self) -> None:
        world = self.world('[checks]\nreverse_dns = "off"\n')
        self.assertIn("250 2.0.0", self.send(world, "192.0.2.2"))
        self.assertEqual(world.resolver.asked, [])
        self.change(world, '"off"', '"require"')
        self.assertIn("550 5.7.25 ", self.send(world, "192.0.2.2"))
        self.assertIn("250 2.0.0", self.send(world, "192.0.2.1"))

    def test_helo_required(self) -> None:
        world = self.world('[checks]\nhelo = "require"\nreverse_dns = "off"\n')
        self.assertIn("250 2.0.0", self.send(world, "192.0.2.1"))
        transport = self.connect(
            world, "192.0.2.1", b"EHLO mx.example.test\r\nMAIL FROM:<dave@example.org>\r\n"
        )
        self.assertIn("550 5.7.1 Your EHLO is our own name", transport.value().decode())

    def connect(
        self, world: World, client: str, said: bytes = b"", factory: SessionFactory | None = None
    ) -> StringTransport:
        session: Any = (factory or world._mx).buildProtocol(IPv4Address("TCP", client, 40000))
        transport = StringTransport(peerAddress=IPv4Address("TCP", client, 40000))  # type: ignore[no-untyped-call]
        session.makeConnection(transport)
        if said:
            session.dataReceived(said)
        world.network.pump([0.0] * 5)
        self.addCleanup(session.connectionLost)
        return transport

    def test_a_client_has_the_time_that_is_set(self) -> None:
        world = self.world('[limits]\nsmtp_timeout = "20s"\ndata_timeout = "5s"\nmessage_time = "30s"\n')
        begin = b"EHLO x\r\nMAIL FROM:<dave@example.org>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n"
        for said, seconds in ((b"EHLO x\r\n", 20), (begin, 5)):
            transport = self.connect(world, "192.0.2.1", said)
            world.advance(seconds - 1, step=1)
            self.assertFalse(transport.disconnecting)
            with capturedLogs() as logs:
                world.advance(1, step=1)
            self.assertIn(b"421 4.4.2", transport.value())
            self.assertEqual([event["peer"] for event in logs if "doing" in event], ["192.0.2.1"])

    def test_who_may_ask(self) -> None:
        world = self.world('[limits]\nvrfy = "trusted"\nexpn = "anyone"\n[relay]\nnetworks = ["192.0.2.1"]\n')
        said = b"EHLO x\r\nVRFY bob\r\nEXPN bob\r\n"
        for client, code in (("192.0.2.1", "250 2.1.5 <bob@example.test>"), ("192.0.2.2", "252 2.5.0 Send")):
            lines = self.connect(world, client, said).value().decode().splitlines()
            self.assertTrue(lines[-2].startswith(code), lines)
            self.assertEqual(lines[-1], "250 2.1.5 <bob@example.test>")
            self.assertIn("250 EXPN", lines)

    def test_help(self) -> None:
        world = self.world("")
        self.change(world, "hostname =", 'help = "Ask the postmaster"\nhostname =')
        lines = self.connect(world, "192.0.2.1", b"HELP\r\n").value().decode().splitlines()
        self.assertEqual(lines[-2:], ["214-2.0.0 Ask the postmaster", "214 2.0.0 See RFC 5321"])

    def test_what_is_announced(self) -> None:
        world = self.world('[limits]\ndeliver_by_minimum = "4m"\nrecipients = 100\n')
        lines = self.connect(world, "192.0.2.1", b"EHLO x\r\n").value().decode().splitlines()
        self.assertIn("250 DELIVERBY 240", lines)
        self.assertIn("250-LIMITS RCPTMAX=100", lines)

    def test_the_messages_of_a_session(self) -> None:
        world = self.world("[limits]\nmessages = 2\n")
        said = b"EHLO x\r\n" + b"MAIL FROM:<dave@example.org>\r\nRSET\r\n" * 3
        transport = self.connect(world, "192.0.2.1", said)
        lines = transport.value().decode().splitlines()
        self.assertIn("250-LIMITS MAILMAX=2 RCPTMAX=1000", lines)
        codes = [line[:9] for line in lines[-5:]]
        self.assertEqual(codes, ["250 2.1.0", "250 2.0.0", "250 2.1.0", "250 2.0.0", "421 4.7.0"])
        self.assertTrue(transport.disconnecting)

    def test_recipients_that_are_refused(self) -> None:
        """Strangers only, and not for what may be taken later."""
        world = self.world('[limits]\nrefused_recipients = 2\n[relay]\nnetworks = ["192.0.2.1"]\n')
        said = b"EHLO x\r\nMAIL FROM:<>\r\n" + b"RCPT TO:<nobody@example.test>\r\n" * 3 + b"NOOP\r\n"
        for client, codes in (("192.0.2.1", ["550"] * 3 + ["250"]), ("192.0.2.2", ["550", "550", "421"])):
            transport = self.connect(world, client, said)
            lines = transport.value().decode().splitlines()
            self.assertEqual([line[:3] for line in lines[-len(codes) :]], codes)
            self.assertEqual(transport.disconnecting, codes[-1] == "421")

    def test_a_proxy_names_a_login(self) -> None:
        """It may relay then, as who has logged in."""
        world = self.world('[relay]\nxclient_networks = ["192.0.2.1"]\n')
        mail = b"EHLO x\r\nMAIL FROM:<alice@example.test>\r\nRCPT TO:<carol@example.net>\r\n"
        for login, code in ((b"alice@example.test", "250"), (b"[UNAVAILABLE]", "550")):
            said = b"XCLIENT ADDR=198.51.100.1 LOGIN=" + login + b"\r\n" + mail
            lines = self.connect(world, "192.0.2.1", said).value().decode().splitlines()
            self.assertEqual(lines[-1][:3], code, lines)

    def test_rate(self) -> None:
        world = self.world("[limits]\nconnection_rate = 2\n")
        for code in (b"220", b"220", b"421"):
            self.assertEqual(self.connect(world, "192.0.2.1").value()[:3], code)
        self.assertEqual(self.connect(world, "192.0.2.3").value()[:3], b"220")
        world.advance(30)
        self.assertEqual(self.connect(world, "192.0.2.1").value()[:3], b"220")

    def test_per_network(self) -> None:
        world = self.world("[limits]\nconnections_per_network = 2\n")
        codes = [self.connect(world, f"192.0.2.{n}").value()[:3] for n in range(3)]
        self.assertEqual(codes, [b"220", b"220", b"421"])

    def test_all_listeners_count_together(self) -> None:
        """And each refuses in its own words."""
        world = self.world("[limits]\nconnections_per_address = 2\n")
        imap, pop3 = (world.listeners.factory(role) for role in (Role.IMAP, Role.POP3))
        self.assertEqual(self.connect(world, "192.0.2.1").value()[:3], b"220")
        self.assertEqual(self.connect(world, "192.0.2.1", factory=imap).value()[:5], b"* OK ")
        for factory, said in (
            (world._mx, b"421 4.7.0 Too many connections, try again later\r\n"),
            (imap, b"* BYE Too many connections, try again later\r\n"),
            (pop3, b"-ERR [SYS/TEMP] Too many connections, try again later\r\n"),
        ):
            self.assertEqual(self.connect(world, "192.0.2.1", factory=factory).value(), said)
        self.assertEqual(self.connect(world, "192.0.2.2", factory=pop3).value()[:3], b"+OK")
        self.assertEqual(world.listeners.connections, 3)

    def test_each_service_is_sure_of_its_share(self) -> None:
        certificate = Path(self.mktemp()).absolute()
        self_signed_files(certificate)
        listen = '[[listen]]\nrole = "imaps"\nendpoint = "tcp:993"\n'
        tls = f'[tls]\ncertificate = "{certificate}"\nkey = "{certificate}"\n'
        world = self.world(f"[limits]\nconnections = 10\nconnections_share = 20\n{listen}{tls}")
        imap = world.listeners.factory(Role.IMAP)  # imaps is the same service
        self.assertEqual(
            [self.connect(world, "192.0.2.1").value()[:3] for _ in range(9)], [b"220"] * 8 + [b"421"]
        )
        for said in (b"* OK ", b"* OK ", b"* BYE"):
            self.assertEqual(self.connect(world, "192.0.2.2", factory=imap).value()[:5], said)
        self.assertEqual(
            world.listeners.services(),
            [
                {"service": "mx", "connections": 8, "sure of": 2},
                {"service": "imap", "connections": 2, "sure of": 2},
            ],
        )
        self.change(world, "connections = 10", "connections = 5")  # those that are open stay
        self.assertEqual(self.connect(world, "192.0.2.1").value()[:3], b"421")
        self.change(world, "connections = 5", "connections = 11")
        self.change(world, "connections_share = 20", "connections_share = 0")
        self.assertEqual([self.connect(world, "192.0.2.1").value()[:3] for _ in range(2)], [b"220", b"421"])

    def test_few_connections_are_not_divided(self) -> None:
        world = self.world("[limits]\nconnections = 9\n")
        self.assertEqual(world.listeners.services(), [{"service": "mx", "connections": 0, "sure of": 0}])

    def test_commands_without_a_message_end_a_session(self) -> None:
        world = self.world("[limits]\nidle_commands = 20\n")
        lines = self.connect(world, "192.0.2.1", b"NOOP\r\n" * 30).value().splitlines()
        self.assertEqual(len(lines), 22)
        self.assertEqual(lines[-1][:9], b"421 4.7.0")

    def test_who_is_trusted_is_not_counted_apart(self) -> None:
        """Those that may relay, speak by XCLIENT, are proxies, or are named; a reload changes it."""
        listen = (
            '[[listen]]\nrole = "mx"\nendpoint = "tcp:26"\nproxy = true\nproxy_networks = ["192.0.2.40"]\n'
        )
        relay = '[relay]\nnetworks = ["192.0.2.10"]\nxclient_networks = ["192.0.2.20"]\n'
        limits = '[limits]\nconnections_per_address = 1\nexempt_networks = ["192.0.2.30"]\n'
        world = self.world(limits + relay + listen)
        for client in ("192.0.2.10", "192.0.2.20", "192.0.2.30", "192.0.2.40"):
            codes = [self.connect(world, client).value()[:3] for _ in range(3)]
            self.assertEqual(codes, [b"220"] * 3, client)
        codes = [self.connect(world, "192.0.2.50").value()[:3] for _ in range(2)]
        self.assertEqual(codes, [b"220", b"421"])
        self.change(world, "192.0.2.30", "192.0.2.50")
        self.assertEqual(self.connect(world, "192.0.2.50").value()[:3], b"220")

    def test_the_greeting_is_held_for_strangers_only(self) -> None:
        world = self.world('[limits]\ngreeting_delay = 3\n[relay]\nnetworks = ["198.51.100.0/24"]\n')
        self.assertEqual(self.connect(world, "198.51.100.7").value()[:3], b"220")
        patient, early = self.connect(world, "192.0.2.1"), self.connect(world, "192.0.2.2", b"EHLO x\r\n")
        self.assertEqual((patient.value(), early.value()[:10]), (b"", b"554 5.7.1 "))
        self.assertTrue(early.disconnecting)
        world.advance(3)
        self.assertEqual(patient.value()[:3], b"220")

"""delivery.convert and what uses it: 8-bit messages for hosts that take only seven bits."""

from __future__ import annotations

from typing import Any
from unittest import mock

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.test_smtp_delivery import B, Body, DeliveryCase
from twisted_mta.core.address import Address
from twisted_mta.core.downgrade import Undowngradable
from twisted_mta.core.queue import Delivered, Failed, TryLater
from twisted_mta.delivery import convert
from twisted_mta.delivery.convert import CONCURRENCY, MAX_MEMORY, MAX_MESSAGE, ConvertedBody, Converter
from twisted_mta.store.threads import InlineWorkers

HEADER = (
    b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
)
TEXT = HEADER + "viele Grüße aus der Ferne\r\n".encode()
SEVEN = (
    b"Received: x\r\n"
    + HEADER.replace(b"8bit", b"quoted-printable")
    + b"viele Gr=C3=BC=C3=9Fe aus der Ferne\r\n"
)


class Broken:
    size = 5

    def open(self) -> Any:
        raise OSError(5, "Input/output error")


BROKEN = Broken()


class DeliveryTests(DeliveryCase):
    def setUp(self) -> None:
        super().setUp()
        self.peer.extensions = ["PIPELINING", "SIZE 100000000"]

    def eight(self, body: Any, *addresses: str, **changes: Any) -> list[Any]:
        return list(self.deliver(*addresses, body=body, body_size=body.size, body_type="8BITMIME", **changes))

    def test_converted(self) -> None:
        self.assertEqual(len(self.eight(Body(TEXT), "b@x.test")), 1)
        [received] = self.peer.messages
        self.assertEqual(received.data, SEVEN)
        self.assertEqual(received.commands[0], f"MAIL FROM:<s@a.test> SIZE={len(SEVEN)}")

    def test_not_for_those_that_take_eight_bits(self) -> None:
        self.peer.extensions.append("8BITMIME")
        self.eight(Body(TEXT), "b@x.test")
        [received] = self.peer.messages
        self.assertEqual(received.data, b"Received: x\r\n" + TEXT)
        self.assertTrue(received.commands[0].endswith(" BODY=8BITMIME"))

    def test_once_for_all_transactions(self) -> None:
        self.delivery.reconfigure(type(self.settings)(max_recipients=1))
        with mock.patch.object(convert, "downgrade", wraps=convert.downgrade) as downgrade:
            self.eight(Body(TEXT), "b@x.test", "c@x.test", "d@x.test")
        self.assertEqual(downgrade.call_count, 1)
        self.assertEqual([received.data for received in self.peer.messages], [SEVEN] * 3)

    def test_once_for_all_hosts(self) -> None:
        self.second.extensions = []
        self.peer.replies = {"MAIL": "421 4.3.2 not now"}
        self.eight(Body(TEXT), "b@x.test")
        self.assertEqual([received.data for received in self.second.messages], [SEVEN])

    def test_a_large_one(self) -> None:
        lines = "müde Zeilen in großer Zahl\r\n".encode() * 50_000
        self.eight(Body(HEADER + lines), "b@x.test")
        [received] = self.peer.messages
        self.assertGreater(len(received.data), MAX_MEMORY)
        self.assertTrue(received.data.isascii())

    def test_what_can_not_be_converted(self) -> None:
        signed = b"MIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n\xe4\r\n--b--\r\n"
        for outcome in self.eight(Body(signed), "b@x.test", "c@x.test"):
            assert isinstance(outcome, Delivered)
            self.assertEqual(outcome.remote, f"mx2.x.test [{B}]", "which takes eight bits")
        self.second.extensions = ["PIPELINING"]
        for outcome in self.eight(Body(signed), "b@x.test", "c@x.test"):
            assert isinstance(outcome, Failed)
            self.assertEqual(outcome.remote, f"mx2.x.test [{B}]")
            self.assertEqual(
                str(outcome.reply),
                "554 5.6.3 the message is 8-bit, the next host takes only 7-bit, and it can't be converted: "
                "a part that needs it is signed",
            )
        self.assertNotIn("DATA", self.peer.commands)

    def test_a_body_that_can_not_be_read(self) -> None:
        [outcome] = self.eight(BROKEN, "b@x.test")
        assert isinstance(outcome, TryLater)
        self.assertIn("451 4.3.0", str(outcome.reply))

    def test_utf8_addresses_need_more(self) -> None:
        for address, sender in (("ö@x.test", "s@a.test"), ("b@x.test", "ö@a.test")):
            [outcome] = self.eight(Body(TEXT), address, smtputf8=True, sender=Address.parse(sender))
            assert isinstance(outcome, Failed)
            self.assertEqual(outcome.reply.status, "5.6.7")
            self.assertEqual((self.peer.messages, B in self.network.attempts), ([], False))

    def test_a_utf8_header_needs_more(self) -> None:
        for head in (b"Subject: \xc3\xb6\r\n", b"Content-Type: multipart/mixed; boundary=b\r\n"):
            inner = b"\r\n--b\r\nContent-Description: \xc3\xb6\r\n\r\nx\r\n--b--\r\n"
            [outcome] = self.eight(Body(head + inner), "b@x.test", smtputf8=True)
            assert isinstance(outcome, Failed)
            self.assertEqual(outcome.reply.status, "5.6.7")

    def test_smtputf8_asked_for_without_need(self) -> None:
        self.eight(Body(TEXT), "b@x.test", smtputf8=True)
        self.peer.extensions.append("8BITMIME")
        self.delivery = self.make(self.settings)
        self.eight(Body(TEXT), "b@x.test", smtputf8=True)
        self.peer.extensions.append("SMTPUTF8")
        self.delivery = self.make(self.settings)
        self.eight(Body(TEXT), "b@x.test", smtputf8=True)
        converted, plain, asked = self.peer.messages
        self.assertEqual((converted.data, plain.data), (SEVEN, b"Received: x\r\n" + TEXT))
        self.assertNotIn("SMTPUTF8", converted.commands[0] + plain.commands[0])
        self.assertIn("SMTPUTF8", asked.commands[0])

    def test_a_header_that_can_not_be_looked_at(self) -> None:
        [outcome] = self.eight(BROKEN, "b@x.test", smtputf8=True)
        self.assertIn("451 4.3.0", str(outcome.reply))
        large = Body(TEXT)
        large.size = MAX_MESSAGE
        [outcome] = self.eight(large, "b@x.test", smtputf8=True)
        self.assertEqual(outcome.reply.status, "5.6.7")

    def test_bounced_or_sent_if_so_configured(self) -> None:
        self.second.extensions = self.peer.extensions
        self.delivery.reconfigure(attrs.evolve(self.settings, eightbit="bounce"))
        [outcome] = self.eight(Body(TEXT), "b@x.test")
        assert isinstance(outcome, Failed)
        self.assertEqual(
            str(outcome.reply),
            "554 5.6.3 the message is 8-bit, the next host takes only 7-bit, and it is not converted",
        )
        self.delivery.reconfigure(attrs.evolve(self.settings, eightbit="send"))
        self.eight(Body(TEXT), "b@x.test")
        [received] = self.peer.messages
        self.assertEqual(received.data, b"Received: x\r\n" + TEXT)
        self.assertNotIn("BODY", received.commands[0])

    def test_what_becomes_of_a_signature_is_logged(self) -> None:
        events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.eight(Body(TEXT), "b@x.test")
        self.eight(Body(b"DKIM-Signature: v=1\r\n" + TEXT), "b@x.test")
        self.assertEqual(
            [event["dkim_broken"] for event in events if "dkim_broken" in event],
            [False, True],
        )


class ConverterTests(SynchronousTestCase):
    def test_too_large(self) -> None:
        body = Body(b"")
        body.size = MAX_MESSAGE
        result = Deferred.fromCoroutine(Converter(InlineWorkers()).seven_bits(b"x", body))
        self.assertIn("too large", str(self.failureResultOf(result, Undowngradable).value))

    def test_only_a_few_at_a_time(self) -> None:
        waiting: list[Deferred[Any]] = []

        class Slow(InlineWorkers):
            def run(self, function: Any, *args: Any, **kwargs: Any) -> Any:
                waiting.append(Deferred())
                return waiting[-1]

        converter = Converter(Slow())
        results = [
            Deferred.fromCoroutine(converter.seven_bits(b"", Body(b"x"))) for _ in range(CONCURRENCY + 1)
        ]
        self.assertEqual(len(waiting), CONCURRENCY)
        waiting[0].errback(OSError())
        self.failureResultOf(results[0], OSError)
        self.assertEqual(len(waiting), CONCURRENCY + 1)

    def test_bodies_can_be_read_again(self) -> None:
        for octets in (b"small", b"large" * MAX_MEMORY):
            body = ConvertedBody(octets)
            self.assertEqual(body.size, len(octets))
            for _ in range(2):
                with body.open() as file:
                    self.assertEqual(file.read(), octets)
            body.close()

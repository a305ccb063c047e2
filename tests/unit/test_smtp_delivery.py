"""Tests for twisted_mta.delivery.smtp and net.smtp_client, on a simulated network."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from typing import Any, BinaryIO

import attrs
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.config.schema import Relay, RelayTimeouts, Route
from twisted_mta.core.address import Address
from twisted_mta.core.queue import (
    Delivered,
    Failed,
    Outcome,
    QueuedMessage,
    QueuedRecipient,
    TryLater,
)
from twisted_mta.core.route import LookupFailed
from twisted_mta.core.smtp.client import Login
from twisted_mta.delivery.smtp import MAX_TRIES, SmtpDelivery
from twisted_mta.delivery.tls_policy import TlsPolicies
from twisted_mta.delivery.tls_steps import TlsSteps
from twisted_mta.interfaces import IDelivery
from twisted_mta.net.smtp_client import opportunistic_context
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.testing.dns import FakeResolver
from twisted_mta.testing.network import WINDOW, MemoryNetwork
from twisted_mta.testing.queued import queued_message, queued_recipient
from twisted_mta.testing.smtp_peer import DROP, SILENCE, SmtpPeer

A, B, C = "192.0.2.1", "192.0.2.2", "2001:db8::3"
TEXT = b"Subject: hi\r\n\r\n.dotted\r\n"
CONTEXT = opportunistic_context()


class Body:
    """IStoredBody in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


class HugeFile(io.RawIOBase):
    """Octets out of nothing, which notes how much was asked for."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        count = min(size, self.left)
        self.left -= count
        return (b"x" * 76 + b"\r\n") * (count // 78) + b"y" * (count % 78)


class HugeBody:
    def __init__(self, size: int) -> None:
        self.size = size
        self.file = HugeFile(size)

    def open(self) -> Any:
        return self.file


class MissingBody:
    size = 5

    def open(self) -> Any:
        raise FileNotFoundError(2, "No such file", "body")


class LateFile:
    """A file whose reads take as long as a test likes."""

    def __init__(self) -> None:
        self.reads: list[Deferred[bytes]] = []
        self.closed = False

    def read(self, size: int) -> Any:
        raise AssertionError("files are read by workers")

    def close(self) -> None:
        self.closed = True


class LateWorkers(InlineWorkers):
    def run(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        waiting: Deferred[bytes] = Deferred()
        function.__self__.reads.append(waiting)
        return waiting


class LateBody:
    size = 100

    def __init__(self) -> None:
        self.file = LateFile()

    def open(self) -> Any:
        return self.file


def message(**changes: Any) -> QueuedMessage:
    usual: dict[str, Any] = {
        "prefix": b"Received: x\r\n",
        "body_size": len(TEXT),
        "arrived": 0.0,
        "expires": 1e9,
    }
    return queued_message(**(usual | {"sender": Address("s", "a.test")} | changes))


def recipient(text: str, row: int = 1) -> QueuedRecipient:
    return queued_recipient(text, row=row)


class DeliveryCase(SynchronousTestCase):
    settings = Relay()
    login: Login | None = None

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.resolver = FakeResolver(
            mx={
                "x.test": [(10, "mx1.x.test"), (20, "mx2.x.test")],
                "self.test": [(1, "me.test")],
                "null.test": [(0, "")],
            },
            addresses={"mx1.x.test": [A], "mx2.x.test": [B], "a.test": [C], "smart.test": [B]},
        )
        self.peer = SmtpPeer()
        self.second = SmtpPeer()
        self.network.servers = {(A, 25): self.peer, (B, 25): self.second}
        self.delivery = self.make(self.settings)

    def make(self, settings: Relay) -> SmtpDelivery:
        return SmtpDelivery(
            self.network,
            self.resolver,
            random.Random(1),
            settings,
            "me.test",
            InlineWorkers(),
            CONTEXT,
            self.login,
            tls=TlsSteps(TlsPolicies(self.resolver, None), self.network.check, None),
        )

    def start(self, *addresses: str, body: Any = None, **changes: Any) -> Deferred[Sequence[Outcome]]:
        recipients = [recipient(address, row) for row, address in enumerate(addresses)]
        destination = self.delivery.destination(recipients[0])
        result: Deferred[Sequence[Outcome]] = Deferred.fromCoroutine(
            self.delivery.deliver(message(**changes), body or Body(TEXT), recipients, destination)
        )
        self.network.advance(0)
        return result

    def deliver(self, *addresses: str, **changes: Any) -> Sequence[Outcome]:
        return self.successResultOf(self.start(*addresses, **changes))

    def summary(self, *addresses: str, **changes: Any) -> list[str]:
        return [brief(outcome) for outcome in self.deliver(*addresses, **changes)]

    def tearDown(self) -> None:
        closing = Deferred.fromCoroutine(self.delivery.close())
        self.network.advance(0)
        self.network.advance(30)
        self.successResultOf(closing)
        self.assertEqual(self.network.open, set())
        self.assertEqual([call for call in self.network.getDelayedCalls() if call.active()], [])


def brief(outcome: Outcome) -> str:
    assert isinstance(outcome, Delivered | TryLater | Failed)
    return f"{type(outcome).__name__} {outcome.reply.code} {outcome.reply.status} {outcome.remote}".rstrip()


class TransactionTests(DeliveryCase):
    def test_interface(self) -> None:
        self.assertTrue(IDelivery.providedBy(self.delivery))

    def test_delivered(self) -> None:
        [outcome] = self.deliver("b@x.test")
        self.assertEqual(brief(outcome), f"Delivered 250 2.0.0 mx1.x.test [{A}]")
        assert isinstance(outcome, Delivered)
        self.assertTrue(outcome.relayed)
        [received] = self.peer.messages
        self.assertEqual((received.sender, received.recipients), ("s@a.test", ["b@x.test"]))
        self.assertEqual(received.data, b"Received: x\r\n" + TEXT)
        self.assertEqual(received.commands[0], f"MAIL FROM:<s@a.test> SIZE={len(TEXT) + 13}")

    def test_recipients_end_each_in_their_own_way(self) -> None:
        self.peer.replies = {
            "RCPT no@x.test": "550 5.1.1 no such user",
            "RCPT later@x.test": "450 4.2.0 greylisted",
        }
        self.second.replies = {"RCPT": "450 4.2.0 greylisted here too"}
        self.assertEqual(
            self.summary("no@x.test", "b@x.test", "later@x.test"),
            [
                f"Failed 550 5.1.1 mx1.x.test [{A}]",
                f"Delivered 250 2.0.0 mx1.x.test [{A}]",
                f"TryLater 450 4.2.0 mx1.x.test [{A}]",
            ],
        )

    def test_in_lock_step_after_helo(self) -> None:
        self.peer.replies = {"EHLO": "502 5.5.2 what"}
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx1.x.test [{A}]"])
        self.assertEqual(
            self.peer.commands,
            ["EHLO me.test", "HELO me.test", "MAIL FROM:<s@a.test>", "RCPT TO:<b@x.test>", "DATA"],
        )

    def test_no_more_recipients_in_one_transaction_than_set(self) -> None:
        self.delivery.reconfigure(Relay(max_recipients=2))
        self.deliver(*(f"r{n}@x.test" for n in range(5)))
        self.assertEqual([len(one.recipients) for one in self.peer.messages], [2, 2, 1])
        self.assertEqual(self.peer.connections, 1)

    def test_whoever_does_not_fit_goes_into_the_next_transaction(self) -> None:
        """RFC 5321 §4.5.3.1.10"""
        self.peer.replies = {"RCPT c@x.test": ["452 4.5.3 too many"], "RCPT d@x.test": ["552 too many"]}
        self.assertEqual({type(one) for one in self.deliver("b@x.test", "c@x.test", "d@x.test")}, {Delivered})
        self.assertEqual(
            [one.recipients for one in self.peer.messages], [["b@x.test"], ["c@x.test", "d@x.test"]]
        )

    def test_too_many_from_the_first_on_is_a_refusal(self) -> None:
        self.peer.replies = self.second.replies = {"RCPT": "452 4.5.3 too many"}
        self.assertEqual(self.summary("b@x.test"), [f"TryLater 452 4.5.3 mx1.x.test [{A}]"])

    def test_long_replies_are_cut(self) -> None:
        self.peer.replies = {"RCPT": "550-5.1.1 " + "\n".join(["x" * 500] * 10)}
        [outcome] = self.deliver("b@x.test")
        assert isinstance(outcome, Failed)
        self.assertEqual(len(outcome.reply.text), 1000)

    def test_whether_the_next_host_confirms_delivery(self) -> None:
        [outcome] = self.deliver("b@x.test")
        self.assertFalse(outcome.confirms)
        self.network.advance(10)
        self.peer.extensions.append("DSN")
        [outcome] = self.deliver("b@x.test", envid="e1", ret="HDRS")
        self.assertTrue(outcome.confirms)
        self.assertIn("RET=HDRS ENVID=e1", self.peer.messages[1].commands[0])

    def test_body_that_cannot_be_read(self) -> None:
        outcomes = self.summary("b@x.test", body=MissingBody(), body_size=100_000)
        self.assertEqual(outcomes, [f"TryLater 451 4.3.0 mx2.x.test [{B}]"])
        self.assertEqual(self.peer.messages + self.second.messages, [])
        self.assertEqual(len(self.flushLoggedErrors(FileNotFoundError)), 2)

    def test_large_message_streams(self) -> None:
        self.peer.keep = False
        body = HugeBody(50_000_000)
        started = self.start("b@x.test", body=body, body_size=body.size)
        while not started.called:
            self.network.advance(0.1)
        self.assertIsInstance(self.successResultOf(started)[0], Delivered)
        self.assertGreater(self.peer.size, 50_000_000)
        self.assertLess(self.network.high_water, 3 * WINDOW)

    def test_refused_while_the_disk_is_slow(self) -> None:
        """The file is closed only when nobody reads it any more."""
        del self.network.servers[B, 25]
        self.delivery = SmtpDelivery(
            self.network, self.resolver, random.Random(1), self.settings, "me.test", LateWorkers(), CONTEXT
        )
        body = LateBody()
        started = self.start("b@x.test", body=body, body_size=100_000)
        body.file.reads.pop().callback(b"some text")
        [session] = self.peer.sessions
        session.transport.write(b"452 4.3.1 no room any more\r\n")
        self.network.advance(0)
        self.assertNoResult(started)
        self.assertFalse(body.file.closed)
        body.file.reads.pop().callback(b"more text")
        self.network.advance(0)
        self.assertEqual(brief(self.successResultOf(started)[0]), f"TryLater 452 4.3.1 mx1.x.test [{A}]")
        self.assertTrue(body.file.closed)
        self.assertEqual(self.peer.messages, [])

    def test_peer_that_stops_reading_amid_the_message(self) -> None:
        body = HugeBody(1_000_000)
        self.network.servers.pop((B, 25))
        original = self.peer.buildProtocol

        def deaf(addr: Any) -> Any:
            session = original(addr)
            command = session._command

            def stop(line: str) -> None:
                command(line)
                if line == "DATA":
                    session.transport.pauseProducing()

            session._command = stop
            return session

        self.peer.buildProtocol = deaf  # type: ignore[method-assign]
        started = self.start("b@x.test", body=body, body_size=body.size)
        self.network.advance(179)
        self.assertNoResult(started)
        self.assertGreater(body.file.left, 500_000)
        self.network.advance(1)
        self.network.advance(0)
        [outcome] = self.successResultOf(started)
        # The other host was tried at once, and refused the connection.
        self.assertEqual(brief(outcome), f"TryLater 451 4.4.1 mx2.x.test [{B}]")


class ChunkingTests(DeliveryCase):
    """RFC 3030."""

    def setUp(self) -> None:
        super().setUp()
        self.peer.extensions.append("CHUNKING")

    def verbs(self) -> list[str]:
        return [command.split()[0] for command in self.peer.commands]

    def test_a_small_message_leaves_with_the_commands(self) -> None:
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx1.x.test [{A}]"])
        [received] = self.peer.messages
        self.assertEqual(received.data, b"Received: x\r\n" + TEXT)
        self.assertEqual(self.verbs(), ["EHLO", "MAIL", "RCPT", "BDAT"])
        self.assertEqual(self.peer.commands[-1], f"BDAT {len(received.data)} LAST")

    def test_it_takes_one_round_trip_instead_of_two(self) -> None:
        trips = []
        for chunking in (True, False):
            self.delivery.reconfigure(attrs.evolve(self.settings, chunking=chunking))
            self.network.latency = 0.0
            self.deliver("b@x.test")
            self.network.latency = 0.5
            started = self.start("b@x.test")
            seconds = 0.0
            while not started.called:
                self.network.advance(0.5)
                seconds += 0.5
            trips.append(seconds)
        self.assertEqual(trips, [1.0, 2.0])
        self.network.latency = 0.0

    def test_a_large_one_goes_in_chunks(self) -> None:
        text = b"Subject: hi\r\n\r\n" + (b"." * 70 + b"\r\n") * 5000
        self.assertEqual(
            self.summary("b@x.test", "c@x.test", body=Body(text), body_size=len(text)),
            [f"Delivered 250 2.0.0 mx1.x.test [{A}]"] * 2,
        )
        [received] = self.peer.messages
        self.assertEqual(received.data, b"Received: x\r\n" + text)
        self.assertEqual(self.verbs(), ["EHLO", "MAIL", "RCPT", "RCPT", *["BDAT"] * 6])

    def test_a_chunk_is_refused(self) -> None:
        text = b"Subject: hi\r\n\r\n" + (b"." * 70 + b"\r\n") * 5000
        self.peer.replies = {"BDAT": ["250 ok", "552 5.3.4 too large for us"]}
        self.assertEqual(
            self.summary("b@x.test", body=Body(text), body_size=len(text)),
            [f"Failed 552 5.3.4 mx1.x.test [{A}]"],
        )
        self.assertEqual(self.peer.messages, [])
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx1.x.test [{A}]"])
        self.assertEqual(self.verbs()[-4:], ["RSET", "MAIL", "RCPT", "BDAT"])

    def test_nobody_may_have_it(self) -> None:
        self.peer.replies = self.second.replies = {"RCPT": "450 4.2.0 greylisted"}
        self.assertEqual(self.summary("b@x.test"), [f"TryLater 450 4.2.0 mx1.x.test [{A}]"])

    def test_what_failed_once_goes_by_data(self) -> None:
        again = attrs.evolve(recipient("b@x.test"), attempts=1)
        result: Deferred[Sequence[Outcome]] = Deferred.fromCoroutine(
            self.delivery.deliver(message(), Body(TEXT), [again], self.delivery.destination(again))
        )
        self.network.advance(0)
        self.successResultOf(result)
        self.assertEqual(self.verbs(), ["EHLO", "MAIL", "RCPT", "DATA"])

    def test_not_if_so_configured(self) -> None:
        self.delivery.reconfigure(attrs.evolve(self.settings, chunking=False))
        self.deliver("b@x.test")
        self.assertEqual(self.verbs(), ["EHLO", "MAIL", "RCPT", "DATA"])

    def test_a_message_that_cannot_be_read_leaves_the_session_alone(self) -> None:
        self.assertEqual(
            self.summary("b@x.test", body=MissingBody()), [f"TryLater 451 4.3.0 mx1.x.test [{A}]"]
        )
        self.assertEqual(len(self.flushLoggedErrors(FileNotFoundError)), 1)
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx1.x.test [{A}]"])
        self.assertEqual(self.peer.connections, 1)

    def test_the_session_ends_while_the_disk_is_slow(self) -> None:
        body = LateBody()
        self.delivery = SmtpDelivery(
            self.network, self.resolver, random.Random(1), Relay(), "me.test", LateWorkers(), CONTEXT
        )
        started = self.start("b@x.test", body=body)
        [session] = self.peer.sessions
        session.transport.loseConnection()
        self.network.advance(0)
        self.second.extensions.append("CHUNKING")
        body.file.reads.pop().callback(TEXT)
        body.file.reads.pop().callback(b"")
        self.network.advance(0)
        # Another host is tried: nothing of it had been sent. It is not read again.
        self.assertEqual(brief(self.successResultOf(started)[0]), f"Delivered 250 2.0.0 mx2.x.test [{B}]")


class LossTests(DeliveryCase):
    """RFC 1047, RFC 5321 §4.5.3.2.6: another host at once while the message can't have been taken, and none afterwards."""

    def lost_at(self, key: str, reply: str = DROP) -> tuple[str, bool]:
        """Where the mail went in the end, and whether it may go there twice."""
        self.peer.replies = {key: reply}
        self.delivery = self.make(self.settings)
        [outcome] = self.deliver("b@x.test")
        if isinstance(outcome, Delivered):
            return outcome.remote, False
        assert isinstance(outcome, TryLater)
        return outcome.remote, outcome.doubtful

    def test_by_data(self) -> None:
        for key in ("greeting", "EHLO", "MAIL", "RCPT", "DATA"):
            with self.subTest(key):
                self.assertEqual(self.lost_at(key), (f"mx2.x.test [{B}]", False))
        self.assertEqual(self.lost_at("."), (f"mx1.x.test [{A}]", True))

    def test_in_one_chunk(self) -> None:
        self.peer.extensions.append("CHUNKING")
        for key, expected in (
            ("greeting", (f"mx2.x.test [{B}]", False)),
            ("EHLO", (f"mx2.x.test [{B}]", False)),
            ("MAIL", (f"mx1.x.test [{A}]", True)),
            ("RCPT", (f"mx1.x.test [{A}]", True)),
            (".", (f"mx1.x.test [{A}]", True)),
        ):
            with self.subTest(key):
                self.assertEqual(self.lost_at(key), expected)

    def test_its_own_word_that_it_goes(self) -> None:
        self.peer.extensions.append("CHUNKING")
        for key in ("MAIL", "RCPT", "."):
            with self.subTest(key):
                self.assertEqual(self.lost_at(key, "421 4.3.2 bye"), (f"mx2.x.test [{B}]", False))

    def test_refused_recipients_are_in_no_doubt(self) -> None:
        self.peer.replies = {"RCPT c@x.test": "550 5.1.1 who?", ".": DROP}
        one, other = self.deliver("b@x.test", "c@x.test")
        self.assertTrue(isinstance(one, TryLater) and one.doubtful)
        self.assertEqual(brief(other), f"Failed 550 5.1.1 mx1.x.test [{A}]")


class SilenceTests(DeliveryCase):
    """Each wait ends: RFC 5321 §4.5.3.2."""

    def setUp(self) -> None:
        super().setUp()
        self.network.servers.pop((B, 25))

    def silent_at(self, key: str, seconds: float) -> str:
        self.peer.replies = {key: SILENCE}
        started = self.start("b@x.test")
        self.network.advance(seconds - 1)
        self.assertNoResult(started)
        self.network.advance(1)
        self.network.advance(0)
        [outcome] = self.successResultOf(started)
        assert isinstance(outcome, TryLater)
        return str(outcome.reply)

    def test_greeting(self) -> None:
        self.assertIn("can't connect to mx2", self.silent_at("greeting", 300))

    def test_mail(self) -> None:
        self.silent_at("MAIL", 300)

    def test_data(self) -> None:
        self.silent_at("DATA", 120)

    def test_final_dot(self) -> None:
        """It may have been taken: no other host is tried in this attempt."""
        self.assertEqual(self.silent_at(".", 600), "451 4.4.2 timeout, waiting for end of message")
        self.assertEqual(self.network.attempts, [(A, 25)])

    def test_as_configured(self) -> None:
        self.delivery.reconfigure(attrs.evolve(self.settings, timeouts=RelayTimeouts(final=20.0)))
        self.assertIn("end of message", self.silent_at(".", 20))

    def test_octets_without_an_end_do_not_hold_us(self) -> None:
        self.peer.replies = {"greeting": SILENCE}
        started = self.start("b@x.test")
        for _ in range(10):
            [session] = self.peer.sessions
            session.transport.write(b"2")
            self.network.advance(29)
        self.assertNoResult(started)
        self.network.advance(10)
        self.network.advance(0)
        self.successResultOf(started)

    def test_connection(self) -> None:
        self.network.unreachable = {A}
        started = self.start("b@x.test")
        self.network.advance(29)
        self.assertNoResult(started)
        self.network.advance(1)
        self.network.advance(0)
        self.assertIsInstance(self.successResultOf(started)[0], TryLater)


class HostTests(DeliveryCase):
    def test_next_host_when_the_first_is_down(self) -> None:
        del self.network.servers[A, 25]
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx2.x.test [{B}]"])

    def test_next_host_when_the_first_does_not_want_us(self) -> None:
        for replies in (
            {"greeting": "554 5.7.1 no"},
            {"greeting": "421 busy"},
            {"EHLO": "450 x"},
            {"greeting": DROP},
        ):
            self.peer.replies = dict(replies)
            self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx2.x.test [{B}]"])
            self.network.advance(10)

    def test_next_host_when_the_session_breaks_before_the_message_was_sent(self) -> None:
        for replies in ({"MAIL": "421 4.3.2 bye"}, {"RCPT": DROP}, {"DATA": "999 what"}):
            self.peer.replies = dict(replies)
            self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx2.x.test [{B}]"])
            self.network.advance(10)
        self.assertEqual(self.peer.messages, [])

    def test_next_host_when_the_session_ends_as_soon_as_it_is_there(self) -> None:
        for line in ("421 4.3.2 just stopping", "250 what"):
            self.peer.replies = {"EHLO": f"250 mx\r\n{line}\r\n"}
            self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx2.x.test [{B}]"])
            self.network.advance(10)
        self.assertEqual(self.peer.messages, [])

    def test_refused_by_every_host(self) -> None:
        self.peer.replies = self.second.replies = {"greeting": "554 5.7.1 no"}
        self.assertEqual(self.summary("b@x.test"), [f"Failed 554 5.7.1 mx2.x.test [{B}]"])

    def test_one_refusal_is_not_final_while_another_host_may_come_back(self) -> None:
        del self.network.servers[A, 25]
        self.second.replies = {"greeting": "554 5.7.1 no"}
        self.assertEqual(self.summary("b@x.test"), [f"TryLater 451 4.4.1 mx1.x.test [{A}]"])

    def test_all_down(self) -> None:
        self.network.servers.clear()
        self.assertEqual(self.summary("b@x.test"), [f"TryLater 451 4.4.1 mx2.x.test [{B}]"])

    def test_dropped_after_the_dot(self) -> None:
        self.peer.replies = {".": DROP}
        self.assertEqual(self.summary("b@x.test"), [f"TryLater 451 4.4.2 mx1.x.test [{A}]"])
        self.assertEqual(self.second.connections, 0)

    def test_next_host_when_the_first_can_not_take_it_now(self) -> None:
        """RFC 5321 §5.1: each address is tried until an attempt succeeds."""
        for verb in ("MAIL", "RCPT", "DATA", "."):
            self.peer.replies = {verb: "451 4.3.2 not now"}
            self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx2.x.test [{B}]"])
            self.assertEqual(self.peer.messages, [])
            self.network.advance(10)
        self.assertEqual(len(self.second.messages), 4)

    def test_the_next_message_is_for_the_best_host_again(self) -> None:
        self.peer.replies = {"RCPT": ["451 4.3.2 not now"]}
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx2.x.test [{B}]"])
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx1.x.test [{A}]"])
        self.assertEqual((self.peer.connections, len(self.second.sessions)), (1, 0))

    def test_only_those_go_on_whom_the_first_put_off(self) -> None:
        self.peer.replies = {"RCPT c@x.test": "450 4.2.1 later", "RCPT d@x.test": "550 5.1.1 no"}
        self.assertEqual(
            self.summary("b@x.test", "c@x.test", "d@x.test"),
            [
                f"Delivered 250 2.0.0 mx1.x.test [{A}]",
                f"Delivered 250 2.0.0 mx2.x.test [{B}]",
                f"Failed 550 5.1.1 mx1.x.test [{A}]",
            ],
        )
        self.assertEqual([one.recipients for one in self.second.messages], [["c@x.test"]])

    def test_each_address_of_each_host_is_asked_once(self) -> None:
        self.resolver.data["addresses"]["mx1.x.test"] = [A, C]
        third = self.network.servers[C, 25] = SmtpPeer()
        for peer in (self.peer, self.second, third):
            peer.replies = {"RCPT": "450 4.2.1 later"}
        [outcome] = self.deliver("b@x.test")
        self.assertEqual(brief(outcome), f"TryLater 450 4.2.1 mx1.x.test [{A}]")
        self.assertEqual(
            [one.remote.split(" ")[1] for one in outcome.contacts], [f"[{A}]", f"[{C}]", f"[{B}]"]
        )
        # Idle sessions, with whom it is asked first, are the same hosts.
        self.deliver("b@x.test")
        self.assertEqual(
            [peer.commands.count("RCPT TO:<b@x.test>") for peer in (self.peer, third, self.second)], [2, 2, 2]
        )

    def test_a_worse_host_makes_nobody_bounce_whom_a_better_one_put_off(self) -> None:
        self.peer.replies = {"RCPT": "450 4.2.1 later"}
        for told in ({"RCPT": "550 5.7.1 relaying denied"}, {"greeting": "554 5.3.2 no"}, {"RCPT": DROP}):
            self.second.replies = dict(told)
            self.assertEqual(self.summary("b@x.test"), [f"TryLater 450 4.2.1 mx1.x.test [{A}]"])
            self.network.advance(10)

    def test_what_one_host_can_not_do_another_may(self) -> None:
        """RFC 1870 SIZE, RFC 6531 §3.2 SMTPUTF8."""
        self.peer.extensions = ["PIPELINING", "SIZE 10"]
        self.second.extensions = ["PIPELINING", "SMTPUTF8", "8BITMIME"]
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx2.x.test [{B}]"])
        self.peer.extensions = ["PIPELINING"]
        self.assertEqual(self.summary("jörg@x.test"), [f"Delivered 250 2.0.0 mx2.x.test [{B}]"])
        self.network.advance(10)
        self.second.extensions = ["PIPELINING"]
        self.assertEqual(self.summary("jörg@x.test"), [f"Failed 553 5.6.7 mx2.x.test [{B}]"])

    def test_refused_for_good_is_not_tried_elsewhere(self) -> None:
        self.peer.replies = {"RCPT": "550 5.1.1 no"}
        self.assertEqual(self.summary("b@x.test"), [f"Failed 550 5.1.1 mx1.x.test [{A}]"])
        self.assertEqual(self.second.connections, 0)

    def test_too_many_addresses(self) -> None:
        self.network.servers.clear()
        self.resolver.data["addresses"]["mx1.x.test"] = [f"192.0.2.{n}" for n in range(100)]
        self.deliver("b@x.test")
        self.assertEqual(len(self.network.attempts), MAX_TRIES)


class LoopTests(DeliveryCase):
    """RFC 5321 §5.1: this server under another name, known by its address."""

    def setUp(self) -> None:
        super().setUp()
        self.delivery = SmtpDelivery(
            self.network,
            self.resolver,
            random.Random(1),
            self.settings,
            "me.test",
            InlineWorkers(),
            CONTEXT,
            is_own=lambda address, port: (address, port) == (B, 25),
        )

    def test_better_hosts_are_tried(self) -> None:
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx1.x.test [{A}]"])

    def test_nothing_from_there_on_is_tried(self) -> None:
        del self.network.servers[A, 25]
        self.resolver.data["mx"]["x.test"].append((30, "a.test"))
        self.assertEqual(self.summary("b@x.test"), [f"TryLater 451 4.4.1 mx1.x.test [{A}]"])
        self.assertEqual(self.network.attempts, [(A, 25)])

    def test_nor_are_its_equals(self) -> None:
        self.resolver.data["mx"]["x.test"] = [(10, "mx1.x.test"), (10, "mx2.x.test")]
        [outcome] = self.deliver("b@x.test")
        self.assertEqual(brief(outcome), "Failed 550 5.4.6")
        assert isinstance(outcome, Failed)
        self.assertIn("this host, known as mx2.x.test", outcome.reply.text)
        self.assertEqual(self.network.attempts, [])

    def test_address_literal(self) -> None:
        self.assertEqual(self.summary(f"b@[{B}]"), ["Failed 550 5.4.6"])

    def test_an_address_that_no_interface_has(self) -> None:
        self.delivery.reconfigure(Relay(own_addresses=(A,)))
        self.assertEqual(self.summary("b@x.test"), ["Failed 550 5.4.6"])
        self.delivery.reconfigure(Relay(own_addresses=(A,), port=2525))
        self.network.servers[A, 2525] = self.peer
        self.assertEqual(self.summary("b@x.test"), ["Failed 550 5.4.6"])
        self.delivery.reconfigure(Relay(own_addresses=(A,), routes={"x.test": Route(host=A, port=26)}))
        self.network.servers[A, 26] = self.peer
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 {A} [{A}]"])

    def test_a_route_to_ourselves_is_no_reason_to_bounce(self) -> None:
        self.delivery.reconfigure(Relay(routes={"y.test": Route(host="mx2.x.test")}))
        self.assertEqual(self.summary("b@y.test"), ["TryLater 451 4.4.4"])


class RouteTests(DeliveryCase):
    def test_implicit_mx_over_ipv6(self) -> None:
        peer = SmtpPeer()
        self.network.servers[C, 25] = peer
        self.assertEqual(self.summary("b@a.test"), [f"Delivered 250 2.0.0 a.test [{C}]"])

    def test_address_literal(self) -> None:
        self.assertEqual(self.summary(f"b@[{A}]"), [f"Delivered 250 2.0.0 {A} [{A}]"])
        self.assertEqual(self.resolver.asked, [])

    def test_dns_says_no(self) -> None:
        self.resolver.data["txt"]["bare.test"] = [b""]
        self.resolver.failing = {"fail.test"}
        for domain, expected in (
            ("nowhere.test", "Failed 550 5.1.2"),
            ("null.test", "Failed 556 5.1.10"),
            ("self.test", "Failed 550 5.4.6"),
            ("bare.test", "Failed 550 5.4.4"),
            ("fail.test", "TryLater 451 4.4.3"),
        ):
            self.assertEqual(self.summary(f"b@{domain}"), [expected])

    def test_addresses_that_cannot_be_looked_up_now(self) -> None:
        self.resolver.data["addresses"]["mx1.x.test"] = LookupFailed("SERVFAIL")
        del self.resolver.data["addresses"]["mx2.x.test"]
        self.assertEqual(self.summary("b@x.test"), ["TryLater 451 4.4.3"])

    def test_smarthost(self) -> None:
        self.delivery.reconfigure(Relay(smarthost=Route(host="smart.test", port=25)))
        self.assertEqual(self.summary("b@x.test", "c@y.test"), [f"Delivered 250 2.0.0 smart.test [{B}]"] * 2)
        self.assertEqual(len(self.second.messages), 1)

    def test_route_to_an_address(self) -> None:
        for host in (A, f"[{A}]"):
            self.delivery.reconfigure(Relay(routes={".x.test": Route(host=host)}))
            self.assertEqual(self.summary("b@sub.x.test"), [f"Delivered 250 2.0.0 {A} [{A}]"])

    def test_route_by_mx(self) -> None:
        self.delivery.reconfigure(Relay(routes={"other.test": Route(host="x.test", mx=True)}))
        self.assertEqual(self.summary("b@other.test"), [f"Delivered 250 2.0.0 mx1.x.test [{A}]"])

    def test_route_that_leads_nowhere_is_no_reason_to_bounce(self) -> None:
        for hop in (Route(host="nowhere.test", mx=True), Route(host="nowhere.test"), Route(host="[bad:x]")):
            self.delivery.reconfigure(Relay(smarthost=hop))
            self.assertEqual(self.summary("b@x.test"), ["TryLater 451 4.4.4"])

    def test_refused_by_the_smarthost(self) -> None:
        self.delivery.reconfigure(Relay(smarthost=Route(host="smart.test")))
        self.second.replies = {"greeting": "554 5.7.1 no"}
        self.assertEqual(self.summary("b@x.test"), [f"Failed 554 5.7.1 smart.test [{B}]"])

    def test_routes_that_changed_under_way_part_the_recipients(self) -> None:
        self.delivery.reconfigure(Relay(smarthost=Route(host="smart.test")))
        recipients = [recipient("b@x.test"), recipient("c@a.test")]
        destination = self.delivery.destination(recipients[0])
        self.delivery.reconfigure(Relay())
        started = Deferred.fromCoroutine(
            self.delivery.deliver(message(), Body(TEXT), recipients, destination)
        )
        self.network.advance(0)
        self.assertEqual(
            [brief(one) for one in self.successResultOf(started)],
            [f"Delivered 250 2.0.0 mx1.x.test [{A}]", f"TryLater 451 4.4.1 a.test [{C}]"],
        )


class TlsTests(DeliveryCase):
    def setUp(self) -> None:
        super().setUp()
        self.peer.tls = object()

    def test_used_where_offered(self) -> None:
        self.deliver("b@x.test")
        self.assertTrue(self.peer.messages[0].tls)

    def test_broken_tls_is_done_without(self) -> None:
        self.network.broken_tls = {A}
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx1.x.test [{A}]"])
        self.assertFalse(self.peer.messages[0].tls)
        self.assertEqual(self.peer.connections, 2)

    def test_refused_starttls_is_done_without(self) -> None:
        self.peer.replies = {"STARTTLS": "454 4.7.0 not now"}
        self.deliver("b@x.test")
        self.assertFalse(self.peer.messages[0].tls)
        self.assertEqual(self.peer.connections, 1)


class LoginTests(DeliveryCase):
    settings = Relay(smarthost=Route(host="smart.test"))
    login = Login("me", "secret")

    def test_given_under_tls(self) -> None:
        self.second.tls = object()
        self.second.extensions.append("AUTH PLAIN")
        self.second.replies = {"AUTH": "235 2.7.0 welcome"}
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 smart.test [{B}]"])
        self.assertIn("AUTH PLAIN AG1lAHNlY3JldA==", self.second.commands)

    def test_a_new_password_counts_from_the_next_session_on(self) -> None:
        self.second.tls = object()
        self.second.extensions.append("AUTH PLAIN")
        self.second.replies = {"AUTH": "235 2.7.0 welcome"}
        self.deliver("b@x.test")
        self.delivery.set_login(Login("you", "other"))
        self.deliver("b@x.test")
        self.delivery.set_login(None)
        self.deliver("b@x.test")
        self.assertEqual(
            [command for command in self.second.commands if command.startswith("AUTH")],
            ["AUTH PLAIN AG1lAHNlY3JldA==", "AUTH PLAIN AHlvdQBvdGhlcg=="],
        )
        self.assertEqual(self.second.connections, 3)

    def test_never_in_the_clear(self) -> None:
        self.second.extensions.append("AUTH PLAIN")
        self.assertEqual(self.summary("b@x.test"), [f"TryLater 451 4.7.10 smart.test [{B}]"])
        self.second.tls = object()
        self.network.broken_tls = {B}
        self.assertEqual(self.summary("b@x.test"), [f"TryLater 451 4.4.2 smart.test [{B}]"])
        self.assertFalse(any("AUTH" in command for command in self.second.commands))

    def test_scram_bound_to_the_connection(self) -> None:
        self.second.tls = object()
        self.second.extensions.append("AUTH PLAIN SCRAM-SHA-256-PLUS")
        self.second.replies = {"AUTH": "535 5.7.8 wrong"}
        self.assertEqual(self.summary("b@x.test"), [f"TryLater 535 5.7.8 smart.test [{B}]"])
        [first, second] = [command for command in self.second.commands if command.startswith("AUTH")]
        mechanism, said = first.split()[1:]
        self.assertEqual(mechanism, "SCRAM-SHA-256-PLUS")
        self.assertTrue(base64.b64decode(said).startswith(b"p=tls-exporter,,n=me,r="))
        self.assertTrue(second.startswith("AUTH PLAIN"))

    def test_a_wrong_password_bounces_nothing(self) -> None:
        self.second.tls = object()
        self.second.extensions.append("AUTH PLAIN")
        self.second.replies = {"AUTH": "535 5.7.8 wrong"}
        self.assertEqual(self.summary("b@x.test"), [f"TryLater 535 5.7.8 smart.test [{B}]"])


class ReuseTests(DeliveryCase):
    def test_an_idle_session_is_used_again(self) -> None:
        for _ in range(3):
            self.deliver("b@x.test")
            self.network.advance(4)
        self.assertEqual(self.peer.connections, 1)
        self.assertEqual(len(self.peer.messages), 3)
        self.assertNotIn("RSET", self.peer.commands)

    def test_not_for_another_destination(self) -> None:
        self.resolver.data["mx"]["y.test"] = [(1, "mx1.x.test")]
        self.deliver("b@x.test")
        self.deliver("b@y.test")
        self.assertEqual(self.peer.connections, 2)

    def test_closed_by_quit_when_it_was_idle_for_long(self) -> None:
        self.deliver("b@x.test")
        self.network.advance(5)
        self.assertEqual(self.peer.commands[-1], "QUIT")
        self.assertEqual(self.network.open, set())

    def test_none_is_kept_when_so_configured(self) -> None:
        self.delivery.reconfigure(Relay(keep_open=0))
        self.deliver("b@x.test")
        self.assertEqual(self.peer.commands[-1], "QUIT")

    def test_a_session_that_the_peer_closed_meanwhile(self) -> None:
        self.deliver("b@x.test")
        [session] = self.peer.sessions
        session.transport.write(b"421 4.4.2 idle too long\r\n")
        self.network.advance(0)
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx1.x.test [{A}]"])
        self.assertEqual(self.peer.connections, 2)

    def test_a_session_that_breaks_when_used_again(self) -> None:
        self.deliver("b@x.test")
        self.peer.replies = {"MAIL": ["421 4.7.0 one message is enough"]}
        self.assertEqual(self.summary("b@x.test"), [f"Delivered 250 2.0.0 mx1.x.test [{A}]"])
        self.assertEqual(self.peer.connections, 2)

    def test_reset_after_a_failure(self) -> None:
        self.peer.replies = {"RCPT": ["550 5.1.1 no"]}
        self.deliver("b@x.test")
        self.deliver("b@x.test")
        self.assertEqual(self.peer.connections, 1)
        self.assertIn("RSET", self.peer.commands)
        self.assertEqual(len(self.peer.messages), 1)

    def test_not_for_ever(self) -> None:
        for _ in range(Relay().max_messages + 1):
            self.deliver("b@x.test")
        self.assertEqual(self.peer.connections, 2)

    def test_reload_ends_idle_sessions(self) -> None:
        self.deliver("b@x.test")
        self.delivery.reconfigure(attrs.evolve(self.settings, keep_open=9.0))
        self.network.advance(0)
        self.assertEqual(self.peer.commands[-1], "QUIT")


class CloseTests(DeliveryCase):
    def close(self) -> None:
        closing = Deferred.fromCoroutine(self.delivery.close())
        self.network.advance(0)
        self.successResultOf(closing)

    def test_quits_idle_sessions(self) -> None:
        self.deliver("b@x.test")
        self.close()
        self.assertEqual(self.peer.commands[-1], "QUIT")

    def test_attempts_under_way_end_in_try_later(self) -> None:
        for key in ("greeting", "RCPT", "."):
            self.delivery = self.make(self.settings)
            self.peer.replies = {key: SILENCE}
            started = self.start("b@x.test")
            self.assertNoResult(started)
            self.close()
            self.assertIsInstance(self.successResultOf(started)[0], TryLater)

    def test_while_connecting(self) -> None:
        self.network.unreachable = {A, B}
        started = self.start("b@x.test")
        self.close()
        self.assertIsInstance(self.successResultOf(started)[0], TryLater)

    def test_a_peer_that_does_not_say_goodbye_is_cut_off(self) -> None:
        self.deliver("b@x.test")
        self.peer.replies = {"QUIT": SILENCE}
        for session in self.peer.sessions:
            session.transport.pauseProducing()
        closing = Deferred.fromCoroutine(self.delivery.close())
        self.network.advance(4)
        self.assertNoResult(closing)
        self.network.advance(1)
        self.successResultOf(closing)

    def test_nothing_new_is_begun(self) -> None:
        self.close()
        self.assertEqual(self.summary("b@x.test"), [f"TryLater 451 4.3.2 mx2.x.test [{B}]"])
        self.assertEqual(self.network.attempts, [])

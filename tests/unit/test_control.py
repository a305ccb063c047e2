"""The control socket's protocol, and the queue's commands."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.queue import NewMessage, NewRecipient, Transport
from twisted_mta.service import control
from twisted_mta.service.control import ControlError, ControlFactory, ControlProtocol
from twisted_mta.service.queue_admin import QueueAdmin
from twisted_mta.service.queue_control import queue_handlers
from twisted_mta.testing.queue import MemoryQueueStore


class ControlTests(SynchronousTestCase):
    """One client."""

    def setUp(self) -> None:
        self.slow: Deferred[Any] = Deferred()
        self.clock = Clock()
        self.uid = os.geteuid()

        async def echo(arguments: Mapping[str, Any]) -> Any:
            return arguments

        async def fail(arguments: Mapping[str, Any]) -> Any:
            raise ControlError("it can't be done")

        async def bug(arguments: Mapping[str, Any]) -> Any:
            raise ZeroDivisionError

        async def wait(arguments: Mapping[str, Any]) -> Any:
            return await self.slow

        async def unfit(arguments: Mapping[str, Any]) -> Any:
            return object()

        handlers = {"echo": echo, "fail": fail, "bug": bug, "wait": wait, "unfit": unfit}
        self.factory = ControlFactory(handlers, self.clock, lambda transport: self.uid)
        self.connect()

    def connect(self) -> None:
        protocol = self.factory.buildProtocol(None)
        assert isinstance(protocol, ControlProtocol)
        self.protocol = protocol
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)
        self.addCleanup(self.clock.advance, 1000)

    def send(self, *requests: object) -> list[Any]:
        self.protocol.dataReceived(b"".join(json.dumps(request).encode() + b"\n" for request in requests))
        return self.answers()

    def answers(self) -> list[Any]:
        lines = self.transport.value().splitlines()
        self.transport.clear()
        return [json.loads(line) for line in lines]

    def test_result(self) -> None:
        self.assertEqual(
            self.send({"command": "echo", "arguments": {"a": ["é", 1]}}), [{"result": {"a": ["é", 1]}}]
        )
        self.assertEqual(self.send({"command": "echo"}), [{"result": {}}])

    def test_any_split(self) -> None:
        for octet in b'{"command": "echo"}\n{"command": "fail"}\n':
            self.protocol.dataReceived(bytes([octet]))
        self.assertEqual(self.answers(), [{"result": {}}, {"error": "it can't be done"}])

    def test_errors(self) -> None:
        self.assertEqual(
            self.send({"command": "nope"}),
            [{"error": "unknown command; known are bug, echo, fail, unfit, wait", "unknown": True}],
        )
        for request in ([], 1, "x", {"command": "echo", "arguments": []}):
            self.assertIn("no object", self.send(request)[0]["error"])
        self.assertIn("unknown command", self.send({"command": []})[0]["error"])
        for octets in (b"\n", b"{\n", b"\xff\n", b"[" * 100_000 + b"\n"):
            self.protocol.dataReceived(octets)
            self.assertEqual(self.answers(), [{"error": "the request is no JSON"}])

    def test_bug_of_a_handler_is_logged_and_told(self) -> None:
        self.assertEqual(self.send({"command": "bug"}), [{"error": "internal error: see the server's log"}])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.send({"command": "unfit"}), [{"error": "internal error: see the server's log"}])
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.assertEqual(self.send({"command": "echo"}), [{"result": {}}])

    def test_answers_keep_their_order(self) -> None:
        self.assertEqual(self.send({"command": "wait"}, {"command": "echo"}), [])
        self.slow.callback("late")
        self.assertEqual(self.answers(), [{"result": "late"}, {"result": {}}])

    def test_endless_request_is_cut_off(self) -> None:
        self.protocol.dataReceived(b"x" * (control.MAX_REQUEST + 1))
        self.assertIn("longer than", self.answers()[0]["error"])
        self.assertTrue(self.transport.disconnecting)
        self.protocol.dataReceived(b'\n{"command": "echo"}\n')
        self.assertEqual(self.answers(), [])

    def test_client_that_does_not_wait_is_held_back(self) -> None:
        self.send({"command": "wait"})
        self.protocol.dataReceived(b"x" * (control.MAX_REQUEST + 1))
        self.assertEqual(self.transport.producerState, "paused")
        self.slow.callback(None)
        self.assertTrue(self.transport.disconnecting)

    def test_silence(self) -> None:
        self.clock.advance(control.TIMEOUT - 1)
        self.send({"command": "wait"})
        self.clock.advance(control.TIMEOUT + 1)
        self.assertFalse(self.transport.disconnected)
        self.slow.callback(None)
        self.clock.advance(control.TIMEOUT)
        self.assertTrue(self.transport.disconnected)

    def test_other_users_are_turned_away(self) -> None:
        self.uid = os.geteuid() + 1
        self.connect()
        self.assertIn("only root", self.answers()[0]["error"])
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.send({"command": "echo"}), [])

    def test_root_is_not(self) -> None:
        self.uid = 0
        self.connect()
        self.assertEqual(self.send({"command": "echo"}), [{"result": {}}])

    def test_client_that_left_gets_no_answer(self) -> None:
        self.send({"command": "wait"})
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.slow.callback(1)
        self.assertEqual(self.answers(), [])
        self.assertEqual(self.factory.clients, 0)

    def test_number_of_clients_is_bounded(self) -> None:
        for _ in range(control.MAX_CLIENTS - 1):
            self.connect()
        self.assertIsNone(self.factory.buildProtocol(None))
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertIsNotNone(self.factory.buildProtocol(None))


class QueueCommandsTests(SynchronousTestCase):
    """queue.list, queue.show, queue.retry, queue.delete."""

    def setUp(self) -> None:
        self.store = MemoryQueueStore()
        self.handlers = queue_handlers(QueueAdmin(self.store, lambda: 1000.0))
        body = self.store.new_body()
        body.write(b"Subject: hi\r\n\r\nbody\r\n")
        bob = Address("bob", "example.org")
        message = NewMessage(
            id="ABC",
            sender=None,
            recipients=(NewRecipient(bob, Transport.SMTP, Address("rob", "example.test")),),
            prefix=b"Received: x\r\n",
            arrived=100.0,
            expires=9999.0,
            message_id="1@x",
        )
        self.successResultOf(self.deferred(self.store.add([message], body)))

    def deferred(self, awaitable: Any) -> Deferred[Any]:
        async def wait() -> Any:
            return await awaitable

        return Deferred.fromCoroutine(wait())

    def call(self, command: str, **arguments: Any) -> Any:
        return self.successResultOf(self.deferred(self.handlers[command](arguments)))

    def refused(self, command: str, **arguments: Any) -> str:
        failure = self.failureResultOf(self.deferred(self.handlers[command](arguments)), ControlError)
        return str(failure.value)

    def test_list(self) -> None:
        (message,) = self.call("queue.list")["messages"]
        json.dumps(message)
        self.assertEqual(message["id"], "ABC")
        self.assertEqual(message["sender"], "")
        self.assertEqual(message["size"], 34)
        (recipient,) = message["recipients"]
        self.assertEqual(recipient["address"], "bob@example.org")
        self.assertEqual(recipient["original"], "rob@example.test")
        self.assertEqual(recipient["transport"], "smtp")

    def test_show(self) -> None:
        shown = self.call("queue.show", ids=["ABC"])
        self.assertEqual(shown["text"], "Received: x\r\nSubject: hi\r\n\r\nbody\r\n")
        self.assertFalse(shown["cut"])
        self.assertEqual(self.refused("queue.show", ids=["X"]), "there is no message X in the queue")

    def test_retry(self) -> None:
        done = {"messages": 1, "recipients": 1, "ids": ["ABC"]}
        self.assertEqual(self.call("queue.retry", all=True), done)
        self.assertEqual(self.call("queue.retry", ids=["ABC", "X"]), done)
        (message,) = self.call("queue.list")["messages"]
        self.assertEqual(message["recipients"][0]["next_attempt"], 1000.0)

    def test_delete(self) -> None:
        self.assertEqual(self.call("queue.delete", ids=["ABC", "X"], dry_run=True)["messages"], 1)
        self.assertEqual(self.call("queue.delete", ids=["ABC", "X"])["messages"], 1)
        self.assertEqual(self.call("queue.list"), {"messages": []})

    def test_hold_and_release(self) -> None:
        self.assertEqual(self.call("queue.hold", domain="example.org", reason="spam?")["ids"], ["ABC"])
        self.assertEqual(self.call("queue.hold", all=True)["messages"], 0)
        (message,) = self.call("queue.list", status="held")["messages"]
        self.assertEqual((message["hold"], message["recipients"][0]["status"]), ("spam?", "held"))
        self.assertEqual(self.call("queue.release", all=True)["messages"], 1)
        self.assertEqual(self.call("queue.list", status="held"), {"messages": []})
        self.call("queue.hold", all=True)
        self.assertEqual(self.call("queue.list")["messages"][0]["hold"], "by hand")

    def test_expire(self) -> None:
        self.assertEqual(self.call("queue.expire", older=10)["recipients"], 1)
        found = self.successResultOf(self.deferred(self.store.find("ABC")))
        self.assertTrue(found.recipients[0].given_up)

    def test_reroute(self) -> None:
        for to, hop in (
            ("mx.example.net", "mx.example.net:25"),
            ("[2001:db8::1]:26", "[2001:db8::1]:26"),
            ("", ""),
        ):
            self.assertEqual(self.call("queue.reroute", ids=["ABC"], to=to)["recipients"], 1)
            (message,) = self.call("queue.list")["messages"]
            self.assertEqual(message["recipients"][0]["hop"], hop)
        self.assertIn("is no host", self.refused("queue.reroute", all=True, to="a b"))

    def test_pages(self) -> None:
        self.assertEqual(len(self.call("queue.list", limit=1)["messages"]), 1)
        self.assertEqual(self.call("queue.list", after="ABC"), {"messages": []})

    def test_bad_arguments(self) -> None:
        for command in ("queue.show", "queue.retry", "queue.delete", "queue.hold"):
            for ids in (None, []):
                self.assertIn("no queue id was given", self.refused(command, ids=ids))
            for ids in ([1], "ABC", [""]):
                self.assertEqual(self.refused(command, ids=ids), "no queue id was given")
        self.assertIn("more than", self.refused("queue.retry", ids=["a"] * 10_001))
        self.assertEqual(self.refused("queue.retry", older="x"), "older is no number")
        self.assertEqual(self.refused("queue.retry", larger=-1), "larger is no number")
        self.assertEqual(self.refused("queue.retry", sender=1), "sender is no text")
        self.assertEqual(
            self.refused("queue.retry", status="odd"), "the status is one of held, new, deferred"
        )
        self.assertEqual(self.refused("queue.show", ids=["A", "B"]), "one queue id is needed")
        for limit in (0, "x", 10**9):
            self.assertIn("the limit is", self.refused("queue.list", limit=limit))

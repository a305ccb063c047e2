"""The server's side of the helper that runs commands: what it says, what it takes, and what it does without one."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.commands import Exit
from twisted_mta.net import commands
from twisted_mta.net.command_helper import MAX_REQUEST
from twisted_mta.net.commands import GRACE, HelperCommands, HelperError, HelperProcess, NoCommands, inherited


class _Reactor(Clock):
    """Reads when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)

    def read(self) -> None:
        for reader in list(self.readers):
            self.assert_open(reader)
            why = reader.doRead()
            if why is not None:
                reader.connectionLost(why)

    @staticmethod
    def assert_open(reader: Any) -> None:
        assert reader.fileno() >= 0
        assert reader.logPrefix() == "commands"


class HelperCommandsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = _Reactor()
        self.helpers: list[socket.socket] = []
        self.commands = HelperCommands(self.reactor, self.connect)
        self.addCleanup(self.commands.close)
        self.file = os.open(os.devnull, os.O_RDONLY)
        self.addCleanup(os.close, self.file)

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.helpers.append(theirs)
        self.addCleanup(theirs.close)
        return ours

    def run_one(self, *argv: str) -> Deferred[Exit]:
        return self.commands.run(argv or ("/bin/x",), {"A": "caf\udce9"}, "/", 5.0, self.file)

    def heard(self) -> Any:
        data, descriptors, _, _ = socket.recv_fds(self.helpers[-1], MAX_REQUEST, 1)
        for descriptor in descriptors:
            os.close(descriptor)
        return {**json.loads(data), "descriptors": len(descriptors)}

    def say(self, what: Any) -> None:
        self.helpers[-1].send(what if isinstance(what, bytes) else json.dumps(what).encode())
        self.reactor.read()

    def test_a_run(self) -> None:
        done = self.run_one("/bin/x", "y z")
        heard = self.heard()
        self.assertEqual(
            (heard["argv"], heard["directory"], heard["descriptors"]), (["/bin/x", "y z"], "/", 1)
        )
        self.assertEqual((heard["timeout"], heard["grace"]), (5.0, commands.GRACE))
        self.assertNoResult(done)
        self.say({"id": heard["id"], "code": 67, "output": "no"})
        self.assertEqual(self.successResultOf(done), Exit(code=67, output="no"))

    def test_answers_come_in_any_order(self) -> None:
        first, second = self.run_one(), self.run_one()
        numbers = [self.heard()["id"], self.heard()["id"]]
        self.say({"id": numbers[1], "code": 2})
        self.say({"id": numbers[0], "signal": 9, "late": True})
        self.assertEqual(self.successResultOf(first), Exit(signal=9, late=True))
        self.assertEqual(self.successResultOf(second), Exit(code=2))

    def test_strange_answers_are_not_believed(self) -> None:
        done = self.run_one()
        number = self.heard()["id"]
        for strange in (
            b"{",
            b"[]",
            b'{"id": []}',
            b'{"code": 1}',
            b'{"id": 1, "code": "x"}',
            b"\xff",
            b'{"id": 99}',
        ):
            self.say(strange)
            self.assertNoResult(done)
        self.say({"id": number, "error": "x"})
        self.assertEqual(self.successResultOf(done), Exit(error="x"))

    def test_cancel(self) -> None:
        done = self.run_one()
        number = self.heard()["id"]
        done.cancel()
        self.failureResultOf(done)
        self.assertEqual(self.heard(), {"id": number, "cancel": True, "descriptors": 0})
        self.say({"id": number, "signal": 15})

    def test_a_helper_that_was_stopped_by_what_it_runs(self) -> None:
        done = self.run_one()
        self.heard()
        self.reactor.advance(5.0 + 2 * GRACE)
        self.assertNoResult(done)
        self.reactor.advance(GRACE)
        self.assertIn("does not answer", self.successResultOf(done).error)
        self.assertTrue(self.heard()["cancel"], "should it go on, nobody waits for that one")
        self.say({"id": 1, "code": 0})

    def test_a_helper_that_dies(self) -> None:
        done = self.run_one()
        self.helpers[-1].close()
        self.reactor.read()
        self.assertIn("has ended", self.successResultOf(done).error)
        self.assertEqual(self.reactor.readers, [])
        again = self.run_one()
        self.assertEqual(len(self.helpers), 2)
        self.say({"id": self.heard()["id"]})
        self.assertEqual(self.successResultOf(again), Exit())

    def test_a_helper_that_died_before(self) -> None:
        self.run_one()
        self.helpers[-1].close()
        self.assertIn("has ended", self.successResultOf(self.run_one()).error)
        self.reactor.read()

    def test_no_helper(self) -> None:
        def connect() -> socket.socket:
            raise HelperError("there is none")

        done = HelperCommands(self.reactor, connect).run(["x"], {}, "/", 1.0, self.file)
        self.assertEqual(self.successResultOf(done), Exit(error="there is none"))

    def test_too_long(self) -> None:
        self.assertEqual(
            self.successResultOf(self.run_one("x" * MAX_REQUEST)), Exit(error="the command is too long")
        )

    def test_close(self) -> None:
        done = self.run_one()
        self.commands.close()
        self.assertIn("has ended", self.successResultOf(done).error)
        self.assertEqual(self.helpers[-1].recv(MAX_REQUEST)[:1], b"{")
        self.assertEqual(self.helpers[-1].recv(MAX_REQUEST), b"")
        self.commands.close()

    def test_inherited(self) -> None:
        ours = self.connect()
        connect = inherited(ours.detach())
        connect().close()
        with self.assertRaises(HelperError):
            connect()

    def test_off(self) -> None:
        done = NoCommands().run(["x"], {}, "/", 1.0, self.file)
        self.assertEqual(self.successResultOf(done).error, "commands are not allowed on this server")


class HelperProcessTests(SynchronousTestCase):
    """A helper that is replaced, or is not."""

    def helper(self, *, again: bool) -> tuple[HelperProcess, list[Any], Callable[[], None]]:
        started: list[Any] = []
        process = mock.Mock()
        process.poll.return_value = None

        def start(user: str) -> Any:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.addCleanup(ours.close)
            self.addCleanup(theirs.close)
            started.append(theirs)
            process.poll.return_value = None
            return ours, process

        patch = mock.patch.object(commands, "start_helper", start)
        patch.start()
        self.addCleanup(patch.stop)

        def die() -> None:
            process.poll.return_value = -9
            started[-1].close()

        return HelperProcess("u", again=again), started, die

    def test_connections(self) -> None:
        helper, started, _ = self.helper(again=False)
        with helper.connect() as end:
            data, descriptors, _, _ = socket.recv_fds(started[0], 100, 1)
            self.assertEqual(data, b'{"join": true}')
            with socket.socket(fileno=descriptors[0]) as other:
                other.send(b"x")
                self.assertEqual(end.recv(10), b"x")

    def test_a_dead_one_is_replaced_if_that_is_possible(self) -> None:
        helper, started, die = self.helper(again=True)
        die()
        helper.connect().close()
        self.assertEqual(len(started), 2)

    def test_and_else_not(self) -> None:
        helper, started, die = self.helper(again=False)
        die()
        with self.assertRaisesRegex(HelperError, "has ended"):
            helper.connect()
        self.assertEqual(len(started), 1)

    def test_one_that_is_about_to_die(self) -> None:
        helper, started, _ = self.helper(again=True)
        started[0].close()
        with self.assertRaisesRegex(HelperError, "has ended"):
            helper.connect()

"""A port that several processes accept from, when the system has trouble to tell."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any
from unittest import mock

from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.net.shared_port import PAUSE, SharedPort


class AcceptTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor: Any = MemoryReactorClock()  # type: ignore[no-untyped-call]
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.port = SharedPort(listening.fileno(), Factory(), self.reactor)
        self.port.startListening()
        self.addCleanup(self.port.stopListening)

    def accept(self, error: int) -> None:
        with mock.patch.object(self.port, "_socket", wraps=self.port._socket) as wrapped:
            wrapped.accept.side_effect = OSError(error, os.strerror(error))
            self.assertIsNone(
                self.port.doRead(), "what is returned or raised here would be the end of the port"
            )

    def listens(self) -> bool:
        return self.port in self.reactor.getReaders()

    def test_it_never_blocks_the_other_processes(self) -> None:
        def open_copy(*, fileno: int) -> socket.socket:
            self.assertEqual(socket.getdefaulttimeout(), 0.0, "PyPy's changes the mode to this")
            return real(fileno=fileno)

        real = socket.socket
        with socket.create_server(("127.0.0.1", 0)) as listening:
            with mock.patch.object(socket, "socket", open_copy):
                port = SharedPort(listening.fileno(), Factory(), self.reactor)
            self.assertFalse(os.get_blocking(listening.fileno()))
            port.stopListening()
        with real() as other:
            self.assertIsNone(other.gettimeout())

    def test_trouble_with_one_client_is_not_the_end(self) -> None:
        for error in (errno.EPERM, errno.EPROTO, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EOPNOTSUPP):
            self.accept(error)
            self.assertTrue(self.listens())

    def test_without_descriptors_it_rests(self) -> None:
        self.accept(errno.EMFILE)
        self.assertFalse(self.listens())
        self.reactor.advance(PAUSE)
        self.assertTrue(self.listens())

    def test_a_bug_costs_one_client_only(self) -> None:
        self.port._factory.buildProtocol = mock.Mock(side_effect=ZeroDivisionError)
        with socket.create_connection(self.port._socket.getsockname()) as client:
            self.assertIsNone(self.port.doRead())
            self.assertEqual(client.recv(1), b"", "it is closed")
        self.assertTrue(self.listens())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_bug_in_a_session_leaves_nothing_with_the_reactor(self) -> None:
        session = mock.Mock()
        session.makeConnection.side_effect = ZeroDivisionError
        self.port._factory.buildProtocol = mock.Mock(return_value=session)
        with socket.create_connection(self.port._socket.getsockname()) as client:
            self.assertIsNone(self.port.doRead())
            self.assertEqual(client.recv(1), b"", "it is closed")
        self.assertEqual(list(self.reactor.getReaders()), [self.port])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.reactor.advance(0)
        session.connectionLost.assert_called_once()

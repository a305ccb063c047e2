"""A listening socket that several processes have: TCP or UNIX, bound by another process.

Twisted's own ports would not do. That for UNIX sockets sets the mode of the path and removes it at the end, which is the
business of who bound it.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.net.eager import adopt

#: Seconds without accepting where the process, or the machine, has no descriptor left: else it would try all the time.
PAUSE = 0.5
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
#: Connections accepted at a time, so that those that are open have their turn.
_AT_ONCE = 16


def address_of(sock: socket.socket) -> IAddress:
    """Where a socket is bound."""
    name = sock.getsockname()
    if sock.family == socket.AF_INET:
        return IPv4Address("TCP", *name)
    if sock.family == socket.AF_INET6:
        return IPv6Address("TCP", *name)
    return UNIXAddress(name)


def _never_blocking(descriptor: int) -> socket.socket:
    """An object for a socket that other processes have too. It must not block for a moment even, or one of them waits for
    the next connection in its accept: PyPy gives a socket the mode that is the default for new ones."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.0)
    try:
        return socket.socket(fileno=descriptor)
    finally:
        socket.setdefaulttimeout(before)


@implementer(IListeningPort)
class SharedPort(FileDescriptor):
    """Accepts from a socket that is bound and listens already."""

    log = Logger()

    def __init__(self, descriptor: int, factory: IProtocolFactory, reactor: Any) -> None:
        """`descriptor` is copied. `reactor` provides IReactorSocket, IReactorFDSet and IReactorTime."""
        super().__init__(reactor)
        self._reactor = reactor
        self._socket = _never_blocking(socket.dup(descriptor))
        self._factory = factory
        self._pause: Any = None

    def fileno(self) -> int:
        """For the reactor."""
        return self._socket.fileno()

    def startListening(self) -> None:
        """Begin, or go on, to accept; nothing once it was stopped."""
        if self._socket.fileno() < 0:
            return
        self.connected = 1
        self.startReading()  # type: ignore[no-untyped-call]

    def rest(self) -> None:
        """Accept nothing, until `startListening`."""
        if self._socket.fileno() < 0:
            return
        self.stopReading()  # type: ignore[no-untyped-call]
        if self._pause is not None and self._pause.active():
            self._pause.cancel()

    def stopListening(self) -> None:
        """Accept no more, and let go of the socket; the others that have it go on."""
        self.connected = 0
        self.rest()
        self._socket.close()

    def getHost(self) -> IAddress:
        """Where it is bound."""
        return address_of(self._socket)

    def doRead(self) -> None:
        """Somebody has connected, to this process or another one."""
        for _ in range(_AT_ONCE):
            try:
                connection, client = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return  # another process was quicker, or the client has changed its mind
            except OSError as error:
                # Linux tells here of trouble of the network with one client too, and of a firewall that wants none of it:
                # the port must outlive that.
                if error.errno not in _EXHAUSTED:
                    self.log.warn("a connection could not be accepted: {error}", error=error.strerror)
                    return
                self.log.error("no connections can be accepted: {error}", error=error.strerror)
                self.rest()
                self._pause = self._reactor.callLater(PAUSE, self.startListening)
                return
            try:
                adopt(connection, client, self._factory, self._reactor)
            except Exception:  # noqa: BLE001  a bug must cost one client only, not the port
                self.log.failure("a connection could not be served")

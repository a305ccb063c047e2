"""A worker: one of several processes that are a server together. Its parent is `service.supervisor`.

The parent has bound the sockets, given up root and locked the data directory; it tells in its first line what the worker
is, and hears in the worker's first line that it is up, or why not. When the parent is gone the worker stops in order.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger

from twisted_mta.config.diff import NEEDS_RESTART, keep
from twisted_mta.config.errors import ConfigErrors
from twisted_mta.config.loader import load_with_warnings
from twisted_mta.config.schema import Config
from twisted_mta.core.values import value
from twisted_mta.net.commands import CommandRunner, HelperCommands, NoCommands, inherited
from twisted_mta.net.tls import TlsError
from twisted_mta.service.channel import Channel, read_line, send_line
from twisted_mta.service.common import Common
from twisted_mta.service.engine import Engine
from twisted_mta.service.heartbeat import beat
from twisted_mta.service.listeners import Listeners
from twisted_mta.service.lock import DataLock
from twisted_mta.service.settings import tls_options
from twisted_mta.service.shards import Place
from twisted_mta.service.start import StartError


@value(kw_only=True)
class Orders:
    """The first line of the parent."""

    worker: int
    workers: int
    former: tuple[int, ...]
    parts: int
    #: The configuration file, what it said when the server started, and what is in force of it now.
    path: str
    first: str
    text: str
    #: The sockets of each listener.
    sockets: list[list[int]]
    lock: int
    #: Its connection to the helper that runs commands; -1: there are none.
    commands: int
    #: Workers that are not there now.
    missing: list[int]

    def config(self) -> Config:
        """What is in force. Raises ConfigErrors."""
        config, _ = load_with_warnings(self.path, text=self.text)
        first, _ = load_with_warnings(self.path, text=self.first, check_files=False)
        return keep(first, config, NEEDS_RESTART)


class Worker(Service):
    """Construct with `from_parent`."""

    name = "mta"
    log = Logger()

    def __init__(self, end: socket.socket, orders: Orders, config: Config, reactor: Any) -> None:
        """Raises TlsError."""
        self._end = end
        self._orders = orders
        self._reactor = reactor
        self.config = config
        self._listeners = Listeners(reactor, config)
        place = Place(
            worker=orders.worker,
            workers=orders.workers,
            former=tuple(orders.former),
            parts=orders.parts,
            lock=DataLock(config.data, orders.lock),
        )
        self._common = Common(reactor)
        self._engine = Engine(config, tls_options(config), reactor, self._listeners, place, self._common)
        self._channel: Channel | None = None
        self._heart: LoopingCall | None = None
        self._ending = False
        self.observer: ILogObserver | None = None

    @classmethod
    def from_parent(cls, descriptor: int) -> Worker:
        """The worker that the parent wants at the other end of this socket. If it can't be, the process ends."""
        from twisted.internet import reactor

        # What a parent sends to a worker that hangs: all threads tell standard error where they are.
        faulthandler.register(signal.SIGQUIT, file=2)
        end = socket.socket(fileno=descriptor)
        try:
            first = read_line(end)
        except (OSError, EOFError):
            sys.exit(1)  # nobody is there to be told
        orders = Orders(**first)
        try:
            return cls(end, orders, orders.config(), reactor)
        except (ConfigErrors, TlsError) as error:
            fail(end, error)

    @property
    def number(self) -> int:
        """Its number, from 0."""
        return self._orders.worker

    def setServiceParent(self, parent: Any) -> None:
        """Join the application, and tell it where to log."""
        if self.observer is not None:
            parent.setComponent(ILogObserver, self.observer)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]

    def startService(self) -> None:
        """Open its part of the queue, begin to serve, and tell the parent."""
        super().startService()  # type: ignore[no-untyped-call]
        try:
            self._engine.start(self._commands())
            self._listeners.inherit(self.config.listen, self._orders.sockets, self.number)
        except (StartError, OSError) as error:
            fail(self._end, error)
        self._listeners.cover(self._orders.missing)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # that is for the parent
        handlers = {**self._engine.handlers(), **self._engine.worker_handlers(), **self._own_handlers()}
        try:
            send_line(self._end, {"command": "ready", "arguments": {}})
        except OSError as error:
            fail(self._end, error)
        self._channel = Channel.over(self._end, self._reactor, handlers, self._orphaned)
        self._heart = beat(self._channel, self._reactor)
        self._common.speak(self._channel)
        self.log.info("worker {number} is up", number=self.number)

    def stopService(self) -> Deferred[None]:
        """Stop taking mail, let what is under way come to an end, close."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._ending = True
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self._engine.stop_listening()
        await self._engine.stop()
        self.log.info("stopped; what is in the queue waits for the next start")
        if self._heart is not None and self._heart.running:
            self._heart.stop()
        if self._channel is not None:
            self._channel.close()

    def _commands(self) -> CommandRunner:
        if self._orders.commands < 0:
            return NoCommands()
        return HelperCommands(self._reactor, inherited(self._orders.commands))

    # --- the parent ------------------------------------------------------------------------------

    def _own_handlers(self) -> Mapping[str, Any]:
        async def stop(arguments: Mapping[str, Any]) -> Any:
            self._end_now()

        async def missing(arguments: Mapping[str, Any]) -> Any:
            self._listeners.cover(arguments["workers"])

        return {"stop": stop, "missing": missing}

    def _orphaned(self) -> None:
        if not self._ending:
            clogged = self._channel is not None and self._channel.clogged
            self.log.error(
                "the parent process {what}: this worker stops", what="hangs" if clogged else "has ended"
            )
            self._end_now()

    def _end_now(self) -> None:
        if not self._ending:
            self._ending = True
            self._reactor.stop()


def fail(end: socket.socket, error: Exception) -> NoReturn:
    """Tell the parent why there will be no worker, and end the process."""
    try:
        send_line(end, {"command": "failed", "arguments": {"reason": str(error)}})
    except OSError:
        print(f"mta: {error}", file=sys.__stderr__, flush=True)
    os._exit(1)  # sys.exit would wait for the threads of the queue, and nobody would ever stop them

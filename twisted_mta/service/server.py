"""The whole server as one Twisted service, started and stopped in the right order.

Start: bind every socket, give up privileges, open what lasts, start the queue, open the control socket.
Stop: the same in reverse, so that nobody is told "accepted" by a server that can't keep it.
"""

from __future__ import annotations

import signal
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import ILogObserver, Logger

from twisted_mta import __version__
from twisted_mta.config.schema import Config
from twisted_mta.net.commands import CommandRunner, HelperCommands, HelperError, NoCommands
from twisted_mta.net.tls import ServerTls, TlsError
from twisted_mta.service.control import AlreadyRunning, ControlServer
from twisted_mta.service.engine import Engine
from twisted_mta.service.listeners import Listeners
from twisted_mta.service.outlets import start_commands
from twisted_mta.service.privileges import PrivilegeError, drop_privileges
from twisted_mta.service.settings import tls_options
from twisted_mta.service.sockets import BindError
from twisted_mta.service.start import StartError, give_up


class MailServer(Service):
    """`twistd mta`. Construct with `from_config`."""

    name = "mta"
    log = Logger()

    def __init__(self, config: Config, tls: ServerTls | None, reactor: Any) -> None:
        self._config = config
        self._reactor = reactor
        self._listeners = Listeners(reactor, config)
        self._engine = Engine(config, tls, reactor, self._listeners)
        self._commands: CommandRunner = NoCommands()
        self._control: ControlServer | None = None
        self._observer: ILogObserver | None = None

    @classmethod
    def from_config(cls, config: Config, observer: ILogObserver | None = None) -> MailServer:
        """The service for `config` on the global reactor, logging to `observer` (None: as twistd would).

        Raises StartError for a certificate that can't be used.
        """
        from twisted.internet import reactor

        try:
            server = cls(config, tls_options(config), reactor)
        except TlsError as error:
            raise StartError(str(error)) from error
        server._observer = observer
        return server

    def setServiceParent(self, parent: Any) -> None:
        """Join the application, and tell it where to log."""
        if self._observer is not None:
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]

    # --- start -----------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Bind the sockets, as root if that is what we are, and be root no longer."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        try:
            self._listeners.bind(self._config.listen)
            helper = start_commands(self._config)
            if helper is not None:
                self._commands = HelperCommands(self._reactor, helper.connect)
            drop_privileges(self._config.user, self._config.group, self._config.data)
        except (BindError, HelperError, PrivilegeError, OSError) as error:
            give_up(error)

    def startService(self) -> None:
        """Open the queue and begin to serve. twistd has called privilegedStartService before."""
        super().startService()  # type: ignore[no-untyped-call]
        try:
            self._engine.start(self._commands)
            self._control = ControlServer(self._config.control_socket, self._engine.handlers(), self._reactor)
            self._control.startService()
        except (StartError, AlreadyRunning, CannotListenError, OSError) as error:
            give_up(error)
        signal.signal(signal.SIGHUP, self._hang_up)
        self.log.info(
            "twisted_mta {version} is up as {hostname}", version=__version__, hostname=self._config.hostname
        )

    # --- stop ------------------------------------------------------------------------------------

    def stopService(self) -> Deferred[None]:
        """Stop taking mail, let what is under way come to an end, close. Fires when everything is on disk."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        await self._engine.stop_listening()
        if self._control is not None:
            await self._control.stopService()
        await self._engine.stop()
        self.log.info("stopped; what is in the queue waits for the next start")

    # --- while it runs -----------------------------------------------------------------------------

    def _hang_up(self, *_: object) -> None:
        """SIGHUP: reload. Signal handlers run between any two instructions, so the reactor does it later."""
        self._reactor.callFromThread(lambda: Deferred.fromCoroutine(self._engine.reload({})))

"""The whole server as one Twisted service, started and stopped in the right order.

Start: bind every socket, give up privileges, open what lasts, start the queue, open the control socket.
Stop: the same in reverse, so that nobody is told "accepted" by a server that can't keep it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.error import CannotListenError
from twisted.logger import ILogObserver, Logger

from twisted_mta import __version__
from twisted_mta.config.schema import Config
from twisted_mta.net.tls import ServerTls, TlsError
from twisted_mta.service.assembly import Parts, StartError, assemble, real_platform, tls_options
from twisted_mta.service.certificates import CertificateWatch
from twisted_mta.service.control import AlreadyRunning, ControlServer, Handler
from twisted_mta.service.listeners import BindError, Listeners, Serving
from twisted_mta.service.privileges import PrivilegeError, drop_privileges
from twisted_mta.service.queue_control import queue_handlers
from twisted_mta.service.reload import reload
from twisted_mta.service.tls_control import tls_handlers
from twisted_mta.service.trace_control import trace_handlers
from twisted_mta.store.queue import SQLiteQueueStore


class MailServer(Service):
    """`twistd mta`. Construct with `from_config`."""

    name = "mta"
    log = Logger()

    def __init__(self, config: Config, tls: ServerTls | None, reactor: Any) -> None:
        self._config = config
        self._tls = tls
        self._reactor = reactor
        self._listeners = Listeners(reactor, config)
        self._parts: Parts | None = None
        self._serving: Serving | None = None
        self._control: ControlServer | None = None
        self._certificates: CertificateWatch | None = None
        self._started = 0.0
        self._observer: ILogObserver | None = None
        #: One reload at a time.
        self._reloading = DeferredLock()

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
            drop_privileges(self._config.user, self._config.group, self._config.data)
        except (BindError, PrivilegeError) as error:
            _give_up(error)

    def startService(self) -> None:
        """Open the queue and begin to serve. twistd has called privilegedStartService before."""
        super().startService()  # type: ignore[no-untyped-call]
        try:
            parts = self._parts = assemble(self._config, real_platform(self._reactor))
            self._control = ControlServer(self._config.control_socket, self._handlers(parts), self._reactor)
            self._control.startService()
        except (StartError, AlreadyRunning, CannotListenError, OSError) as error:
            _give_up(error)
        self._serving = Serving(
            reactor=self._reactor,
            config=self._config,
            tls=self._tls,
            reception=parts.reception,
            mailboxes=parts.mailboxes,
            authenticator=parts.accounts,
            workers=parts.disk,
        )
        self._listeners.serve(self._serving)
        self._started = self._reactor.seconds()
        parts.queue.startService()
        parts.accounts.start()
        parts.usage.start()
        parts.tls.start()
        parts.history.start()
        self._certificates = CertificateWatch(self._serving, tls_options, parts.disk, self._reactor)
        self._certificates.start()
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
        await self._listeners.stop()
        if self._control is not None:
            await self._control.stopService()
        if self._certificates is not None:
            self._certificates.stop()
        parts, self._parts = self._parts, None
        if parts is None:
            return
        await parts.close()
        self.log.info("stopped; what is in the queue waits for the next start")

    # --- while it runs -----------------------------------------------------------------------------

    def _hang_up(self, *_: object) -> None:
        """SIGHUP: reload. Signal handlers run between any two instructions, so the reactor does it later."""
        self._reactor.callFromThread(lambda: Deferred.fromCoroutine(self._reload({})))

    def _handlers(self, parts: Parts) -> Mapping[str, Handler]:
        """The commands of the control socket."""
        queue = queue_handlers(parts.admin)
        trace = trace_handlers(parts.store, lambda: parts.store.history.keep)
        return {
            "status": self._status,
            "reload": self._reload,
            "accounts.refresh": self._refresh_accounts,
            "queue.destinations": self._destinations,
            **queue,
            **tls_handlers(parts.tls.memory),
            **trace,
        }

    async def _reload(self, arguments: Mapping[str, Any]) -> Any:
        await self._reloading.acquire()
        try:
            if self._parts is None or self._serving is None:
                return {"failed": True, "problems": ["the server is not running yet, or stopping"]}
            result = await reload(self._serving, self._parts, self._listeners)
        except Exception:
            self.log.failure("reload failed")
            raise
        finally:
            self._reloading.release()
        return attrs.asdict(result)

    async def _refresh_accounts(self, arguments: Mapping[str, Any]) -> Any:
        """`mta user` has changed the accounts: don't wait for the next look at the file."""
        if self._parts is not None and self._serving is not None:
            await self._parts.accounts.reload(self._serving.config)
        return {}

    async def _destinations(self, arguments: Mapping[str, Any]) -> Any:
        assert self._parts is not None  # the control socket is open only while they are
        return {"destinations": self._parts.queue.destinations()}

    async def _status(self, arguments: Mapping[str, Any]) -> Any:
        assert self._parts is not None  # the control socket is open only while they are
        return {
            "version": __version__,
            "hostname": self._config.hostname,
            "started": self._started,
            "config": str(self._config.path),
            "listen": [
                {
                    "role": bound.listen.role.value,
                    "address": bound.address,
                    "connections": len(bound.factory.sessions),
                }
                for bound in self._listeners.bound
            ],
            "queue": {"being delivered": self._parts.queue.active},
            "connections": self._listeners.connections,
            **receiving_status(self._parts.store),
            "sent in the last day": self._parts.usage.status(),
        }


def receiving_status(store: SQLiteQueueStore) -> dict[str, Any]:
    """For `mta status`: whether there is room for mail. Sizes are octets."""
    disk, memory = store.disk.status(), store.body_memory
    return {
        "disk of the queue": {
            "free": disk.free,
            "reserve": disk.reserve,
            "mail": f"refused: {disk.refusal}" if disk.refusal else "accepted",
        },
        "messages coming in": {"in memory": memory.used, "limit": memory.limit},
    }


def _give_up(error: Exception) -> NoReturn:
    """The server can't start: one line to the terminal instead of a traceback."""
    # Not sys.stderr: that is the log by now.
    print(f"mta: {error}", file=sys.__stderr__)
    sys.exit(1)

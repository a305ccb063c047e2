"""A server at work in this process: its parts, its sessions, and what an administrator may ask of it.

`service.server` runs one as the whole server, `service.worker` as one of several.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import attrs
from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from twisted_mta import __version__
from twisted_mta.config.schema import Config
from twisted_mta.net.commands import CommandRunner
from twisted_mta.net.tls import ServerTls
from twisted_mta.service.assembly import assemble
from twisted_mta.service.callout_control import callout_handlers
from twisted_mta.service.certificates import watched_certificates
from twisted_mta.service.common import Common
from twisted_mta.service.control import ControlError, Handler
from twisted_mta.service.explain.control import explain_handlers
from twisted_mta.service.explain.explainer import Explainer
from twisted_mta.service.explain.running import explainer
from twisted_mta.service.interpreter import interpreter, spare_what_is_there
from twisted_mta.service.listeners import Listeners, Serving
from twisted_mta.service.merging import join_all
from twisted_mta.service.parts import Parts
from twisted_mta.service.platform import real_platform
from twisted_mta.service.queue_control import queue_handlers
from twisted_mta.service.reload import Prepared, prepare, put_in_force, reload
from twisted_mta.service.settings import tls_options
from twisted_mta.service.shards import Place
from twisted_mta.service.tls_control import tls_handlers
from twisted_mta.service.trace_control import trace_handlers
from twisted_mta.store.queue import SQLiteQueueStore


class Engine:
    """Start it once, stop it once. `listeners` are bound before."""

    log = Logger()

    def __init__(
        self,
        config: Config,
        tls: ServerTls | None,
        reactor: Any,
        listeners: Listeners,
        place: Place | None = None,
        common: Common | None = None,
    ) -> None:
        """`place` and `common` are for a worker."""
        self._config = config
        self._tls = tls
        self._reactor = reactor
        self._listeners = listeners
        self._place = place
        self._common = common
        self._parts: Parts | None = None
        self._serving: Serving | None = None
        self._started = 0.0
        #: One reload at a time.
        self._reloading = DeferredLock()
        self._prepared: Prepared | None = None

    # --- start and stop --------------------------------------------------------------------------

    def start(self, commands: CommandRunner) -> None:
        """Open what lasts and begin to serve; blocks. Raises StartError."""
        platform = real_platform(self._reactor, commands)
        usage = self._common.usage if self._common is not None else None
        parts = self._parts = assemble(self._config, platform, self._place, usage)
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
        for shard in parts.shards:
            shard.start()
        parts.accounts.start()
        parts.usage.start()
        if parts.place.worker == 0:  # what it fetches and sends is for all
            parts.tls.start()
        parts.watch.add(watched_certificates(self._serving, tls_options, parts.disk))
        parts.watch.start()
        spare_what_is_there()

    async def stop_listening(self) -> None:
        """Let nobody in any more, and tell those who are there."""
        await self._listeners.stop()

    async def stop(self) -> None:
        """Let what is under way come to an end, and close. Returns when everything is on disk."""
        parts, self._parts = self._parts, None
        if parts is not None:
            await parts.close()

    # --- what an administrator asks --------------------------------------------------------------

    def handlers(self) -> Mapping[str, Handler]:
        """The commands of the control socket, once it is started."""
        parts = self._running()
        shards = [
            {
                **queue_handlers(shard.admin),
                **trace_handlers(shard.store, lambda: parts.store.history.keep),
                "queue.destinations": _destinations(shard.queue.destinations),
            }
            for shard in parts.shards
        ]
        return {
            "status": self._status,
            "reload": self.reload,
            "accounts.refresh": self._refresh_accounts,
            **tls_handlers(parts.tls.memory),
            **callout_handlers(parts.callouts),
            **explain_handlers(self._explainer(parts)),
            **join_all(shards),
        }

    def _explainer(self, parts: Parts) -> Explainer:
        return explainer(parts, self._reactor, lambda: self._listeners.serving, self._listeners.refusal)

    def worker_handlers(self) -> Mapping[str, Handler]:
        """What the parent of a worker may ask besides: a reload in two steps, since all workers do it or none."""
        parts = self._running()
        assert self._common is not None  # of a worker
        joined = self._common.join(self._listeners, parts.mailboxes, parts.accounts)
        return {**joined, "reload.prepare": self._prepare, "reload.commit": self._commit}

    def _running(self) -> Parts:
        if self._parts is None or self._serving is None:
            raise ControlError("the server is stopping")
        return self._parts

    async def reload(self, arguments: Mapping[str, Any]) -> Any:
        """All of the new configuration, or nothing."""
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

    async def _prepare(self, arguments: Mapping[str, Any]) -> Any:
        parts = self._running()
        assert self._serving is not None  # as long as there are parts
        found = await prepare(self._serving, parts, arguments["text"])
        self._prepared = found if isinstance(found, Prepared) else None
        return attrs.asdict(found.result if isinstance(found, Prepared) else found)

    async def _commit(self, arguments: Mapping[str, Any]) -> Any:
        parts = self._running()
        prepared, self._prepared = self._prepared, None
        assert self._serving is not None  # as long as there are parts
        if prepared is not None:  # else this process was started meanwhile, with a text that the parent knows
            put_in_force(prepared, self._serving, parts, self._listeners)
        return {}

    async def _refresh_accounts(self, arguments: Mapping[str, Any]) -> Any:
        """`mta user` has changed the accounts: don't wait for the next look at the file."""
        if self._parts is not None and self._serving is not None:
            await self._parts.watch.refresh()
        return {}

    async def _status(self, arguments: Mapping[str, Any]) -> Any:
        parts = self._running()
        return {
            "version": __version__,
            "python": interpreter(),
            "hostname": self._config.hostname,
            "started": self._started,
            "pid": os.getpid(),
            "config": str(self._config.path),
            "listen": [
                {
                    "role": bound.listen.role.value,
                    "address": bound.address,
                    "connections": len(bound.factory.sessions),
                }
                for bound in self._listeners.bound
            ],
            "queue": {"being delivered": sum(shard.queue.active for shard in parts.shards)},
            "connections": self._listeners.connections,
            "services": self._listeners.services(),
            **receiving_status(parts.store),
            "sent in the last day": parts.usage.status(),
            "warnings": parts.warnings(),
        }


def _destinations(found: Any) -> Handler:
    async def handle(arguments: Mapping[str, Any]) -> Any:
        return {"destinations": found()}

    return handle


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

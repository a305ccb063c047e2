"""Certificates are taken up when their files change, without a reload: a renewal needs no hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twisted_mta.config.schema import Config
from twisted_mta.net.tls import ServerTls, Stamps, TlsError, look_at
from twisted_mta.service.listeners import Serving
from twisted_mta.store.threads import InlineWorkers, Workers

#: Seconds between looks at the files.
INTERVAL = 10.0


class CertificateWatch:
    """Looks at the files of `serving.tls` and replaces it. What can't be used leaves what was there in force."""

    log = Logger()

    def __init__(
        self,
        serving: Serving,
        load: Callable[[Config], ServerTls | None],
        workers: Workers | InlineWorkers,
        clock: Any,
    ) -> None:
        """`load` makes what a configuration asks for; it blocks, and raises TlsError."""
        self._serving = serving
        self._load = load
        self._workers = workers
        #: How the files looked the last time, where that is not what is in force.
        self._seen: Stamps | None = None
        #: Files that were tried in vain.
        self._bad: Stamps | None = None
        self._watch = LoopingCall(self._look)
        self._watch.clock = clock

    def start(self) -> None:
        """Begin to look."""
        self._watch.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Stop looking."""
        if self._watch.running:
            self._watch.stop()

    def _look(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._refresh())

    async def _refresh(self) -> None:
        tls = self._serving.tls
        if tls is None:
            return
        stamps = await self._workers.run(look_at, list(tls.stamps))
        if stamps in (tls.stamps, self._bad):
            self._seen = None
        elif stamps != self._seen:
            # Whoever writes the certificate may not have written the key yet: wait until they rest.
            self._seen = stamps
        else:
            await self._replace(tls, stamps)

    async def _replace(self, old: ServerTls, stamps: Stamps) -> None:
        self._seen = None
        try:
            new = await self._workers.run(self._load, self._serving.config)
        except TlsError as error:
            self._bad = stamps  # said once a change
            self.log.error("the certificates stay as they were: {error}", error=error)
            return
        if self._serving.tls is old:  # no reload has been quicker
            self._serving.tls, self._bad = new, None
            self.log.info(
                "new certificates are in force: {files}",
                files=", ".join(str(path) for path in stamps if stamps[path] != old.stamps.get(path)),
            )

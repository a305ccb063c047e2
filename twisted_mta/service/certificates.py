"""Certificates are taken up when their files change, without a reload: a renewal needs no hook."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.logger import Logger

from twisted_mta.config.schema import Config
from twisted_mta.net.tls import ServerTls, TlsError
from twisted_mta.service.listeners import Serving
from twisted_mta.service.watched import Unusable, Watched
from twisted_mta.store.stamps import Stamps
from twisted_mta.store.threads import InlineWorkers, Workers

log = Logger()


def watched_certificates(
    serving: Serving, load: Callable[[Config], ServerTls | None], workers: Workers | InlineWorkers
) -> Watched:
    """The files of `serving.tls`, which is replaced. `load` makes what a configuration asks for; it blocks, and raises
    TlsError."""

    def in_force() -> Stamps:
        return serving.tls.stamps if serving.tls is not None else {}

    async def read() -> Sequence[str]:
        old = serving.tls
        try:
            new = await workers.run(load, serving.config)
        except TlsError as error:
            raise Unusable([str(error)]) from None
        if serving.tls is old:  # no reload has been quicker
            serving.tls = new
            log.info("new certificates are in force: {files}", files=", ".join(in_force()))
        return ()

    return Watched("the certificates", in_force, read)

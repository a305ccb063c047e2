"""Converts a message for a host that does not take eight bits. RFC 6152 §3."""

from __future__ import annotations

import io
import os
import tempfile
from typing import BinaryIO

from twisted.internet.defer import Deferred, DeferredSemaphore
from zope.interface import implementer

from twisted_mta.core.downgrade import Undowngradable, downgrade, has_utf8_header
from twisted_mta.core.message import first_field
from twisted_mta.interfaces import IStoredBody
from twisted_mta.store.threads import InlineWorkers, Workers

#: Octets of a message that is converted at all: it is in memory while that goes on.
MAX_MESSAGE = 64 << 20
#: Octets of a result that is kept in memory until it is sent.
MAX_MEMORY = 1 << 20
#: Conversions at a time, in all.
CONCURRENCY = 2


@implementer(IStoredBody)
class ConvertedBody:
    """A converted message with its header, as an IStoredBody that is read by one at a time; `close` in the end."""

    def __init__(self, octets: bytes) -> None:
        """Blocks where it is large. Raises OSError."""
        self.size = len(octets)
        #: Whether it bears a DKIM signature, which is broken now if the body was changed (RFC 6376 §5.3).
        self.signed = first_field(octets, "dkim-signature") is not None
        self._octets = octets if self.size <= MAX_MEMORY else b""
        self._file: BinaryIO | None = None
        if self.size > MAX_MEMORY:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`; it has no name
            self._file.write(octets)
            self._file.flush()

    def open(self) -> BinaryIO:
        """See IStoredBody."""
        if self._file is None:
            return io.BytesIO(self._octets)
        self._file.seek(0)
        return os.fdopen(os.dup(self._file.fileno()), "rb")

    def close(self) -> None:
        """Give the room back."""
        if self._file is not None:
            self._file.close()


class Converter:
    """Converts in threads, a few messages at a time."""

    def __init__(self, workers: Workers | InlineWorkers) -> None:
        self._workers = workers
        self._turns = DeferredSemaphore(CONCURRENCY)

    async def seven_bits(self, prefix: bytes, body: IStoredBody) -> ConvertedBody:
        """The whole message in seven bits. Raises Undowngradable, OSError, or KeyError for a body that is gone."""
        if len(prefix) + body.size > MAX_MESSAGE:
            raise Undowngradable("it is too large for that")
        turn: Deferred[ConvertedBody] = self._turns.run(self._workers.run, _convert, prefix, body)
        return await turn

    async def needs_utf8(self, prefix: bytes, body: IStoredBody) -> bool:
        """Whether only hosts with SMTPUTF8 can be given the message, for its header; what is too large is not looked at.

        Raises OSError, or KeyError for a body that is gone.
        """
        if len(prefix) + body.size > MAX_MESSAGE:
            return True
        turn: Deferred[bool] = self._turns.run(self._workers.run, _needs_utf8, prefix, body)
        return await turn


def _needs_utf8(prefix: bytes, body: IStoredBody) -> bool:
    with body.open() as file:
        return has_utf8_header(prefix + file.read())


def _convert(prefix: bytes, body: IStoredBody) -> ConvertedBody:
    with body.open() as file:
        octets = prefix + file.read()
    return ConvertedBody(downgrade(octets, "7bit"))

"""Binary messages: converted as they come in, so that everything behind reception deals with text only.

RFC 3030 §3: most of those that such a message goes to do not take it as it is, and mailboxes hold lines.
"""

from __future__ import annotations

from collections.abc import Awaitable

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.core.downgrade import Undowngradable, downgrade
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IMessageSink
from twisted_mta.store.threads import InlineWorkers, Workers

#: Octets of binary messages that are in memory at a time, all sessions together. Nor can one be larger.
MAX_MEMORY = 64 << 20
#: Octets handed on at a time.
_CHUNK = 65536

_BUSY = Reply(452, "4.3.1", "Too many binary messages at a time, try again later or send it as BODY=8BITMIME")
_TOO_LARGE = Reply(
    552, "5.3.4", f"A binary message can have {MAX_MEMORY} octets at most, send it as BODY=8BITMIME"
)
_FAULT = Reply(451, "4.3.0", "Something went wrong here; try again later")


class BinaryRoom:
    """What all binary messages share: memory, and the threads that convert them."""

    def __init__(self, workers: Workers | InlineWorkers) -> None:
        self.workers = workers
        #: Octets in memory.
        self.used = 0


@implementer(IMessageSink)
class BinaryIncoming:
    """One binary message: collected in memory, converted to 8-bit text, and given to the sink for such text."""

    log = Logger()

    def __init__(self, sink: IMessageSink, room: BinaryRoom) -> None:
        self._sink = sink
        self._room = room
        self._chunks: list[bytes] = []
        self._size = 0
        self._failure: Reply | None = None

    def write(self, data: bytes) -> Awaitable[None] | None:
        """See IMessageSink."""
        if self._failure is None and self._room.used + len(data) > MAX_MEMORY:
            self._failure = _TOO_LARGE if self._size + len(data) > MAX_MEMORY else _BUSY
            self._forget()
        if self._failure is None:
            self._chunks.append(data)
            self._size += len(data)
            self._room.used += len(data)
        return None

    def abort(self) -> None:
        """See IMessageSink."""
        self._forget()
        self._sink.abort()

    async def finish(self) -> Reply:
        """See IMessageSink."""
        try:
            refusal = self._failure or await self._convert()
        finally:
            self._forget()
        if refusal is not None:
            self._sink.abort()
            return refusal
        return await self._sink.finish()

    async def _convert(self) -> Reply | None:
        """Hand the converted message to the sink; or why that can't be."""
        try:
            text = await self._room.workers.run(_as_text, self._chunks)
            for start in range(0, len(text), _CHUNK):
                pending = self._sink.write(text[start : start + _CHUNK])
                if pending is not None:
                    await pending
        except Undowngradable as error:
            return Reply(554, "5.6.3", f"The binary message can't be converted: {error}")
        except CancelledError:
            raise
        except Exception:  # noqa: BLE001  a sink never raises
            self.log.failure("could not convert a binary message")
            return _FAULT
        return None

    def _forget(self) -> None:
        self._room.used -= self._size
        self._size = 0
        self._chunks = []


def _as_text(chunks: list[bytes]) -> bytes:
    """Raises Undowngradable."""
    text = downgrade(b"".join(chunks), "8bit")
    return text if text.endswith(b"\r\n") else text + b"\r\n"

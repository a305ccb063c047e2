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
from twisted_mta.service.room import Room
from twisted_mta.store.threads import InlineWorkers, Workers

#: Octets handed on at a time.
_CHUNK = 65536

_BUSY = Reply(452, "4.3.1", "Too many binary messages at a time, try again later or send it as BODY=8BITMIME")
_FAULT = Reply(451, "4.3.0", "Something went wrong here; try again later")


@implementer(IMessageSink)
class BinaryIncoming:
    """One binary message: collected in memory, converted to 8-bit text, and given to the sink for such text."""

    log = Logger()

    def __init__(self, sink: IMessageSink, room: Room, workers: Workers | InlineWorkers) -> None:
        """`workers` convert. A message can't be larger than `room`."""
        self._sink = sink
        self._room = room
        self._workers = workers
        self._data = bytearray()
        self._failure: Reply | None = None

    def write(self, data: bytes) -> Awaitable[None] | None:
        """See IMessageSink."""
        if self._failure is not None:
            return None
        if self._room.take(len(data)):
            self._data += data
        else:
            limit = self._room.limit
            self._failure = _too_large(limit) if len(self._data) + len(data) > limit else _BUSY
            self._forget()
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
            text = await self._workers.run(_as_text, bytes(self._data))
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
        self._room.give_back(len(self._data))
        self._data = bytearray()


def _too_large(limit: int) -> Reply:
    text = f"A binary message can have {limit} octets at most, send it as BODY=8BITMIME"
    return Reply(552, "5.3.4", text)


def _as_text(message: bytes) -> bytes:
    """Raises Undowngradable."""
    text = downgrade(message, "8bit")
    return text if text.endswith(b"\r\n") else text + b"\r\n"

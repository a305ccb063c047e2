"""Binary messages on their way in."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import IMessageSink
from twisted_mta.service import binary
from twisted_mta.service.binary import BinaryIncoming
from twisted_mta.service.room import Room
from twisted_mta.store.threads import InlineWorkers

TAKEN = Reply(250, "2.0.0", "Queued")
HEADER = (
    b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: binary\r\n\r\n"
)


@implementer(IMessageSink)
class Sink:
    def __init__(self) -> None:
        self.data = b""
        self.aborted = self.finished = False
        self.slow: Deferred[None] | None = None

    def write(self, data: bytes) -> Deferred[None] | None:
        self.data += data
        return self.slow

    async def finish(self) -> Reply:
        self.finished = True
        return TAKEN

    def abort(self) -> None:
        self.aborted = True


class BinaryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.sink = Sink()
        self.room = Room()
        self.incoming = BinaryIncoming(self.sink, self.room, InlineWorkers())

    def finish(self) -> Any:
        return Deferred.fromCoroutine(self.incoming.finish())

    def test_interface(self) -> None:
        verifyObject(IMessageSink, self.incoming)

    def test_converted(self) -> None:
        for data in (HEADER[:20], HEADER[20:], b"\0\r\n\n\xff"):
            self.assertIsNone(self.incoming.write(data))
        self.assertEqual((self.sink.data, self.room.used), (b"", len(HEADER) + 5))
        self.assertEqual(self.successResultOf(self.finish()), TAKEN)
        self.assertIn(b"Content-Transfer-Encoding: base64\r\n", self.sink.data)
        self.assertTrue(self.sink.data.endswith(b"\r\n\r\nAA0KCv8=\r\n"), self.sink.data)
        self.assertEqual((self.room.used, self.sink.aborted), (0, False))

    def test_text_is_left_alone_and_ends_with_a_line_end(self) -> None:
        self.incoming.write(b"Subject: x\r\n\r\nno end")
        self.successResultOf(self.finish())
        self.assertEqual(self.sink.data, b"Subject: x\r\n\r\nno end\r\n")

    def test_what_cannot_be_converted(self) -> None:
        self.incoming.write(b"Subject: \0\r\n\r\nx\r\n")
        reply = self.successResultOf(self.finish())
        self.assertEqual((reply.code, reply.status), (554, "5.6.3"))
        self.assertEqual((self.sink.aborted, self.sink.finished, self.room.used), (True, False, 0))

    def test_a_fault(self) -> None:
        self.patch(binary, "downgrade", lambda message, to: 1 // 0)
        self.assertEqual(self.successResultOf(self.finish()).code, 451)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(self.sink.aborted)

    def test_the_room_is_shared(self) -> None:
        self.room.limit = 100
        other = BinaryIncoming(Sink(), self.room, InlineWorkers())
        other.write(b"x" * 60)
        for data in (b"y" * 40, b"y", b"y"):
            self.incoming.write(data)
        self.assertEqual(self.successResultOf(self.finish()).code, 452)
        self.assertEqual((self.room.used, self.sink.aborted, self.sink.data), (60, True, b""))
        other.abort()
        other.abort()
        self.assertEqual(self.room.used, 0)

    def test_one_that_never_fits(self) -> None:
        self.room.limit = 100
        self.incoming.write(b"x" * 101)
        self.assertEqual(self.successResultOf(self.finish()).code, 552)

    def test_the_disk_sets_the_pace(self) -> None:
        self.sink.slow = Deferred()
        self.incoming.write(b"Subject: x\r\n\r\n" + b"line\r\n" * 20000)
        done = self.finish()
        self.assertNoResult(done)
        self.assertEqual(len(self.sink.data), 65536)
        slow, self.sink.slow = self.sink.slow, None
        slow.callback(None)
        self.assertEqual(self.successResultOf(done), TAKEN)
        self.assertEqual(len(self.sink.data), 14 + 6 * 20000)

"""The host that the crash tests send to: it tells a sender that was killed from one that waits for its answer."""

from __future__ import annotations

import socket
from contextlib import closing

from tests.crash.sink import Sink
from tests.peers import wait_for


def _unheard(*, waits: bool) -> bool:
    with closing(Sink()) as sink:
        with (
            socket.create_connection(("127.0.0.1", sink.port), 60) as connection,
            connection.makefile("rb") as answers,
        ):
            for line in (b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>", b"DATA"):
                answers.readline()
                connection.sendall(line + b"\r\n")
            assert answers.readline()[:3] == b"354"
            connection.sendall(b"Subject: x\r\n\r\ny\r\n.\r\n")
            if waits:
                assert answers.readline() == b"250 2.0.0 taken\r\n"
        wait_for(lambda: bool(sink.receipts), "the message")
        return sink.receipts[0].unheard


class SinkTests:
    def test_who_waits_hears_the_answer(self) -> None:
        assert not _unheard(waits=True)

    def test_who_is_gone_does_not(self) -> None:
        """The end of the connection lies behind the message, unless the sink was quicker: then once more."""
        assert any(_unheard(waits=False) for _ in range(100))

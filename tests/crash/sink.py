"""Another host that takes all mail and writes down when: for messages that a crash may send twice."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
import time

import attrs

_ADDRESS = re.compile(rb"<([^>]*)>")


@attrs.frozen
class Receipt:
    """A message that the sink took, just before it said so."""

    message: bytes
    recipients: tuple[str, ...]
    when: float
    #: Whether the sender was gone by then: it was killed before it could hear an answer.
    unheard: bool = False


class Sink:
    """Listens on a loopback `port`."""

    def __init__(self) -> None:
        self.receipts: list[Receipt] = []
        sink = self

        class Session(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                try:
                    sink._serve(self)
                except OSError:
                    return  # the server was killed in the middle

        socketserver.ThreadingTCPServer.daemon_threads = True
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, session: socketserver.StreamRequestHandler) -> None:
        def say(reply: bytes) -> None:
            session.wfile.write(reply + b"\r\n")

        recipients: list[str] = []
        say(b"220 sink.test ESMTP")
        while line := session.rfile.readline():
            verb = line[:4].upper()
            match = _ADDRESS.search(line)
            if verb == b"EHLO":
                say(b"250-sink.test\r\n250-PIPELINING\r\n250 8BITMIME")
            elif verb == b"RCPT" and match:
                recipients.append(match[1].decode())
                say(b"250 2.1.5 ok")
            elif verb == b"DATA":
                say(b"354 go on")
                text = bytearray()
                while (line := session.rfile.readline()) != b".\r\n":
                    if not line:
                        return
                    text += line.removeprefix(b".")
                unheard = _has_hung_up(session.connection)
                self.receipts.append(Receipt(bytes(text), tuple(recipients), time.monotonic(), unheard))
                recipients = []
                say(b"250 2.0.0 taken")
            elif verb == b"QUIT":
                say(b"221 2.0.0 bye")
                return
            else:
                recipients = [] if verb in (b"MAIL", b"RSET") else recipients
                say(b"250 2.0.0 ok")


def _has_hung_up(connection: socket.socket) -> bool:
    """Whether the end of the connection is here already, behind what was read."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True

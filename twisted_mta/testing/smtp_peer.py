"""A remote SMTP server for tests: takes mail, remembers it, and misbehaves as told. For sockets and simulated networks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import attrs
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

#: In place of a reply: say nothing, and nothing more on this connection.
SILENCE = "silence"
#: In place of a reply: close the connection.
DROP = "drop"
#: In place of the reply to a message: take it, and close the connection without saying so.
TAKE = "take"

_ADDRESS = re.compile(r"<([^>]*)>")


@attrs.define
class Received:
    """One message that the peer took."""

    sender: str
    recipients: list[str]
    data: bytes
    tls: bool
    #: The commands as they came, MAIL first.
    commands: list[str] = attrs.field(factory=list)
    #: Whether the peer said so.
    answered: bool = True


class SmtpPeer(ServerFactory):
    """`replies` says what to answer instead of the normal.

    A key is a verb, "greeting", "." for the end of a message, or a verb with an address ("RCPT bob@x.test"); BDAT is for
    chunks that are not the last. A value is a reply (lines split by LF; one with CRLF is sent as it is), SILENCE, DROP, or
    a list of those, used up one a time.
    """

    noisy = False

    def __init__(
        self,
        extensions: Iterable[str] = ("PIPELINING", "8BITMIME", "SIZE 100000000"),
        replies: dict[str, str | list[str]] | None = None,
        tls: Any = None,
    ) -> None:
        """With `tls` (a server context) STARTTLS is offered."""
        self.extensions = list(extensions)
        self.replies = replies or {}
        self.tls = tls
        self.messages: list[Received] = []
        #: Connections so far.
        self.connections = 0
        #: Those still open.
        self.sessions: set[_PeerSession] = set()
        #: All command lines, over all connections.
        self.commands: list[str] = []
        #: Whether the text of messages is kept; without it only `size` grows.
        self.keep = True
        #: All octets that came while they were kept, over all connections.
        self.wire = bytearray()
        self.size = 0

    def buildProtocol(self, addr: Any) -> _PeerSession:
        self.connections += 1
        return _PeerSession(self)

    def reply(self, keys: Iterable[str], normal: str) -> str:
        """The reply set for the first of the keys that has one."""
        for key in keys:
            told = self.replies.get(key)
            if isinstance(told, list):
                if told:
                    return told.pop(0)
            elif told is not None:
                return told
        return normal


@implementer(IHandshakeListener)
class _PeerSession(Protocol):
    transport: Any

    def __init__(self, peer: SmtpPeer) -> None:
        self._peer = peer
        self._buffer = b""
        self._in_data = False
        #: Octets of a chunk to come, None between chunks; and whether it is the last.
        self._chunk: int | None = None
        self._last = False
        self._silent = False
        self._secure = False
        self._now = Received("", [], b"", False)

    def connectionMade(self) -> None:
        self._peer.sessions.add(self)
        self._say(["greeting"], "220 peer.test ESMTP")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._peer.sessions.discard(self)

    def handshakeCompleted(self) -> None:
        self._secure = True

    def dataReceived(self, data: bytes) -> None:
        if self._peer.keep:
            self._peer.wire += data
        self._buffer += data
        while not self._silent and self._take():
            pass

    def _take(self) -> bool:
        if self._chunk is not None:
            return self._take_chunk(self._chunk)
        return self._take_data() if self._in_data else self._take_line()

    def _take_chunk(self, size: int) -> bool:
        if len(self._buffer) < size:
            return False
        self._add(self._buffer[:size])
        self._buffer, self._chunk = self._buffer[size:], None
        if not self._now.recipients:
            self._say(["BDAT"], "503 5.5.1 no valid recipients")
        elif self._last:
            self._finish()
        else:
            self._say(["BDAT"], f"250 2.0.0 {size} octets")
        return True

    def _take_line(self) -> bool:
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            return False
        self._buffer = rest
        text = line.decode("utf-8", "replace")
        self._peer.commands.append(text)
        self._command(text)
        return True

    def _take_data(self) -> bool:
        """Message text as it comes; the line end before its first line is ours, so that an empty message ends too."""
        end = self._buffer.find(b"\r\n.\r\n")
        if end < 0:
            self._add(self._buffer[:-4])  # the last octets may be the beginning of the end
            self._buffer = self._buffer[-4:]
            return False
        self._add(self._buffer[: end + 2])
        self._buffer, self._in_data = self._buffer[end + 5 :], False
        self._now.data = self._now.data.replace(b"\r\n..", b"\r\n.")[2:]
        self._finish()
        return True

    def _finish(self) -> None:
        received, self._now = self._now, Received("", [], b"", self._secure)
        reply = self._say(["."], "250 2.0.0 taken")
        received.answered = reply != TAKE
        if reply.startswith("2") or reply == TAKE:
            self._peer.messages.append(received)

    def _add(self, data: bytes) -> None:
        self._peer.size += len(data)
        if self._peer.keep:
            self._now.data += data

    def _command(self, line: str) -> None:
        verb = line[:4].upper()
        match = _ADDRESS.search(line)
        address = match[1] if match else ""
        keys = [f"{verb} {address}", line.split(" ", 1)[0].upper(), verb]
        if verb == "EHLO":
            offered = [*self._peer.extensions]
            if self._peer.tls is not None and not self._secure:
                offered.append("STARTTLS")
            self._say(keys, "\n".join(["250 peer.test", *offered]))
        elif verb == "MAIL":
            if self._say(keys, "250 2.1.0 ok").startswith("2"):
                self._now = Received(address, [], b"", self._secure, [line])
        elif verb == "RCPT":
            normal = "250 2.1.5 ok" if self._now.commands else "503 5.5.1 MAIL first"
            if self._say(keys, normal).startswith("2"):
                self._now.recipients.append(address)
                self._now.commands.append(line)
        elif verb == "DATA":
            normal = "354 go on" if self._now.recipients else "554 5.5.1 no valid recipients"
            self._in_data = self._say(keys, normal).startswith("3")
            if self._in_data:
                self._buffer = b"\r\n" + self._buffer
        elif verb == "BDAT":
            words = line.split()
            self._chunk, self._last = int(words[1]), words[2:] == ["LAST"]
        elif verb == "STAR":
            if self._say(keys, "220 go ahead").startswith("2"):
                self._buffer = b""
                self.transport.startTLS(self._peer.tls)
        elif verb == "QUIT":
            self._say(keys, "221 2.0.0 bye")
            self.transport.loseConnection()
        else:
            if verb == "RSET":
                self._now = Received("", [], b"", self._secure)
            self._say(keys, "250 2.0.0 ok" if verb in ("RSET", "HELO", "NOOP") else "500 5.5.1 what?")

    def _say(self, keys: Iterable[str], normal: str) -> str:
        reply = self._peer.reply(keys, normal)
        if reply == SILENCE:
            self._silent = True
        elif reply in (DROP, TAKE):
            self._silent = True
            self.transport.loseConnection()
        elif "\r\n" in reply:
            self.transport.write(reply.encode())
        else:
            code, lines = reply[:3], reply[4:].split("\n")
            last = len(lines) - 1
            text = "".join(f"{code}{' ' if n == last else '-'}{line}\r\n" for n, line in enumerate(lines))
            self.transport.write(text.encode())
        return reply

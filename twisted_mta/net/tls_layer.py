"""The server's side of TLS on a connection: OpenSSL between a Session and its transport.

Twisted's own (`ITLSTransport.startTLS`) is made for every protocol and transport there may be. For each connection it
declares what interfaces both have, it holds what is written until the next turn of the reactor, waits for the socket to
become writable, and leaves objects that know each other to the garbage collector: together a fifth of a submission.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL

# Room for more than OpenSSL has to give costs more than a second read where there is more: PyPy counts it, and looks for garbage.

#: Octets of a handshake that are read at a time: most answers are shorter.
_HANDSHAKE = 4096
#: What a record carries at most (RFC 8446 §5.1), and more than it has besides (§5.2).
_CARRIED, _BESIDES = 1 << 14, 512


class TlsLayer:
    """One connection. What the peer sends goes in as `shake` until that tells that the handshake is done, then as `receive`.

    It never waits with what it has to say. Where TLS fails it tells the peer so and ends the connection.
    """

    __slots__ = ("_closing", "_ended", "_transport", "connection", "ready")

    def __init__(self, connection: SSL.Connection, transport: Any) -> None:
        """`connection` is a new one of ServerTls; what it says goes to `transport`, an ITransport."""
        self.connection = connection
        self._transport = transport
        #: The handshake is done.
        self.ready = False
        #: We have said goodbye.
        self._closing = False
        #: TLS is over, and the transport is closing.
        self._ended = False

    def shake(self, data: bytes) -> bool:
        """Go on with the handshake; True once it is done; then call `receive`, there may be something."""
        if self._ended:
            return False
        self.connection.bio_write(data)
        try:
            self.connection.do_handshake()
        except SSL.WantReadError:
            self._flush()
        except SSL.Error:
            self._end()
        else:
            self.ready = True  # its last words leave with those of the session, or by `receive`
        return self.ready

    def receive(self, data: bytes) -> bytes:
        """What the peer said in these octets and those before; b"" where it needs more for that."""
        if self._ended:
            return b""
        connection = self.connection
        if data:
            connection.bio_write(data)
        said: list[bytes] = []
        room = min(len(data) + _BESIDES, _CARRIED)
        try:
            while True:
                said.append(connection.recv(room))
        except SSL.WantReadError:
            self._flush()  # an answer to what is TLS's own, such as to a new key, must not pile up
        except SSL.ZeroReturnError:  # the peer's goodbye
            self._say_goodbye()
            self._end()
        except SSL.Error:
            self._end()
        return said[0] if len(said) == 1 else b"".join(said)

    def write(self, data: bytes) -> None:
        """As ITransport.write. Before the handshake is done there is no way to tell the peer anything."""
        if not self.ready or self._closing:
            return
        try:
            self.connection.sendall(data)
        except SSL.Error:
            self._end()
        else:
            self._flush(len(data) + _BESIDES)

    def loseConnection(self) -> None:
        """Say goodbye; the connection ends when the peer has done so, too."""
        if self._closing:
            return
        if not self.ready or self._say_goodbye():
            self._end()

    def _say_goodbye(self) -> bool:
        """True where the peer has done it already."""
        self._closing = True
        try:
            return self.connection.shutdown()
        except SSL.Error:
            return True
        finally:
            self._flush()

    def _end(self) -> None:
        self._closing = self._ended = True
        self._flush()  # RFC 8446 §6.2: why, where it failed
        self._transport.loseConnection()

    def _flush(self, at_once: int = _HANDSHAKE) -> None:
        """Send what OpenSSL has to say."""
        out: list[bytes] = []
        try:
            while True:
                out.append(self.connection.bio_read(at_once))
                if len(out[-1]) < at_once:
                    break
        except SSL.WantReadError:
            pass  # that was all
        if out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

"""The process that runs the commands of aliases: started by the server, as the user that commands are to run as.

It is a program of its own and needs nothing but the standard library, so that nothing of the server's memory is in it.
It is started before the server gives up root, and gives up root itself before its first instruction: nothing is left that
could run something as another user.

It listens on a socket of type SOCK_SEQPACKET. A request is one JSON object, with the descriptor of the message beside it:

    {"id": 1, "argv": [...], "environment": {...}, "directory": "/...", "timeout": 300, "grace": 5}
        run this, for so many seconds at most; so many lie between SIGTERM and SIGKILL
    {"id": 1, "cancel": true}
        end it
    {"join": true}
        the descriptor is another socket of this kind, for another process of the server

Each run is answered once, by {"id": 1} with "code" or "signal", "late", "output" or "error": see `core.commands.Exit`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import Any

#: Octets of one request, and of a command's output that are kept.
MAX_REQUEST = 1 << 17
MAX_OUTPUT = 4096
#: Octets read at a time.
_READ = 65536
#: Of prctl(2).
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4


class Child:
    """One command under way."""

    def __init__(self, request: dict[str, Any], message: int, connection: socket.socket) -> None:
        """Start it. Raises OSError, ValueError."""
        self.id = request["id"]
        #: Who is told of its end.
        self.connection = connection
        self.output = b""
        self.late = False
        self.killed = False
        # A session of its own: it has no terminal, and a signal reaches all that it starts.
        self.process = subprocess.Popen(
            request["argv"],
            stdin=message,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=request["environment"],
            cwd=request["directory"],
            start_new_session=True,
            umask=0o077,
            bufsize=0,
        )
        assert self.process.stdout is not None  # it was asked for
        self.pipe = self.process.stdout
        os.set_blocking(self.pipe.fileno(), False)
        #: When something is to be done about it.
        self.deadline = time.monotonic() + request["timeout"]
        self._grace: float = request["grace"]

    def read(self) -> bool:
        """Take what it printed, keep the beginning; False at the end. So it never waits for a reader."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.pipe.fileno(), _READ)
            self.output += data[: MAX_OUTPUT - len(self.output)]
            return bool(data)
        return True

    def end(self) -> None:
        """Ask it to end; the second time, see that it does."""
        signal_number = signal.SIGKILL if self.killed else signal.SIGTERM
        self.killed = True
        self.deadline = time.monotonic() + self._grace
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal_number)

    def report(self) -> dict[str, Any]:
        """How it ended."""
        code = self.process.returncode
        return {
            "id": self.id,
            "code": max(code, 0),
            "signal": max(-code, 0),
            "late": self.late,
            "output": self.output.decode("utf-8", "replace"),
        }


class Helper:
    """Serves until nobody is connected any more."""

    def __init__(self, connection: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._children: set[Child] = set()
        self._connections: set[socket.socket] = set()
        self._join(connection)

    def serve(self) -> None:
        """Run until the server is gone and all commands have ended."""
        wake, alarm = os.pipe()
        os.set_blocking(alarm, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(wake, selectors.EVENT_READ, lambda: os.read(wake, _READ))
        while self._connections or self._children:
            for key, _ in self._selector.select(self._patience()):
                key.data()
            self._reap()
            self._expire()

    def _join(self, connection: socket.socket) -> None:
        # What commands start must not have it.
        connection.set_inheritable(False)
        self._connections.add(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(connection))

    def _part(self, connection: socket.socket) -> None:
        """A process of the server is gone: its queue will have the messages tried again."""
        self._connections.discard(connection)
        self._selector.unregister(connection)
        connection.close()
        for child in self._children:
            if child.connection is connection:
                child.end()

    def _patience(self) -> float | None:
        deadlines = [child.deadline for child in self._children]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _receive(self, connection: socket.socket) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(connection, MAX_REQUEST, 1)
        except (
            ConnectionResetError
        ):  # it was killed before it had read all answers; the others are still there
            data = b""
        if not data:
            self._part(connection)
            return
        request = json.loads(data)
        if "join" in request:
            if descriptors:  # else the other end is closed, and notices
                self._join(socket.socket(fileno=descriptors[0]))
        elif "cancel" in request:
            for child in self._children:
                if (child.connection, child.id) == (connection, request["id"]):
                    child.end()
        elif descriptors:
            self._run(connection, request, descriptors[0])
        else:  # the kernel has dropped it
            self._send(connection, {"id": request["id"], "error": "no descriptor is left for the message"})

    def _run(self, connection: socket.socket, request: dict[str, Any], message: int) -> None:
        try:
            child = Child(request, message, connection)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._send(connection, {"id": request["id"], "error": str(error)})
        else:
            self._children.add(child)
            self._selector.register(child.pipe, selectors.EVENT_READ, lambda: self._read(child))
        finally:
            os.close(message)

    def _read(self, child: Child) -> None:
        if not child.read():
            self._read_no_more(child)

    def _read_no_more(self, child: Child) -> None:
        self._selector.unregister(child.pipe)
        child.pipe.close()

    def _reap(self) -> None:
        for child in [child for child in self._children if child.process.poll() is not None]:
            if not child.pipe.closed:
                # What it left in the pipe; others that it started may go on printing, to nobody.
                child.read()
                self._read_no_more(child)
            self._children.discard(child)
            self._send(child.connection, child.report())

    def _expire(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.deadline <= now:
                child.late = True
                child.end()

    def _send(self, connection: socket.socket, answer: dict[str, Any]) -> None:
        if connection in self._connections:
            with contextlib.suppress(OSError):  # it is about to be told that the server is gone
                connection.send(json.dumps(answer).encode())


def give_up_capabilities() -> None:
    """Those that everything started from here would inherit: a unit of systemd lets the server bind low ports by one, and no
    command needs that. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    nothing = ctypes.c_ulong(0)
    clear = ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL)
    if libc.prctl(_PR_CAP_AMBIENT, clear, nothing, nothing, nothing):
        code = ctypes.get_errno()
        if code != errno.EINVAL:  # before Linux 4.3 there are none
            raise OSError(code, os.strerror(code))


def main() -> None:
    """The number of the socket is the only argument."""
    give_up_capabilities()
    connection = socket.socket(fileno=int(sys.argv[1]))
    # The server says when it ends; a Ctrl-C in its terminal is not for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Helper(connection).serve()


if __name__ == "__main__":
    main()

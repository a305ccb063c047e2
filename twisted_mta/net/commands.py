"""Runs commands through the helper process (`command_helper`)."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_mta.core.commands import Exit
from twisted_mta.net import command_helper

#: Seconds that a command gets to end by itself.
GRACE = 5.0
_GONE = Exit(error="the helper process that runs commands has ended; see the log")
_SILENT = Exit(error="the helper process that runs commands does not answer")


class HelperError(Exception):
    """Commands can't be run as the configuration wants it; the text says why."""


class CommandRunner(Protocol):
    """Runs commands."""

    def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        directory: str,
        timeout: float,
        message: int,
    ) -> Deferred[Exit]:
        """Run a command with the message in the file with that descriptor (which stays the caller's) at its standard
        input. Cancelling ends the command."""
        ...

    def close(self) -> None:
        """End what is under way."""
        ...


class Process(Protocol):
    """What is needed of a subprocess.Popen."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        ...


def start_helper(user: str) -> tuple[socket.socket, Process]:
    """Start a helper that runs as `user`. Blocks for a moment. Raises HelperError, OSError.

    Only root can make it another user than our own; root itself it never is.
    """
    entry = identity(user)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    rights: dict[str, Any] = {}
    if os.geteuid() == 0:
        rights = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    try:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", str(Path(command_helper.__file__)), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Nothing of our own environment, which may hold secrets.
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                cwd="/",
                **rights,
            )
    except (OSError, subprocess.SubprocessError) as error:
        ours.close()
        raise HelperError(f"can't start the helper that runs commands as {user}: {error}") from None
    ours.setblocking(False)
    return ours, process


def identity(user: str) -> pwd.struct_passwd:
    """The user that commands are to run as. Raises HelperError where that is not possible."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise HelperError(f'delivery.command.user: there is no user "{user}" on this machine') from None
    if entry.pw_uid == 0:
        raise HelperError("delivery.command.user: commands are never run as root")
    if os.geteuid() not in (0, entry.pw_uid):
        raise HelperError(
            f'delivery.command.user: to run commands as "{user}" the server must be started as root, or as that user'
        )
    return entry


class HelperProcess:
    """A helper, for this process and for others that it starts."""

    def __init__(self, user: str, *, again: bool) -> None:
        """Started at once; and `again` when it has died, if that can be done without root. Raises HelperError."""
        self._user = user
        self._again = again
        self._control, self._process = start_helper(user)

    def connect(self) -> socket.socket:
        """A new connection to it. Raises HelperError."""
        if self._process.poll() is not None:
            if not self._again:
                raise HelperError(_GONE.error)
            self._control.close()
            self._control, self._process = start_helper(self._user)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                socket.send_fds(self._control, [b'{"join": true}'], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise HelperError(f"{_GONE.error} ({error})") from None
        ours.setblocking(False)
        return ours


def inherited(descriptor: int) -> Callable[[], socket.socket]:
    """The one connection that a parent process has made for us."""
    ends = [socket.socket(fileno=descriptor)]
    ends[0].setblocking(False)

    def connect() -> socket.socket:
        if not ends:
            raise HelperError(_GONE.error)
        return ends.pop()

    return connect


@implementer(IReadDescriptor)
class HelperCommands:
    """CommandRunner that has a helper process do it."""

    log = Logger()

    def __init__(self, reactor: Any, connect: Callable[[], socket.socket]) -> None:
        """`connect` is called when there is something to run, and anew when the helper was lost; it may raise HelperError."""
        self._reactor = reactor
        self._connect = connect
        self._numbers = count(1)
        self._waiting: dict[int, Deferred[Exit]] = {}
        self._socket: socket.socket | None = None

    def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        directory: str,
        timeout: float,
        message: int,
    ) -> Deferred[Exit]:
        """See CommandRunner."""
        number = next(self._numbers)
        done: Deferred[Exit] = Deferred(lambda _: self._cancel(number))
        # The helper keeps the time; but what it runs may stop it, for they are the same user.
        done.addTimeout(timeout + 3 * GRACE, self._reactor, lambda result, seconds: _SILENT)
        request = {
            "id": number,
            "argv": list(argv),
            "environment": dict(environment),
            "directory": directory,
            "timeout": timeout,
            "grace": GRACE,
        }
        try:
            if self._socket is None:
                self._socket = self._connect()
                self._reactor.addReader(self)
            data = json.dumps(request).encode("utf-8", "surrogateescape")
            if len(data) > command_helper.MAX_REQUEST:
                raise HelperError("the command is too long")
            socket.send_fds(self._socket, [data], [message])
        except HelperError as error:
            done.callback(Exit(error=str(error)))
        except OSError as error:
            done.callback(Exit(error=f"{_GONE.error} ({error})"))
        else:
            self._waiting[number] = done
        return done

    def _cancel(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None and self._socket is not None:
            try:
                self._socket.send(json.dumps({"id": number, "cancel": True}).encode())
            except OSError as error:  # then it ends by its own deadline
                self.log.warn("can't tell the helper to end a command: {error}", error=str(error))

    def close(self) -> None:
        """See CommandRunner. The helper ends with our end of the socket, and takes its commands along."""
        self._lose()

    # --- IReadDescriptor -------------------------------------------------------------------------

    def fileno(self) -> int:
        """Of the socket."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "commands"

    def doRead(self) -> Failure | None:
        """Take what the helper says."""
        assert self._socket is not None  # else the reactor does not read
        while True:
            try:
                data = self._socket.recv(command_helper.MAX_REQUEST)
            except BlockingIOError:
                return None
            except OSError:
                data = b""
            if not data:
                return Failure(ConnectionDone())  # type: ignore[no-untyped-call]
            self._answer(data)

    def _answer(self, data: bytes) -> None:
        """Commands run as the helper's user, who may tamper with it: its words are looked at as any stranger's."""
        try:
            answer = json.loads(data)
            number = answer.pop("id")
            end = Exit(
                code=int(answer.get("code", 0)),
                signal=int(answer.get("signal", 0)),
                late=bool(answer.get("late")),
                output=str(answer.get("output", "")),
                error=str(answer.get("error", "")),
            )
            done = self._waiting.pop(number, None)
        except (ValueError, TypeError, KeyError, AttributeError):
            self.log.error("the helper that runs commands said something strange: {data}", data=data[:200])
            return
        if done is not None:
            done.callback(end)

    def connectionLost(self, reason: Failure) -> None:
        """The helper has ended."""
        self.log.error(
            "the helper that runs commands has ended; it can be started anew without root, or by a restart"
        )
        self._lose()

    def _lose(self) -> None:
        connection, self._socket = self._socket, None
        if connection is None:
            return
        self._reactor.removeReader(self)
        connection.close()
        waiting, self._waiting = self._waiting, {}
        for done in waiting.values():
            done.callback(_GONE)


class NoCommands:
    """CommandRunner where commands are off."""

    def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        directory: str,
        timeout: float,
        message: int,
    ) -> Deferred[Exit]:
        """See CommandRunner."""
        done: Deferred[Exit] = Deferred()
        done.callback(Exit(error="commands are not allowed on this server"))
        return done

    def close(self) -> None:
        """See CommandRunner."""

"""Talks to the running server through its control socket (`twisted_mta.service.control`). Blocking, no Twisted."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted_mta.admin.errors import EX_NOPERM, EX_TEMPFAIL, AdminError

#: Seconds until an answer must be there: a reload reads files, a retry waits for the disk.
TIMEOUT = 60.0
#: Octets of an answer.
MAX_ANSWER = 256 << 20


class ServerDown(AdminError):
    """Nobody listens at the control socket."""


class UnknownCommand(AdminError):
    """The server does not have that command."""


def call(
    path: Path, command: str, arguments: Mapping[str, Any] | None = None, timeout: float = TIMEOUT
) -> Any:
    """Ask the server and return its result. Raises ServerDown, UnknownCommand, or AdminError with what it answered."""
    request = json.dumps({"command": command, "arguments": dict(arguments or {})}).encode("ascii") + b"\n"
    try:
        line = _exchange(path, request, timeout)
    except (FileNotFoundError, ConnectionRefusedError):
        raise ServerDown(f"no server is running (nobody listens at {path})", EX_TEMPFAIL) from None
    except PermissionError:
        raise AdminError(f"only root and the user of the server may use {path}", EX_NOPERM) from None
    except TimeoutError:
        raise AdminError(f"the server did not answer within {timeout:g} seconds", EX_TEMPFAIL) from None
    except OSError as error:
        raise AdminError(f"the server can't be asked at {path}: {error}", EX_TEMPFAIL) from None
    try:
        answer = json.loads(line)
    except ValueError:
        raise AdminError("the server closed the connection without an answer", EX_TEMPFAIL) from None
    if "error" in answer:
        kind = UnknownCommand if answer.get("unknown") else AdminError
        raise kind(str(answer["error"]))
    return answer.get("result")


def _exchange(path: Path, request: bytes, timeout: float) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(request)
        with connection.makefile("rb") as file:
            return file.readline(MAX_ANSWER)

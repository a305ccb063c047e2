"""A secret of this installation: random, made once, and kept in the data directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from twisted_mta.store.durable import make_directories
from twisted_mta.store.edits import replace

_LENGTH = 32


def installation_secret(data: Path, random: Callable[[int], bytes]) -> bytes:
    """The secret, 32 octets; made on first use. `random` gives so many octets. Raises OSError."""
    path = data / "secret"
    try:
        text = path.read_text("ascii").strip()
        found = bytes.fromhex(text)
    except (FileNotFoundError, ValueError):
        found = b""
    if len(found) == _LENGTH:
        return found
    made = random(_LENGTH)
    make_directories(data)
    # An administrator may come first; the server, which may be somebody else, must be able to read it.
    replace(path, made.hex() + "\n", data.stat() if os.geteuid() == 0 else None)
    return made

"""Who an administrator's command is while it writes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def as_owner(data: Path) -> Iterator[None]:
    """Let root do what follows with the rights of the owner of the data directory, the server's user: files are its own
    then, and a link that somebody put in the way leads root nowhere. Nothing changes for others. Not for threads."""
    if os.geteuid() != 0 or not data.exists():
        yield
        return
    owner, group, groups = data.stat(), os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)

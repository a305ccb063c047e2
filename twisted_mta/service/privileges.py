"""Giving up root: bind first, then run as an ordinary user for good."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

from twisted.logger import Logger

from twisted_mta.store.durable import make_directories

log = Logger()


class PrivilegeError(Exception):
    """The configured user can't be used; the text says why."""


def drop_privileges(user: str, group: str, data: Path) -> None:
    """Become `user` (and `group`, else that user's own) if this process is root, and make `data` that user's.

    Does nothing for a process that is not root. Raises PrivilegeError.
    """
    if os.geteuid() != 0:
        return
    if not user:
        log.warn("running as root; set `user` in the configuration to give it up")
        return
    try:
        entry = pwd.getpwnam(user)
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except KeyError as error:
        raise PrivilegeError(f"user or group does not exist: {error}") from None
    try:
        make_directories(data)
        os.chown(data, entry.pw_uid, gid)
    except OSError as error:
        raise PrivilegeError(f"can't hand {data} over to {user}: {error}") from None
    os.setgroups([])
    os.setgid(gid)
    os.setuid(entry.pw_uid)

"""The secrets by which rewritten senders are signed, on the disk, and what [forward] comes to with them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from twisted_mta.config.schema import Config
from twisted_mta.core.forward import Forwarding
from twisted_mta.core.srs import Srs, parse_secrets
from twisted_mta.store.durable import make_directories
from twisted_mta.store.edits import editing

_LENGTH = 32
_COMMENT = (
    "# Senders of forwarded mail are signed with the first secret; each line is good for those that come back.",
    "# For a new one put it above the others, and remove the old ones when [forward] srs_expire has passed.",
)


def make_secret(path: Path, random: Callable[[int], bytes]) -> None:
    """Make the file if there is none, mode 0600. `random` gives so many octets. Blocks. Raises OSError."""
    if path.exists():
        return
    make_directories(path.parent)
    # Workers come here together, and all must have the same: the first one makes it.
    with editing(path) as lines:
        if not lines:
            lines += [*_COMMENT, random(_LENGTH).hex()]


def load_forwarding(config: Config) -> tuple[Forwarding, str]:
    """The rules, and why senders are not rewritten though they should be; "". Blocks.

    A file that is not there yet is no trouble: the server makes it when it starts.
    """
    settings = config.forward
    srs, trouble = None, ""
    if settings.srs:
        try:
            srs = Srs(
                domain=settings.srs_domain or config.own_domains[0],
                secrets=_read(config.srs_secret_file),
                expire=settings.srs_expire,
            )
        except FileNotFoundError:
            pass  # the first start makes it
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            trouble = f"senders of forwarded mail are not rewritten: {why}"
    rules = Forwarding(
        srs=srs,
        bounces_only=settings.srs_bounces_only,
        # Of several workers each has a history of its own, and a bounce may come to any.
        tickets=config.queue.history > 0 and config.workers == 1,
        not_if=settings.not_if_header,
        refuse=settings.instead == "refuse",
    )
    return rules, trouble


def _read(path: Path) -> tuple[bytes, ...]:
    """Raises OSError and ValueError."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & stat.S_IRWXO:
            raise ValueError("the file is open to other users: chmod 600 it")
        text = file.read(1 << 16).decode("utf-8", "surrogateescape")
    return parse_secrets(text)

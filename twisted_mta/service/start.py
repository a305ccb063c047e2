"""Not being able to start."""

from __future__ import annotations

import sys
from typing import NoReturn


class StartError(Exception):
    """The server can't start; the text is for the administrator."""


def give_up(error: Exception) -> NoReturn:
    """End the program: one line to the terminal instead of a traceback."""
    # Not sys.stderr: that is the log by now.
    print(f"mta: {error}", file=sys.__stderr__)
    sys.exit(1)

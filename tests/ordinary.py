"""Starting Python, or a whole server, so that an ordinary user may run its interpreter too: ours may be in root's home."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from unittest import SkipTest

from twisted_mta.testing.site import python

_ROOT = Path(__file__).parents[1]


def python_for_all() -> str:
    """Our Python, or one of the same kind and version, that nobody may run. As root only; raises SkipTest if there is none."""
    kind = "sys.implementation.cache_tag"
    ours = _say(python(), f"import sys; print({kind})")
    for candidate in (python(), "/usr/bin/python3"):
        with contextlib.suppress(PermissionError, FileNotFoundError, subprocess.CalledProcessError):
            subprocess.run(
                [candidate, "-c", f"import sys; sys.exit({kind} != {ours!r})"], user="nobody", check=True
            )
            return candidate
    raise SkipTest("nobody can run Python here")


def _say(interpreter: str, code: str) -> str:
    return subprocess.run(
        [interpreter, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


def spawn(command: list[str], output: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """For `Site`: the server under that Python, with the packages that we have."""
    if os.geteuid() == 0:
        packages = Path(_say(python(), "import twisted; print(twisted.__file__)")).parents[1]
        command = [python_for_all(), *command]
        environment = {**environment, "PYTHONPATH": f"{_ROOT}{os.pathsep}{packages}"}
    # Workers start in the same directory, as the user that the server has become.
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd="/")

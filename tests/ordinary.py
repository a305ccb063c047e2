"""Starting Python, or a whole server, so that an ordinary user may run its interpreter too: ours may be in root's home."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from unittest import SkipTest

import twisted

_ROOT = Path(__file__).parents[1]


def python_for_all() -> str:
    """A Python of our version that nobody may run. As root only; raises SkipTest if there is none."""
    version = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(PermissionError, FileNotFoundError, subprocess.CalledProcessError):
            subprocess.run([python, "-c", version], user="nobody", check=True)
            return python
    raise SkipTest("nobody can run Python here")


def spawn(command: list[str], output: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """For `Site`: the server under that Python, with the packages that we have."""
    if os.geteuid() == 0:
        packages = Path(str(twisted.__file__)).parents[1]
        command = [python_for_all(), *command]
        environment = {**environment, "PYTHONPATH": f"{_ROOT}{os.pathsep}{packages}"}
    # Workers start in the same directory, as the user that the server has become.
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd="/")

"""The Python that runs all this: what to tell of it, and what to tell it."""

from __future__ import annotations

import gc
import platform
import sys


def interpreter() -> str:
    """Its name and version, for administrators: "CPython 3.11.2", "PyPy 7.3.19 (Python 3.11.11)"."""
    name, version = platform.python_implementation(), platform.python_version()
    if sys.implementation.name == "cpython":
        return f"{name} {version}"
    own = ".".join(str(part) for part in sys.implementation.version[:3])
    return f"{name} {own} (Python {version})"


def spare_what_is_there() -> None:
    """To be called when the start is over: all modules, classes and settings stay for as long as the process does.

    Each full collection would look at them again, some hundred thousand objects; that was a twelfth of the processor time
    of a message. Higher thresholds would save as much again, but let some thousand closed connections pile up.
    """
    gc.collect()
    # PyPy has no such thing: its collector looks at what is old much less often by itself.
    if sys.implementation.name == "cpython":
        gc.freeze()

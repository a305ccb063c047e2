"""What the garbage collector need not look at."""

from __future__ import annotations

import gc
import sys


def spare_what_is_there() -> None:
    """To be called when the start is over: all modules, classes and settings stay for as long as the process does.

    Each full collection would look at them again, some hundred thousand objects; that was a twelfth of the processor time
    of a message. Higher thresholds would save as much again, but let some thousand closed connections pile up.
    """
    gc.collect()
    if (
        sys.implementation.name == "cpython"
    ):  # PyPy's collector looks at what is old much less often by itself
        gc.freeze()

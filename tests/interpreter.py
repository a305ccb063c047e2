"""Tests of what only one Python interpreter promises."""

from __future__ import annotations

import sys
from unittest import skipUnless

#: What nobody has any more is gone at once.
counts_references = skipUnless(
    sys.implementation.name == "cpython", "without reference counts, all is left to the collector"
)

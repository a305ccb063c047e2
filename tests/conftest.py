"""For all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trial's mktemp() works below the current directory: let that be one that pytest removes."""
    monkeypatch.chdir(tmp_path)

"""For all tests."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

# How long an example takes, or is made, says something of the machine and what else it does: no test fails by that.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trial's mktemp() works below the current directory: let that be one that pytest removes."""
    monkeypatch.chdir(tmp_path)

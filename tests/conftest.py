"""For all tests."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

# How long an example takes, or is made, says something of the machine and what else it does: no test fails by that.
_untimed = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
# The same examples in each run: what fails for one fails for all. New ones are drawn by `--hypothesis-profile exploring`,
# and by `make fuzz`.
hypothesis.settings.register_profile("exploring", _untimed)
hypothesis.settings.register_profile("repeatable", _untimed, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trial's mktemp() works below the current directory: let that be one that pytest removes."""
    monkeypatch.chdir(tmp_path)

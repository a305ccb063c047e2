"""Simulations of bad weather: a hundred, with MTA_SEEDS=1000 (`make prove`) a thousand.

One that fails says how to see it again: MTA_SEED=n runs that one alone.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.weather import Weather

_SEEDS = int(os.environ.get("MTA_SEEDS", "100"))
_AT_A_TIME = 50
_ONLY = os.environ.get("MTA_SEED")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Where syncing costs nothing, if there is such a place."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK):
        directory = Path(tempfile.mkdtemp(prefix="mta-", dir=memory))
        yield directory
        shutil.rmtree(directory)
    else:
        yield tmp_path
    # What the crashes left in mid-air complains when it is collected: here, and not in the test that comes next.
    gc.collect()


@pytest.mark.parametrize("first", range(0, _SEEDS, _AT_A_TIME) if _ONLY is None else [int(_ONLY)])
def test_weather(disk: Path, first: int) -> None:
    crashes = 0
    for seed in range(first, first + (_AT_A_TIME if _ONLY is None else 1)):
        weather = Weather(disk / str(seed), seed)
        try:
            weather.run()
        except BaseException:
            print("\n".join(weather.story))
            print(f"Again: MTA_SEED={seed} python -m pytest {__file__}")
            raise
        crashes += weather.crashes
        shutil.rmtree(disk / str(seed))
    assert crashes or _ONLY is not None

"""The power fails while strace(1) looks: what was acknowledged is there all the same."""

from __future__ import annotations

from contextlib import closing

from tests.crash.nursery import Nursery
from tests.crash.power import PowerTrial

_FAILURES = 25


def test_nothing_acknowledged_is_lost() -> None:
    with Nursery() as nursery, closing(PowerTrial(nursery, 1)) as trial:
        trial.live()
        trial.fail(_FAILURES)

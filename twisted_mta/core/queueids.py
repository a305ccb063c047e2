"""Queue ids: short names that sort by arrival and never come twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

# In the order of ASCII, so that ids sort as the numbers in them do.
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# All pairs of them one after the other: as a tuple of pairs it would be 230 kB.
_PAIRS = "".join(high + low for high in _DIGITS for low in _DIGITS)
_BASE = len(_PAIRS) // 2
#: Ten digits of base 62 hold the microseconds until the year 28000.
_TIME_PAIRS = 5
_RANDOM_PAIRS = 2
#: The last pairs of the time, 14 seconds in all; those before them stay the same for that long.
_FAST_PAIRS = 2


class QueueIds:
    """Makes ids of 14 characters of [0-9A-Za-z]: the microsecond of arrival, then chance.

    `seconds` tells the Unix time, `random` gives 0 <= x < 1. Ids of one maker rise strictly, even when the clock
    stands still or is set back; the random end keeps several processes with one queue apart. Those of workers, which make
    very many at the same time, differ for sure: their number (up to 3843) stands for one half of that end.
    """

    def __init__(
        self, seconds: Callable[[], float], random: Callable[[], float], worker: int | None = None
    ) -> None:
        self._seconds = seconds
        self._random = random
        self._worker = worker
        self._last = 0

    def __call__(self) -> str:
        """A new id."""
        moment = max(self._last + 1, int(self._seconds() * 1e6))
        self._last = moment
        if self._worker is None:
            end = int(self._random() * _BASE**_RANDOM_PAIRS)
        else:
            end = self._worker * _BASE + int(self._random() * _BASE)
        beginning, rest = divmod(moment, _BASE**_FAST_PAIRS)
        return _beginning(beginning) + _encode(rest, _FAST_PAIRS) + _encode(end, _RANDOM_PAIRS)


@lru_cache(2)
def _beginning(number: int) -> str:
    return _encode(number, _TIME_PAIRS - _FAST_PAIRS)


def _encode(number: int, pairs: int) -> str:
    text = ""
    for _ in range(pairs):
        number, rest = divmod(number, _BASE)
        text = _PAIRS[2 * rest : 2 * rest + 2] + text
    return text

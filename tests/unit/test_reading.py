"""Reading a file up to a limit."""

from __future__ import annotations

import io
import random

import pytest

from twisted_mta.config.reading import read_at_most


class _File(io.BytesIO):
    """Notes how much was asked for at once."""

    most = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        self.most = max(self.most, size)
        return super().read(size)


class ReadAtMostTests:
    @pytest.mark.parametrize("limit", [0, 1, 65535, 65536, 65537, 199_999, 200_000, 200_001, 1 << 28])
    def test_so_many(self, limit: int) -> None:
        content = random.Random(1).randbytes(200_000)
        file = _File(content)
        assert read_at_most(file, limit) == content[:limit]
        assert file.most <= 65536

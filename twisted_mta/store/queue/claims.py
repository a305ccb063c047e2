"""What a process remembers of the recipients that are its own for now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from twisted_mta.store.queue.bodies import FileBody, MemoryBody
from twisted_mta.store.queue.tables import Held


class Claims:
    """The rows that are ours, and their bodies as long as there are such rows."""

    def __init__(self, memory_limit: int) -> None:
        self._limit = memory_limit
        self._used = 0
        self._held: dict[int, Held] = {}
        self._rows_of: dict[int, int] = {}
        self._bodies: dict[int, MemoryBody | FileBody] = {}

    def add(self, claimed: Mapping[int, Held]) -> None:
        for row, held in claimed.items():
            if row not in self._held:
                self._rows_of[held.body] = self._rows_of.get(held.body, 0) + 1
            self._held[row] = held

    def get(self, row: int) -> Held | None:
        return self._held.get(row)

    def items(self) -> list[tuple[int, Held]]:
        return list(self._held.items())

    def drop(self, rows: Iterable[int]) -> None:
        for row in rows:
            held = self._held.pop(row, None)
            if held is None:
                continue
            left = self._rows_of[held.body] = self._rows_of[held.body] - 1
            if not left:
                del self._rows_of[held.body]
                body = self._bodies.pop(held.body, None)
                if isinstance(body, MemoryBody):
                    self._used -= body.size

    def body(self, number: int) -> MemoryBody | FileBody | None:
        return self._bodies.get(number)

    def keep(self, number: int, body: MemoryBody | FileBody) -> None:
        """Remember a body of rows that are ours, if there is room."""
        if number not in self._rows_of or number in self._bodies:
            return
        if isinstance(body, MemoryBody):
            if self._used + body.size > self._limit:
                return
            self._used += body.size
        self._bodies[number] = body

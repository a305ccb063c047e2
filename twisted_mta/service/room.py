"""Memory for what has to be whole before it can go on to the disk: binary messages, and headers that are to be mended."""

from __future__ import annotations

#: Octets of the one `Room` of a server.
MAX_MEMORY = 64 << 20


class Room:
    """So many octets, all sessions together. Who finds no room is refused, and tries again later."""

    def __init__(self, limit: int = MAX_MEMORY) -> None:
        self.limit = limit
        #: Octets in memory.
        self.used = 0

    def take(self, octets: int) -> bool:
        """Take room for so many octets; False, and nothing taken, where there is none."""
        if self.used + octets > self.limit:
            return False
        self.used += octets
        return True

    def give_back(self, octets: int) -> None:
        """So many octets that were taken are free again."""
        self.used -= octets

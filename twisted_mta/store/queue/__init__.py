"""The durable queue on SQLite."""

from twisted_mta.store.queue.store import SQLiteQueueStore

__all__ = ["SQLiteQueueStore"]

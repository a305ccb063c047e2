"""The parts of the queue: one directory for each worker, and what is left of workers that there were once.

A part belongs to one process, which alone opens it: two that write one database would wait for each other at every
commit. The part of worker 0 is the queue of a server without workers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import attrs

from twisted_mta.config.schema import QUEUE, SHARD, Config
from twisted_mta.core.values import value
from twisted_mta.service.lock import DataLock

_NAME = re.compile(rf"{SHARD}([1-9][0-9]{{0,5}})")


def directory_of(data: Path, number: int) -> Path:
    """Where that part is."""
    return data / (f"{SHARD}{number}" if number else QUEUE)


def shards_in(data: Path) -> Sequence[int]:
    """The numbers of the parts that are there, rising."""
    try:
        names = [entry.name for entry in data.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return []
    numbers = [0] if QUEUE in names else []
    return sorted(numbers + [int(match[1]) for match in map(_NAME.fullmatch, names) if match])


@value(kw_only=True)
class Place:
    """Which part of the server this process is."""

    worker: int = 0
    workers: int = 1
    #: The parts of the queue that this process has besides its own, which it empties and does not fill.
    former: tuple[int, ...] = ()
    #: How many parts are worked on, in all processes together.
    parts: int = 1
    #: Held by the parent, if there is one.
    lock: DataLock | None = None

    def share(self, config: Config) -> Config:
        """The part of what is limited for the whole server, so that all together keep to it.

        What can't be divided further is 1: a destination that may have fewer connections than there are workers gets more.
        """
        if self.parts == 1:
            return config
        relay = attrs.evolve(
            config.relay,
            concurrency=self._part(config.relay.concurrency),
            rate=self._part(config.relay.rate),
            overrides=tuple(
                attrs.evolve(
                    override,
                    concurrency=override.concurrency and self._part(override.concurrency),
                    rate=override.rate and self._part(override.rate),
                )
                for override in config.relay.overrides
            ),
        )
        queue = attrs.evolve(
            config.queue,
            active=self._part(config.queue.active),
            history_limit=self._part(config.queue.history_limit),
        )
        limits = attrs.evolve(config.limits, memory=self._part(config.limits.memory))
        commands = config.delivery.command
        commands = attrs.evolve(commands, concurrency=self._part(commands.concurrency))
        delivery = attrs.evolve(config.delivery, command=commands)
        return attrs.evolve(config, relay=relay, queue=queue, limits=limits, delivery=delivery)

    def _part(self, whole: int) -> int:
        """0, which stands for no limit, stays so. The first ones get what is left over."""
        if not whole:
            return 0
        each, rest = divmod(whole, self.parts)
        return max(each + (self.worker < rest), 1)


def places(workers: int, data: Path, lock: DataLock) -> list[Place]:
    """One for each worker. Parts without a worker of their own are spread over them. The lock is held."""
    found = [number for number in shards_in(data) if number >= workers]
    return [
        Place(
            worker=worker,
            workers=workers,
            former=tuple(number for number in found if number % workers == worker),
            parts=workers + len(found),
            lock=lock,
        )
        for worker in range(workers)
    ]

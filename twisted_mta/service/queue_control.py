"""The queue for an administrator: the `queue.*` commands of the control socket.

`mta queue` runs the same handlers on the queue itself when no server is there to ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted_mta.core.envelope import TlsWish
from twisted_mta.core.queue import QueuedMessage, QueuedRecipient, WorkItem
from twisted_mta.interfaces import IQueueStore, IStoredBody
from twisted_mta.service.control import ControlError, Handler

#: Messages listed at most.
MAX_LISTED = 100_000
#: Octets of a message that "queue.show" gives.
MAX_SHOWN = 64 << 10


class Administered(Protocol):
    """What an administrator works on: the running `service.queue.QueueManager`, or the queue's files (`QueueFiles`)."""

    async def listing(self, limit: int) -> Sequence[WorkItem]: ...
    async def find(self, queue_id: str) -> WorkItem | None: ...
    async def body(self, message: QueuedMessage) -> IStoredBody: ...
    async def retry(self, queue_ids: Sequence[str] | None) -> int: ...
    async def delete(self, queue_ids: Sequence[str]) -> int: ...


class QueueFiles:
    """A queue that no server is running. `now` gives Unix seconds."""

    def __init__(self, store: IQueueStore, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now

    async def listing(self, limit: int) -> Sequence[WorkItem]:
        """See IQueueStore."""
        return await self._store.listing(limit)

    async def find(self, queue_id: str) -> WorkItem | None:
        """See IQueueStore."""
        return await self._store.find(queue_id)

    async def body(self, message: QueuedMessage) -> IStoredBody:
        """See IQueueStore."""
        return await self._store.body(message)

    async def retry(self, queue_ids: Sequence[str] | None) -> int:
        """See IQueueStore: due when a server starts."""
        return await self._store.retry(queue_ids, self._now())

    async def delete(self, queue_ids: Sequence[str]) -> int:
        """See IQueueStore."""
        return await self._store.delete(queue_ids)


def describe(item: WorkItem) -> dict[str, Any]:
    """A message as JSON: addresses as text, times in Unix seconds, "" for the null reverse-path."""
    message = item.message
    return {
        "id": message.id,
        "sender": str(message.sender) if message.sender else "",
        "size": message.size,
        "arrived": message.arrived,
        "expires": message.expires,
        "message_id": message.message_id,
        "origin": message.origin,
        "parent": message.parent,
        "held_until": message.not_before,
        "deliver_by": message.deliver_by.time if message.deliver_by else 0.0,
        "returns": message.deliver_by.returns if message.deliver_by else False,
        "priority": message.priority,
        "requires_tls": message.tls is TlsWish.REQUIRED,
        "recipients": [_describe_recipient(recipient) for recipient in item.recipients],
    }


def _describe_recipient(recipient: QueuedRecipient) -> dict[str, Any]:
    return {
        "address": str(recipient.address),
        "original": str(recipient.original),
        "transport": str(recipient.transport),
        "attempts": recipient.attempts,
        "next_attempt": recipient.next_attempt,
        "last_reply": recipient.last_reply,
    }


def queue_handlers(queue: Administered) -> Mapping[str, Handler]:
    """The handlers of the `queue.*` commands."""

    async def listing(arguments: Mapping[str, Any]) -> Any:
        limit = arguments.get("limit", 1000)
        if not isinstance(limit, int) or not 1 <= limit <= MAX_LISTED:
            raise ControlError(f"the limit is 1 to {MAX_LISTED}")
        return {"messages": [describe(item) for item in await queue.listing(limit)]}

    async def show(arguments: Mapping[str, Any]) -> Any:
        (queue_id,) = _ids(arguments, exactly_one=True)
        item = await queue.find(queue_id)
        if item is None:
            raise ControlError(f"there is no message {queue_id} in the queue")
        message = item.message
        try:
            body = await queue.body(message)
        except KeyError:
            raise ControlError(f"message {queue_id} has just left the queue") from None
        with body.open() as file:
            head = message.prefix + file.read(MAX_SHOWN)
        return describe(item) | {
            "text": head[:MAX_SHOWN].decode("utf-8", "replace"),
            "cut": message.size > MAX_SHOWN,
        }

    async def retry(arguments: Mapping[str, Any]) -> Any:
        everything = arguments.get("all") is True
        return {"recipients": await queue.retry(None if everything else _ids(arguments))}

    async def delete(arguments: Mapping[str, Any]) -> Any:
        return {"messages": await queue.delete(_ids(arguments))}

    return {"queue.list": listing, "queue.show": show, "queue.retry": retry, "queue.delete": delete}


def _ids(arguments: Mapping[str, Any], *, exactly_one: bool = False) -> list[str]:
    ids = arguments.get("ids")
    if not isinstance(ids, list) or not ids or not all(isinstance(each, str) and each for each in ids):
        raise ControlError("no queue id was given")
    if exactly_one and len(ids) != 1:
        raise ControlError("one queue id is needed")
    return ids

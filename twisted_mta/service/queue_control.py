"""The queue for an administrator: the `queue.*` commands of the control socket.

`mta queue` runs the same handlers on the queue itself when no server is there to ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted_mta.core.queue import QueuedRecipient, WorkItem
from twisted_mta.interfaces import IQueueStore
from twisted_mta.service.control import ControlError, Handler

#: Messages listed at most.
MAX_LISTED = 100_000
#: Octets of a message that "queue.show" gives.
MAX_SHOWN = 64 << 10


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


def queue_handlers(
    store: IQueueStore, now: Callable[[], float], wake: Callable[[], None] = lambda: None
) -> Mapping[str, Handler]:
    """The handlers: `now` gives Unix seconds, `wake` is called after recipients became due."""

    async def listing(arguments: Mapping[str, Any]) -> Any:
        limit = arguments.get("limit", 1000)
        if not isinstance(limit, int) or not 1 <= limit <= MAX_LISTED:
            raise ControlError(f"the limit is 1 to {MAX_LISTED}")
        return {"messages": [describe(item) for item in await store.listing(limit)]}

    async def show(arguments: Mapping[str, Any]) -> Any:
        (queue_id,) = _ids(arguments, exactly_one=True)
        item = await store.find(queue_id)
        if item is None:
            raise ControlError(f"there is no message {queue_id} in the queue")
        message = item.message
        try:
            body = await store.body(message)
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
        count = await store.retry(None if everything else _ids(arguments), now())
        wake()
        return {"recipients": count}

    async def delete(arguments: Mapping[str, Any]) -> Any:
        return {"messages": await store.delete(_ids(arguments))}

    return {"queue.list": listing, "queue.show": show, "queue.retry": retry, "queue.delete": delete}


def _ids(arguments: Mapping[str, Any], *, exactly_one: bool = False) -> list[str]:
    ids = arguments.get("ids")
    if not isinstance(ids, list) or not ids or not all(isinstance(each, str) and each for each in ids):
        raise ControlError("no queue id was given")
    if exactly_one and len(ids) != 1:
        raise ControlError("one queue id is needed")
    return ids

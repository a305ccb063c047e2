"""The queue for an administrator: the `queue.*` commands of the control socket.

`mta queue` runs the same handlers on the queue itself when no server is there to ask.

What messages are meant is said by "ids", by "all": true, or by filters: "sender", "recipient", "domain", "older", "younger"
(seconds), "larger", "smaller" (octets), "status" (of `core.selection.Status`), "reply". Orders answer {"messages": how
many, "recipients": how many, "ids": the first of the messages}; with "dry_run": true nothing is done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from twisted_mta.config.errors import Invalid
from twisted_mta.config.fields import host_and_port
from twisted_mta.core.envelope import TlsWish
from twisted_mta.core.queue import Order, QueuedRecipient, WorkItem
from twisted_mta.core.selection import Selection, Status, status
from twisted_mta.interfaces import DamagedBody
from twisted_mta.service.control import ControlError, Handler
from twisted_mta.service.queue_admin import Done, Named, QueueAdmin

_TEXTS = ("sender", "recipient", "domain", "reply")
_NUMBERS = ("older", "younger", "larger", "smaller")
#: Messages listed at most, and ids named.
MAX_LISTED = 100_000
MAX_NAMED = 10_000
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
        "hold": message.hold,
        "held_until": message.not_before,
        "deliver_by": message.deliver_by.time if message.deliver_by else 0.0,
        "returns": message.deliver_by.returns if message.deliver_by else False,
        "priority": message.priority,
        "requires_tls": message.tls is TlsWish.REQUIRED,
        "recipients": [_describe_recipient(item, recipient) for recipient in item.recipients],
    }


def _describe_recipient(item: WorkItem, recipient: QueuedRecipient) -> dict[str, Any]:
    return {
        "address": str(recipient.address),
        "original": str(recipient.original),
        "transport": str(recipient.transport),
        "status": status(item.message, recipient).value,
        "attempts": recipient.attempts,
        "next_attempt": recipient.next_attempt,
        "last_reply": recipient.last_reply,
        "hop": recipient.hop,
        "sender": str(recipient.sender) if recipient.sender else "",
        "target": recipient.target,
    }


def queue_handlers(queue: QueueAdmin) -> Mapping[str, Handler]:
    """The handlers of the `queue.*` commands."""

    async def listing(arguments: Mapping[str, Any]) -> Any:
        limit = arguments.get("limit", 1000)
        if not isinstance(limit, int) or not 1 <= limit <= MAX_LISTED:
            raise ControlError(f"the limit is 1 to {MAX_LISTED}")
        found: list[Any] = []
        async for chosen in queue.choose(_named({"all": True} | dict(arguments)), _text(arguments, "after")):
            found += [describe(attrs.evolve(item, recipients=tuple(some))) for item, some in chosen]
            if len(found) >= limit:
                break
        return {"messages": found[:limit]}

    async def show(arguments: Mapping[str, Any]) -> Any:
        queue_id = one_id(arguments)
        item = await queue.find(queue_id)
        if item is None:
            raise ControlError(f"there is no message {queue_id} in the queue")
        message = item.message
        try:
            body = await queue.body(message)
        except KeyError:
            raise ControlError(f"message {queue_id} has just left the queue") from None
        except DamagedBody as error:
            return describe(item) | {"text": f"[{error}]", "cut": False}
        with body.open() as file:
            head = message.prefix + file.read(MAX_SHOWN)
        return describe(item) | {
            "text": head[:MAX_SHOWN].decode("utf-8", "replace"),
            "cut": message.size > MAX_SHOWN,
        }

    def order(act: Callable[[Named, Mapping[str, Any]], Awaitable[Done]]) -> Handler:
        async def handle(arguments: Mapping[str, Any]) -> Any:
            named = _named(arguments)
            dry = arguments.get("dry_run") is True
            return attrs.asdict(await (queue.count(named) if dry else act(named, arguments)))

        return handle

    return {
        "queue.list": listing,
        "queue.show": show,
        "queue.hold": order(lambda named, given: queue.hold(named, _text(given, "reason") or "by hand")),
        "queue.release": order(lambda named, given: queue.release(named)),
        "queue.retry": order(lambda named, given: queue.order(named, Order.RETRY)),
        "queue.expire": order(lambda named, given: queue.order(named, Order.EXPIRE)),
        "queue.reroute": order(lambda named, given: queue.order(named, Order.REROUTE, _hop(given))),
        "queue.delete": order(lambda named, given: queue.delete(named)),
    }


def one_id(arguments: Mapping[str, Any]) -> str:
    """The one queue id in "ids". Raises ControlError."""
    ids = _ids(arguments)
    if len(ids) != 1:
        raise ControlError("one queue id is needed")
    return ids[0]


def _ids(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    ids = arguments.get("ids")
    if not isinstance(ids, list) or not ids or not all(isinstance(each, str) and each for each in ids):
        raise ControlError("no queue id was given")
    if len(ids) > MAX_NAMED:
        raise ControlError(f"more than {MAX_NAMED} queue ids were given")
    return tuple(ids)


def _named(arguments: Mapping[str, Any]) -> Named:
    """What messages are meant: nothing is not everything."""
    given: dict[str, Any] = {name: _text(arguments, name) for name in _TEXTS}
    given |= {name: _number(arguments, name) for name in _NUMBERS}
    selection = Selection(**given, status=_status(arguments))
    if arguments.get("ids"):
        return Named(ids=_ids(arguments), selection=selection)
    if selection.empty and arguments.get("all") is not True:
        raise ControlError("no queue id was given, and no filter")
    return Named(selection=selection)


def _text(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name, "")
    if not isinstance(value, str) or len(value) > MAX_NAMED:
        raise ControlError(f"{name} is no text")
    return value


def _number(arguments: Mapping[str, Any], name: str) -> Any:
    value = arguments.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
        raise ControlError(f"{name} is no number")
    return value


def _status(arguments: Mapping[str, Any]) -> Status | None:
    text = _text(arguments, "status")
    if text and text not in list(Status):
        raise ControlError(f"the status is one of {', '.join(Status)}")
    return Status(text) if text else None


def _hop(arguments: Mapping[str, Any]) -> str:
    """The host and port of "to" as QueuedRecipient.hop has it; "" for ""."""
    text = _text(arguments, "to")
    if not text:
        return ""
    try:
        host, port = host_and_port(text, 25)
    except Invalid as error:
        raise ControlError(str(error)) from None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

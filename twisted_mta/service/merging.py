"""One answer for the administrator, where several parts of the server were asked: workers, or parts of the queue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, FirstError, gatherResults

from twisted_mta.service.channel import ChannelClosed
from twisted_mta.service.control import ControlError, Handler

#: (arguments, answers) -> the answer.
Merge = Callable[[Mapping[str, Any], Sequence[Any]], Any]

#: Ids that an order tells, and trees in one answer: as many as one part tells at most.
_MAX_IDS = 1000
_MAX_TREES = 50


def _listing(arguments: Mapping[str, Any], answers: Sequence[Any]) -> Any:
    messages = sorted((one for answer in answers for one in answer["messages"]), key=lambda one: one["id"])
    return {"messages": messages[: arguments.get("limit", 1000)]}


def _done(arguments: Mapping[str, Any], answers: Sequence[Any]) -> Any:
    return {
        "messages": sum(answer["messages"] for answer in answers),
        "recipients": sum(answer["recipients"] for answer in answers),
        "ids": sorted(name for answer in answers for name in answer["ids"])[:_MAX_IDS],
    }


def _traces(arguments: Mapping[str, Any], answers: Sequence[Any]) -> Any:
    trees = sorted((tree for answer in answers for tree in answer["trees"]), key=lambda tree: tree["arrived"])
    return {
        "trees": trees[:_MAX_TREES],
        "more": len(trees) > _MAX_TREES or any(answer["more"] for answer in answers),
        "kept": max(answer["kept"] for answer in answers),
    }


#: The worst comes first.
_STATES = ("down", "slowed")


def _destinations(arguments: Mapping[str, Any], answers: Sequence[Any]) -> Any:
    found: dict[str, dict[str, Any]] = {}
    for one in (one for answer in answers for one in answer["destinations"]):
        known = found.get(one["destination"])
        found[one["destination"]] = dict(one) if known is None else _joined(known, one)
    ranked = sorted(found.values(), key=lambda one: (-one["waiting"] - one["put_off"], one["destination"]))
    return {"destinations": ranked}


def _joined(known: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    later = max(known, other, key=lambda one: one["last_heard"])
    states = [one["state"] for one in (known, other)]
    counts = ("running", "waiting", "put_off", "concurrency", "limit", "rate")
    times = [one["down_since"] for one in (known, other) if one["down_since"]]
    probes = [one["next_probe"] for one in (known, other) if one["next_probe"]]
    return {
        **known,
        **{name: known[name] + other[name] for name in counts},
        "state": next((state for state in _STATES if state in states), states[0]),
        "down_since": min(times, default=0.0),
        "next_probe": min(probes, default=0.0),
        "last_reply": later["last_reply"],
        "last_heard": later["last_heard"],
    }


def _nothing(arguments: Mapping[str, Any], answers: Sequence[Any]) -> Any:
    return {}


def _forgotten(arguments: Mapping[str, Any], answers: Sequence[Any]) -> Any:
    """They share a file, and each has something of its own to forget."""
    return {"forgotten": sum(answer["forgotten"] for answer in answers)}


#: Commands that all are asked at once.
_ALL: Mapping[str, Merge] = {
    "accounts.refresh": _nothing,
    "callout.forget": _forgotten,
    "queue.destinations": _destinations,
    "queue.list": _listing,
    **dict.fromkeys(
        (f"queue.{order}" for order in ("hold", "release", "retry", "expire", "reroute", "delete")), _done
    ),
    "trace": _traces,
}
#: All are asked in turn, until one knows it.
_ONE_KNOWS = frozenset({"queue.show"})
#: All are asked in turn, since each writes down what it knows, and the last one reads it all.
_LAST = frozenset({"tls.list"})
#: What one of them can answer as well as any other (but for the state of destinations, which is its own).
_ANY = frozenset({"explain", "callout.list"})

#: The commands whose answers are joined here.
COMMANDS = frozenset({*_ALL, *_ONE_KNOWS, *_LAST, *_ANY})


def joined(command: str, handlers: Sequence[Handler]) -> Handler:
    """A handler that asks all these, as that command needs it."""
    if len(handlers) == 1 or command in _ANY:
        return handlers[0]
    if command in _ONE_KNOWS:
        return lambda arguments: _first_to_know(handlers, arguments)
    if command in _LAST:
        return lambda arguments: _last_of(handlers, arguments)
    merge = _ALL[command]

    async def ask_all(arguments: Mapping[str, Any]) -> Any:
        asked = [Deferred.fromCoroutine(_coroutine(handler, arguments)) for handler in handlers]
        try:
            answers = await gatherResults(asked, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()
        return merge(arguments, answers)

    return ask_all


def join_all(tables: Sequence[Mapping[str, Handler]]) -> dict[str, Handler]:
    """The same for tables of handlers that have the same commands."""
    return {command: joined(command, [table[command] for table in tables]) for command in tables[0]}


async def _coroutine(handler: Handler, arguments: Mapping[str, Any]) -> Any:
    return await handler(arguments)


async def _first_to_know(handlers: Sequence[Handler], arguments: Mapping[str, Any]) -> Any:
    gone: ChannelClosed | None = None
    for handler in handlers[:-1]:
        try:
            return await handler(arguments)
        except ChannelClosed as error:
            gone = error  # it may be the one that knows
        except ControlError:
            continue  # what is wrong with the arguments the last one will say too
    try:
        return await handlers[-1](arguments)
    except ControlError as error:
        raise gone or error from None


async def _last_of(handlers: Sequence[Handler], arguments: Mapping[str, Any]) -> Any:
    answer = None
    for handler in handlers:
        answer = await handler(arguments)
    return answer

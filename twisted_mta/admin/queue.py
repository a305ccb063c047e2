"""`mta queue`: asks the running server, or without one opens the queue itself."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted_mta.admin.arguments import FILTERS
from twisted_mta.admin.client import ServerDown, call
from twisted_mta.admin.errors import EX_IOERR, EX_TEMPFAIL, EX_USAGE, AdminError
from twisted_mta.admin.paths import config_path
from twisted_mta.config.loader import load_data_directory
from twisted_mta.config.schema import CONTROL, QUEUE
from twisted_mta.core.message import format_date
from twisted_mta.core.schedule import format_duration

#: Seconds that an answer may take: a queue may be long.
_PATIENCE = 3600.0


def list_queue(options: argparse.Namespace) -> int:
    """mta queue list"""
    result = ask(options, "queue.list", _filters(options) | {"limit": options.limit, "after": options.after})
    if not options.json:
        for line in listing_lines(result["messages"], time.time()):
            print(line)
        if len(result["messages"]) == options.limit:
            print(f"There may be more: --after {result['messages'][-1]['id']}, or a higher --limit")
    return 0


def show(options: argparse.Namespace) -> int:
    """mta queue show ID"""
    result = ask(options, "queue.show", {"ids": [options.id]})
    if not options.json:
        for line in listing_lines([result], time.time()):
            print(line)
        print(f"Message-ID: {result['message_id'] or '(none)'}")
        print(f"Brought by: {result['origin'] or '(unknown)'}")
        for line in wishes(result):
            print(line)
        print()
        print(visible(result["text"]) + ("\n[... cut]" if result["cut"] else ""))
    return 0


def wishes(message: Mapping[str, Any]) -> Iterator[str]:
    """What the sender asked for, if anything."""
    if message["deliver_by"]:
        then = "else given back" if message["returns"] else "else the sender is told"
        yield f"Deliver by: {format_date(message['deliver_by'])}, {then}"
    if message["priority"]:
        yield f"Priority: {message['priority']}"
    if message["requires_tls"]:
        yield "Requires TLS on all of its way"


def retry(options: argparse.Namespace) -> int:
    """mta queue retry"""
    return _order(options, "queue.retry", {}, "due now")


def hold(options: argparse.Namespace) -> int:
    """mta queue hold"""
    return _order(options, "queue.hold", {"reason": options.reason}, "held")


def release(options: argparse.Namespace) -> int:
    """mta queue release"""
    return _order(options, "queue.release", {}, "released")


def expire(options: argparse.Namespace) -> int:
    """mta queue expire"""
    return _order(options, "queue.expire", {}, "given up; their senders are told")


def reroute(options: argparse.Namespace) -> int:
    """mta queue reroute"""
    if bool(options.to) == options.back:
        raise AdminError(
            "say where to with --to HOST[:PORT], or --back for the way that the configuration has", EX_USAGE
        )
    where = f"go to {options.to}" if options.to else "go their own way again"
    return _order(options, "queue.reroute", {"to": options.to}, where)


def delete(options: argparse.Namespace) -> int:
    """mta queue delete"""
    return _order(options, "queue.delete", {}, "removed")


def _order(options: argparse.Namespace, command: str, arguments: dict[str, Any], done: str) -> int:
    given = _filters(options)
    if options.ids:
        given["ids"] = options.ids
    if bool(given) == options.all:
        raise AdminError("name queue ids, or filters such as --domain, or --all", EX_USAGE)
    dry = {"dry_run": True} if options.dry_run else {}
    result = ask(options, command, {"all": options.all} | given | arguments | dry)
    messages, recipients = result["messages"], result["recipients"]
    if not options.json:
        found = f"{_count(recipients, 'recipient')} of {_count(messages, 'message')}"
        print(f"{found} would be meant; nothing was done" if options.dry_run else f"{found}: {done}")
        if options.dry_run:
            print("\n".join(result["ids"]))
    return 0 if messages or options.all else 1


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _filters(options: argparse.Namespace) -> dict[str, Any]:
    """The filters that were given."""
    found = {name: getattr(options, name) for name in FILTERS}
    return {name: value for name, value in found.items() if value is not None}


def ask(options: argparse.Namespace, command: str, arguments: Mapping[str, Any]) -> Any:
    """Ask the server, or without one its queue; prints the answer with --json. Raises AdminError."""
    data = load_data_directory(config_path(options))
    try:
        result = call(data / CONTROL, command, arguments, _PATIENCE)
    except ServerDown:
        result = _without_server(data, command, arguments)
    if options.json:
        print(json.dumps(result))
    return result


def _without_server(data: Path, command: str, arguments: Mapping[str, Any]) -> Any:
    """The same handlers on the queue's files, in this thread, while no server can start."""
    with locked(data) as directories:
        return _on_files(directories, command, arguments)


@contextmanager
def locked(data: Path) -> Iterator[Sequence[Path]]:
    """The directories of the queue's parts, which servers are kept from. Raises AdminError if there is one, or no queue."""
    from twisted_mta.service.control import AlreadyRunning
    from twisted_mta.service.lock import DataLock
    from twisted_mta.service.shards import directory_of, shards_in

    if not shards_in(data):
        raise AdminError(f"no server is running, and there is no queue at {data / QUEUE}")
    lock = DataLock(data)
    try:
        lock.acquire()
    except AlreadyRunning as error:
        raise AdminError(f"{error}: try again in a moment", EX_TEMPFAIL) from None
    try:
        yield [directory_of(data, number) for number in shards_in(data)]
    finally:
        lock.release()


def _on_files(directories: Sequence[Path], command: str, arguments: Mapping[str, Any]) -> Any:
    from twisted.internet.defer import Deferred
    from twisted.internet.task import Clock
    from twisted.python.failure import Failure

    from twisted_mta.service.control import ControlError
    from twisted_mta.service.merging import join_all
    from twisted_mta.service.queue_admin import QueueAdmin
    from twisted_mta.service.queue_control import queue_handlers
    from twisted_mta.service.trace_control import trace_handlers
    from twisted_mta.store.queue import SQLiteQueueStore
    from twisted_mta.store.queue.schema import QueueFileError

    clock = Clock()
    clock.advance(time.time())
    stores: list[SQLiteQueueStore] = []
    try:
        for directory in directories:
            # A name of its own: what a server had claimed is for the next one to sort out.
            stores.append(SQLiteQueueStore.inline(directory, clock, owner="admin"))
    except QueueFileError as error:
        raise AdminError(f"no server is running, and the queue can't be opened: {error}", EX_IOERR) from None

    async def run() -> Any:
        try:
            parts = [
                {
                    **queue_handlers(QueueAdmin(store, time.time)),
                    **trace_handlers(store, lambda: stores[0].history.keep),
                }
                for store in stores
            ]
            return await join_all(parts)[command](arguments)
        finally:
            for store in stores:
                await store.close()

    outcome: list[Any] = []
    Deferred.fromCoroutine(run()).addBoth(outcome.append)
    result = outcome[0]
    if not isinstance(result, Failure):
        return result
    if isinstance(result.value, ControlError):
        raise AdminError(str(result.value))
    raise AssertionError("a handler failed") from result.value


def listing_lines(messages: list[dict[str, Any]], now: float) -> Iterator[str]:
    """For people: a line a message, and one a recipient below it."""
    if not messages:
        yield "The queue is empty."
        return
    for message in messages:
        age = format_duration(max(0.0, now - message["arrived"]))
        sender = visible(message["sender"] or "<>")
        held = message["held_until"]
        until = f", held until {format_date(held)}" if held > now else ""
        if message["hold"]:
            until += f", on hold: {visible(message['hold'])}"
        yield f"{message['id']}  {message['size']} octets, {age} old, from {sender}{until}"
        for recipient in message["recipients"]:
            yield f"    {_recipient(recipient, now)}"
    count = sum(len(message["recipients"]) for message in messages)
    if len(messages) > 1:
        yield f"{len(messages)} messages, {count} recipients"


def _recipient(recipient: dict[str, Any], now: float) -> str:
    wait = recipient["next_attempt"] - now
    when = "next attempt now" if wait <= 0 else f"next attempt in {format_duration(wait)}"
    if recipient["status"] == "held":
        when = "on hold"
    by = recipient["transport"] + (f" by {recipient['hop']}" if recipient["hop"] else "")
    if recipient["target"]:
        by += f" {visible(recipient['target'])}"
    sender = f", from {visible(recipient['sender'])}" if recipient["sender"] else ""
    text = f"{visible(recipient['address'])} ({by}{sender}): {when}"
    if recipient["attempts"]:
        text += f", {recipient['attempts']} made"
    if recipient["last_reply"]:  # also of what was put off untried, or can't be read
        text += f": {visible(recipient['last_reply'])}"
    return text


def visible(text: str) -> str:
    """What others wrote must not move the administrator's cursor."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\ufffd"
        for character in text.replace("\r\n", "\n")
    )

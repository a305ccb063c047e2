"""`mta queue`: asks the running server, or without one opens the queue itself."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twisted_mta.admin.client import ServerDown, call
from twisted_mta.admin.errors import EX_IOERR, EX_TEMPFAIL, EX_USAGE, AdminError
from twisted_mta.admin.paths import config_path
from twisted_mta.config.loader import load_data_directory
from twisted_mta.config.schema import CONTROL, QUEUE
from twisted_mta.core.message import format_date
from twisted_mta.core.schedule import format_duration


def list_queue(options: argparse.Namespace) -> int:
    """mta queue list"""
    result = _ask(options, "queue.list", {"limit": options.limit})
    if not options.json:
        for line in listing_lines(result["messages"], time.time()):
            print(line)
    return 0


def show(options: argparse.Namespace) -> int:
    """mta queue show ID"""
    result = _ask(options, "queue.show", {"ids": [options.id]})
    if not options.json:
        for line in listing_lines([result], time.time()):
            print(line)
        print(f"Message-ID: {result['message_id'] or '(none)'}")
        print(f"Brought by: {result['origin'] or '(unknown)'}")
        for line in wishes(result):
            print(line)
        print()
        print(_visible(result["text"]) + ("\n[... cut]" if result["cut"] else ""))
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
    """mta queue retry ID... | --all"""
    if bool(options.ids) == options.all:
        raise AdminError("name queue ids, or --all", EX_USAGE)
    result = _ask(options, "queue.retry", {"all": True} if options.all else {"ids": options.ids})
    return _tell(options, result["recipients"], ("recipient is due now", "recipients are due now"))


def delete(options: argparse.Namespace) -> int:
    """mta queue delete ID..."""
    result = _ask(options, "queue.delete", {"ids": options.ids})
    return _tell(options, result["messages"], ("message removed", "messages removed"))


def _tell(options: argparse.Namespace, count: int, what: tuple[str, str]) -> int:
    """`what` is the singular and the plural."""
    if not options.json:
        print(f"{count} {what[0] if count == 1 else what[1]}")
    return 0 if count or getattr(options, "all", False) else 1


def _ask(options: argparse.Namespace, command: str, arguments: Mapping[str, Any]) -> Any:
    data = load_data_directory(config_path(options))
    try:
        result = call(data / CONTROL, command, arguments)
    except ServerDown:
        result = _without_server(data / QUEUE, command, arguments)
    if options.json:
        print(json.dumps(result))
    return result


def _without_server(directory: Path, command: str, arguments: Mapping[str, Any]) -> Any:
    """The same handlers on the queue's files, in this thread, while no server can start."""
    from twisted_mta.service.control import AlreadyRunning
    from twisted_mta.service.lock import DataLock

    if not directory.is_dir():
        raise AdminError(f"no server is running, and there is no queue at {directory}")
    lock = DataLock(directory.parent)
    try:
        lock.acquire()
    except AlreadyRunning as error:
        raise AdminError(f"{error}: try again in a moment", EX_TEMPFAIL) from None
    try:
        return _on_files(directory, command, arguments)
    finally:
        lock.release()


def _on_files(directory: Path, command: str, arguments: Mapping[str, Any]) -> Any:
    from twisted.internet.defer import Deferred
    from twisted.internet.task import Clock
    from twisted.python.failure import Failure

    from twisted_mta.service.control import ControlError
    from twisted_mta.service.queue_control import QueueFiles, queue_handlers
    from twisted_mta.store.queue import SQLiteQueueStore
    from twisted_mta.store.queue.schema import QueueFileError

    clock = Clock()
    clock.advance(time.time())
    try:
        # A name of its own: what a server had claimed is for the next one to sort out.
        store = SQLiteQueueStore.inline(directory, clock, owner="admin")
    except QueueFileError as error:
        raise AdminError(f"no server is running, and the queue can't be opened: {error}", EX_IOERR) from None

    async def run() -> Any:
        try:
            return await queue_handlers(QueueFiles(store, time.time))[command](arguments)
        finally:
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
        sender = _visible(message["sender"] or "<>")
        held = message["held_until"]
        until = f", held until {format_date(held)}" if held > now else ""
        yield f"{message['id']}  {message['size']} octets, {age} old, from {sender}{until}"
        for recipient in message["recipients"]:
            yield f"    {_recipient(recipient, now)}"
    count = sum(len(message["recipients"]) for message in messages)
    if len(messages) > 1:
        yield f"{len(messages)} messages, {count} recipients"


def _recipient(recipient: dict[str, Any], now: float) -> str:
    wait = recipient["next_attempt"] - now
    when = "now" if wait <= 0 else f"in {format_duration(wait)}"
    text = f"{_visible(recipient['address'])} ({recipient['transport']}): next attempt {when}"
    if recipient["attempts"]:
        text += f", {recipient['attempts']} made: {_visible(recipient['last_reply'])}"
    return text


def _visible(text: str) -> str:
    """What others wrote must not move the administrator's cursor."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\ufffd"
        for character in text.replace("\r\n", "\n")
    )

"""`mta trace`: what happened to a message, from where it came to the last mailbox."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any

from twisted_mta.admin.errors import EX_USAGE, AdminError
from twisted_mta.admin.queue import ask, visible
from twisted_mta.core.message import format_date
from twisted_mta.core.schedule import format_duration


def trace(options: argparse.Namespace) -> int:
    """mta trace WHAT"""
    result = ask(options, "trace", _arguments(options, time.time()))
    if not options.json:
        for tree in result["trees"]:
            for line in tree_lines(tree):
                print(line)
            print()
        if not result["trees"]:
            print(nothing_found(result["kept"]))
        if result["more"]:
            print("There is more than is shown here: ask for less.")
    return 0 if result["trees"] else 1


def nothing_found(kept: float) -> str:
    """For people: `kept` is the seconds that the history is."""
    if not kept:
        return "Not found. No history is kept ([queue] history = 0): only what is in the queue is known."
    return f"Not found. The history is kept for {format_duration(kept)} ([queue] history)."


def _arguments(options: argparse.Namespace, now: float) -> dict[str, Any]:
    by_time = [value for value in (options.since, options.start, options.end) if value is not None]
    if (options.what is None) == (not by_time):
        raise AdminError(
            "name a queue id, a Message-ID or an address, or a time with --since or --from", EX_USAGE
        )
    if options.what is not None:
        return {"what": options.what, "transcripts": options.transcripts}
    start = now - options.since if options.since is not None else options.start or 0.0
    return {
        "start": start,
        "end": now if options.end is None else options.end,
        "transcripts": options.transcripts,
    }


def tree_lines(message: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """A tree of the answer for people."""
    indent = "  " * depth
    for line in _message(message):
        yield indent + visible(line)
    for child in message["children"]:
        yield from tree_lines(child, depth + 2)


def _message(message: Mapping[str, Any]) -> Iterator[str]:
    """What there is to tell of one message."""
    yield f"{message['id']}  {format_date(message['arrived'])}, {_source(message)}"
    name = f", Message-ID <{message['message_id']}>" if message["message_id"] else ""
    yield f"  from <{message['sender']}>, {message['size']} octets{name}"
    if message["arrival"]["checks"]:
        yield f"  passed the checks: {', '.join(message['arrival']['checks'])}"
    if message["hold"]:
        yield f"  on hold: {message['hold']}"
    for event in message["events"]:
        if not event["rows"]:
            yield "    " + _event(event)
    for recipient in message["recipients"]:
        yield from _recipient(message, recipient)
    for one in message["transcripts"]:
        yield f"  session with {one['remote']}, {format_date(one['time'])}:"
        for line in one["text"].splitlines():
            yield f"    {line}"


def _source(message: Mapping[str, Any]) -> str:
    arrival = message["arrival"]
    if not arrival["address"]:
        return message["origin"] or "made here"
    client = f"[{arrival['address']}]"
    said = f"helo {arrival['helo']}, {arrival['protocol']}" + (
        f", {arrival['tls']}" if arrival["tls"] else ""
    )
    login = f", login {arrival['login']}" if arrival["login"] else ""
    host = f"{arrival['host']} " if arrival["host"] else ""
    return f"received from {host}{client} ({said}){login}"


def _recipient(message: Mapping[str, Any], recipient: Mapping[str, Any]) -> Iterator[str]:
    names = dict.fromkeys((recipient["original"], *recipient["via"], recipient["address"]))
    target = f" {recipient['target']}" if recipient["target"] else ""
    sender = f", from <{recipient['sender']}>" if recipient["sender"] else ""
    yield f"  to {' -> '.join(names)} ({recipient['transport']}{target}){sender}"
    for event in message["events"]:
        if recipient["row"] in event["rows"]:
            yield from _attempt(event["time"], _event(event), event["data"])
    if recipient["state"] == "queued":
        hop = f", by {recipient['hop']}" if recipient["hop"] else ""
        yield f"    in the queue, next attempt {format_date(recipient['next_attempt'])}{hop}"
    else:
        told = recipient["state"] + _by(recipient) + (f": {recipient['reply']}" if recipient["reply"] else "")
        yield from _attempt(recipient["ended"], _dated(recipient["ended"], told), recipient)


def _attempt(when: float, line: str, data: Mapping[str, Any]) -> Iterator[str]:
    yield "    " + line
    contacts = data.get("contacts", ())
    for one in contacts:
        tls = f", {one['tls']}" if one.get("tls") else ""
        proven = ", certificate verified" if one.get("verified") else ""
        said = f": {one['reply']}" if len(contacts) > 1 else ""
        yield f"      {one['remote']}, {one['took']:.1f} s{tls}{proven}{said}"


def _by(data: Mapping[str, Any]) -> str:
    remote = f" by {data['remote']}" if data.get("remote") else ""
    took = data.get("took") or 0.0
    return remote + (f" after {took:.1f} s" if took >= 0.1 else "")


def _event(event: Mapping[str, Any]) -> str:
    data = event["data"]
    told = event["kind"] + _by(data)
    for name, before in (("reason", ": "), ("hop", " to "), ("reply", ": ")):
        if data.get(name):
            told += before + data[name]
    return _dated(event["time"], told)


def _dated(when: float, told: str) -> str:
    return f"{format_date(when)}  {told}" if when else told

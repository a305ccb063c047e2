"""`mta explain`: what would become of a mail, and why, without sending any."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted_mta.admin.client import ServerDown, call
from twisted_mta.admin.errors import AdminError
from twisted_mta.admin.paths import config_path
from twisted_mta.config.loader import load_data_directory
from twisted_mta.config.schema import CONTROL

#: Seconds that the server may take: it looks up hosts.
TIMEOUT = 300.0
#: Octets of a message whose header is looked at.
MAX_MESSAGE = 1 << 18

_MARKS = {"refused": "x ", "later": "? "}


def explain(options: argparse.Namespace) -> int:
    """mta explain ADDRESS...: exit code 0 if the mail would be accepted, for each of them, 1 if not."""
    path = config_path(options)
    asked = questions(options)
    status = 0
    for number, result in enumerate(_offline(path, asked) if options.offline else _by_server(path, asked)):
        if options.json:
            print(json.dumps(result))
        else:
            if number:
                print()
            for line in lines(result):
                print(line)
        status |= not result["accepted"]
    return status


def questions(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The arguments of the `explain` command of the control socket, for each address."""
    given = {
        "sender": options.sender,
        "ip": options.ip,
        "helo": options.helo,
        "login": options.auth,
        "size": options.size,
        "role": options.role,
        "tls": options.tls,
        **_message(options),
    }
    return [{"recipient": address, **given} for address in options.addresses]


def _by_server(path: Path, asked: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    data = load_data_directory(path)
    for each in asked:
        try:
            yield call(data / CONTROL, "explain", each, TIMEOUT)
        except ServerDown as error:
            raise AdminError(
                f"{error}; --offline explains what can be told without it", error.status
            ) from None


def _offline(path: Path, asked: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
    from twisted_mta.service.control import ControlError
    from twisted_mta.service.explain.offline import explain_offline

    try:
        return explain_offline(path, asked)
    except ControlError as error:
        raise AdminError(str(error)) from None


def _message(options: argparse.Namespace) -> dict[str, Any]:
    """The header section of the message that is named, and the size of the whole."""
    if options.message is None:
        return {}
    from twisted_mta.core.message import header_length

    data = sys.stdin.buffer.read() if options.message == "-" else Path(options.message).read_bytes()
    data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    header = data[: min(header_length(data), MAX_MESSAGE)]
    size = len(data) if options.size is None else options.size
    return {"message": header.decode("utf-8", "surrogateescape"), "size": size}


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """For people: the tree, and what it comes to."""
    for warning in result["warnings"]:
        yield f"warning: {_visible(warning)}"
    yield f"Mail from <{_visible(result['sender'])}> to <{_visible(result['recipient'])}>"
    for step in result["steps"]:
        if step["kind"] != "command" or step.get("finding") != "passes" or step.get("children"):
            yield from _tree(step, 1)
    yield ""
    yield from _summary(result)


def _tree(step: Mapping[str, Any], depth: int) -> Iterator[str]:
    mark = _MARKS.get(step.get("finding", ""), "")
    where = f"   ({_visible(step['where'])})" if step.get("where") else ""
    yield f"{'  ' * depth}{mark}{_visible(step['text'])}{where}"
    for child in step.get("children", ()):
        yield from _tree(child, depth + 1)


def _summary(result: Mapping[str, Any]) -> Iterator[str]:
    if not result["accepted"]:
        yield f"Refused: {_visible(result['reply'])}"
        return
    failures = result["failures"]
    remote = set(result["remote"]).difference(each["address"] for each in failures)
    parts = []
    places = set(result["places"])
    programs = {word: places & set(_named(result["steps"], word)) for word in ("command", "handler")}
    mailboxes = places.difference(*programs.values())
    if mailboxes:
        parts.append(_count(len(mailboxes), "mailbox", "mailboxes") + " here")
    parts += [_count(len(found), word, f"{word}s") for word, found in programs.items() if found]
    if remote:
        parts.append(_count(len(remote), "address", "addresses") + " at other hosts")
    *first, last = parts or ["nobody"]
    yield f"Accepted; goes to {', '.join(first) + ' and ' if first else ''}{last}."
    for each in failures:
        word = "Fails" if each["reply"].startswith("5") else "Waits"
        yield f"{word}: {_visible(each['address'])}: {_visible(each['reply'])}"
    if not result["complete"]:
        yield "Not everything was followed: there is too much of it."


def _named(steps: Iterable[Mapping[str, Any]], key: str) -> Iterator[str]:
    """What bears that key in the data of the steps and of all below them."""
    for step in steps:
        if key in step.get("data", ()):
            yield step["data"][key]
        yield from _named(step.get("children", ()), key)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _visible(text: str) -> str:
    """What others wrote must not move the administrator's cursor."""
    return "".join(character if character.isprintable() else "�" for character in text)

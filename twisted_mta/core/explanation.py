"""What a decision was and why, as a tree: for an administrator, and as JSON for programs. `mta explain` shows them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import attrs

from twisted_mta.core.values import value


class Finding(enum.StrEnum):
    """What a note says of the mail."""

    #: Nothing: it tells what is.
    FACT = "fact"
    PASSES = "passes"
    #: Refused for now, or to be tried again.
    LATER = "later"
    #: Refused for good, or leads nowhere.
    REFUSED = "refused"


@value
class Note:
    """One decision or fact. `kind` names what it is about, for programs; `text` is one line for people."""

    kind: str
    text: str
    finding: Finding = Finding.FACT
    #: What decides: a key of the configuration, or a file and line.
    where: str = ""
    #: The same for programs: what JSON can carry.
    data: Mapping[str, Any] = attrs.field(factory=dict)
    children: tuple[Note, ...] = ()


def as_json(note: Note) -> dict[str, Any]:
    """The tree as JSON; what is empty is left out."""
    found: dict[str, Any] = {"kind": note.kind, "text": note.text}
    if note.finding is not Finding.FACT:
        found["finding"] = note.finding.value
    if note.where:
        found["where"] = note.where
    if note.data:
        found["data"] = dict(note.data)
    if note.children:
        found["children"] = [as_json(child) for child in note.children]
    return found

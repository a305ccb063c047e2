"""The answer to where mail for an address goes, and how it came about."""

from __future__ import annotations

import enum
from collections.abc import Iterator

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.queue import Transport
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value


class Kind(enum.StrEnum):
    """What an address turned out to be, or why it leads nowhere."""

    REMOTE = "remote"
    RELAY = "relay domain"
    DOMAIN_ALIAS = "domain alias"
    ACCOUNT = "account"
    LIST = "list"
    LIST_OWNER = "list owner"
    ALIAS = "alias"
    PATTERN = "pattern"
    INCLUDE = "include"
    FILE = "file"
    COMMAND = "command"
    HANDLER = "handler"
    BLACKHOLE = "blackhole"
    RETURN = "returns to"
    RULES = "rules of the user"
    EXTRA = "address of the user"
    VACATION = "vacation reply"
    ORDERS = "rules by mail"
    POSTMASTER = "postmaster"
    CATCH_ALL = "catch-all"
    DUPLICATE = "duplicate"
    FAIL = "refused"
    DEFER = "put off"
    FORGED = "not ours"
    UNKNOWN = "unknown user"
    LOOP = "alias loop"
    LIMIT = "limit"
    NOBODY = "leads to nobody"
    SIZE = "too large"


@value
class Step:
    """One node of the tree that shows how an address was expanded."""

    #: The address, or the target as it is written: ":include:/path", "|command", "/file", ":fail: text".
    name: str
    kind: Kind
    #: What led here: "aliases:12", or "" for the address asked for.
    source: str = ""
    children: tuple[Step, ...] = ()


@value
class Destination:
    """One place where a copy goes. `original` is the address asked for."""

    address: Address
    transport: Transport
    original: Address
    #: The aliases and :include: files on the way; see `NewRecipient.via`.
    via: tuple[str, ...] = attrs.field(default=(), eq=False)
    #: The path, command line or handler, see `Transport`; "" for those that go by the address.
    target: str = ""
    #: The envelope sender for this copy: owner-NAME, where the alias NAME on the way has one. None: that of the message.
    sender: Address | None = None


@value
class Problem:
    """An address that leads nowhere. `text` is a sentence for the sender, `source` where it was written ("aliases:12")."""

    kind: Kind
    address: Address
    text: str
    source: str = ""
    #: As in Destination: who is told.
    sender: Address | None = None

    @property
    def reply(self) -> Reply:
        """As an answer to RCPT."""
        code, status = _REPLIES[self.kind]
        return Reply(code, status, self.text)


_REPLIES = {
    Kind.UNKNOWN: (550, "5.1.1"),  # RFC 3463 §3.2: bad destination mailbox address
    Kind.LOOP: (550, "5.4.6"),  # RFC 3463 §3.5: routing loop detected
    Kind.LIMIT: (550, "5.2.4"),  # RFC 3463 §3.3: mailing list expansion problem
    Kind.NOBODY: (450, "4.2.4"),
    Kind.FAIL: (550, "5.2.1"),  # RFC 3463 §3.3: mailbox disabled, not accepting messages
    Kind.SIZE: (552, "5.2.3"),  # RFC 3463 §3.3: message length exceeds administrative limit
    Kind.DEFER: (450, "4.2.1"),
    Kind.FORGED: (550, "5.7.1"),  # RFC 3463 §3.8: delivery not authorized, message refused
}


@value
class Plan:
    """Where mail for one address goes: without duplicates, in the order of the files. Where there are problems the
    rest still goes on."""

    recipients: tuple[Destination, ...]
    problems: tuple[Problem, ...]
    root: Step


def render(step: Step, depth: int = 0) -> Iterator[str]:
    """The lines of a tree of steps for a person, two spaces a level."""
    source = f"  ({step.source})" if step.source else ""
    yield f"{'  ' * depth}{step.name}: {step.kind}{source}"
    for child in step.children:
        yield from render(child, depth + 1)

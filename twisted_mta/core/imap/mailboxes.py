"""Commands about mailboxes. RFC 3501 §6.3, §6.4.1, §6.4.2; RFC 2177, RFC 3348, RFC 3691, RFC 7889."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from twisted_mta.core.effects import BodyChunk
from twisted_mta.core.imap import questions as q
from twisted_mta.core.imap.entries import Changes, Figures, Listed
from twisted_mta.core.imap.grammar import BadSyntax, Scanner
from twisted_mta.core.imap.names import DELIMITER, decode_name, encode_name, name_matcher
from twisted_mta.core.imap.responses import quoted
from twisted_mta.core.imap.session import Session
from twisted_mta.core.imap.view import View
from twisted_mta.core.imap.wire import Chunk, Command, Event, LiteralAhead

_MAX_PATTERN = 1000


# --- SELECT and its end --------------------------------------------------------------------------


def select(session: Session, scanner: Scanner, read_only: bool = False) -> None:
    """RFC 3501 §6.3.1."""
    name = scanner.mailbox()
    scanner.end()
    session.deselect()  # a failing SELECT leaves no mailbox selected

    def opened(answer: q.Opened) -> None:
        session.select(name, View(answer))
        session.ok("selected", lambda: b"READ-ONLY" if answer.read_only else b"READ-WRITE")

    session.ask(q.Select(name, read_only), opened)


examine = partial(select, read_only=True)


def leave(session: Session, scanner: Scanner, expunge: bool) -> None:
    """CLOSE and UNSELECT: nothing is told of what CLOSE removes (RFC 3501 §6.4.2)."""
    scanner.end()
    assert session.view is not None
    session.ask(
        q.Leave(expunge and not session.view.read_only), lambda _: session.ok("there is no mailbox selected")
    )


close = partial(leave, expunge=True)
unselect = partial(leave, expunge=False)


def idle(session: Session, scanner: Scanner) -> None:
    """RFC 2177."""
    scanner.end()
    if session.view is None:
        session.continuation(b"idling")
        session.listen(lambda event: _idle_ended(session, event), raw=True)
        return

    def watching(changes: Changes) -> None:
        session.continuation(b"idling")
        session.listen(lambda event: _idle_ended(session, event), raw=True)
        session.idle(changes)

    session.ask(q.BeginIdle(), watching)


def _idle_ended(session: Session, event: Event) -> None:
    session.listen(None)
    finish = partial(session.ok, "no longer idle")
    if not isinstance(event, Command) or event.data.upper() != b"DONE":
        finish = partial(session.bad, "DONE expected")
    if session.view is None:
        finish()
    else:
        session.ask(q.EndIdle(), lambda _: finish())


# --- The tree of mailboxes -----------------------------------------------------------------------


def create(session: Session, scanner: Scanner) -> None:
    """RFC 3501 §6.3.3."""
    name = scanner.mailbox()
    scanner.end()
    # A delimiter at the end says that there will be children; we need no such declaration.
    session.ask(q.Create(name.removesuffix(DELIMITER)), lambda _: session.ok("created"))


def delete(session: Session, scanner: Scanner) -> None:
    """RFC 3501 §6.3.4."""
    name = scanner.mailbox()
    scanner.end()

    def deleted(_: object) -> None:
        if session.selected == name:
            session.lose_mailbox()
        session.ok("deleted")

    session.ask(q.Delete(name), deleted)


def rename(session: Session, scanner: Scanner) -> None:
    """RFC 3501 §6.3.5."""
    old, new = scanner.mailbox(), scanner.mailbox()
    scanner.end()

    def renamed(_: object) -> None:
        if old != "INBOX" and f"{session.selected}/".startswith(f"{old}/"):
            session.lose_mailbox()
        session.ok("renamed")

    session.ask(q.Rename(old, new), renamed)


def subscribe(session: Session, scanner: Scanner, on: bool = True) -> None:
    """RFC 3501 §6.3.6, §6.3.7."""
    name = scanner.mailbox()
    scanner.end()
    session.ask(q.Subscribe(name, on), lambda _: session.ok("noted"))


unsubscribe = partial(subscribe, on=False)


def _pattern(scanner: Scanner) -> bytes:
    """Reference and pattern of LIST and LSUB. RFC 3501 §6.3.8: the reference goes before the pattern."""
    scanner.space()
    reference = scanner.astring()
    scanner.space()
    pattern = scanner.list_mailbox()
    scanner.end()
    if len(reference) + len(pattern) > _MAX_PATTERN:
        raise BadSyntax("the pattern is too long")
    return reference + pattern if pattern else b""


def _row(command: bytes, attributes: bytes, wire_name: bytes) -> bytes:
    return command + b" (" + attributes + b') "/" ' + quoted(wire_name)


def list_mailboxes(session: Session, scanner: Scanner) -> None:
    """RFC 3501 §6.3.8."""
    pattern = _pattern(scanner)
    if not pattern:
        session.untagged(_row(b"LIST", b"\\Noselect", b""))
        session.ok("that is the hierarchy delimiter")
        return

    def answered(rows: Sequence[Listed]) -> None:
        matches = name_matcher(pattern)
        for row in rows:
            wire_name = encode_name(row.name)
            if matches(wire_name):
                children = b"\\HasChildren" if row.has_children else b"\\HasNoChildren"  # RFC 3348 §3
                session.untagged(
                    _row(b"LIST", children if row.selectable else b"\\Noselect " + children, wire_name)
                )
        session.ok("that is all")

    session.ask(q.ListMailboxes(), answered)


def list_subscriptions(session: Session, scanner: Scanner) -> None:
    """RFC 3501 §6.3.9."""
    pattern = _pattern(scanner)

    def answered(names: Sequence[str]) -> None:
        matches = name_matcher(pattern)
        found: dict[bytes, bytes] = {}
        for name in names:
            wire_name = encode_name(name)
            if matches(wire_name):
                found[wire_name] = b""
            elif pattern.endswith(b"%"):
                # A level above a subscribed one shows, as it would match if the pattern went deeper.
                levels = wire_name.split(b"/")
                for depth in range(1, len(levels)):
                    parent = b"/".join(levels[:depth])
                    if matches(parent):
                        found.setdefault(parent, b"\\Noselect")
        for wire_name, attributes in sorted(found.items()):
            session.untagged(_row(b"LSUB", attributes, wire_name))
        session.ok("that is all")

    session.ask(q.ListSubscriptions(), answered)


_FIGURES: dict[bytes, Callable[[Figures], int]] = {
    b"MESSAGES": lambda figures: figures.messages,
    b"RECENT": lambda figures: figures.recent,
    b"UIDNEXT": lambda figures: figures.uid_next,
    b"UIDVALIDITY": lambda figures: figures.uid_validity,
    b"UNSEEN": lambda figures: figures.unseen,
}


def status(session: Session, scanner: Scanner) -> None:
    """RFC 3501 §6.3.10; APPENDLIMIT is of RFC 7889 §3.1."""
    name = scanner.mailbox()
    scanner.space()
    items = [scanner.keyword() for _ in scanner.items()]
    scanner.end()
    if not items or any(item not in _FIGURES and item != b"APPENDLIMIT" for item in items):
        raise BadSyntax("there is no such status item")

    def answered(figures: Figures) -> None:
        values = {item: figure(figures) for item, figure in _FIGURES.items()}
        values[b"APPENDLIMIT"] = session.settings.append_limit
        pairs = b" ".join(b"%s %d" % (item, values[item]) for item in dict.fromkeys(items))
        session.untagged(b"STATUS " + quoted(encode_name(name)) + b" (" + pairs + b")")
        session.ok("that is all")

    session.ask(q.Status(name), answered)


# --- APPEND --------------------------------------------------------------------------------------


def append(session: Session, scanner: Scanner) -> None:
    """An APPEND that ends before its message: with it, it would have come to `append_literal`."""
    raise BadSyntax("APPEND needs a message as a literal")


def append_literal(session: Session, scanner: Scanner, ahead: LiteralAhead) -> bool:
    """A literal is announced in an APPEND. False: it is only the mailbox's name. RFC 3501 §6.3.11.

    Raises BadSyntax or BadName for what is wrong before it.
    """
    scanner.space()
    if scanner.done:
        return False
    name = decode_name(scanner.astring())
    scanner.space()
    flags: tuple[str, ...] = ()
    internal_date: float | None = None
    if scanner.at(b"("):
        flags = scanner.flag_list()
        scanner.space()
    if scanner.at(b'"'):
        internal_date = scanner.date_time()
        scanner.space()
    scanner.end()
    if ahead.size == 0:
        raise BadSyntax("an empty message is none")
    if ahead.size > session.settings.append_limit:
        session.refuse_literal(ahead)
        session.no(f"a message has at most {session.settings.append_limit} octets", "TOOBIG")  # RFC 7889 §4
        return True

    def begin(_: object) -> None:
        session.stream_literal(ahead)
        session.listen(lambda event: _append_event(session, event))

    def refused(answer: q.Refused) -> None:
        session.refuse_literal(ahead)
        session.no(answer.text, answer.code)

    question = q.BeginAppend(name=name, flags=flags, internal_date=internal_date, size=ahead.size)
    session.ask(question, begin, refused=refused)
    return True


def _append_event(session: Session, event: Event) -> None:
    if isinstance(event, Chunk):
        session.effect(BodyChunk(event.data))
        return
    session.listen(None)
    if event == Command(b""):
        session.ask(q.FinishAppend(keep=True), lambda stored: _appended(session, stored))
        return
    if isinstance(event, LiteralAhead):
        session.refuse_literal(event)
    session.ask(q.FinishAppend(keep=False), lambda _: session.bad("APPEND takes one message"))


def _appended(session: Session, stored: q.Appended) -> None:
    # RFC 4315 §3
    session.ok("stored", lambda: b"APPENDUID %d %d" % (stored.uid_validity, stored.uid))

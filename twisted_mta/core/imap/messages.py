"""Commands about the messages of the selected mailbox. RFC 3501 §6.4, RFC 4315."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from twisted_mta.core.imap import questions as q
from twisted_mta.core.imap.entries import Entry
from twisted_mta.core.imap.fetch import Item, parse_items
from twisted_mta.core.imap.grammar import BadSyntax, Scanner
from twisted_mta.core.imap.responses import number_set
from twisted_mta.core.imap.search import CHARSETS, BadCharset, bind, parse_search
from twisted_mta.core.imap.session import Session
from twisted_mta.core.imap.view import View

_UID = Item(b"UID")
_STORE_MODES = {b"FLAGS": "set", b"+FLAGS": "add", b"-FLAGS": "remove"}


def _view(session: Session) -> View:
    assert session.view is not None  # the table admits these commands only with a mailbox selected
    return session.view


def _uids(session: Session, scanner: Scanner, by_uid: bool) -> tuple[int, ...]:
    scanner.space()
    uids = _view(session).uids(scanner.sequence_set(), by_uid)
    if uids is None:
        raise BadSyntax("there is no message of that number")
    return uids


def _writable(session: Session) -> bool:
    if _view(session).read_only:
        session.no("the mailbox is open for reading only", "READ-ONLY")
        return False
    return True


def fetch(session: Session, scanner: Scanner, by_uid: bool = False) -> None:
    """RFC 3501 §6.4.5."""
    view = _view(session)
    uids = _uids(session, scanner, by_uid)
    scanner.space()
    items = parse_items(scanner)
    scanner.end()
    if by_uid and _UID not in items:
        items = (_UID, *items)  # RFC 3501 §6.4.8
    if not uids:
        session.ok("there are no such messages")
        return

    def fetched(part: Sequence[q.Fetched]) -> None:
        for message in part:
            number = view.number(message.uid)
            assert number is not None  # it was asked for, and nothing is expunged meanwhile
            session.untagged(b"%d FETCH (" % number + message.data + b")")

    def done(answer: q.FetchDone) -> None:
        if answer.missing:
            session.no("some of the messages are gone", "EXPUNGEISSUED")  # RFC 5530 §3
        else:
            session.ok("that is all")

    mark_seen = not view.read_only and any(not item.peek for item in items)
    session.ask(q.Fetch(uids, items, mark_seen), done, part=fetched)


def store(session: Session, scanner: Scanner, by_uid: bool = False) -> None:
    """RFC 3501 §6.4.6."""
    view = _view(session)
    uids = _uids(session, scanner, by_uid)
    scanner.space()
    name = scanner.keyword()
    silent = name.endswith(b".SILENT")
    mode = _STORE_MODES.get(name.removesuffix(b".SILENT"))
    if mode is None:
        raise BadSyntax("FLAGS, +FLAGS or -FLAGS expected")
    scanner.space()
    flags = scanner.flags()
    scanner.end()
    if not _writable(session):
        return
    if not uids:
        session.ok("there are no such messages")
        return

    def stored(entries: Sequence[Entry]) -> None:
        session.send(view.flags_changed(entries, with_uid=by_uid, silent=silent))
        session.ok("stored")

    session.ask(q.Store(uids, flags, mode), stored)


def copy(session: Session, scanner: Scanner, by_uid: bool = False) -> None:
    """RFC 3501 §6.4.7."""
    uids = _uids(session, scanner, by_uid)
    target = scanner.mailbox()
    scanner.end()
    if not uids:
        session.ok("there are no such messages")
        return

    def copied(answer: q.Copied) -> None:
        # RFC 4315 §3
        code = b"COPYUID %d %s %s" % (answer.uid_validity, number_set(uids), number_set(answer.uids))
        session.ok("copied", lambda: code)

    session.ask(q.Copy(uids, target), copied)


def expunge(session: Session, scanner: Scanner, by_uid: bool = False) -> None:
    """RFC 3501 §6.4.3; with UIDs RFC 4315 §2.1."""
    view = _view(session)
    uids = _uids(session, scanner, by_uid) if by_uid else None
    scanner.end()
    if not _writable(session):
        return

    def expunged(gone: Sequence[int]) -> None:
        session.send(view.expunge(gone))
        session.ok("expunged")

    session.ask(q.Expunge(uids), expunged)


def search(session: Session, scanner: Scanner, by_uid: bool = False) -> None:
    """RFC 3501 §6.4.4."""
    view = _view(session)
    scanner.space()
    try:
        key = parse_search(scanner)
    except BadCharset:
        session.no("that charset is not supported", f"BADCHARSET ({b' '.join(CHARSETS).decode('ascii')})")
        return
    found: list[int] = []

    def done(uids: Sequence[int]) -> None:
        found.extend(uids)
        numbers = found if by_uid else [number for uid in found if (number := view.number(uid))]
        session.untagged(b" ".join([b"SEARCH", *(b"%d" % number for number in numbers)]))
        session.ok("that is all")

    session.ask(q.Search(bind(key, view.uid_ranges, view.highest_uid)), done, part=found.extend)


uid_fetch = partial(fetch, by_uid=True)
uid_store = partial(store, by_uid=True)
uid_copy = partial(copy, by_uid=True)
uid_expunge = partial(expunge, by_uid=True)
uid_search = partial(search, by_uid=True)

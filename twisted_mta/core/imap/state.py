"""Which command is allowed in which state, and where it leads: the one table. RFC 3501 §3."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import attrs

from twisted_mta.core.imap import access, mailboxes, messages

if TYPE_CHECKING:
    from twisted_mta.core.imap.grammar import Scanner
    from twisted_mta.core.imap.server import ImapServer


class State(enum.Flag):
    """Where a session stands; also sets of states."""

    NOT_AUTHENTICATED = enum.auto()
    AUTHENTICATED = enum.auto()
    SELECTED = enum.auto()
    LOGOUT = enum.auto()


NEW = State.NOT_AUTHENTICATED
INSIDE = State.AUTHENTICATED | State.SELECTED
SELECTED = State.SELECTED
ANY = NEW | INSIDE


@attrs.frozen
class Rule:
    """One command."""

    #: Reads the arguments and acts. Raises BadSyntax and BadName.
    run: Callable[[ImapServer, Scanner], None]
    #: The states in which it may be given.
    allowed: State
    #: The state that a tagged OK leads to; None: stays.
    ok: State | None = None
    #: Whether to tell, before the tagged response, what happened to the mailbox. Never so for FETCH, STORE and SEARCH
    #: by message numbers (RFC 3501 §7.4.1); nor for UID FETCH and UID STORE, which clients send by the hundred.
    tells: bool = False
    #: Whether it carries a password, so that it is refused on a plaintext connection.
    secret: bool = False


COMMANDS: Mapping[bytes, Rule] = {
    b"CAPABILITY": Rule(access.capability, ANY),
    b"NOOP": Rule(access.noop, ANY, tells=True),
    b"LOGOUT": Rule(access.logout, ANY, ok=State.LOGOUT),
    b"ID": Rule(access.identify, ANY),
    b"STARTTLS": Rule(access.starttls, NEW),
    b"LOGIN": Rule(access.login, NEW, ok=State.AUTHENTICATED, secret=True),
    b"AUTHENTICATE": Rule(access.authenticate, NEW, ok=State.AUTHENTICATED, secret=True),
    b"NAMESPACE": Rule(access.namespace, INSIDE),
    b"SELECT": Rule(mailboxes.select, INSIDE, ok=State.SELECTED),
    b"EXAMINE": Rule(mailboxes.examine, INSIDE, ok=State.SELECTED),
    b"CREATE": Rule(mailboxes.create, INSIDE),
    b"DELETE": Rule(mailboxes.delete, INSIDE),
    b"RENAME": Rule(mailboxes.rename, INSIDE, tells=True),
    b"SUBSCRIBE": Rule(mailboxes.subscribe, INSIDE),
    b"UNSUBSCRIBE": Rule(mailboxes.unsubscribe, INSIDE),
    b"LIST": Rule(mailboxes.list_mailboxes, INSIDE),
    b"LSUB": Rule(mailboxes.list_subscriptions, INSIDE),
    b"STATUS": Rule(mailboxes.status, INSIDE),
    b"APPEND": Rule(mailboxes.append, INSIDE, tells=True),
    b"IDLE": Rule(mailboxes.idle, INSIDE, tells=True),
    b"CHECK": Rule(access.noop, SELECTED, tells=True),
    b"CLOSE": Rule(mailboxes.close, SELECTED, ok=State.AUTHENTICATED),
    b"UNSELECT": Rule(mailboxes.unselect, SELECTED, ok=State.AUTHENTICATED),
    b"EXPUNGE": Rule(messages.expunge, SELECTED, tells=True),
    b"SEARCH": Rule(messages.search, SELECTED),
    b"FETCH": Rule(messages.fetch, SELECTED),
    b"STORE": Rule(messages.store, SELECTED),
    b"COPY": Rule(messages.copy, SELECTED, tells=True),
    b"UID SEARCH": Rule(messages.uid_search, SELECTED, tells=True),
    b"UID FETCH": Rule(messages.uid_fetch, SELECTED),
    b"UID STORE": Rule(messages.uid_store, SELECTED),
    b"UID COPY": Rule(messages.uid_copy, SELECTED, tells=True),
    b"UID EXPUNGE": Rule(messages.uid_expunge, SELECTED, tells=True),
}

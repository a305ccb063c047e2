"""Which command is allowed in which state, and where it leads: the one table. RFC 3501 §3."""

from __future__ import annotations

from collections.abc import Mapping

from twisted_mta.core.imap import access, mailboxes, messages
from twisted_mta.core.imap.session import Rule, State

NEW = State.NOT_AUTHENTICATED
INSIDE = State.AUTHENTICATED | State.SELECTED
SELECTED = State.SELECTED
ANY = NEW | INSIDE


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
    b"APPEND": Rule(mailboxes.append, INSIDE, tells=True, literal=mailboxes.append_literal),
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

"""An IMAP session that is cut off by the death of the server, at every step of what it does to mailboxes.

After each answered command it is known what the mailboxes hold. After a death they hold that, or what the command under
way would have made of it, and nothing in between.
"""

from __future__ import annotations

import imaplib
import os
import re
import signal
import ssl
from collections.abc import Callable
from typing import Any

import attrs

from tests.crash.mail import Lost
from tests.crash.nursery import Nursery
from twisted_mta.store.faults import VARIABLE
from twisted_mta.testing.site import PASSWORD, Site

_CONTEXT = ssl._create_unverified_context()
_LISTED = re.compile(rb'" "?([^" ]+)"?$')
_FLAGS = re.compile(rb"FLAGS \(([^)]*)\)")
_UID = re.compile(rb"UID (\d+)")
_SUBJECT = re.compile(rb"Subject: (x\d+)\.")


@attrs.frozen
class State:
    """What there is of one round: the message "x<round>" and the mailbox made for it."""

    inbox: int = 0
    flags: frozenset[str] = frozenset()
    #: The name of the mailbox, "" if there is none, and how often the message is in it.
    mailbox: str = ""
    copies: int = 0
    subscribed: bool = False


class MailboxTrial:
    """One site with one account that is changed over IMAP."""

    def __init__(self, nursery: Nursery) -> None:
        self.site = Site(accounts=("alice", "postmaster"), roles=("imaps",), spawn=nursery.spawn)
        self.site.patience = 300.0  # the machine may have other things to do
        self._round = 0
        #: Message -> (UIDVALIDITY, UID), once told.
        self._uids: dict[str, tuple[str, str]] = {}
        self.kills = 0

    def close(self) -> None:
        """Take everything away."""
        self.site.__exit__(None, None, None)

    def kill_at(self, fault: str) -> bool:
        """One round that ends with the fault, or with all done; then what is left must be as the answers said."""
        self._round += 1
        states = [State()]
        pending = states[0]
        died = False
        self.site.environment[VARIABLE] = fault
        try:
            self.site.start()
            with self._connect() as imap:
                for after, command in self._steps(imap):
                    pending = after(states[-1])
                    command()
                    states.append(pending)
        except (imaplib.IMAP4.abort, OSError, RuntimeError):
            assert self.site.process is not None
            died = self.site.process.wait(300) == -signal.SIGKILL
            if not died:
                raise
        if not died:
            died = self._stop()
        self.kills += 1
        self._check(states[-1], pending)
        return died

    def _stop(self) -> bool:
        assert self.site.process is not None
        self.site.process.terminate()
        return self.site.process.wait(300) == -signal.SIGKILL

    def _connect(self) -> imaplib.IMAP4_SSL:
        imap = imaplib.IMAP4_SSL("127.0.0.1", self.site.port("imaps"), ssl_context=_CONTEXT, timeout=120)
        imap.login("alice", PASSWORD)
        return imap

    def _steps(self, imap: imaplib.IMAP4_SSL) -> list[tuple[Callable[[State], State], Callable[[], object]]]:
        """What each command changes, and the command."""
        name, work, kept = f"x{self._round}", f"Work{self._round}", f"Kept{self._round}"
        keyword = f"$k{self._round % 20}"
        message = f"Subject: {name}.\r\n\r\n{'text ' * 200}\r\n".encode()

        def uid() -> str:
            return self._uids[name][1]

        def append() -> None:
            (told,) = _good(imap.append("INBOX", "", "", message))
            match = re.search(rb"APPENDUID (\d+) (\d+)", told)
            assert match, told
            self._uids[name] = match[1].decode(), match[2].decode()

        def to(**changes: Any) -> Callable[[State], State]:
            return lambda state: attrs.evolve(state, **changes)

        return [
            (to(inbox=1), append),
            (to(mailbox=work), lambda: _good(imap.create(work))),
            (to(subscribed=True), lambda: _good(imap.subscribe(work))),
            (to(), lambda: _good(imap.select("INBOX"))),
            (to(flags=frozenset({keyword})), lambda: _good(imap.uid("STORE", uid(), "+FLAGS", keyword))),
            # The keyword is new there, each time.
            (to(copies=1), lambda: _good(imap.uid("COPY", uid(), work))),
            (to(mailbox=kept), lambda: _good(imap.rename(work, kept))),
            (
                to(flags=frozenset({keyword, "\\Deleted"})),
                lambda: _good(imap.uid("STORE", uid(), "+FLAGS", "\\Deleted")),
            ),
            (to(inbox=0, flags=frozenset()), lambda: _good(imap.expunge())),
            (to(mailbox="", copies=0), lambda: _good(imap.delete(kept))),
            (to(subscribed=False), lambda: _good(imap.unsubscribe(work))),
        ]

    # --- afterwards --------------------------------------------------------------------------------

    def _check(self, done: State, pending: State) -> None:
        """Raises Lost."""
        self.site.environment[VARIABLE] = ""
        for lock in self.site.directory.rglob("dovecot-keywords.lock"):
            os.utime(
                lock, (0, 0)
            )  # others respect the lock of a dead process for half a minute: it has passed
        self.site.start()
        with self._connect() as imap:
            found = self._look(imap)
            self._check_uids(imap)
            if found.mailbox:
                _good(imap.select("INBOX"))
                _good(imap.delete(found.mailbox))
        if self._stop():
            raise Lost("the server died without a fault")
        if found not in (done, pending):
            raise Lost(f"round {self._round}: {found} is neither {done} nor {pending}")

    def _look(self, imap: imaplib.IMAP4_SSL) -> State:
        mailboxes = [match[1].decode() for line in _good(imap.list()) if (match := _LISTED.search(line))]
        mailboxes.remove("INBOX")
        if len(mailboxes) > 1:
            raise Lost(f"round {self._round}: there are {mailboxes}")
        mailbox = mailboxes[0] if mailboxes else ""
        return State(
            inbox=len(self._numbers(imap, "INBOX")),
            flags=self._flags(imap),
            mailbox=mailbox,
            copies=len(self._numbers(imap, mailbox)) if mailbox else 0,
            subscribed=any(f"Work{self._round}".encode() in (line or b"") for line in _good(imap.lsub())),
        )

    def _numbers(self, imap: imaplib.IMAP4_SSL, mailbox: str) -> list[str]:
        """The sequence numbers of this round's message."""
        _good(imap.select(mailbox, readonly=True))
        return str(_good(imap.search(None, f'SUBJECT "x{self._round}."'))[0].decode()).split()

    def _flags(self, imap: imaplib.IMAP4_SSL) -> frozenset[str]:
        numbers = self._numbers(imap, "INBOX")
        if not numbers:
            return frozenset()
        match = _FLAGS.search(_good(imap.fetch(numbers[0], "(FLAGS)"))[0])
        assert match
        return frozenset(match[1].decode().split()) - {"\\Recent"}

    def _check_uids(self, imap: imaplib.IMAP4_SSL) -> None:
        """A UID that was told means the same message for ever."""
        _good(imap.select("INBOX", readonly=True))
        validity = imap.response("UIDVALIDITY")[1][0].decode()
        told = {uid: (valid, name) for name, (valid, uid) in self._uids.items()}
        for item in _good(imap.uid("FETCH", "1:*", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")):
            if not isinstance(item, tuple):
                continue
            uid, subject = _UID.search(item[0]), _SUBJECT.search(item[1])
            assert uid, item
            assert subject, item
            here = (validity, subject[1].decode())
            if told.get(uid[1].decode(), here) != here:
                raise Lost(f"UID {uid[1]!r} was told as {told[uid[1].decode()]} and now is {here}")


def _good(answer: tuple[str, list[Any]]) -> list[Any]:
    status, data = answer
    if status != "OK":
        raise Lost(f"{status} {data}")
    return data

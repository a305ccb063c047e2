"""POP3 sessions: joins the core (`core.pop3`) to accounts and mailboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twisted_mta.core.pop3.maildrop import top
from twisted_mta.core.pop3.questions import Drop, Listing, Login, Question, Refusal, Retrieve, Update
from twisted_mta.core.pop3.server import Pop3Server, Pop3Settings
from twisted_mta.core.sasl import Claim, Lookup, Secret
from twisted_mta.interfaces import (
    AuthenticationUnavailable,
    Client,
    IAuthenticator,
    IMailbox,
    IMailboxes,
    MailboxError,
    StoreFull,
)
from twisted_mta.net.session import Session
from twisted_mta.net.tls import ServerTls

#: Octets of a message that go out at a time.
_PART = 65536


class Pop3Handler:
    """Answers the questions of one POP3 session; a `net.session.SessionHandler`.

    There is no lock on the maildrop: the session works on the view that its login opened, a message that another session
    removes meanwhile can't be had any more, and removing it again does no harm.
    """

    log = Logger()

    def __init__(
        self,
        mailboxes: IMailboxes,
        authenticator: IAuthenticator,
        peer: str,
    ) -> None:
        self._mailboxes = mailboxes
        self._authenticator = authenticator
        self._peer = peer
        self._client = Client(service="pop3", address=peer)
        self._mailbox: IMailbox | None = None
        self._tls = ""

    def attached(self, session: Session) -> None:
        """See SessionHandler. POP3 never speaks unasked."""

    def secured(self, tls: str) -> None:
        """See SessionHandler."""
        self._tls = tls

    def body(self, data: bytes) -> Awaitable[None] | None:
        """See SessionHandler."""
        raise AssertionError("POP3 receives no messages")

    def closed(self) -> None:
        """See SessionHandler."""
        if self._mailbox is not None:
            mailbox, self._mailbox = self._mailbox, None
            Deferred.fromCoroutine(_close(mailbox)).addErrback(
                lambda failure: self.log.failure("closing a mailbox failed", failure=failure)
            )

    def ask(self, question: Question) -> Any:
        """See SessionHandler."""
        match question:
            case Lookup(login):
                return self._secret(login)
            case Login(claim):
                return self._login(claim)
            case Retrieve(uid, lines):
                return self._retrieve(uid, lines)
            case Listing(octets):
                return _parts(octets)
            case Update(uids):
                return self._update(uids)

    async def _secret(self, login: str) -> Secret | Refusal:
        try:
            return await self._authenticator.secret(login, self._client)
        except AuthenticationUnavailable as error:
            return Refusal("SYS/TEMP", str(error))  # RFC 3206 §4

    async def _login(self, claim: Claim) -> Sequence[Drop] | Refusal:
        try:
            account = await self._authenticator.authenticate(claim, self._client)
        except AuthenticationUnavailable as error:
            return Refusal("SYS/TEMP", str(error))
        if account is None:
            return Refusal("AUTH", "Login or password is wrong")  # RFC 3206 §5
        try:
            mailbox = await self._mailboxes.of(account).open("INBOX")
        except (MailboxError, StoreFull) as error:
            return Refusal("SYS/TEMP", str(error))  # RFC 3206 §4
        self._mailbox = mailbox
        self.log.info(
            "{account} logged in to POP3 from {peer}", account=account.name, peer=self._peer, tls=self._tls
        )
        return [Drop(entry.uid, entry.size, entry.unique_name) for entry in mailbox.entries]

    async def _retrieve(self, uid: int, lines: int | None) -> AsyncIterator[object]:
        try:
            message = await self._opened().read(uid)
        except MailboxError as error:
            yield Refusal("", str(error))
            return
        if lines is not None:
            message = top(message, lines)
        async for part in _parts(message):
            yield part

    async def _update(self, uids: Sequence[int]) -> Refusal | None:
        try:
            await self._opened().remove(uids)
        except (MailboxError, StoreFull) as error:
            return Refusal("SYS/TEMP", f"Deleted messages were not removed: {error}")  # RFC 1939 §6
        return None

    def _opened(self) -> IMailbox:
        assert self._mailbox is not None  # the core asks only after a login
        return self._mailbox


async def _parts(octets: bytes) -> AsyncIterator[object]:
    for start in range(0, max(len(octets), 1), _PART):
        yield octets[start : start + _PART]


async def _close(mailbox: IMailbox) -> None:
    await mailbox.close()


def pop3_session(
    settings: Pop3Settings,
    mailboxes: IMailboxes,
    authenticator: IAuthenticator,
    peer: str,
    clock: IReactorTime,
    *,
    tls: ServerTls | None = None,
    implicit_tls: bool = False,
    handshake: float = 60.0,
) -> Session:
    """A session ready for a transport. `peer` is for the logs. Without TLS nobody can log in."""
    settings = attrs.evolve(settings, tls_available=tls is not None)
    handler = Pop3Handler(mailboxes, authenticator, peer)
    return Session(Pop3Server(settings), handler, clock, tls, implicit_tls, handshake)

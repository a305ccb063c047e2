"""IMAP sessions: joins the core (`core.imap.server`) to IMailboxes and IAuthenticator."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twisted_mta.core.imap import questions as q
from twisted_mta.core.imap.fetch import Item, TooMuch, render
from twisted_mta.core.imap.search import Key, matches, matches_message
from twisted_mta.core.imap.server import ImapServer
from twisted_mta.core.imap.session import ImapSettings
from twisted_mta.core.sasl import Claim, Lookup
from twisted_mta.interfaces import (
    Account,
    AuthenticationUnavailable,
    Client,
    IAuthenticator,
    IMailbox,
    IMailboxes,
    IMailboxStore,
    MailboxError,
    MailboxExists,
    MessageEntry,
    NoSuchMailbox,
    StoreFull,
)
from twisted_mta.net.session import Session
from twisted_mta.net.tls import ServerTls

T = TypeVar("T")
#: Calls a function in a thread, as `store.threads.Workers.run`.
Run = Callable[..., Awaitable[Any]]

#: Messages of at least this many octets are parsed outside of the reactor's thread.
LARGE = 65536
#: Other sessions get their turn after so many messages (looked at by their entries, or read) or octets.
BREATH_ENTRIES = 2000
BREATH_MESSAGES = 20
BREATH_OCTETS = 262144
#: Answers to FETCH are gathered until they have so many octets.
WRITE_OCTETS = 16384
#: \\Seen is set for so many messages at a time.
SEEN_BATCH = 50


class ImapHandler:
    """Answers the questions of one IMAP session; a `net.session.SessionHandler`."""

    log = Logger()

    def __init__(
        self,
        core: ImapServer,
        mailboxes: IMailboxes,
        authenticator: IAuthenticator,
        clock: IReactorTime,
        run: Run,
        peer: str,
    ) -> None:
        """`run` calls a function in a thread."""
        self._core = core
        self._mailboxes = mailboxes
        self._authenticator = authenticator
        self._clock = clock
        self._run = run
        self._peer = peer
        self._client = Client(service="imap", address=peer)
        self._session: Session | None = None
        self._account: Account | None = None
        self._store: IMailboxStore | None = None
        self._mailbox: IMailbox | None = None
        self._stop_watching: Callable[[], None] | None = None
        self._append: q.BeginAppend | None = None
        self._octets: list[bytes] = []
        self._gone = False

    # --- SessionHandler ------------------------------------------------------------------------

    def attached(self, session: Session) -> None:
        """See SessionHandler."""
        self._session = session

    def secured(self, tls: str) -> None:
        """See SessionHandler."""
        self.log.debug("{peer} uses {tls}", peer=self._peer, tls=tls)

    def body(self, data: bytes) -> None:
        """See SessionHandler. The core holds the sum to the limit of APPEND."""
        self._octets.append(data)

    def closed(self) -> None:
        """See SessionHandler."""
        self._gone = True
        self._forget_append()
        closing = Deferred.fromCoroutine(self._close_mailbox())
        closing.addErrback(lambda failure: self.log.failure("closing a mailbox failed", failure=failure))

    def ask(self, question: q.Question) -> Any:
        """Answer a question of the core: see `core.imap.questions`."""
        match question:
            case q.Fetch():
                return self._fetch(question)
            case q.Search(key):
                return self._search(key)
            case _:
                return self._refusable(question)

    async def _refusable(self, question: q.Question) -> Any:
        """Answer a question; what the store can't do becomes a Refused."""
        # RFC 3501 §6.3.11, §6.4.7: the client may offer to create the target.
        to_target = isinstance(question, q.BeginAppend | q.FinishAppend | q.Copy)
        try:
            return await self._answer(question)
        except AuthenticationUnavailable as error:
            return q.Refused(str(error), "UNAVAILABLE")  # RFC 5530 §3
        except NoSuchMailbox as error:
            return q.Refused(str(error), "TRYCREATE" if to_target else "NONEXISTENT")
        except MailboxExists as error:
            return q.Refused(str(error), "ALREADYEXISTS")
        except MailboxError as error:
            return q.Refused(str(error), "CANNOT")
        except StoreFull as error:
            return q.Refused(str(error) or "there is no room", "OVERQUOTA")

    async def _answer(self, question: q.Question) -> Any:
        match question:
            case Lookup(login):
                return await self._authenticator.secret(login, self._client)
            case q.Login(claim):
                return await self._log_in(claim)
            case q.Select(name, read_only):
                return await self._select(name, read_only)
            case q.Leave(expunge):
                return await self._leave(expunge)
            case q.BeginAppend():
                return await self._begin_append(question)
            case q.FinishAppend(keep):
                return await self._finish_append(keep)
            case (
                q.ListMailboxes()
                | q.ListSubscriptions()
                | q.Subscribe()
                | q.Create()
                | q.Delete()
                | q.Rename()
                | q.Status()
            ):
                return await self._about_tree(question)
            case _:
                return await self._about_messages(question)

    async def _about_tree(self, question: q.Question) -> Any:
        store = self._store
        assert store is not None
        match question:
            case q.ListMailboxes():
                return await store.list_mailboxes()
            case q.ListSubscriptions():
                return await store.subscriptions()
            case q.Subscribe(name, on):
                return await store.subscribe(name, on)
            case q.Create(name):
                return await store.create(name)
            case q.Delete(name):
                return await store.delete(name)
            case q.Rename(old, new):
                return await store.rename(old, new)
            case q.Status(name):
                return await store.status(name)
        raise TypeError(f"no answer to {type(question).__name__}")

    async def _about_messages(self, question: q.Question) -> Any:
        mailbox = self._mailbox
        assert mailbox is not None
        match question:
            case q.Refresh():
                return await mailbox.refresh()
            case q.BeginIdle():
                self._stop_watching = mailbox.watch(self._changed)
                return await mailbox.refresh()
            case q.EndIdle():
                return self._unwatch()
            case q.Expunge(uids):
                return await mailbox.expunge(uids)
            case q.Store(uids, flags, mode):
                return await mailbox.set_flags(uids, flags, mode)
            case q.Copy(uids, target):
                validity, copies = await mailbox.copy(uids, target)
                return q.Copied(validity, copies)
        raise TypeError(f"no answer to {type(question).__name__}")

    # --- coming in -----------------------------------------------------------------------------

    async def _log_in(self, claim: Claim) -> bool:
        account = await self._authenticator.authenticate(claim, self._client)
        if account is None:
            return False
        self.log.info("{account} logged in from {peer}", account=account.name, peer=self._peer)
        self._account = account
        self._store = self._mailboxes.of(account)
        return True

    async def _select(self, name: str, read_only: bool) -> q.Opened:
        await self._close_mailbox()
        assert self._store is not None
        self._mailbox = mailbox = await self._store.open(name, read_only)
        if self._gone:  # the client left meanwhile
            await self._close_mailbox()
        return q.Opened(
            entries=mailbox.entries,
            uid_validity=mailbox.uid_validity,
            uid_next=mailbox.uid_next,
            read_only=mailbox.read_only,
        )

    async def _leave(self, expunge: bool) -> None:
        assert self._mailbox is not None
        if expunge:
            await self._mailbox.expunge()
        await self._close_mailbox()

    async def _close_mailbox(self) -> None:
        self._unwatch()
        mailbox, self._mailbox = self._mailbox, None
        if mailbox is not None:
            await mailbox.close()

    # --- IDLE ----------------------------------------------------------------------------------

    def _changed(self) -> None:
        if self._session is not None and not self._gone:
            self._session.perform(self._core.mailbox_changed())

    def _unwatch(self) -> None:
        stop, self._stop_watching = self._stop_watching, None
        if stop is not None:
            stop()

    # --- APPEND --------------------------------------------------------------------------------

    async def _begin_append(self, question: q.BeginAppend) -> None:
        assert self._store is not None
        await self._store.status(question.name)  # a wrong name is told before the message travels
        self._append, self._octets = question, []

    async def _finish_append(self, keep: bool) -> q.Appended | None:
        assert self._append is not None
        assert self._store is not None
        append, message = self._append, b"".join(self._octets)
        self._forget_append()
        if not keep:
            return None
        validity, uid = await self._store.append(append.name, message, append.flags, append.internal_date)
        return q.Appended(validity, uid)

    def _forget_append(self) -> None:
        self._append, self._octets = None, []

    # --- FETCH and SEARCH ----------------------------------------------------------------------

    async def _fetch(self, question: q.Fetch) -> AsyncIterator[object]:
        mailbox = self._mailbox
        assert mailbox is not None
        needs_message = any(item.needs_message for item in question.items)
        overhead = BREATH_OCTETS // (BREATH_MESSAGES if needs_message else BREATH_ENTRIES)
        breath = _Breath(self._clock)
        entries = _entries(mailbox, question.uids)
        missing = len(entries) < len(question.uids)
        ready: list[q.Fetched] = []
        size = 0
        async for entry, items in self._targets(mailbox, entries, question):
            message = b""
            try:
                if needs_message:
                    message = await mailbox.read(entry.uid)
            except MailboxError:
                missing = True  # another session removed it; the client will hear of it
                continue
            try:
                data = await self._heavy(render, items, entry, message, size=len(message))
            except TooMuch:
                yield ready
                yield q.Refused("too many overlapping parts of one message", "LIMIT")  # RFC 5530 §3
                return
            ready.append(q.Fetched(entry.uid, data))
            size += len(data)
            due = breath.spend(len(message) + overhead)
            if due or size >= WRITE_OCTETS:
                yield ready
                ready, size = [], 0
            if due:
                await breath.take()
        yield ready
        yield q.FetchDone(missing)

    async def _targets(
        self, mailbox: IMailbox, entries: Sequence[MessageEntry], question: q.Fetch
    ) -> AsyncIterator[tuple[MessageEntry, tuple[Item, ...]]]:
        """What to show of which message, with \\Seen set where that is wanted; ends early when the client left."""
        for start in range(0, len(entries), SEEN_BATCH):
            batch = entries[start : start + SEEN_BATCH]
            fresh: dict[int, MessageEntry] = {}
            unseen = [entry.uid for entry in batch if "\\Seen" not in entry.flags]
            if question.mark_seen and unseen:
                fresh = await self._mark_seen(mailbox, unseen)
            for entry in batch:
                if self._gone:
                    return
                if entry.uid in fresh:
                    yield fresh[entry.uid], _with_flags(question.items)  # RFC 3501 §6.4.5: the change is told
                else:
                    yield entry, question.items

    async def _mark_seen(self, mailbox: IMailbox, uids: Sequence[int]) -> dict[int, MessageEntry]:
        try:
            entries = await mailbox.set_flags(uids, ["\\Seen"], "add")
        except (MailboxError, StoreFull) as error:
            # The messages can still be read, which is what was asked for.
            self.log.warn("{mailbox}: \\Seen was not set: {error}", mailbox=mailbox.name, error=str(error))
            return {}
        return {entry.uid: entry for entry in entries}

    async def _search(self, key: Key) -> AsyncIterator[object]:
        mailbox = self._mailbox
        assert mailbox is not None
        breath = _Breath(self._clock)
        found: list[int] = []
        for entry in list(mailbox.entries):
            if self._gone:
                break
            verdict = matches(key, entry)
            cost = BREATH_OCTETS // BREATH_ENTRIES
            if verdict is None:
                try:
                    message = await mailbox.read(entry.uid)
                except MailboxError:
                    continue  # removed by another session
                verdict = await self._heavy(matches_message, key, entry, message, size=len(message))
                cost = len(message) + BREATH_OCTETS // BREATH_MESSAGES
            if verdict:
                found.append(entry.uid)
            if breath.spend(cost):
                await breath.take()
        yield found

    async def _heavy(self, function: Callable[..., T], *args: Any, size: int) -> T:
        """Call `function` here, or in a thread if it has much to do."""
        if size < LARGE:
            return function(*args)
        result: T = await self._run(function, *args)
        return result


class _Breath:
    """Lets the reactor run after every so much work."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._left = BREATH_OCTETS

    def spend(self, octets: int) -> bool:
        """Count work done; whether it is time to breathe."""
        self._left -= octets
        return self._left <= 0

    async def take(self) -> None:
        """Let the others work."""
        self._left = BREATH_OCTETS
        await deferLater(self._clock, 0.0)


def _entries(mailbox: IMailbox, uids: Sequence[int]) -> list[MessageEntry]:
    wanted = frozenset(uids)
    return [entry for entry in mailbox.entries if entry.uid in wanted]


def _with_flags(items: tuple[Item, ...]) -> tuple[Item, ...]:
    flags = Item(b"FLAGS")
    return items if flags in items else (*items, flags)


def imap_session(
    settings: ImapSettings,
    mailboxes: IMailboxes,
    authenticator: IAuthenticator,
    clock: IReactorTime,
    run: Run,
    *,
    peer: str = "",
    tls: ServerTls | None = None,
    implicit_tls: bool = False,
    handshake: float = 60.0,
) -> Session:
    """One session. `run` calls a function in a thread (`Workers.run`); `tls` is needed if `settings` offers STARTTLS.

    With `implicit_tls` the transport must begin with TLS, and the greeting waits for its handshake.
    """
    core = ImapServer(settings)
    handler = ImapHandler(core, mailboxes, authenticator, clock, run, peer)
    return Session(core, handler, clock, tls, implicit_tls, handshake)

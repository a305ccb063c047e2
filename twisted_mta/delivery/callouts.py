"""Whether addresses of relay domains exist: their servers are asked, not too many at a time, and answers are remembered."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, TimeoutError
from twisted.logger import Logger

from twisted_mta.config.schema import Callout
from twisted_mta.core.address import Address
from twisted_mta.core.callout import MAX_TEXT, Lifetimes, Verdict, Word, no_answer, refusal
from twisted_mta.core.replies import Reply
from twisted_mta.core.schedule import format_duration
from twisted_mta.core.values import value
from twisted_mta.delivery.enquiry import Heard
from twisted_mta.store.callouts import CalloutFile
from twisted_mta.store.side_file import SideFileError
from twisted_mta.store.threads import InlineWorkers, Workers

P = ParamSpec("P")
T = TypeVar("T")

#: Questions at a time to the servers of one domain, and in all; further ones wait.
MAX_OF_DOMAIN = 3
MAX_IN_ALL = 20
#: Seconds in which nobody is asked again after no host of a domain could be reached.
PAUSE = 60.0
#: Domains of which that is remembered.
MAX_DOMAINS = 1000


@value
class Answer:
    """For a client: why it is refused, or None; and what the answer rests on, for an administrator."""

    refusal: Reply | None
    remark: str


class Callouts:
    """Asks each thing once. `ask` is `SmtpDelivery.ask`: (the address, until when)."""

    log = Logger()

    def __init__(
        self,
        ask: Callable[[Address, float], Awaitable[Heard]],
        file: CalloutFile | None,
        workers: Workers | InlineWorkers,
        clock: Any,
        settings: Callout,
    ) -> None:
        """`workers` has one thread, and this for its only user; without a `file` nothing is remembered."""
        self._ask = ask
        self._file = file
        self._workers = workers
        self._clock = clock
        self._all = DeferredSemaphore(MAX_IN_ALL)
        self._domains: dict[str, DeferredSemaphore] = {}
        #: Who waits for what is being asked, by the folded address.
        self._waiting: dict[str, list[Deferred[Heard]]] = {}
        #: Domains that could not be reached: until when nobody is asked, and what was the matter.
        self._paused: dict[str, tuple[float, Reply]] = {}
        self.reconfigure(settings)

    def reconfigure(self, settings: Callout) -> None:
        """Go by these from now on."""
        self._settings = settings
        self._lifetimes = Lifetimes(settings.known, settings.unknown, settings.remember)
        self._paused.clear()  # the route may be another one

    async def verify(self, address: Address) -> Answer:
        """Whether to take mail for an address of a relay domain. Never raises."""
        key, now = address.folded, self._clock.seconds()
        known = None if self._file is None else await self._tried(None, self._file.word, key)
        if known is not None and known.is_fresh(now, self._lifetimes):
            return self._by_word(address, known, now)
        heard = await self._hear(address)
        if heard.verdict is not Verdict.UNANSWERED:
            word = Word(heard.verdict is Verdict.EXISTS, now, heard.remote, str(heard.reply)[:MAX_TEXT])
            return self._by_word(address, word, now)
        why = f"{heard.remote} said {heard.reply}" if heard.remote else str(heard.reply)
        if known is not None and known.is_good(now, self._lifetimes):
            ago = format_duration(now - known.time)
            return Answer(None, f"taken since {known.remote} knew {address} {ago} ago, and now: {why}")
        if self._settings.unanswered == "accept":
            return Answer(None, f"taken unverified (callout.unanswered): {why}")
        return Answer(no_answer(address, why), f"nobody says whether {address} exists: {why}")

    def _by_word(self, address: Address, word: Word, now: float) -> Answer:
        ago = now - word.time
        when = f", {format_duration(ago)} ago" if ago >= 1 else ""
        remark = f"{word.remote} said of {address}{when}: {word.text}"
        return Answer(None if word.exists else refusal(address, word.remote, word.text), remark)

    # --- asking ----------------------------------------------------------------------------------

    def _hear(self, address: Address) -> Deferred[Heard]:
        """Ask, or wait with those who asked before. Cancelling does nothing to the question."""
        waiter: Deferred[Heard] = Deferred()
        waiting = self._waiting.get(address.folded)
        if waiting is not None:
            waiting.append(waiter)
            return waiter
        self._waiting[address.folded] = [waiter]
        timeout = self._settings.timeout
        asking = Deferred.fromCoroutine(self._enquire(address, self._clock.seconds() + timeout))
        asking.addTimeout(timeout, self._clock)
        asking.addErrback(self._failed, address)
        asking.addCallback(self._tell, address)
        return waiter

    def _tell(self, heard: Heard, address: Address) -> None:
        for waiter in self._waiting.pop(address.folded):
            if not waiter.called:
                waiter.callback(heard)

    def _failed(self, failure: Any, address: Address) -> Heard:
        if failure.check(TimeoutError):
            return Heard(Verdict.UNANSWERED, Reply(451, "4.4.1", "too many questions wait for that host"))
        self.log.failure("callout about {recipient} failed", failure, recipient=str(address))
        return Heard(Verdict.UNANSWERED, Reply(451, "4.3.0", "something went wrong here"))

    async def _enquire(self, address: Address, until: float) -> Heard:
        domain = self._domains.setdefault(address.domain, DeferredSemaphore(MAX_OF_DOMAIN))
        await domain.acquire()
        try:
            await self._all.acquire()
            try:
                return await self._ask_now(address, until)
            finally:
                self._all.release()
        finally:
            domain.release()
            if domain.tokens == domain.limit:
                self._domains.pop(address.domain, None)

    async def _ask_now(self, address: Address, until: float) -> Heard:
        pause, reply = self._paused.get(address.domain, (0.0, None))
        if reply is not None and self._clock.seconds() < pause:
            return Heard(Verdict.UNANSWERED, reply)
        began = self._clock.seconds()
        try:
            heard = await self._ask(address, until)
        except CancelledError:  # the time is up
            text = f"no answer within {format_duration(self._settings.timeout)}"
            heard = Heard(Verdict.UNANSWERED, Reply(451, "4.4.1", text))
        self.log.info(
            "callout about {recipient}: {verdict}: {remote} {reply}",
            event="callout",
            recipient=str(address),
            verdict=heard.verdict.value,
            remote=heard.remote or "nobody",
            reply=str(heard.reply),
        )
        if heard.verdict is Verdict.UNANSWERED:
            # One that had to wait for its turn may have had no time left.
            if not heard.remote and until - began > self._settings.timeout / 2:
                self._pause(address.domain, heard)
            return heard
        self._paused.pop(address.domain, None)
        word = Word(
            heard.verdict is Verdict.EXISTS, self._clock.seconds(), heard.remote, str(heard.reply)[:MAX_TEXT]
        )
        if self._file is not None:
            await self._tried(None, self._file.note, address.folded, word, self._lifetimes)
        return heard

    def _pause(self, domain: str, heard: Heard) -> None:
        """Not every client shall wait for a host that is not there."""
        if len(self._paused) >= MAX_DOMAINS:
            self._paused.clear()
        self._paused[domain] = (self._clock.seconds() + PAUSE, heard.reply)

    # --- what is remembered ----------------------------------------------------------------------

    async def words(self, limit: int) -> Sequence[tuple[str, Word]]:
        """What is remembered, the latest first."""
        return () if self._file is None else await self._tried((), self._file.words, limit)

    async def forget(self, address: str) -> int:
        """Forget a folded address, or "@domain"; how many were known."""
        self._paused.clear()
        return 0 if self._file is None else await self._tried(0, self._file.forget, address)

    async def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            await self._workers.run(self._file.close)
        self._workers.close()

    async def _tried(self, otherwise: T, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Mail does not stop because this file can't be used: hosts can be asked again."""
        try:
            return await self._workers.run(function, *args, **kwargs)
        except (sqlite3.Error, SideFileError, OSError) as error:
            self.log.error("what callouts found can't be read or written: {error}", error=error)
            return otherwise

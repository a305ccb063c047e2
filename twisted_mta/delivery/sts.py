"""The MTA-STS policies of domains: from memory, or fetched. RFC 8461 §3.3, §5.1."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure as TwistedFailure

from twisted_mta.core.route import LookupFailed, NoSuchDomain
from twisted_mta.core.tls_policy.cache import StsEntry
from twisted_mta.core.tls_policy.results import FetchFailed
from twisted_mta.core.tls_policy.sts import StsPolicy, policy_id, record_name
from twisted_mta.core.tls_report import Applied, Session
from twisted_mta.delivery.tls_memory import TlsMemory
from twisted_mta.interfaces import IMailResolver

#: Seconds between looks for policies that are to be fetched again.
INTERVAL = 3600.0
#: Domains whose entry is kept in memory.
CACHE_SIZE = 10_000
#: Seconds after which it is written down that a policy is still in use.
USED_STEP = 86400.0

#: Fetches the policy of a domain; raises FetchFailed.
Fetch = Callable[[str], Awaitable[StsPolicy]]


class StsPolicies:
    """Ask it for the policy of a domain."""

    log = Logger()

    def __init__(self, memory: TlsMemory, resolver: IMailResolver, fetch: Fetch, clock: Any) -> None:
        """`clock` provides IReactorTime."""
        self._memory = memory
        self._resolver = resolver
        self._fetch = fetch
        self._entries: OrderedDict[str, StsEntry] = OrderedDict()
        self._waiting: dict[str, list[Deferred[StsPolicy | None]]] = {}
        self._running: set[Deferred[Any]] = set()
        self._loop = LoopingCall(self._refresh)
        self._loop.clock = clock

    def start(self) -> None:
        """Begin to keep policies fresh."""
        self._loop.start(INTERVAL, now=True)

    def stop(self) -> None:
        """Give up what is under way."""
        if self._loop.running:
            self._loop.stop()
        for running in list(self._running):
            running.cancel()

    def policy(self, domain: str) -> Deferred[StsPolicy | None]:
        """The policy in force for a domain (A-labels, lower-case), or None. Takes as long as a fetch may.

        Fails with LookupFailed when the server stops meanwhile.
        """
        mine: Deferred[StsPolicy | None] = Deferred()
        waiting = self._waiting.get(domain)
        if waiting is not None:  # somebody asks this already
            waiting.append(mine)
            return mine
        self._waiting[domain] = [mine]
        running = Deferred.fromCoroutine(self._policy(domain))
        self._running.add(running)

        def tell(result: StsPolicy | TwistedFailure | None) -> None:
            self._running.discard(running)
            if isinstance(result, TwistedFailure):
                # Not "there is none": mail must not go out unprotected because of what went wrong here.
                stopping = isinstance(result.value, CancelledError)
                why = "the server is stopping" if stopping else "an internal error"
                if not stopping:
                    self.log.failure("asking for the MTA-STS policy of {domain}", result, domain=domain)
                error = LookupFailed(f"MTA-STS policy of {domain}: {why}")
                result = TwistedFailure(error)  # type: ignore[no-untyped-call]
            for one in self._waiting.pop(domain):
                if not one.called:  # a waiter that was cancelled
                    one.callback(result)

        running.addBoth(tell)
        return mine

    async def _policy(self, domain: str) -> StsPolicy | None:
        entry = await self._entry(domain)
        live = await self._live_id(domain)
        now = self._memory.seconds()
        if live is not None and entry.must_fetch(live, now):
            entry = await self._fetched(entry, live)
        policy = entry.in_force(now)
        if policy is not None and now >= entry.used + USED_STEP:
            await self._save(attrs.evolve(entry, used=now))
        return policy

    async def _entry(self, domain: str) -> StsEntry:
        entry = self._entries.get(domain)
        if entry is None:
            entry = await self._memory.policy(domain)
            self._remember(entry)
        self._entries.move_to_end(domain)
        return entry

    def _remember(self, entry: StsEntry) -> None:
        self._entries[entry.domain] = entry
        while len(self._entries) > CACHE_SIZE:
            self._entries.popitem(last=False)

    async def _save(self, entry: StsEntry) -> None:
        self._remember(entry)
        await self._memory.save_policy(entry)

    async def _live_id(self, domain: str) -> str | None:
        try:
            return policy_id(await self._resolver.txt(record_name(domain)))
        except (NoSuchDomain, LookupFailed):
            return None  # RFC 8461 §3.3: what is cached goes on to count

    async def _fetched(self, entry: StsEntry, identifier: str) -> StsEntry:
        """The entry after a fetch, stored, whether it worked or not."""
        now = self._memory.seconds()
        try:
            policy = await self._fetch(entry.domain)
        except FetchFailed as error:
            level = self.log.warn if entry.is_missed else self.log.info
            level(
                "MTA-STS policy of {domain} (id {id}) can't be fetched: {problem}",
                domain=entry.domain,
                id=identifier,
                problem=error.failure.text,
                result=error.failure.result.value,
            )
            # RFC 8461 §6: to be reported.
            lines, hosts = (entry.policy.lines, entry.policy.mx) if entry.policy is not None else ((), ())
            self._memory.count(
                Session(
                    time=now, domain=entry.domain, applied=Applied("sts", lines, hosts), failure=error.failure
                )
            )
            entry = entry.with_failure(identifier, error.failure.text, now)
        else:
            self.log.info(
                "MTA-STS policy of {domain}: {mode}, id {id}, for {age} s",
                domain=entry.domain,
                mode=policy.mode.value,
                id=identifier,
                age=policy.max_age,
            )
            entry = entry.with_policy(policy, identifier, now)
        await self._save(entry)
        return entry

    # --- while nobody waits ------------------------------------------------------------------------

    def _refresh(self) -> Deferred[None]:
        running = Deferred.fromCoroutine(self.refresh())
        self._running.add(running)

        def done(result: Any) -> None:
            self._running.discard(running)
            if isinstance(result, TwistedFailure):
                self.log.failure("refreshing MTA-STS policies", result)

        return running.addBoth(done)

    async def refresh(self) -> None:
        """Fetch again what was fetched long ago: RFC 8461 §3.3. One after the other: there is no hurry."""
        await self._memory.forget()
        for entry in await self._memory.policies():
            if not entry.refresh_due(self._memory.seconds()):
                continue
            # A record that is gone does not end a policy that is still published.
            live = await self._live_id(entry.domain)
            await self._fetched(entry, live or entry.id)

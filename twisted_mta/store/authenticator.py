"""Checks logins against the passwd-file without holding up the reactor, or letting clients buy its time cheaply."""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.interfaces import Account, AuthenticationUnavailable, IAuthenticator
from twisted_mta.store.passwords import MAX_PASSWORD, UnusableHash, hash_password, verify
from twisted_mta.store.users import PasswdFile, Stamp

T = TypeVar("T")


class WorkersLike(Protocol):
    """`threads.Workers`, or InlineWorkers in tests."""

    def run(self, function: Callable[..., T], /, *args: object) -> Deferred[T]:
        """Call it in a thread."""
        ...


@implementer(IAuthenticator)
class PasswdAuthenticator:
    """See IAuthenticator.

    A password that was right is remembered for a few minutes (as a keyed hash, under a key of this process): mail
    clients open many connections. Changing the file forgets them all.
    """

    log = Logger()

    def __init__(
        self,
        users: PasswdFile,
        workers: WorkersLike,
        clock: IReactorTime,
        random: Callable[[int], bytes],
        *,
        remember: float = 300.0,
        max_waiting: int = 100,
        max_remembered: int = 10_000,
    ) -> None:
        """`random` gives so many octets; `remember` is in seconds; more than `max_waiting` checks are not queued."""
        self._users = users
        self._workers = workers
        self._clock = clock
        self._key = random(32)
        self._remember = remember
        self._max_waiting = max_waiting
        self._max_remembered = max_remembered
        self._waiting = 0
        self._stamp: Stamp | None = None
        #: Keyed hash of login and password -> (account, until when), oldest first.
        self._right: OrderedDict[bytes, tuple[Account, float]] = OrderedDict()
        self._random = random
        self._fallback = ""

    async def authenticate(self, login: str, password: bytes) -> Account | None:
        """See IAuthenticator."""
        digest = self._digest(login, password)
        known = self._remembered(digest)
        if known is not None:
            return known
        if self._waiting >= self._max_waiting:
            self.log.warn("{waiting} logins wait for their check, refusing one more", waiting=self._waiting)
            raise AuthenticationUnavailable("too many logins at a time, please try again in a minute")
        self._waiting += 1
        try:
            # Taken before the check: if the file changes meanwhile, the result must not be remembered as the new file's.
            stamp = self._users.stamp()
            account = await self._workers.run(self._check, login, password)
        except OSError as error:
            self.log.error(
                "accounts can't be read from {path}: {error}",
                path=str(self._users.path),
                error=error.strerror,
            )
            raise AuthenticationUnavailable("accounts can't be read, please try again later") from None
        finally:
            self._waiting -= 1
        if account is not None:
            self._note(digest, account, stamp)
        return account

    def _check(self, login: str, password: bytes) -> Account | None:
        """In a thread. Always costs one hash."""
        self._users.refresh()
        user = self._users.find(login)
        if user is not None and len(password) <= MAX_PASSWORD:
            try:
                return user.account if verify(user.stored, password) else None
            except UnusableHash as error:
                self.log.warn(
                    "nobody can log in as {login}: {error}", login=user.account.name, error=str(error)
                )
        try:
            verify(self._users.decoy() or self._own_decoy(), password[:MAX_PASSWORD])
        except UnusableHash:
            verify(self._own_decoy(), password[:MAX_PASSWORD])
        return None

    def _own_decoy(self) -> str:
        if not self._fallback:
            self._fallback = hash_password(self._random(16), self._random)
        return self._fallback

    # --- what was right lately -----------------------------------------------------------------

    def _digest(self, login: str, password: bytes) -> bytes:
        name = login.encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, len(name).to_bytes(4, "big") + name + password, "sha256")

    def _remembered(self, digest: bytes) -> Account | None:
        if self._right and self._users.stamp() != self._stamp:
            self._right.clear()
        account, until = self._right.get(digest, (None, 0.0))
        return account if self._clock.seconds() < until else None

    def _note(self, digest: bytes, account: Account, stamp: Stamp | None) -> None:
        if stamp is None:
            return
        if stamp != self._stamp:
            self._right.clear()
            self._stamp = stamp
        self._right[digest] = account, self._clock.seconds() + self._remember
        self._right.move_to_end(digest)
        while len(self._right) > self._max_remembered:
            self._right.popitem(last=False)

"""Checks logins against the passwd-file without holding up the reactor, or letting clients buy its time cheaply."""

from __future__ import annotations

import base64
import hmac
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.core.sasl import Claim, Proof, ScramKeys, Secret
from twisted_mta.core.values import value
from twisted_mta.interfaces import Account, AuthenticationUnavailable, Client, IAuthenticator
from twisted_mta.store.app_passwords import AppPassword, AppPasswordFile, LastUse
from twisted_mta.store.passwords import MAX_PASSWORD, UnusableHash, hash_password, verify
from twisted_mta.store.users import PasswdFile, Stamp

T = TypeVar("T")


class WorkersLike(Protocol):
    """`threads.Workers`, or InlineWorkers in tests."""

    def run(self, function: Callable[..., T], /, *args: object) -> Deferred[T]:
        """Call it in a thread."""
        ...


@value(kw_only=True)
class ScramSettings:
    """How SCRAM is done."""

    #: "always", "never", or "auto": where no account would be locked out by a client that insists on it.
    mode: str = "auto"
    #: What those are told who have no keys.
    iterations: int = 65_536
    #: What their salts are made from; the same for the life of the installation, and not to be known.
    key: bytes = attrs.field(default=b"", repr=False)


_SCRAM = ScramSettings()


@value
class _Right:
    """A password that was right: the account's own, or one of its app passwords."""

    account: Account
    app: AppPassword | None = None

    def for_service(self, service: str) -> bool:
        return self.app is None or self.app.good_for(service)


_Stamps = tuple[Stamp | None, Stamp | None]


@implementer(IAuthenticator)
class PasswdAuthenticator:
    """See IAuthenticator.

    A password that was right is remembered for a few minutes (as a keyed hash, under a key of this process): mail
    clients open many connections. Changing the accounts or the app passwords forgets them all.
    """

    log = Logger()

    def __init__(
        self,
        users: PasswdFile,
        workers: WorkersLike,
        clock: IReactorTime,
        random: Callable[[int], bytes],
        *,
        apps: AppPasswordFile | None = None,
        last_use: LastUse | None = None,
        scram: ScramSettings = _SCRAM,
        remember: float = 300.0,
        max_waiting: int = 100,
        max_remembered: int = 10_000,
    ) -> None:
        """`random` gives so many octets; `remember` is in seconds, 0 for not at all; more than `max_waiting` checks are not
        queued."""
        self._users = users
        self._apps = apps or AppPasswordFile.beside(users.path)
        self._last_use = last_use or LastUse(None)
        self._workers = workers
        self._clock = clock
        self._key = random(32)
        self._scram = scram
        self._remember = remember
        self._max_waiting = max_waiting
        self._max_remembered = max_remembered
        self._waiting = 0
        self._stamps: _Stamps | None = None
        #: Keyed hash of login and password -> (what was right, until when), oldest first.
        self._right: OrderedDict[bytes, tuple[_Right, float]] = OrderedDict()
        self._random = random
        self._fallback = ""

    async def authenticate(self, claim: Claim, client: Client) -> Account | None:
        """See IAuthenticator. Failures are logged by who calls this."""
        if isinstance(claim, Proof):
            # The keys were looked up a moment ago: who was removed since is gone.
            return self._users.account(claim.login) if claim.right else None
        known = self.remembered(claim, client)
        if known is not None:
            return known
        # Taken before the check: if a file changes meanwhile, the result must not be remembered as the new one's.
        stamps = self._look()
        right = await self._run(self._check, claim.login, claim.password)
        if right is None:
            return None
        self._note(self._digest(claim.login, claim.password), right, stamps)
        return self._used(right, client)

    async def secret(self, login: str, client: Client) -> Secret:
        """See IAuthenticator."""
        keys = await self._run(self._keys, login)
        nonce = base64.b64encode(self._random(18))  # its alphabet has no comma
        return Secret(keys, nonce)

    def offers_scram(self) -> bool:
        """See IAuthenticator."""
        if self._scram.mode == "auto":
            return self._users.all_scram and not self._apps.any
        return self._scram.mode == "always"

    def remembered(self, claim: Claim, client: Client) -> Account | None:
        """The account if that was right lately; costs nothing."""
        if isinstance(claim, Proof):
            return None
        if self._right and self._look() != self._stamps:
            self._right.clear()
        right, until = self._right.get(self._digest(claim.login, claim.password), (None, 0.0))
        if right is None or self._clock.seconds() >= until or not right.for_service(client.service):
            return None
        return self._used(right, client)

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        if self._waiting >= self._max_waiting:
            self.log.warn("{waiting} logins wait for their check, refusing one more", waiting=self._waiting)
            raise AuthenticationUnavailable("too many logins at a time, please try again in a minute")
        self._waiting += 1
        try:
            return await self._workers.run(function, *args)
        except OSError as error:
            self.log.error(
                "accounts can't be read from {path}: {error}",
                path=str(error.filename or self._users.path),
                error=error.strerror,
            )
            raise AuthenticationUnavailable("accounts can't be read, please try again later") from None
        finally:
            self._waiting -= 1

    # --- in a thread -----------------------------------------------------------------------------

    def _check(self, login: str, password: bytes) -> _Right | None:
        """Costs one hash, but for app passwords that are right."""
        self._users.refresh()
        self._apps.refresh()
        user = self._users.find(login)
        if user is not None and len(password) <= MAX_PASSWORD:
            app = None if user.locked else self._apps.find(user.account.name, password)
            if app is not None:
                return _Right(user.account, app)
            try:
                return _Right(user.account) if verify(user.stored, password) else None
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

    def _keys(self, login: str) -> ScramKeys:
        """Of the account, or made up. The same every time: or else it would tell who exists (RFC 5802 §7)."""
        self._users.refresh()
        user = self._users.find(login)
        keys = user.scram() if user is not None else None
        if keys is not None:
            return keys
        name = self._users.folded(login).encode("utf-8", "surrogatepass")

        def made_up(purpose: bytes) -> bytes:
            return hmac.digest(self._scram.key, purpose + b"\0" + name, "sha256")

        return ScramKeys(
            made_up(b"salt")[:16], self._scram.iterations, made_up(b"stored"), made_up(b"server")
        )

    # --- what was right lately -------------------------------------------------------------------

    def _look(self) -> _Stamps:
        return self._users.stamp(), self._apps.stamp()

    def _used(self, right: _Right, client: Client) -> Account | None:
        if right.app is None:
            return right.account
        if not right.for_service(client.service):
            self.log.warn(
                "the app password {label!r} of {login} is not for {service}",
                label=right.app.label,
                login=right.account.name,
                service=client.service,
            )
            return None
        today = datetime.fromtimestamp(self._clock.seconds(), UTC).date().isoformat()
        self._last_use.note(right.app, today)
        return right.account

    def _digest(self, login: str, password: bytes) -> bytes:
        name = login.encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, len(name).to_bytes(4, "big") + name + password, "sha256")

    def _note(self, digest: bytes, right: _Right, stamps: _Stamps) -> None:
        if stamps[0] is None or self._remember <= 0:
            return
        if stamps != self._stamps:
            self._right.clear()
            self._stamps = stamps
        self._right[digest] = right, self._clock.seconds() + self._remember
        self._right.move_to_end(digest)
        while len(self._right) > self._max_remembered:
            self._right.popitem(last=False)

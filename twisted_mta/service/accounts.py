"""Who exists, kept up to date: accounts, aliases and lists, read again when their files change."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.config.schema import Config
from twisted_mta.core.sasl import Claim, Proof, Secret
from twisted_mta.interfaces import Account, AuthenticationUnavailable, Client, IAuthenticator
from twisted_mta.service.failures import Failures
from twisted_mta.store.app_passwords import AppPasswordFile, LastUse, used_file
from twisted_mta.store.authenticator import PasswdAuthenticator, ScramSettings
from twisted_mta.store.directory import Directory, DirectoryHolder, load_directory
from twisted_mta.store.secret import installation_secret
from twisted_mta.store.srs import make_secret
from twisted_mta.store.threads import InlineWorkers, Workers
from twisted_mta.store.users import PasswdFile

#: Seconds between looks at the files, and how many looks until the use of app passwords is written down.
INTERVAL = 2.0
FLUSH = 30

_Stamps = dict[str, tuple[int, int, int] | None]


@attrs.frozen
class LoadedAccounts:
    """What the files say."""

    users: PasswdFile
    apps: AppPasswordFile
    directory: Directory
    stamps: _Stamps


@implementer(IAuthenticator)
class Accounts:
    """Holds the directory and checks passwords; both follow the files. `directory` and this object stay the same for ever.

    What can't be read leaves what was there in force.
    """

    log = Logger()

    def __init__(
        self, config: Config, workers: Workers | InlineWorkers, clock: Any, random: Callable[[int], bytes]
    ) -> None:
        """Reads the files, blocking. Raises OSError where the accounts can't be read."""
        self._workers = workers
        self._clock = clock
        self._random = random
        self._config = config
        self._scram_key = installation_secret(config.data, random)
        self._last_use = LastUse(used_file(config.data))
        self._looks = 0
        loaded = self._load(config)
        self._stamps = loaded.stamps
        self.directory = DirectoryHolder(loaded.directory)
        self._apps = loaded.apps
        self._authenticator = self._make_authenticator(loaded)
        self._failures = Failures(clock.seconds, config.limits.login_failures)
        #: Told of each address from which a login failed.
        self.failed: Callable[[str], object] = lambda address: None
        self._watch = LoopingCall(self._look)
        self._watch.clock = clock

    def _load(self, config: Config) -> LoadedAccounts:
        users = PasswdFile(config.accounts.file, config.domains[0], config.accounts.maildir)
        apps = AppPasswordFile.beside(config.accounts.file)
        # Looked at before reading: so a change in between is noticed, if twice.
        if config.forward.srs:
            make_secret(config.srs_secret_file, self._random)
        files = (users.path, apps.path, config.srs_secret_file, *config.address_files)
        stamps = {str(path): _stamp(path) for path in files}
        users.refresh()
        apps.refresh()
        directory, problems = load_directory(config, users, self._clock.seconds)
        for problem in problems:
            self.log.warn("aliases: {problem}", problem=str(problem))
        stamps |= {path: _stamp(path) for path in directory.includes}
        return LoadedAccounts(users, apps, directory, stamps)

    def _make_authenticator(self, loaded: LoadedAccounts) -> PasswdAuthenticator:
        accounts = self._config.accounts
        return PasswdAuthenticator(
            loaded.users,
            self._workers,
            self._clock,
            self._random,
            apps=loaded.apps,
            last_use=self._last_use,
            scram=ScramSettings(
                mode=accounts.scram, iterations=accounts.scram_iterations, key=self._scram_key
            ),
        )

    # --- IAuthenticator --------------------------------------------------------------------------

    async def authenticate(self, claim: Claim, client: Client) -> Account | None:
        """See IAuthenticator."""
        account = self._authenticator.remembered(claim, client)
        if account is not None:
            return account  # whatever else came from that address: it may be shared
        self._refuse_guessers(client)
        account = await self._authenticator.authenticate(claim, client)
        if account is None:
            delay = self._failures.note(client.address)
            self.failed(client.address)
            self.log.warn(
                "login as {login!r} by {service} from {peer} failed: {reason}",
                login=claim.login[:255],
                service=client.service,
                peer=client.address,
                session=client.session_id,
                reason=(isinstance(claim, Proof) and claim.problem) or "wrong login or password",
            )
            if delay:
                await deferLater(self._clock, delay, _nothing)
        return account

    async def secret(self, login: str, client: Client) -> Secret:
        """See IAuthenticator."""
        self._refuse_guessers(client)
        return await self._authenticator.secret(login, client)

    def offers_scram(self) -> bool:
        """See IAuthenticator."""
        return self._authenticator.offers_scram()

    def failed_elsewhere(self, address: str) -> None:
        """A login from that address failed in another process of this server."""
        self._failures.note(address)

    def _refuse_guessers(self, client: Client) -> None:
        minutes = self._failures.minutes_left(client.address)
        if minutes:
            raise AuthenticationUnavailable(
                f"too many failed logins from your address, please try again in {minutes} minutes"
            )

    # --- the files -------------------------------------------------------------------------------

    async def reload(self, config: Config) -> None:
        """Read everything again, by a new configuration. Raises OSError, and then nothing has changed."""
        self.take(config, await self.load(config))

    async def load(self, config: Config) -> LoadedAccounts:
        """Read everything, and change nothing. Raises OSError."""
        return await self._workers.run(self._load, config)

    def take(self, config: Config, loaded: LoadedAccounts) -> None:
        """Put it in force."""
        self._config, self._stamps = config, loaded.stamps
        self.directory.replace(loaded.directory)
        self._apps = loaded.apps
        self._authenticator = self._make_authenticator(loaded)
        self._failures.limit = config.limits.login_failures

    def start(self) -> None:
        """Begin to look at the files every few seconds."""
        self._watch.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Stop looking, and write down what is not yet written."""
        if self._watch.running:
            self._watch.stop()
        if self._last_use.dirty:
            self._flush()

    def _look(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._refresh())

    def _flush(self) -> None:
        """Blocking."""
        try:
            self._last_use.flush(self._apps.ids.__contains__)
        except OSError as error:
            self.log.error("the last use of app passwords can't be written: {error}", error=error)

    async def _refresh(self) -> None:
        self._looks += 1
        if self._looks % FLUSH == 0 and self._last_use.dirty:
            await self._workers.run(self._flush)
        stamps = await self._workers.run(_look_at, tuple(self._stamps))
        if stamps == self._stamps:
            return
        try:
            await self.reload(self._config)
        except OSError as error:
            self._stamps = stamps  # said once a change, not every two seconds
            self.log.error("accounts and aliases stay as they were: {error}", error=error)
        else:
            self.log.info("accounts and aliases were read again")


def _nothing() -> None:
    pass


def _look_at(paths: Iterable[str]) -> _Stamps:
    return {path: _stamp(path) for path in paths}


def _stamp(path: str | os.PathLike[str]) -> tuple[int, int, int] | None:
    """What changes with a file: inode, modification time and size; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size

"""Who exists, kept up to date: accounts, aliases and lists, read again when their files change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.config.schema import Config
from twisted_mta.core.sasl import Claim, Proof, Secret
from twisted_mta.core.values import value
from twisted_mta.interfaces import Account, AuthenticationUnavailable, Client, IAuthenticator
from twisted_mta.service.failures import Failures
from twisted_mta.service.watched import Unusable, Watched
from twisted_mta.store.app_passwords import AppPasswordFile, LastUse, used_file
from twisted_mta.store.authenticator import PasswdAuthenticator, ScramSettings
from twisted_mta.store.directory import Directory, DirectoryHolder, load_directory
from twisted_mta.store.rules import RuleFiles, load_rules
from twisted_mta.store.secret import installation_secret
from twisted_mta.store.srs import make_secret
from twisted_mta.store.stamps import Stamps, look_at
from twisted_mta.store.threads import InlineWorkers, Workers
from twisted_mta.store.users import PasswdFile

#: Seconds until the use of app passwords is written down.
FLUSH = 60.0

#: Where a problem is, which changes with every line above it.
_LINE = re.compile(r":[0-9]+\b")


@value
class LoadedAccounts:
    """What the files say."""

    users: PasswdFile
    apps: AppPasswordFile
    directory: Directory
    #: How the files looked before they were read.
    stamps: Stamps
    #: What was passed over in the accounts, and in the aliases.
    bad_users: tuple[str, ...]
    bad_aliases: tuple[str, ...]
    rules: RuleFiles

    @property
    def problems(self) -> tuple[str, ...]:
        """All of it."""
        return self.bad_users + self.bad_aliases + self.rules.problems


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
        self._rules = RuleFiles()
        loaded = self._load(config)
        self._loaded = loaded
        self._rules = loaded.rules
        self.directory = DirectoryHolder(loaded.directory)
        self._apps = loaded.apps
        self._authenticator = self._make_authenticator(loaded)
        self._failures = Failures(clock.seconds, config.limits.login_failures)
        #: Told of each address from which a login failed.
        self.failed: Callable[[str], object] = lambda address: None
        self._flushing = LoopingCall(self._flush_later)
        self._flushing.clock = clock
        #: For whoever watches files.
        self.watched = Watched("accounts and aliases", lambda: self._loaded.stamps, self._read_again)
        #: Apart from those: what one user has broken holds up nobody else.
        self.watched_rules = Watched("rules of users", lambda: self._rules.stamps, self._read_rules)
        self._tell(loaded)

    def _load(self, config: Config) -> LoadedAccounts:
        users = PasswdFile(config.accounts.file, config.domains[0], config.accounts.maildir)
        apps = AppPasswordFile.beside(config.accounts.file)
        # Looked at before reading: so a change in between is noticed, if twice.
        if config.forward.srs:
            make_secret(config.srs_secret_file, self._random)
        stamps = look_at((users.path, apps.path, config.srs_secret_file, *config.address_files))
        users.refresh()
        apps.refresh()
        rules = load_rules(config.rules_directory, users.names(), self._rules.rules)
        directory, problems = load_directory(config, users, rules.rules, self._clock.seconds)
        stamps |= look_at(directory.includes)
        bad_aliases = tuple(map(str, problems))
        return LoadedAccounts(users, apps, directory, stamps, tuple(users.problems), bad_aliases, rules)

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
            remember=accounts.remember_logins,
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

    @property
    def problems(self) -> Sequence[str]:
        """What is passed over in the files that are in force, for an administrator."""
        return (*self._loaded.bad_users, *self._loaded.bad_aliases, *self._rules.problems)

    async def load(self, config: Config) -> LoadedAccounts:
        """Read everything, and change nothing. Raises OSError."""
        return await self._workers.run(self._load, config)

    def broken_by(self, loaded: LoadedAccounts) -> Sequence[str]:
        """What can't be read in the accounts and aliases, where what is in force has no such problem. Whose lines these are would
        be refused for good if it were taken."""
        before = self._loaded
        return (
            *_not_in(loaded.bad_users, before.bad_users),
            *_not_in(loaded.bad_aliases, before.bad_aliases),
        )

    def take(self, config: Config, loaded: LoadedAccounts) -> None:
        """Put it in force."""
        self._config, self._loaded, self._rules = config, loaded, loaded.rules
        self.directory.replace(loaded.directory)
        self._apps = loaded.apps
        self._authenticator = self._make_authenticator(loaded)
        self._failures.limit = config.limits.login_failures
        self._tell(loaded)

    def start(self) -> None:
        """Begin to write down the use of app passwords."""
        self._flushing.start(FLUSH, now=False)

    def stop(self) -> None:
        """Write down what is not yet written."""
        if self._flushing.running:
            self._flushing.stop()
        if self._last_use.dirty:
            self._flush()

    def _flush_later(self) -> Deferred[None] | None:
        return self._workers.run(self._flush) if self._last_use.dirty else None

    def _flush(self) -> None:
        """Blocking."""
        try:
            self._last_use.flush(self._apps.ids.__contains__)
        except OSError as error:
            self.log.error("the last use of app passwords can't be written: {error}", error=error)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._config

    async def _read_again(self) -> Sequence[str]:
        """See Watched. What has a problem that it did not have before stays as it was: the aliases, or with the accounts all."""
        before, loaded = self._loaded, await self.load(self._config)
        new = _not_in(loaded.bad_users, before.bad_users)
        if new:
            raise Unusable(new)
        new = _not_in(loaded.bad_aliases, before.bad_aliases)
        if new:
            directory = self.directory.current.with_users(loaded.users).with_rules(loaded.rules.rules)
            loaded = attrs.evolve(loaded, directory=directory, bad_aliases=before.bad_aliases)
        self.take(self._config, loaded)
        return new

    async def _read_rules(self) -> Sequence[str]:
        """See Watched. Whose rules can't be read keeps the old ones; all others get theirs."""
        names, directory = self._loaded.users.names(), self._config.rules_directory
        found = await self._workers.run(load_rules, directory, names, self._rules.rules)
        # The watch tells of the problems, as long as they last.
        self._rules = attrs.evolve(found, problems=())
        self.directory.replace(self.directory.current.with_rules(found.rules))
        return found.problems

    def _tell(self, loaded: LoadedAccounts) -> None:
        for problem in loaded.problems:
            self.log.warn("passed over: {problem}", problem=problem)


def _not_in(problems: Iterable[str], known: Iterable[str]) -> Sequence[str]:
    """The problems that are new, wherever they are in their file."""
    old = {_LINE.sub("", problem) for problem in known}
    return [problem for problem in problems if _LINE.sub("", problem) not in old]


def _nothing() -> None:
    pass

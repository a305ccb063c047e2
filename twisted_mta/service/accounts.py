"""Who exists, kept up to date: accounts, aliases and lists, read again when their files change."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.config.schema import Config
from twisted_mta.interfaces import Account, IAuthenticator
from twisted_mta.store.authenticator import PasswdAuthenticator
from twisted_mta.store.directory import Directory, DirectoryHolder, load_directory
from twisted_mta.store.threads import InlineWorkers, Workers
from twisted_mta.store.users import PasswdFile

#: Seconds between looks at the files.
INTERVAL = 2.0

_Stamps = dict[str, tuple[int, int, int] | None]


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
        users, directory, self._stamps = self._load(config)
        self.directory = DirectoryHolder(directory)
        self._authenticator = self._make_authenticator(users)
        self._watch = LoopingCall(self._look)
        self._watch.clock = clock

    def _load(self, config: Config) -> tuple[PasswdFile, Directory, _Stamps]:
        # Looked at before reading: so a change in between is noticed, if twice.
        stamps = {str(path): _stamp(path) for path in (config.accounts.file, *config.aliases)}
        users = PasswdFile(config.accounts.file, config.domains[0], config.accounts.maildir)
        users.refresh()
        directory, problems = load_directory(config, users)
        for problem in problems:
            self.log.warn("aliases: {problem}", problem=str(problem))
        return users, directory, stamps | {path: _stamp(path) for path in directory.includes}

    def _make_authenticator(self, users: PasswdFile) -> PasswdAuthenticator:
        return PasswdAuthenticator(users, self._workers, self._clock, self._random)

    def authenticate(self, login: str, password: bytes) -> Awaitable[Account | None]:
        """See IAuthenticator."""
        return self._authenticator.authenticate(login, password)

    async def reload(self, config: Config) -> None:
        """Read everything again, by a new configuration. Raises OSError, and then nothing has changed."""
        users, directory, stamps = await self._workers.run(self._load, config)
        self._config, self._stamps = config, stamps
        self.directory.replace(directory)
        self._authenticator = self._make_authenticator(users)

    def start(self) -> None:
        """Begin to look at the files every few seconds."""
        self._watch.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Stop looking."""
        if self._watch.running:
            self._watch.stop()

    def _look(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._refresh())

    async def _refresh(self) -> None:
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


def _look_at(paths: Iterable[str]) -> _Stamps:
    return {path: _stamp(path) for path in paths}


def _stamp(path: str | os.PathLike[str]) -> tuple[int, int, int] | None:
    """What changes with a file: inode, modification time and size; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size

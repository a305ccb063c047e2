"""Where mail leaves the mail system on this machine: files, commands, and the functions of an application."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Mapping

from twisted.internet.interfaces import IReactorTime

from twisted_mta.config.handlers import HandlerTable
from twisted_mta.config.schema import Config
from twisted_mta.core.queue import QueuedRecipient, Transport
from twisted_mta.delivery.command import CommandDelivery
from twisted_mta.delivery.file import FileDelivery
from twisted_mta.delivery.handler import HandlerCalls, HandlerDelivery
from twisted_mta.interfaces import IDelivery
from twisted_mta.net.commands import CommandRunner, HelperProcess, identity
from twisted_mta.service.inline import InlineHandlers
from twisted_mta.store.threads import InlineWorkers, Workers


class Outlets:
    """The three of them, for `service.assembly`."""

    def __init__(
        self,
        config: Config,
        handlers: Callable[[], HandlerTable],
        disk: Workers | InlineWorkers,
        threads: Workers | InlineWorkers,
        commands: CommandRunner,
        clock: IReactorTime,
    ) -> None:
        """`handlers` gives those in force. `threads` are those of handlers that may block."""
        self._threads = threads
        self._settings = config.delivery
        self._file = FileDelivery(
            config.delivery.files, disk, clock, hostname=config.hostname, started=clock.seconds()
        )
        self._command = CommandDelivery(config.delivery.command, commands, disk, config.data)
        self._calls = HandlerCalls(config.handlers, handlers, threads, clock)
        handler = HandlerDelivery(self._calls)
        self.inline = InlineHandlers(self._calls, handler)
        self.deliveries: Mapping[Transport, IDelivery] = {
            Transport.FILE: self._file,
            Transport.COMMAND: self._command,
            Transport.HANDLER: handler,
        }

    def at_once(self, recipient: QueuedRecipient) -> int:
        """How many attempts there may be at a time where this recipient goes."""
        if recipient.transport is Transport.COMMAND:
            return self._settings.command.concurrency
        if recipient.transport is Transport.HANDLER:
            match = self._calls.find(recipient.address)
            return self._calls.concurrency(match.handler) if match else 1
        return 1  # one file is written to by one at a time

    def reconfigure(self, config: Config) -> None:
        """Take over changed settings."""
        self._settings = config.delivery
        self._file.reconfigure(config.delivery.files)
        self._command.reconfigure(config.delivery.command)
        self._calls.reconfigure(config.handlers)

    def close(self) -> None:
        """End the threads; waits for handlers that are under way in one."""
        self._threads.close()


def start_commands(config: Config) -> HelperProcess | None:
    """Start the helper that runs commands, if any are to be run; as root, if that is what we still are.

    Raises twisted_mta.net.commands.HelperError, OSError.
    """
    user = config.delivery.command.user
    if not user:
        return None
    commands = identity(user).pw_uid
    ours = pwd.getpwnam(config.user).pw_uid if os.geteuid() == 0 and config.user else os.geteuid()
    # Another one can be started later by who is root then too, or needs not be.
    return HelperProcess(user, again=ours in (0, commands))

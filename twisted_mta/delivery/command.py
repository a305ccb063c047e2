"""Delivery to commands that aliases name ("|program arguments"): the message at their standard input, the outcome by the
code with which they end."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from twisted.logger import Logger
from zope.interface import implementer

from twisted_mta.config.schema import Commands
from twisted_mta.core.commands import CommandError, Delivery, environment, judge, split_command
from twisted_mta.core.explanation import Finding, Note
from twisted_mta.core.queue import Failed, Outcome, QueuedMessage, QueuedRecipient, TryLater
from twisted_mta.core.replies import Reply
from twisted_mta.delivery.body import CHUNK, final_fields, looping, loops, read_header
from twisted_mta.interfaces import Foreseen, IDelivery, IForesight, IStoredBody
from twisted_mta.net.commands import CommandRunner
from twisted_mta.store.maildir.files import ToDisk
from twisted_mta.store.threads import InlineWorkers, Workers

_OFF = TryLater(Reply(451, "4.3.5", "commands are not allowed by this server's settings"))
_UNREADABLE = TryLater(Reply(451, "4.3.0", "the message can't be read just now"))


class _Loop(Exception):
    """The message was given to this command's alias before."""


@implementer(IDelivery, IForesight)
class CommandDelivery:
    """IDelivery for Transport.COMMAND. `recipient.target` is the command.

    How many run at a time is the queue manager's to say. A command that ended well may be run again for the same message
    if we crash before that is noted: QUEUE_ID and RECIPIENT in its environment tell.
    """

    log = Logger()

    def __init__(
        self, settings: Commands, runner: CommandRunner, workers: Workers | InlineWorkers, directory: Path
    ) -> None:
        """`directory`: where a copy of the message may be put while a command reads it."""
        self._settings = settings
        self._runner = runner
        self._workers = workers
        self._directory = directory

    def reconfigure(self, settings: Commands) -> None:
        """Run commands with these settings from now on; as the same user."""
        self._settings = settings

    def destination(self, recipient: QueuedRecipient) -> str:
        """See IDelivery: each run is an attempt of its own."""
        return f"{recipient.address}|{recipient.target}"

    async def deliver(
        self,
        message: QueuedMessage,
        body: IStoredBody,
        recipients: Sequence[QueuedRecipient],
        destination: str,
    ) -> Sequence[Outcome]:
        """See IDelivery. One run, whichever aliases of the sender's choice led to it."""
        outcome = await self._deliver(message, body, recipients[0])
        self.log.info(
            "{queue_id}: {recipient} by command {command}: {reply}",
            queue_id=message.id,
            recipient=str(recipients[0].address),
            command=recipients[0].target,
            reply=str(outcome.reply),
        )
        return [outcome] * len(recipients)

    async def foresee(self, message: QueuedMessage, recipient: QueuedRecipient, header: bytes) -> Foreseen:
        """See IForesight. What the command will say, only the command knows."""
        argv = self._arguments(recipient)
        data: dict[str, Any] = {"command": recipient.target}
        if isinstance(argv, TryLater):
            note = Note("command", str(argv.reply), Finding.LATER, where="delivery.command", data=data)
            return Foreseen(note, failure=argv.reply)
        if loops(header, recipient.address):
            reply = looping(recipient.address)
            return Foreseen(Note("command", str(reply), Finding.REFUSED, data=data), failure=reply)
        text = f"{' '.join(map(shlex.quote, argv))}, as {self._settings.user}"
        note = Note("command", text, where="delivery.command", data={**data, "argv": list(argv)})
        return Foreseen(note, (recipient.target,))

    async def close(self) -> None:
        """See IDelivery."""
        self._runner.close()

    async def _deliver(
        self, message: QueuedMessage, body: IStoredBody, recipient: QueuedRecipient
    ) -> Outcome:
        settings = self._settings
        argv = self._arguments(recipient)
        if isinstance(argv, TryLater):
            return argv
        told = environment(
            Delivery(
                queue_id=message.id,
                sender=message.sender,
                recipient=recipient.address,
                original=recipient.original,
            ),
            user=settings.user,
            home=str(settings.directory),
            path=settings.path,
        )
        try:
            file = await self._workers.run(self._write, message, body, recipient)
        except _Loop:
            return Failed(looping(recipient.address))
        except OSError as error:
            self.log.error(
                "{queue_id}: can't copy it for a command: {error}", queue_id=message.id, error=str(error)
            )
            return _UNREADABLE
        try:
            end = await self._runner.run(argv, told, str(settings.directory), settings.timeout, file.fileno())
        finally:
            file.close()
        return judge(end)

    def _arguments(self, recipient: QueuedRecipient) -> Sequence[str] | TryLater:
        """Those of its command, or why it can't be run."""
        settings = self._settings
        if not settings.user or settings.directory is None:
            return _OFF
        try:
            return split_command(recipient.target, shell=settings.shell)
        except CommandError as error:
            return TryLater(Reply(451, "4.3.5", f"the command can't be run: {error}"))

    def _write(self, message: QueuedMessage, body: IStoredBody, recipient: QueuedRecipient) -> BinaryIO:
        """The message in a file without a name, with LF: so a command that does not read it holds up nobody. Blocks."""
        file: BinaryIO = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
        try:
            lines = ToDisk()
            with body.open() as source:
                begin = read_header(source)
                # A command may well send the message on, and that may come back.
                if loops(message.prefix + begin, recipient.address):
                    raise _Loop
                head = final_fields(message.sender, recipient.address) + message.prefix
                _write_all(file, lines.feed(head + begin))
                while chunk := source.read(CHUNK):
                    _write_all(file, lines.feed(chunk))
            _write_all(file, lines.finish())
            os.lseek(file.fileno(), 0, os.SEEK_SET)
        except BaseException:
            file.close()
            raise
        return file


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file.fileno(), view) :]

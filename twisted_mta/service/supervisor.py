"""The parent of the workers: binds the sockets, gives up root, and sees to it that the workers are there.

It serves nobody itself. `mta` talks to it, and hears of all workers as of one server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock, TimeoutError, gatherResults
from twisted.internet.error import CannotListenError
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, Logger

from twisted_mta import __version__
from twisted_mta.config.diff import changes, keep, restart_needed
from twisted_mta.config.errors import ConfigErrors
from twisted_mta.config.loader import load_with_warnings, read_text
from twisted_mta.config.schema import Config
from twisted_mta.net.commands import HelperError, HelperProcess
from twisted_mta.service.control import AlreadyRunning, ControlError, ControlServer, Handler
from twisted_mta.service.crew import Member
from twisted_mta.service.desk import Desk
from twisted_mta.service.heartbeat import every_beat
from twisted_mta.service.interpreter import interpreter
from twisted_mta.service.lock import DataLock
from twisted_mta.service.merging import COMMANDS, joined
from twisted_mta.service.outlets import start_commands
from twisted_mta.service.privileges import PrivilegeError, drop_privileges
from twisted_mta.service.reload import REFUSED
from twisted_mta.service.shards import places
from twisted_mta.service.sockets import BindError, SharedSockets
from twisted_mta.service.start import StartError, give_up
from twisted_mta.service.usage import UsageKeeper
from twisted_mta.service.watched import listed
from twisted_mta.store.secret import installation_secret
from twisted_mta.store.side_file import SideFileError
from twisted_mta.store.threads import Workers
from twisted_mta.store.usage import UsageFile

#: Seconds that the status of a worker may take; it is told without those that hang.
_STATUS = 15.0


def worker_count(config: Config) -> int:
    """How many workers a configuration means: "auto" is one for each processor that this process may use."""
    # PyPy knows only how many there are.
    return config.workers or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


class Supervisor(Service):
    """`twistd mta` with more than one worker. `command` starts this program; what makes it a worker is added."""

    name = "mta"
    log = Logger()

    def __init__(
        self, config: Config, text: str, command: Sequence[str], reactor: Any, observer: ILogObserver | None
    ) -> None:
        """`text` is what the configuration file said."""
        self._config = config
        self._first = self._text = text
        self._command = list(command)
        self._reactor = reactor
        self._observer = observer
        self._lock = DataLock(config.data)
        self._sockets = SharedSockets(reactor)
        self._members: list[Member] = []
        self._watch: LoopingCall | None = None
        self._helper: HelperProcess | None = None
        #: The descriptor that each worker was given of its connection to the helper.
        self._ends: dict[int, int] = {}
        self._control: ControlServer | None = None
        self._started = 0.0
        self._reloading = DeferredLock()
        #: Why the last reload changed nothing.
        self._refusal: Sequence[str] = ()
        self._side_thread = Workers(reactor, 1, "usage")
        self._count = worker_count(config)

    def setServiceParent(self, parent: Any) -> None:
        """Join the application, and tell it where to log."""
        if self._observer is not None:
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]

    # --- start -----------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Bind the sockets, as root if that is what we are, and be root no longer."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        try:
            self._sockets.bind(self._config.listen, self._count)
            self._helper = start_commands(self._config)
            drop_privileges(self._config.user, self._config.group, self._config.data)
        except (BindError, HelperError, PrivilegeError, OSError) as error:
            give_up(error)
        for role, address in self._sockets.addresses:
            self.log.info("{role} listens on {address}", role=role, address=address)

    def startService(self) -> None:
        """Start the workers, and wait until they are up: if one can't be, there is no server."""
        super().startService()  # type: ignore[no-untyped-call]
        try:
            self._lock.acquire()
            # Made by one, since all must have the same.
            installation_secret(self._config.data, os.urandom)
            self._start_workers()
            self._control = ControlServer(self._config.control_socket, self._handlers(), self._reactor)
            self._control.startService()
        except (StartError, AlreadyRunning, SideFileError, CannotListenError, OSError) as error:
            for member in self._members:
                member.kill()
            give_up(error)
        self._started = self._reactor.seconds()
        signal.signal(signal.SIGHUP, self._hang_up)
        self.log.info(
            "twisted_mta {version} is up as {hostname}, with {workers} workers",
            version=__version__,
            hostname=self._config.hostname,
            workers=self._count,
        )

    def _start_workers(self) -> None:
        data = self._config.data
        usage = self._usage = UsageKeeper(
            UsageFile(self._config.usage_file), self._side_thread, self._reactor
        )
        desk = self._desk = Desk(self._count, usage, self._reactor, self._tell)
        usage.start()
        self._places = places(self._count, data, self._lock)
        self._members = [
            Member(number, self._reactor, self._spawn, self._orders, desk.handlers(number), self._changed)
            for number in range(self._count)
        ]
        for member in self._members:
            member.launch()
        for member in self._members:
            member.await_first()
        for member in self._members:
            member.watch()
        self._watch = every_beat(self._look, self._reactor)

    def _spawn(self, number: int, channel: int) -> subprocess.Popen[bytes]:
        passed = [channel, self._lock.descriptor]
        passed += [one for each in self._sockets.descriptors for one in each]
        with contextlib.ExitStack() as ours:
            if self._helper is not None:
                try:
                    end = ours.enter_context(self._helper.connect())
                except HelperError as error:  # the rest of the server can do without
                    self.log.error(
                        "worker {worker} will run no commands: {why}", worker=number, why=str(error)
                    )
                    self._ends.pop(number, None)
                else:
                    self._ends[number] = end.fileno()
                    passed.append(end.fileno())
            return subprocess.Popen(
                [*self._command, "--worker", str(number), "--channel", str(channel)],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                start_new_session=True,  # a terminal's Ctrl-C is for the parent, which tells them
            )

    def _orders(self, number: int) -> Mapping[str, Any]:
        place = self._places[number]
        return {
            "worker": place.worker,
            "workers": place.workers,
            "former": place.former,
            "parts": place.parts,
            "path": str(self._config.path),
            "first": self._first,
            "text": self._text,
            "sockets": self._sockets.descriptors,
            "lock": self._lock.descriptor,
            "commands": self._ends.get(number, -1),
            "missing": self._missing(),
        }

    # --- stop ------------------------------------------------------------------------------------

    def stopService(self) -> Deferred[None]:
        """Let the workers stop in order. Fires when they have ended."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        if self._watch is not None and self._watch.running:
            self._watch.stop()
        await gatherResults([Deferred.fromCoroutine(member.stop()) for member in self._members])
        if self._control is not None:
            await self._control.stopService()
        self._desk.stop()
        await self._usage.stop()
        self._side_thread.close()
        await self._sockets.close()
        self._lock.release()
        self.log.info("all workers have stopped")

    # --- while it runs ---------------------------------------------------------------------------

    def _look(self) -> None:
        for member in self._members:
            member.look()

    def _tell(self, number: int, command: str, arguments: Mapping[str, Any]) -> None:
        self._members[number].tell(command, arguments)

    def _missing(self) -> list[int]:
        return [member.number for member in self._members if member.missing]

    def _changed(self, number: int) -> None:
        """A worker came up, or ended."""
        if not self.running:
            return
        missing = self._missing()
        (self._desk.went if number in missing else self._desk.came)(number)
        for member in self._members:
            member.tell("missing", {"workers": missing})
        if number not in missing and self._members[number].orders["text"] != self._text:
            self._start_reload()  # it was started just before a reload

    def _hang_up(self, *_: object) -> None:
        """SIGHUP: reload. Signal handlers run between any two instructions, so the reactor does it later."""
        self._reactor.callFromThread(self._start_reload)

    def _start_reload(self) -> None:
        Deferred.fromCoroutine(self._reload({})).addErrback(
            lambda failure: self.log.failure("reload failed", failure)
        )

    def _handlers(self) -> Mapping[str, Handler]:
        """The commands of the control socket."""
        asked = {
            command: joined(command, [_asking(member, command) for member in self._members])
            for command in COMMANDS
        }
        return {**asked, "status": self._status, "reload": self._reload}

    async def _reload(self, arguments: Mapping[str, Any]) -> Any:
        """All workers take the new configuration, or none does."""
        async with self._reloading:
            return await self._reload_once()

    async def _reload_once(self) -> Any:
        path = self._config.path
        try:
            text = await deferToThread(read_text, path)
            config, _ = await deferToThread(load_with_warnings, path, text=text)
        except ConfigErrors as error:
            return self._refused([str(problem) for problem in error.problems])
        try:
            found = await self._ask_all("reload.prepare", {"text": text})
        except ControlError as error:
            return self._refused([str(error)])
        for answer in found:
            if answer["failed"]:
                return self._refused(answer["problems"])
        # From here on whoever is started anew has it too.
        self._text = text
        self._config = keep(self._config, config, restart_needed(changes(self._config, config)))
        await self._ask_all("reload.commit", {})
        self._refusal = ()
        self.log.info("configuration reloaded by all workers")
        return found[0]

    def _refused(self, problems: Sequence[str]) -> Any:
        for problem in problems:
            self.log.error("reload: {problem}", problem=problem)
        self.log.error("reload failed, the running configuration stays in force")
        self._refusal = listed(REFUSED, problems)
        return {"failed": True, "problems": list(problems)}

    async def _ask_all(self, command: str, arguments: Mapping[str, Any]) -> list[Any]:
        asked = [Deferred.fromCoroutine(member.ask(command, arguments)) for member in self._members]
        answers: list[Any] = []
        failure: ControlError | None = None
        for one in asked:  # all of them, so that no answer is left over
            try:
                answers.append(await one)
            except ControlError as error:
                failure = error
        if failure is not None:
            raise failure
        return answers

    async def _status(self, arguments: Mapping[str, Any]) -> Any:
        there = [member for member in self._members if member.up]
        told = {
            member.number: answer
            for member, answer in zip(
                there,
                await gatherResults([Deferred.fromCoroutine(self._status_of(member)) for member in there]),
                strict=True,
            )
            if answer is not None
        }
        return {
            "version": __version__,
            "python": interpreter(),
            "hostname": self._config.hostname,
            "started": self._started,
            "pid": os.getpid(),
            "config": str(self._config.path),
            "workers": [_worker_status(member, told.get(member.number)) for member in self._members],
            "listen": [
                {
                    "role": role,
                    "address": address,
                    "connections": sum(answer["listen"][number]["connections"] for answer in told.values()),
                }
                for number, (role, address) in enumerate(self._sockets.addresses)
            ],
            "queue": {"being delivered": sum(answer["queue"]["being delivered"] for answer in told.values())},
            "connections": sum(answer["connections"] for answer in told.values()),
            "services": _services(list(told.values())),
            **_room(list(told.values())),
            "sent in the last day": self._usage.status(),
            "warnings": [
                *self._refusal,
                *(member.warning for member in self._members if member.warning),
                *dict.fromkeys(text for answer in told.values() for text in answer["warnings"]),
            ],
        }

    async def _status_of(self, member: Member) -> Any:
        try:
            return await Deferred.fromCoroutine(member.ask("status", {})).addTimeout(_STATUS, self._reactor)
        except (ControlError, TimeoutError):
            return None  # it ended meanwhile, or hangs


def _asking(member: Member, command: str) -> Handler:
    async def ask(arguments: Mapping[str, Any]) -> Any:
        return await member.ask(command, arguments)

    return ask


def _worker_status(member: Member, told: Mapping[str, Any] | None) -> dict[str, Any]:
    status = {
        "worker": member.number,
        "state": "up" if told is not None else "no answer" if member.up else "down",
        "pid": member.pid,
        "since": member.started,
        "restarts": member.restarts,
        "connections": told["connections"] if told is not None else 0,
        "being delivered": told["queue"]["being delivered"] if told is not None else 0,
    }
    if member.last_end is not None:
        at, how = member.last_end
        status["last end"] = {"at": at, "how": how}
    return status


def _services(told: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The connections of all together; what a service is sure of is the same for all."""
    found: dict[str, dict[str, Any]] = {}
    for one in (one for answer in told for one in answer["services"]):
        known = found.setdefault(one["service"], {**one, "connections": 0})
        known["connections"] += one["connections"]
    return list(found.values())


def _room(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether there is room for mail: the disk is the same for all, the memory is divided."""
    if not told:
        return {}
    coming = [answer["messages coming in"] for answer in told]
    return {
        "disk of the queue": told[0]["disk of the queue"],
        "messages coming in": {name: sum(one[name] for one in coming) for name in ("in memory", "limit")},
    }

"""The worker processes, as their parent sees them: started, watched, and replaced when they end."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twisted_mta.service.channel import Channel, ChannelClosed, read_line, send_line
from twisted_mta.service.control import Handler
from twisted_mta.service.heartbeat import NOTEWORTHY, START, Silence
from twisted_mta.service.start import StartError

#: Seconds until a worker that ended is replaced: at once, then longer each time, if it does not last.
DELAYS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
#: Seconds that a worker has to last, to count as one that works.
LASTING = 60.0
#: Seconds that a command waits for a worker that is being replaced.
PATIENCE = 15.0
#: Seconds between two looks whether a process has ended.
_LOOK = 0.05
#: Seconds until a process that hung up is killed, and one that hangs, which has to tell where only.
_HANGING = 30.0
_LAST_WORDS = 2.0

#: (number, descriptor of its end of the channel) -> the process.
Spawn = Callable[[int, int], "subprocess.Popen[bytes]"]


class Member:
    """One place in the crew, and the process that has it."""

    log = Logger()

    def __init__(
        self,
        number: int,
        reactor: Any,
        spawn: Spawn,
        orders: Callable[[int], Mapping[str, Any]],
        handlers: Mapping[str, Handler],
        changed: Callable[[int], None],
    ) -> None:
        """`orders` is the first line for a new process; `changed` is called when it comes up, and when it ends."""
        self.number = number
        self._reactor = reactor
        self._spawn = spawn
        self._orders = orders
        self._handlers = {**handlers, "ready": self._ready, "failed": self._failed, "alive": self._alive}
        self._changed = changed
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._end: socket.socket | None = None
        self._timer: IDelayedCall | None = None
        self._waiting: list[Deferred[None]] = []
        self._stopping = False
        self._silence = Silence()
        #: What is known of why the process ends.
        self._reason = ""
        self._hangs = False
        #: Whether it goes on though it was killed.
        self._immortal = False
        #: How often a process of this place has ended too soon, one after another.
        self._falls = 0
        self.restarts = 0
        self.up = False
        #: Whether the others take care of its sockets: from its end until there is another one.
        self.missing = False
        self.started = 0.0
        #: When and how the last process of this place ended, if one did.
        self.last_end: tuple[float, str] | None = None
        #: The text of the configuration that it was started with.
        self.orders: Mapping[str, Any] = {}

    @property
    def pid(self) -> int:
        """Of the process; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    # --- start -----------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start the process; `await_first` or `watch` comes next. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = self._spawn(self.number, theirs.fileno())
        self._end = ours
        self._reason = ""
        self._hangs = False
        self._silence.begin()
        self.orders = self._orders(self.number)
        self.started = self._reactor.seconds()

    def await_first(self) -> None:
        """Before the reactor runs: wait until the process is up. Raises StartError, OSError."""
        assert self._end is not None  # launched
        self._end.settimeout(START)
        try:
            send_line(self._end, self.orders)
            said = read_line(self._end)
        except TimeoutError:
            raise StartError(f"worker {self.number} was not up after {START:.0f} seconds") from None
        except (EOFError, OSError):
            raise StartError(f"worker {self.number} could not be started") from None
        if said["command"] == "failed":
            raise StartError(said["arguments"]["reason"])
        self.up = True
        self._silence.end()

    def watch(self) -> None:
        """Speak with the process from now on, and replace it when it ends."""
        assert self._end is not None  # launched
        end, self._end = self._end, None
        self._channel = Channel.over(end, self._reactor, self._handlers, self._hung_up)

    async def _ready(self, arguments: Mapping[str, Any]) -> None:
        self.up = True
        self.missing = False
        self._silence.end()
        self.log.info("worker {worker} is there again, process {pid}", worker=self.number, pid=self.pid)
        self._changed(self.number)
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    async def _failed(self, arguments: Mapping[str, Any]) -> None:
        self._reason = arguments["reason"]

    # --- a process that hangs --------------------------------------------------------------------

    async def _alive(self, arguments: Mapping[str, Any]) -> None:
        self._silence.end()

    def look(self) -> None:
        """Every BEAT seconds: whoever has not been heard for too long is ended, and so replaced."""
        if self._channel is None or not self._channel.open:
            return
        if self._silence.look():
            self._lose(f"{'not heard' if self.up else 'not up'} for {self._silence.seconds:.0f} seconds")
        elif self._silence.seconds == NOTEWORTHY:
            self.log.warn("{warning}", warning=self.warning)

    def _lose(self, why: str) -> None:
        self.log.error(
            "worker {worker} (process {pid}) hangs, {why}: it is killed",
            worker=self.number,
            pid=self.pid,
            why=why,
        )
        self._reason = why
        self._hangs = True
        assert self._process is not None  # it is watched
        assert self._channel is not None
        self._process.send_signal(signal.SIGQUIT)  # it tells where it hangs: see service.worker
        self._channel.close()  # and so `_hung_up` does the rest

    @property
    def warning(self) -> str:
        """What an administrator should know; "" if there is nothing."""
        who = f"worker {self.number} (process {self.pid})"
        if self._immortal:
            return f"{who} does not end though it was killed, as when a disk is stuck; a part of the queue waits for it"
        silent = self._silence.seconds
        if self._channel is None or not self._channel.open or silent < NOTEWORTHY:
            return ""
        return f"{who} has {'not been heard' if self.up else 'been starting'} for {silent:.0f} seconds"

    # --- the end of a process --------------------------------------------------------------------

    def _hung_up(self) -> None:
        was_up, self.up = self.up, False
        self.missing = True
        if was_up:
            self._changed(self.number)
        if self._channel is not None and self._channel.clogged:
            self._lose("it does not read what it is told")
        if self._stopping:
            return
        Deferred.fromCoroutine(self._replace()).addErrback(
            lambda failure: self.log.failure("worker {worker} can't be replaced", failure, worker=self.number)
        )

    async def _replace(self) -> None:
        code = await self._ended()
        lasted = self._reactor.seconds() - self.started
        self._falls = 0 if lasted >= LASTING else self._falls
        delay = DELAYS[min(self._falls, len(DELAYS) - 1)]
        self._falls += 1
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        if self._reason:
            how += f" ({self._reason})"
        self.log.error(
            "worker {worker} (process {pid}) ended {how} after {lasted:.0f} s; another one is started in {delay:.0f} s",
            worker=self.number,
            pid=self.pid,
            how=how,
            lasted=lasted,
            delay=delay,
        )
        self.last_end = self._reactor.seconds(), how
        self._process = None
        if not self._stopping:
            self._timer = self._reactor.callLater(delay, self._start_again)

    def _start_again(self) -> None:
        self.restarts += 1
        try:
            self.launch()
        except OSError as error:
            self.log.error("worker {worker} can't be started: {error}", worker=self.number, error=str(error))
            self._timer = self._reactor.callLater(DELAYS[-1], self._start_again)
            return
        self.watch()
        assert self._channel is not None  # watched
        self._channel.greet(self.orders)

    async def _ended(self) -> int:
        """Wait for the end of the process, which may need help; its exit code."""
        process = self._process
        assert process is not None  # it was launched
        patience = _LAST_WORDS if self._hangs else _HANGING
        since = self._reactor.seconds()
        killed = False
        while (code := process.poll()) is None:
            if self._reactor.seconds() - since > patience:
                self.log.error("worker {worker} does not end, and is killed", worker=self.number)
                process.kill()
                patience, since = _HANGING, self._reactor.seconds()
                self._immortal, killed = killed, True
            await deferLater(self._reactor, _LOOK)
        self._immortal = False
        return code

    # --- asking ----------------------------------------------------------------------------------

    async def ask(self, command: str, arguments: Mapping[str, Any]) -> Any:
        """Its answer; waits for a while if it is being replaced. Raises ControlError; ChannelClosed where it is not there."""
        if not self.up:
            await self._there()
        assert self._channel is not None  # it is up
        try:
            return await self._channel.ask(command, arguments)
        except ChannelClosed:
            raise ChannelClosed(f"worker {self.number} ended meanwhile, please try again") from None

    def tell(self, command: str, arguments: Mapping[str, Any]) -> None:
        """Say something, if it is there."""
        if self.up and self._channel is not None:
            self._channel.tell(command, arguments)

    async def _there(self) -> None:
        come: Deferred[None] = Deferred()
        self._waiting.append(come)
        come.addTimeout(PATIENCE, self._reactor)
        try:
            await come
        except Exception:  # noqa: BLE001  TimeoutError, as whoever waits did not cancel it
            self._waiting = [one for one in self._waiting if one is not come]
            raise ChannelClosed(
                f"worker {self.number} is not running, and with it a part of the queue: see the log"
            ) from None

    # --- stop ------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Let it stop in order, and wait for its end."""
        self._stopping = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._process is None:
            return
        if self._channel is not None and self.up:
            self._channel.tell("stop")
        else:
            self._process.terminate()
        await self._ended()
        self._process = None

    def kill(self) -> None:
        """At once, because the server can't start."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

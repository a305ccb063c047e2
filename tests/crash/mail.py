"""A server that takes mail and is killed over and over, and the ledger of what it owes."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import signal
import smtplib
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Collection
from contextlib import closing
from typing import Any

import attrs

from tests.crash.nursery import Nursery
from tests.crash.sink import Receipt, Sink
from twisted_mta.admin.errors import AdminError
from twisted_mta.service.control import AlreadyRunning
from twisted_mta.service.lock import DataLock
from twisted_mta.store.faults import VARIABLE
from twisted_mta.testing.site import Site, Spawn

USERS = ("alice", "bob", "carol", "dave")
#: An mbox and a Maildir that aliases name.
FILES = ("log", "archive")
_FAR = "far@sink.test"
_CONFIG = """\
[relay]
networks = ["127.0.0.0/8"]
[relay.routes]
"sink.test" = "127.0.0.1:{port}"
[queue]
schedule = "1s"
[[list]]
address = "team@example.test"
members = ["alice@example.test", "bob@example.test", "far@sink.test"]
owner = "dave@example.test"
[delivery]
files = ["files"]
"""
_ALIASES = "three: alice, bob, carol\nboth: dave, far@sink.test\n"
_FILE_ALIASES = "log: {0}/box/log\narchive: {0}/archive/\nfiled: {0}/box/log, {0}/archive/, bob\n"
Ways = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
#: Forward-paths, and who must get a message to them.
WAYS: Ways = (
    (("bob",), ("bob",)),
    (("alice", "carol", "dave"), ("alice", "carol", "dave")),
    (("three", "alice"), ("alice", "bob", "carol")),
    (("team",), ("alice", "bob", _FAR)),
    (("both",), ("dave", _FAR)),
    (("bob", "far@sink.test"), ("bob", _FAR)),
    (("log",), ("log",)),
    (("log", "alice"), ("log", "alice")),
    (("filed", "log"), ("log", "archive", "bob")),
    (("archive",), ("archive",)),
)
#: Messages of one connection, and connections at a time.
_MESSAGES, _CONNECTIONS = 6, 3
_LARGE = 300_000
#: Seconds from a copy for another host to the kill that may make a second one of it: the note of it is on its way.
_IN_FLIGHT = 30.0
_SUBJECT = re.compile(rb"^Subject: (\S+) ([0-9a-f]{64})\r?$", re.M)


class Lost(AssertionError):
    """The ledger does not hold."""


@attrs.define
class Entry:
    """A message that was offered to the server."""

    wanted: tuple[str, ...]
    #: Whether each of the recipients had to come in one commit (a list's come after).
    together: bool
    acknowledged: bool = False
    #: Where the acknowledgement came in and when: the client's port, seconds since the epoch.
    answered: tuple[int, float] | None = None


class MailTrial:
    """One site. `kill_at` as often as you like, then `settle`."""

    def __init__(
        self,
        nursery: Nursery,
        seed: int,
        workers: int = 1,
        *,
        ways: Ways = WAYS,
        spawn: Spawn | None = None,
    ) -> None:
        """`spawn` starts the servers, if that is not to be the nursery."""
        self._ways = ways
        self._chance = random.Random(seed)
        self._sink = Sink()
        self.site = Site(
            _CONFIG.format(port=self._sink.port),
            accounts=(*USERS, "postmaster"),
            roles=("mx",),
            spawn=spawn or nursery.spawn,
            workers=workers,
        )
        files = self.site.directory / "files"
        files.mkdir()
        self.site.alias_file.write_text(_ALIASES + _FILE_ALIASES.format(files))
        self.site.patience = 300.0  # the machine may have other things to do
        self._ledger: dict[str, Entry] = {}
        #: Copies that were counted and removed: (message, recipient).
        self._seen: Counter[tuple[str, str]] = Counter()
        self._number = 0
        #: When the lives of the server ended.
        self._deaths: list[float] = []
        self.kills = 0
        self._history: tuple[dict[str, Entry], list[Receipt]] = {}, []

    def close(self) -> None:
        """Take everything away."""
        self._sink.close()
        self.site.__exit__(None, None, None)

    # --- one life --------------------------------------------------------------------------------

    def kill_at(self, fault: str) -> bool:
        """Let it live, under load, until it comes to the fault; whether it did before there was no more to do."""
        died = self._start(fault) or self._work() or self._stop()
        self._dead()
        return died

    def kill_sometime(self) -> None:
        """Kill it from outside, at any moment."""
        if self._start(""):
            raise Lost("the server died without a fault")
        timer = threading.Timer(self._chance.uniform(0.0, 0.3), self._kill)
        timer.start()
        self._work()
        timer.cancel()
        timer.join()
        self._dead()

    def kill_worker(self, number: int) -> None:
        """Kill one of several workers at any moment, under load; the server goes on, and has another one."""
        if self._start(""):
            raise Lost("the server died without a fault")
        pid = self._workers()[number]["pid"]

        def kill() -> None:
            os.kill(pid, signal.SIGKILL)
            self._deaths.append(time.monotonic())

        timer = threading.Timer(self._chance.uniform(0.0, 0.3), kill)
        timer.start()
        died = self._work()
        timer.join()
        died = died or self._work()  # what came after the kill too
        self.site.wait_for(lambda: self._workers()[number]["restarts"] == 1, 300)
        self.site.wait_for(lambda: self._workers()[number]["state"] == "up", 300)
        if died or self._stop():
            raise Lost("the server died of the death of a worker")
        self._dead()

    def kill_parent(self) -> None:
        """Kill the parent of the workers: they stop in order, and then another server can start."""
        if self._start(""):
            raise Lost("the server died without a fault")
        timer = threading.Timer(self._chance.uniform(0.0, 0.3), self._kill)
        timer.start()
        self._work()
        timer.join()
        self._dead()
        self.site.wait_for(self._is_free, 300)
        if self.site.log().count("the parent process has ended") < 2:
            raise Lost(f"the workers did not notice:\n{self.site.log()}")

    def _workers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.site.control("status")["workers"]
        return found

    def _is_free(self) -> bool:
        """Whether no process has the data directory."""
        lock = DataLock(self.site.directory / "data")
        try:
            lock.acquire()
        except AlreadyRunning:
            return False
        lock.release()
        return True

    def live_through(self, fault: str) -> None:
        """A life in which something fails, but nobody dies: at most the server does not start, and says why."""
        try:
            died = self._start(fault) or self._work() or self._stop()
        except RuntimeError:
            if not self.site.log().splitlines()[-1].startswith("mta: "):
                raise
            died = False
        if died:
            raise Lost(f"the server died of {fault}")
        self._deaths.append(time.monotonic())

    def _start(self, fault: str) -> bool:
        """Whether it died while starting."""
        self.site.environment[VARIABLE] = fault
        (self.site.directory / "log").unlink(missing_ok=True)
        if "body.sweep" in fault:  # there must be something to sweep
            stray = self.site.directory / "data/queue/bodies/tmp/mta-1"
            stray.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            stray.touch()
        try:
            self.site.start()
        except RuntimeError:
            assert self.site.process is not None
            if self.site.process.poll() != -signal.SIGKILL:
                raise
            return True
        return False

    def _work(self) -> bool:
        """Whether it died."""
        threads = [threading.Thread(target=self._send, args=(self._plan(),)) for _ in range(_CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        deadline = time.monotonic() + 300
        while not self._over():
            try:
                if not self.site.control("queue.list")["messages"]:
                    return self._over()
            except AdminError:
                pass  # it is dying
            if time.monotonic() > deadline:
                raise Lost(f"the queue does not get empty:\n{self.site.control('queue.list')}")
            time.sleep(0.01)
        return True

    def _stop(self) -> bool:
        """Stop it in an orderly way; whether it died of that."""
        assert self.site.process is not None
        self.site.process.terminate()
        return self.site.process.wait(300) == -signal.SIGKILL

    def _over(self) -> bool:
        assert self.site.process is not None
        return self.site.process.poll() is not None

    def _kill(self) -> None:
        assert self.site.process is not None
        self.site.process.send_signal(signal.SIGKILL)

    def _dead(self) -> None:
        self.site.kill()
        self._deaths.append(time.monotonic())
        self.kills += 1

    # --- clients ---------------------------------------------------------------------------------

    def _plan(self) -> list[tuple[str, tuple[str, ...], bytes]]:
        """What one client is going to send; noted before, for a message may get in without our knowing."""
        plan = []
        for _ in range(_MESSAGES):
            self._number += 1
            name = f"m{self._number}"
            forward, wanted = self._chance.choice(self._ways)
            self._ledger[name] = Entry(wanted, together="team" not in forward)
            size = _LARGE if self._chance.random() < 0.2 else self._chance.choice((0, 80, 4000))
            line = f"From {name} {self._chance.random()}\r\n".encode()
            body = line * (size // len(line) + 1)
            digest = hashlib.sha256(body.replace(b"\r\n", b"\n")).hexdigest()
            text = f"From: <eve@example.test>\r\nMessage-ID: <{name}@crash.test>\r\nSubject: {name} {digest}\r\n\r\n"
            plan.append((name, forward, text.encode() + body))
        return plan

    def _send(self, plan: list[tuple[str, tuple[str, ...], bytes]]) -> None:
        """One connection; over when the server is."""
        try:
            with closing(smtplib.SMTP("127.0.0.1", self.site.port("mx"), timeout=120)) as client:
                for name, forward, message in plan:
                    recipients = [to if "@" in to else f"{to}@example.test" for to in forward]
                    try:
                        client.sendmail("eve@example.test", recipients, message)
                    except smtplib.SMTPDataError as error:
                        if error.smtp_code not in (421, 451, 452):
                            raise Lost(f"{name}: {error}") from error
                        continue
                    entry = self._ledger[name]
                    entry.acknowledged = True
                    entry.answered = client.sock.getsockname()[1], time.time()
        except (smtplib.SMTPServerDisconnected, OSError):
            return

    # --- the ledger --------------------------------------------------------------------------------

    def answers(self) -> dict[str, tuple[int, float]]:
        """Of each message that was acknowledged: the client's port, and when it knew, in seconds since the epoch."""
        return {name: entry.answered for name, entry in self._ledger.items() if entry.answered}

    def end_of_history(self) -> None:
        """What is sent from now on is forgotten by `back_to`."""
        self._history = dict(self._ledger), list(self._sink.receipts)

    def back_to(self, when: float, acknowledged: Collection[str]) -> None:
        """Forget what came after a moment, in seconds since the epoch, in which so much was acknowledged."""
        moment = when - time.time() + time.monotonic()
        ledger, receipts = self._history
        self._ledger = {
            name: attrs.evolve(entry, acknowledged=name in acknowledged) for name, entry in ledger.items()
        }
        self._sink.receipts = [receipt for receipt in receipts if receipt.when < moment]
        self._seen.clear()
        self._deaths = [moment]

    def settle(self) -> int:
        """Let everything be delivered in peace, and look at what came of it; raises Lost. How many messages that was."""
        if self._start("") or self._work() or self._stop():
            raise Lost("the server died without a fault")
        self._deaths.append(time.monotonic())
        self._spool_is_empty()
        found = self._collect()
        self._seen = Counter(found)
        problems = [
            problem for name, entry in self._ledger.items() for problem in self._judge(name, entry, found)
        ]
        problems += [f"{name} came from nowhere" for name, _ in found if name not in self._ledger]
        problems += self._copies_sent()
        if problems:
            raise Lost("\n".join(problems[:20]))
        return len(self._ledger)

    def _judge(self, name: str, entry: Entry, found: Counter[tuple[str, str]]) -> list[str]:
        counts = {user: found[name, user] for user in (*USERS, *FILES, _FAR)}
        problems = [
            f"{name}: {user} has it {count} times"
            for user, count in counts.items()
            if user != _FAR and count > (user in entry.wanted)
        ]
        there = {user for user, count in counts.items() if count}
        missing = set(entry.wanted) - there
        if missing and (entry.acknowledged or (there and entry.together)):
            kind = "acknowledged" if entry.acknowledged else "not acknowledged"
            problems.append(f"{name}, {kind}: {sorted(there)} have it and {sorted(missing)} have not")
        return problems

    def _collect(self) -> Counter[tuple[str, str]]:
        """All copies ever; those in mailboxes are removed, for later rounds to be as quick as the first."""
        found = Counter(self._seen)
        for user in (*USERS, "postmaster"):
            for path in self.site.maildir(user):
                found[self._read(path.read_bytes(), f"a message of {user}"), user] += 1
                path.unlink()
        files = self.site.directory / "files"
        for path in (files / "archive/new").glob("*"):
            found[self._read(path.read_bytes(), "a message in the archive"), "archive"] += 1
            path.unlink()
        log = files / "box/log"
        for entry in re.split(rb"^(?=From )", log.read_bytes() if log.exists() else b"", flags=re.M)[1:]:
            text = re.sub(rb"^>(?=>*From )", b"", entry.partition(b"\n")[2], flags=re.M)
            found[self._read(text.removesuffix(b"\n"), "a message in the log"), "log"] += 1
        log.unlink(missing_ok=True)
        for key in [key for key in found if key[1] == _FAR]:
            del found[key]
        for receipt in self._sink.receipts:
            found[self._read(receipt.message, "a message in the sink"), _FAR] += 1
        return found

    @staticmethod
    def _read(message: bytes, what: str) -> str:
        """Its name; whole it must be."""
        text = message.replace(b"\r\n", b"\n")
        head, _, body = text.partition(b"\n\n")
        match = _SUBJECT.search(head + b"\n")
        if not match:
            raise Lost(f"{what} is none of ours:\n{text[:2000]!r}")
        if hashlib.sha256(body).hexdigest().encode() != match[2]:
            raise Lost(f"{what} is not whole: {match[1]!r}, {len(body)} octets")
        return match[1].decode()

    def _copies_sent(self) -> list[str]:
        """A second copy for another host is right only where a kill came between its answer and our note of it, or before
        its answer: the sink may read a message after the death of its sender was noticed here."""
        problems = []
        copies: dict[str, list[Receipt]] = {}
        for receipt in self._sink.receipts:
            copies.setdefault(self._read(receipt.message, "a message in the sink"), []).append(receipt)
        for name, receipts in copies.items():
            for earlier, later in itertools.pairwise(receipts):
                between = [death for death in self._deaths if earlier.when < death < later.when]
                if not earlier.unheard and (not between or between[0] - earlier.when > _IN_FLIGHT):
                    past = later.when - earlier.when
                    problems.append(f"{name} was sent again without a reason, {past:.1f} s later")
        return problems

    def _spool_is_empty(self) -> None:
        """Nothing is left of what was delivered."""
        for queue in (self.site.directory / "data").glob("queue*"):
            files = [path.name for path in (queue / "bodies").rglob("*") if path.is_file()]
            with closing(sqlite3.connect(queue / "queue.sqlite")) as database:
                rows = {
                    table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                    for table in ("body", "message", "recipient")
                }
            if files or any(rows.values()):
                raise Lost(f"left in {queue.name}: {files} {rows}")

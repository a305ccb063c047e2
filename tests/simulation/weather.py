"""One server through bad weather: peers, DNS and a disk that fail, crashes in the middle of anything, all by one seed.

While it lasts messages are sent. Then the sky clears, everything is delivered or given back, and the ledger must hold.
"""

from __future__ import annotations

import errno
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from twisted_mta.core.queue import Order
from twisted_mta.core.route import NoSuchDomain
from twisted_mta.service.queue_admin import Named
from twisted_mta.service.start import StartError
from twisted_mta.store.faults import STEPS, arm
from twisted_mta.testing.smtp_peer import DROP, SILENCE, TAKE, Received, SmtpPeer
from twisted_mta.testing.world import World

_CONFIG = """
[relay]
networks = ["127.0.0.0/8"]
[limits]
disk_reserve = 0
[[list]]
address = "team@example.test"
owner = "postmaster@example.test"
members = ["alice@example.test", "bob@example.test", "carol@one.example", "dan@two.example"]
"""
_ALIASES = "both: bob, dan@two.example\n"
_DOMAINS = {"one.example": "192.0.2.1", "two.example": "192.0.2.2"}
_LOCAL = ("alice", "bob", "postmaster")
#: Forward-paths, and who must get it.
_WAYS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("bob@example.test",), ("bob",)),
    (("alice@example.test", "bob@example.test"), ("alice", "bob")),
    (("both@example.test", "bob@example.test"), ("bob", "dan@two.example")),
    (("team@example.test",), ("alice", "bob", "carol@one.example", "dan@two.example")),
    (("carol@one.example",), ("carol@one.example",)),
    (("carol@one.example", "dan@two.example"), ("carol@one.example", "dan@two.example")),
    (("bob@example.test", "carol@one.example"), ("bob", "carol@one.example")),
)
_ALIASED = ("both@example.test", "team@example.test")
#: What a peer in a bad mood answers, to what.
_MOODS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("greeting", ("421 4.3.2 Not now", "554 5.3.2 No", DROP, SILENCE, "what?")),
    ("EHLO", ("421 4.3.2 Not now", DROP, SILENCE, "250-x\r\n")),
    ("MAIL", ("451 4.3.0 Later", "550 5.7.1 Not you", "421 4.3.2 Not now", DROP, SILENCE)),
    ("RCPT", ("450 4.2.1 Later", "550 5.1.1 Nobody", "452 4.5.3 Too many", DROP, SILENCE)),
    ("DATA", ("451 4.3.0 Later", "554 5.6.0 No", DROP, SILENCE)),
    (".", ("451 4.3.0 Later", "554 5.6.0 No", DROP, SILENCE, TAKE, TAKE, TAKE)),
    ("RSET", ("421 4.3.2 Enough", DROP)),
    ("QUIT", (DROP, SILENCE)),
)
_ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
_IDENTITY = re.compile(rb"^Message-ID:\s*<([^>]*)>", re.M | re.I)
HOUR = 3600.0


class Unbalanced(AssertionError):
    """The ledger does not hold."""


class Crash(BaseException):
    """The process ends here. Nothing may catch it, and nothing durable happens after it."""


class Disk:
    """A hook for fault points."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        #: How likely a step fails.
        self.badness = 0.0
        #: Points until the crash; None: there is none to come.
        self.crash_in: int | None = None
        self.dead = False

    def __call__(self, point: str) -> None:
        """A point is passed."""
        if self.crash_in is not None:
            self.crash_in -= 1
            self.dead = self.crash_in <= 0
        if self.dead:
            raise Crash
        if self.badness and point in STEPS and self._chance.random() < self.badness:
            raise OSError(self._chance.choice(_ERRORS), f"bad weather at {point}")


class Mood:
    """The `replies` of a peer: now and then something else than it should be."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.badness = 0.0

    def get(self, key: str) -> str | None:
        """What to say, None for the normal."""
        choices = dict(_MOODS).get(key)
        if choices is None or self._chance.random() >= self.badness:
            return None
        return self._chance.choice(choices)


@attrs.define
class Entry:
    """A message that was offered."""

    wanted: tuple[str, ...]
    together: bool
    acknowledged: bool = False


class Weather:
    """A simulation; `run` it once."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._chance = random.Random(seed)
        self._disk = Disk(self._chance)
        self.world = World(directory, _CONFIG, aliases=_ALIASES, seed=seed)
        self._moods = {domain: Mood(self._chance) for domain in _DOMAINS}
        self._peers = {
            domain: self.world.host(domain, address, SmtpPeer(replies=self._moods[domain]))  # type: ignore[arg-type]
            for domain, address in _DOMAINS.items()
        }
        self._records = {kind: dict(table) for kind, table in self.world.resolver.data.items()}
        self._ledger: dict[str, Entry] = {}
        #: Receipts that were looked at already, by domain.
        self._counted = dict.fromkeys(_DOMAINS, 0)
        #: (message, recipient) -> answered copies in this life of the server.
        self._answered: Counter[tuple[str, str]] = Counter()
        #: What was answered in lives that are over, until it can be seen what the queue knows of it.
        self._sent: set[tuple[str, str]] = set()
        #: What the queue had recorded when a life began.
        self._closed: set[tuple[str, str]] = set()
        self.crashes = 0
        #: What happened, for whoever looks for the reason of a failure.
        self.story: list[str] = []

    def run(self) -> None:
        """Raises Unbalanced."""
        arm(self._disk)
        try:
            for _ in range(self._chance.randint(6, 14)):
                self._change()
                self._act()
            self._clear_up()
            self._check()
        finally:
            arm(None)

    # --- weather -----------------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        self.story.append(f"{self.world.network.seconds() - 1_800_000_000:10.1f} {text}")

    def _change(self) -> None:
        """Something gets worse, or better."""
        chance, network, resolver = self._chance, self.world.network, self.world.resolver
        domain = chance.choice(list(_DOMAINS))
        match chance.randint(0, 6):
            case 0:
                self._disk.badness = chance.choice((0.0, 0.02, 0.2, 1.0))
                self._tell(f"disk {self._disk.badness}")
            case 1 | 2:
                self._moods[domain].badness = chance.choice((0.0, 0.1, 0.5))
                self._tell(f"{domain} in mood {self._moods[domain].badness}")
            case 3:
                name = chance.choice((domain, f"mx.{domain}"))
                resolver.failing = set() if name in resolver.failing else {name}
                self._tell(f"look-ups fail: {sorted(resolver.failing)}")
            case 4:
                unreachable = {_DOMAINS[domain]}
                network.unreachable = set() if network.unreachable == unreachable else unreachable
                self._tell(f"unreachable: {sorted(network.unreachable)}")
            case 5:
                lost = isinstance(resolver.data["mx"].get(domain), Exception)
                resolver.data["mx"][domain] = self._records["mx"][domain] if lost else NoSuchDomain(domain)
                self._tell(f"{domain} {'exists' if lost else 'does not exist'}")
            case 6:
                network.latency = chance.choice((0.0, 0.1, 5.0))
                self._tell(f"latency {network.latency}")

    def _clear_up(self) -> None:
        """Good weather, and a server that nothing keeps from working: until the queue is empty."""
        self._tell("clear")
        self._disk.badness, self._disk.crash_in = 0.0, None
        for mood in self._moods.values():
            mood.badness = 0.0
        self.world.network.unreachable = set()
        self.world.network.latency = 0.0
        self.world.resolver.failing = set()
        self.world.resolver.data = {kind: dict(table) for kind, table in self._records.items()}
        if self._chance.random() < 0.5:
            self._crash()
        self._disk.crash_in = None
        self._do(self.world.parts.store.let_go(self._listed()))
        self._do(self.world.parts.admin.order(Named(), Order.RETRY))
        for _ in range(200):
            if not self.world.queued():
                return
            self._advance(HOUR)
            self._count()
        raise Unbalanced(f"the queue does not get empty: {self.world.queued()}")

    # --- deeds -------------------------------------------------------------------------------------

    def _act(self) -> None:
        chance = self._chance
        if chance.random() < 0.3:
            self._disk.crash_in = chance.randint(1, 60)
        try:
            for _ in range(chance.randint(0, 3)):
                self._send()
            match chance.randint(0, 9):
                case 0:
                    self._tell("retry")
                    self._do(self.world.parts.admin.order(Named(), Order.RETRY))
                case 1:
                    held = self._listed()
                    self._tell(f"hold {held}")
                    self._do(self.world.parts.store.hold(held[:2], "to see"))
                case 2:
                    self._do(self.world.parts.store.let_go(self._listed()))
                case 3:
                    self._disk.badness = 0.0
                    self._tell("restart")
                    self.world.restart()
                    self._new_life()
                case _:
                    self._pass_time()
        except Crash:
            pass
        if self._disk.dead:
            self._crash()
        self._count()

    def _pass_time(self) -> None:
        seconds = self._chance.choice((1.0, 10.0, 100.0, HOUR, 6 * HOUR))
        self._tell(f"{seconds} s pass")
        for _ in range(12):
            self._advance(seconds / 12)
            if self._disk.dead:
                return
            self._count()

    def _advance(self, seconds: float) -> None:
        """From one event to the next: a clock that leaps would let time-outs overtake answers."""
        network = self.world.network
        end = network.seconds() + seconds
        while network.calls and network.calls[0].getTime() < end and not self._disk.dead:
            network.advance(max(network.calls[0].getTime() - network.seconds(), 0.0))
        if not self._disk.dead:
            network.advance(end - network.seconds())

    def _send(self) -> None:
        name = f"m{len(self._ledger)}@sim"
        forward, wanted = self._chance.choice(_WAYS)
        entry = self._ledger[name] = Entry(wanted, together="team@example.test" not in forward)
        size = self._chance.choice((10, 1000, 300_000))
        text = f"From: alice@example.test\r\nMessage-ID: <{name}>\r\n\r\n{name}\r\n".encode()
        reply = self.world.send("alice@example.test", forward, text + (b"x" * 70 + b"\r\n") * (size // 72))
        self._tell(f"{name} to {forward}: {reply}")
        if self._disk.dead:
            return  # whatever was said, nobody heard it
        if reply.code not in (250, 451, 452):
            raise Unbalanced(f"{name} was answered with {reply}")
        entry.acknowledged = reply.code == 250

    def _crash(self) -> None:
        """The process is gone; another one starts, maybe on a disk that does not let it, or only to crash at once."""
        self.crashes += 1
        self._tell("crash")
        self.world.crash()
        self._end_of_life()
        for _ in range(20):
            self._disk.dead = False
            self._disk.crash_in = self._chance.randint(1, 30) if self._chance.random() < 0.2 else None
            try:
                self.world.start()
            except StartError as error:
                self._tell(f"no start: {error}")
                self._disk.badness = 0.0
            except Crash:
                self._tell("crash at the start")
            else:
                if not self._disk.dead:
                    self._new_life()
                    return
                self.world.crash()
            self._end_of_life()
        raise Unbalanced("the server does not start")

    def _listed(self) -> list[str]:
        return [item.message.id for item in self._listing()]

    def _listing(self) -> Sequence[Any]:
        return self._do(self.world.parts.store.listing()) or ()

    def _do(self, work: Any) -> Any:
        """The result of what is done at once; None if it failed."""
        results: list[Any] = []

        async def wait() -> Any:
            return await work

        Deferred.fromCoroutine(wait()).addCallbacks(results.append, lambda _: None)
        return results[0] if results else None

    # --- the ledger ----------------------------------------------------------------------------------

    def _count(self) -> None:
        """Look at what the peers got since the last time."""
        for domain, peer in self._peers.items():
            for received in peer.messages[self._counted[domain] :]:
                self._counted[domain] += 1
                self._tell(
                    f"{domain} took {_identity(received.data)} for {received.recipients}, {received.answered}"
                )
                self._judge_copy(received)

    def _judge_copy(self, received: Received) -> None:
        name = _identity(received.data)
        for recipient in received.recipients:
            key = (name, recipient)
            if key in self._closed:
                raise Unbalanced(f"{key} was sent again after it was recorded")
            if received.answered:
                self._answered[key] += 1
                if self._answered[key] > 1:
                    raise Unbalanced(f"{key} was sent twice in one life, though the peer had answered")

    def _end_of_life(self) -> None:
        self._count()
        self._sent.update(self._answered)
        self._answered.clear()

    def _new_life(self) -> None:
        """What was answered and has left the queue must never be sent again."""
        self._end_of_life()
        waiting = {
            (item.message.message_id.strip("<>"), str(recipient.address))
            for item in self._listing()
            for recipient in item.recipients
        }
        expanding = {name for name, recipient in waiting if recipient == "team@example.test"}
        self._closed |= {key for key in self._sent if key not in waiting and key[0] not in expanding}
        self._sent.clear()

    def _check(self) -> None:
        mailboxes = {user: self.world.mail(user) for user in _LOCAL}
        found: Counter[tuple[str, str]] = Counter()
        returned: set[tuple[str, str]] = set()
        for user, messages in mailboxes.items():
            for message in messages:
                found[_identity(message), user] += 1
                returned |= _failures(message)
        problems = [f"{user} has {name} {count} times" for (name, user), count in found.items() if count > 1]
        for peer in self._peers.values():
            for received in peer.messages:
                found.update((_identity(received.data), recipient) for recipient in received.recipients)
        for name, entry in self._ledger.items():
            there = {who for who in entry.wanted if found[name, who] or (name, _full(who)) in returned}
            missing = [who for who in entry.wanted if who not in there]
            if {(name, alias) for alias in _ALIASED} & returned:
                continue  # a bounce names what the sender wrote, not who is behind it
            if missing and (entry.acknowledged or (there and entry.together)):
                problems.append(f"{name} ({entry}): {missing} have not got it, nor was it given back")
        if self.world.bodies():
            problems.append(f"{self.world.bodies()} bodies are left")
        if problems:
            raise Unbalanced("\n".join(problems))


def _full(who: str) -> str:
    return who if "@" in who else f"{who}@example.test"


def _identity(message: bytes) -> str:
    head = message.replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    match = _IDENTITY.search(head)
    if not match:
        raise Unbalanced(f"a message without Message-ID: {head!r}")
    return match[1].decode()


def _failures(message: bytes) -> set[tuple[str, str]]:
    """(message, recipient) that a bounce tells of."""
    text = message.replace(b"\r\n", b"\n")
    if b"report-type=delivery-status" not in text or b"\nAction: failed\n" not in text:
        return set()
    names = [name.decode() for name in _IDENTITY.findall(text) if name.endswith(b"@sim")]
    blocks = [block for block in text.split(b"\n\n") if b"Action: failed" in block]
    recipients = [
        match[1].decode()
        for block in blocks
        if (match := re.search(rb"Final-Recipient: rfc822; ?(\S+)", block))
    ]
    return {(name, recipient) for name in names for recipient in recipients}

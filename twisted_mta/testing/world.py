"""A whole server on a Clock: simulated network, DNS and time; real queue and Maildirs in a directory.

world = World(directory, '[relay]\nport = 2525')
peer = world.host("mx.example.org", "192.0.2.1")           # a remote server, see SmtpPeer
world.resolver.data["mx"]["example.org"] = [(10, "mx.example.org")]
assert world.send("alice@example.test", ["carol@example.org"], b"Subject: x\r\n\r\n").code == 250
world.advance(3600)
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_mta.config.loader import load
from twisted_mta.config.schema import SRS_FILE, Role
from twisted_mta.core.envelope import Envelope
from twisted_mta.core.replies import Reply
from twisted_mta.interfaces import Peer
from twisted_mta.service.assembly import assemble
from twisted_mta.service.explain.control import read_question
from twisted_mta.service.explain.running import explainer
from twisted_mta.service.listeners import Listeners, Serving
from twisted_mta.service.parts import Parts
from twisted_mta.service.platform import Platform
from twisted_mta.store.maildir.files import arrival_order
from twisted_mta.store.queue import SQLiteQueueStore
from twisted_mta.store.sqlite import first_row
from twisted_mta.store.srs import make_secret
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.testing.commands import ScriptedCommands
from twisted_mta.testing.dns import FakeResolver
from twisted_mta.testing.https import FakeWeb
from twisted_mta.testing.network import MemoryNetwork
from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.visitor import Visitor, stuffed

#: When a world begins: Unix seconds.
BEGIN = 1_800_000_000.0

#: What stands above a world's own configuration.
BASE = """\
hostname = "mx.example.test"
domains = ["example.test"]
data = "data"
postmaster = "postmaster@example.test"
aliases = ["aliases"]

[accounts]
file = "users"
maildir = "mail/{user}"

[[listen]]
role = "mx"
endpoint = "tcp:25"
"""


class World:
    """One server and all that is around it. `seed` decides everything that is left to chance."""

    def __init__(
        self, directory: Path, config: str = "", *, aliases: str = "", seed: int = 0, base: str = BASE
    ) -> None:
        """`base` is what stands above `config` in its file."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "mta.toml").write_text(base + config, encoding="utf-8")
        (directory / "aliases").write_text(aliases, encoding="utf-8")
        users = directory / "users"
        users.touch(mode=0o600)
        users.write_text(
            "".join(f"{name}@example.test:!::::::\n" for name in ("alice", "bob", "postmaster")),
            encoding="utf-8",
        )
        # The server would make it, of real chance.
        make_secret(directory / "data" / SRS_FILE, lambda size: seed.to_bytes(size, "big"))
        self.directory = directory
        self.network = MemoryNetwork()
        self.network.advance(BEGIN)
        self.resolver = FakeResolver()
        #: The web servers of the world: MTA-STS policies, and who gets reports.
        self.web = FakeWeb()
        self.commands = ScriptedCommands()
        #: The IP addresses of the server's machine.
        self.own_addresses = {"127.0.0.1", "::1"}
        self._seed = seed
        #: What crashed must not be taken apart before the world is: its last acts would be those of a living one.
        self._dead: list[Parts] = []
        self._lives = 0
        self.parts = self._start()

    def _start(self) -> Parts:
        self.config = load(self.directory / "mta.toml")
        network = self.network
        platform = Platform(
            reactor=network,
            chance=random.Random(self._seed + 1_000_003 * self._lives),  # noqa: S311  the point is that it repeats
            workers=lambda size, name: InlineWorkers(),
            open_queue=lambda path, reserve: SQLiteQueueStore.inline(path, network, disk_reserve=reserve),
            resolver=lambda dns: self.resolver,
            is_local=self.own_addresses.__contains__,
            web=lambda resolver: self.web,
            certificates=network.check,
            commands=self.commands,
        )
        parts = assemble(self.config, platform)
        self.listeners = Listeners(network, self.config)
        self.listeners.serve(
            Serving(
                reactor=network,
                config=self.config,
                tls=None,
                reception=parts.reception,
                mailboxes=parts.mailboxes,
                authenticator=parts.accounts,
                workers=parts.disk,
            )
        )
        self._mx = self.listeners.factory(Role.MX)
        parts.queue.startService()
        parts.history.start()
        parts.tls.start()
        network.advance(0)  # what was due at the start is delivered in the turn that follows
        self._lives += 1
        return parts

    def close(self) -> None:
        """Stop the server in an orderly way."""
        ended: list[Any] = []
        Deferred.fromCoroutine(self.parts.close()).addBoth(ended.append)
        for _ in range(1000):
            if ended:
                break
            self.network.advance(0.1)
        assert ended
        if isinstance(ended[0], Failure):
            ended[0].raiseException()

    def restart(self) -> None:
        """Stop it and start it again on the same files."""
        self.close()
        self.parts = self._start()

    def config_text(self, config: str) -> None:
        """Restart it with another configuration."""
        self.close()
        (self.directory / "mta.toml").write_text(BASE + config, encoding="utf-8")
        self.parts = self._start()

    def crash(self) -> None:
        """End it as kill -9 does; `start` brings up another on the same files."""
        self._dead.append(self.parts)
        self.network.cut()
        self.parts.store.drop()
        self.parts.lock.release()

    def start(self) -> None:
        """Start after `crash`. Raises `assembly.StartError`."""
        self.parts = self._start()

    # --- the world around it -------------------------------------------------------------------

    def host(self, domain: str, address: str, peer: SmtpPeer | None = None) -> SmtpPeer:
        """A remote mail server that is the MX of `domain`."""
        peer = peer or SmtpPeer()
        name = f"mx.{domain}"
        self.resolver.data["mx"][domain] = [(10, name)]
        self.resolver.data["addresses"][name] = [address]
        self.network.servers[address, 25] = peer
        return peer

    def advance(self, seconds: float, step: float = 60.0) -> None:
        """Let time pass, with room for conversations in between."""
        while seconds > 0:
            self.network.advance(min(step, seconds))
            self.network.pump([0.0] * 20)
            seconds -= step

    def send(
        self,
        sender: str,
        recipients: Sequence[str],
        message: bytes,
        client: str = "127.0.0.1",
        *,
        asking: str = "",
        notify: str = "",
    ) -> Reply:
        """Bring a message by SMTP as a client would; the last reply, a refusal or the answer to the message.

        `asking` stands behind MAIL FROM, such as "BY=60;R", and `notify` behind each RCPT TO.
        """
        with self.visit(client) as visitor:
            commands = [b"EHLO client.example.org", f"MAIL FROM:<{sender}> {asking}".strip().encode()]
            commands += [f"RCPT TO:<{recipient}> {notify}".strip().encode() for recipient in recipients]
            last = Reply(0, "", "")
            for command in (*commands, b"DATA", stuffed(message)):
                last = visitor.say(command)
                if not last.positive:
                    break
            return last

    def visit(self, client: str = "127.0.0.1") -> Visitor:
        """A client who has connected to port 25."""
        return Visitor(self._mx, self.network, client)

    def explain(self, recipient: str, **arguments: Any) -> dict[str, Any]:
        """What `mta explain` would say; see `service.explain.control` for the arguments."""
        made = explainer(self.parts, self.network, lambda: self.listeners.serving, self.listeners.refusal)
        question = read_question({"recipient": recipient, **arguments}, self.config)
        found: list[Any] = []
        Deferred.fromCoroutine(made.explain(question)).addBoth(found.append)
        self.network.pump([0.0] * 5)
        if isinstance(found[0], Failure):
            found[0].raiseException()
        answer: dict[str, Any] = found[0]
        return answer

    def submit(self, envelope: Envelope, message: bytes) -> Reply:
        """Bring a message past the SMTP server, with whatever an envelope can hold."""
        sink = self.parts.reception.message(Peer(address="127.0.0.1", port=40000), envelope)
        sink.write(message)
        replies: list[Reply] = []

        async def finish() -> Reply:
            return await sink.finish()

        Deferred.fromCoroutine(finish()).addCallback(replies.append)
        self.network.pump([0.0] * 20)
        return replies[0]

    def mail(self, user: str) -> list[bytes]:
        """The messages in a user's inbox, in the order of arrival: by their names, since the times of files are the system's."""
        base = self.directory / "mail" / f"{user}@example.test"
        files = (*base.glob("new/*"), *base.glob("cur/*"))
        return [path.read_bytes() for path in sorted(files, key=lambda path: arrival_order(path.name))]

    def queued(self) -> list[str]:
        """The recipients that wait in the queue."""
        items: list[Any] = []
        Deferred.fromCoroutine(self._listing()).addCallback(items.extend)
        return [str(recipient.address) for item in items for recipient in item.recipients]

    async def _listing(self) -> Sequence[Any]:
        return await self.parts.store.listing()

    def bodies(self) -> int:
        """How many bodies the queue's database holds."""
        with closing(sqlite3.connect(self.config.queue_directory / "queue.sqlite")) as database:
            (count,) = first_row(database.execute("SELECT count(*) FROM body"))
        return int(count)

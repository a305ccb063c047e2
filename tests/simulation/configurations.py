"""Made-up sites, each decided by a seed: domains, aliases that loop and lead astray, lists, routes, limits and checks; and mail
for them, brought by strangers, trusted clients and users."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport

from tests.certificates import self_signed_files
from tests.simulation import handled
from twisted_mta.config.schema import Role
from twisted_mta.core.replies import Reply
from twisted_mta.service.trace_control import trace_handlers
from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.world import World

#: The message that goes to files and commands.
OUTLET = 6
#: A filter in front of the server, which says who the client really is.
_FILTER = "10.9.9.9"
_CLIENTS = ("192.0.2.7", "198.51.100.7", "127.0.0.1", "2001:db8::7")
_REMOTE = ("carol@one.example", "dave@two.example", "erin@sub.two.example", "Carol@one.example")
_ASTRAY = ("x@null.example", "y@gone.example", "z@none.example", "w@us.example", "v@failing.example")
_OTHER = ("example.test", "second.test", "old.test", "sub.example.test")
_NAMES = ("info", "staff", "sales", "alice", "team", "a1", "a2", "a3", "postmaster", "abuse")

_BASE = """\
hostname = "mx.example.test"
domains = ["example.test", "second.test"]
data = "data"
postmaster = "{postmaster}"
aliases = ["aliases"]

[accounts]
file = "users"
maildir = "mail/{{user}}"
separator = "{separator}"

[[listen]]
role = "mx"
endpoint = "tcp:25"

[[listen]]
role = "submission"
endpoint = "tcp:587"

[tls]
certificate = "server.pem"
key = "server.pem"
"""


@attrs.frozen(kw_only=True)
class Mail:
    """One message and who brings it."""

    client: str
    helo: str
    login: str
    role: Role
    sender: str
    recipient: str
    size: int | None
    message: bytes

    def arguments(self) -> dict[str, Any]:
        """As `mta explain` asks."""
        return {
            "ip": self.client,
            "helo": self.helo,
            "login": self.login,
            "role": self.role.value,
            "sender": self.sender,
            "size": self.size,
            "message": self.message.decode(),
        }


class Site:
    """The world of one seed."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        chance = self.random
        base = _BASE.format(
            postmaster=chance.choice(["alice@example.test", "postmaster@example.test", "info"]),
            separator=chance.choice(["+", "+", "-", ""]),
        )
        directory.mkdir(parents=True)
        #: Where aliases may have files.
        self.out = directory / "out"
        self.out.mkdir()
        for name in ("inc1", "inc2"):
            (directory / name).write_text("".join(f"{self._target()}\n" for _ in range(chance.randrange(4))))
        self_signed_files(directory / "server.pem")
        self.aliases = self._aliases()
        self._rules()
        handled.TAKEN.clear()
        self.config = self._config()
        self.world = World(directory, self.config, aliases=self.aliases, seed=seed, base=base)
        serving: Any = self.world.listeners.serving
        serving.tls = cast(Any, object())  # offered, and never begun
        self._neighbours()
        for user in ("alice", "bob"):
            if chance.random() < 0.5:
                self._make_mailbox(user)

    # --- what is made up -----------------------------------------------------------------------

    def _target(self) -> str:
        chance = self.random
        kind = chance.random()
        if kind < 0.5:
            return chance.choice(
                (*_NAMES, "bob", "bob", "nobody", "alice+work", "list1", "list2-owner", "ticket-1", "desk-2")
            )
        if kind < 0.6:
            return f"{chance.choice(_NAMES)}@second.test"
        if kind < 0.85:
            return chance.choice(_REMOTE)
        if kind < 0.93:
            return chance.choice(_ASTRAY)
        if kind < 0.96:
            return chance.choice((":blackhole:", ":fail: gone away", ":defer: come back", "\\\\alice"))
        if kind < 0.97:
            return f":include:{chance.choice(['inc1', 'inc2', 'inc3'])}"
        return chance.choice(
            (f"{self.out}/box", f"{self.out}/md/", "/elsewhere/box", '"|/bin/take it"', "|/bin/take > it")
        )

    def _aliases(self) -> str:
        chance = self.random
        names = [name for name in _NAMES if chance.random() < 0.6]
        names += [f"{name}@second.test" for name in _NAMES if chance.random() < 0.2]
        names += [f"owner-{name}" for name in _NAMES if chance.random() < 0.1]
        names += [name for name in ("@example.test", "@second.test") if chance.random() < 0.15]
        outlets = f'outlet: {self.out}/box, {self.out}/md/, "|/bin/take it"\n'
        return outlets + "".join(
            f"{name}: {', '.join(self._target() for _ in range(chance.randint(1, 4)))}\n" for name in names
        )

    def _rules(self) -> None:
        """What users have decided themselves."""
        chance = self.random
        rules = self.directory / "data" / "rules"
        rules.mkdir(parents=True)
        for user in ("alice", "bob"):
            lines = []
            if chance.random() < 0.3:
                to = chance.choice(
                    (*_REMOTE, *_ASTRAY, "alice@example.test", "bob@example.test", "info@example.test")
                )
                lines.append(f"forward: {to}{chance.choice(['', ', keep'])}")
            if chance.random() < 0.2:
                lines.append(f"addresses: {user}-too@example.test")
            if chance.random() < 0.2:
                lines.append("vacation: I am away")
            if lines:
                (rules / f"{user}@example.test").write_text("\n".join(lines) + "\n")

    def _config(self) -> str:
        chance = self.random
        relay = [f'xclient_networks = ["{_FILTER}/32"]']
        if chance.random() < 0.6:
            relay.append('networks = ["192.0.2.0/24"]')
        routes = ""
        if chance.random() < 0.4:
            routes += '[relay.routes]\n"two.example" = "192.0.2.102:2525"\n".gone.example" = "192.0.2.101"\n'
        if chance.random() < 0.2:
            relay.append('smarthost = "192.0.2.101"')
        parts = [
            "[relay]\n" + "\n".join(relay) + "\n",
            routes,
            f'[checks]\nhelo = "{chance.choice(["off", "log", "log", "require"])}"\n'
            f'reverse_dns = "{chance.choice(["off", "log", "log", "log", "require"])}"\n',
            f"[submission]\ncheck_sender = {chance.choice(['true', 'true', 'false'])}\n"
            f"messages_per_hour = {chance.choice([0, 1, 2, 100])}\n"
            f"recipients_per_hour = {chance.choice([0, 2, 100])}\n",
            f'[limits]\nmessage_size = "{chance.choice(["64K", "10M"])}"\nreceived_headers = 10\n',
        ]
        if chance.random() < 0.4:
            parts.append('[handlers]\nmodules = ["tests.simulation.handled"]\n')
        if chance.random() < 0.7:
            parts.append(f'[delivery]\nfiles = ["{self.out}"]\n')
        if chance.random() < 0.7:
            parts.append('[delivery.command]\nuser = "nobody"\ndirectory = "/"\n')
        parts += self._domains()
        if chance.random() < 0.3:
            srs, instead = chance.choice(["true", "false"]), chance.choice(["keep", "refuse"])
            parts.append(
                f'[forward]\nsrs = {srs}\nnot_if_header = ["X-Spam-Flag: YES"]\ninstead = "{instead}"\n'
                f"srs_bounces_only = {chance.choice(['true', 'false'])}\n"
            )
        for name in ("list1", "list2"):
            if chance.random() < 0.6:
                members = [self._target() for _ in range(chance.randrange(5))]
                known = [
                    member if "@" in member else f"{member}@example.test"
                    for member in members
                    if not member.startswith((":", "\\", "/", "|", '"', name))
                ]
                parts.append(
                    f'[[list]]\naddress = "{name}@example.test"\nowner = "{chance.choice(["bob", "info"])}@example.test"\n'
                    f"members_only = {chance.choice(['true', 'false'])}\n"
                    f"verp = {chance.choice(['true', 'false', 'false'])}\n"
                    f"members = {str(known).replace(chr(39), chr(34))}\n"
                )
        return "\n" + "\n".join(parts)

    def _domains(self) -> list[str]:
        """[[domain]] and [virtual]: other names of domains, backup MX, patterns."""
        chance = self.random
        parts = []
        if chance.random() < 0.4:
            parts.append('[[domain]]\nname = "old.test"\nalias_of = "example.test"\n')
        if chance.random() < 0.2:
            parts.append('[[domain]]\nname = ".example.test"\nalias_of = "second.test"\n')
        if chance.random() < 0.4:
            (self.directory / "backup").write_text("carol@one.example\n@nothing\n"[: chance.choice([18, 27])])
            who = 'recipients = "backup"\n' * chance.randrange(2)
            parts.append(f'[[domain]]\nname = "one.example"\nrelay = true\nmessage_size = "64K"\n{who}')
        self.callout = chance.random() < 0.3
        if self.callout:
            unanswered = chance.choice(["defer", "accept"])
            parts.append(
                '[[domain]]\nname = "two.example"\nrelay = true\ncallout = true\n'
                f'[callout]\nunanswered = "{unanswered}"\n'
            )
        if chance.random() < 0.4:
            lines = [
                f'"sales-(.*)@example.test" = "{chance.choice(["{1}", "{1}@two.example", "alice"])}"',
                '"(a|b)(1|2)@second.test" = ["{1}{2}@example.test", "bob@example.test"]',
                '"info@example.test" = ":fail: gone"',
                '"@second.test" = "alice@example.test"',
            ]
            chosen = [line for line in lines if chance.random() < 0.6]
            parts.append("[virtual]\n" + "\n".join(chosen) + "\n")
        return parts

    def _neighbours(self) -> None:
        world = self.world
        self.peers = [
            world.host("one.example", "192.0.2.101"),
            world.host("two.example", "192.0.2.102"),
            world.host("home.example", "192.0.2.103"),
        ]
        world.resolver.data["mx"]["sub.two.example"] = [(20, "mx.two.example"), (10, "gone.two.example")]
        routed = SmtpPeer()
        world.network.servers["192.0.2.102", 2525] = routed
        self.peers.append(routed)
        world.resolver.data["mx"] |= {
            "null.example": [(0, "")],
            "none.example": [(10, "nowhere.none.example")],
            "us.example": [(10, "mx.example.test")],
        }
        world.resolver.failing.add("failing.example")
        # Of those who are asked about; what other hosts say to mail nobody can foretell.
        for peer in self.peers:
            peer.replies["RCPT nobody@two.example"] = "550 5.1.1 no such user"
            peer.replies["RCPT late@two.example"] = "450 4.7.1 later"
        if self.random.random() < 0.5:
            world.resolver.data["ptr"]["198.51.100.7"] = ["client.example.org"]
            world.resolver.data["addresses"]["client.example.org"] = ["198.51.100.7"]

    def _make_mailbox(self, user: str) -> None:
        for part in ("new", "cur", "tmp"):
            (self.directory / "mail" / f"{user}@example.test" / ".work" / part).mkdir(parents=True)
        for part in ("new", "cur", "tmp"):
            (self.directory / "mail" / f"{user}@example.test" / part).mkdir()

    def mail(self, number: int) -> Mail:
        """The next message. Its subject is its number."""
        chance = self.random
        client = chance.choice(_CLIENTS)
        login = chance.choice(["", "", "", "alice", "alice", "bob@example.test"])
        if chance.random() < 0.02:
            login = "nobody"
        local = f"{chance.choice((*_NAMES, 'bob', 'list1', 'list2', 'list1-owner', 'nobody', 'alice+work', 'bob-x'))}"
        recipient = f"{local}@{chance.choice(['example.test', 'example.test', 'second.test'])}"
        if chance.random() < 0.15:
            recipient = f"{chance.choice(('sales-bob', 'a1', 'alice', 'list1'))}@{chance.choice(_OTHER)}"
        if chance.random() < 0.15:
            recipient = (
                chance.choice(("ticket-7", "desk-Seven", "desk-", "alice-too", "bob-too+x")) + "@example.test"
            )
        if chance.random() < 0.25:
            recipient = chance.choice((*_REMOTE, *_ASTRAY))
        if number == OUTLET:
            recipient = "outlet@example.test"
        if self.callout and not login and client != "192.0.2.7" and chance.random() < 0.3:
            late = "late" if 'unanswered = "defer"' in self.config else "nobody"
            recipient = f"{chance.choice(('nobody', late, 'erin', 'postmaster'))}@two.example"
        senders = ["nina@home.example", "alice@example.test", "bob@example.test", "carol@one.example", ""]
        sender = author = chance.choice(senders)
        if login and chance.random() < 0.8:
            sender = author = (
                chance.choice(["", "info@", "alice+x@"]) if login == "alice" else "bob@example.test"
            )
            sender = author = (
                f"{author}example.test" if author.endswith("@") else author or "alice@example.test"
            )
        if not author or chance.random() < 0.1:
            author = chance.choice(senders[:4])
        lines = [f"From: {author}", f"Subject: {number}"]
        lines += ["Received: from x by y; Sun, 22 Nov 2026 06:26:22 +0000"] * 11 * (chance.random() < 0.05)
        if chance.random() < 0.1:
            before = chance.choice((recipient, "alice@example.test", "bob@example.test", "info@example.test"))
            lines.append(f"Delivered-To: {before}")
        lines += ["X-Spam-Flag: YES"] * (chance.random() < 0.15)
        lines += ["Auto-Submitted: auto-replied"] * (chance.random() < 0.1)
        return Mail(
            client=client,
            helo=chance.choice(
                [*["client.example.org"] * 8, "mx.example.test", "192.0.2.7", "[192.0.2.7]", "x"]
            ),
            login=login,
            role=Role.MX if not login and chance.random() < 0.98 else Role.SUBMISSION,
            sender=sender,
            recipient=recipient,
            size=200_000 if chance.random() < 0.1 else None,
            message="\r\n".join([*lines, "", "x", ""]).encode(),
        )

    # --- what happens --------------------------------------------------------------------------

    def bring(self, mail: Mail) -> Reply:
        """Bring it in a session; the last reply."""
        session: Any = self.world.listeners.factory(mail.role).buildProtocol(
            IPv4Address("TCP", _FILTER, 40000)
        )
        transport: Any = StringTransport(  # type: ignore[no-untyped-call]
            peerAddress=IPv4Address("TCP", _FILTER, 40000)
        )
        session.makeConnection(transport)
        address = f"IPV6:{mail.client}" if ":" in mail.client else mail.client
        xclient = f"XCLIENT ADDR={address}" + (f" LOGIN={mail.login}" if mail.login else "")
        size = "" if mail.size is None else f" SIZE={mail.size}"
        commands = [
            "EHLO filter.example.test",
            xclient,
            f"EHLO {mail.helo}",
            f"MAIL FROM:<{mail.sender}>{size}",
            f"RCPT TO:<{mail.recipient}>",
            "DATA",
        ]
        last = Reply(0, "", "")
        for line in [*(f"{command}\r\n".encode() for command in commands), mail.message + b".\r\n"]:
            transport.clear()
            session.dataReceived(line)
            self.world.network.pump([0.0] * 3)
            text = transport.value().decode().splitlines()[-1]
            code, _, rest = text.partition(" ")
            enhanced, _, words = rest.partition(" ")
            last = Reply(int(code), enhanced, words)
            if not last.positive:
                break
        session.connectionLost()
        return last

    def copies(self, subject: int) -> tuple[set[str], set[str]]:
        """The Maildirs, files, commands and handlers, and the addresses at other hosts, that have got the message with that
        subject itself."""
        wanted = f"\nSubject: {subject}\n".encode()

        def has(data: bytes) -> bool:
            return wanted in data.replace(b"\r\n", b"\n").partition(b"\n\n")[0] + b"\n"

        root = self.directory / "mail"
        places = {
            str(file.parent.parent)
            for file in (*root.glob("*/new/*"), *root.glob("*/.*/new/*"))
            if has(file.read_bytes())
        }
        if any(has(file.read_bytes()) for file in self.out.glob("md/new/*")):
            places.add(f"{self.out}/md/")
        box = self.out / "box"
        if box.exists() and any(has(each) for each in box.read_bytes().split(b"\n\nFrom ")):
            places.add(str(box))
        places |= {" ".join(run.argv) for run in self.world.commands.runs if has(run.message)}
        places |= {name for name, taken in handled.TAKEN if taken == str(subject)}
        remote = {
            recipient
            for peer in self.peers
            for message in peer.messages
            if has(message.data)
            for recipient in message.recipients
        }
        return places, remote

    def history(self, queue_id: str) -> list[tuple[str, str]]:
        """The recipients of a message, and of the list posts that came of it, with the replies that ended or put off the last
        attempt."""
        store = self.world.parts.store
        answers: list[Any] = []
        asked: Any = trace_handlers(store, lambda: 0.0)["trace"]({"what": queue_id})
        Deferred.fromCoroutine(asked).addCallback(answers.append)
        found: list[tuple[str, str]] = []

        def walk(message: dict[str, Any]) -> None:
            for recipient in message["recipients"]:
                found.append((recipient["address"], recipient["reply"]))
            for child in message["children"]:
                if child["origin"].startswith("list "):
                    walk(child)

        for tree in answers[0]["trees"]:
            walk(tree)
        return found

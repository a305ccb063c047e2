"""Files, commands and handlers in a whole server on a simulated clock."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.commands import Exit
from twisted_mta.core.history import PastMessage
from twisted_mta.core.queue import Transport
from twisted_mta.interfaces import Foreseen, IForesight
from twisted_mta.store.faults import arm
from twisted_mta.testing.queued import queued_message, queued_recipient
from twisted_mta.testing.world import World

_MESSAGE = b"From: <a@b.example>\r\nMessage-ID: <m1@b.example>\r\nSubject: x\r\n\r\nFrom here\r\n"


class _Case(SynchronousTestCase):
    config = ""
    aliases = ""

    def setUp(self) -> None:
        self.directory = Path(os.path.realpath(self.mktemp()))
        self.directory.mkdir()
        places = {"DIR": str(self.directory)}
        config, aliases = self.config, self.aliases
        for name, value in places.items():
            config, aliases = config.replace(name, value), aliases.replace(name, value)
        (self.directory / "files").mkdir()
        (self.directory / "run").mkdir()
        self.prepare()
        self.world = World(self.directory, config, aliases=aliases)
        self.addCleanup(arm, None)

    def prepare(self) -> None:
        """Before the server starts."""

    def tearDown(self) -> None:
        self.world.close()

    def send(self, *recipients: str, message: bytes = _MESSAGE, notify: str = "") -> str:
        return str(self.world.send("sender@example.org", recipients, message, notify=notify))

    def bounces(self) -> list[bytes]:
        return self.world.mail("alice")

    def past(self) -> PastMessage:
        """What is remembered of the message that came last."""
        found: list[PastMessage] = []

        async def look() -> None:
            store = self.world.parts.store
            found.extend(await store.recall(await store.arrivals(0, 1e12, 1)))

        Deferred.fromCoroutine(look())
        return found[0]

    def foreseen(self, transport: Transport, address: str, target: str = "") -> Foreseen:
        """What would become of a recipient."""
        one = queued_recipient(address, transport=transport, target=target)
        delivery = IForesight(self.world.parts.deliveries[transport])
        found: Foreseen = self.successResultOf(
            Deferred.fromCoroutine(delivery.foresee(queued_message(), one, b""))
        )
        return found


class FileTests(_Case):
    config = '[delivery]\nfiles = ["files"]\n'
    aliases = (
        "log: DIR/files/log\narchive: DIR/files/archive/\nboth: DIR/files/log, DIR/files/archive/, alice\n"
        "outside: DIR/elsewhere\nup: DIR/files/../elsewhere\nnull: /dev/null\n"
    )

    @property
    def log(self) -> bytes:
        path = self.directory / "files/log"
        return path.read_bytes() if path.exists() else b""

    def archived(self) -> list[bytes]:
        return [path.read_bytes() for path in (self.directory / "files/archive/new").iterdir()]

    def test_an_mbox(self) -> None:
        self.send("log@example.test")
        self.assertRegex(
            self.log,
            rb"\AFrom sender@example\.org Fri Jan 15 08:00:\d\d 2027\nReturn-Path: <sender@example.org>\n"
            rb"Delivered-To: log@example\.test\nReceived: from (.|\n)+\nSubject: x\n\n>From here\n\n\Z",
        )
        self.assertEqual(self.world.queued(), [])

    def test_a_maildir(self) -> None:
        self.send("archive@example.test")
        (message,) = self.archived()
        self.assertIn(b"Delivered-To: archive@example.test\n", message)
        self.assertEqual((self.directory / "files/archive").stat().st_mode & 0o777, 0o700)

    def test_several_ways_to_one_file_are_one_copy(self) -> None:
        self.send("log@example.test", "both@example.test", "archive@example.test")
        self.assertEqual(self.log.count(b"Subject: x"), 1)
        self.assertEqual(len(self.archived()), 1)
        self.assertEqual(len(self.world.mail("alice")), 1)

    def test_nowhere(self) -> None:
        self.send("null@example.test")
        self.assertEqual(self.world.queued(), [])

    def test_outside_it_waits_for_the_administrator(self) -> None:
        self.send("outside@example.test", "up@example.test")
        self.assertEqual(len(self.world.queued()), 2)
        self.assertFalse((self.directory / "elsewhere").exists())
        self.world.config_text(f'[delivery]\nfiles = ["{self.directory}"]\n')
        self.world.advance(3600)
        self.assertTrue((self.directory / "elsewhere").exists())
        self.flushLoggedErrors()

    def test_a_full_disk(self) -> None:
        def full(point: str) -> None:
            if point == "mbox.sync":
                raise OSError(errno.ENOSPC, "full")

        arm(full)
        self.send("log@example.test")
        self.assertEqual(self.log, b"")
        self.assertEqual(self.world.queued(), ["log@example.test"])
        arm(None)
        self.world.advance(3600)
        self.assertEqual(self.log.count(b"Subject: x"), 1)
        self.assertEqual(self.world.queued(), [])

    def test_a_crash_at_each_step(self) -> None:
        """Whatever was on the disk by then, the message is there once in the end."""

        class Crash(BaseException):
            pass

        self.send("log@example.test")
        for number, point in enumerate(("mbox.lock", "mbox.write", "mbox.sync", "mbox.synced"), 2):
            for passes in (1, 2) if point == "mbox.write" else (1,):
                left = passes

                def hook(passed: str, point: str = point) -> None:
                    nonlocal left
                    left -= passed == point
                    if not left:
                        left = -1
                        raise OSError(errno.EIO, "as if dead")

                arm(hook)
                self.send(
                    "log@example.test",
                    message=_MESSAGE.replace(b"Subject: x", f"Subject: {point}{passes}".encode()),
                )
                arm(None)
                self.world.advance(3600)
                self.assertEqual(self.log.count(f"Subject: {point}{passes}\n".encode()), 1)
            self.assertGreaterEqual(self.log.count(b"\nReturn-Path:"), number)

    def test_a_lock_is_waited_for(self) -> None:
        lock = self.directory / "files/log.lock"
        lock.write_text(f"{os.getppid()}\n")
        os.utime(lock, (self.world.network.seconds(), self.world.network.seconds()))
        self.send("log@example.test")
        self.world.advance(5, 1)
        self.assertEqual(self.log, b"")
        lock.unlink()
        self.world.advance(5, 1)
        self.assertEqual(self.log.count(b"Subject: x"), 1)

    def test_and_not_for_ever(self) -> None:
        lock = self.directory / "files/log.lock"
        lock.write_text(f"{os.getppid()}\n")
        os.utime(lock, (self.world.network.seconds(), self.world.network.seconds()))
        self.send("log@example.test")
        self.world.advance(60, 1)
        self.assertEqual(self.world.queued(), ["log@example.test"])
        lock.unlink()
        self.world.advance(3600)
        self.assertEqual(self.log.count(b"Subject: x"), 1)

    def test_what_is_foreseen(self) -> None:
        inside = f"{self.directory}/files/log"
        for target, text, places in (
            (inside, f"mbox {inside}", (inside,)),
            (f"{inside}/", f"Maildir {inside}/", (f"{inside}/",)),
        ):
            found = self.foreseen(Transport.FILE, "log@example.test", target)
            self.assertEqual((found.note.text, found.places, found.failure), (text, places, None))
        found = self.foreseen(Transport.FILE, "log@example.test", "/etc/passwd")
        self.assertIn("not below a directory", found.note.text)
        self.assertEqual((found.failure and found.failure.code, found.places), (451, ()))

    def test_one_at_a_time(self) -> None:
        for number in range(20):
            self.send("log@example.test", message=_MESSAGE.replace(b"x\r\n", b"n%d\r\n" % number))
        self.assertEqual(self.log.count(b"\nReturn-Path:"), 20)


class CommandTests(_Case):
    config = '[delivery.command]\nuser = "nobody"\ndirectory = "run"\nconcurrency = 2\ntimeout = "90s"\n'
    aliases = (
        "filter: |/bin/filter -f 'a b'\npiped: \"|/bin/cat > x\"\nboth: \"|/bin/filter -f 'a b'\", alice\n"
    )

    @property
    def runs(self) -> Sequence[Any]:
        return self.world.commands.runs

    def test_what_a_command_gets(self) -> None:
        self.send("filter@example.test")
        (run,) = self.runs
        self.assertEqual(run.argv, ("/bin/filter", "-f", "a b"))
        self.assertEqual((run.directory, run.timeout), (str(self.directory / "run"), 90.0))
        self.assertEqual(run.environment["SENDER"], "sender@example.org")
        self.assertEqual(run.environment["RECIPIENT"], "filter@example.test")
        self.assertTrue(
            run.message.startswith(
                b"Return-Path: <sender@example.org>\nDelivered-To: filter@example.test\nReceived: "
            )
        )
        self.assertTrue(run.message.endswith(b"Subject: x\n\nFrom here\n"))
        self.assertEqual(self.world.queued(), [])

    def test_a_refusal_bounces_with_the_output(self) -> None:
        self.world.commands.script = lambda run: Exit(code=77, output="no such ticket\n")
        self.world.send("alice@example.test", ["filter@example.test"], _MESSAGE)
        (bounce,) = self.bounces()
        self.assertIn(b"Status: 5.7.0\n", bounce)
        self.assertIn(
            b"(it ended with 77): no such ticket", bounce.replace(b"\n   ", b" ").replace(b"\n ", b" ")
        )

    def test_a_failure_for_now_is_tried_again(self) -> None:
        ends = [Exit(code=75, output="busy"), Exit(error="not there"), Exit()]
        self.world.commands.script = lambda run: ends.pop(0)
        self.send("filter@example.test")
        self.world.advance(6 * 3600)
        self.assertEqual((ends, self.world.queued()), ([], []))
        self.assertEqual(len({run.environment["QUEUE_ID"] for run in self.runs}), 1)

    def test_so_many_at_a_time(self) -> None:
        self.world.commands.script = lambda run: None
        for _ in range(5):
            self.send("filter@example.test")
        self.assertEqual(len(self.runs), 2)
        self.world.commands.end(Exit())
        self.assertEqual((len(self.runs), self.world.commands.going), (3, 2))
        for _ in range(4):
            self.world.commands.end(Exit())
        self.assertEqual(self.world.queued(), [])

    def test_a_stop_ends_them(self) -> None:
        self.world.commands.script = lambda run: None
        self.send("filter@example.test")
        self.world.restart()
        self.assertEqual(self.world.commands.cancelled, 1)
        self.assertEqual(len(self.runs), 2)
        self.world.commands.end(Exit())
        self.assertEqual(self.world.queued(), [])

    def test_what_needs_a_shell_waits(self) -> None:
        self.send("piped@example.test")
        self.assertEqual((self.runs, self.world.queued()), ([], ["piped@example.test"]))
        self.world.config_text(self.config + "shell = true\n")
        self.world.advance(3600)
        (run,) = self.runs
        self.assertEqual(run.argv, ("/bin/sh", "-c", "/bin/cat > x"))

    def test_off(self) -> None:
        self.world.config_text("")
        self.send("filter@example.test")
        self.assertEqual((self.runs, self.world.queued()), ([], ["filter@example.test"]))

    def test_what_is_foreseen(self) -> None:
        found = self.foreseen(Transport.COMMAND, "filter@example.test", "/bin/filter -f 'a b'")
        self.assertEqual(found.note.text, "/bin/filter -f 'a b', as nobody")
        found = self.foreseen(Transport.COMMAND, "filter@example.test", "/bin/filter > x")
        self.assertIn("means something to a shell only", found.note.text)
        self.assertEqual(found.failure and found.failure.code, 451)

    def test_a_body_that_can_not_be_copied(self) -> None:
        with mock.patch("tempfile.TemporaryFile", side_effect=OSError(errno.ENOSPC, "full")):
            self.send("filter@example.test")
        self.assertEqual((self.runs, self.world.queued()), ([], ["filter@example.test"]))
        self.world.advance(3600)
        self.assertEqual((len(self.runs), self.world.queued()), (1, []))

    def test_a_loop(self) -> None:
        self.send("filter@example.test", message=b"Delivered-To: filter@example.test\r\n" + _MESSAGE)
        self.assertEqual((self.runs, self.world.queued()), ([], []))


class HandlerTests(_Case):
    module = """
from twisted.internet.defer import Deferred
from twisted_mta.handlers import Defer, Mail, Reject, rcpt

seen = []
acts = []
waiting = []

def act(mail):
    seen.append((mail.recipient, mail.captures, mail.sender, mail.key, mail.attempt))
    if acts:
        what = acts.pop(0)
        if isinstance(what, BaseException):
            raise what
        if what is not None:
            return what(mail)

@rcpt("ticket-{id}@example.test", timeout=30, concurrency=2)
async def ticket(mail, id):
    result = act(mail)
    if result is not None:
        await result

@rcpt("plain@example.test")
def plain(mail):
    return act(mail)

@rcpt("threaded@example.test", thread=True)
def threaded(mail):
    act(mail)

@rcpt("now@example.test", "now-{x}@example.test", inline=True)
async def now(mail, x=""):
    result = act(mail)
    if result is not None:
        await result
"""
    config = '[handlers]\nmodules = ["app_NAME"]\npath = ["DIR"]\n'
    aliases = "desk: ticket-7\nticket-alias: alice\n"

    def prepare(self) -> None:
        self.name = f"app_{self._testMethodName}"
        (self.directory / f"{self.name}.py").write_text(self.module)
        self.addCleanup(sys.modules.pop, self.name, None)
        self.addCleanup(sys.path.remove, str(self.directory))

    def setUp(self) -> None:
        self.config = self.config.replace("NAME", self._testMethodName)
        super().setUp()
        self.app: Any = sys.modules[self.name]

    def test_it_gets_the_mail(self) -> None:
        def look(mail: Any) -> None:
            self.assertEqual(mail.message["subject"], "x")
            self.assertEqual(mail.message.get_content(), "From here\n")
            octets = mail.octets()
            self.assertEqual((len(octets), octets[:9]), (mail.size, b"Received:"))
            self.assertTrue(octets.endswith(_MESSAGE))
            self.assertEqual(mail.original, "Ticket-A7@example.test")

        self.app.acts.append(look)
        self.send("Ticket-A7@example.test")
        ((recipient, captures, sender, key, attempt),) = self.app.seen
        self.assertEqual((recipient, captures), ("Ticket-A7@example.test", {"id": "A7"}))
        self.assertEqual((sender, attempt), ("sender@example.org", 1))
        self.assertTrue(key.endswith(":Ticket-A7@example.test"))
        self.assertEqual(self.world.queued(), [])

    def test_who_is_known_at_rcpt(self) -> None:
        for address, code in (
            ("ticket-1", 250),
            ("plain", 250),
            ("ticket-", 550),
            ("postmaster", 250),
            ("none", 550),
        ):
            reply = self.world.send("a@b.example", [f"{address}@example.test"], _MESSAGE)
            self.assertEqual(reply.code, code, address)

    def test_precedence(self) -> None:
        self.send("ticket-alias@example.test")
        self.assertEqual((self.app.seen, len(self.world.mail("alice"))), ([], 1))
        self.send("desk@example.test")
        self.assertEqual(self.app.seen[0][0], "ticket-7@example.test")

    def test_refusals(self) -> None:
        from twisted_mta.handlers import Defer, Reject

        self.app.acts += [Reject("no\nsuch ticket", code=553, status="5.1.3")]
        self.world.send("alice@example.test", ["ticket-1@example.test"], _MESSAGE)
        (bounce,) = self.bounces()
        self.assertIn(b"553 5.1.3 no such ticket", bounce)
        self.app.acts += [Defer("later"), None]
        self.send("ticket-1@example.test")
        self.world.advance(3600)
        self.assertEqual([attempt for *_, attempt in self.app.seen], [1, 1, 2])
        self.assertEqual(self.world.queued(), [])

    def test_a_bug_defers(self) -> None:
        self.app.acts += [KeyError("oops"), None]
        self.send("plain@example.test")
        self.assertEqual(self.world.queued(), ["plain@example.test"])
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.world.advance(3600)
        self.assertEqual(self.world.queued(), [])
        self.assertEqual(len({key for _, _, _, key, _ in self.app.seen}), 1)

    def test_one_that_takes_too_long(self) -> None:
        never: Deferred[None] = Deferred()
        self.app.acts += [lambda mail: never, None]
        self.send("ticket-1@example.test")
        self.world.advance(31, 1)
        self.assertTrue(never.called)
        self.assertEqual(self.world.queued(), ["ticket-1@example.test"])
        self.world.advance(3600)
        self.assertEqual(self.world.queued(), [])

    def test_so_many_at_a_time(self) -> None:
        waiting: list[Deferred[None]] = []

        def wait(mail: Any) -> Deferred[None]:
            waiting.append(Deferred())
            return waiting[-1]

        self.app.acts += [wait] * 4
        for number in range(4):
            self.send(f"ticket-{number}@example.test")
        self.assertEqual(len(waiting), 2)
        waiting[0].callback(None)
        self.assertEqual(len(waiting), 3)
        for one in waiting[1:]:
            one.callback(None)
        waiting[3].callback(None)
        self.assertEqual(self.world.queued(), [])

    def test_in_a_thread(self) -> None:
        self.send("threaded@example.test")
        self.assertEqual((len(self.app.seen), self.world.queued()), (1, []))

    def test_a_stop_cuts_them_off(self) -> None:
        never: Deferred[None] = Deferred()
        self.app.acts += [lambda mail: never]
        self.send("plain@example.test")
        self.world.restart()
        self.assertEqual((len(self.app.seen), self.world.queued()), (2, []))
        self.assertEqual(len({key for _, _, _, key, _ in self.app.seen}), 1)

    def test_inline(self) -> None:
        from twisted_mta.handlers import Defer, Reject

        self.assertTrue(self.send("now@example.test").startswith("250"))
        self.assertEqual(len(self.app.seen), 1)
        self.app.acts += [Reject("not you"), Defer("wait", code=452, status="4.2.2")]
        self.assertEqual(self.send("now@example.test"), "550 5.7.1 not you")
        self.assertEqual(self.send("now@example.test"), "452 4.2.2 wait")
        self.app.acts += [KeyError("oops")]
        self.assertTrue(self.send("now@example.test").startswith("451 4.3.0"))
        self.flushLoggedErrors(KeyError)
        self.assertEqual((len(self.app.seen), self.world.queued()), (4, []))

    def test_inline_among_others(self) -> None:
        from twisted_mta.handlers import Reject

        self.app.acts += [Reject("not you"), None]
        reply = self.world.send(
            "alice@example.test", ["now@example.test", "now-1@example.test", "bob@example.test"], _MESSAGE
        )
        self.assertEqual(reply.code, 250)
        self.assertEqual((len(self.app.seen), len(self.world.mail("bob"))), (2, 1))
        (bounce,) = self.bounces()
        self.assertIn(b"550 5.7.1 not you", bounce)
        self.assertEqual(self.world.queued(), [])

    def test_the_history_has_each_attempt(self) -> None:
        from twisted_mta.handlers import Defer

        self.app.acts += [Defer("later"), None]
        self.send("ticket-1@example.test")
        self.world.advance(3600)
        past = self.past()
        (one,) = past.recipients
        self.assertEqual((one.transport, one.target), ("handler", f"{self.name}.ticket"))
        self.assertEqual((one.attempts, one.reply), (2, f"250 2.0.0 taken by {self.name}.ticket"))
        self.assertIn("451 4.7.0 later", str([event.data for event in past.events]))

    def test_inline_ones_are_in_the_history_too(self) -> None:
        self.send("now@example.test")
        (one,) = self.past().recipients
        self.assertEqual((one.transport, one.reply), ("handler", f"250 2.0.0 taken by {self.name}.now"))

    def test_what_is_foreseen(self) -> None:
        found = self.foreseen(Transport.HANDLER, "now-7@example.test")
        self.assertEqual(
            found.note.text,
            f'{self.name}.now, by "now-{{x}}@example.test", before the message is acknowledged',
        )
        self.assertEqual(found.note.data["captures"], {"x": "7"})
        self.assertEqual(found.places, (f"{self.name}.now",))
        gone = self.foreseen(Transport.HANDLER, "none@example.test")
        self.assertEqual(gone.failure and gone.failure.code, 550)
        self.assertEqual(self.app.seen, [])

    def test_inline_ones_that_are_busy(self) -> None:
        never: list[Deferred[None]] = []

        def wait(mail: Any) -> Deferred[None]:
            never.append(Deferred())
            return never[-1]

        self.app.acts += [wait] * 10
        for _ in range(10):
            self.assertEqual(self.send("now@example.test"), "0")
        self.assertEqual(self.send("now@example.test"), "0")
        self.assertEqual(len(never), 10)
        never[0].callback(None)
        self.assertEqual(len(self.app.seen), 11)
        for one in never[1:]:
            one.callback(None)
        self.world.advance(1, 1)
        self.assertEqual(self.world.queued(), [])

    def test_one_that_does_not_mind_being_cancelled(self) -> None:
        """It keeps its place until it ends."""
        from twisted.internet.defer import CancelledError

        gate: Deferred[None] = Deferred()

        async def stubborn() -> None:
            try:
                await Deferred()
            except CancelledError:
                await gate

        self.app.acts += [lambda mail: Deferred.fromCoroutine(stubborn())] * 2
        self.send("ticket-1@example.test")
        self.send("ticket-2@example.test")
        self.world.advance(31, 1)
        self.send("ticket-3@example.test")
        self.assertEqual(len(self.app.seen), 2)
        gate.callback(None)
        self.world.advance(7200)
        self.assertEqual(self.world.queued(), [])
        self.assertIn("ticket-3@example.test", [seen[0] for seen in self.app.seen])

    def test_taken_away(self) -> None:
        never: Deferred[None] = Deferred()
        self.app.acts += [lambda mail: never]
        self.world.send("alice@example.test", ["plain@example.test"], _MESSAGE)
        self.world.config_text("")
        (bounce,) = self.bounces()
        self.assertIn(b"5.1.1", bounce)

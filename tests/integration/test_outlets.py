"""Files and commands of aliases with a real server, real processes and kill -9."""

from __future__ import annotations

import contextlib
import getpass
import mailbox
import os
import pwd
import smtplib
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.ordinary import spawn
from tests.peers import has_ended
from twisted_mta.store.faults import VARIABLE
from twisted_mta.testing.site import Site

_MESSAGE = "From: <a@b.example>\r\nSubject: {}\r\n\r\nFrom here\r\n"


class _Case(SynchronousTestCase):
    aliases = ""

    def start(self, config: str, top: str = "", **environment: str) -> Site:
        site = Site(config, top=top, roles=("mx",), environment=environment, spawn=spawn)
        self.addCleanup(site.__exit__, None, None, None)
        (site.directory / "files").mkdir()
        site.alias_file.write_text(self.aliases.replace("DIR", str(site.directory)))
        self.before(site)
        return site.start()

    def before(self, site: Site) -> None:
        """The files are there, the server is not yet started."""

    def send(
        self, site: Site, recipient: str, subject: str = "x", sender: str = "alice@example.test"
    ) -> None:
        with smtplib.SMTP("127.0.0.1", site.port("mx")) as client:
            client.sendmail(sender, [f"{recipient}@example.test"], _MESSAGE.format(subject))


class FileTests(_Case):
    aliases = "log: DIR/files/log\narchive: DIR/files/archive/\n"
    config = '[delivery]\nfiles = ["files"]\n[queue]\nschedule = "1s"\n'

    def subjects(self, site: Site) -> list[str]:
        box = mailbox.mbox(site.directory / "files/log", create=False)
        with_subject = [str(message["subject"]) for message in box]
        box.close()
        return with_subject

    def test_an_mbox_and_a_maildir(self) -> None:
        site = self.start(self.config)
        for number in range(10):
            self.send(site, "log", str(number))
            self.send(site, "archive", str(number))
        site.wait_for_empty_queue()
        self.assertEqual(sorted(self.subjects(site)), sorted(map(str, range(10))))
        self.assertEqual(len(list((site.directory / "files/archive/new").iterdir())), 10)
        self.assertEqual(stat.S_IMODE((site.directory / "files/log").stat().st_mode), 0o600)

    def test_killed_at_each_step_it_is_there_once(self) -> None:
        site = self.start(self.config)
        self.send(site, "log", "first")
        site.wait_for_empty_queue()
        points = ("mbox.lock", "mbox.write:2", "mbox.sync", "mbox.synced")
        for point in points:
            site.kill()
            site.environment[VARIABLE] = point if ":" in point else f"{point}:1"
            site.environment[VARIABLE] += ":kill"
            site.start()
            with contextlib.suppress(smtplib.SMTPServerDisconnected):  # it may die before it answers
                self.send(site, "log", point)
            assert site.process is not None
            site.process.wait(120)
            site.environment[VARIABLE] = ""
            site.kill()
            site.start()
            site.wait_for_empty_queue()
        self.assertEqual(sorted(self.subjects(site)), sorted(["first", *points]))

    def test_workers_share_a_file(self) -> None:
        site = self.start(self.config, top="workers = 2\n")
        for number in range(20):
            self.send(site, "log", str(number))
        site.wait_for_empty_queue()
        self.assertEqual(sorted(self.subjects(site)), sorted(map(str, range(20))))


class CommandTests(_Case):
    aliases = (
        "run: |/bin/sh DIR/script\n"
        "refuse: \"|/bin/sh -c 'echo 5.7.2 not today; exit 77'\"\n"
        "late: |/bin/sh DIR/late\n"
    )

    def config(self, user: str, directory: str = "files", timeout: str = "30s") -> str:
        return (
            f'[delivery.command]\nuser = "{user}"\ndirectory = "{directory}"\ntimeout = "{timeout}"\n'
            '[queue]\nschedule = "1s"\n'
        )

    def user(self) -> str:
        """Somebody whom commands can run as: ourselves, or, as root, who is nobody."""
        return "nobody" if os.geteuid() == 0 else getpass.getuser()

    def prepare(self, site: Site, name: str, text: str) -> None:
        script = site.directory / name
        script.write_text(text)
        script.chmod(0o644)

    def open(self, site: Site) -> None:
        """Let the commands' user in."""
        site.directory.chmod(0o711)
        os.chown(site.directory / "files", pwd.getpwnam(self.user()).pw_uid, -1)

    def started(self, *, top: str = "", **more: str) -> Site:
        return self.start(self.config(self.user(), **more), top=top)

    def test_a_command_runs(self) -> None:
        site = self.started()
        self.open(site)
        self.prepare(site, "script", 'cat > "$QUEUE_ID"; id -un >> who; env > environment\n')
        self.send(site, "run")
        files = site.directory / "files"
        site.wait_for_empty_queue()
        self.assertEqual((files / "who").read_text().strip(), self.user())
        environment = (files / "environment").read_text()
        self.assertIn("SENDER=alice@example.test\n", environment)
        self.assertNotIn("MTA", environment)
        (message,) = [path for path in files.iterdir() if path.name not in ("who", "environment")]
        self.assertTrue(
            message.read_text().startswith("Return-Path: <alice@example.test>\nDelivered-To: run@")
        )
        self.assertEqual(stat.S_IMODE(message.stat().st_mode), 0o600)

    def test_what_it_says_is_in_the_bounce_and_in_the_trace(self) -> None:
        site = self.started()
        self.open(site)
        self.send(site, "refuse")
        (bounce,) = site.wait_for(lambda: site.maildir("alice"))
        text = bounce.read_text()
        self.assertIn("Status: 5.7.2\n", text)
        self.assertIn("not today", text)

    def test_one_that_takes_too_long_is_ended(self) -> None:
        site = self.started(timeout="1s")
        self.open(site)
        self.prepare(site, "late", "echo $$ >> pids; exec sleep 1000\n")
        self.send(site, "late")
        pids = site.directory / "files/pids"
        # Where the second is over before the script begins, it does so in one of the next attempts.
        site.wait_for(lambda: pids.exists() and pids.read_text())
        process = int(pids.read_text().split()[0])
        site.wait_for(lambda: has_ended(process))
        site.wait_for_log("took too long")

    def test_workers_run_commands(self) -> None:
        site = self.started(top="workers = 2\n")
        self.open(site)
        self.prepare(site, "script", 'cat > "$QUEUE_ID"\n')
        for _ in range(6):
            self.send(site, "run")
        site.wait_for(lambda: len(list((site.directory / "files").iterdir())) == 6)

    def test_a_server_that_gives_up_root_runs_them_as_another_user(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("needs root")
        self.before = _hand_over_to_daemon  # type: ignore[method-assign]
        for workers in (1, 2):
            site = self.started(top=f'user = "daemon"\nworkers = {workers}\n')
            self.open(site)
            self.prepare(site, "script", "id -un > who; cat > /dev/null\n")
            self.send(site, "run")
            who = site.directory / "files/who"
            site.wait_for(lambda who=who: who.exists() and who.read_text())  # type: ignore[misc]
            self.assertEqual(who.read_text(), "nobody\n")
            assert site.process is not None
            server = Path(f"/proc/{site.process.pid}/status").read_text()
            self.assertIn(f"Uid:\t{pwd.getpwnam('daemon').pw_uid}\t", server)
            site.stop()

    def test_who_can_not_be(self) -> None:
        if os.geteuid() == 0:
            self.skipTest("root can be anybody")
        with self.assertRaisesRegex(RuntimeError, "must be started as root, or as that user"):
            self.start(self.config("nobody"))


def _hand_over_to_daemon(site: Site) -> None:
    user = pwd.getpwnam("daemon")
    for path in (site.directory, *site.directory.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)

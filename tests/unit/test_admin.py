"""The `mta` command without a server: accounts, init, the queue's files, the command line."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pwd
import ssl
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from twisted_mta.admin import accounts, paths, server
from twisted_mta.admin.errors import AdminError
from twisted_mta.admin.main import main
from twisted_mta.admin.queue import listing_lines, wishes
from twisted_mta.config.loader import load, load_with_warnings
from twisted_mta.core.address import Address
from twisted_mta.core.queue import NewMessage, NewRecipient, Transport
from twisted_mta.service.lock import DataLock
from twisted_mta.store import passwords
from twisted_mta.store.app_passwords import AppPasswordFile
from twisted_mta.store.passwords import verify
from twisted_mta.store.queue import SQLiteQueueStore
from twisted_mta.store.users import PasswdFile
from twisted_mta.tap import Options

SMALL = """
hostname = "mail.example.test"
domains = ["example.test"]
postmaster = "alice"
data = "data"
[accounts]
scram_iterations = 4096
[[listen]]
role = "mx"
endpoint = "tcp:25"
"""


class Commands(unittest.TestCase):
    """Runs commands in a directory of their own, with cheap password hashes."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = Path(directory.name)
        self.config = self.dir / "mta.toml"
        self.config.write_text(SMALL)
        for name, value in (("MEMORY_KIB", 8), ("ITERATIONS", 1), ("LANES", 1)):
            patched = mock.patch.object(passwords, name, value)
            patched.start()
            self.addCleanup(patched.stop)
        environment = mock.patch.dict(os.environ)
        environment.start()
        self.addCleanup(environment.stop)
        os.environ.pop("MTA_CONFIG", None)

    def run_mta(self, *argv: str, stdin: str = "") -> tuple[int, str, str]:
        """(exit code, standard output, standard error)"""
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch("sys.stdin", io.StringIO(stdin)),
        ):
            status = main(argv)
        return status, out.getvalue(), err.getvalue()

    def mta(self, *argv: str, stdin: str = "") -> tuple[int, str, str]:
        return self.run_mta("--config", str(self.config), *argv, stdin=stdin)


class AccountsTests(Commands):
    """mta user"""

    def users(self) -> PasswdFile:
        users = PasswdFile(self.dir / "users", "example.test", "/m/{local}")
        users.refresh()
        return users

    def stored(self, name: str) -> str:
        user = self.users().find(name)
        assert user is not None
        return user.stored

    def test_add_with_a_password_from_standard_input(self) -> None:
        status, out, _ = self.mta("user", "add", "carol", stdin="pässword 1\n")
        self.assertEqual((status, out), (0, "added carol@example.test\n"))
        self.assertTrue(verify(self.stored("carol"), "pässword 1".encode()))
        self.assertEqual((self.dir / "users").stat().st_mode & 0o777, 0o600)

    def test_random_password_is_printed_and_right(self) -> None:
        status, out, _ = self.mta("user", "add", "carol@example.test", "--random")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"\Aadded carol@example.test, password \w{4}-\w{4}-\w{4}-\w{4}\n\Z")
        self.assertTrue(verify(self.stored("carol"), out.split()[-1].encode()))

    def test_passwd(self) -> None:
        self.mta("user", "add", "carol", "--random")
        self.assertEqual(
            self.mta("user", "passwd", "carol", stdin="new"),
            (0, "changed the password of carol@example.test\n", ""),
        )
        self.assertTrue(verify(self.stored("carol"), b"new"))

    def test_keys_for_scram(self) -> None:
        self.mta("user", "add", "carol", stdin="secret")
        keys = self.users().find("carol").scram()
        self.assertTrue(keys.match("secret"))
        self.assertEqual(keys.iterations, 4096)
        self.mta("user", "passwd", "carol", stdin="other")
        self.assertTrue(self.users().find("carol").scram().match("other"))
        status, _, err = self.mta("user", "passwd", "carol", stdin="\N{PILE OF POO}")
        self.assertEqual(status, 0)
        self.assertIn("SCRAM can't be used with this password", err)
        self.assertIsNone(self.users().find("carol").scram())
        self.config.write_text(SMALL.replace("scram_iterations = 4096", 'scram = "never"'))
        self.mta("user", "passwd", "carol", stdin="secret")
        self.assertIsNone(self.users().find("carol").scram())

    def test_app_passwords(self) -> None:
        self.mta("user", "add", "carol", stdin="secret")
        status, out, _ = self.mta("user", "app-password", "add", "carol", "my phone", "--only", "imap,smtp")
        self.assertEqual(status, 0)
        secret, about = out.splitlines()
        self.assertEqual(about, "is the app password 'my phone' of carol@example.test; it is not shown again")
        apps = AppPasswordFile.beside(self.dir / "users")
        apps.refresh()
        self.assertIsNotNone(apps.find("carol@example.test", secret.encode()))
        status, out, _ = self.mta("user", "app-password", "list", "CAROL")
        self.assertRegex(out, r"^my phone\tcreated \d{4}-\d\d-\d\d\tnever used\tsmtp,imap\n$")
        used = self.dir / "data" / "app-passwords.used"
        used.parent.mkdir(exist_ok=True)
        used.write_text(f"{apps.of('carol@example.test')[0].id} 2026-11-22\n")
        (found,) = json.loads(self.mta("user", "app-password", "list", "carol", "--json")[1])
        self.assertEqual(
            (found["label"], found["used"], found["services"]), ("my phone", "2026-11-22", ["smtp", "imap"])
        )
        self.assertIn("\tused 2026-11-22\t", self.mta("user", "app-password", "list", "carol")[1])
        status, out, _ = self.mta("user", "app-password", "revoke", "carol", "my phone")
        self.assertEqual(
            (status, out.partition(";")[0]), (0, "revoked the app password 'my phone' of carol@example.test")
        )
        self.assertEqual(self.mta("user", "app-password", "list", "carol"), (0, "", ""))

    def test_app_passwords_refused(self) -> None:
        with (self.dir / "users").open("w") as file:
            file.write("carol@example.test:x::::::\ndave@example.test:!::::::\n")
        self.mta("user", "app-password", "add", "carol", "phone")
        for argv, expected, text in (
            (("add", "nobody", "phone"), 67, "there is no account nobody"),
            (("add", "dave", "phone"), 65, "dave@example.test is locked"),
            (("add", "carol", "phone"), 65, "has an app password 'phone' already"),
            (("add", "carol", "a:b"), 65, "a label has"),
            (("add", "carol", "laptop", "--only", "fax"), 65, "'fax' is no service; valid: smtp, imap, pop3"),
            (("revoke", "carol", "watch"), 67, "no app password 'watch'"),
        ):
            with self.subTest(argv):
                status, _, err = self.mta("user", "app-password", *argv)
                self.assertEqual(status, expected, err)
                self.assertIn(text, err)

    def test_removing_an_account_takes_its_app_passwords_along(self) -> None:
        self.mta("user", "add", "carol", stdin="secret")
        self.mta("user", "app-password", "add", "carol", "phone")
        self.mta("user", "remove", "carol")
        self.assertEqual((self.dir / "users.app-passwords").read_text(), "")

    def test_remove_keeps_the_mail(self) -> None:
        self.mta("user", "add", "carol", "--random")
        status, out, _ = self.mta("user", "remove", "carol")
        self.assertEqual(status, 0)
        self.assertIn(f"its mail stays in {self.dir}/data/mail/example.test/carol", out)
        self.assertEqual(self.users().names(), [])

    def test_list(self) -> None:
        self.assertEqual(self.mta("user", "list"), (0, "", ""))
        self.mta("user", "add", "carol", "--random")
        maildir = f"{self.dir}/data/mail/example.test/carol"
        self.assertEqual(self.mta("user", "list"), (0, f"carol@example.test\t{maildir}\n", ""))
        _, out, _ = self.mta("user", "list", "--json")
        self.assertEqual(json.loads(out), [{"name": "carol@example.test", "maildir": maildir}])
        with (self.dir / "users").open("a") as file:
            file.write("no colon\n")
        self.assertIn("users:2: the user name is no address", self.mta("user", "list")[2])

    def test_refusals(self) -> None:
        self.mta("user", "add", "carol", "--random")
        before = (self.dir / "users").read_text()
        cases = [
            (("add", "carol", "--random"), 1, "there is an account carol@example.test already"),
            (("add", "carol@example.org", "--random"), 65, "example.org is no local domain"),
            (("add", "a b", "--random"), 1, "no name of an account"),
            (("add", "dave"), 65, "the password is empty"),
            (("passwd", "dave", "--random"), 67, "there is no account dave"),
            (("remove", "dave"), 67, "there is no account dave"),
        ]
        for argv, expected, text in cases:
            with self.subTest(argv):
                status, out, err = self.mta("user", *argv)
                self.assertEqual((status, out), (expected, ""))
                self.assertIn(text, err)
        self.assertEqual((self.dir / "users").read_text(), before)

    def test_password_that_is_too_long(self) -> None:
        self.assertEqual(self.mta("user", "add", "dave", stdin="x" * 1001)[0], 65)

    def test_typed_twice(self) -> None:
        options = argparse.Namespace(random=False)
        with mock.patch("sys.stdin") as stdin, mock.patch("getpass.getpass") as typed:
            stdin.isatty.return_value = True
            typed.side_effect = ["one", "two", "one", "one"]
            self.assertRaisesRegex(AdminError, "not the same", accounts._password, options)
            self.assertEqual(accounts._password(options), (b"one", ""))

    def test_files_that_can_not_be_written(self) -> None:
        for error, expected in (
            (PermissionError(13, "Permission denied"), 77),
            (OSError(28, "No space left"), 74),
        ):
            with mock.patch("os.rename", side_effect=error):
                status, out, err = self.mta("user", "add", "carol", "--random")
            self.assertEqual((status, out), (expected, ""))
            self.assertIn(error.strerror, err)

    def test_file_made_by_root_is_given_to_the_server(self) -> None:
        (self.dir / "data").mkdir()
        owner = mock.Mock(st_uid=0)
        with (
            mock.patch("os.geteuid", return_value=0),
            mock.patch("os.chown") as chown,
            mock.patch.object(Path, "stat", return_value=owner),
        ):
            accounts.give_to_server(self.dir / "users", load(self.config, check_files=False))
            owner.st_uid = 1000
            accounts.give_to_server(self.dir / "users", load(self.config, check_files=False))
        chown.assert_called_once_with(self.dir / "users", 0, owner.st_gid)

    def test_the_option_for_the_file_may_stand_behind_the_command_too(self) -> None:
        for argv in (("user", "list", "--config"), ("--config",)):
            status, out, err = self.run_mta(
                *argv, str(self.config), *(() if len(argv) > 1 else ("user", "list"))
            )
            self.assertEqual((status, out, err), (0, "", ""))
        both = self.run_mta("-c", "/nowhere", "user", "list", "-c", str(self.config))
        self.assertEqual(both, (0, "", ""))

    def test_broken_configuration(self) -> None:
        self.config.write_text("x = 1\n")
        status, _, err = self.mta("user", "list")
        self.assertEqual(status, 78)
        self.assertIn("mta.toml:1: x: unknown key", err)


class InitTests(Commands):
    """mta init"""

    def test_demo_is_a_whole_site(self) -> None:
        site = self.dir / "run"
        status, out, err = self.run_mta("init", "--demo", str(site))
        self.assertEqual((status, err), (0, ""))
        config, warnings = load_with_warnings(site / "mta.toml")
        self.assertEqual(warnings, [])
        self.assertEqual(config.domains, ("example.test",))
        self.assertEqual(
            [(str(listen.role), listen.endpoint.split(":")[1]) for listen in config.listen],
            [
                ("mx", "2525"),
                ("submission", "2587"),
                ("submissions", "2465"),
                ("imap", "2143"),
                ("imaps", "2993"),
                ("pop3", "2110"),
                ("pop3s", "2995"),
            ],
        )
        self.assertTrue(all(listen.endpoint.endswith(":interface=127.0.0.1") for listen in config.listen))
        self.assertEqual([str(each.address) for each in config.lists], ["team@example.test"])
        users = PasswdFile(config.accounts.file, "example.test", config.accounts.maildir)
        users.refresh()
        for name in ("alice", "bob"):
            password = out.split(f"{name} (password ")[1].split(")")[0]
            user = users.find(name)
            assert user is not None
            self.assertTrue(verify(user.stored, password.encode()))
            self.assertIn(password, "".join(line for line in out.splitlines() if line.startswith("  ")))
        # `make run` shows all but the one that says how to start it: ten lines.
        shown = [line for line in out.splitlines() if not line.startswith("Start:")]
        self.assertEqual((len(out.splitlines()), len(shown)), (11, 10))
        self.assertEqual(site.stat().st_mode & 0o777, 0o700)
        self.assertEqual((site / "README").read_text(), out)
        for secret in ("key.pem", "users", "README"):
            self.assertEqual((site / secret).stat().st_mode & 0o777, 0o600)

    def test_certificate_is_one_that_clients_accept(self) -> None:
        site = self.dir / "run"
        self.run_mta("init", "--demo", str(site))
        server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_side.load_cert_chain(site / "cert.pem", site / "key.pem")
        for name in ("mail.example.test", "localhost"):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = ssl.create_default_context(cafile=site / "cert.pem")
            here = client.wrap_bio(incoming, outgoing, server_hostname=name)
            there = server_side.wrap_bio(outgoing, incoming, server_side=True)
            done = 0
            for side in (here, there, here, there):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
                    done += 1
            self.assertGreaterEqual(done, 2, name)

    def test_nothing_is_overwritten(self) -> None:
        site = self.dir / "run"
        site.mkdir()
        (site / "key.pem").write_text("mine")
        status, out, err = self.run_mta("init", "--demo", str(site))
        self.assertEqual((status, out), (73, ""))
        self.assertEqual(err, f"mta: {site}/key.pem is there already: nothing was written\n")
        self.assertEqual(os.listdir(site), ["key.pem"])

    def test_real_site(self) -> None:
        site = self.dir / "etc"
        status, out, _ = self.run_mta(
            "init", str(site), "--domain", "example.org", "--hostname", "mail.example.org"
        )
        self.assertEqual(status, 0)
        self.assertIn("mta check-config", out)
        config = load(site / "mta.toml", check_files=False)
        self.assertEqual(config.hostname, "mail.example.org")
        self.assertEqual(config.domains, ("example.org",))
        self.assertNotIn("@EXAMPLE", (site / "mta.toml").read_text())

    def test_wrong_usage(self) -> None:
        site = str(self.dir / "x")
        cases = [
            ((site,), 64, "--domain and --hostname are needed"),
            ((site, "--demo", "--domain", "x"), 64, "brings its own"),
            ((site, "--domain", "a b", "--hostname", "mail.example.org"), 65, "domain is empty or has"),
            ((site, "--domain", "example.org", "--hostname", "x_y.example"), 65, "is no host name"),
        ]
        for argv, expected, text in cases:
            status, _, err = self.run_mta("init", *argv)
            self.assertEqual(status, expected)
            self.assertIn(text, err)
        self.assertFalse((self.dir / "x").exists())


class QueueTests(Commands):
    """mta queue, without a server."""

    def fill(self) -> None:
        clock = Clock()
        store = SQLiteQueueStore.inline(self.dir / "data" / "queue", clock)
        body = store.new_body()
        body.write(b"Subject: \x1b[2J\r\n\r\nhello\r\n")
        recipients = (
            NewRecipient(Address("bob", "example.org"), Transport.SMTP, Address("bob", "example.org")),
        )
        message = NewMessage(
            id="Q1", sender=Address("a", "example.test"), recipients=recipients, arrived=5.0, expires=1e12
        )

        async def add() -> None:
            await store.add([message], body)
            await store.close()

        done: list[object] = []
        Deferred.fromCoroutine(add()).addBoth(done.append)
        self.assertEqual(done, [None])

    def test_no_queue_yet(self) -> None:
        status, _, err = self.mta("queue", "list")
        self.assertEqual(status, 1)
        self.assertIn("no server is running, and there is no queue", err)

    def test_list_show_retry_delete(self) -> None:
        self.fill()
        status, out, err = self.mta("queue", "list")
        self.assertEqual((status, err), (0, ""))
        self.assertRegex(
            out, r"\AQ1  \d+ octets, \d+ days old, from a@example.test\n    bob@example.org \(smtp\): next"
        )
        listed = json.loads(self.mta("queue", "list", "--json")[1])
        self.assertEqual([message["id"] for message in listed["messages"]], ["Q1"])
        status, out, _ = self.mta("queue", "show", "Q1")
        self.assertEqual(status, 0)
        self.assertIn("hello", out)
        self.assertNotIn("\x1b", out)
        meant = "1 recipient of 1 message: "
        self.assertEqual(self.mta("queue", "retry", "Q1")[:2], (0, f"{meant}due now\n"))
        self.assertEqual(self.mta("queue", "retry", "--all")[:2], (0, f"{meant}due now\n"))
        self.assertEqual(self.mta("queue", "delete", "Q1")[:2], (0, f"{meant}removed\n"))
        self.assertEqual(self.mta("queue", "list")[:2], (0, "The queue is empty.\n"))
        self.assertEqual(self.mta("queue", "delete", "Q1")[0], 1)

    def test_orders(self) -> None:
        self.fill()
        meant = "1 recipient of 1 message"
        everything = (
            "--sender",
            "A@example.test",
            "--domain",
            "example.org",
            "--older",
            "2h",
        )
        sizes = ("--larger", "1", "--smaller", "1K", "--status", "new")
        status, out, _ = self.mta("queue", "hold", *everything, *sizes, "--reason", "spam?", "--dry-run")
        self.assertEqual((status, out), (0, f"{meant} would be meant; nothing was done\nQ1\n"))
        self.assertEqual(
            self.mta("queue", "hold", *everything, *sizes, "--reason", "spam?")[:2], (0, f"{meant}: held\n")
        )
        out = self.mta("queue", "list", "--limit", "1")[1]
        self.assertIn(", on hold: spam?", out)
        self.assertIn("(smtp): on hold", out)
        self.assertIn("There may be more: --after Q1", out)
        self.assertEqual(self.mta("queue", "list", "--reply", "no such")[1], "The queue is empty.\n")
        self.assertEqual(
            self.mta("queue", "release", "--recipient", "bob@example.org")[1], f"{meant}: released\n"
        )
        status, out, _ = self.mta("queue", "reroute", "Q1", "--to", "mx.example.net:26")
        self.assertEqual(out, f"{meant}: go to mx.example.net:26\n")
        self.assertIn("(smtp by mx.example.net:26): next attempt now", self.mta("queue", "list")[1])
        self.assertEqual(
            self.mta("queue", "reroute", "Q1", "--back")[1], f"{meant}: go their own way again\n"
        )
        self.assertEqual(self.mta("queue", "reroute", "Q1")[0], 64)
        self.assertEqual(
            self.mta("queue", "expire", "--older", "10")[1], f"{meant}: given up; their senders are told\n"
        )
        self.assertEqual(self.mta("queue", "hold", "--larger", "10X", "--all")[0], 64)
        self.assertEqual(
            json.loads(self.mta("queue", "hold", "--status", "held", "--json")[1])["messages"], 0
        )

    def test_unknown_message_and_wrong_usage(self) -> None:
        self.fill()
        self.assertEqual(self.mta("queue", "show", "X"), (1, "", "mta: there is no message X in the queue\n"))
        self.assertEqual(self.mta("queue", "retry")[0], 64)
        self.assertEqual(self.mta("queue", "retry", "Q1", "--all")[0], 64)
        self.assertEqual(self.mta("queue", "delete")[0], 64)
        self.assertEqual(self.mta("queue")[0], 64)

    def test_server_that_just_starts(self) -> None:
        self.fill()
        lock = DataLock(self.dir / "data")
        lock.acquire()
        status, _, err = self.mta("queue", "list")
        self.assertEqual(status, 75)
        self.assertIn("another server is running, or starting", err)
        lock.release()
        self.assertEqual(self.mta("queue", "list")[0], 0)
        self.assertEqual(self.mta("queue", "list")[0], 0)

    def test_damaged_queue(self) -> None:
        self.fill()
        for path in (self.dir / "data" / "queue").glob("queue.sqlite*"):
            path.write_bytes(b"not a database" * 100)
        status, _, err = self.mta("queue", "list")
        self.assertEqual(status, 74)
        self.assertIn("the queue can't be opened", err)

    def test_listing(self) -> None:
        message = {
            "id": "Q1",
            "sender": "",
            "size": 10,
            "arrived": 0.0,
            "held_until": 0.0,
            "hold": "",
            "recipients": [
                {
                    "address": "x\x1b@y",
                    "transport": "smtp",
                    "status": "deferred",
                    "hop": "",
                    "sender": "o@x",
                    "target": "",
                    "attempts": 2,
                    "next_attempt": 3600.0,
                    "last_reply": "451 4.7.1 later\x07",
                }
            ],
        }
        self.assertEqual(
            list(listing_lines([message, message], 1800.0)),
            [
                "Q1  10 octets, 30 minutes old, from <>",
                "    x\ufffd@y (smtp, from o@x): next attempt in 30 minutes, 2 made: 451 4.7.1 later\ufffd",
            ]
            * 2
            + ["2 messages, 2 recipients"],
        )
        # Put off untried: why it waits is said all the same.
        message["recipients"][0] |= {
            "attempts": 0,
            "last_reply": "451 4.4.1 not tried, since y is out of reach",
        }
        self.assertEqual(
            list(listing_lines([message], 1800.0))[1],
            "    x\ufffd@y (smtp, from o@x): next attempt in 30 minutes: 451 4.4.1 not tried, since y is out of reach",
        )
        message["held_until"] = 3600.0
        first = "Q1  10 octets, 30 minutes old, from <>, held until Thu, 1 Jan 1970 01:00:00 +0000"
        self.assertEqual(next(listing_lines([message], 1800.0)), first)
        self.assertNotIn("held", next(listing_lines([message], 3600.0)))

    def test_what_the_sender_asked_for(self) -> None:
        message = {"deliver_by": 0.0, "returns": True, "priority": 0, "requires_tls": False}
        self.assertEqual(list(wishes(message)), [])
        message |= {"deliver_by": 3600.0, "priority": -2, "requires_tls": True}
        self.assertEqual(
            list(wishes(message)),
            [
                "Deliver by: Thu, 1 Jan 1970 01:00:00 +0000, else given back",
                "Priority: -2",
                "Requires TLS on all of its way",
            ],
        )
        self.assertIn("else the sender is told", next(wishes(message | {"returns": False})))


class ServerCommandsTests(Commands):
    """mta reload and mta status, their server played by a function."""

    def answer(self, result: object) -> contextlib.AbstractContextManager[mock.Mock]:
        return mock.patch.object(server, "call", return_value=result)

    def test_reload(self) -> None:
        with self.answer({"changed": ["queue.expire", "listen"], "restart": {"listen": "because"}}) as call:
            status, out, err = self.mta("reload")
        call.assert_called_once_with(self.dir / "data" / "control", "reload")
        self.assertEqual((status, out), (0, "reloaded; changed: queue.expire, listen\n"))
        self.assertEqual(err, "listen takes effect when the server is restarted (because)\n")
        with self.answer({"changed": [], "restart": {}}):
            self.assertEqual(self.mta("reload")[1], "reloaded; the configuration is the same\n")

    def test_reload_of_a_bad_file(self) -> None:
        with self.answer({"failed": True, "problems": ["mta.toml:1: x: bad"]}):
            status, out, err = self.mta("reload")
        self.assertEqual((status, out), (78, ""))
        self.assertIn("mta.toml:1: x: bad\nnothing was changed", err)

    def test_status(self) -> None:
        facts = {
            "hostname": "h",
            "started": 0,
            "queue": {"waiting": 3},
            "listen": [{"role": "mx", "sessions": 1}, "x"],
            "workers": [{"worker": 1, "since": 7080.0, "last end": {"at": 6600, "how": "by signal 9 (why)"}}],
        }
        with self.answer(facts), mock.patch("time.time", return_value=7200.0):
            self.assertEqual(
                self.mta("status")[1],
                "hostname: h\nrunning for: 2 hours\nqueue.waiting: 3\nlisten: role mx, sessions 1\nlisten: x\n"
                "workers: worker 1, for 2 minutes, the one before ended 10 minutes ago by signal 9 (why)\n",
            )
            self.assertEqual(json.loads(self.mta("status", "--json")[1]), facts)

    def test_a_file_being_edited_does_not_hide_the_server(self) -> None:
        self.config.write_text("hostnmae = 1\ndata = 'data'\n")
        for command, result in (("status", {}), ("reload", {"failed": True, "problems": ["x"]})):
            with self.answer(result) as call:
                self.mta(command)
            call.assert_called_once_with(self.dir / "data" / "control", command)
        self.assertIn("no server is running", self.mta("queue", "list")[2])
        self.config.write_text("data = 5\n")
        self.assertEqual(self.mta("status")[0], 78)

    def test_without_a_server(self) -> None:
        for command in ("reload", "status"):
            status, _, err = self.mta(command)
            self.assertEqual(status, 75)
            self.assertIn("no server is running", err)


class CommandLineTests(Commands):
    """Help, versions, finding the configuration."""

    def test_help_is_worth_reading(self) -> None:
        status, out, _ = self.run_mta("--help")
        self.assertEqual(status, 0)
        for word in (
            "mta init --demo",
            "check-config",
            "user",
            "queue",
            "reload",
            "status",
            "sendmail",
            "$MTA_CONFIG",
        ):
            self.assertIn(word, out)
        self.assertEqual(self.run_mta("user", "--help")[0], 0)
        self.assertIn("-t  ", self.run_mta("sendmail", "--help")[1])

    def test_help_of_twistd_keeps_its_examples_apart(self) -> None:
        lines = Options().getUsage(80).splitlines()
        self.assertIn("Runs a mail server: it receives mail, takes submissions from those who log in,", lines)
        for example in (
            "mta init --demo run  ",
            "twistd -n mta --config run/mta.toml  ",
            "kill -HUP PID, or mta reload  ",
        ):
            self.assertEqual(len([line for line in lines if line.startswith(f"  {example}")]), 1, lines)
        self.assertLessEqual(max(map(len, lines)), 80)

    def test_version(self) -> None:
        status, out, _ = self.run_mta("--version")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"\Amta \d+\.\d+")

    def test_wrong_usage(self) -> None:
        status, _, err = self.run_mta("frobnicate")
        self.assertEqual(status, 64)
        self.assertIn("Try: mta --help", err)
        self.assertEqual(self.run_mta()[0], 64)
        self.assertEqual(self.run_mta("user")[0], 64)

    def test_which_configuration(self) -> None:
        status, out, _ = self.mta("check-config")
        self.assertEqual(status, 78)  # there are no accounts yet
        self.mta("user", "add", "alice", "--random")
        status, out, _ = self.mta("check-config")
        self.assertEqual((status, out), (0, f"{self.config}: good\n"))
        os.environ["MTA_CONFIG"] = str(self.config)
        self.assertEqual(self.run_mta("check-config")[:2], (0, f"{self.config}: good\n"))
        os.environ["MTA_CONFIG"] = "/nowhere"
        self.assertEqual(self.run_mta("check-config", str(self.config))[0], 0)
        self.assertEqual(
            self.run_mta("check-config"), (78, "", "/nowhere: can't be read: No such file or directory\n")
        )

    def test_what_leads_nowhere_is_told(self) -> None:
        self.config.write_text('aliases = ["aliases"]\n' + SMALL)
        (self.dir / "aliases").write_text("info: alice\ngone: nobody\nbroken\n")
        self.mta("user", "add", "bob", "--random")
        status, out, err = self.mta("check-config")
        self.assertEqual((status, out), (0, f"{self.config}: good, with 4 warnings\n"))
        self.assertIn("warning: postmaster: ", err)
        self.assertIn("aliases:1: ", err)
        self.assertIn("aliases:2: ", err)
        self.assertIn("aliases:3: ", err)

    def test_root_is_told_that_he_sees_no_handlers(self) -> None:
        """Else what they take looks like a mistake in the configuration."""
        me = pwd.getpwuid(os.geteuid()).pw_name
        self.config.write_text(
            f'user = "{me}"\n' + SMALL + '\n[handlers]\nmodules = ["tests.simulation.handled"]\n'
        )
        self.mta("user", "add", "alice", "--random")
        for told in (True, False):
            with mock.patch("twisted_mta.config.handlers.os.geteuid", return_value=0 if told else 12345):
                for command in (["check-config"], ["expand", "ticket-1"]):
                    err = self.mta(*command)[2]
                    self.assertEqual("warning: root imports no handlers" in err, told, err)

    def test_expand(self) -> None:
        self.config.write_text('aliases = ["aliases"]\n' + SMALL)
        (self.dir / "aliases").write_text("info: alice, x@example.org\n")
        self.mta("user", "add", "alice", "--random")
        status, out, err = self.mta("expand", "info", "Alice+news@example.test", "y@example.net")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(
            out,
            "info@example.test: alias\n"
            f"  alice@example.test: account  ({self.dir}/aliases:1)\n"
            f"  x@example.org: remote  ({self.dir}/aliases:1)\n"
            "Alice+news@example.test: account\n"
            "y@example.net: remote\n",
        )
        status, out, err = self.mta("expand", "nobody")
        self.assertEqual((status, out), (67, "nobody@example.test: unknown user\n"))
        self.assertIn("550 5.1.1", err)
        self.assertEqual(self.mta("expand", "a b")[0], 65)

    def test_no_configuration(self) -> None:
        with mock.patch.object(paths, "SYSTEM_CONFIG", self.dir / "none.toml"):
            status, _, err = self.run_mta("status")
            self.assertEqual(status, 78)
            self.assertIn("mta init --demo run", err)
        with mock.patch.object(paths, "SYSTEM_CONFIG", self.config):
            self.assertEqual(self.run_mta("status")[0], 75)

    def test_warnings_are_printed_and_good(self) -> None:
        self.mta("user", "add", "alice", "--random")
        (self.dir / "users").chmod(0o644)
        status, out, err = self.mta("check-config")
        self.assertEqual(status, 0)
        self.assertIn("warning: accounts.file", err)
        self.assertIn("good", out)

"""`mta simulate`, as it is typed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.unit.test_admin import Commands
from twisted_mta.core.address import Address
from twisted_mta.core.queue import NewMessage, NewRecipient, Transport
from twisted_mta.store.queue import SQLiteQueueStore

CAROL = Address("carol", "example.org")


class SimulateTests(Commands):
    def setUp(self) -> None:
        super().setUp()
        # The log of this process is not the command's to begin.
        logging = mock.patch("twisted_mta.admin.simulate.globalLogBeginner")
        logging.start()
        self.addCleanup(logging.stop)
        (self.dir / "users").write_text("alice@example.test:!::::::\n")
        (self.dir / "users").chmod(0o600)
        self.message = self.dir / "f.eml"
        self.message.write_text("Subject: x\n\nhi\n")

    def simulate(self, *argv: str) -> tuple[int, str, str]:
        return self.run_mta("--config", str(self.config), "simulate", *argv)

    def simulated(self, *argv: str) -> Any:
        status, out, err = self.simulate("--json", *argv)
        self.assertEqual((status, err), (0, ""))
        return json.loads(out)

    def queue(self, *names: str, part: str = "queue") -> Path:
        """Put messages into the queue of the site."""
        directory = self.dir / "data" / part
        (self.dir / "data").mkdir(exist_ok=True)
        store = SQLiteQueueStore.inline(directory, Clock())
        for name in names:
            now = time.time()
            message = NewMessage(
                id=name,
                sender=Address("alice", "example.test"),
                recipients=(NewRecipient(CAROL, Transport.SMTP, CAROL),),
                arrived=now,
                expires=now + 432000.0,
            )
            body = store.new_body()
            body.write(b"Subject: x\r\n\r\nhi\r\n")
            store.add([message], body)
        Deferred.fromCoroutine(store.close())
        return directory

    def test_a_message(self) -> None:
        status, out, err = self.simulate(
            "--down", "example.org=6d", "--message", str(self.message), "--to", "carol@example.org"
        )
        self.assertEqual((status, err), (0, ""))
        self.assertIn("7 days from ", out)
        self.assertIn("seed 0. Nothing was sent, and nothing has changed.", out)
        self.assertIn(
            "from <alice@example.test>, in at +0d 00:00:00\n  <carol@example.org>\n    +0d 00:00:30  deferred",
            out,
        )
        self.assertRegex(
            out, r"can't connect to example\.org: the connection timed out; next attempt \+0d 00:\d\d:\d\d\n"
        )
        self.assertRegex(out, r"\+0d 0[45]:\d\d:\d\d  deferred .*; the sender is warned\n")
        self.assertRegex(out, r"\+5d 00:00:30  failed .*; the sender gets a bounce\n")
        self.assertRegex(
            out, r"from <>, about \w{14}, in at \+5d 00:00:30\n  <alice@example.test>\n    \+5d 00:00:30  "
        )
        self.assertIn("\nRecipients          1   ", out)
        self.assertIn("\nFailed              1   1 with a bounce\n", out)
        self.assertIn("Notifications: 2, ", out)
        self.assertRegex(
            out, r"\nDestination +recipients +attempts .*\nexample\.org +1 +\d+ +0 +1 +1 +0  -\n"
        )
        self.assertIn("the most in each 6 hours (peak: 2)\n  +0d 00:00:00          2 ####", out)
        self.assertTrue(out.endswith("  +5d 06:00:00          0\n"), out[-300:])

    def test_the_seed_decides(self) -> None:
        arguments = (
            "--tempfail",
            "example.org=3d",
            "--message",
            str(self.message),
            "--to",
            "carol@example.org",
        )

        def times(*more: str) -> list[float]:
            found = self.simulated(*arguments, *more)
            (events,) = [each["events"] for each in found["messages"][0]["recipients"]]
            return [event["time"] - found["begin"] for event in events]

        self.assertEqual(times("--seed", "5"), times("--seed", "5"))
        self.assertNotEqual(times("--seed", "5"), times("--seed", "6"))

    def test_json(self) -> None:
        found = self.simulated(
            "--message", str(self.message), "--to", "carol@example.org", "--from", "bob@example.net"
        )
        (message,) = found["messages"]
        self.assertEqual((message["sender"], message["parent"]), ("bob@example.net", ""))
        (recipient,) = message["recipients"]
        self.assertEqual(recipient["address"], "carol@example.org")
        (event,) = recipient["events"]
        self.assertEqual((event["event"], event["sender_told"]), ("delivered", False))
        self.assertEqual(event["reply"], "example.org: 250 2.0.0 taken")
        self.assertEqual(found["total"]["delivered"], 1)
        self.assertEqual(found["destinations"]["example.org"]["attempts"], 1)
        self.assertEqual(len(found["depth"]), 28)

    def test_a_message_from_standard_input(self) -> None:
        with mock.patch("twisted_mta.admin.simulate._read", return_value=b"Subject: x\r\n\r\n") as read:
            self.simulated("--message", "-", "--to", "alice@example.test")
        read.assert_called_once_with("-")

    def test_what_still_waits_is_said(self) -> None:
        down = (
            "--down",
            "example.org=1d",
            "--message",
            str(self.message),
            "--to",
            "carol@example.org",
            "--for",
            "1h",
        )
        self.assertIn("    still waiting in the end\n", self.simulate(*down)[1])
        slow = (
            "--slow",
            "example.org=2h",
            "--message",
            str(self.message),
            "--to",
            "carol@example.org",
            "--for",
            "1h",
        )
        self.assertIn("    not tried\n", self.simulate(*slow)[1])

    def test_a_message_goes_to_those_whom_its_header_names(self) -> None:
        self.message.write_text(
            "To: Carol <carol@example.org>,\n\tdave@example.net\nCc: eve@example.com\n\nhi\n"
        )
        [found] = self.simulated("--message", str(self.message))["messages"]
        named = ["carol@example.org", "dave@example.net", "eve@example.com"]
        self.assertEqual([each["address"] for each in found["recipients"]], named)
        [found] = self.simulated("--message", str(self.message), "--to", "fay@example.org")["messages"]
        self.assertEqual([each["address"] for each in found["recipients"]], ["fay@example.org"])
        self.message.write_text("To: a@b@c.example\n\nhi\n")
        status, _, err = self.simulate("--message", str(self.message))
        self.assertEqual(status, 65, err)

    def test_made_up_messages(self) -> None:
        found = self.simulated("--synthetic", "2000", "--down", "example.org=1d", "--for", "2d")
        self.assertEqual(found["messages"], [])
        self.assertEqual((found["total"]["recipients"], found["total"]["delivered"]), (2000, 2000))
        self.assertEqual(
            (len(found["destinations"]), found["destinations"]["example.org"]["recipients"]), (1000, 2)
        )

    def test_made_up_messages_to_named_places(self) -> None:
        places = (
            "--to",
            "example.org",
            "--to",
            "carol@example.net",
            "--over",
            "1h",
            "--tempfail",
            "example.org=30m",
        )
        found = self.simulated("--synthetic", "10", *places)
        addresses = [each["recipients"][0]["address"] for each in found["messages"]]
        self.assertEqual(addresses[:3], ["user0@example.org", "carol@example.net", "user2@example.org"])
        self.assertEqual(
            [each["arrived"] - found["begin"] for each in found["messages"]][:3], [0.0, 360.0, 720.0]
        )
        _, out, _ = self.simulate("--synthetic", "1000", *places)
        self.assertNotIn("example.net ", out)

    def test_many_troubled_destinations_are_cut(self) -> None:
        _, out, _ = self.simulate("--synthetic", "1000", "--tempfail", "*=1h", "--over", "1s")
        self.assertIn("\n... and 980 more\n", out)

    def test_the_queue_is_read_and_left_alone(self) -> None:
        directory = self.queue("a", "b")
        before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*")}
        found = self.simulated("--from-queue", "--down", "example.org=1d")
        self.assertEqual([each["id"] for each in found["messages"] if not each["parent"]], ["a", "b"])
        self.assertEqual((found["total"]["delivered"], found["total"]["warnings"]), (2, 2))
        after = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*")}
        self.assertEqual(before, after)

    def test_the_parts_of_all_workers(self) -> None:
        self.queue("a")
        self.queue("b", part="queue-1")
        found = self.simulated("--from-queue")
        self.assertEqual([each["id"] for each in found["messages"]], ["a", "b"])

    def test_a_queue_in_use(self) -> None:
        directory = self.queue("a")
        store = SQLiteQueueStore.inline(directory, Clock())
        self.addCleanup(lambda: Deferred.fromCoroutine(store.close()))
        claimed: list[Any] = []
        Deferred.fromCoroutine(self.claim(store)).addCallback(claimed.extend)
        self.assertEqual(len(claimed), 1)
        found = self.simulated("--from-queue")
        self.assertEqual(found["total"]["delivered"], 1)

    async def claim(self, store: SQLiteQueueStore) -> Any:
        return await store.claim_due(time.time() + 1, 10)

    def test_no_queue(self) -> None:
        self.assertEqual(self.simulate("--from-queue")[0], 1)
        directory = self.dir / "data" / "queue"
        directory.mkdir(parents=True)
        (directory / "queue.sqlite").write_bytes(b"no database" * 1000)
        status, _, err = self.simulate("--from-queue")
        self.assertEqual(status, 74)
        self.assertIn("can't read the queue: file is not a database", err)

    def test_what_is_wrong_is_said(self) -> None:
        message = ("--message", str(self.message))
        for argv, status, words in (
            ((), 64, "one of the arguments --from-queue --message --synthetic is required"),
            (("--from-queue", "--synthetic", "3"), 64, "not allowed with"),
            (message, 64, "--message: its header names no recipient, so say one with --to ADDRESS"),
            ((*message, "--to", "nonsense"), 65, "--to: 'nonsense' is not right"),
            ((*message, "--to", "a@b.example", "--from", "x"), 65, "--from: 'x' is not right"),
            (("--synthetic", "0"), 64, "--synthetic: 1 to 1000000 messages"),
            (("--synthetic", "1", "--to", "a b"), 65, "--to: 'a b' is not right"),
            (("--synthetic", "1", "--for", "long"), 64, "--for: 'long' is no duration"),
            (("--synthetic", "1", "--for", "0"), 64, "--for: nothing happens in no time"),
            (("--synthetic", "1", "--over", "x"), 64, "--over: 'x' is no duration"),
            (("--synthetic", "1", "--down", "example.org"), 64, "--down: 'example.org' lacks a duration"),
            (("--message", "/nowhere/f.eml", "--to", "a@b.example"), 74, "No such file"),
        ):
            found, _, err = self.simulate(*argv)
            self.assertEqual(found, status, (argv, err))
            self.assertIn(words, err)

    def test_nothing_is_made(self) -> None:
        self.simulated("--message", str(self.message), "--to", "carol@example.org")
        self.assertEqual(sorted(os.listdir(self.dir)), ["f.eml", "mta.toml", "users"])

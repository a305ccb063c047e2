"""What `mta trace` tells of messages, from the client to the last mailbox."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial import unittest

from twisted_mta.admin.trace import nothing_found, tree_lines
from twisted_mta.service.control import ControlError
from twisted_mta.service.queue_control import queue_handlers
from twisted_mta.service.trace_control import trace_handlers
from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.world import World

CONFIG = """
[[list]]
address = "club@example.test"
members = ["bob@example.test", "carol@example.org", "dave@example.com"]
owner = "postmaster@example.test"

[relay]
networks = ["127.0.0.1"]
"""
MESSAGE = b"From: alice@example.test\r\nMessage-ID: <1@example.test>\r\nSubject: x\r\n\r\nvery private\r\n"


class TraceTests(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        self.world = World(directory, CONFIG, aliases="all: club\n")
        self.addCleanup(self.world.close)

    def ask(self, command: str, **arguments: Any) -> Any:
        parts = self.world.parts
        handlers = {
            **queue_handlers(parts.admin),
            **trace_handlers(parts.store, lambda: parts.store.history.keep),
        }

        async def run() -> Any:
            return await handlers[command](arguments)

        return self.successResultOf(Deferred.fromCoroutine(run()))

    def test_alias_list_deferral_bounce(self) -> None:
        busy = self.world.host(
            "example.org", "192.0.2.1", SmtpPeer(replies={"RCPT carol@example.org": ["451 4.7.1 greylisted"]})
        )
        self.world.host(
            "example.com", "192.0.2.2", SmtpPeer(replies={"RCPT dave@example.com": "550 5.1.1 no dave"})
        )
        self.assertEqual(self.world.send("alice@example.test", ["all@example.test"], MESSAGE).code, 250)
        self.world.advance(3 * 3600)
        self.assertEqual((len(busy.messages), len(self.world.mail("bob"))), (1, 1))
        (tree,) = self.ask("trace", what="<1@example.test>", transcripts=True)["trees"]
        self.assertEqual(
            (tree["arrival"]["address"], tree["arrival"]["helo"]), ("127.0.0.1", "client.example.org")
        )
        self.assertIn("relay", tree["arrival"]["checks"])
        (to_list,) = tree["recipients"]
        self.assertEqual((to_list["original"], to_list["address"]), ("all@example.test", "club@example.test"))
        self.assertEqual(to_list["state"], "expanded")
        (post,) = tree["children"]
        bob, carol, dave = post["recipients"]
        self.assertEqual([one["state"] for one in (bob, carol, dave)], ["delivered", "delivered", "failed"])
        (event,) = post["events"]
        self.assertEqual((event["kind"], event["rows"]), ("deferred", (carol["row"],)))
        self.assertEqual(event["data"]["remote"], "mx.example.org [192.0.2.1]")
        self.assertEqual(carol["contacts"][0]["remote"], "mx.example.org [192.0.2.1]")
        (bounce,) = post["children"]
        self.assertEqual(
            (bounce["sender"], bounce["recipients"][0]["original"]), ("", "club-bounces@example.test")
        )
        self.assertEqual(bounce["recipients"][0]["state"], "delivered")
        told = {one["remote"]: one["text"] for one in post["transcripts"]}
        self.assertIn("S: 451 4.7.1 greylisted", told["mx.example.org [192.0.2.1]"])
        self.assertIn("C: RCPT TO:<dave@example.com>", told["mx.example.com [192.0.2.2]"])
        self.assertNotIn("private", str(told))
        for what in (tree["id"], post["id"], bounce["id"], "dave@example.com", "ALL@example.test"):
            self.assertEqual([one["id"] for one in self.ask("trace", what=what)["trees"]], [tree["id"]], what)
        text = "\n".join(tree_lines(tree))
        for part in (
            "received from [127.0.0.1] (helo client.example.org, ESMTP)",
            "to all@example.test -> club@example.test (list)",
            "deferred by mx.example.org [192.0.2.1]: 451 4.7.1 greylisted",
            "failed by mx.example.com [192.0.2.2]: 550 5.1.1 no dave",
            "S: 451 4.7.1 greylisted",
            "to bob@example.test (local)",
        ):
            self.assertIn(part, text)

    def test_a_host_that_is_down_and_one_that_is_not(self) -> None:
        self.world.host("example.net", "192.0.2.3")
        down = self.down()
        self.world.send("alice@example.test", ["x@example.org"], MESSAGE)
        self.world.advance(3600)
        (listed,) = self.ask("queue.list")["messages"]
        (tree,) = self.ask("trace", start=0, end=9e9)["trees"]
        self.assertEqual((tree["queued"], tree["recipients"][0]["state"]), (True, "queued"))
        self.assertIn("in the queue, next attempt", "\n".join(tree_lines(tree)))
        self.assertEqual(self.ask("queue.reroute", ids=[listed["id"]], to="mx.example.net")["recipients"], 1)
        self.ask("queue.hold", all=True, reason="a test")
        self.assertIn(
            "on hold: a test", "\n".join(tree_lines(self.ask("trace", what=listed["id"])["trees"][0]))
        )
        self.ask("queue.release", all=True)
        self.world.advance(60)
        self.assertEqual(self.world.queued(), [])
        (tree,) = self.ask("trace", what="x@example.org")["trees"]
        (recipient,) = tree["recipients"]
        self.assertEqual(recipient["remote"], "mx.example.net [192.0.2.3]")
        kinds = [event["kind"] for event in tree["events"]]
        self.assertEqual(kinds[-3:], ["rerouted", "held", "released"])
        self.assertIn("rerouted to mx.example.net:25", "\n".join(tree_lines(tree)))
        self.assertEqual(down.messages, [])

    def down(self) -> SmtpPeer:
        """The server of example.org, which nobody reaches."""
        peer = self.world.host("example.org", "192.0.2.1")
        del self.world.network.servers["192.0.2.1", 25]
        return peer

    def test_what_is_given_up(self) -> None:
        self.down()
        self.world.send("alice@example.test", ["x@example.org"], MESSAGE)
        self.assertEqual(self.ask("queue.expire", domain="example.org")["recipients"], 1)
        self.world.advance(60)
        self.assertIn(b"given up by the administrator", self.world.mail("alice")[0])

    def test_nothing_found(self) -> None:
        self.assertEqual(
            self.ask("trace", what="nobody@example.org"), {"trees": [], "more": False, "kept": 1209600.0}
        )
        self.assertEqual(
            nothing_found(1209600.0), "Not found. The history is kept for 14 days ([queue] history)."
        )
        self.assertIn("No history is kept", nothing_found(0.0))
        for wrong in ({}, {"what": " "}, {"what": 1}, {"start": 1}):
            handler = trace_handlers(self.world.parts.store, lambda: 0.0)["trace"]
            asked = Deferred.fromCoroutine(handler(wrong))  # type: ignore[arg-type]
            self.failureResultOf(asked, ControlError)

    def test_it_is_forgotten_in_time(self) -> None:
        self.world.send("alice@example.test", ["bob@example.test"], MESSAGE)
        self.world.advance(13 * 86400, 3600)
        self.assertEqual(len(self.ask("trace", what="bob@example.test")["trees"]), 1)
        self.world.advance(2 * 86400, 3600)
        self.assertEqual(self.ask("trace", what="bob@example.test")["trees"], [])

"""Backup MX by callout, through the whole server on a clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.testing.smtp_peer import DROP, SILENCE, SmtpPeer
from twisted_mta.testing.world import World

MESSAGE = b"From: x@example.org\r\nSubject: hello\r\n\r\nbody\r\n"

CONFIG = """
[[domain]]
name = "backup.test"
relay = true
callout = true

[virtual]
"bob@backup.test" = "bob@example.test"

[relay]
networks = ["198.51.100.0/24"]
"""


class CalloutTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.make("")

    def make(self, config: str) -> None:
        self.world = World(Path(self.mktemp()), CONFIG + config)
        self.addCleanup(self.world.close)
        self.peer = self.world.host(
            "backup.test",
            "192.0.2.1",
            SmtpPeer(
                replies={
                    "RCPT jim@backup.test": "550 5.1.1 no such user",
                    "RCPT grey@backup.test": "450 4.7.1 greylisted",
                    "RCPT banned@backup.test": "554 5.7.1 go away",
                }
            ),
        )

    def send(self, recipient: str, client: str = "203.0.113.9") -> str:
        """To where the server has an answer."""
        with self.world.visit(client) as visitor:
            visitor.say(b"EHLO client.example.org")
            visitor.say(b"MAIL FROM:<dave@example.org>")
            reply = visitor.say(f"RCPT TO:<{recipient}>".encode())
            if reply.positive:
                visitor.say(b"DATA")
                visitor.say(MESSAGE + b".")
            return str(reply)

    def probes(self) -> int:
        """Questions so far."""
        return sum(command == "MAIL FROM:<>" for command in self.peer.commands)

    def test_who_exists_there_is_taken_and_delivered(self) -> None:
        self.assertEqual(self.send("joe@backup.test"), "250 2.1.5 Recipient OK")
        self.assertEqual(self.probes(), 1)
        self.world.advance(60)
        (message,) = self.peer.messages
        self.assertEqual((message.sender, message.recipients), ("dave@example.org", ["joe@backup.test"]))
        self.send("joe@backup.test")
        self.world.advance(60)
        self.assertEqual((len(self.peer.messages), self.probes()), (2, 1))

    def test_who_does_not_is_refused_in_the_words_of_the_host(self) -> None:
        for _ in range(2):
            self.assertEqual(
                self.send("jim@backup.test"),
                "550 5.1.1 jim@backup.test does not exist, says mx.backup.test [192.0.2.1]: 550 5.1.1 no such user",
            )
        self.assertEqual((self.probes(), self.peer.messages), (1, []))

    def test_one_session_serves_several_questions(self) -> None:
        for name in ("joe", "jim", "ann"):
            self.send(f"{name}@backup.test")
        self.assertEqual((self.probes(), self.peer.connections), (3, 1))

    def test_no_answer_means_later(self) -> None:
        for name, text in (("grey", "450 4.7.1 greylisted"), ("banned", "554 5.7.1 go away")):
            reply = self.send(f"{name}@backup.test")
            self.assertTrue(reply.startswith("450 4.4.1"), reply)
            self.assertIn(f"mx.backup.test [192.0.2.1] said {text}", reply)
        self.peer.replies["MAIL"] = "550 5.7.1 we take no null sender"
        self.assertTrue(self.send("new@backup.test").startswith("450 4.4.1"))

    def test_who_was_there_is_taken_while_the_host_is_down(self) -> None:
        self.send("joe@backup.test")
        self.world.advance(2 * 86400, step=3600)
        self.world.network.servers.clear()
        self.assertEqual(self.send("joe@backup.test"), "250 2.1.5 Recipient OK")
        self.assertTrue(self.send("ann@backup.test").startswith("450 4.4.1"))
        self.world.restart()
        self.assertEqual(self.send("joe@backup.test"), "250 2.1.5 Recipient OK")

    def test_all_are_taken_while_it_is_down_if_so_set(self) -> None:
        self.make('\n[callout]\nunanswered = "accept"\n')
        self.world.network.servers.clear()
        self.assertEqual(self.send("ann@backup.test"), "250 2.1.5 Recipient OK")

    def it_takes_too_long(self) -> None:
        with self.world.visit("203.0.113.9") as visitor:
            visitor.say(b"EHLO client.example.org")
            visitor.say(b"MAIL FROM:<dave@example.org>")
            self.assertEqual(visitor.say(b"RCPT TO:<joe@backup.test>").code, 0)
            self.world.advance(20, step=1)
            self.assertTrue(str(visitor.hear()).startswith("450 4.4.1"))

    def test_a_host_that_hangs(self) -> None:
        self.peer.replies["RCPT joe@backup.test"] = SILENCE
        self.it_takes_too_long()
        self.peer.replies.clear()
        self.world.advance(60)
        self.assertEqual(self.send("joe@backup.test"), "250 2.1.5 Recipient OK")

    def test_a_greeting_that_never_comes(self) -> None:
        self.peer.replies["greeting"] = SILENCE
        self.it_takes_too_long()

    def test_a_host_that_hangs_up_is_asked_by_its_other_address(self) -> None:
        self.world.resolver.data["addresses"]["mx.backup.test"] = ["192.0.2.2", "192.0.2.1"]
        self.world.network.servers["192.0.2.2", 25] = SmtpPeer(replies={"RCPT": DROP})
        self.assertEqual(self.send("joe@backup.test"), "250 2.1.5 Recipient OK")

    def test_who_is_not_asked_about(self) -> None:
        for recipient, client in (
            ("postmaster@backup.test", "203.0.113.9"),
            ("bob@backup.test", "203.0.113.9"),  # whose mail does not go there
            ("alice@example.test", "203.0.113.9"),
            ("jim@backup.test", "198.51.100.7"),  # from a network that may relay
        ):
            self.assertEqual(self.send(recipient, client), "250 2.1.5 Recipient OK", recipient)
        self.assertEqual(self.probes(), 0)

    def test_explain_says_what_the_answer_rests_on(self) -> None:
        told = self.world.explain("jim@backup.test", ip="203.0.113.9")
        self.assertFalse(told["accepted"])
        self.assertIn("550 5.1.1 jim@backup.test does not exist", told["reply"])
        self.assertIn("'where': 'domain.callout'", str(told["steps"]))
        told = self.world.explain("joe@backup.test", ip="203.0.113.9")
        self.assertIn("mx.backup.test [192.0.2.1] said of joe@backup.test: 250", str(told["steps"]))
        self.assertEqual(self.peer.messages, [])
        told = self.world.explain("nobody@backup.test", ip="198.51.100.7")
        self.assertIn("nobody is asked for a client that may relay", str(told["steps"]))

    def test_a_domain_without_hosts(self) -> None:
        self.world.resolver.data["mx"]["backup.test"] = [(0, ".")]
        self.assertTrue(self.send("joe@backup.test").startswith("450 4.4.1"))

    def test_its_file(self) -> None:
        self.send("joe@backup.test")
        words: Any = []
        Deferred.fromCoroutine(self.world.parts.callouts.words(10)).addCallback(words.extend)
        self.assertEqual([address for address, _ in words], ["joe@backup.test"])
        self.assertTrue((self.world.directory / "data" / "callouts.sqlite").exists())

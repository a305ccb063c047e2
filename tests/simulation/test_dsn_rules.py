"""RFC 3461 §5.2, row by row, through the whole server: what is passed on, and who is told what."""

from __future__ import annotations

import email
import email.policy
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.testing.smtp_peer import SmtpPeer
from twisted_mta.testing.world import World

DAY = 86400.0
MESSAGE = b"From: alice@example.test\r\nSubject: hello\r\n\r\nbody\r\n"
#: Small steps of time are not needed: retries each day, a warning on the second.
CONFIG = """
[relay]
networks = ["127.0.0.0/8"]
[queue]
schedule = "1d"
warn_after = "1d"
expire = "3d"
[[list]]
address = "list@example.test"
owner = "postmaster@example.test"
members = ["bob@example.test", "carol@example.org"]
"""
ALIASES = "one: bob\ntwo: bob, carol@example.org\n"

#: What is said at RCPT, and then what of it is said to a next host with DSN.
NOTIFY = {
    "": "",
    "NOTIFY=NEVER": " NOTIFY=NEVER",
    "NOTIFY=SUCCESS": " NOTIFY=SUCCESS",
    "NOTIFY=FAILURE": " NOTIFY=FAILURE",
    "NOTIFY=DELAY": " NOTIFY=DELAY",
    "NOTIFY=FAILURE,DELAY": " NOTIFY=FAILURE,DELAY",
    "NOTIFY=DELAY,FAILURE,SUCCESS": " NOTIFY=SUCCESS,FAILURE,DELAY",
}


class RulesTests(SynchronousTestCase):
    told: list[Any]

    def run_world(
        self,
        notify: str,
        *,
        recipient: str = "carol@example.org",
        dsn: bool = False,
        reply: str = "250 2.1.5 fine",
        asking: str = "",
    ) -> tuple[list[tuple[str, str]], SmtpPeer]:
        """(action, recipient) of the notifications that the sender got, and the peer."""
        world = World(Path(self.mktemp()), CONFIG, aliases=ALIASES)
        self.addCleanup(world.close)
        peer = world.host(
            "example.org", "192.0.2.1", SmtpPeer(["PIPELINING", *["DSN"] * dsn], {"RCPT": reply})
        )
        sent = world.send("alice@example.test", [recipient], MESSAGE, notify=notify, asking=asking)
        self.assertEqual(sent.code, 250)
        world.advance(4 * DAY, step=DAY / 8)
        self.assertEqual(world.queued(), [])
        self.told = [
            email.message_from_bytes(one, policy=email.policy.default) for one in world.mail("alice")
        ]
        return [
            (str(_fields(one)["Action"]), str(_fields(one)["Final-Recipient"])) for one in self.told
        ], peer

    def actions(self, notify: str, **options: Any) -> list[str]:
        return [action for action, _ in self.run_world(notify, **options)[0]]

    def test_relay_to_a_conforming_server(self) -> None:
        """§5.2.1: all is passed on as it was said, and nothing is told."""
        for notify, passed_on in NOTIFY.items():
            for said, expected in (("", ""), ("RET=HDRS ENVID=a+2Bb", " RET=HDRS ENVID=a+2Bb")):
                with self.subTest(notify=notify, said=said):
                    told, peer = self.run_world(notify, dsn=True, asking=said)
                    self.assertEqual(told, [])
                    mail, rcpt = peer.messages[0].commands
                    self.assertEqual(mail, f"MAIL FROM:<alice@example.test>{expected}")
                    self.assertEqual(rcpt, f"RCPT TO:<carol@example.org>{passed_on}")

    def test_the_original_recipient(self) -> None:
        """§5.2.1 (d): the same, in its case; RFC 6533 §3 for what is not ASCII."""
        for said in ("rfc822;Carol+2B@Example.ORG", "utf-8;\\x{F6}@example.org", "x400;c=de"):
            with self.subTest(said):
                _, peer = self.run_world(f"ORCPT={said.replace('c=de', 'c+3Dde')}", dsn=True)
                rcpt = peer.messages[0].commands[1]
                self.assertEqual(rcpt, f"RCPT TO:<carol@example.org> ORCPT={said.replace('c=de', 'c+3Dde')}")

    def test_relay_to_another_server(self) -> None:
        """§5.2.2"""
        for notify in NOTIFY:
            with self.subTest(notify):
                told, peer = self.run_world(notify, asking="RET=HDRS ENVID=a")
                self.assertEqual(
                    peer.messages[0].commands,
                    ["MAIL FROM:<alice@example.test>", "RCPT TO:<carol@example.org>"],  # (a)
                )
                wanted = "SUCCESS" in notify  # (b), (d), (e)
                self.assertEqual(told, [("relayed", "rfc822; carol@example.org")] * wanted)

    def test_refused(self) -> None:
        """§5.2.2 (c), (d), (f); §5.2.6"""
        for notify in NOTIFY:
            for dsn in (False, True):
                with self.subTest(notify=notify, dsn=dsn):
                    actions = self.actions(notify, dsn=dsn, reply="550 5.1.1 no such user")
                    self.assertEqual(actions, ["failed"] * (notify == "" or "FAILURE" in notify))

    def test_local_delivery(self) -> None:
        """§5.2.3"""
        for notify in NOTIFY:
            with self.subTest(notify):
                actions = self.actions(notify, recipient="bob@example.test")
                self.assertEqual(actions, ["delivered"] * ("SUCCESS" in notify))

    def test_delays(self) -> None:
        """§5.2.5: told once; then it fails."""
        for notify in NOTIFY:
            with self.subTest(notify):
                actions = self.actions(notify, reply="450 4.2.1 later")
                delayed = notify == "" or "DELAY" in notify
                failed = notify == "" or "FAILURE" in notify
                self.assertEqual(actions, ["delayed"] * delayed + ["failed"] * failed)

    def test_lists(self) -> None:
        """§5.2.7.1: delivery to the list is delivery; the members' side is none of the sender's."""
        for notify in NOTIFY:
            with self.subTest(notify):
                told, peer = self.run_world(
                    notify, recipient="list@example.test", dsn=True, asking="ENVID=a RET=FULL"
                )
                self.assertEqual(told, [("delivered", "rfc822; list@example.test")] * ("SUCCESS" in notify))
                self.assertEqual(
                    peer.messages[0].commands,
                    ["MAIL FROM:<list-bounces@example.test>", "RCPT TO:<carol@example.org> NOTIFY=FAILURE"],
                )

    def test_an_alias_of_one(self) -> None:
        """§5.2.7.2: as if the message had been for that one."""
        for notify in NOTIFY:
            with self.subTest(notify):
                told, _ = self.run_world(notify, recipient="one@example.test")
                self.assertEqual(told, [("delivered", "rfc822; one@example.test")] * ("SUCCESS" in notify))

    def test_an_alias_of_several(self) -> None:
        """§5.2.7.3 (c): expanded, and nothing of success from then on."""
        for notify, passed_on in NOTIFY.items():
            with self.subTest(notify):
                told, peer = self.run_world(notify, recipient="two@example.test", dsn=True)
                self.assertEqual(told, [("expanded", "rfc822; two@example.test")] * ("SUCCESS" in notify))
                left = passed_on.replace("SUCCESS,", "").replace("SUCCESS", "NEVER")
                self.assertEqual(peer.messages[0].commands[1], f"RCPT TO:<carol@example.org>{left}")

    def test_the_contents(self) -> None:
        """§6.2, §6.3: only the header unless something failed; the identifier as the sender wrote it."""
        self.run_world("NOTIFY=SUCCESS ORCPT=rfc822;C+40x", asking="ENVID=a+2Bb RET=FULL")
        [success] = self.told
        self.assertEqual(
            [part.get_content_type() for part in success.iter_parts()],
            ["text/plain", "message/delivery-status", "text/rfc822-headers"],
        )
        message, recipient = list(success.iter_parts())[1].get_payload()
        self.assertEqual(message["Original-Envelope-Id"], "a+b")
        self.assertEqual(message["Reporting-MTA"], "dns; mx.example.test")
        self.assertEqual(recipient["Original-Recipient"], "rfc822; C@x")
        self.assertEqual(recipient["Remote-MTA"], "dns; mx.example.org (192.0.2.1)")
        self.assertTrue(recipient["Diagnostic-Code"].startswith("smtp; 250"))
        for ret, kind in (("FULL", "message/rfc822"), ("HDRS", "text/rfc822-headers")):
            self.run_world("", asking=f"RET={ret}", reply="550 5.1.1 who?")
            [failure] = self.told
            self.assertEqual(list(failure.iter_parts())[2].get_content_type(), kind)
            self.assertNotIn("Original-Envelope-Id", list(failure.iter_parts())[1].get_payload()[0])
            self.assertNotIn("Original-Recipient", list(failure.iter_parts())[1].get_payload()[1])


def _fields(notification: Any) -> Any:
    return list(notification.iter_parts())[1].get_payload()[1]

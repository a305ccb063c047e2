"""What senders ask for at MAIL, on a Clock: held messages, times to deliver by, priorities, TLS all the way."""

from __future__ import annotations

import email
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.admin.queue import listing_lines
from twisted_mta.config.schema import Role
from twisted_mta.core.address import Address
from twisted_mta.core.envelope import DeliverBy, Envelope, Recipient
from twisted_mta.service.queue_control import queue_handlers
from twisted_mta.testing.smtp_peer import SILENCE, SmtpPeer
from twisted_mta.testing.world import World

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
ALICE = Address("alice", "example.test")
CAROL = Recipient(Address("carol", "example.org"))
MESSAGE = b"Subject: hello\r\n\r\nthe body\r\n"
RELAY = '\n[relay]\nnetworks = ["127.0.0.0/8"]\n'
LATER = "451 4.7.1 Later"


class WishesCase(SynchronousTestCase):
    config = RELAY

    def setUp(self) -> None:
        self.world = World(Path(self.mktemp()), self.config)
        self.addCleanup(self.world.close)

    def peer(self, *extensions: str, **replies: Any) -> SmtpPeer:
        peer = SmtpPeer(("PIPELINING", "8BITMIME", *extensions), replies)
        return self.world.host("example.org", "192.0.2.1", peer)

    def send(self, asking: str, notify: str = "") -> None:
        reply = self.world.send(str(ALICE), ["carol@example.org"], MESSAGE, asking=asking, notify=notify)
        self.assertEqual(reply.code, 250, str(reply))

    def submit(self, *recipients: Recipient, message: bytes = MESSAGE, **wishes: Any) -> None:
        reply = self.world.submit(Envelope(ALICE, recipients or (CAROL,), **wishes), message)
        self.assertEqual(reply.code, 250, str(reply))

    def now(self) -> float:
        return self.world.network.seconds()

    def told(self, user: str = "alice") -> list[tuple[str, str]]:
        """Action and status of each notification to the user."""
        return [(fields["Action"], fields["Status"]) for _, fields in map(parts, self.world.mail(user))]

    def listing(self) -> list[str]:
        found: list[Any] = []
        list_queue = queue_handlers(self.world.parts.admin)["queue.list"]

        async def ask() -> Any:
            return await list_queue({})

        Deferred.fromCoroutine(ask()).addCallback(found.append)
        return list(listing_lines(found[0]["messages"], self.now()))


def parts(notification: bytes) -> tuple[Any, Any]:
    """The fields about the message, and those about its recipient."""
    status = email.message_from_bytes(notification).get_payload(1)
    assert isinstance(status, email.message.Message)
    message, recipient = status.get_payload()
    return message, recipient


class OfferTests(WishesCase):
    """What the listeners announce."""

    config = RELAY + '\n[limits]\nhold = "2h"\n'

    def offers(self, role: Role) -> list[str]:
        session: Any = self.world.listeners.factory(role).buildProtocol(
            IPv4Address("TCP", "192.0.2.7", 40000)
        )
        transport: Any = StringTransport()  # type: ignore[no-untyped-call]
        session.makeConnection(transport)
        session.dataReceived(b"EHLO client.example.org\r\n")
        self.world.network.pump([0.0] * 5)
        lines = [line[4:] for line in transport.value().decode().splitlines()[2:]]
        session.dataReceived(b"QUIT\r\n")
        session.connectionLost()
        return lines

    def test_mx(self) -> None:
        offers = self.offers(Role.MX)
        self.assertTrue({"BINARYMIME", "DELIVERBY"} <= set(offers), offers)
        self.assertEqual([line for line in offers if line.startswith(("FUTURE", "MT-", "REQUIRE"))], [])

    def test_submission(self) -> None:
        offers = self.offers(Role.SUBMISSION)
        self.assertIn("FUTURERELEASE 7200 2027-01-15T10:00:00Z", offers)
        self.assertIn("MT-PRIORITY", offers)


class HoldTests(WishesCase):
    """RFC 4865."""

    def test_not_before_its_time(self) -> None:
        peer = self.peer()
        until = self.now() + 2 * DAY
        self.submit(CAROL, Recipient(Address("bob", "example.test")), hold_until=until)
        self.world.advance(2 * DAY - 1, step=600)
        self.assertEqual((peer.connections, self.world.mail("bob")), (0, []))
        self.assertIn(", held until Sun, 17 Jan 2027 08:00:00 +0000", self.listing()[0])
        self.world.advance(1)
        self.assertEqual((len(peer.messages), len(self.world.mail("bob"))), (1, 1))
        self.assertEqual(self.world.queued(), [])

    def test_it_is_held_over_a_restart(self) -> None:
        peer = self.peer()
        self.submit(hold_until=self.now() + HOUR)
        self.world.advance(MINUTE)
        self.world.restart()
        self.world.advance(57 * MINUTE)
        self.assertEqual(peer.connections, 0)
        self.world.advance(3 * MINUTE)
        self.assertEqual(len(peer.messages), 1)

    def test_the_days_of_trying_begin_with_the_release(self) -> None:
        self.peer(RCPT=LATER)
        self.submit(hold_until=self.now() + 10 * DAY)
        self.world.advance(10 * DAY + 3 * HOUR, step=600)
        self.assertEqual((self.told(), self.world.queued()), ([], ["carol@example.org"]))
        self.world.advance(5 * HOUR, step=600)
        self.assertEqual(self.told(), [("delayed", "4.7.1")])
        fields, _ = parts(self.world.mail("alice")[0])
        self.assertEqual(fields["Arrival-Date"], "Fri, 15 Jan 2027 08:00:00 +0000")
        self.assertEqual(fields["Future-Release-Request"], "until;2027-01-25T08:00:00Z")
        self.assertIn(b"tried for 4 hours", self.world.mail("alice")[0])
        self.world.advance(5 * DAY, step=600)
        self.assertEqual(self.told(), [("delayed", "4.7.1"), ("failed", "4.7.1")])

    def test_a_time_that_has_passed_holds_nothing(self) -> None:
        peer = self.peer()
        self.submit(hold_until=self.now() - HOUR)
        self.assertEqual(len(peer.messages), 1)


class DeliverByTests(WishesCase):
    """RFC 2852."""

    def test_given_back_at_the_time(self) -> None:
        peer = self.peer("DELIVERBY", RCPT=LATER)
        self.send("BY=2700;R")
        self.world.advance(44 * MINUTE)
        self.assertEqual((self.told(), peer.connections), ([], 2))
        self.world.advance(MINUTE)
        self.assertEqual(self.told(), [("failed", "5.4.7")])
        self.assertEqual((self.world.queued(), peer.connections), ([], 2), "no attempt once the time is up")
        fields, recipient = parts(self.world.mail("alice")[0])
        self.assertEqual(fields["Deliver-By-Date"], "Fri, 15 Jan 2027 08:45:00 +0000")
        self.assertIn(LATER, recipient["Diagnostic-Code"].replace("\n", ""))

    def test_an_attempt_that_ends_after_the_time_is_the_last(self) -> None:
        peer = self.peer("DELIVERBY", RCPT=SILENCE)
        self.send("BY=60;R")
        self.world.advance(4 * MINUTE)
        self.assertEqual(self.told(), [])
        self.world.advance(10 * MINUTE)
        self.assertEqual(self.told(), [("failed", "5.4.7")])
        self.assertIn(
            b"by the time that you asked for, Fri, 15 Jan 2027 08:01:00", self.world.mail("alice")[0]
        )
        self.assertEqual((self.world.queued(), peer.connections), ([], 1))

    def test_in_time(self) -> None:
        peer = self.peer("DELIVERBY")
        self.send("BY=120;R")
        self.assertIn("BY=120;R", peer.messages[0].commands[0])
        self.world.advance(HOUR)
        self.assertEqual(self.told(), [])

    def test_the_seconds_that_are_left(self) -> None:
        peer = self.peer("DELIVERBY", RCPT=[LATER])
        self.send("BY=7200;N")
        self.world.advance(40 * MINUTE)
        (message,) = peer.messages
        _, _, by = message.commands[0].partition("BY=")
        left = int(by.removesuffix(";N"))
        # The second attempt comes after half an hour, a tenth more or less.
        self.assertTrue(7200 - 33 * 60 <= left <= 7200 - 27 * 60, left)

    def test_not_to_a_host_that_will_not_give_it_back(self) -> None:
        peer = self.peer()
        self.send("BY=3600;R")
        self.world.advance(1)
        self.assertEqual(self.told(), [("failed", "5.3.3")])
        self.assertEqual(peer.messages, [])

    def test_not_to_a_host_that_wants_more_time(self) -> None:
        peer = self.peer("DELIVERBY 3601")
        self.send("BY=3600;R")
        self.world.advance(1)
        self.assertEqual((self.told(), peer.messages), ([("failed", "5.3.3")], []))

    def test_told_at_the_time_and_tried_on(self) -> None:
        peer = self.peer("DELIVERBY", RCPT=[LATER] * 4)
        self.send("BY=2700;N")
        self.world.advance(44 * MINUTE)
        self.assertEqual(self.told(), [])
        self.world.advance(2 * MINUTE)
        self.assertEqual(self.told(), [("delayed", "4.4.7")])
        self.world.advance(3 * HOUR)
        self.assertEqual(len(peer.messages), 1)
        self.assertRegex(peer.messages[0].commands[0], r"BY=-[0-9]{4};N$")
        self.assertEqual(len(self.told()), 1, "once")

    def test_told_at_the_time_after_the_ordinary_warning(self) -> None:
        self.peer("DELIVERBY", RCPT=LATER)
        self.send(f"BY={12 * 3600};N")
        self.world.advance(11 * HOUR)
        self.assertEqual(self.told(), [("delayed", "4.7.1")])
        self.world.advance(2 * HOUR)
        self.assertEqual(self.told(), [("delayed", "4.7.1"), ("delayed", "4.4.7")])
        self.world.advance(2 * DAY, step=600)
        self.assertEqual(len(self.told()), 2)

    def test_nobody_is_told_who_does_not_want_to_be(self) -> None:
        peer = self.peer("DELIVERBY", RCPT=[LATER] * 3)
        self.send("BY=600;N", "NOTIFY=FAILURE")
        self.world.advance(4 * HOUR)
        self.assertEqual((self.told(), len(peer.messages)), ([], 1))

    def test_passed_on_to_a_host_that_will_not_tell(self) -> None:
        peer = self.peer("DSN")
        self.send("BY=600;N")
        self.world.advance(1)
        self.assertEqual(self.told(), [("relayed", "2.0.0")])
        self.assertNotIn("BY=", peer.messages[0].commands[0])
        self.assertEqual(peer.messages[0].commands[1], "RCPT TO:<carol@example.org> NOTIFY=FAILURE,DELAY")

    def test_passed_on_with_the_notify_that_was_given(self) -> None:
        peer = self.peer("DSN")
        self.send("BY=600;N", "NOTIFY=SUCCESS")
        self.send("BY=600;N", "NOTIFY=NEVER")
        self.world.advance(1)
        self.assertEqual(
            [message.commands[1] for message in peer.messages],
            ["RCPT TO:<carol@example.org> NOTIFY=SUCCESS,DELAY", "RCPT TO:<carol@example.org> NOTIFY=NEVER"],
        )
        self.assertEqual(self.told(), [("relayed", "2.0.0")])

    def test_a_trace(self) -> None:
        peer = self.peer("DELIVERBY", "DSN")
        self.send("BY=600;RT", "NOTIFY=FAILURE")
        self.world.advance(1)
        self.assertTrue(peer.messages[0].commands[0].endswith("BY=600;RT"), peer.messages[0].commands)
        self.assertEqual(self.told(), [("relayed", "2.0.0")])

    def test_a_local_mailbox_has_it_in_time(self) -> None:
        self.submit(
            Recipient(Address("bob", "example.test")), deliver_by=DeliverBy(self.now() + 5, True, trace=True)
        )
        self.assertEqual((len(self.world.mail("bob")), self.told()), (1, []))


class BinaryTests(WishesCase):
    """RFC 3030."""

    def test_it_is_stored_as_text(self) -> None:
        fields = b"MIME-Version: 1.0\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        self.submit(
            Recipient(Address("bob", "example.test")), message=fields + b"\0\n\xff", body="BINARYMIME"
        )
        (message,) = self.world.mail("bob")
        self.assertEqual(email.message_from_bytes(message).get_payload(decode=True), b"\0\n\xff")
        self.assertEqual(email.message_from_bytes(message)["Content-Transfer-Encoding"], "base64")


class PriorityTests(WishesCase):
    """RFC 6710."""

    config = RELAY + (
        'concurrency = 1\n\n[[list]]\naddress = "team@example.test"\nowner = "dave@example.com"\n'
        'members = ["x@example.org"]\n'
    )

    def test_the_highest_first_and_the_oldest_among_equals(self) -> None:
        peer = self.peer("MT-PRIORITY STANAG4406")
        peer.replies["."] = [SILENCE]
        for name, priority in (("a", 0), ("b", -1), ("c", 0), ("d", 9), ("e", 0), ("f", -9), ("g", 9)):
            self.submit(Recipient(Address(name, "example.org")), priority=priority)
            self.world.advance(1)
        self.assertEqual(peer.messages, [])
        for session in list(peer.sessions):
            session.transport.abortConnection()
        self.world.advance(MINUTE)
        self.assertEqual(
            [message.recipients[0][0] for message in peer.messages], ["d", "g", "c", "e", "b", "f"]
        )
        self.assertEqual(
            [message.commands[0].partition("MT-PRIORITY=")[2] for message in peer.messages],
            ["9", "9", "", "", "-1", "-9"],
        )

    def test_kept_by_lists_and_notifications(self) -> None:
        peer = self.peer("MT-PRIORITY", RCPT="550 5.1.1 No")
        owner = self.world.host("example.com", "192.0.2.2", SmtpPeer(("MT-PRIORITY",)))
        self.submit(Recipient(Address("team", "example.test")), priority=4)
        self.world.advance(1)
        self.assertIn("MT-PRIORITY=4", next(line for line in peer.commands if line.startswith("MAIL")))
        self.assertEqual(owner.messages[0].commands[0], "MAIL FROM:<> MT-PRIORITY=4")

    def test_not_to_hosts_that_do_not_know_it(self) -> None:
        peer = self.peer()
        self.submit(priority=5)
        self.assertNotIn("PRIORITY", peer.messages[0].commands[0])


class RequireTlsTests(WishesCase):
    """RFC 8689."""

    config = RELAY + 'routes = { "example.org" = "mx.example.org", "example.com" = "mx.example.com" }\n'

    def secure(self, *extensions: str, **replies: Any) -> SmtpPeer:
        peer = self.peer(*extensions, **replies)
        peer.tls = object()
        return peer

    def test_to_a_host_that_promises_it(self) -> None:
        peer = self.secure("REQUIRETLS", "DSN")
        self.submit(require_tls=True, ret="FULL")
        (message,) = peer.messages
        self.assertTrue(message.tls)
        self.assertEqual(message.commands[0], "MAIL FROM:<alice@example.test> RET=HDRS REQUIRETLS")

    def test_to_a_host_that_does_not(self) -> None:
        peer = self.secure("DSN")
        self.submit(require_tls=True)
        self.world.advance(1)
        self.assertEqual((self.told(), peer.messages), ([("failed", "5.7.30")], []))
        (bounce,) = self.world.mail("alice")
        self.assertIn(b"Subject: hello", bounce)
        self.assertNotIn(b"the body", bounce)

    def test_without_tls(self) -> None:
        peer = self.peer("REQUIRETLS")
        self.submit(require_tls=True)
        self.world.advance(1)
        self.assertEqual((self.told(), peer.messages), ([("failed", "5.7.10")], []))
        self.assertFalse(any(line.startswith("MAIL") for line in peer.commands))

    def test_with_a_certificate_of_somebody_else(self) -> None:
        peer = self.secure("REQUIRETLS")
        self.world.network.broken_tls = {"192.0.2.1"}
        self.submit(require_tls=True)
        self.world.advance(1)
        self.assertEqual((self.told(), peer.messages), ([("failed", "5.7.10")], []))

    def test_a_host_that_is_down_is_tried_again(self) -> None:
        peer = self.secure("REQUIRETLS")
        up, self.world.network.servers = self.world.network.servers, {}
        self.submit(require_tls=True)
        self.assertEqual((self.told(), self.world.queued()), ([], ["carol@example.org"]))
        self.world.network.servers = up
        self.world.advance(HOUR)
        self.assertEqual(len(peer.messages), 1)

    def test_no_session_is_shared_with_mail_that_does_not_care(self) -> None:
        peer = self.secure("REQUIRETLS")
        self.submit()
        self.submit(require_tls=True)
        self.submit(require_tls=True)
        self.assertEqual((len(peer.messages), peer.connections), (3, 2))
        self.assertEqual(
            ["REQUIRETLS" in message.commands[0] for message in peer.messages], [False, True, True]
        )

    def test_hosts_that_nothing_proves(self) -> None:
        peer = self.world.host("example.net", "192.0.2.9", SmtpPeer(("REQUIRETLS",), tls=object()))
        self.submit(Recipient(Address("x", "example.net")), require_tls=True)
        self.world.advance(1)
        self.assertEqual((self.told(), peer.connections), ([("failed", "5.7.30")], 0))
        self.assertIn(b"neither DNSSEC nor MTA-STS proves", self.world.mail("alice")[0])

    def test_a_mailbox_here(self) -> None:
        self.submit(Recipient(Address("bob", "example.test")), require_tls=True)
        self.assertEqual(len(self.world.mail("bob")), 1)

    def bounce_to_carol(self) -> None:
        self.world.host("example.com", "192.0.2.2", SmtpPeer(replies={"RCPT": "550 5.1.1 No"}))
        envelope = Envelope(CAROL.address, (Recipient(Address("x", "example.com")),), require_tls=True)
        self.assertEqual(self.world.submit(envelope, MESSAGE).code, 250)
        self.world.advance(1)

    def test_a_bounce_is_protected_too(self) -> None:
        peer = self.secure("REQUIRETLS")
        self.bounce_to_carol()
        (bounce,) = peer.messages
        self.assertTrue(bounce.tls)
        self.assertEqual(bounce.commands[0], "MAIL FROM:<> REQUIRETLS")
        self.assertNotIn(b"the body", bounce.data)

    def test_but_it_is_not_lost_for_want_of_tls(self) -> None:
        peer = self.peer("REQUIRETLS")
        self.bounce_to_carol()
        self.assertEqual([message.commands[0] for message in peer.messages], ["MAIL FROM:<>"])

    def test_tls_required_no_is_remembered(self) -> None:
        self.secure("REQUIRETLS", RCPT=LATER)
        for field in (b"TLS-Required: No", b"tls-required:\r\n no", b"TLS-Required: Yes", b"X: y"):
            self.submit(message=field + b"\r\n" + MESSAGE)
        self.submit(message=b"TLS-Required: No\r\n" + MESSAGE, require_tls=True)
        items: list[Any] = []

        async def look() -> Any:
            return await self.world.parts.store.listing()

        Deferred.fromCoroutine(look()).addCallback(items.extend)
        self.assertEqual(
            [item.message.tls.name for item in items], ["OPTIONAL", "OPTIONAL", "NONE", "NONE", "REQUIRED"]
        )

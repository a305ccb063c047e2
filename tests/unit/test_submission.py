"""Submission, RFC 6409: what is mended in a header (core.submission), and who may send as whom (policy.submission)."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.test_reception import Authenticator, Queue
from twisted_mta.config.schema import Grant
from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Envelope, Recipient
from twisted_mta.core.message import HeaderCollector, located_fields
from twisted_mta.core.replies import Reply
from twisted_mta.core.rules import Rules as UserRules
from twisted_mta.core.submission import Facts, SubmissionError, authors, fix_header
from twisted_mta.interfaces import Account, IPolicyCheck, Peer
from twisted_mta.policy.submission import HeaderMender, SenderCheck, SenderRules
from twisted_mta.service.incoming import MAX_HEADER, Intake
from twisted_mta.service.reception import Reception
from twisted_mta.service.rules import Rules
from twisted_mta.testing.directory import make_directory, make_list

ALICE = Address("alice", "example.test")
OWN = {"alice@example.test", "sales@example.test"}
GRANTED = OWN | {"info@example.test"}
KNOWN = {"alice", "bob", "bob.smith"}

FACTS = Facts(
    hostname="mx.example.test",
    queue_id="QID",
    now=0.0,
    account=ALICE,
    own=lambda address: address.folded in OWN,
    may_send=lambda address: address.folded in GRANTED,
    exists=lambda address: address.local in KNOWN and address.domain == "example.test",
)
DATE = b"Date: Thu, 1 Jan 1970 00:00:00 +0000\r\n"
ID = b"Message-ID: <0.QID@mx.example.test>\r\n"
COMPLETE = b"From: alice@example.test\r\nDate: x\r\nMessage-ID: <1@x>\r\n"


class FixTests(SynchronousTestCase):
    def fixed(self, header: bytes, facts: Facts = FACTS) -> bytes:
        return fix_header(header, facts)

    def refused(self, header: bytes) -> str:
        with self.assertRaises(SubmissionError) as caught:
            fix_header(header, FACTS)
        return str(caught.exception)

    def test_a_complete_header_is_untouched(self) -> None:
        odd = (
            COMPLETE
            + b"sUBJECT :  a\r\n\t b  \r\nX-\xff:\r\nX:\t\xe9\r\nTo: Bob  (x)\r\n <bob@x.test>, c@x.test\r\n\r\n"
        )
        odd = odd.replace(b"X-\xff:\r\n", b"")
        self.assertEqual(self.fixed(odd), odd)

    def test_missing_fields_are_added_on_top(self) -> None:
        self.assertEqual(
            self.fixed(b"Subject: x\r\n\r\n"),
            b"From: alice@example.test\r\n" + DATE + ID + b"Subject: x\r\n\r\n",
        )
        self.assertEqual(self.fixed(b"\r\n"), b"From: alice@example.test\r\n" + DATE + ID + b"\r\n")
        self.assertEqual(self.fixed(b"From: alice@example.test"), DATE + ID + b"From: alice@example.test\r\n")

    def test_empty_fields_are_as_good_as_missing(self) -> None:
        self.assertEqual(
            self.fixed(b"Date:\r\nMessage-Id: \r\n \r\nFrom: \r\nX: y\r\n\r\n"),
            b"From: alice@example.test\r\n" + DATE + ID + b"X: y\r\n\r\n",
        )

    def test_bcc_is_removed(self) -> None:
        hidden = b"BCC: a@x.test,\r\n b@x.test,\r\n\tc@x.test\r\n"
        self.assertEqual(
            self.fixed(b"bcc :x\r\n" + COMPLETE + hidden + b"Resent-Bcc: y\r\nBcc:\r\nX-Bcc: z\r\n\r\n"),
            COMPLETE + b"X-Bcc: z\r\n\r\n",
        )

    def test_bare_names_are_completed(self) -> None:
        self.assertEqual(
            self.fixed(
                COMPLETE.replace(b"alice@example.test", b'"A" <alice>')
                + b"To: bob, Bob\r\n\t<bob> (b), c@x.test, bob.smith\r\nCc: us:bob;\r\nReply-To: bob\r\n\r\n"
            ),
            COMPLETE.replace(b"alice@example.test", b'"A" <alice@example.test>')
            + b"To: bob@example.test, Bob\r\n\t<bob@example.test> (b), c@x.test, bob.smith@example.test\r\n"
            + b"Cc: us:bob@example.test;\r\nReply-To: bob@example.test\r\n\r\n",
        )

    def test_names_that_nobody_has_are_not_completed(self) -> None:
        """RFC 6409 §8: and so, by §4.2, the message can't go out."""
        self.assertEqual(
            self.refused(COMPLETE + b"Cc: bob, carol\r\n\r\n"),
            "554 5.1.3 The Cc field has an address without a domain, carol, and there is no carol in example.test",
        )
        self.assertIn("554 5.1.7 The Reply-To field", self.refused(COMPLETE + b"Reply-To: carol\r\n\r\n"))

    def test_completing_does_not_make_lines_too_long(self) -> None:
        names = b",".join([b"bob"] * 200)
        self.assertIn(
            "554 5.6.0 A line of the To field", self.refused(COMPLETE + b"To: " + names + b"\r\n\r\n")
        )

    def test_recipients_that_can_not_be_read_are_left_alone(self) -> None:
        odd = COMPLETE + b"To: Bob Smith\r\nCc: <a@x\r\n\r\n"
        self.assertEqual(self.fixed(odd), odd)

    def test_from_must_be_an_address(self) -> None:
        self.assertEqual(
            self.refused(b"From: Al Ice\r\n\r\n")[:40], "554 5.1.7 The From field can't be read: "
        )
        self.assertIn("names nobody", self.refused(b"From: nobody:;\r\n\r\n"))

    def test_fields_that_may_stand_only_once(self) -> None:
        for name in ("From", "sender", "Date", "Message-id"):
            twice = COMPLETE.replace(b"From", b"Sender", 1) if name == "sender" else COMPLETE
            self.assertIn(
                f"554 5.6.0 The message has more than one {name.title().replace('-Id', '-ID')} field",
                self.refused(twice + f"{name}: alice@example.test\r\n\r\n".encode()),
            )

    def test_lines_that_are_no_fields(self) -> None:
        for header, shown in (
            (b"From alice Sat Nov 21\r\n" + COMPLETE + b"\r\n", "From alice Sat Nov 21"),
            (COMPLETE + b"hello\r\n" + b"\r\n", "hello"),
            (b" folded\r\n" + COMPLETE + b"\r\n", " folded"),
            (b"a" * 50 + b"\x01\xff\r\n", "a" * 40),
            (b"b\x01\xff\r\n", "b??"),
        ):
            self.assertIn(
                f'no field: "{shown.encode("ascii", "replace").decode()}"',
                self.refused(header).replace("\ufffd", "?"),
            )

    def test_sender(self) -> None:
        sender = b"Sender: alice@example.test\r\n"
        rest = b"Date: x\r\nMessage-ID: <1@x>\r\n\r\n"
        for field, expected in (
            (b"From: sales@example.test\r\n", b""),
            (b"From: info@example.test\r\n", sender),
            (b"From: eve@x.test\r\n", sender),
            (b"From: alice@example.test, sales@example.test\r\n", sender),
        ):
            self.assertEqual(self.fixed(field + rest), expected + field + rest)
        for given_sender, expected in (
            (b"Sender: info@example.test\r\n", b"Sender: info@example.test\r\n"),
            (b"Sender: alice\r\n", sender),
            (b"SENDER: eve@x.test\r\n", sender),
            (b"Sender: alice@example.test, info@example.test\r\n", sender),
            (b"Sender: what is this\r\n", sender),
            (b"Sender:\r\n", sender),
        ):
            header = b"From: eve@x.test\r\n" + given_sender + rest
            self.assertEqual(self.fixed(header), header.replace(given_sender, expected))

    def test_authors(self) -> None:
        header = b"From: a@x.test, b@x.test\r\nFrom: no\r\n address here\r\nfrom: c@x.test\r\n\r\n"
        self.assertEqual([str(address) for address in authors(header)], ["a@x.test", "b@x.test", "c@x.test"])

    @settings(max_examples=150)
    @given(
        st.lists(
            st.one_of(
                st.sampled_from(
                    [
                        b"From: alice\r\n",
                        b"Bcc: x\r\n",
                        b"To: bob,\r\n c@x.test\r\n",
                        b"Sender: eve@x.test\r\n",
                        b"\r\n",
                    ]
                ),
                st.binary(max_size=12).map(lambda value: value + b"\r\n"),
            ),
            max_size=8,
        )
    )
    def test_whatever_comes_out_is_stable_and_has_what_it_needs(self, lines: list[bytes]) -> None:
        header = b"".join(lines)
        try:
            fixed = fix_header(header, FACTS)
        except SubmissionError:
            return
        self.assertEqual(fix_header(fixed, FACTS), fixed)
        keys = [one.field.key for one in located_fields(fixed)]
        for key in (b"from", b"date", b"message-id"):
            self.assertEqual(keys.count(key), 1)
        self.assertNotIn(b"bcc", keys)


class CollectorTests(SynchronousTestCase):
    @settings(max_examples=100)
    @given(
        st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b"a: b\r\n", b"x"]), max_size=12).map(b"".join),
        st.lists(st.integers(0, 12), max_size=6),
        st.integers(1, 20),
    )
    def test_any_split_gives_the_same(self, message: bytes, cuts: list[int], limit: int) -> None:
        whole, parted = HeaderCollector(limit), HeaderCollector(limit)
        rest = whole.feed(message)
        pieces, at = [], 0
        for cut in sorted(cuts):
            pieces.append(message[at:cut])
            at = max(at, cut)
        behind = b"".join(parted.feed(piece) for piece in [*pieces, message[at:]])
        self.assertEqual(whole.header + rest, message)
        self.assertEqual(
            (parted.header, behind, parted.complete, parted.too_long),
            (whole.header, rest, whole.complete, whole.too_long),
        )
        self.assertLessEqual(len(whole.header), limit)

    def test_end(self) -> None:
        for message, header in ((b"\r\nbody", b"\r\n"), (b"a: b\r\n\r\nbody", b"a: b\r\n\r\n")):
            collector = HeaderCollector(100)
            self.assertEqual(collector.feed(message), b"body")
            self.assertEqual(
                (collector.header, collector.complete, collector.too_long), (header, True, False)
            )


class RulesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = make_directory(
            ["alice", "bob"],
            {"sales": "alice, bob", "away": "carol@example.org", "deep": "sales", "@example.test": "bob"},
            lists=[make_list("team@example.test", ["alice@example.test"])],
        )
        grants = (
            Grant(account=Address("Alice", "example.test"), addresses=("Info@example.org", "@example.net")),
            Grant(account=Address("alice", "example.test"), addresses=("x@example.com",)),
        )
        self.rules = SenderRules(self.directory, grants)
        self.peer = Peer(address="192.0.2.1", port=1, role="submission", esmtp=True)
        self.peer.account = Account("alice@example.test", "/mail/alice")

    def test_own_and_granted(self) -> None:
        account = self.peer.account
        assert account is not None
        for text, own, may in (
            ("alice@example.test", True, True),
            ("Alice+news@EXAMPLE.TEST", True, True),
            ("sales@example.test", True, True),
            ("deep@example.test", True, True),
            ("bob@example.test", False, False),
            ("away@example.test", False, False),
            ("team@example.test", False, False),
            ("nobody@example.test", False, False),
            ("info@EXAMPLE.org", False, True),
            ("other@example.org", False, False),
            ("anybody@example.net", False, True),
            ("x@example.com", False, True),
            ("a@sub.example.net", False, False),
        ):
            with self.subTest(text):
                address = Address.parse(text)
                self.assertEqual(
                    (self.rules.own(account, address), self.rules.may_send(account, address)), (own, may)
                )

    def test_rules_of_users_give_no_address_away_and_take_none(self) -> None:
        bob = Account("bob@example.test", "/mail/bob")
        directory = make_directory(
            ["alice", "bob"],
            {"sales": "alice"},
            user_rules={
                "alice@example.test": UserRules(
                    forward=(Address("bob", "example.test"),), addresses=(Address("shop", "example.test"),)
                )
            },
        )
        rules = SenderRules(directory, ())
        account = self.peer.account
        assert account is not None
        for text in ("alice@example.test", "alice+x@example.test", "sales@example.test", "shop@example.test"):
            address = Address.parse(text)
            self.assertEqual((rules.own(account, address), rules.own(bob, address)), (True, False), text)

    def test_a_catch_all_is_its_owners(self) -> None:
        bob = Account("bob@example.test", "/mail/bob")
        self.assertTrue(self.rules.may_send(bob, Address.parse("whatever@example.test")))
        self.assertFalse(self.rules.may_send(bob, Address.parse("alice@example.test")))

    def test_mail(self) -> None:
        check = SenderCheck(self.rules)
        self.assertTrue(IPolicyCheck.providedBy(check))
        self.assertIsNone(check.on_mail(self.peer, Envelope(ALICE)))
        self.assertIsNone(check.on_mail(self.peer, Envelope(None)))
        self.assertEqual(
            check.on_mail(self.peer, Envelope(Address.parse("bob@example.test"))),
            Reply(553, "5.7.1", "Sender address <bob@example.test> is not owned by alice@example.test"),
        )
        self.peer.account = None
        self.assertIsNone(check.on_mail(self.peer, Envelope(Address.parse("bob@example.test"))))

    def test_message(self) -> None:
        check, envelope = SenderCheck(self.rules), Envelope(ALICE)
        self.assertIsNone(check.on_message(self.peer, envelope, COMPLETE))
        refusal = check.on_message(
            self.peer, envelope, b"From: alice@example.test, Bob <bob@example.test>\r\n"
        )
        assert refusal is not None
        self.assertIn("553 5.7.1 Sender address <bob@example.test> in the From field", str(refusal))
        self.peer.account = None
        self.assertIsNone(check.on_message(self.peer, envelope, b"From: bob@example.test\r\n"))


class ReceptionTests(SynchronousTestCase):
    """The way through service.incoming: held back until the header section ended, then streamed."""

    def setUp(self) -> None:
        self.queue = Queue()
        directory = make_directory(["alice", "bob"], {})
        rules = SenderRules(directory, ())
        mender = HeaderMender(hostname="mx.example.test", directory=directory, rules=rules)
        self.reception = Reception(
            Rules(hostname="mx.example.test", expire=100, checks=(SenderCheck(rules),), mend=mender),
            Intake(queue=self.queue, directory=directory, ids=lambda: "A", seconds=lambda: 0.0),
            Authenticator(),
        )
        self.peer = Peer(address="192.0.2.1", port=1, role="submission", esmtp=True)
        self.peer.account = Account("alice@example.test", "/mail/alice")

    def receive(self, chunks: Iterable[bytes]) -> str:
        envelope = Envelope(ALICE, (Recipient(Address("bob", "example.test")),))
        sink = self.reception.message(self.peer, envelope)
        for chunk in chunks:
            sink.write(chunk)
        return str(self.successResultOf(Deferred.fromCoroutine(sink.finish())))

    def test_mended(self) -> None:
        message = b"From: alice\r\nBcc: carol@x.test\r\nTo: bob\r\n\r\nBcc: in the body\r\n\r\n"
        expected = (
            DATE
            + b"Message-ID: <0.A@mx.example.test>\r\n"
            + b"From: alice@example.test\r\nTo: bob@example.test\r\n\r\nBcc: in the body\r\n\r\n"
        )
        for size in (1, 7, 1000):
            self.queue.body.octets = b""
            chunks = (message[at : at + size] for at in range(0, len(message), size))
            self.assertEqual(self.receive(chunks), "250 2.0.0 Queued as A")
            self.assertEqual(self.queue.body.octets, expected)
            self.assertEqual(self.queue.messages[-1].message_id, "0.A@mx.example.test")

    def test_a_header_without_a_body(self) -> None:
        self.assertEqual(self.receive([COMPLETE[:20], COMPLETE[20:]]), "250 2.0.0 Queued as A")
        self.assertEqual(self.queue.body.octets, COMPLETE)

    def test_a_header_without_a_body_on_a_slow_disk(self) -> None:
        self.queue.body.wait = Deferred()
        envelope = Envelope(ALICE, (Recipient(Address("bob", "example.test")),))
        sink = self.reception.message(self.peer, envelope)
        sink.write(COMPLETE)
        ending = Deferred.fromCoroutine(sink.finish())
        self.assertNoResult(ending)
        self.queue.body.wait.callback(None)
        self.assertEqual(self.successResultOf(ending).code, 250)

    def test_refused(self) -> None:
        self.assertIn("554 5.1.7", self.receive([b"From: what is this\r\n\r\n", b"body"]))
        self.assertEqual((self.queue.messages, self.queue.body.octets), ([], b""))
        self.assertTrue(self.queue.body.aborted)
        self.assertIn("553 5.7.1", self.receive([b"From: bob\r\n\r\n"]))

    def test_refused_at_the_end_of_a_header_without_a_body(self) -> None:
        self.assertIn("554 5.1.7", self.receive([b"From: what is this\r\n"]))

    def test_a_huge_header(self) -> None:
        chunks = [b"X: " + b"x" * 990 + b"\r\n"] * (MAX_HEADER // 900)
        self.assertEqual(
            self.receive([*chunks, b"\r\nbody"]),
            f"552 5.3.4 The header of the message is longer than {MAX_HEADER} octets",
        )
        self.assertEqual(self.queue.body.octets, b"")

    def test_headers_share_their_room(self) -> None:
        room = self.reception.intake.room
        room.limit = 100
        envelope = Envelope(ALICE, (Recipient(Address("bob", "example.test")),))
        first = self.reception.message(self.peer, envelope)
        first.write(b"From: alice\r\nX: " + b"x" * 60)
        self.assertEqual(
            self.receive([b"From: alice\r\nX: " + b"x" * 60, b"\r\n\r\n"]),
            "452 4.3.1 Too many long headers at a time, try again later",
        )
        self.assertEqual((room.used, self.queue.body.octets), (76, b""))
        first.write(b"\r\n\r\n")
        self.assertEqual(room.used, 0)
        second = self.reception.message(self.peer, envelope)
        second.write(b"From: alice")
        second.abort()
        self.assertEqual(room.used, 0)

    def test_others_mail_is_not_touched(self) -> None:
        message = b"Bcc: x\r\nno field\r\n\r\nbody"
        for role, account in (("mx", self.peer.account), ("submission", None)):
            self.queue.body.octets = b""
            self.peer.role, self.peer.account = role, account
            self.receive([message[:5], message[5:]])
            self.assertEqual(self.queue.body.octets, message)

    def test_bug(self) -> None:
        self.peer.account = Account("not an address", "/mail/x")
        self.assertIn("451 4.3.0", self.receive([COMPLETE + b"\r\n"]))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_login_of_the_first_domain(self) -> None:
        self.peer.account = Account("alice", "/mail/alice")
        self.reception.rules = Rules(
            hostname="mx.example.test", expire=100, checks=(), mend=self.reception.rules.mend
        )
        self.receive([b"Date: x\r\nMessage-ID: <1@x>\r\n\r\n"])
        self.assertTrue(self.queue.body.octets.startswith(b"From: alice@example.test\r\nDate: x\r\n"))

"""What mail gets that goes on to another host, and what does not go on."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.expand import expand, resolves, route
from twisted_mta.core.forward import Forwarded, Forwarding, HeaderTest, Passing, forward
from twisted_mta.core.queue import NewRecipient, Transport
from twisted_mta.core.srs import DAY, Srs
from twisted_mta.testing.directory import make_directory

NOW = 20_000.5 * DAY
SRS = Srs(domain="example.test", secrets=(b"s" * 16,), expire=21 * DAY)
BOB = Address("bob", "example.org")
SPAM = HeaderTest("x-spam-flag", "YES")
ALIASES = {
    "alice": "alice, x@elsewhere.example",
    "team": "one@a.example, two@b.example, bob",
    "sales": "far@elsewhere.example",
    "chain": "alice",
    "owned": "far@elsewhere.example",
    "owner-owned": "bob",
}


class ForwardTests(SynchronousTestCase):
    def forward(
        self,
        *to: str,
        sender: Address | None = BOB,
        header: bytes = b"",
        rules: Any = None,
        aliases: Any = None,
    ) -> Forwarded:
        directory = make_directory(aliases=ALIASES if aliases is None else aliases)
        routed = route([Recipient(Address.parse(one)) for one in to], directory)
        rules = Forwarding(srs=SRS) if rules is None else rules
        passing = Passing(queue_id="0Wkz", sender=sender, header=header, now=NOW)
        return forward(routed.recipients, passing, rules, directory)

    def by_address(self, *to: str, **options: Any) -> dict[str, NewRecipient]:
        return {str(one.address): one for one in self.forward(*to, **options).recipients}

    def test_a_copy_that_leaves_has_a_sender_and_a_trace(self) -> None:
        found = self.by_address("chain@example.test", "carol@other.example")
        away = found["x@elsewhere.example"]
        self.assertEqual(away.sender, SRS.rewrite(BOB, NOW))
        self.assertEqual(
            away.prefix,
            b"Delivered-To: chain@example.test\r\nX-Forwarded-To: x@elsewhere.example\r\n",
        )
        for other in ("alice@example.test", "carol@other.example"):
            self.assertEqual((found[other].sender, found[other].prefix), (None, b""))

    def test_several_targets_go_by_one_trace(self) -> None:
        found = self.by_address("team@example.test")
        prefixes = {found[name].prefix for name in ("one@a.example", "two@b.example")}
        self.assertEqual(prefixes, {b"Delivered-To: team@example.test\r\n"})

    def test_what_is_not_rewritten(self) -> None:
        for sender, rules in (
            (None, Forwarding(srs=SRS)),
            (Address("bob", "example.test"), Forwarding(srs=SRS)),
            (BOB, Forwarding()),
            (Address("x" * 60, "long.example"), Forwarding(srs=SRS)),
        ):
            found = self.by_address("sales@example.test", sender=sender, rules=rules)["far@elsewhere.example"]
            self.assertIsNone(found.sender)
            self.assertIn(b"Delivered-To", found.prefix)
        owned = self.by_address("owned@example.test")["far@elsewhere.example"]
        self.assertEqual(owned.sender, Address("owner-owned", "example.test"))

    def test_a_long_sender_has_a_ticket(self) -> None:
        sender = Address("x" * 60, "long.example")
        found = self.by_address("sales@example.test", sender=sender, rules=Forwarding(srs=SRS, tickets=True))
        self.assertEqual(found["far@elsewhere.example"].sender, SRS.rewrite(sender, NOW, "0Wkz"))

    def test_no_header_of_an_ascii_message_gets_another_alphabet(self) -> None:
        found = self.by_address("x@example.test", aliases={"x": "jörg@b.example"})["jörg@b.example"]
        self.assertEqual(found.prefix, b"Delivered-To: x@example.test\r\n")

    def test_a_loop_is_refused(self) -> None:
        for header in (
            b"Delivered-To: Chain@example.test\r\n\r\n",
            b"X: y\r\nDelivered-To: alice@example.test\r\n\r\n",
        ):
            found = self.forward("chain@example.test", header=header)
            away = next(one for one in found.recipients if one.transport is Transport.REFUSE)
            self.assertEqual(
                away.target,
                "554 5.4.6 <chain@example.test>: mail forwarding loop, it was forwarded from here before",
            )
            self.assertEqual((found.kept, found.refused), ((), ()))
        self.assertIn(
            "x@elsewhere.example", self.by_address("chain@example.test", header=b"Delivered-To: bob@a\r\n")
        )

    def test_what_is_marked_is_kept(self) -> None:
        rules = Forwarding(srs=SRS, not_if=(HeaderTest("x-virus", ""), SPAM))
        header = b"X-Spam-Flag: Yes, score=9\r\n\r\n"
        found = self.forward("chain@example.test", header=header, rules=rules)
        self.assertEqual(
            [(str(one.address), one.transport) for one in found.recipients],
            [("alice@example.test", Transport.LOCAL)],
        )
        self.assertEqual(
            found.kept, ("<chain@example.test> is not forwarded: the message has x-spam-flag: YES",)
        )
        self.assertEqual(found.refused, ())

    def test_where_nobody_can_keep_it_it_is_refused(self) -> None:
        rules = Forwarding(srs=SRS, not_if=(SPAM,))
        found = self.forward(
            "sales@example.test", "bob@example.test", header=b"X-Spam-Flag: YES\r\n", rules=rules
        )
        self.assertEqual(
            found.refused, ("<sales@example.test> is not forwarded: the message has x-spam-flag: YES",)
        )
        refused = next(one for one in found.recipients if one.transport is Transport.REFUSE)
        self.assertTrue(refused.target.startswith("550 5.7.1 <sales@example.test> is not forwarded"))
        always = Forwarding(not_if=(SPAM,), refuse=True)
        found = self.forward("alice@example.test", header=b"X-Spam-Flag: YES\r\n", rules=always)
        self.assertEqual((len(found.refused), found.kept), (1, ()))

    def test_the_mailbox_of_what_an_include_leads_on(self) -> None:
        directory = make_directory(aliases={"alice": ":include:/x"}, includes={"/x": "far@elsewhere.example"})
        routed = route([Recipient(Address("alice", "example.test"))], directory)
        passing = Passing(queue_id="q", sender=BOB, header=b"X-Spam-Flag: YES\r\n", now=NOW)
        found = forward(routed.recipients, passing, Forwarding(not_if=(SPAM,)), directory)
        self.assertEqual([str(one.address) for one in found.recipients], ["alice@example.test"])

    def test_only_local_mail_is_left_alone(self) -> None:
        rules = Forwarding(srs=SRS, not_if=(SPAM,))
        found = self.forward(
            "bob@example.test", "carol@other.example", header=b"X-Spam-Flag: YES\r\n", rules=rules
        )
        self.assertEqual((len(found.recipients), found.kept, found.refused), (2, (), ()))


class ReturnTests(SynchronousTestCase):
    """Bounces to rewritten senders, in the expansion."""

    def setUp(self) -> None:
        self.directory = make_directory(forward=Forwarding(srs=SRS), seconds=lambda: NOW)

    def test_home(self) -> None:
        address = SRS.rewrite(BOB, NOW)
        self.assertIsNone(resolves(address, self.directory))
        plan = expand(address, self.directory)
        self.assertEqual(
            [(str(one.address), one.transport) for one in plan.recipients],
            [("bob@example.org", Transport.SMTP)],
        )
        self.assertEqual((plan.root.kind, plan.root.children[0].source), ("returns to", "forward.srs"))
        (one,) = route([Recipient(address)], self.directory).recipients
        passing = Passing(queue_id="q", sender=None, header=b"", now=NOW)
        found = forward([one], passing, self.directory.forwarding(), self.directory)
        self.assertEqual(found.recipients, (one,), "that is no forward")

    def test_by_ticket(self) -> None:
        address = SRS.rewrite(Address("x" * 60, "long.example"), NOW, "0Wkz")
        self.assertIsNone(resolves(address, self.directory))
        (found,) = expand(address, self.directory).recipients
        self.assertEqual((found.transport, found.target), (Transport.RETURN, "0Wkz"))

    def test_forged(self) -> None:
        address = Address("SRS0=AAAAAA=AA=example.org=bob", "example.test")
        problem = resolves(address, self.directory)
        assert problem is not None
        self.assertEqual(str(problem.reply), "550 5.7.1 the rewritten address is not one that was made here")
        self.assertEqual(expand(address, self.directory).problems, (problem,))

    def test_without_srs_it_is_a_name_like_any_other(self) -> None:
        address = SRS.rewrite(BOB, NOW)
        problem = resolves(address, make_directory())
        assert problem is not None
        self.assertEqual(problem.reply.enhanced, "5.1.1")

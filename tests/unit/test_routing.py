"""Recipients of an envelope as the queue gets them."""

from __future__ import annotations

import unittest
import unittest.mock

from twisted_mta.core.address import Address
from twisted_mta.core.domains import Domain
from twisted_mta.core.envelope import DEFAULT_NOTIFY, Notify, Recipient
from twisted_mta.core.expand import Destination, Kind, expand, resolves, route
from twisted_mta.core.expand.lookup import is_elsewhere
from twisted_mta.core.queue import Transport
from twisted_mta.core.rules import Rules
from twisted_mta.testing.directory import make_directory, make_list


class MailboxTests(unittest.TestCase):
    """What is known to be a mailbox is not looked up again, so it must be what the look-up says, each time."""

    def test_the_short_way_leads_to_the_same_place(self) -> None:
        directory = make_directory(
            ["alice", "bob", "carol", "dave", "rules", "other@second.test"],
            {"one": "alice", "bob": "bob, alice", "root": "alice", "alice+forwarded": "x@example.org"},
            domains=("example.test", "second.test"),
            lists=[make_list("team@example.test", ["alice@example.test"])],
            virtual={"v(.*)@example.test": "alice"},
            user_rules={
                "carol@example.test": Rules(forward=(Address("c", "example.org"),)),
                "dave@example.test": Rules(addresses=(Address("extra", "example.test"),)),
            },
            rules_address=Address("rules", "example.test"),
            literals=["[192.0.2.1]"],
        )
        names = "alice ALICE alice+x alice+forwarded bob carol dave extra rules one root team team-owner vx nobody postmaster"
        domains = "example.test second.test example.org [192.0.2.1]"
        addresses = [Address(name, domain) for name in names.split() for domain in domains.split()]
        addresses += [Address("postmaster", ""), Address("other", "second.test")]
        for address in addresses * 2:  # the second time from memory
            plan = expand(address, directory)
            only = (Destination(address, Transport.LOCAL, address),)
            if directory.is_mailbox(address):
                self.assertEqual(
                    (plan.recipients, plan.recipients[0].via, plan.problems), (only, (), ()), address
                )
                self.assertIsNone(resolves(address, directory), address)
            elif plan.recipients == only and not plan.problems:
                # An alias that names itself, and where mail is taken from those who logged in alone.
                self.assertIn(address.local, ("bob", "rules"))
        found = {str(address) for address in addresses if directory.is_mailbox(address)}
        self.assertEqual(
            found,
            {f"{name}@example.test" for name in ("alice", "ALICE", "alice+x", "dave")}
            | {"other@second.test"},
        )

    def test_what_is_elsewhere_is_told_from_what_is_not_without_the_long_way(self) -> None:
        directory = make_directory(
            ["alice"],
            {"away": "x@example.org"},
            special=[Domain(name="relayed.test", relay=True)],
            literals=["[192.0.2.1]"],
        )
        names = [
            Address(name, domain)
            for name in ("alice", "away", "postmaster", "x")
            for domain in ("example.test", "relayed.test", "example.org", "[192.0.2.1]", "[192.0.2.2]", "")
        ]
        for address in names:
            plan = expand(address, directory)
            elsewhere = plan.root.kind is Kind.REMOTE
            self.assertEqual(is_elsewhere(address, directory), elsewhere, address)
            if elsewhere:
                only = (Destination(address, Transport.SMTP, address),)
                self.assertEqual(
                    (plan.recipients, plan.recipients[0].via, plan.problems), (only, (), ()), address
                )
        found = {address.domain for address in names if is_elsewhere(address, directory)}
        self.assertEqual(found, {"example.org", "[192.0.2.2]"})

    def test_what_is_remembered_is_bounded(self) -> None:
        directory = make_directory(["alice"])
        self.patch_limit(3)
        for number in range(10):
            self.assertTrue(directory.is_mailbox(Address(f"alice+{number}", "example.test")))
            self.assertLessEqual(len(directory._mailboxes), 3)
        self.assertTrue(directory.is_mailbox(Address("alice+0", "example.test")))

    def patch_limit(self, limit: int) -> None:
        patching = unittest.mock.patch("twisted_mta.store.directory.MAX_REMEMBERED", limit)
        patching.start()
        self.addCleanup(patching.stop)


class RouteTests(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = make_directory(
            ["alice", "bob"], {"one": "alice", "two": "alice, bob", "broken": "ghost, bob", "loop": "loop"}
        )

    def routed(self, *recipients: Recipient) -> list[tuple[str, str, str, Notify, str]]:
        found = route(recipients, self.directory).recipients
        return [(one.transport, str(one.address), str(one.original), one.notify, one.orcpt) for one in found]

    def test_each_place_once_for_the_first_who_leads_there(self) -> None:
        self.assertEqual(
            self.routed(*(Recipient(Address(name, "example.test")) for name in ("one", "two", "ALICE"))),
            [
                ("local", "alice@example.test", "one@example.test", DEFAULT_NOTIFY, ""),
                ("local", "bob@example.test", "two@example.test", DEFAULT_NOTIFY, ""),
            ],
        )

    def test_alias_with_one_target_keeps_what_the_sender_asked_for(self) -> None:
        wish = Notify.SUCCESS | Notify.FAILURE
        self.assertEqual(
            self.routed(Recipient(Address("one", "example.test"), wish, "rfc822;x@y")),
            [("local", "alice@example.test", "one@example.test", wish, "rfc822;x@y")],
        )

    def test_alias_with_several_targets_drops_success(self) -> None:
        found = self.routed(
            Recipient(Address("two", "example.test"), Notify.SUCCESS | Notify.DELAY, "rfc822;x@y")
        )
        self.assertEqual(
            [(one[0], one[3], one[4]) for one in found],
            [
                ("alias", Notify.SUCCESS, "rfc822;x@y"),
                ("local", Notify.DELAY, "rfc822;x@y"),
                ("local", Notify.DELAY, "rfc822;x@y"),
            ],
        )
        self.assertEqual(found[0][1:3], ("two@example.test", "two@example.test"))

    def test_only_what_is_asked_for_is_told(self) -> None:
        found = self.routed(Recipient(Address("two", "example.test")))
        self.assertEqual([one[0] for one in found], ["local", "local"])

    def test_what_leads_nowhere_goes_where_it_will_be_refused(self) -> None:
        routed = route([Recipient(Address("broken", "example.test"))], self.directory)
        self.assertEqual(
            [(str(one.address), one.transport) for one in routed.recipients],
            [("bob@example.test", Transport.LOCAL), ("ghost@example.test", Transport.REFUSE)],
        )
        self.assertEqual(routed.recipients[1].target, "550 5.1.1 there is no user ghost@example.test here")
        self.assertEqual([one.kind for one in routed.problems], [Kind.UNKNOWN])
        self.assertEqual(len(self.routed(Recipient(Address("loop", "example.test")))), 1)

    def test_a_sender_for_a_bounce(self) -> None:
        bounce = Recipient(Address("x", "example.org"), Notify.NEVER)
        self.assertEqual(self.routed(bounce), [("smtp", "x@example.org", "x@example.org", Notify.NEVER, "")])


class MergeTests(unittest.TestCase):
    """Several recipients of an envelope that lead to one place."""

    def merged(self, *wishes: tuple[str, Notify, str]) -> tuple[str, Notify, str]:
        directory = make_directory(["alice"], {"a": "alice", "b": "alice"})
        found = route([Recipient(Address(name, "example.test"), *rest) for name, *rest in wishes], directory)  # type: ignore[arg-type]
        (one,) = found.recipients
        return one.original.local, one.notify, one.orcpt

    def test_what_was_asked_about_either(self) -> None:
        self.assertEqual(
            self.merged(("a", Notify.SUCCESS, "rfc822;a@x"), ("b", Notify.FAILURE, "rfc822;b@x")),
            ("a", Notify.SUCCESS | Notify.FAILURE, "rfc822;a@x"),
        )

    def test_told_of_the_one_that_it_wanted_to_hear_of(self) -> None:
        self.assertEqual(
            self.merged(("a", Notify.NEVER, "rfc822;a@x"), ("b", Notify.FAILURE, "rfc822;b@x")),
            ("b", Notify.FAILURE, "rfc822;b@x"),
        )
        self.assertEqual(
            self.merged(("a", Notify.DELAY, "rfc822;a@x"), ("b", Notify.NEVER, "rfc822;b@x")),
            ("a", Notify.DELAY, "rfc822;a@x"),
        )

    def test_unsaid_stays_unsaid_only_if_nobody_said_anything(self) -> None:
        self.assertEqual(
            self.merged(("a", DEFAULT_NOTIFY, ""), ("b", DEFAULT_NOTIFY, "")), ("a", DEFAULT_NOTIFY, "")
        )
        self.assertEqual(
            self.merged(("a", DEFAULT_NOTIFY, ""), ("b", Notify.SUCCESS, "")),
            ("a", Notify.SUCCESS | Notify.FAILURE | Notify.DELAY, ""),
        )

"""Expansion: targets that are no addresses, and owners of aliases."""

from __future__ import annotations

import unittest

from twisted_mta.core.address import Address
from twisted_mta.core.envelope import Notify, Recipient
from twisted_mta.core.expand import Plan, expand, render, resolves, route
from twisted_mta.interfaces import IDirectory
from twisted_mta.testing.directory import make_directory


def plan(address: str, directory: IDirectory) -> Plan:
    return expand(Address.parse(address), directory)


def places(found: Plan) -> list[str]:
    """ "local alice@example.test" for each recipient."""
    return [f"{one.transport} {one.address}" for one in found.recipients]


def problems(found: Plan) -> list[str]:
    return [f"{one.kind}: {one.text}" for one in found.problems]


class SpecialTargetTests(unittest.TestCase):
    def test_files_commands_and_the_black_hole(self) -> None:
        directory = make_directory(
            ["bob"],
            'a: /var/mail/a, /var/mail/a.d/, "|/bin/robot -x", :blackhole:, bob, b\nb: "|/bin/robot -x"\n',
        )
        found = plan("a@example.test", directory)
        self.assertEqual(
            [(str(one.transport), one.target) for one in found.recipients],
            [
                ("file", "/var/mail/a"),
                ("file", "/var/mail/a.d/"),
                ("command", "/bin/robot -x"),
                ("discard", ""),
                ("local", ""),
            ],
        )
        self.assertEqual(
            {str(one.address) for one in found.recipients}, {"a@example.test", "bob@example.test"}
        )
        self.assertEqual(
            list(render(found.root)),
            [
                "a@example.test: alias",
                "  /var/mail/a: file  (aliases:1)",
                "  /var/mail/a.d/: file  (aliases:1)",
                "  |/bin/robot -x: command  (aliases:1)",
                "  :blackhole:: blackhole  (aliases:1)",
                "  bob@example.test: account  (aliases:1)",
                "  b@example.test: alias  (aliases:1)",
                "    |/bin/robot -x: duplicate  (aliases:2)",
            ],
        )
        self.assertIsNone(resolves(Address("a", "example.test"), directory))

    def test_refusals_are_told_at_rcpt_where_the_address_is_nothing_else(self) -> None:
        directory = make_directory(
            ["bob"], "gone: :fail: She left, sorry\nlater: :defer:\nnull: :blackhole:\nboth: gone, bob\n"
        )
        for name, reply in (
            ("gone", "550 5.2.1 She left, sorry"),
            ("later", "450 4.2.1 later@example.test takes no mail for now, try again later"),
        ):
            problem = resolves(Address(name, "example.test"), directory)
            assert problem is not None
            self.assertEqual(str(problem.reply), reply)
            self.assertEqual(
                [str(one.reply) for one in plan(f"{name}@example.test", directory).problems], [reply]
            )
        self.assertIsNone(resolves(Address("null", "example.test"), directory))
        self.assertIsNone(resolves(Address("both", "example.test"), directory))
        found = plan("both@example.test", directory)
        self.assertEqual(places(found), ["local bob@example.test"])
        self.assertEqual(problems(found), ["refused: She left, sorry"])
        self.assertEqual(
            list(render(found.root))[1:3],
            ["  gone@example.test: alias  (aliases:4)", "    :fail: She left, sorry: refused  (aliases:1)"],
        )

    def test_backslash_means_the_mailbox(self) -> None:
        directory = make_directory(
            ["alice", "bob"],
            "alice: \\alice, bob\nbob: \\bob@example.test, x@example.org\nroot: \\alice\n"
            "ghost: \\ghost, \\postmaster, \\y@example.org\n@example.test: \\nobody\n",
        )
        self.assertEqual(
            places(plan("alice@example.test", directory)),
            ["local alice@example.test", "local bob@example.test", "smtp x@example.org"],
        )
        self.assertEqual(places(plan("root@example.test", directory)), ["local alice@example.test"])
        found = plan("ghost@example.test", directory)
        self.assertEqual(places(found), ["smtp y@example.org"])
        self.assertEqual(
            problems(found),
            [
                "unknown user: there is no user ghost@example.test here",
                "unknown user: there is no user postmaster@example.test here",
            ],
        )


class OwnerTests(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = make_directory(
            ["alice", "bob", "carol"],
            "team: alice, sub, ghost\nowner-team: bob\nsub: carol, bob\nplain: carol\nall: team, plain\n"
            "other: carol\nowner-other: owner-team\ntwo: team, other\nowner-owner-team: alice\n",
        )

    def senders(self, name: str) -> list[tuple[str, str]]:
        found = plan(name, self.directory)
        return [(one.address.local, str(one.sender or "")) for one in (*found.recipients, *found.problems)]

    def test_what_an_alias_with_an_owner_leads_to_has_the_owner_as_its_sender(self) -> None:
        owner = "owner-team@example.test"
        self.assertEqual(
            self.senders("Team+x@example.test"),
            [("alice", owner), ("carol", owner), ("bob", owner), ("ghost", owner)],
        )

    def test_a_copy_without_an_owner_comes_first(self) -> None:
        self.assertEqual(dict(self.senders("all@example.test"))["carol"], "")

    def test_of_two_owners_it_is_the_same_in_any_order(self) -> None:
        self.assertEqual(dict(self.senders("two@example.test"))["carol"], "owner-other@example.test")

    def test_the_owner_may_have_an_owner(self) -> None:
        self.assertEqual(self.senders("owner-team@example.test"), [("bob", "owner-owner-team@example.test")])

    def test_routing_passes_the_wishes_of_the_author_on_to_nobody_under_another_sender(self) -> None:
        wish = Notify.SUCCESS | Notify.DELAY
        routed = route([Recipient(Address("all", "example.test"), wish, "rfc822;x@y")], self.directory)
        owner = Address("owner-team", "example.test")
        self.assertEqual(
            [
                (str(one.transport), one.address.local, one.sender, one.notify, one.orcpt)
                for one in routed.recipients
            ],
            [
                ("alias", "all", None, Notify.SUCCESS, "rfc822;x@y"),
                ("local", "alice", owner, Notify.FAILURE, ""),
                ("local", "carol", None, Notify.DELAY, "rfc822;x@y"),
                ("local", "bob", owner, Notify.FAILURE, ""),
                ("refuse", "ghost", owner, Notify.FAILURE, ""),
            ],
        )

    def test_success_of_an_alias_with_an_owner_is_told_here(self) -> None:
        routed = route([Recipient(Address("other", "example.test"), Notify.SUCCESS)], self.directory)
        self.assertEqual([str(one.transport) for one in routed.recipients], ["alias", "local"])

    def test_a_copy_for_the_author_comes_before_one_for_the_owner(self) -> None:
        for order in (("other", "plain"), ("plain", "other")):
            recipients = [Recipient(Address(name, "example.test"), Notify.NEVER) for name in order]
            (one,) = route(recipients, self.directory).recipients
            self.assertEqual((one.sender, one.notify), (None, Notify.NEVER))

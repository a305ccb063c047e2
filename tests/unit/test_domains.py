"""Domains that are more than a name: aliases of another, relays, wildcards, and what each has of its own."""

from __future__ import annotations

import unittest

from twisted_mta.core.address import Address
from twisted_mta.core.aliases import parse_aliases
from twisted_mta.core.domains import Domain, Domains
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.expand import Kind, expand, home, is_relayed, render, resolves, route, too_large
from twisted_mta.testing.directory import make_directory, make_list


class FindTests(unittest.TestCase):
    def test_the_domain_itself_before_the_nearest_wildcard(self) -> None:
        names = ("example.org", "a.example.org", ".example.org", ".b.example.org")
        domains = Domains(Domain(name=name) for name in names)
        for name, expected in (
            ("example.org", "example.org"),
            ("a.example.org", "a.example.org"),
            ("x.a.example.org", ".example.org"),
            ("b.example.org", ".example.org"),
            ("x.y.b.example.org", ".b.example.org"),
            ("xexample.org", None),
            ("org", None),
            ("", None),
        ):
            found = domains.find(name)
            self.assertEqual(found.name if found else None, expected, name)

    def test_the_first_of_a_name_stands(self) -> None:
        domains = Domains([Domain(name="a", message_size=1), Domain(name="a")])
        found = domains.find("a")
        assert found is not None
        self.assertEqual(found.message_size, 1)

    def test_kinds(self) -> None:
        for domain, is_local, is_own in (
            (Domain(name="a"), True, True),
            (Domain(name="a", alias_of="b"), True, False),
            (Domain(name="a", relay=True), False, False),
        ):
            self.assertEqual((domain.is_local, domain.is_own), (is_local, is_own))


class DomainCase(unittest.TestCase):
    def setUp(self) -> None:
        own = {
            entry.name.local: entry
            for entry in parse_aliases("info: carol\nhelp: :fail: No\n", "own").entries
        }
        (rest,) = parse_aliases("@x: alice, bob", "mta.toml").entries
        self.directory = make_directory(
            ["alice", "bob", "carol@shop.test", "dora@a.wild.test"],
            "info: bob\nspecial@old.test: alice\nlist2: team@old.test\nroot@backup.test: alice\n",
            lists=[make_list("team@example.test", ["alice@example.test"], members_only=True)],
            domains=["example.test"],
            special=[
                Domain(name="old.test", alias_of="example.test", source="mta.toml:5"),
                Domain(
                    name="shop.test",
                    source="mta.toml:9",
                    separator="-",
                    aliases=own,
                    postmaster=Address("carol", "shop.test"),
                    catch_all=rest,
                    message_size=1000,
                ),
                Domain(name=".wild.test", catch_all=rest),
                Domain(name="backup.test", relay=True),
                Domain(
                    name="listed.test",
                    relay=True,
                    recipients=frozenset({"joe@listed.test"}),
                    source="mta.toml:20",
                ),
                Domain(name="torn.test", relay=True, unreadable=True, source="mta.toml:30"),
            ],
            virtual={
                "sales-(.*)@shop.test": "{1}@crm.example.net",
                "(.+)@b.wild.test": "{1}@example.test",
                "x-(.+)@(.+).wild.test": "{1}.{2}@crm.example.net",
                "echo-(.+)@example.test": "echo-{1}@example.test",
                "gate-(.*)@backup.test": "bob@example.test",
                "(.*)-2@old.test": "{1}@shop.test",
            },
        )

    def places(self, address: str) -> list[str]:
        found = expand(Address.parse(address), self.directory)
        told = [f"{one.transport} {one.address}" for one in found.recipients]
        told += [str(one.reply) for one in found.problems]
        resolved = resolves(Address.parse(address), self.directory)
        if len(found.problems) == 1 and not found.recipients and found.problems[0].kind is not Kind.LOOP:
            self.assertEqual(str(resolved and resolved.reply), told[0])
        else:
            self.assertIsNone(resolved)
        return told


class AliasDomainTests(DomainCase):
    def test_all_its_addresses_are_those_of_the_other(self) -> None:
        for address, expected in (
            ("alice+x@old.test", "local alice+x@example.test"),
            ("info@old.test", "local bob@example.test"),
            ("Team@old.test", "list Team@example.test"),
            ("postmaster@old.test", "local alice@example.test"),
            ("nobody@old.test", "550 5.1.1 there is no user nobody@old.test here"),
        ):
            if address.startswith("nobody"):
                problem = resolves(Address.parse(address), self.directory)
                self.assertEqual(str(problem and problem.reply), expected)
                continue
            self.assertEqual(self.places(address), [expected])

    def test_but_what_is_said_of_single_ones(self) -> None:
        self.assertEqual(self.places("special@old.test"), ["local alice@example.test"])
        self.assertEqual(self.places("carol-2@old.test"), ["local carol@shop.test"])

    def test_the_tree_shows_the_step(self) -> None:
        self.assertEqual(
            list(render(expand(Address("bob", "old.test"), self.directory).root)),
            ["bob@old.test: domain alias", "  bob@example.test: account  (mta.toml:5)"],
        )

    def test_home(self) -> None:
        for address, expected in (
            ("team@old.test", "team@example.test"),
            ("special@old.test", "special@old.test"),
            ("x@example.org", "x@example.org"),
            ("nobody@example.test", "nobody@example.test"),
        ):
            self.assertEqual(str(home(Address.parse(address), self.directory)), expected)

    def test_an_alias_may_name_it(self) -> None:
        self.assertEqual(self.places("list2@example.test"), ["list team@example.test"])

    def test_backslash(self) -> None:
        directory = make_directory(
            ["bob"],
            "a: \\bob@old.test, \\bob@relay.test\nb@old.test: \\bob\n",
            special=[
                Domain(name="old.test", alias_of="example.test"),
                Domain(name="relay.test", relay=True),
            ],
        )
        for name, expected in (("a", ["bob@example.test", "bob@relay.test"]), ("b", ["bob@example.test"])):
            found = expand(Address(name, "example.test" if name == "a" else "old.test"), directory)
            self.assertEqual([str(one.address) for one in found.recipients], expected)


class OwnTests(DomainCase):
    def test_names_separator_postmaster_and_catch_all(self) -> None:
        for address, *expected in (
            ("info@shop.test", "local carol@shop.test"),
            ("info@example.test", "local bob@example.test"),
            ("carol-news@shop.test", "local carol-news@shop.test"),
            ("carol+news@shop.test", "local alice@example.test", "local bob@example.test"),
            ("abuse@shop.test", "local carol@shop.test"),
            ("abuse@example.test", "local alice@example.test"),
            ("help@shop.test", "550 5.2.1 No"),
            ("whoever@shop.test", "local alice@example.test", "local bob@example.test"),
            ("sales-joe@shop.test", "smtp joe@crm.example.net"),
        ):
            self.assertEqual(self.places(address), expected)

    def test_wildcard(self) -> None:
        for address, *expected in (
            ("dora@a.wild.test", "local dora@a.wild.test"),
            ("info@a.wild.test", "local bob@example.test"),
            ("whoever@a.wild.test", "local alice@example.test", "local bob@example.test"),
            ("bob@b.wild.test", "local bob@example.test"),
            ("x-1@c.wild.test", "smtp 1.c@crm.example.net"),
            ("dora@wild.test", "smtp dora@wild.test"),
        ):
            self.assertEqual(self.places(address), expected)

    def test_a_pattern_that_names_itself_means_the_mailbox(self) -> None:
        found = expand(Address("echo-x", "example.test"), self.directory)
        self.assertEqual([one.kind for one in found.problems], [Kind.LOOP])

    def test_the_size_for_another_name_of_the_domain(self) -> None:
        for name, own, limit in (("a.test", 0, 1000), ("b.test", 500, 500)):
            directory = make_directory(
                ["carol@shop.test"],
                domains=["example.test"],
                special=[
                    Domain(name="shop.test", message_size=1000),
                    Domain(name=name, alias_of="shop.test", message_size=own),
                    Domain(name="free.test", alias_of="example.test"),
                ],
            )
            address = Address("carol", name)
            self.assertIsNone(too_large(address, limit, directory))
            self.assertIsNone(too_large(address, 0, directory))
            problem = too_large(address, limit + 1, directory)
            self.assertEqual(
                str(problem and problem.reply),
                f"552 5.2.3 messages for {name} may have {limit} octets at most",
            )
            self.assertIsNone(too_large(Address("carol", "free.test"), 1 << 30, directory))
            self.assertIsNone(too_large(Address("carol", "elsewhere.test"), 1 << 30, directory))

    def test_size(self) -> None:
        address = Address("carol", "shop.test")
        self.assertEqual(
            [str(one.transport) for one in route([Recipient(address)], self.directory, 1000).recipients],
            ["local"],
        )
        (refused,) = route([Recipient(address)], self.directory, 1001).recipients
        self.assertEqual(refused.target, "552 5.2.3 messages for shop.test may have 1000 octets at most")
        elsewhere = [Recipient(Address("alice", "example.test")), Recipient(Address("x", "example.org"))]
        self.assertEqual(len(route(elsewhere, self.directory, 9999).problems), 0)


class RelayTests(DomainCase):
    def test_what_its_own_servers_can_be_asked_about(self) -> None:
        for address, expected in (
            ("Joe@backup.test", True),
            ("joe@listed.test", True),
            ("jim@listed.test", False),
            ("joe@torn.test", False),
            ("root@backup.test", False),
            ("gate-1@backup.test", False),
            ("alice@example.test", False),
            ("x@example.org", False),
        ):
            self.assertIs(is_relayed(Address.parse(address), self.directory), expected, address)

    def test_its_mail_goes_on(self) -> None:
        for address, expected in (
            ("Joe@backup.test", "smtp Joe@backup.test"),
            ("root@backup.test", "local alice@example.test"),
            ("gate-1@backup.test", "local bob@example.test"),
            ("joe@listed.test", "smtp joe@listed.test"),
            ("Joe+x@listed.test", "smtp Joe+x@listed.test"),
            ("Postmaster@listed.test", "smtp Postmaster@listed.test"),
            ("jim@listed.test", "550 5.1.1 there is no user jim@listed.test here"),
            ("joe@torn.test", "450 4.2.1 Can't tell for now whether joe@torn.test exists, try again later"),
        ):
            self.assertEqual(self.places(address), [expected])
        self.assertEqual(expand(Address("joe", "backup.test"), self.directory).root.kind, Kind.RELAY)

    def test_names_in_its_aliases_are_ours(self) -> None:
        self.assertFalse(self.directory.is_local("backup.test"))
        self.assertTrue(self.directory.is_local("old.test"))

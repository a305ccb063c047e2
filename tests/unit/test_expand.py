"""Expansion: the order of look-ups, chains, loops, limits, and what always holds."""

from __future__ import annotations

import unittest
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core.address import Address
from twisted_mta.core.domains import Domain
from twisted_mta.core.envelope import Recipient
from twisted_mta.core.expand import Kind, Plan, expand, render, resolves, route
from twisted_mta.core.expand import walk as module
from twisted_mta.core.expand.walk import place
from twisted_mta.core.queue import Transport
from twisted_mta.interfaces import IDirectory
from twisted_mta.testing.directory import make_directory, make_list


def plan(address: str, directory: IDirectory) -> Plan:
    return expand(Address.parse(address), directory)


def places(found: Plan) -> list[str]:
    """ "local alice@example.test" for each recipient."""
    return [f"{one.transport} {one.address}" for one in found.recipients]


def problems(found: Plan) -> list[str]:
    return [f"{one.kind}: {one.text}" for one in found.problems]


class LookupOrderTests(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = make_directory(
            ["alice", "bob", "carol", "dash+ed", "bob@second.test"],
            "info: bob\n"
            "info@second.test: carol@example.test\n"
            "forwarded: forwarded@example.org\n"
            "carol+urgent: bob\n"
            "dashed: bob\n"
            "@second.test: alice@example.test\n",
            domains=["example.test", "second.test"],
            lists=[make_list("team@example.test", ["alice@example.test"], "carol@example.test")],
            literals=["[192.0.2.1]"],
        )

    def goes(self, address: str, *expected: str) -> Plan:
        found = plan(address, self.directory)
        self.assertEqual(places(found), list(expected))
        self.assertEqual(problems(found), [])
        for one in found.recipients:
            self.assertEqual(one.original, Address.parse(address))
        self.assertIsNone(resolves(Address.parse(address), self.directory))
        return found

    def test_remote(self) -> None:
        self.goes("Anybody@example.org", "smtp Anybody@example.org")

    def test_account(self) -> None:
        self.goes("alice@example.test", "local alice@example.test")
        self.goes("ALICE@example.test", "local ALICE@example.test")

    def test_detail_stays_for_the_folder(self) -> None:
        self.goes("alice+Lists@example.test", "local alice+Lists@example.test")

    def test_account_that_has_the_separator_in_its_name(self) -> None:
        self.goes("dash+ed@example.test", "local dash+ed@example.test")

    def test_list_and_its_owner_addresses(self) -> None:
        self.goes("Team@example.test", "list Team@example.test")
        for suffix in ("owner", "bounces", "request"):
            found = self.goes(f"team-{suffix}@example.test", "local carol@example.test")
            self.assertEqual(found.root.kind, Kind.LIST_OWNER)
            self.assertEqual(found.root.children[0].source, "list team@example.test")

    def test_alias_by_name_holds_in_every_domain_but_the_full_address_comes_first(self) -> None:
        self.goes("info@example.test", "local bob@example.test")
        self.goes("info@second.test", "local carol@example.test")

    def test_bare_target_belongs_to_the_domain_of_the_alias_as_looked_up(self) -> None:
        directory = make_directory(
            ["bob", "bob@second.test"], {"both": "bob"}, domains=["example.test", "second.test"]
        )
        self.assertEqual(places(plan("both@second.test", directory)), ["local bob@second.test"])
        self.assertEqual(places(plan("both@example.test", directory)), ["local bob@example.test"])

    def test_bare_target_that_only_the_first_domain_has(self) -> None:
        directory = make_directory(
            ["bob"], {"root": "bob", "@second.test": "root"}, domains=["example.test", "second.test"]
        )
        self.assertEqual(places(plan("root@second.test", directory)), ["local bob@example.test"])
        self.assertEqual(places(plan("any@second.test", directory)), ["local bob@example.test"])

    def test_alias_with_the_detail_written_out(self) -> None:
        self.goes("carol+urgent@example.test", "local bob@example.test")
        self.goes("carol+other@example.test", "local carol+other@example.test")

    def test_who_is_forwarded_is_forwarded_with_a_detail_too(self) -> None:
        directory = make_directory(["alice"], {"alice": "alice@example.org"})
        self.assertEqual(places(plan("alice+x@example.test", directory)), ["smtp alice@example.org"])

    def test_alias_to_oneself_and_another_with_a_detail(self) -> None:
        directory = make_directory(["alice", "bob"], {"alice": "alice, bob"})
        self.assertEqual(
            places(plan("alice+x@example.test", directory)),
            ["local alice@example.test", "local bob@example.test"],
        )

    def test_alias_without_the_detail(self) -> None:
        self.goes("forwarded+x@example.test", "smtp forwarded@example.org")
        self.goes("dashed+ed@example.test", "local bob@example.test")

    def test_roles_exist_in_every_domain(self) -> None:
        for role in ("postmaster", "Abuse", "MAILER-DAEMON", "postmaster+x"):
            for domain in ("example.test", "second.test"):
                found = self.goes(f"{role}@{domain}", "local alice@example.test")
                self.assertEqual(found.root.kind, Kind.POSTMASTER)

    def test_alias_of_a_role_comes_first(self) -> None:
        directory = make_directory(["alice", "bob"], {"abuse": "bob"})
        self.assertEqual(places(plan("abuse@example.test", directory)), ["local bob@example.test"])

    def test_catch_all_takes_the_rest(self) -> None:
        self.goes("bob@second.test", "local bob@second.test")
        found = self.goes("whoever@second.test", "local alice@example.test")
        self.assertEqual(found.root.kind, Kind.CATCH_ALL)

    def test_unknown(self) -> None:
        address = Address.parse("nobody@example.test")
        found = expand(address, self.directory)
        self.assertEqual(found.recipients, ())
        self.assertEqual(problems(found), ["unknown user: there is no user nobody@example.test here"])
        refusal = resolves(address, self.directory)
        assert refusal is not None
        self.assertEqual(str(refusal.reply), "550 5.1.1 there is no user nobody@example.test here")

    def test_bare_postmaster(self) -> None:
        bare = Address("Postmaster", "")
        self.assertIsNone(resolves(bare, self.directory))
        found = expand(bare, self.directory)
        self.assertEqual(places(found), ["local alice@example.test"])
        self.assertEqual(found.recipients[0].original, bare)

    def test_literal_of_ours_is_the_first_domain_and_another_is_remote(self) -> None:
        self.goes("bob@[192.0.2.1]", "local bob@example.test")
        self.goes("postmaster@[192.0.2.1]", "local alice@example.test")
        self.goes("bob@[192.0.2.2]", "smtp bob@[192.0.2.2]")

    def test_no_separator_no_detail(self) -> None:
        directory = make_directory(["alice"], separator="")
        self.assertIsNotNone(resolves(Address.parse("alice+x@example.test"), directory))


class ChainTests(unittest.TestCase):
    def test_chain_with_several_targets_in_the_order_of_the_file(self) -> None:
        directory = make_directory(
            ["alice", "bob", "carol"],
            {"all": "staff, carol, x@example.org", "staff": "bob, chief", "chief": "alice"},
        )
        found = plan("all@example.test", directory)
        self.assertEqual(
            places(found),
            [
                "local bob@example.test",
                "local alice@example.test",
                "local carol@example.test",
                "smtp x@example.org",
            ],
        )

    def test_tree_says_who_sent_it_where(self) -> None:
        directory = make_directory(
            ["alice", "bob"],
            {"all": "staff, :include:more, bob", "staff": "bob, alice"},
            includes={"more": "# more\nstaff\nx@example.org"},
        )
        self.assertEqual(
            list(render(plan("all@example.test", directory).root)),
            [
                "all@example.test: alias",
                "  staff@example.test: alias  (aliases:1)",
                "    bob@example.test: account  (aliases:2)",
                "    alice@example.test: account  (aliases:2)",
                "  :include:more: include  (aliases:1)",
                "    staff@example.test: duplicate  (more:2)",
                "    x@example.org: remote  (more:3)",
                "  bob@example.test: duplicate  (aliases:1)",
            ],
        )

    def test_duplicates_get_one_copy_whatever_their_case(self) -> None:
        directory = make_directory(["bob"], {"a": "bob, BOB@Example.Test, b", "b": "Bob"})
        self.assertEqual(places(plan("a@example.test", directory)), ["local bob@example.test"])

    def test_case_of_a_remote_local_part_is_kept_apart(self) -> None:
        directory = make_directory([], {"a": "X@example.org, x@example.org, x@EXAMPLE.org"})
        self.assertEqual(
            places(plan("a@example.test", directory)), ["smtp X@example.org", "smtp x@example.org"]
        )

    def test_unknown_target_does_not_hold_up_the_others(self) -> None:
        directory = make_directory(["bob"], {"a": "ghost, bob"})
        found = plan("a@example.test", directory)
        self.assertEqual(places(found), ["local bob@example.test"])
        (problem,) = found.problems
        self.assertEqual((problem.kind, str(problem.address)), (Kind.UNKNOWN, "ghost@example.test"))
        self.assertEqual(problem.source, "aliases:1")

    def test_unknown_bare_target_is_named_in_the_domain_looked_up(self) -> None:
        directory = make_directory([], {"a": "ghost"}, domains=["example.test", "second.test"])
        (problem,) = plan("a@second.test", directory).problems
        self.assertEqual(str(problem.address), "ghost@second.test")

    def test_include_that_was_not_loaded_is_empty(self) -> None:
        directory = make_directory(["bob"], {"a": ":include:gone, bob"})
        self.assertEqual(places(plan("a@example.test", directory)), ["local bob@example.test"])

    def test_an_alias_that_leads_to_nobody(self) -> None:
        """Mail for it is not lost among other recipients, nor refused with an internal error: it waits."""
        directory = make_directory(["bob"], {"a": ":include:gone", "b": "a, bob", "c": "a"})
        for name in ("a", "c"):
            (problem,) = plan(f"{name}@example.test", directory).problems
            self.assertEqual(str(problem.reply), f"450 4.2.4 {name}@example.test leads to nobody for now")
        self.assertEqual(plan("b@example.test", directory).problems, ())
        routed = route([Recipient(Address.parse(f"{name}@example.test")) for name in "ab"], directory)
        self.assertEqual([one.transport for one in routed.recipients], [Transport.REFUSE, Transport.LOCAL])

    def test_same_include_twice_in_one_alias(self) -> None:
        directory = make_directory(["bob"], {"a": ":include:f, :include:f"}, includes={"f": "bob"})
        found = plan("a@example.test", directory)
        self.assertEqual([child.kind for child in found.root.children], [Kind.INCLUDE, Kind.DUPLICATE])


class SelfReferenceTests(unittest.TestCase):
    def test_alias_that_names_itself_means_the_mailbox(self) -> None:
        directory = make_directory(["alice", "bob"], {"alice": "Alice, bob"})
        self.assertEqual(
            places(plan("alice@example.test", directory)),
            ["local Alice@example.test", "local bob@example.test"],
        )

    def test_also_behind_another_alias_and_through_an_include(self) -> None:
        directory = make_directory(
            ["alice"], {"a": "alice, alice", "alice": ":include:f"}, includes={"f": "alice, x@example.org"}
        )
        self.assertEqual(
            places(plan("a@example.test", directory)), ["local alice@example.test", "smtp x@example.org"]
        )

    def test_name_of_the_first_domain_from_another(self) -> None:
        directory = make_directory(
            ["alice", "bob"], {"alice": "alice, bob"}, domains=["example.test", "second.test"]
        )
        found = plan("alice@second.test", directory)
        self.assertEqual(places(found), ["local alice@example.test", "local bob@example.test"])
        self.assertEqual(found.problems, ())

    def test_without_a_mailbox(self) -> None:
        directory = make_directory(["bob"], {"alice": "alice, bob"})
        found = plan("alice@example.test", directory)
        self.assertEqual(places(found), ["local bob@example.test"])
        self.assertEqual(
            problems(found),
            ["alias loop: alice@example.test leads only to itself, and there is no such mailbox"],
        )

    def test_postmaster_without_a_mailbox_is_still_the_configured_one(self) -> None:
        directory = make_directory(["alice"], {"postmaster": "postmaster"})
        found = plan("postmaster@example.test", directory)
        self.assertEqual((places(found), problems(found)), (["local alice@example.test"], []))

    def test_postmaster_configured_as_itself(self) -> None:
        directory = make_directory([], postmaster="postmaster@example.test")
        (problem,) = plan("postmaster@example.test", directory).problems
        self.assertEqual(problem.kind, Kind.LOOP)

    def test_postmaster_that_is_an_alias_of_itself_and_configured_as_itself(self) -> None:
        directory = make_directory([], {"postmaster": "postmaster"}, postmaster="postmaster@example.test")
        (problem,) = plan("postmaster@example.test", directory).problems
        self.assertEqual(problem.kind, Kind.LOOP)

    def test_owner_configured_as_itself(self) -> None:
        directory = make_directory(lists=[make_list("team@example.test", owner="team-owner@example.test")])
        (problem,) = plan("team-owner@example.test", directory).problems
        self.assertEqual(problem.kind, Kind.LOOP)

    def test_catch_all_that_leads_back_to_itself(self) -> None:
        directory = make_directory([], {"@example.test": "ghost"})
        (problem,) = plan("any@example.test", directory).problems
        self.assertEqual(problem.kind, Kind.LOOP)


class LoopAndLimitTests(unittest.TestCase):
    def test_cycle_is_cut_and_named_and_the_rest_goes_on(self) -> None:
        directory = make_directory(["bob"], {"start": "a", "a": "b, bob", "b": "c", "c": "a, x@example.org"})
        found = plan("start@example.test", directory)
        self.assertEqual(places(found), ["smtp x@example.org", "local bob@example.test"])
        (problem,) = found.problems
        self.assertEqual(
            problem.text,
            "alias loop: a@example.test -> b@example.test -> c@example.test -> a@example.test",
        )
        self.assertEqual((problem.source, problem.reply.status), ("aliases:4", "5.4.6"))

    def test_include_that_includes_itself(self) -> None:
        directory = make_directory(
            ["bob"], {"a": ":include:f"}, includes={"f": ":include:g, bob", "g": ":include:f"}
        )
        found = plan("a@example.test", directory)
        self.assertEqual(places(found), ["local bob@example.test"])
        self.assertEqual(problems(found), ["alias loop: alias loop: :include:f -> :include:g -> :include:f"])

    def test_depth(self) -> None:
        chain = {f"a{n}": f"a{n + 1}" for n in range(30)}
        deep = make_directory(["alice"], {**chain, f"a{module.MAX_DEPTH}": "alice"})
        self.assertEqual(places(plan("a1@example.test", deep)), ["local alice@example.test"])
        (problem,) = plan("a0@example.test", deep).problems
        self.assertEqual((problem.kind, problem.reply.status), (Kind.LIMIT, "5.2.4"))
        self.assertIn("more than 20 aliases", problem.text)

    def test_recipients(self) -> None:
        directory = make_directory(
            ["alice"], {"a": "x1@example.org, x2@example.org, alice, bob, x1@example.org"}
        )
        with mock.patch.object(module, "MAX_RECIPIENTS", 2):
            found = plan("a@example.test", directory)
        self.assertEqual(places(found), ["smtp x1@example.org", "smtp x2@example.org"])
        self.assertEqual(problems(found), ["limit: a@example.test leads to more than 2 recipients"])

    def test_steps(self) -> None:
        directory = make_directory(["alice"], {"a": "b, b, b", "b": "alice, alice, alice"})
        with mock.patch.object(module, "MAX_STEPS", 3):
            found = plan("a@example.test", directory)
        self.assertEqual(places(found), ["local alice@example.test"])
        self.assertEqual(problems(found), ["limit: a@example.test leads to more than 3 targets"])

    def test_aliases_that_double_at_each_level_are_followed_once(self) -> None:
        doubling = {f"a{n}": f"a{n + 1}, a{n + 1}" for n in range(18)}
        directory = make_directory(["alice"], {**doubling, "a18": "alice"})
        found = plan("a0@example.test", directory)
        self.assertEqual((places(found), found.problems), (["local alice@example.test"], ()))


# --- What always holds ---------------------------------------------------------------------------

_NAMES = ["alice", "bob", "a", "b", "c", "d", "postmaster"]
_target = st.sampled_from(
    [
        *(*_NAMES, "x@example.org", "a@second.test", "team", "team-owner", "a+x", ":include:f", ":include:g"),
        *(
            "\\alice",
            "\\b",
            "/var/mail/x",
            "/var/mail/x/",
            "|cat",
            ":blackhole:",
            "p-a@second.test",
            "a@old.test",
        ),
    ]
)
_included = st.lists(
    st.sampled_from([*_NAMES, "x@example.org", "\\bob", ":include:f", ":include:g", "p-b@second.test"]),
    min_size=1,
    max_size=4,
).map(", ".join)
_targets = st.lists(_target, min_size=1, max_size=4).map(", ".join)
_aliases = st.dictionaries(
    st.sampled_from([*_NAMES, "a@second.test", "a+x", "@second.test", "owner-a", "owner-b", "c@old.test"]),
    _targets | st.sampled_from([":fail: no", ":defer:"]),
    max_size=8,
)
_address = st.builds(
    Address,
    st.sampled_from([*_NAMES, "a+x", "ghost", "p-c"]),
    st.sampled_from(["example.test", "second.test", "old.test", "far.test"]),
)


def _directory(aliases: dict[str, str], f: str, g: str) -> IDirectory:
    return make_directory(
        ["alice", "bob"],
        aliases,
        domains=["example.test", "second.test"],
        includes={"f": f, "g": g},
        lists=[make_list("team@example.test", owner="c@example.test")],
        postmaster="d@example.test",
        special=[
            Domain(name="old.test", alias_of="example.test"),
            Domain(name="far.test", relay=True, recipients=frozenset({"alice@far.test"})),
        ],
        virtual={"p-(.*)@second.test": "{1}@example.test", "p-(.*)@old.test": "p-{1}@second.test"},
    )


class PropertyTests(unittest.TestCase):
    @given(_aliases, _included, st.just("") | _included, _address)
    @settings(max_examples=150)
    def test_ends_without_duplicates_and_loses_nobody(
        self, aliases: dict[str, str], f: str, g: str, address: Address
    ) -> None:
        directory = _directory(aliases, f, g)
        found = expand(address, directory)
        keys = [place(one.address, one.transport, one.target) for one in found.recipients]
        self.assertEqual(len(keys), len(set(keys)))
        # A message never just disappears: somebody gets it, or there is somebody to complain about.
        self.assertTrue(found.recipients or found.problems)
        problem = resolves(address, directory)
        if problem is not None:  # refused at RCPT is what would come to nothing anyway
            self.assertEqual([found.recipients, *(one.kind for one in found.problems)], [(), problem.kind])
        for one in found.recipients:
            if one.transport is Transport.LOCAL:
                self.assertIsNotNone(directory.account(one.address))
        routed = route([Recipient(address)], directory)
        self.assertLessEqual(len(routed.recipients), len(found.recipients) + len(found.problems))

    @given(_aliases, _included, _included, _address, st.randoms(use_true_random=False))
    @settings(max_examples=75)
    def test_order_of_entries_does_not_matter(
        self, aliases: dict[str, str], f: str, g: str, address: Address, random: object
    ) -> None:
        entries = list(aliases.items())
        random.shuffle(entries)  # type: ignore[attr-defined]
        first = expand(address, _directory(aliases, f, g))
        second = expand(address, _directory(dict(entries), f, g))
        self.assertEqual(first.recipients, second.recipients)
        self.assertEqual([one.text for one in first.problems], [one.text for one in second.problems])

    @given(_aliases, _included, _included, _address, st.randoms(use_true_random=False))
    @settings(max_examples=150)
    def test_order_of_targets_does_not_matter_for_who_gets_it_and_from_whom(
        self, aliases: dict[str, str], f: str, g: str, address: Address, random: Any
    ) -> None:
        def shuffled(targets: str) -> str:
            parts = targets.split(", ")
            random.shuffle(parts)
            return ", ".join(parts)

        others = {name: shuffled(targets) for name, targets in aliases.items()}
        first = expand(address, _directory(aliases, f, g))
        second = expand(address, _directory(others, shuffled(f), shuffled(g)))
        self.assertEqual(_who(first), _who(second))


def _who(plan: Plan) -> dict[object, Address | None]:
    return {place(one.address, one.transport, one.target): one.sender for one in plan.recipients}

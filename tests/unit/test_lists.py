"""List headers and the rules of posting."""

from __future__ import annotations

import email
import email.policy
import time
import unittest
from email.header import decode_header, make_header

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core import lists
from twisted_mta.core.address import Address
from twisted_mta.core.lists import (
    Distribute,
    Refuse,
    ToOwner,
    bounce_address,
    bounced_member,
    judge,
    list_fields,
    list_id,
    member_bounce_address,
)
from twisted_mta.core.message import fields
from twisted_mta.testing.directory import make_list

TEAM = make_list("team@example.test", ["alice@example.test"], "bob@example.test", description="The team")
ALICE = Address.parse("alice@example.test")
LOCAL = st.from_regex(r"[A-Za-z0-9+=_-]{1,12}(\.[A-Za-z0-9+=-]{1,6})?", fullmatch=True)


class MemberBounceTests(unittest.TestCase):
    """Variable envelope return paths."""

    def test_there(self) -> None:
        member = Address.parse("carol+x=y@example.net")
        found = member_bounce_address(TEAM.address, member)
        self.assertEqual(str(found), "team-bounces+carol+x=y=example.net@example.test")
        self.assertEqual(bounced_member(found), (bounce_address(TEAM.address), member))

    @given(LOCAL, st.sampled_from(["example.net", "x-y.example.org"]))
    def test_there_and_back(self, local: str, domain: str) -> None:
        found = member_bounce_address(TEAM.address, Address(local, domain))
        self.assertEqual(bounced_member(found), (bounce_address(TEAM.address), Address(local, domain)))

    def test_those_who_do_not_fit_get_the_plain_one(self) -> None:
        for member in (
            Address("x" * 64, "example.net"),
            Address("ö", "example.net"),
            Address("o", "exämple.net"),
            Address("two words", "example.net"),
            Address("x", "[192.0.2.1]"),
        ):
            self.assertEqual(member_bounce_address(TEAM.address, member), bounce_address(TEAM.address))

    def test_what_is_none(self) -> None:
        for local in (
            "team-bounces",
            "team-bounces+",
            "team-bounces+x",
            "team-bounces+=x",
            "team-bounces+x=",
            "-bounces+x=y",
        ):
            self.assertIsNone(bounced_member(Address(local, "example.test")), local)


def parsed(header: bytes) -> dict[str, str]:
    """Name to unfolded value; fails on a field that stands twice."""
    found: dict[str, str] = {}
    for field in fields(header):
        assert field.key.decode() not in found
        found[field.key.decode()] = field.value.decode()
    return found


class FieldTests(unittest.TestCase):
    def test_all_of_them(self) -> None:
        self.assertEqual(
            list_fields(TEAM),
            b"Delivered-To: team@example.test\r\n"
            b'List-Id: "The team"\r\n <team.example.test>\r\n'
            b"List-Post: <mailto:team@example.test>\r\n"
            b"List-Owner: <mailto:team-owner@example.test>\r\n"
            b"List-Unsubscribe: <mailto:team-request@example.test?subject=unsubscribe>\r\n"
            b"Precedence: list\r\n",
        )

    def test_another_lists_fields_stay_alone(self) -> None:
        present = frozenset({b"list-id", b"list-post", b"precedence", b"list-owner"})
        self.assertEqual(list(parsed(list_fields(TEAM, present))), ["delivered-to", "list-unsubscribe"])

    def test_without_a_description(self) -> None:
        bare = make_list("team@example.test")
        self.assertEqual(parsed(list_fields(bare))["list-id"], "<team.example.test>")

    def test_description_with_quotes(self) -> None:
        quoted = make_list("team@example.test", description='the "best" \\o/')
        self.assertEqual(parsed(list_fields(quoted))["list-id"], r'"the \"best\" \\o/" <team.example.test>')

    def test_description_can_not_add_a_field(self) -> None:
        evil = make_list("team@example.test", description="x\r\nBcc: eve@example.org\x85\u2028y")
        self.assertEqual(list(parsed(list_fields(evil))), list(parsed(list_fields(TEAM))))
        self.assertNotIn(b"\r\nBcc", list_fields(evil))

    def test_characters_that_a_url_escapes(self) -> None:
        odd = make_list('"a%b?c&d"@example.test')
        self.assertEqual(parsed(list_fields(odd))["list-post"], "<mailto:a%25b%3Fc%26d@example.test>")

    def test_international_domain(self) -> None:
        international = make_list("team@bücher.example")
        found = parsed(list_fields(international))
        self.assertEqual(found["list-id"], "<team.xn--bcher-kva.example>")
        self.assertEqual(found["list-post"], "<mailto:team@xn--bcher-kva.example>")

    def test_long_description_in_other_than_ascii(self) -> None:
        text = "Грубая сила €" * 20
        header = list_fields(make_list("team@example.test", description=text))
        words = parsed(header)["list-id"].rpartition("<")[0].split()
        self.assertGreater(len(words), 5)
        self.assertEqual(str(make_header(decode_header(" ".join(words)))), text[: lists.MAX_DESCRIPTION])

    @given(st.text(max_size=300))
    @settings(max_examples=100)
    def test_any_description_can_be_read_back(self, text: str) -> None:
        header = list_fields(make_list("team@example.test", description=text))
        self.assertLessEqual(max(len(line) for line in header.split(b"\r\n")), 2 * lists.MAX_DESCRIPTION + 15)
        self.assertEqual(list(parsed(header)), list(parsed(list_fields(TEAM))))
        raw = parsed(header)["list-id"]
        phrase = raw.rpartition("<")[0].strip()
        if phrase.startswith("=?"):
            for word in phrase.split():
                self.assertLessEqual(len(word), 75)  # RFC 2047 §2
            read = str(make_header(decode_header(phrase)))
        else:
            read = (
                email.policy.default.header_factory("To", f"{phrase} <a@b.c>").addresses[0].display_name
                if phrase
                else ""
            )
        expected = lists._CONTROL.sub(" ", text).strip()[: lists.MAX_DESCRIPTION]
        self.assertEqual(read.split(), expected.split())


class AddressTests(unittest.TestCase):
    def test_addresses_beside_the_posting_address(self) -> None:
        self.assertIn(lists.bounce_address(TEAM.address), lists.owner_addresses(TEAM.address))
        self.assertEqual(
            [str(one) for one in lists.owner_addresses(TEAM.address)],
            ["team-owner@example.test", "team-bounces@example.test", "team-request@example.test"],
        )


class ListIdTests(unittest.TestCase):
    def test_only_what_an_identifier_may_have(self) -> None:
        self.assertEqual(list_id(Address("a team!", "example.test")), "a-team!.example.test")
        self.assertEqual(list_id(Address(".x..y.", "[192.0.2.1]")), "x.y.-192.0.2.1-")
        self.assertEqual(list_id(Address("x", "a\u0640\u0300.test" + "é" * 80)).isascii(), True)

    def test_addresses_that_are_too_long(self) -> None:
        self.assertEqual(lists.check_address(Address("x" * 56, "example.test")), "")
        self.assertIn("too long", lists.check_address(Address("x" * 57, "example.test")))
        self.assertIn("List-Id", lists.check_address(Address("x" * 50, ".".join(["y" * 50] * 5))))


class JudgeTests(unittest.TestCase):
    def judge(self, header: bytes, sender: Address | None = ALICE, **options: bool) -> object:
        team = make_list("team@example.test", **options)
        return judge(team, sender, header + b"\r\n", frozenset({"alice@example.test"}))

    def test_distribute_knows_what_is_there(self) -> None:
        self.assertEqual(
            self.judge(b"Subject: x\r\nLIST-POST: <mailto:other@example.org>\r\n"),
            Distribute(frozenset({b"subject", b"list-post"})),
        )

    def test_own_post_comes_back(self) -> None:
        for header in (
            b"List-Id: The team <TEAM.example.test>\r\n",
            b"List-Id: <team.\r\n example.test>\r\n",
            b"List-Id: <other.example.org>\r\nList-Id: <team.example.test>\r\n",
            b"Delivered-To: Team@example.test\r\n",
        ):
            verdict = self.judge(header)
            assert isinstance(verdict, Refuse), header
            self.assertEqual((verdict.reply.code, verdict.reply.enhanced), (554, "5.4.6"))

    def test_what_only_looks_like_a_loop(self) -> None:
        for header in (
            b"List-Id: <team.example.test.org>\r\n",
            b"List-Id: team.example.test <other.example.test>\r\n",
            b"List-Id: team.example.test\r\n",
            b'List-Id: "<team.example.test>" <other.example.test>\r\n',
            b"Delivered-To: alice@example.test\r\n",
            b"X-List-Id: <team.example.test>\r\n",
        ):
            self.assertIsInstance(self.judge(header), Distribute, header)

    def test_loop_is_told_of_a_list_with_other_than_ascii(self) -> None:
        team = make_list("Größe@example.test")
        verdict = judge(team, ALICE, lists.delivered_to(team), frozenset())
        self.assertIsInstance(verdict, Refuse)

    def test_answers_of_programs_go_to_the_owner(self) -> None:
        for value in (
            b"auto-replied",
            b"(why) auto-notified",
            b"x-mine",
            b"",
            b"\xff",
            b"((",
        ):
            self.assertIsInstance(self.judge(b"Auto-Submitted: " + value + b"\r\n"), ToOwner, value)

    def test_people_and_programs_that_write_of_themselves(self) -> None:
        for value in (b"no", b"NO", b" no (really)", b"(c) no; owner=x", b"Auto-Generated; x=y"):
            self.assertIsInstance(self.judge(b"Auto-Submitted: " + value + b"\r\n"), Distribute, value)

    def test_null_sender_writes_to_the_owner_even_where_only_members_may_post(self) -> None:
        self.assertIsInstance(self.judge(b"", None, members_only=True), ToOwner)

    def test_members_only(self) -> None:
        self.assertIsInstance(
            self.judge(b"", Address("ALICE", "example.test"), members_only=True), Distribute
        )
        verdict = self.judge(b"", Address("eve", "example.org"), members_only=True)
        assert isinstance(verdict, Refuse)
        self.assertEqual(
            str(verdict.reply),
            "550 5.7.2 only members may post to team@example.test; write to team-owner@example.test to become one",
        )

    def test_hostile_header_costs_no_quadratic_time(self) -> None:
        size = 256 << 10
        start = time.process_time()
        for header in (
            b"a" * size,
            b"a:" * (size // 2),
            b"List-Id:" + b"<" * size,
            b"Auto-Submitted:" + b"(" * size,
        ):
            self.judge(header)
        self.assertLess(time.process_time() - start, 5)

    @given(st.binary(max_size=300))
    @settings(max_examples=100)
    def test_any_header_gets_a_verdict(self, header: bytes) -> None:
        self.assertIsInstance(
            self.judge(b"List-Id:" + header + b"\r\nAuto-Submitted:" + header), Distribute | ToOwner | Refuse
        )

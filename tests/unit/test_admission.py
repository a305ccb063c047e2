"""core.admission: connections at a time and in a minute, by address, by network and by service."""

from __future__ import annotations

import unittest
from collections import Counter
from ipaddress import ip_network
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core import admission
from twisted_mta.core.admission import Admission, Bounds


class AdmissionTests(unittest.TestCase):
    def setUp(self) -> None:
        self.now = 1000.0

    def admission(self, **bounds: int) -> Admission:
        return Admission(Bounds(**bounds), lambda: self.now)

    def let_in(self, counted: Admission, *hosts: str) -> list[bool]:
        return [not counted.enter(host) for host in hosts]

    def test_total(self) -> None:
        counted = self.admission(total=2)
        self.assertEqual(
            self.let_in(counted, "192.0.2.1", "2001:db8::1", "198.51.100.1"), [True, True, False]
        )
        counted.leave("192.0.2.1")
        self.assertEqual(counted.enter("198.51.100.1"), "")
        self.assertEqual(counted.enter(""), "2 connections are open (limits.connections)")

    def test_per_address(self) -> None:
        counted = self.admission(per_address=1)
        self.assertEqual(self.let_in(counted, "192.0.2.1", "192.0.2.1", "192.0.2.2"), [True, False, True])
        self.assertIn("connections_per_address", counted.enter("192.0.2.1"))
        counted.leave("192.0.2.1")
        self.assertEqual(counted.enter("192.0.2.1"), "")

    def test_one_address_in_several_spellings(self) -> None:
        counted = self.admission(per_address=1)
        self.assertEqual(self.let_in(counted, "192.0.2.1", "::ffff:192.0.2.1"), [True, False])
        self.assertEqual(self.let_in(counted, "fe80::1%eth0", "fe80:0::1"), [True, False])

    def test_per_network(self) -> None:
        counted = self.admission(per_network=2)
        self.assertEqual(
            self.let_in(counted, "192.0.2.1", "192.0.2.2", "192.0.2.255", "192.0.3.1"),
            [True, True, False, True],
        )
        self.assertIn("connections_per_network", counted.enter("192.0.2.9"))
        self.assertEqual(
            self.let_in(counted, "2001:db8::1", "2001:db8::ffff:0:0:1", "2001:db8::2", "2001:db8:0:1::1"),
            [True, True, False, True],
        )

    def test_the_exempt_count_in_all_only(self) -> None:
        exempt = (ip_network("192.0.2.0/25"), ip_network("2001:db8::/48"))
        counted = Admission(
            Bounds(total=7, per_address=1, per_network=1, rate=1, exempt=exempt), lambda: self.now
        )
        trusted = ("192.0.2.1", "192.0.2.1", "::ffff:192.0.2.2", "2001:db8::1", "2001:db8::1")
        hosts = [counted.counted(host) for host in (*trusted, "192.0.2.200", "192.0.2.201", "", "192.0.3.1")]
        self.assertEqual(hosts, ["", "", "", "", "", "192.0.2.200", "192.0.2.201", "", "192.0.3.1"])
        # Those of the same network who are not exempt are counted without them.
        self.assertEqual(self.let_in(counted, *hosts), [True] * 6 + [False, True, False])
        self.assertEqual(counted.total, 7)

    def test_unix_sockets_count_in_all_only(self) -> None:
        counted = self.admission(per_address=1, per_network=1, rate=1, total=3)
        self.assertEqual(self.let_in(counted, "", "", "", ""), [True, True, True, False])
        counted.leave("")
        self.assertEqual(counted.enter(""), "")

    def test_rate(self) -> None:
        counted = self.admission(rate=3)
        self.assertEqual(self.let_in(counted, *["192.0.2.1"] * 5), [True] * 3 + [False] * 2)
        self.assertIn("more than 3 connections in a minute", counted.enter("192.0.2.1"))
        self.assertEqual(self.let_in(counted, "192.0.2.2"), [True], "others are not concerned")
        self.now += 20
        self.assertEqual(self.let_in(counted, *["192.0.2.1"] * 2), [True, False])
        self.now += 600
        self.assertEqual(self.let_in(counted, *["192.0.2.1"] * 4), [True] * 3 + [False])

    def test_rate_of_an_ipv6_network(self) -> None:
        counted = self.admission(rate=2)
        self.assertEqual(self.let_in(counted, *(f"2001:db8::{n}" for n in range(3))), [True, True, False])

    def test_who_keeps_to_the_rate_is_always_let_in(self) -> None:
        for rate in (1, 7, 60, 1000):
            counted = self.admission(rate=rate)
            for _ in range(200):
                self.assertEqual(counted.enter("192.0.2.1"), "")
                counted.leave("192.0.2.1")
                self.now += 60 / rate

    def test_a_clock_that_is_set_back(self) -> None:
        counted = self.admission(rate=2)
        self.assertEqual(self.let_in(counted, *["192.0.2.1"] * 3), [True, True, False])
        self.now -= 3600
        self.assertEqual(self.let_in(counted, "192.0.2.1"), [False])
        self.now += 60
        self.assertEqual(self.let_in(counted, "192.0.2.1"), [True])

    def test_the_table_is_bounded(self) -> None:
        counted = self.admission(rate=1, per_network=1000)
        with mock.patch.object(admission, "MAX_CLIENTS", 3):
            self.assertTrue(all(self.let_in(counted, *(f"192.0.2.{n}" for n in range(100)))))
            self.assertEqual(len(counted._whole_at), 3)
            self.assertEqual(self.let_in(counted, "192.0.2.98", "192.0.2.1"), [False, True])
            self.assertIn("192.0.2.98", counted._whole_at, "whoever came last is remembered")

    @settings(max_examples=60)
    @given(st.lists(st.tuples(st.booleans(), st.sampled_from(["", "192.0.2.1", "192.0.2.2", "2001:db8::1"]))))
    def test_it_forgets_who_left(self, steps: list[tuple[bool, str]]) -> None:
        counted = self.admission(total=4, per_address=2, per_network=3)
        inside: Counter[str] = Counter()
        for enters, host in steps:
            if enters:
                inside[host] += not counted.enter(host)
            elif inside[host]:
                inside[host] -= 1
                counted.leave(host)
            self.assertLessEqual(inside.total(), 4)
            self.assertLessEqual(inside["192.0.2.1"], 2)
            self.assertLessEqual(inside["192.0.2.1"] + inside["192.0.2.2"], 3)
        for host in inside.elements():
            counted.leave(host)
        self.assertEqual((counted.total, dict(counted._open)), (0, {}))


class ShareTests(unittest.TestCase):
    """What each service is sure of, however many connections the others have."""

    def admission(self, total: int, **sure: int) -> Admission:
        return Admission(Bounds(total=total, per_address=1000, sure=sure), lambda: 0.0)

    def fill(self, counted: Admission, service: str, host: str = "192.0.2.1") -> int:
        """How many more that service can have."""
        count = 0
        while not counted.enter(host, service):
            count += 1
        return count

    def test_a_flood_leaves_the_others_their_share(self) -> None:
        counted = self.admission(10, mx=2, imap=2, submission=1)
        self.assertEqual(self.fill(counted, "mx"), 7)
        self.assertEqual(
            counted.enter("192.0.2.9", "mx"),
            "7 connections are open, 3 are kept for other services (limits.connections_share)",
        )
        self.assertEqual(self.fill(counted, "imap"), 2)
        self.assertEqual(self.fill(counted, "submission"), 1)
        self.assertIn("10 connections are open", counted.enter("192.0.2.9", "imap"))
        self.assertEqual((counted.total, counted.open("mx"), counted.open("pop3")), (10, 7, 0))
        counted.leave("192.0.2.1", "imap")
        self.assertEqual((self.fill(counted, "mx"), self.fill(counted, "imap")), (0, 1))

    def test_what_others_do_not_lack_is_free(self) -> None:
        counted = self.admission(10, mx=2, imap=2)
        for _ in range(4):  # more than its share
            self.assertEqual(counted.enter("192.0.2.1", "imap"), "")
        self.assertEqual(self.fill(counted, "mx"), 6)
        counted.leave("192.0.2.1", "imap")
        self.assertEqual(self.fill(counted, "mx"), 1)

    def test_the_exempt_and_those_without_an_address_are_counted_with_their_service(self) -> None:
        counted = self.admission(4, mx=1, lmtp=1)
        self.assertEqual(self.fill(counted, "lmtp", ""), 3)
        self.assertEqual(counted.refusal("192.0.2.1", "mx"), "")

    def test_who_belongs_to_no_service_is_sure_of_nothing(self) -> None:
        counted = self.admission(4, mx=2)
        self.assertEqual(self.fill(counted, ""), 2)

    def test_the_other_limits_hold_within_a_share(self) -> None:
        counted = Admission(Bounds(total=9, per_address=1, sure={"imap": 5}), lambda: 0.0)
        self.assertEqual(self.fill(counted, "imap"), 1)

    def test_a_share_is_given_though_the_total_is_exceeded(self) -> None:
        """By other processes that let in the last ones at the same moment, or since a reload has lowered it."""
        counted = self.admission(10, mx=2, imap=2)
        counted.hear(8, {"mx": 8}, {})
        self.assertIn("kept for other services", counted.refusal("192.0.2.1", "mx"))
        counted.hear(14, {"mx": 13, "imap": 1}, {})
        self.assertEqual(self.fill(counted, "imap"), 1)  # one it has elsewhere
        counted.hear(0, {"mx": 0, "imap": 0}, {})
        self.assertEqual(self.fill(counted, "mx"), 8)

    @settings(max_examples=100)
    @given(st.lists(st.tuples(st.booleans(), st.sampled_from(["mx", "imap", "pop3", ""])), max_size=60))
    def test_everybody_below_the_share_is_let_in_and_the_total_holds(
        self, steps: list[tuple[bool, str]]
    ) -> None:
        sure = {"mx": 3, "imap": 2, "pop3": 4}
        counted = self.admission(12, **sure)
        inside: Counter[str] = Counter()
        for enters, service in steps:
            if enters:
                refusal = counted.enter("192.0.2.1", service)
                self.assertFalse(refusal and inside[service] < sure.get(service, 0))
                inside[service] += not refusal
            elif inside[service]:
                inside[service] -= 1
                counted.leave("192.0.2.1", service)
            self.assertLessEqual(inside.total(), 12)

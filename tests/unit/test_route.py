"""Tests for twisted_mta.core.route."""

from __future__ import annotations

import random
import unittest

import attrs

from twisted_mta.core.route import (
    MAX_TARGETS,
    Routing,
    Target,
    Unroutable,
    by_mx,
    dns_name,
    literal_target,
    lookup_failed,
    no_address,
    no_such_domain,
)


@attrs.frozen
class Hop:
    host: str
    port: int = 25
    mx: bool = False


def hosts(*answer: tuple[int, str], own: tuple[str, ...] = ("me.test",), seed: int = 1) -> list[str]:
    return [target.host for target in by_mx("x.test", answer, own, 25, random.Random(seed))]


class RoutingTests(unittest.TestCase):
    routing = Routing(
        smarthost=Hop("smart.test", 587),
        routes={
            "x.test": Hop("exact.test"),
            ".x.test": Hop("wild.test", mx=True),
            ".b.x.test": Hop("deeper.test", 2525),
            "[192.0.2.1]": Hop("literal.test"),
        },
    )

    def test_destinations(self) -> None:
        for domain, expected in (
            ("x.test", "exact.test 25"),
            ("a.x.test", "mx wild.test 25"),
            ("a.b.x.test", "deeper.test 2525"),
            ("b.x.test", "mx wild.test 25"),
            ("ax.test", "smart.test 587"),
            ("[192.0.2.1]", "literal.test 25"),
            ("[192.0.2.2]", "smart.test 587"),
            ("", "smart.test 587"),
        ):
            self.assertEqual(self.routing.destination(domain), expected)

    def test_by_mx(self) -> None:
        self.assertEqual(Routing().destination("x.test"), "x.test")
        self.assertIsNone(Routing().next_hop("x.test"))


class MxTests(unittest.TestCase):
    def failure(self, *answer: tuple[int, str]) -> str:
        with self.assertRaises(Unroutable) as caught:
            hosts(*answer)
        return str(caught.exception.reply)

    def test_order_of_preference(self) -> None:
        self.assertEqual(hosts((20, "b"), (10, "a"), (30, "c")), ["a", "b", "c"])

    def test_equals_share_the_load(self) -> None:
        orders = {tuple(hosts((5, "a"), (5, "b"), (9, "c"), seed=seed)) for seed in range(30)}
        self.assertEqual(orders, {("a", "b", "c"), ("b", "a", "c")})

    def test_implicit_mx(self) -> None:
        self.assertEqual(by_mx("x.test", (), (), 25, random.Random(1)), [Target("x.test", 25)])

    def test_null_mx(self) -> None:
        self.assertEqual(self.failure((0, "")), "556 5.1.10 x.test accepts no mail (it has a null MX)")
        self.assertEqual(self.failure((0, ".")), "556 5.1.10 x.test accepts no mail (it has a null MX)")

    def test_null_mx_among_others_is_passed_over(self) -> None:
        self.assertEqual(hosts((0, ""), (10, "a")), ["a"])

    def test_our_own_name_cuts_the_list_there(self) -> None:
        self.assertEqual(hosts((5, "a"), (10, "b"), (10, "me.test"), (20, "c")), ["a"])

    def test_we_are_the_best_mx(self) -> None:
        self.assertEqual(
            self.failure((10, "me.test"), (20, "a")),
            "550 5.4.6 the best MX of x.test is this host, which does not accept its mail",
        )

    def test_a_host_named_twice_is_tried_once_and_the_number_is_bounded(self) -> None:
        self.assertEqual(hosts((5, "a"), (7, "a")), ["a"])
        self.assertEqual(len(hosts(*((5, f"h{n}") for n in range(100)))), MAX_TARGETS)


class NameTests(unittest.TestCase):
    def test_literals(self) -> None:
        self.assertEqual(literal_target("[192.0.2.1]", 26), Target("192.0.2.1", 26, True))
        self.assertEqual(literal_target("[IPv6:2001:db8::1]", 25), Target("2001:db8::1", 25, True))
        self.assertIsNone(literal_target("x.test", 25))
        with self.assertRaises(Unroutable):
            literal_target("[x400:abc]", 25)

    def test_names_for_the_dns(self) -> None:
        self.assertEqual(dns_name("X.test"), "x.test")
        self.assertEqual(dns_name("bücher.test"), "xn--bcher-kva.test")
        for name in ("", "a..test", "a" * 64 + ".test", ".".join(["a" * 60] * 5), "ü" * 70 + ".test"):
            with self.subTest(name), self.assertRaises(Unroutable) as caught:
                dns_name(name)
            self.assertEqual(caught.exception.reply.enhanced, "5.1.2")

    def test_errors_of_the_dns(self) -> None:
        self.assertEqual(str(no_such_domain("x")), "550 5.1.2 the domain x does not exist")
        self.assertEqual(str(lookup_failed("x", "timeout")), "451 4.4.3 can't look up x: timeout")
        self.assertEqual(str(no_address("x", ["x"])), "550 5.4.4 x has neither MX nor address records")
        self.assertEqual(
            str(no_address("x", ["a", "b"])), "550 5.4.4 no mail host of x has an address (a, b)"
        )

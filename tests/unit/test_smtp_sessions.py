"""Tests for twisted_mta.delivery.sessions, through SmtpDelivery on a simulated network."""

from __future__ import annotations

from twisted_mta.config.schema import Relay, RelayDomain, RelaySource, Route
from twisted_mta.core.address import Address
from twisted_mta.core.queue import TryLater
from twisted_mta.delivery.families import STRIKES
from twisted_mta.delivery.sessions import STAGGER
from twisted_mta.delivery.smtp import MAX_TIME
from twisted_mta.testing.smtp_peer import SILENCE, SmtpPeer

from .test_smtp_delivery import DeliveryCase, brief

V4, V6, OTHER = "192.0.2.10", "2001:db8::10", "192.0.2.11"


class AddressesCase(DeliveryCase):
    """One host with both families, and one behind it."""

    def setUp(self) -> None:
        super().setUp()
        self.resolver.data["mx"]["d.test"] = [(10, "mx.d.test"), (20, "backup.d.test")]
        self.resolver.data["addresses"].update({"mx.d.test": [V6, V4], "backup.d.test": [OTHER]})
        self.v4, self.v6, self.backup = SmtpPeer(), SmtpPeer(), SmtpPeer()
        self.network.servers |= {(V4, 25): self.v4, (V6, 25): self.v6, (OTHER, 25): self.backup}
        self.peers = {"v4": self.v4, "v6": self.v6, "backup": self.backup}

    def taken(self) -> str:
        """Who got the message that was sent last."""
        (name,) = [name for name, peer in self.peers.items() if peer.messages]
        self.peers[name].messages.clear()
        return name

    def tried(self) -> list[str]:
        found = [address for address, _ in self.network.attempts]
        self.network.attempts.clear()
        return found


class RacingTests(AddressesCase):
    def test_the_preferred_family_alone_where_it_answers(self) -> None:
        self.deliver("b@d.test")
        self.assertEqual((self.taken(), self.tried()), ("v4", [V4]))
        self.delivery.reconfigure(Relay(families=("ipv6", "ipv4")))
        self.deliver("b@d.test")
        self.assertEqual((self.taken(), self.tried()), ("v6", [V6]))

    def test_a_broken_family_costs_a_moment(self) -> None:
        self.network.unreachable = {V4}
        started = self.start("b@d.test")
        self.network.advance(STAGGER)
        self.network.advance(0)
        self.assertEqual(brief(self.successResultOf(started)[0]), f"Delivered 250 2.0.0 mx.d.test [{V6}]")
        self.assertEqual(self.tried(), [V4, V6])

    def test_and_after_some_times_nothing(self) -> None:
        self.delivery.reconfigure(Relay(keep_open=0))
        self.network.unreachable = {V4}
        for _ in range(STRIKES):
            self.start("b@d.test")
            self.network.advance(STAGGER)
            self.network.advance(0)
        self.tried()
        self.deliver("b@d.test")
        self.assertEqual(self.tried(), [V6])

    def test_a_family_that_is_refused_is_not_broken(self) -> None:
        self.delivery.reconfigure(Relay(keep_open=0))
        del self.network.servers[V4, 25]
        for _ in range(STRIKES + 1):
            self.deliver("b@d.test")
            self.assertEqual(self.tried(), [V4, V6])

    def test_both_slow_and_the_first_wins(self) -> None:
        self.network.slow = {V4: 1.0, V6: 0.9}
        started = self.start("b@d.test")
        self.network.pump([0.25] * 4 + [0.0])
        self.successResultOf(started)
        self.assertEqual((self.taken(), self.v6.connections), ("v4", 0))

    def test_both_connected_at_once(self) -> None:
        self.network.slow = {V4: 0.5, V6: 0.25}
        started = self.start("b@d.test")
        self.network.pump([0.25, 0.25, 0.0, 0.0])
        self.successResultOf(started)
        self.taken()
        self.assertEqual(sum(len(peer.sessions) for peer in self.peers.values()), 1)

    def test_a_refused_session_leads_to_the_next_address_of_the_host(self) -> None:
        self.v4.replies = {"greeting": "421 4.3.2 busy"}
        self.deliver("b@d.test")
        self.assertEqual((self.taken(), self.tried()), ("v6", [V4, V6]))

    def test_an_address_that_lost_the_race_is_tried_when_the_winner_fails(self) -> None:
        self.network.slow = {V4: 1.0}
        self.v6.replies = {"greeting": "554 5.7.1 no"}
        started = self.start("b@d.test")
        self.network.pump([0.25] * 6)
        self.successResultOf(started)
        self.assertEqual((self.taken(), self.tried()), ("v4", [V4, V6, V4]))

    def test_a_broken_session_leads_to_the_next_address_of_the_host(self) -> None:
        self.v4.replies = {"MAIL": "421 4.3.2 bye"}
        self.deliver("b@d.test")
        self.assertEqual((self.taken(), self.tried()), ("v6", [V4, V6]))

    def test_less_preferred_hosts_are_not_raced(self) -> None:
        self.network.unreachable = {V4, V6}
        started = self.start("b@d.test")
        self.network.pump([0.25] * 119)
        self.assertEqual(self.tried(), [V4, V6])
        self.network.pump([0.25] * 2 + [0.0])
        self.successResultOf(started)
        self.assertEqual(self.taken(), "backup")

    def test_families_that_are_not_used(self) -> None:
        self.delivery.reconfigure(Relay(families=("ipv6",)))
        self.network.servers.clear()
        self.assertEqual(self.summary("b@d.test"), [f"TryLater 451 4.4.1 mx.d.test [{V6}]"])
        self.assertEqual(self.tried(), [V6])

    def test_time_for_connecting(self) -> None:
        self.delivery.reconfigure(Relay(overrides=(RelayDomain(names=("d.test",), connect_timeout=5.0),)))
        self.network.unreachable = {V4, V6, OTHER}
        started = self.start("b@d.test")
        self.network.pump([0.25] * 40)
        self.assertNoResult(started)
        self.network.pump([0.25] * 2)
        self.assertEqual(
            brief(self.successResultOf(started)[0]), f"TryLater 451 4.4.1 backup.d.test [{OTHER}]"
        )

    def test_time_for_all_hosts_together(self) -> None:
        self.resolver.data["addresses"]["mx.d.test"] = [f"192.0.2.{n}" for n in range(100, 110)]
        silent = SmtpPeer(replies={"greeting": SILENCE})
        for n in range(100, 110):
            self.network.servers[f"192.0.2.{n}", 25] = silent
        started = self.start("b@d.test")
        seconds = 0
        while not started.called:
            self.network.advance(10)
            seconds += 10
        self.assertIsInstance(self.successResultOf(started)[0], TryLater)
        self.assertEqual((seconds, silent.connections), (MAX_TIME, MAX_TIME / 300))

    def test_refusals_are_not_final_where_the_time_was_too_short_for_the_rest(self) -> None:
        self.v4.replies = self.v6.replies = {"greeting": "554 5.7.1 no"}
        self.resolver.data["mx"]["d.test"].append((30, "last.d.test"))
        self.resolver.data["addresses"]["last.d.test"] = ["192.0.2.12", "192.0.2.13"]
        self.backup.replies = {"greeting": SILENCE}
        self.network.servers["192.0.2.12", 25] = self.network.servers["192.0.2.13", 25] = SmtpPeer(
            replies={"greeting": SILENCE}
        )
        started = self.start("b@d.test")
        self.network.pump([10.0] * int(MAX_TIME / 10 + 1))
        self.assertIsInstance(self.successResultOf(started)[0], TryLater)


class SourceTests(AddressesCase):
    """[[relay.source]], and `bind` of the other tables."""

    settings = Relay(
        bind=("192.0.2.200",),
        sources=(
            RelaySource(senders=("one.test", ".one.test"), bind=("192.0.2.201",), helo="mail.one.test"),
            RelaySource(senders=("two.test",), bind=("2001:db8::202",)),
            RelaySource(senders=("three.test",), helo="mail.three.test"),
        ),
        overrides=(RelayDomain(names=("x.test",), bind=("192.0.2.203",)),),
    )

    def send(self, sender: str, to: str = "b@d.test") -> tuple[str, str]:
        """Where the connection came from, and what it said."""
        address = Address.parse(sender) if sender else None
        self.deliver(to, sender=address)
        for peer in (*self.peers.values(), self.peer):
            if peer.messages:
                peer.messages.clear()
                hello = next(line for line in reversed(peer.commands) if line.startswith("EHLO"))
                return self.network.sources[-1], hello.partition(" ")[2]
        raise AssertionError("it was not delivered")

    def test_by_the_sender(self) -> None:
        self.assertEqual(self.send("a@one.test"), ("192.0.2.201", "mail.one.test"))
        self.assertEqual(self.send("a@sub.one.test"), ("192.0.2.201", "mail.one.test"))
        self.assertEqual(self.send("a@two.test"), ("2001:db8::202", "me.test"))
        self.assertEqual(self.send("a@three.test"), ("192.0.2.200", "mail.three.test"))
        self.assertEqual(self.send("a@four.test"), ("192.0.2.200", "me.test"))

    def test_bounces_go_out_as_everything_else(self) -> None:
        self.assertEqual(self.send(""), ("192.0.2.200", "me.test"))

    def test_by_the_destination(self) -> None:
        self.assertEqual(self.send("a@one.test", "b@x.test"), ("192.0.2.203", "mail.one.test"))

    def test_no_session_serves_two_of_them(self) -> None:
        self.send("a@one.test")
        self.send("a@four.test")
        self.send("a@one.test")
        self.assertEqual(self.v4.connections, 2)

    def test_a_family_without_an_address_to_send_from_goes_last(self) -> None:
        self.network.unreachable = {V6}
        started = self.start("b@d.test", sender=Address.parse("a@two.test"))
        self.network.pump([STAGGER, 0.0])
        self.successResultOf(started)
        self.assertEqual((self.network.sources, self.tried()), (["2001:db8::202", ""], [V6, V4]))


class MannerTests(AddressesCase):
    """[[relay.domain]]"""

    settings = Relay(
        max_messages=3,
        routes={"r.test": Route(host="mx.d.test"), "s.test": Route(host="mx.d.test")},
        overrides=(
            RelayDomain(names=("d.test",), max_messages=1),
            RelayDomain(names=("mx.d.test",), max_recipients=1),
            RelayDomain(names=("s.test",), max_messages=2),
        ),
    )

    def test_messages_over_one_connection(self) -> None:
        for _ in range(4):
            self.deliver("b@d.test")
        self.assertEqual(self.v4.connections, 4)
        for _ in range(4):
            self.deliver("b@x.test")
        self.assertEqual(self.peer.connections, 2)

    def test_of_a_next_hop(self) -> None:
        self.deliver("a@r.test", "b@r.test")
        self.assertEqual([one.recipients for one in self.v4.messages], [["a@r.test"], ["b@r.test"]])

    def test_of_a_domain_before_that_of_its_next_hop(self) -> None:
        self.deliver("a@s.test", "b@s.test")
        self.deliver("a@r.test")
        self.assertEqual([len(one.recipients) for one in self.v4.messages], [2, 1])
        self.assertEqual(self.v4.connections, 2)


class LimitsTests(AddressesCase):
    """RFC 9422: what a host says that it takes."""

    settings = Relay(smarthost=Route(host="mx.d.test"))

    def limits(self, text: str) -> None:
        self.v4.extensions.append(f"LIMITS {text}")

    def recipients(self) -> list[list[str]]:
        return [one.recipients for one in self.v4.messages]

    def test_recipients_in_a_transaction(self) -> None:
        self.limits("RCPTMAX=2")
        self.deliver("a@d.test", "b@d.test", "c@d.test")
        self.assertEqual(self.recipients(), [["a@d.test", "b@d.test"], ["c@d.test"]])
        self.assertEqual(self.v4.connections, 1)

    def test_messages_in_a_session(self) -> None:
        self.limits("MAILMAX=2 RCPTMAX=1")
        outcomes = self.summary(*(f"{name}@d.test" for name in "abcde"))
        self.assertEqual(set(outcomes), {f"Delivered 250 2.0.0 mx.d.test [{V4}]"})
        self.assertEqual((len(self.v4.messages), self.v4.connections), (5, 3))
        self.deliver("f@d.test")
        self.deliver("g@d.test")
        self.assertEqual((len(self.v4.messages), self.v4.connections), (7, 4))

    def test_domains_in_a_session(self) -> None:
        self.limits("RCPTDOMAINMAX=1")
        self.deliver("a@d.test", "b@e.test", "c@d.test", "d@e.test")
        self.assertEqual(self.recipients(), [["a@d.test", "c@d.test"], ["b@e.test", "d@e.test"]])
        self.assertEqual(self.v4.connections, 2)
        self.deliver("a@e.test")
        self.deliver("b@f.test")
        self.assertEqual(self.v4.connections, 3)

    def test_nonsense_is_passed_over(self) -> None:
        self.limits("RCPTMAX=x MAILMAX=-1 RCPTMAX RCPTDOMAINMAX=1234567890 WHAT=1")
        self.deliver("a@d.test", "b@e.test")
        self.assertEqual(self.recipients(), [["a@d.test", "b@e.test"]])

    def test_a_host_that_breaks_off_beside_its_limits(self) -> None:
        self.limits("MAILMAX=1 RCPTMAX=1")
        self.v4.replies = {"MAIL": ["421 4.3.2 bye"] * 3}
        self.v6.extensions.append("LIMITS MAILMAX=1 RCPTMAX=1")
        self.assertEqual(len(self.summary("a@d.test", "b@d.test")), 2)
        self.assertEqual((len(self.v4.messages), len(self.v6.messages)), (0, 2))

"""The sender rewriting scheme."""

from __future__ import annotations

import re

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.core.srs import DAY, Srs, SrsError, Ticket, parse_secrets

NOW = 20_000.5 * DAY
OURS = Srs(domain="ours.example", secrets=(b"s" * 16,), expire=21 * DAY)
BOB = Address("bob", "example.org")


class RewriteTests(SynchronousTestCase):
    def back(self, address: Address, now: float = NOW, srs: Srs = OURS) -> str:
        self.assertTrue(srs.claims(address))
        return str(srs.reverse(address, now))

    def test_there_and_back(self) -> None:
        made = OURS.rewrite(BOB, NOW)
        self.assertRegex(str(made), r"\ASRS0=[A-Z2-7]{6}=[A-Z2-7]{2}=example\.org=bob@ours\.example\Z")
        self.assertEqual(self.back(made), "bob@example.org")
        self.assertEqual(made, OURS.rewrite(BOB, NOW + 3600))
        self.assertNotEqual(made, OURS.rewrite(BOB, NOW + DAY))

    def test_local_parts_with_everything_in_them(self) -> None:
        for local in ("a=b=c", "a b@c", "bounce+x=y", 'q"', "jörg", "Bob", "srs", "SRS2=x", "caf\udce9"):
            sender = Address(local, "example.org")
            self.assertEqual(OURS.reverse(OURS.rewrite(sender, NOW), NOW), sender, local)

    def test_case_may_be_lost_on_the_way(self) -> None:
        made = OURS.rewrite(Address("Bob", "example.org"), NOW)
        self.assertEqual(self.back(made.with_local(made.local.lower())), "bob@example.org")
        self.assertEqual(self.back(made.with_local(made.local.upper())), "BOB@example.org")

    def test_what_others_rewrote(self) -> None:
        for separator in "=+-":
            theirs = Address(f"SRS0{separator}HHHH=TT=example.org=bob", "first.example")
            made = OURS.rewrite(theirs, NOW)
            self.assertRegex(
                made.local, rf"\ASRS1=\w{{6}}=first\.example={re.escape(separator)}HHHH=TT=example\.org=bob\Z"
            )
            self.assertEqual(self.back(made), str(theirs))
            # And once more: it does not grow.
            second = attrs.evolve(OURS, domain="second.example", secrets=(b"t" * 16,))
            again = second.rewrite(made, NOW)
            self.assertEqual(len(again.local), len(made.local))
            self.assertEqual(again.local[12:], made.local[12:])
            self.assertEqual(self.back(again, srs=second), str(theirs))

    def test_what_only_looks_like_it(self) -> None:
        for local in ("srs1=x", "SRS1=a=b=c", "srs1-a==b=c"):
            sender = Address(local, "example.org")
            self.assertEqual(OURS.reverse(OURS.rewrite(sender, NOW), NOW), sender)
        for other in (BOB, Address("srs", "ours.example"), Address("SRS0=a=b=c=d", "example.org")):
            self.assertFalse(OURS.claims(other))
        with self.assertRaisesRegex(SrsError, "no rewritten"):
            OURS.reverse(BOB, NOW)

    def test_a_sender_that_is_too_long_has_a_ticket(self) -> None:
        sender = Address("0100018c-" + "x" * 50, "amazonses.example")
        made = OURS.rewrite(sender, NOW, "0WkzV7Qe0a1")
        self.assertLess(len(made.local), 65)
        self.assertEqual(OURS.reverse(made, NOW), Ticket("0WkzV7Qe0a1"))
        self.assertEqual(OURS.reverse(made.with_local(made.local.lower()), NOW), Ticket("0WkzV7Qe0a1"))
        self.assertEqual(OURS.rewrite(sender, NOW), sender, "nothing would come back to what is too long")
        self.assertEqual(OURS.reverse(OURS.rewrite(BOB, NOW, "0WkzV7Qe0a1"), NOW), BOB)
        theirs = Address("SRS0=HHHH=TT=" + "x" * 50, "first.example")
        self.assertEqual(OURS.reverse(OURS.rewrite(theirs, NOW, "0Wkz"), NOW), Ticket("0Wkz"))

    def test_forged(self) -> None:
        made = OURS.rewrite(BOB, NOW)
        for local in (
            made.local.replace("=bob", "=eve"),
            made.local.replace("example.org", "example.com"),
            "SRS0=",
            "SRS0====",
            "SRS0=AAAAAA=AA=example.org=bob",
            "SRS0=\u0131\udcff=AA=example.org=bob",
            "SRS1=AAAAAA=first.example==HHHH=TT=example.org=bob",
            made.local.replace("SRS0", "SRS1"),
        ):
            address = Address(local, "ours.example")
            if OURS.claims(address):
                with self.assertRaisesRegex(SrsError, "not one that was made here", msg=local):
                    OURS.reverse(address, NOW)

    def test_expired(self) -> None:
        made = OURS.rewrite(BOB, NOW)
        self.assertEqual(self.back(made, NOW + 21 * DAY), "bob@example.org")
        for later in (22, 500, 1023):
            with self.assertRaisesRegex(SrsError, "expired"):
                OURS.reverse(made, NOW + later * DAY)

    def test_secrets_in_turn(self) -> None:
        old = OURS.rewrite(BOB, NOW)
        both = attrs.evolve(OURS, secrets=(b"n" * 16, *OURS.secrets))
        self.assertEqual(self.back(old, srs=both), "bob@example.org")
        new = both.rewrite(BOB, NOW)
        self.assertNotEqual(new, old)
        with self.assertRaises(SrsError):
            OURS.reverse(new, NOW)

    def test_secrets_are_not_shown(self) -> None:
        self.assertNotIn("ssss", repr(OURS))

    def test_what_was_no_address_is_none(self) -> None:
        made = OURS.rewrite(Address("SRS0=x=y=z", "bad domain"), NOW)
        with self.assertRaisesRegex(SrsError, "no address in it"):
            OURS.reverse(made, NOW)

    @given(
        local=st.text(min_size=1, max_size=70).filter(
            lambda text: not any(0xD800 <= ord(c) <= 0xDFFF for c in text)
        ),
        domain=st.sampled_from(["example.org", "[192.0.2.1]", "[IPv6:2001:db8::1]", "a.b"]),
        days=st.floats(0, 21),
        ticket=st.booleans(),
    )
    def test_whatever_the_sender(self, local: str, domain: str, days: float, ticket: bool) -> None:
        sender = Address(local, domain)
        made = OURS.rewrite(sender, NOW, "0Wkz" if ticket else "")
        if made == sender:
            assert not ticket
            return
        assert len(made.local.encode()) <= 64
        found = OURS.reverse(made, NOW + days * DAY)
        assert found in (sender, Ticket("0Wkz")) or local[:4].upper() in ("SRS0", "SRS1")

    @given(local=st.text(max_size=70))
    def test_whatever_comes_back(self, local: str) -> None:
        address = Address("SRS0=" + local, "ours.example")
        with self.assertRaises(SrsError):
            OURS.reverse(address, NOW)


class SecretsTests(SynchronousTestCase):
    def test_one_a_line(self) -> None:
        text = "# comment\n\n  " + "a" * 16 + "  \n" + "b" * 32 + "\n"
        self.assertEqual(parse_secrets(text), (b"a" * 16, b"b" * 32))

    def test_none_or_too_short(self) -> None:
        for text, why in (("# nothing\n", "no secret"), ("a" * 16 + "\nhunter2", "fewer than 16")):
            with self.assertRaisesRegex(ValueError, why) as caught:
                parse_secrets(text)
            self.assertNotIn("hunter2", str(caught.exception))

"""Tests for twisted_mta.core.sasl.client; whole logins are in tests/dialogs/smtp_client."""

from __future__ import annotations

import itertools
import unittest
from hashlib import pbkdf2_hmac

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core.sasl import Challenge, Lookup, Proof, SaslError, Secret
from twisted_mta.core.sasl.client import (
    MAX_ITERATIONS,
    Circumstances,
    ClientMechanism,
    Derive,
    Login,
    plain,
    scram,
    scram_plus,
    two_prompts,
)
from twisted_mta.core.sasl.scram import ScramKeys
from twisted_mta.core.sasl.scram import scram as server

FIRST = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
BINDINGS = {"tls-exporter": b"exported", "tls-server-end-point": b"certificate"}


def circumstances(bindings: dict[str, bytes] | None = None, *, plus: bool = False) -> Circumstances:
    return Circumstances(itertools.repeat(b"rOprNGfwEbeRWgbNEkqO").__next__, bindings or {}, plus)


def salted(wish: bytes | Derive) -> bytes:
    assert isinstance(wish, Derive)
    return pbkdf2_hmac("sha256", wish.password.encode(), wish.salt, wish.iterations)


class ScramTests(unittest.TestCase):
    def start(self, login: Login | None = None) -> ClientMechanism:
        mechanism = scram(login or Login("user", "pencil"), circumstances())
        self.first = next(mechanism)
        return mechanism

    def refuse(self, mechanism: ClientMechanism, answer: bytes | None) -> str:
        with self.assertRaises(SaslError) as caught:
            mechanism.send(answer)
        return str(caught.exception)

    def test_the_example_of_the_rfc(self) -> None:
        """RFC 7677 §3"""
        mechanism = self.start()
        self.assertEqual(self.first, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
        final = mechanism.send(salted(mechanism.send(FIRST)))
        self.assertEqual(
            final,
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
            b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        )
        self.assertEqual(mechanism.send(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), b"")
        with self.assertRaises(StopIteration):
            mechanism.send(None)

    def test_a_server_that_does_not_know_the_password(self) -> None:
        mechanism = self.start()
        mechanism.send(salted(mechanism.send(FIRST)))
        self.assertIn(
            "does not know", self.refuse(mechanism, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=")
        )

    def test_what_the_server_may_not_say_first(self) -> None:
        nonce, salt = b"r=rOprNGfwEbeRWgbNEkqO+", b"s=c2FsdA=="
        for answer, why in [
            (b"", "not of SCRAM"),
            (b"m=x," + FIRST, "not of SCRAM"),
            (b"e=unknown-user", "the server says: unknown-user"),
            (nonce + b"," + salt, "not of SCRAM"),
            (nonce + b",i=4096," + salt, "not of SCRAM"),
            (b"r=other," + salt + b",i=4096", "does not continue"),
            (nonce[:-1] + b"," + salt + b",i=4096", "does not continue"),
            (nonce + b",s=,i=4096", "odd length"),
            (nonce + b",s=%,i=4096", "not base64"),
            (nonce + b"," + salt + b",i=4095", "4095 iterations, not 4096 to"),
            (nonce + b"," + salt + b",i=%d" % (MAX_ITERATIONS + 1), "iterations"),
            (nonce + b"," + salt + b",i=-5000", "iterations"),
            (nonce + b"," + salt + b",i=" + b"9" * 5000, "iterations"),
            (b"x" * 9000, "too long"),
            (None, "before it could know"),
        ]:
            with self.subTest(answer=answer):
                self.assertIn(why, self.refuse(self.start(), answer))

    def test_extensions_are_ignored(self) -> None:
        self.assertIsInstance(self.start().send(FIRST + b",x=new"), Derive)

    def test_too_soon_and_too_late(self) -> None:
        mechanism = self.start()
        mechanism.send(salted(mechanism.send(FIRST)))
        self.assertIn("before it could know", self.refuse(mechanism, None))
        mechanism = self.start()
        mechanism.send(salted(mechanism.send(FIRST)))
        mechanism.send(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
        self.assertIn("more than", self.refuse(mechanism, b"and?"))

    def test_names(self) -> None:
        self.start(Login("a=b,c\u00ad", "x"))
        self.assertEqual(self.first, b"n,,n=a=3Db=2Cc,r=rOprNGfwEbeRWgbNEkqO")
        with self.assertRaises(SaslError):
            self.start(Login("a", "\x07"))

    def test_no_secret_in_a_repr(self) -> None:
        wish = self.start().send(FIRST)
        self.assertNotIn("pencil", repr(wish))
        self.assertNotIn("exported", repr(circumstances(BINDINGS)))

    @settings(max_examples=200)
    @given(st.lists(st.one_of(st.none(), st.binary(max_size=60), st.just(FIRST)), max_size=4))
    def test_nothing_else_is_raised(self, answers: list[bytes | None]) -> None:
        for make in (plain, two_prompts, scram):
            mechanism = make(Login("user", "pencil"), circumstances())
            next(mechanism)
            try:
                for answer in answers:
                    if isinstance(mechanism.send(answer), Derive):
                        mechanism.send(bytes(32))
            except (SaslError, StopIteration):
                pass


class WithTheServersSideTests(unittest.TestCase):
    """Both sides are ours, but were written apart."""

    def run_both(self, *, plus: bool, offered: bool, bindings: dict[str, bytes]) -> list[str]:
        theirs = server(plus, BINDINGS if offered else {})
        made = scram_plus if plus else scram
        ours = made(Login("alice", "secret"), circumstances(bindings, plus=offered))
        seen: list[str] = []
        next(theirs)
        said = next(ours)
        step = theirs.send(said)
        try:
            while True:
                seen.append(type(step).__name__)
                match step:
                    case Challenge(data):
                        said = ours.send(data)
                        if isinstance(said, Derive):
                            said = ours.send(salted(said))
                        step = theirs.send(said)
                    case Lookup():
                        step = theirs.send(Secret(ScramKeys.derive("secret", b"saltsalt", 4096), b"server"))
                    case Proof(_, right):
                        seen.append(str(right))
                        step = theirs.send(True)
        except StopIteration:
            with self.assertRaises(StopIteration):
                ours.send(None)
        return seen

    def test_unbound(self) -> None:
        expected = ["Lookup", "Challenge", "Proof", "True", "Challenge"]
        self.assertEqual(self.run_both(plus=False, offered=False, bindings={}), expected)

    def test_bound(self) -> None:
        expected = ["Lookup", "Challenge", "Proof", "True", "Challenge"]
        self.assertEqual(self.run_both(plus=True, offered=True, bindings=BINDINGS), expected)

    def test_another_connection(self) -> None:
        with self.assertRaises(SaslError):
            self.run_both(plus=True, offered=True, bindings={"tls-exporter": b"other"})

    def test_a_list_changed_on_the_way(self) -> None:
        with self.assertRaises(SaslError):  # RFC 5802 §6: the client says "y", the server knows better
            theirs = server(False, BINDINGS)
            next(theirs)
            step = theirs.send(next(scram(Login("alice", "secret"), circumstances(BINDINGS))))
            self.assertIsInstance(step, Proof)
            theirs.send(True)

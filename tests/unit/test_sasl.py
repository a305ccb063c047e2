"""core.sasl: the published exchange, what is refused, and that nothing but SaslError comes out. More is in tests/dialogs."""

from __future__ import annotations

import base64
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.sasl import (
    Cancelled,
    Challenge,
    Credentials,
    Done,
    Exchange,
    Lookup,
    Offer,
    Proof,
    SaslError,
    ScramKeys,
    Secret,
)
from twisted_mta.core.sasl.prep import Unprepared, saslprep
from twisted_mta.core.sasl.scram import MAX_MESSAGE, ClientFinal, ClientFirst
from twisted_mta.testing.scram import BINDINGS, ITERATIONS, NONCE, SALT, ScramClient, known_secret

# RFC 7677 §3.
USER_FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
SERVER_FIRST = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
USER_FINAL = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
    b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
PENCIL = Secret(
    ScramKeys.derive("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096),
    b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
)


def begin(name: str = "SCRAM-SHA-256", bindings: Any = None) -> Exchange:
    exchange = Offer(True, bindings or {}).begin(name)
    assert exchange is not None
    return exchange


def b64(octets: bytes) -> bytes:
    return base64.b64encode(octets)


class ScramTests(SynchronousTestCase):
    """The exchange."""

    def test_published_example(self) -> None:
        exchange = begin()
        self.assertEqual(exchange.start(None), Challenge(b""))
        self.assertEqual(exchange.respond(b64(USER_FIRST)), Lookup("user"))
        self.assertEqual(exchange.answer(PENCIL), Challenge(SERVER_FIRST))
        self.assertEqual(exchange.respond(b64(USER_FINAL)), Proof("user", True))
        self.assertEqual(exchange.answer(True), Challenge(SERVER_FINAL))
        self.assertEqual(exchange.respond(b""), Done())

    def test_the_client_of_the_tests_is_one_too(self) -> None:
        client = ScramClient("user", "pencil", b"rOprNGfwEbeRWgbNEkqO")
        self.assertEqual(client.first(), USER_FIRST)
        self.assertEqual(client.final(SERVER_FIRST), USER_FINAL)
        self.assertTrue(client.check(SERVER_FINAL))
        self.assertFalse(client.check(b"v=" + b64(b"x" * 32)))

    def talk(
        self, client: ScramClient, name: str = "SCRAM-SHA-256", bindings: Any = None, login: str = "alice"
    ) -> Any:
        """The claim that comes of an exchange, and the rest of it."""
        exchange = begin(name, bindings)
        self.assertEqual(exchange.start(b64(client.first())), Lookup(login))
        challenge = exchange.answer(known_secret(login))
        assert isinstance(challenge, Challenge)
        return exchange.respond(b64(client.final(challenge.data))), exchange

    def test_bound_to_the_connection(self) -> None:
        for kind, octets in BINDINGS.items():
            client = ScramClient("alice", "secret", b"c", f"p={kind}", octets)
            claim, exchange = self.talk(client, "SCRAM-SHA-256-PLUS", BINDINGS)
            self.assertEqual(claim, Proof("alice", True))
            challenge = exchange.answer(True)
            self.assertTrue(client.check(challenge.data))
            self.assertEqual(exchange.respond(b""), Done())

    def test_bound_to_another_connection(self) -> None:
        client = ScramClient("alice", "secret", b"c", "p=tls-exporter", b"of another")
        claim, exchange = self.talk(client, "SCRAM-SHA-256-PLUS", BINDINGS)
        self.assertEqual((claim.right, "not at the other end" in claim.problem), (False, True))
        self.assertRaises(SaslError, exchange.answer, True)

    def test_a_binding_changed_on_the_way_is_noticed_without_plus(self) -> None:
        """c= is checked even where there is no binding: it has the header, which a person in between may have changed."""
        client = ScramClient("alice", "secret", b"c", "y")
        exchange = begin()
        exchange.start(b64(client.first().replace(b"y,,", b"n,,")))
        challenge = exchange.answer(known_secret("alice"))
        assert isinstance(challenge, Challenge)
        claim = exchange.respond(b64(client.final(challenge.data)))
        assert isinstance(claim, Proof)
        self.assertFalse(claim.right)

    def test_downgrade(self) -> None:
        claim = begin(bindings=BINDINGS).start(b64(b"y,,n=alice,r=c"))
        assert isinstance(claim, Proof)
        self.assertEqual((claim.right, claim.login), (False, "alice"))
        self.assertIn("changed on its way", claim.problem)
        exchange = begin(bindings=BINDINGS)
        exchange.start(b64(b"y,,n=alice,r=c"))
        self.assertRaises(SaslError, exchange.answer, True)
        self.assertEqual(begin().start(b64(b"y,,n=alice,r=c")), Lookup("alice"))

    def test_a_wrong_password_stays_wrong_whatever_the_world_says(self) -> None:
        claim, exchange = self.talk(ScramClient("alice", "Secret", b"c"))
        self.assertEqual(claim, Proof("alice", False))
        self.assertRaises(SaslError, exchange.answer, True)

    def test_someone_who_has_the_stored_keys_can_not_log_in_with_them(self) -> None:
        exchange = begin()
        exchange.start(b64(b"n,,n=alice,r=c"))
        secret = known_secret("alice")
        exchange.answer(secret)
        proof = b64(secret.keys.stored_key)
        claim = exchange.respond(b64(b"c=biws,r=cserver,p=" + proof))
        self.assertEqual(claim, Proof("alice", False))

    def test_names(self) -> None:
        for sent, login in (
            (b"a=2Cb=3D", "a,b="),
            (b"=3D2C", "=2C"),
            ("I\N{SOFT HYPHEN}X".encode(), "IX"),
            ("\N{FEMININE ORDINAL INDICATOR}".encode(), "a"),
        ):
            first = b"n,a=" + sent + b",n=" + sent + b",r=c"
            self.assertEqual(begin().start(b64(first)), Lookup(login))

    def test_the_name_counts_as_it_was_sent(self) -> None:
        name = "al\N{SOFT HYPHEN}ice"
        claim, _ = self.talk(ScramClient(name, "secret", b"c", authzid="alice"))
        self.assertEqual(claim, Proof("alice", True))

    def test_optional_extensions_are_ignored(self) -> None:
        first = ClientFirst.parse(b"n,,n=a,r=c,x=1,y=2=")
        self.assertEqual((first.bare, first.nonce), (b"n=a,r=c,x=1,y=2=", b"c"))
        proof = b64(b"p" * 32)
        final = ClientFinal.parse(b"c=biws,r=cs,x=1,p=" + proof)
        self.assertEqual((final.without_proof, final.proof), (b"c=biws,r=cs,x=1", b"p" * 32))

    def test_bad_first_messages(self) -> None:
        for message in (
            b"", b"n", b"n,,", b"n,,n=a", b"x,,n=a,r=c", b"p=,,n=a,r=c", b"p=\xff,,n=a,r=c", b"n,b=a,n=a,r=c",
            b"n,a=b,n=a,r=c", b"n,,a=a,r=c", b"n,,m=x,n=a,r=c", b"n,,n=,r=c", b"n,,n=\xff,r=c", b"n,,n==,r=c",
            b"n,,n=a=2c,r=c", b"n,,n=\0,r=c", b"n,,n=a,r=", b"n,,n=a,s=c", b"n,,n=a,r=\xff", b"n,,n=a,r=c,x",
            b"n,,n=a,r=c,=x", b"n,,n=a,r=c,", b"n,,n=a,r=" + b"c" * MAX_MESSAGE,
        ):  # fmt: skip
            with self.subTest(message[:20]):
                self.assertRaises(SaslError, ClientFirst.parse, message)

    def test_bad_final_messages(self) -> None:
        proof = b64(b"p" * 32)
        for message in (
            b"", b"c=biws,r=c", b"c=biws,p=" + proof, b"r=c,c=biws,p=" + proof, b"c=biws,x=c,p=" + proof,
            b"c=biws,r=c,p=", b"c=biws,r=c,p=" + b64(b"short"), b"c=!,r=c,p=" + proof, b"c=biws,r=c,p=" + proof + b",x=1",
            b"c=biws,r=c,x,p=" + proof,
        ):  # fmt: skip
            with self.subTest(message[:20]):
                self.assertRaises(SaslError, ClientFinal.parse, message)

    @given(
        st.lists(
            st.binary(max_size=40)
            | st.sampled_from([USER_FIRST, USER_FINAL, b"n,,", b"y,", b"p=tls-exporter,,"]),
            max_size=3,
        )
    )
    @example([USER_FIRST, USER_FINAL, b""])
    @settings(max_examples=300)
    def test_only_saslerror_escapes(self, messages: list[bytes]) -> None:
        for name, bindings in (
            ("SCRAM-SHA-256", {}),
            ("SCRAM-SHA-256-PLUS", BINDINGS),
            ("SCRAM-SHA-256", BINDINGS),
        ):
            exchange = begin(name, bindings)
            try:
                exchange.start(None)
                for message in messages:
                    step = exchange.respond(b64(message))
                    while isinstance(step, Lookup | Proof):
                        step = exchange.answer(PENCIL)
                    if isinstance(step, Done):
                        self.assertEqual(messages, [USER_FIRST, USER_FINAL, b""])
                        break
            except SaslError:
                pass

    @given(st.text(alphabet="n,=ayp2C3Dr\0\u00e9x-", max_size=30))
    @settings(max_examples=300)
    def test_first_messages_are_read_whole_or_not_at_all(self, text: str) -> None:
        message = text.encode()
        try:
            first = ClientFirst.parse(message)
        except SaslError:
            return
        self.assertEqual(first.header + first.bare, message)
        self.assertNotEqual(first.login, "")


class KeysTests(SynchronousTestCase):
    """What is stored."""

    def test_dovecots_form(self) -> None:
        # doveadm pw -s SCRAM-SHA-256 -p secret
        made = "4096,DC9MjKvESP/eUQumYEZohw==,iqnwN8XcrWsSgR1WSKMCUSlf7Axqz5oZgGGfGHoJNDI=,oyRrFoIQOj5UujanddxStC8Dw6lD+HjjGsFghVHdHKo="
        theirs = ScramKeys.parse(made)
        self.assertEqual(ScramKeys.derive("secret", theirs.salt, theirs.iterations), theirs)
        self.assertEqual(str(theirs), made)
        keys = ScramKeys.derive("secret", SALT, ITERATIONS)
        self.assertEqual(ScramKeys.parse(str(keys)), keys)
        self.assertTrue(str(keys).startswith("4096," + b64(SALT).decode() + ","))
        self.assertTrue(keys.match("secret"))
        self.assertFalse(keys.match("Secret"))
        self.assertFalse(keys.match("\0"))

    def test_they_are_not_shown(self) -> None:
        keys = ScramKeys.derive("secret", SALT, ITERATIONS)
        self.assertNotIn(repr(keys.stored_key), repr(keys))
        self.assertNotIn(repr(keys.server_key), repr(Secret(keys, NONCE)))

    def test_passwords_that_look_the_same_are(self) -> None:
        one = ScramKeys.derive("pass\N{NO-BREAK SPACE}word \N{ROMAN NUMERAL NINE}", SALT, ITERATIONS)
        self.assertTrue(one.match("pass word IX"))

    def test_unusable_passwords(self) -> None:
        for password in ("", "\N{SOFT HYPHEN}", "tab\t", "\N{PILE OF POO}"):
            self.assertRaises(Unprepared, ScramKeys.derive, password, SALT, ITERATIONS)

    def test_unusable_texts(self) -> None:
        good = str(ScramKeys.derive("secret", SALT, ITERATIONS)).split(",")
        for place, value in (
            (0, "4095"), (0, "10000001"), (0, "x"), (0, "\N{SUPERSCRIPT TWO}"), (0, "9" * 5000), (1, "eA=="), (1, "!"),
            (2, "eA=="), (3, "eA=="), (3, "\N{SNOWMAN}"),
        ):  # fmt: skip
            with self.subTest(value[:10]):
                self.assertRaises(
                    ValueError, ScramKeys.parse, ",".join([*good[:place], value, *good[place + 1 :]])
                )
        for text in ("", "4096", ",".join(good[:3]), ",".join([*good, good[3]])):
            self.assertRaises(ValueError, ScramKeys.parse, text)


class PrepTests(SynchronousTestCase):
    """RFC 4013 §3 has these examples."""

    def test_examples(self) -> None:
        for text, expected in {
            "I\u00adX": "IX", "user": "user", "USER": "USER", "\u00aa": "a", "\u2168": "IX", "": "",
            "\u0627\u0628": "\u0627\u0628", "\u0627": "\u0627",
        }.items():  # fmt: skip
            self.assertEqual(saslprep(text), expected)

    def test_refused(self) -> None:
        for text in ("\u0007", "\u06271", "\u0627x\u0628", "1\u0627", "\ud800", "\ue000"):
            self.assertRaises(Unprepared, saslprep, text)

    def test_new_characters_are_for_questions_only(self) -> None:
        self.assertEqual(saslprep("\U0001f4a9"), "\U0001f4a9")
        self.assertRaises(Unprepared, saslprep, "\U0001f4a9", stored=True)

    @given(st.text(max_size=20))
    def test_prepared_is_prepared(self, text: str) -> None:
        try:
            prepared = saslprep(text)
        except Unprepared:
            return
        self.assertEqual(saslprep(prepared), prepared)


class OfferTests(SynchronousTestCase):
    """What is there to choose from, and the dialog around it."""

    def test_names(self) -> None:
        self.assertEqual(Offer().names, ["PLAIN", "LOGIN"])
        self.assertEqual(Offer(False, BINDINGS).names, ["PLAIN", "LOGIN"])
        self.assertEqual(Offer(True).names, ["SCRAM-SHA-256", "PLAIN", "LOGIN"])
        self.assertEqual(Offer(True, BINDINGS).names[:2], ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"])

    def test_only_what_is_offered_can_be_begun(self) -> None:
        self.assertIsNone(Offer().begin("SCRAM-SHA-256"))
        self.assertIsNone(Offer(True).begin("SCRAM-SHA-256-PLUS"))
        self.assertIsNone(Offer(True).begin("CRAM-MD5"))
        self.assertIsNotNone(Offer(True).begin("scram-sha-256"))

    def test_an_initial_response_answers_the_first_challenge(self) -> None:
        exchange = Offer().begin("LOGIN")
        assert exchange is not None
        self.assertEqual(exchange.start(b64(b"alice")), Challenge(b"Password:"))
        self.assertEqual(exchange.respond(b64(b"secret")), Credentials("alice", b"secret"))
        self.assertEqual(exchange.answer(True), Done())

    def test_the_client_gives_up(self) -> None:
        exchange = begin("PLAIN")
        exchange.start(None)
        self.assertRaises(Cancelled, exchange.respond, b"*")
        self.assertRaises(SaslError, begin("PLAIN").start, b"*")

    def test_passwords_are_not_shown(self) -> None:
        self.assertNotIn("secret", repr(Credentials("alice", b"secret")))
        self.assertNotIn("exported", repr(Offer(True, BINDINGS)))

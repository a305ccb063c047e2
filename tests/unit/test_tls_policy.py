"""Tests for twisted_mta.core.tls_policy: MTA-STS records and policies, TLSA records, and what is asked of a host."""

from __future__ import annotations

import datetime
import hashlib
import unittest
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from twisted_mta.core.tls_policy.decision import (
    TABLE,
    Case,
    Dane,
    DaneState,
    HostPolicy,
    Require,
    decide,
    if_enforced,
)
from twisted_mta.core.tls_policy.names import any_matches, is_pattern, is_within, matches
from twisted_mta.core.tls_policy.results import Failure, Result
from twisted_mta.core.tls_policy.sts import (
    MAX_AGE,
    MAX_PATTERNS,
    MAX_POLICY,
    Mode,
    PolicyError,
    StsPolicy,
    parse_policy,
    policy_host,
    policy_id,
    record_name,
)
from twisted_mta.core.tls_policy.tlsa import (
    BadDer,
    TlsaRecord,
    matching_anchors,
    matching_end,
    public_key_info,
    strongest,
)

POLICY = b"version: STSv1\r\nmode: enforce\r\nmx: mx1.x.test\r\nmx: *.mail.test\r\nmax_age: 604800\r\n"


class NameTests(unittest.TestCase):
    def test_matches(self) -> None:
        for pattern, host, expected in (
            ("mx.x.test", "MX.x.test.", True),
            ("mx.x.test", "x.test", False),
            ("*.x.test", "mx.x.test", True),
            ("*.x.test", "x.test", False),
            ("*.x.test", "a.b.x.test", False),
            ("*.x.test", ".x.test", False),
            ("*.x.test", "test", False),
            ("m*.x.test", "mx.x.test", False),
        ):
            with self.subTest(pattern=pattern, host=host):
                self.assertIs(matches(pattern, host), expected)

    def test_any_matches(self) -> None:
        self.assertTrue(any_matches(["a.test", "*.x.test"], iter(["mx.x.test"])))
        self.assertFalse(any_matches(["a.test", "*.x.test"], ["x.test"]))
        self.assertFalse(any_matches([], ["x.test"]))

    def test_is_pattern(self) -> None:
        for good in ("x.test", "*.x.test", "localhost", "a_b.x-y.test", "1.2.test"):
            self.assertTrue(is_pattern(good), good)
        for bad in (
            "",
            "*.",
            "*",
            "*.*.test",
            "m*.test",
            "x..test",
            ".x",
            "x.",
            "-x.test",
            "X.test",
            "a b",
            "x" * 254,
        ):
            self.assertFalse(is_pattern(bad), bad)

    def test_is_within(self) -> None:
        self.assertTrue(is_within("Mx.x.test.", "x.test"))
        self.assertTrue(is_within("x.test", "x.test"))
        self.assertFalse(is_within("mx-x.test", "x.test"))


class RecordTests(unittest.TestCase):
    def test_id(self) -> None:
        for record, expected in {
            b"v=STSv1; id=20160831085700Z;": "20160831085700Z",
            b"v=STSv1;id=a": "a",
            b"v=STSv1 ;\tid=a ; ext=!x ": "a",
            b"v=STSv1; ext=1; id=a; id=b": "a",
            b"v=STSv1; id=": None,
            b"v=STSv1; id=a.b": None,
            b"v=STSv1; id=" + b"a" * 33: None,
            b"v=STSv1; id": None,
            b"v=STSv1; =a; id=a": None,
            b"v=STSv1;": None,
            b"v=STSv1; id=a;;": None,
            b"v=STSv1; id=a; x=\xe4": None,
            b"v=stsv1; id=a": None,
            b"v=STSv2; id=a": None,
            b" v=STSv1; id=a": None,
            b"v=STSv1": None,
        }.items():
            with self.subTest(record):
                self.assertEqual(policy_id([record]), expected)

    def test_others_are_discarded_and_one_is_left(self) -> None:
        self.assertEqual(policy_id([b"v=spf1 -all", b"v=STSv1; id=a;"]), "a")
        self.assertIsNone(policy_id([b"v=STSv1; id=a;", b"v=STSv1; id=a;"]))
        self.assertIsNone(policy_id([]))

    def test_places(self) -> None:
        self.assertEqual(record_name("x.test"), "_mta-sts.x.test")
        self.assertEqual(policy_host("x.test"), "mta-sts.x.test")


class PolicyTests(unittest.TestCase):
    def test_enforce(self) -> None:
        policy = parse_policy(POLICY)
        self.assertEqual(
            (policy.mode, policy.mx, policy.max_age), (Mode.ENFORCE, ("mx1.x.test", "*.mail.test"), 604800)
        )
        self.assertEqual(policy.lines[2], "mx: mx1.x.test")
        self.assertTrue(policy.allows("MX1.x.test"))
        self.assertTrue(policy.allows("a.mail.test"))
        self.assertFalse(policy.allows("mail.test"))

    def test_tolerance(self) -> None:
        policy = parse_policy(
            b"version:STSv1\nmode:\ttesting  \nmode: none\n\nmx:MX.X.TEST\nfuture: a b \xc3\xa4\nmax_age:0\nmax_age: 5"
        )
        self.assertEqual((policy.mode, policy.mx, policy.max_age), (Mode.TESTING, ("mx.x.test",), 0))

    def test_none_needs_no_host(self) -> None:
        self.assertEqual(parse_policy(b"version: STSv1\nmode: none\nmax_age: 1").mode, Mode.NONE)

    def test_age_is_bounded(self) -> None:
        self.assertEqual(parse_policy(POLICY.replace(b"604800", b"9999999999")).max_age, MAX_AGE)

    def test_errors(self) -> None:
        for body, why in {
            b"": "it has no version: STSv1",
            POLICY.replace(b"STSv1", b"STSv2"): "it has no version: STSv1",
            POLICY.replace(b"enforce", b"Enforce"): "mode: 'Enforce' is none of enforce, testing, none",
            POLICY.replace(b"mode: enforce\r\n", b""): "mode: '' is none of enforce, testing, none",
            POLICY.replace(b"604800", b"-1"): "max_age: '-1' is no number of seconds",
            POLICY.replace(b"604800", "٣".encode()): "max_age: '٣' is no number of seconds",
            POLICY.replace(b"604800", b"1" * 11): f"max_age: '{'1' * 11}' is no number of seconds",
            POLICY.replace(b"mx1.x.test", b"mx*.x.test"): "mx: 'mx*.x.test' is no host name",
            POLICY.replace(b"mx1.x.test", b"m\xc3\xbcx.test"): "mx: 'müx.test' is no host name",
            b"version: STSv1\nmode: testing\nmax_age: 1": "it names no mx",
            POLICY + b"mx: a.test\n" * MAX_PATTERNS: f"it names more than {MAX_PATTERNS} mx",
            POLICY + b"nothing\n": "'nothing' is no field with a value",
            POLICY + b"empty:\n": "'empty:' is no field with a value",
            POLICY + b"_x: 1\n": "'_x: 1' is no field with a value",
            POLICY + b" x: 1\n": "' x: 1' is no field with a value",
            POLICY + b"x: a\0b\n": "the value of x has characters that can't be printed",
            POLICY + b"x: a\rb\n": "the value of x has characters that can't be printed",
            b"\xff": "it is not UTF-8",
            b"x" * (MAX_POLICY + 1): f"it is longer than {MAX_POLICY} octets",
            b"<html>": "'<html>' is no field with a value",
        }.items():
            with self.subTest(why=why), self.assertRaises(PolicyError) as caught:
                parse_policy(body)
            self.assertEqual(str(caught.exception), why)


def certificate() -> tuple[bytes, bytes]:
    """A certificate, and its SubjectPublicKeyInfo by another way."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.x.test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now)
        .sign(key, hashes.SHA256())
    )
    der, info = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return built.public_bytes(der), key.public_key().public_bytes(der, info)


#: RFC 5280 without a version field: what certificates of version 1 look like, and all that we look at.
VERSION_1 = bytes.fromhex("30 13 30 11 02 01 01 30 00 30 00 30 00 30 00 30 04 03 02 00 01".replace(" ", ""))


class TlsaTests(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.end, cls.key = certificate()
        cls.issuer, cls.issuer_key = certificate()

    def test_wire_and_text(self) -> None:
        record = TlsaRecord.from_wire(b"\3\1\1" + b"\xab" * 32)
        assert record is not None
        self.assertEqual(str(record), "3 1 1 " + "ab" * 32)
        self.assertTrue(record.usable)
        self.assertIsNone(TlsaRecord.from_wire(b"\3\1\1"))

    def test_usable(self) -> None:
        for usage, selector, matching, length, expected in (
            (2, 0, 1, 32, True),
            (3, 1, 2, 64, True),
            (3, 0, 0, 1, True),
            (3, 0, 0, 0, False),
            (0, 0, 1, 32, False),
            (1, 1, 1, 32, False),
            (255, 1, 1, 32, False),
            (3, 2, 1, 32, False),
            (3, 1, 3, 32, False),
            (3, 1, 1, 31, False),
            (3, 1, 2, 32, False),
        ):
            with self.subTest(usage=usage, selector=selector, matching=matching, length=length):
                self.assertIs(TlsaRecord(usage, selector, matching, b"x" * length).usable, expected)

    def test_public_key_info(self) -> None:
        self.assertEqual(public_key_info(self.end), self.key)
        self.assertEqual(public_key_info(VERSION_1).hex(), "300403020001")

    def test_matches_each_selector_and_matching_type(self) -> None:
        for selector, octets in ((0, self.end), (1, self.key)):
            for matching, data in (
                (0, octets),
                (1, hashlib.sha256(octets).digest()),
                (2, hashlib.sha512(octets).digest()),
            ):
                with self.subTest(selector=selector, matching=matching):
                    record = TlsaRecord(3, selector, matching, data)
                    self.assertTrue(record.matches(self.end))
                    self.assertFalse(record.matches(self.issuer))

    def test_end_and_anchors_are_told_apart_by_usage(self) -> None:
        chain = [self.end, self.issuer]
        of_end = hashlib.sha256(self.end).digest()
        of_issuer = hashlib.sha256(self.issuer).digest()
        self.assertTrue(matching_end([TlsaRecord(3, 0, 1, of_end)], self.end))
        self.assertFalse(matching_end([TlsaRecord(2, 0, 1, of_end)], self.end))
        self.assertFalse(matching_end([TlsaRecord(3, 0, 1, of_issuer)], self.end))
        self.assertEqual(matching_anchors([TlsaRecord(2, 0, 1, of_issuer)], chain), [1])
        self.assertEqual(matching_anchors([TlsaRecord(2, 0, 1, of_end)], chain), [])
        self.assertEqual(matching_anchors([TlsaRecord(3, 0, 1, of_issuer)], chain), [])

    def test_weaker_digests_are_left_out(self) -> None:
        full = TlsaRecord(3, 1, 0, b"key")
        weak, strong = TlsaRecord(3, 1, 1, b"x" * 32), TlsaRecord(3, 1, 2, b"x" * 64)
        other = TlsaRecord(2, 1, 1, b"x" * 32)
        useless = TlsaRecord(3, 1, 9, b"x")
        self.assertEqual(strongest([weak, full, strong, other, useless]), (full, strong, other))
        self.assertEqual(strongest([useless]), ())

    def test_what_is_no_certificate(self) -> None:
        for der in (
            b"",
            b"\x30",
            b"\x30\x80\x00\x00",
            b"\x30\x85\x00\x00\x00\x00\x01\x00",
            b"\x30\x05\x00",
            self.end[:40],
            VERSION_1[:2] + b"\x30\x0d" + VERSION_1[4:],
        ):
            with self.subTest(der=der), self.assertRaises(BadDer):
                public_key_info(der)


STS = StsPolicy(mode=Mode.ENFORCE, mx=("mx.x.test",), max_age=1, lines=())
TESTING = StsPolicy(mode=Mode.TESTING, mx=("mx.x.test",), max_age=1, lines=())
OFF = StsPolicy(mode=Mode.NONE, mx=(), max_age=1, lines=())
ONE = TlsaRecord(3, 1, 1, b"x" * 32)
USABLE = Dane(state=DaneState.USABLE, records=(ONE,), names=("mx.x.test", "x.test"))
UNUSABLE = Dane(state=DaneState.UNUSABLE)
FAILED = Dane(state=DaneState.FAILED, why="SERVFAIL")


def case(**given: Any) -> Case:
    return Case(**({"domain": "x.test", "host": "mx.x.test"} | given))


def brief(policy: HostPolicy) -> str:
    """A policy in one line."""
    if policy.refusal is not None:
        result = policy.failure.result if policy.failure else "-"
        return f"{policy.source} refused {policy.refusal.code} {policy.refusal.enhanced} {result}"
    checks = [
        *(["tlsa"] if policy.records else []),
        *(["pkix " + "/".join(policy.pkix_names)] if policy.pkix_names else []),
    ]
    return f"{policy.source} {'tls' if policy.tls else 'opportunistic'} {' '.join(checks)}".strip()


class DecisionTests(unittest.TestCase):
    def check(self, expected: str, **given: Any) -> HostPolicy:
        policy = decide(case(**given))
        self.assertEqual(brief(policy), expected)
        self.assertEqual(policy.verified, bool(policy.records or policy.pkix_names))
        return policy

    def test_table(self) -> None:
        pin = Require
        for given, expected in (
            ({}, "none opportunistic"),
            ({"sts": OFF}, "none opportunistic"),
            ({"sts": TESTING}, "none opportunistic"),
            ({"sts": STS}, "sts tls pkix mx.x.test"),
            ({"sts": STS, "host": "evil.test"}, "sts refused 451 4.7.5 validation-failure"),
            ({"dane": USABLE, "host_proven": True}, "dane tls tlsa"),
            ({"dane": USABLE, "host_proven": True, "sts": STS}, "dane tls tlsa"),
            ({"dane": USABLE}, "dane tls tlsa"),
            ({"dane": USABLE, "sts": STS}, "sts tls tlsa pkix mx.x.test"),
            ({"dane": USABLE, "sts": TESTING}, "dane tls tlsa"),
            ({"dane": UNUSABLE}, "dane tls"),
            ({"dane": UNUSABLE, "sts": STS}, "sts tls pkix mx.x.test"),
            ({"dane": FAILED}, "dane refused 451 4.7.5 dnssec-invalid"),
            ({"dane": FAILED, "sts": STS, "pin": pin.ANY}, "dane refused 451 4.7.5 dnssec-invalid"),
            ({"pin": pin.ANY}, "pin tls"),
            ({"pin": pin.ANY, "sts": STS}, "sts tls pkix mx.x.test"),
            ({"pin": pin.ANY, "dane": USABLE}, "dane tls tlsa"),
            ({"pin": pin.DANE}, "pin refused 451 4.7.5 dane-required"),
            ({"pin": pin.DANE, "dane": USABLE}, "pin refused 451 4.7.5 dane-required"),
            ({"pin": pin.DANE, "dane": UNUSABLE, "host_proven": True}, "pin refused 451 4.7.5 dane-required"),
            ({"pin": pin.DANE, "dane": USABLE, "host_proven": True}, "pin tls tlsa"),
            ({"pin": pin.STS}, "pin refused 451 4.7.5 sts-policy-fetch-error"),
            ({"pin": pin.STS, "sts": OFF}, "pin refused 451 4.7.5 sts-policy-fetch-error"),
            ({"pin": pin.STS, "sts": TESTING}, "pin tls pkix mx.x.test"),
            ({"pin": pin.STS, "sts": STS, "host": "evil.test"}, "pin refused 451 4.7.5 validation-failure"),
            ({"pin": pin.STS, "sts": STS, "dane": USABLE}, "pin tls tlsa pkix mx.x.test"),
            ({"pin": pin.PKIX}, "pin tls pkix mx.x.test/x.test"),
            ({"pin": pin.PKIX, "host": "mx.y.test"}, "pin tls pkix x.test"),
            ({"pin": pin.PKIX, "host": "mx.y.test", "host_proven": True}, "pin tls pkix mx.y.test/x.test"),
            (
                {"pin": pin.PKIX, "host": "mx.y.test", "pinned_hosts": ("*.y.test",)},
                "pin tls pkix mx.y.test",
            ),
            (
                {"pin": pin.PKIX, "host": "x.test", "pinned_hosts": ("*.y.test",)},
                "pin refused 451 4.7.5 validation-failure",
            ),
        ):
            with self.subTest(expected=expected, **given):
                self.check(expected, **given)

    def test_pkix_takes_the_word_of_mta_sts_for_who_the_host_is(self) -> None:
        policy = StsPolicy(mode=Mode.TESTING, mx=("mx.y.test",), max_age=1, lines=())
        self.check("pin tls pkix mx.y.test/x.test", pin=Require.PKIX, host="mx.y.test", sts=policy)

    def test_requiretls(self) -> None:
        for given, expected in (
            ({}, "requiretls refused 550 5.7.30 -"),
            ({"sts": OFF}, "requiretls refused 550 5.7.30 -"),
            ({"dane": USABLE}, "requiretls refused 550 5.7.30 -"),
            ({"host_proven": True}, "requiretls tls pkix mx.x.test"),
            ({"host_proven": True, "dane": USABLE}, "dane tls tlsa"),
            ({"host_proven": True, "dane": UNUSABLE}, "dane tls pkix mx.x.test"),
            ({"sts": TESTING}, "requiretls tls pkix mx.x.test"),
            ({"sts": STS}, "sts tls pkix mx.x.test"),
            ({"dane": FAILED}, "dane refused 451 4.7.5 dnssec-invalid"),
            ({"pin": Require.DANE}, "pin refused 451 4.7.5 dane-required"),
        ):
            with self.subTest(expected=expected, **given):
                self.check(expected, required=True, **given)

    def test_name_to_ask_for(self) -> None:
        self.assertEqual(decide(case()).sni, "mx.x.test")
        base = Dane(state=DaneState.USABLE, records=(ONE,), names=("real.y.test", "x.test"))
        self.assertEqual(decide(case(dane=base)).sni, "real.y.test")

    def test_a_refusal_explains_itself(self) -> None:
        policy = self.check("sts refused 451 4.7.5 validation-failure", sts=STS, host="evil.test")
        assert policy.refusal is not None
        self.assertEqual(
            policy.refusal.text,
            "evil.test gets no mail for x.test: it is none of the mail hosts in the MTA-STS policy of x.test (mx.x.test)",
        )
        many = StsPolicy(mode=Mode.ENFORCE, mx=tuple(f"m{n}.x.test" for n in range(11)), max_age=1, lines=())
        refusal = decide(case(sts=many)).refusal
        assert refusal is not None
        self.assertTrue(refusal.text.endswith("m9.x.test ...)"), refusal.text)

    def test_a_policy_in_testing_is_looked_at_for_reports(self) -> None:
        self.assertIsNone(if_enforced(case()))
        self.assertIsNone(if_enforced(case(sts=STS)))
        wanted = if_enforced(case(sts=TESTING))
        assert isinstance(wanted, HostPolicy)
        self.assertEqual(brief(wanted), "sts tls pkix mx.x.test")
        failure = if_enforced(case(sts=TESTING, host="evil.test"))
        assert isinstance(failure, Failure)
        self.assertEqual((failure.result, failure.code), (Result.VALIDATION_FAILURE, "mx-mismatch"))

    def test_rows_are_named(self) -> None:
        self.assertEqual(len({name for name, _, _ in TABLE}), len(TABLE))

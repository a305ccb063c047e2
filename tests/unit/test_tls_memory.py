"""Tests for what is remembered of others' TLS: core.tls_policy.cache and seen, core.tls_report, store.tls_policies."""

from __future__ import annotations

import gzip
import json
import sqlite3
import stat
import unittest
from contextlib import closing
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any
from unittest import mock

import attrs

from twisted_mta.core.address import Address
from twisted_mta.core.tls_policy.cache import REFRESH, RETRY, UNUSED, StsEntry
from twisted_mta.core.tls_policy.results import Failure, Result
from twisted_mta.core.tls_policy.seen import Seen, Sighting, after, is_fall
from twisted_mta.core.tls_policy.sts import parse_policy
from twisted_mta.core.tls_report import (
    DAY,
    MAX_PLACES,
    NO_POLICY,
    Applied,
    FailureCount,
    PolicyCount,
    Report,
    Reporter,
    Session,
    places,
    record_name,
)
from twisted_mta.store.side_file import SideFileError
from twisted_mta.store.tls_policies import FORGET, MAX_DETAILS, TlsFile

WEEK = 7 * 86400
POLICY = parse_policy(f"version: STSv1\nmode: enforce\nmx: mx.x.test\nmax_age: {WEEK}".encode())
OFF = parse_policy(b"version: STSv1\nmode: none\nmax_age: 600")
NOW = 1_800_000_000.0


class CacheTests(unittest.TestCase):
    def test_a_policy_is_in_force_until_it_expires(self) -> None:
        entry = StsEntry(domain="x.test").with_policy(POLICY, "a", NOW)
        self.assertIs(entry.in_force(NOW + WEEK - 1), POLICY)
        self.assertIsNone(entry.in_force(NOW + WEEK))
        self.assertIsNone(StsEntry(domain="x.test").in_force(NOW))

    def test_when_mail_waits_for_a_fetch(self) -> None:
        nothing = StsEntry(domain="x.test")
        known = nothing.with_policy(POLICY, "a", NOW)
        for entry, live, later, expected in (
            (nothing, None, 0.0, False),
            (nothing, "a", 0.0, True),
            (known, "a", 0.0, False),
            (known, None, 0.0, False),
            (known, "b", 0.0, True),
            (known, "a", WEEK, True),
            (known, None, WEEK, False),
            (known.with_failure("b", "down", NOW), "b", RETRY - 1, False),
            (known.with_failure("b", "down", NOW), "b", RETRY, True),
            (known.with_failure("b", "down", NOW), "c", 1.0, True),
        ):
            with self.subTest(entry=entry, live=live, later=later):
                self.assertIs(entry.must_fetch(live, NOW + later), expected)

    def test_a_failure_leaves_the_policy_in_force(self) -> None:
        entry = StsEntry(domain="x.test").with_policy(POLICY, "a", NOW).with_failure("b", "down", NOW + 5)
        self.assertIs(entry.in_force(NOW + 10), POLICY)
        self.assertEqual((entry.id, entry.problem), ("a", "down"))
        self.assertEqual(entry.with_policy(OFF, "b", NOW + 9).problem, "")

    def test_refresh(self) -> None:
        entry = attrs.evolve(StsEntry(domain="x.test").with_policy(POLICY, "a", NOW), used=NOW)
        self.assertFalse(entry.refresh_due(NOW + REFRESH - 1))
        self.assertTrue(entry.refresh_due(NOW + REFRESH))
        self.assertFalse(entry.with_failure("a", "down", NOW + REFRESH).refresh_due(NOW + REFRESH + 60))
        self.assertFalse(entry.refresh_due(NOW + WEEK))
        unused = attrs.evolve(entry, used=NOW - UNUSED)
        self.assertFalse(unused.refresh_due(NOW + REFRESH))
        short = attrs.evolve(StsEntry(domain="x.test").with_policy(OFF, "a", NOW), used=NOW)
        self.assertTrue(short.refresh_due(NOW + 300))

    def test_who_is_missed(self) -> None:
        nothing = StsEntry(domain="x.test")
        self.assertFalse(nothing.is_missed)
        self.assertFalse(nothing.with_policy(OFF, "a", NOW).is_missed)
        self.assertTrue(nothing.with_policy(POLICY, "a", NOW).is_missed)


def sight(time: float, tls: str = "TLSv1.3 X", **more: Any) -> Sighting:
    return Sighting(**({"domain": "x.test", "time": time, "host": "mx.x.test", "tls": tls} | more))


class SeenTests(unittest.TestCase):
    def test_a_fall_is_told_once(self) -> None:
        seen: Seen | None = None
        falls = []
        for time, tls, usable in (
            (1.0, "", True),
            (2.0, "TLSv1.3 X", True),
            (3.0, "", False),
            (4.0, "", True),
            (5.0, "", True),
            (6.0, "TLSv1.3 X", True),
            (7.0, "", True),
        ):
            sighting = sight(time, tls, usable=usable)
            if is_fall(seen, sighting):
                falls.append(time)
            seen = after(seen, sighting)
        self.assertEqual(falls, [4.0, 7.0])
        assert seen is not None
        self.assertEqual((seen.tls_at, seen.plaintext_at, seen.plaintext_count), (6.0, 7.0, 1))

    def test_no_session_says_nothing_of_tls(self) -> None:
        seen = after(after(None, sight(1.0)), sight(2.0, "", usable=False, problem="expired"))
        self.assertEqual((seen.tls_at, seen.plaintext_at, seen.last.problem), (1.0, 0.0, "expired"))


STS = Applied("sts", POLICY.lines, POLICY.mx)
CONTACT = Reporter(organization="Example", contact=Address("tls", "example.test"))


def report(*policies: PolicyCount) -> Report:
    return Report(reporter=CONTACT, domain="x.test", day=20000, id="id7", policies=policies)


class ReportTests(unittest.TestCase):
    def test_json(self) -> None:
        detail = FailureCount(
            result="certificate-expired", host="mx.x.test", address="192.0.2.1", source="", code="10", count=2
        )
        counts = (
            PolicyCount(applied=STS, successes=5, failures=2, details=(detail,)),
            PolicyCount(applied=NO_POLICY, successes=1, failures=0),
        )
        self.assertEqual(
            json.loads(report(*counts).json()),
            {
                "organization-name": "Example",
                "date-range": {
                    "start-datetime": "2024-10-04T00:00:00Z",
                    "end-datetime": "2024-10-04T23:59:59Z",
                },
                "contact-info": "tls@example.test",
                "report-id": "id7",
                "policies": [
                    {
                        "policy": {
                            "policy-type": "sts",
                            "policy-string": list(POLICY.lines),
                            "policy-domain": "x.test",
                            "mx-host": ["mx.x.test"],
                        },
                        "summary": {
                            "total-successful-session-count": 5,
                            "total-failure-session-count": 2,
                        },
                        "failure-details": [
                            {
                                "result-type": "certificate-expired",
                                "receiving-mx-hostname": "mx.x.test",
                                "receiving-ip": "192.0.2.1",
                                "failure-reason-code": "10",
                                "failed-session-count": 2,
                            }
                        ],
                    },
                    {
                        "policy": {"policy-type": "no-policy-found", "policy-domain": "x.test"},
                        "summary": {
                            "total-successful-session-count": 1,
                            "total-failure-session-count": 0,
                        },
                    },
                ],
            },
        )

    def test_message(self) -> None:
        made = report(PolicyCount(applied=STS, successes=5, failures=2))
        octets = made.message(Address("reports", "x.test"), NOW)
        self.assertNotIn(b"\n", octets.replace(b"\r\n", b""))
        message: Any = message_from_bytes(octets, policy=policy.default)
        self.assertEqual(message.defects, [])
        self.assertEqual(
            message["Subject"],
            "Report Domain: x.test Submitter: example.test Report-ID: <id7@example.test>",
        )
        self.assertEqual((message["From"], message["To"]), ("tls@example.test", "reports@x.test"))
        self.assertEqual(
            (message["TLS-Report-Domain"], message["TLS-Report-Submitter"]), ("x.test", "example.test")
        )
        self.assertEqual(message["TLS-Required"], "No")
        self.assertEqual(message.get_content_type(), "multipart/report")
        self.assertEqual(message["Content-Type"].params["report-type"], "tlsrpt")
        human, machine = message.iter_parts()
        self.assertIn(
            "on 2024-10-04 (UTC): 5 sessions were as they should be, 2 were not.", human.get_content()
        )
        self.assertEqual(machine.get_content_type(), "application/tlsrpt+gzip")
        self.assertEqual(machine.get_filename(), "example.test!x.test!1728000000!1728086399!id7.json.gz")
        self.assertEqual(gzip.decompress(machine.get_content()), made.json())

    def test_places(self) -> None:
        mail = Address("r", "x.test")
        for record, expected in {
            b"v=TLSRPTv1;rua=mailto:r@x.test": [mail],
            b"v=TLSRPTv1 ; rua=mailto:r@x.test , https://x.test/a?b ;": [mail, "https://x.test/a?b"],
            b"v=TLSRPTv1; ext=1; rua=mailto:r%40x.test?subject=x": [mail],
            b"v=TLSRPTv1; rua=https://x.test:443/": ["https://x.test:443/"],
            b"v=TLSRPTv1; rua=https://x.test:25/": [],
            b"v=TLSRPTv1; rua=https://x.test:port/": [],
            b"v=TLSRPTv1; rua=https:///a": [],
            b"v=TLSRPTv1; rua=http://x.test/": [],
            b"v=TLSRPTv1; rua=mailto:nobody": [],
            b"v=TLSRPTv1; rua=mailto:%C3%A4@x.test": [],
            b"v=TLSRPTv1; rua=mailto:r@x.test x": [],
            b"v=TLSRPTv1; rua=mailto:r@x.test\0": [],
            b"v=TLSRPTv1; rua=": [],
            b"v=TLSRPTv1; none=1": [],
            b"v=TLSRPTv1; rua=mailto:\xe4@x.test": [],
            b"v=TLSRPTv1": [],
            b"v=spf1 -all": [],
        }.items():
            with self.subTest(record):
                self.assertEqual(places([record]), expected)

    def test_which_record_counts(self) -> None:
        one = b"v=TLSRPTv1; rua=mailto:r@x.test"
        self.assertEqual(len(places([b"other", one])), 1)
        self.assertEqual(places([one, one]), [])
        many = ",".join(f"mailto:r{n}@x.test" for n in range(MAX_PLACES + 1))
        self.assertEqual(len(places([f"v=TLSRPTv1; rua={many}".encode()])), MAX_PLACES)
        self.assertEqual(record_name("x.test"), "_smtp._tls.x.test")


class FileCase(unittest.TestCase):
    def setUp(self) -> None:
        self.path = Path("tls.sqlite").absolute()
        self.file = TlsFile(self.path)
        self.addCleanup(lambda: self.file.close())

    def reopen(self) -> None:
        self.file.close()
        self.file = TlsFile(self.path)


class FileTests(FileCase):
    def test_mode(self) -> None:
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_policies_last(self) -> None:
        self.assertIsNone(self.file.policy("x.test"))
        entry = attrs.evolve(StsEntry(domain="x.test").with_policy(POLICY, "a", NOW), used=NOW)
        failed = entry.with_failure("b", "down", NOW + 1)
        self.file.save_policy(entry)
        self.file.save_policy(failed)
        self.file.save_policy(StsEntry(domain="a.test").with_failure("c", "down", NOW))
        self.reopen()
        self.assertEqual(self.file.policy("x.test"), failed)
        self.assertEqual([each.domain for each in self.file.policies()], ["a.test", "x.test"])

    def test_a_policy_that_this_code_does_not_understand_is_none(self) -> None:
        self.file.save_policy(StsEntry(domain="x.test").with_policy(POLICY, "a", NOW))
        with closing(sqlite3.connect(self.path)) as other:
            other.execute("UPDATE sts SET policy = 'version: STSv2'")
            other.commit()
        entry = self.file.policy("x.test")
        assert entry is not None
        self.assertIsNone(entry.policy)
        self.assertTrue(entry.must_fetch("a", NOW + RETRY))

    def test_a_policy_is_on_the_disk_before_it_is_used(self) -> None:
        statements: list[str] = []
        self.file._connection.set_trace_callback(statements.append)
        self.file.save_policy(StsEntry(domain="x.test").with_policy(POLICY, "a", NOW))
        self.assertEqual(
            [each.split("(")[0].strip() for each in statements][::2],
            ["PRAGMA synchronous=FULL", "PRAGMA synchronous=NORMAL"],
        )

    def test_sightings(self) -> None:
        self.assertEqual(self.file.see([sight(NOW), sight(NOW, domain="y.test", tls="")]), [])
        [fall] = self.file.see([sight(NOW + 1, "", problem="no shared cipher"), sight(NOW + 2, "")])
        self.assertEqual((fall.time, fall.problem), (NOW + 1, "no shared cipher"))
        self.reopen()
        latest, other = self.file.sightings(10)
        self.assertEqual(
            latest, Seen(last=sight(NOW + 2, ""), tls_at=NOW, plaintext_at=NOW + 2, plaintext_count=2)
        )
        self.assertEqual(other.last.domain, "y.test")
        self.assertEqual(len(self.file.sightings(1)), 1)

    def test_forget(self) -> None:
        self.file.save_policy(StsEntry(domain="x.test").with_policy(POLICY, "a", NOW))
        self.file.save_policy(StsEntry(domain="y.test").with_failure("a", "down", NOW))
        self.file.see([sight(NOW)])
        self.file.count([Session(time=NOW, domain="x.test", applied=NO_POLICY)])
        self.file.forget(NOW + 2 * DAY)
        self.assertEqual([each.domain for each in self.file.policies()], ["x.test"])
        self.assertEqual(len(self.file.reportable(99999)), 1)
        self.file.forget(NOW + WEEK + 2 * DAY)
        self.assertEqual(self.file.policies(), [])
        self.assertEqual(self.file.reportable(99999), [])
        self.assertEqual(len(self.file.sightings(10)), 1)
        self.file.forget(NOW + FORGET + 1)
        self.assertEqual(self.file.sightings(10), [])

    def test_a_failed_change_changes_nothing(self) -> None:
        broken: Any = attrs.evolve(sight(NOW), host=object())
        with self.assertRaises(sqlite3.Error):
            self.file.see([sight(NOW), broken])
        self.assertEqual(self.file.sightings(10), [])
        self.file.see([sight(NOW)])

    def test_files_that_can_not_be_used(self) -> None:
        junk = Path("junk").absolute()
        junk.write_bytes(b"x" * 5000)
        with self.assertRaisesRegex(SideFileError, "not a database .*found out anew"):
            TlsFile(junk)
        with self.assertRaisesRegex(SideFileError, "nowhere"):
            TlsFile(Path("nowhere/tls").absolute())
        with mock.patch("twisted_mta.store.tls_policies.VERSION", 99):
            self.reopen()
        self.file.close()
        with self.assertRaisesRegex(SideFileError, "newer"):
            TlsFile(self.path)


class CountTests(FileCase):
    def session(self, **given: Any) -> Session:
        known: dict[str, Any] = {
            "time": NOW,
            "domain": "x.test",
            "applied": STS,
            "host": "mx.x.test",
            "address": "192.0.2.1",
            "source": "192.0.2.9",
        }
        return Session(**(known | given))

    def test_counts(self) -> None:
        expired = Failure(Result.CERTIFICATE_EXPIRED, "it has expired", "10")
        self.file.count([self.session(), self.session(failure=expired), self.session(applied=NO_POLICY)])
        self.file.count(
            [self.session(failure=expired), self.session(time=NOW + DAY), self.session(domain="y.test")]
        )
        self.reopen()
        today = int(NOW // DAY)
        self.assertEqual(self.file.reportable(today + 1), [(today, "x.test"), (today, "y.test")])
        none, sts = self.file.counts(today, "x.test")
        self.assertEqual((none.applied, none.successes, none.failures, none.details), (NO_POLICY, 1, 0, ()))
        self.assertEqual((sts.applied, sts.successes, sts.failures), (STS, 1, 2))
        [detail] = sts.details
        self.assertEqual(
            detail,
            FailureCount(
                result="certificate-expired",
                host="mx.x.test",
                address="192.0.2.1",
                source="192.0.2.9",
                code="10",
                count=2,
            ),
        )
        self.file.reported(today, "x.test")
        self.assertEqual(self.file.reportable(today + 2), [(today, "y.test"), (today + 1, "x.test")])

    def test_different_failures_are_bounded(self) -> None:
        self.file.count(
            self.session(address=f"192.0.2.{n}", failure=Failure(Result.VALIDATION_FAILURE, "", str(n)))
            for n in range(MAX_DETAILS + 5)
        )
        [count] = self.file.counts(int(NOW // DAY), "x.test")
        self.assertEqual(len(count.details), MAX_DETAILS)
        self.assertEqual(count.failures, MAX_DETAILS + 5)

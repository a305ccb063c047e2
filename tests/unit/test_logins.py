"""Logging in beyond the password: keys for SCRAM in the passwd-file, app passwords, and what failures cost."""

from __future__ import annotations

import hashlib
import os
import tempfile
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from twisted_mta.config.loader import load
from twisted_mta.core.sasl import Credentials, Proof, ScramKeys, Secret
from twisted_mta.interfaces import Account, AuthenticationUnavailable, Client, IAuthenticator
from twisted_mta.service.accounts import FLUSH, Accounts
from twisted_mta.service.failures import FORGET, MAX_ADDRESSES, MAX_DELAY, Failures
from twisted_mta.store import passwords
from twisted_mta.store.app_passwords import (
    AppPassword,
    AppPasswordFile,
    LastUse,
    digest_of,
    new_secret,
    used_file,
)
from twisted_mta.store.authenticator import PasswdAuthenticator, ScramSettings
from twisted_mta.store.passwords import UnusableHash, hash_password, scram_keys, verify
from twisted_mta.store.secret import installation_secret
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.store.users import PasswdFile, UserError

IMAP = Client(service="imap", address="192.0.2.1")
SMTP = Client(service="smtp", address="192.0.2.1", session_id="s1")
TODAY = date(2026, 11, 22)
#: Noon of that day.
NOON = 1795348800.0
SALT = b"0123456789abcdef"


def cheap_hash(password: bytes, salt: bytes = b"s") -> str:
    """An Argon2id hash that costs next to nothing."""
    with (
        mock.patch.object(passwords, "MEMORY_KIB", 8),
        mock.patch.object(passwords, "ITERATIONS", 1),
        mock.patch.object(passwords, "LANES", 1),
    ):
        return hash_password(password, lambda count: salt * count)


SECRET = cheap_hash(b"secret")
KEYS = scram_keys(b"secret", SECRET, 4096)


class Directory(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = Path(directory.name)
        self.path = self.dir / "users"
        self.clock = Clock()
        self.clock.advance(NOON)

    def users(self, text: str) -> PasswdFile:
        self.path.write_text(text)
        users = PasswdFile(self.path, "example.test", "/mail/{local}")
        users.refresh()
        return users

    def done(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def refused(self, coroutine: Any) -> str:
        failure = self.failureResultOf(Deferred.fromCoroutine(coroutine), AuthenticationUnavailable)
        return str(failure.value)


class KeysTests(Directory):
    """Keys beside the hash."""

    def keys(self, line: str) -> ScramKeys | None:
        user = self.users(line + "\n").find("alice")
        assert user is not None
        return user.scram()

    def test_found_in_the_last_field(self) -> None:
        self.assertEqual(self.keys(f"alice:{SECRET}::::::scram_sha256={KEYS}"), KEYS)
        self.assertEqual(self.keys(f"alice:{SECRET}:1:2:A:/h:/s:quota=x:y scram_sha256={KEYS} a=b\r"), KEYS)

    def test_void_when_the_hash_is_another(self) -> None:
        for other in (cheap_hash(b"new", b"t"), "!", "", "*" + SECRET):
            self.assertIsNone(self.keys(f"alice:{other}::::::scram_sha256={KEYS}"), other)

    def test_none(self) -> None:
        for line in (f"alice:{SECRET}", f"alice:{SECRET}::::::a=b", f"alice:{SECRET}::::::scram_sha256=x"):
            self.assertIsNone(self.keys(line))

    def test_dovecots_scheme_serves_both(self) -> None:
        keys = ScramKeys.derive("secret", SALT, 4096)
        stored = f"{{SCRAM-SHA-256}}{keys}"
        self.assertEqual(self.keys(f"alice:{stored}::::::"), keys)
        self.assertTrue(verify(stored, b"secret"))
        self.assertTrue(verify(stored.replace("SCRAM", "scram"), b"secret"))
        self.assertFalse(verify(stored, b"Secret"))
        self.assertFalse(verify(stored, b"\xff"))
        self.assertRaisesRegex(UnusableHash, "SCRAM keys", verify, "{SCRAM-SHA-256}x", b"secret")

    def test_written_with_the_account(self) -> None:
        users = self.users("")
        users.add("alice", SECRET, KEYS)
        self.assertEqual(self.path.read_text(), f"alice@example.test:{SECRET}::::::scram_sha256={KEYS}\n")

    def test_written_with_a_new_password(self) -> None:
        for before, after in {
            "alice:x": f"alice:{SECRET}::::::scram_sha256={KEYS}",
            "alice:x:1:2": f"alice:{SECRET}:1:2::::scram_sha256={KEYS}",
            "alice:x:::::/s:a=b scram_sha256=old c=d": f"alice:{SECRET}:::::/s:a=b c=d scram_sha256={KEYS}",
            "alice:x::::::\r": f"alice:{SECRET}::::::scram_sha256={KEYS}\r",
        }.items():
            users = self.users("")
            self.path.write_bytes(before.encode() + b"\n")
            users.set_password("alice", SECRET, KEYS)
            self.assertEqual(self.path.read_bytes(), after.encode() + b"\n")

    def test_taken_out_with_a_password_that_has_none(self) -> None:
        self.users(f"alice:x::::::a=b scram_sha256={KEYS}\n").set_password("alice", SECRET)
        self.assertEqual(self.path.read_text(), f"alice:{SECRET}::::::a=b\n")

    def test_whether_all_have_them(self) -> None:
        with_keys, without = f"alice:{SECRET}::::::scram_sha256={KEYS}\n", f"bob:{SECRET}\n"
        for text, expected in (
            ("", False), (without, False), (with_keys, True), (with_keys + without, False),
            (with_keys + "carol:!:\n", True), ("carol:!:\n", False),
        ):  # fmt: skip
            self.assertEqual(self.users(text).all_scram, expected, text)


class AuthenticatorTests(Directory):
    """SCRAM and app passwords at the authenticator."""

    def setUp(self) -> None:
        super().setUp()
        line = f"alice:{SECRET}::::::scram_sha256={KEYS}\nbob:{SECRET}\nlocked:!\n"
        self.passwd = self.users(line)
        self.apps = AppPasswordFile.beside(self.path)
        self.use = LastUse(self.dir / "used")
        self.authenticator = self.make()

    def make(self, mode: str = "auto", key: bytes = b"k") -> PasswdAuthenticator:
        scram = ScramSettings(mode=mode, iterations=5000, key=key)
        return PasswdAuthenticator(
            self.passwd,
            InlineWorkers(),
            self.clock,
            os.urandom,
            apps=self.apps,
            last_use=self.use,
            scram=scram,
        )

    def secret(self, login: str) -> Secret:
        found: Secret = self.done(self.authenticator.secret(login, IMAP))
        return found

    def check(self, login: str, password: str, client: Client = IMAP) -> Account | None:
        found: Account | None = self.done(
            self.authenticator.authenticate(Credentials(login, password.encode()), client)
        )
        return found

    def add(self, account: str = "alice@example.test", label: str = "phone", *services: str) -> str:
        return self.apps.add(account, label, services, TODAY, os.urandom)

    def test_keys_and_a_new_nonce_each_time(self) -> None:
        one, other = self.secret("alice"), self.secret("Alice@Example.test")
        self.assertEqual((one.keys, other.keys), (KEYS, KEYS))
        self.assertNotEqual(one.nonce, other.nonce)
        self.assertNotIn(b",", one.nonce)

    def test_proofs(self) -> None:
        def check(claim: Proof) -> Account | None:
            found: Account | None = self.done(self.authenticator.authenticate(claim, IMAP))
            return found

        self.assertEqual(check(Proof("alice", True)), Account("alice@example.test", "/mail/alice"))
        self.assertIsNone(check(Proof("alice", False)))
        self.assertIsNone(check(Proof("nobody", True)))

    def test_logins_without_keys_can_not_be_told_apart(self) -> None:
        for login in ("nobody", "bob", "locked", "no address", ""):
            keys = self.secret(login).keys
            self.assertEqual((len(keys.salt), keys.iterations), (len(KEYS.salt), 5000))
            self.assertEqual(self.secret(login).keys, keys)
        self.assertEqual(self.secret("nobody").keys, self.secret("NOBODY@example.test").keys)
        self.assertNotEqual(self.secret("nobody").keys, self.secret("nobody2").keys)
        before = self.secret("nobody").keys
        self.authenticator = self.make(key=b"another installation")
        self.assertNotEqual(self.secret("nobody").keys, before)

    def test_when_it_is_offered(self) -> None:
        self.assertFalse(self.make().offers_scram())  # bob
        self.assertTrue(self.make("always").offers_scram())
        self.assertFalse(self.make("never").offers_scram())
        self.passwd.remove("bob")
        self.passwd.refresh()
        self.assertTrue(self.make().offers_scram())
        self.add()
        self.apps.refresh()
        self.assertFalse(self.make().offers_scram())

    def test_app_password(self) -> None:
        secret = self.add()
        account = Account("alice@example.test", "/mail/alice")
        self.assertEqual(self.check("alice", secret), account)
        self.assertEqual(self.check("ALICE", secret.upper().replace("-", " ")), account)
        self.assertIsNone(self.check("bob", secret))
        self.assertIsNone(self.check("alice", secret[:-1]))
        self.assertEqual(self.check("alice", "secret"), account)

    def test_revoked_at_once_even_if_remembered(self) -> None:
        secret = self.add()
        self.assertIsNotNone(self.check("alice", secret))
        self.assertIsNotNone(self.check("alice", secret))
        self.apps.revoke("alice@example.test", "phone")
        self.assertIsNone(self.check("alice", secret))
        self.assertIsNotNone(self.check("alice", "secret"))

    def test_of_a_locked_account(self) -> None:
        secret = self.add("locked@example.test")
        self.assertIsNone(self.check("locked", secret))

    def test_for_one_service(self) -> None:
        secret = self.add("alice@example.test", "phone", "smtp")
        for _ in range(2):  # checked, and remembered
            with capturedLogs() as events:
                self.assertIsNone(self.check("alice", secret, IMAP))
            self.assertEqual([event["label"] for event in events if "label" in event], ["phone"])
            self.assertIsNotNone(self.check("alice", secret, SMTP))

    def test_last_use(self) -> None:
        secret = self.add()
        (app,) = self.listed()
        self.assertEqual(self.use.when(app), "")
        self.check("alice", secret)
        self.assertTrue(self.use.dirty)
        self.use.flush()
        self.check("alice", secret)
        self.assertFalse(self.use.dirty)  # nothing new today
        self.clock.advance(86400)
        self.check("alice", secret)
        self.use.flush()
        self.assertEqual(LastUse(self.dir / "used").when(app), "2026-11-23")

    def listed(self) -> list[AppPassword]:
        self.apps.refresh()
        return [*self.apps.of("alice@example.test")]


class AppPasswordTests(Directory):
    """The files."""

    def setUp(self) -> None:
        super().setUp()
        self.apps = AppPasswordFile.beside(self.path)

    def add(self, label: str, services: tuple[str, ...] = ()) -> str:
        return self.apps.add("Alice@example.test", label, services, TODAY, os.urandom)

    def test_file(self) -> None:
        secret = self.add("my phone", ("pop3", "imap"))
        self.assertRegex(secret, r"^([a-z2-9]{4}-){6}[a-z2-9]{4}$")
        path = self.dir / "users.app-passwords"
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        text = path.read_text()
        self.assertRegex(
            text, r"^alice@example\.test:my phone:\{SHA256\}[A-Za-z0-9+/]{43}=:2026-11-22:imap,pop3\n$"
        )
        self.assertNotIn(secret, text)
        self.apps.refresh()
        found = self.apps.find("ALICE@example.test", secret.encode())
        assert found is not None
        self.assertEqual(
            (found.label, found.created, found.services), ("my phone", "2026-11-22", ("imap", "pop3"))
        )
        self.assertNotIn(repr(found.digest), repr(found))

    def test_secrets_are_of_all_letters_alike(self) -> None:
        octets = iter(range(10**6))

        def counting(count: int) -> bytes:
            return bytes(next(octets) % 256 for _ in range(count))

        secrets = "".join(new_secret(counting).replace("-", "") for _ in range(31 * 64))
        counts = {letter: secrets.count(letter) for letter in set(secrets)}
        self.assertEqual(len(counts), 31)
        self.assertLess(max(counts.values()) - min(counts.values()), 0.01 * len(secrets))

    def test_labels(self) -> None:
        self.add("phone")
        self.assertRaisesRegex(UserError, "already", self.add, "phone")
        for label in ("", "a:b", "a\nb", "x" * 65):
            self.assertRaisesRegex(UserError, "a label has", self.add, label)
        with mock.patch("twisted_mta.store.app_passwords.MAX_PER_ACCOUNT", 1):
            self.assertRaisesRegex(UserError, "enough", self.add, "laptop")

    def test_revoke(self) -> None:
        self.assertRaisesRegex(UserError, "no app passwords", self.apps.revoke, "alice@example.test", "phone")
        self.assertEqual(self.apps.revoke("alice@example.test"), 0)
        self.add("phone")
        self.add("laptop")
        self.apps.add("bob@example.test", "phone", (), TODAY, os.urandom)
        self.assertRaisesRegex(UserError, "'watch'", self.apps.revoke, "alice@example.test", "watch")
        self.assertEqual(self.apps.revoke("Alice@example.test", "phone"), 1)
        self.assertEqual(self.apps.revoke("Alice@example.test"), 1)
        self.apps.refresh()
        self.assertEqual([app.account for app in self.apps._found.values()], ["bob@example.test"])

    def test_lines_that_are_none_are_kept_and_good_for_nobody(self) -> None:
        digest = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
        bad = [
            "# comment",
            "",
            f"a@x.test:l:{{SHA256}}{digest}:2026-11-22:imap,fax",
            f"a@x.test:l:{{SHA256}}{digest}:2026-11-22",
            "a@x.test:l:{SHA256}x:2026-11-22:",
            "a@x.test:l:{SHA256}\N{SNOWMAN}:2026-11-22:",
            f"a@x.test:l:{digest}:2026-11-22:",
        ]
        self.apps.path.write_text("\n".join(bad) + "\n")
        with capturedLogs() as events:
            self.apps.refresh()
        self.assertEqual(len([event for event in events if "number" in event]), 5)
        self.assertFalse(self.apps.any)
        self.add("phone")
        self.assertEqual(self.apps.path.read_text().splitlines()[:-1], bad)

    def test_the_file_may_go(self) -> None:
        self.add("phone")
        self.apps.refresh()
        self.assertTrue(self.apps.any)
        self.apps.path.unlink()
        self.apps.refresh()
        self.assertFalse(self.apps.any)

    @given(st.text(alphabet="a:{}SHA256=,imap-\r", max_size=60))
    @settings(max_examples=200)
    def test_what_is_read_is_what_was_written(self, line: str) -> None:
        app = AppPassword.parse(line)
        self.assertTrue(app is None or AppPassword.parse(app.line()) == app)

    def test_digest(self) -> None:
        self.assertEqual(digest_of(b"AB c-d"), hashlib.sha256(b"abcd").digest())

    def test_last_use_that_can_not_be_written(self) -> None:
        self.add("phone")
        self.apps.refresh()
        (app,) = self.apps.of("alice@example.test")
        use = LastUse(self.dir / "gone" / "used")
        use.note(app, "2026-11-22")
        self.assertRaises(OSError, use.flush)
        self.assertTrue(use.dirty)
        (self.dir / "gone").mkdir()
        use.flush()
        self.assertFalse(use.dirty)

    def test_last_use_forgets_the_revoked(self) -> None:
        self.add("phone")
        self.apps.refresh()
        (app,) = self.apps.of("alice@example.test")
        path = self.dir / "used"
        path.write_text("garbage\n0123456789abcdef 2026-01-01\n")
        use = LastUse(path)
        use.note(app, "2026-11-22")
        use.flush(self.apps.ids.__contains__)
        self.assertEqual(path.read_text(), f"{app.id} 2026-11-22\n")
        nowhere = LastUse(None)
        nowhere.note(app, "2026-11-22")
        nowhere.flush()
        self.assertFalse(nowhere.dirty)


class FailuresTests(SynchronousTestCase):
    """The table of failures."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.failures = Failures(self.clock.seconds, 5)

    def test_slower_and_slower_then_refused_then_forgotten(self) -> None:
        self.assertEqual([self.failures.note("192.0.2.1") for _ in range(4)], [0, 1, 2, 4])
        self.assertEqual(self.failures.minutes_left("192.0.2.1"), 0)
        self.failures.note("192.0.2.1")
        self.assertEqual(self.failures.minutes_left("192.0.2.1"), 15)
        self.assertEqual(self.failures.minutes_left("192.0.2.2"), 0)
        self.clock.advance(FORGET - 1)
        self.assertEqual(self.failures.minutes_left("192.0.2.1"), 1)
        self.clock.advance(1)
        self.assertEqual(self.failures.minutes_left("192.0.2.1"), 0)
        self.assertEqual(self.failures.note("192.0.2.1"), 0)

    def test_never_slower_than_clients_wait(self) -> None:
        self.assertEqual(max(self.failures.note("192.0.2.1") for _ in range(2000)), MAX_DELAY)

    def test_a_network_of_ipv6_is_one(self) -> None:
        for host in range(5):
            self.failures.note(f"2001:db8::{host}")
        self.assertEqual(self.failures.minutes_left("2001:db8::ffff:1"), 15)
        self.assertEqual(self.failures.minutes_left("2001:db8:0:1::1"), 0)

    def test_this_host_is_slowed_down_only(self) -> None:
        for address in ("127.0.0.1", "::1"):
            self.assertEqual([self.failures.note(address) for _ in range(6)][-1], MAX_DELAY)
            self.assertEqual(self.failures.minutes_left(address), 0)

    def test_no_address(self) -> None:
        self.assertEqual(self.failures.note("not an address"), 0)

    def test_bounded(self) -> None:
        for number in range(MAX_ADDRESSES + 10):
            self.failures.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        self.assertEqual(len(self.failures._known), MAX_ADDRESSES)


class AccountsTests(Directory):
    """The whole: service.accounts on files."""

    def setUp(self) -> None:
        super().setUp()
        self.path.write_text(f"alice:{SECRET}::::::scram_sha256={KEYS}\n")
        self.path.chmod(0o600)
        config = self.dir / "mta.toml"
        config.write_text(
            'hostname = "mx.example.test"\ndomains = ["example.test"]\ndata = "data"\npostmaster = "alice"\n'
            '[accounts]\nfile = "users"\nmaildir = "mail/{user}"\n[limits]\nlogin_failures = 3\n'
            '[[listen]]\nrole = "mx"\nendpoint = "tcp:0"\n'
        )
        self.config = load(config, check_files=False)
        self.accounts = Accounts(self.config, InlineWorkers(), self.clock, os.urandom)

    def login(self, password: str, client: Client = IMAP) -> Deferred[Account | None]:
        return Deferred.fromCoroutine(
            self.accounts.authenticate(Credentials("alice", password.encode()), client)
        )

    def test_interface(self) -> None:
        verifyObject(IAuthenticator, self.accounts)
        self.assertTrue(self.accounts.offers_scram())
        self.assertEqual(self.done(self.accounts.secret("alice", IMAP)).keys, KEYS)

    def test_failures_are_told_once_and_answered_late(self) -> None:
        with capturedLogs() as events:
            self.assertIsNone(self.successResultOf(self.login("x" * 300, SMTP)))
        (event,) = (event for event in events if "reason" in event)
        self.assertEqual(
            (event["login"], event["service"], event["peer"], event["session"], event["reason"]),
            ("alice", "smtp", "192.0.2.1", "s1", "wrong login or password"),
        )
        self.assertNotIn("xxx", repr(event))
        waiting = self.login("wrong")
        self.assertNoResult(waiting)
        self.clock.advance(1)
        self.assertIsNone(self.successResultOf(waiting))

    def test_a_right_password_does_not_wait(self) -> None:
        for _ in range(2):
            self.login("wrong")
        self.assertIsNotNone(self.successResultOf(self.login("secret")))

    def test_too_many_end_it_but_for_who_is_known(self) -> None:
        self.successResultOf(self.login("secret"))
        for _ in range(3):
            self.login("wrong")
        other = Client(service="imap", address="192.0.2.2")
        self.assertIsNotNone(self.successResultOf(self.login("secret")))  # was right a moment ago
        self.clock.advance(301)
        failure = self.failureResultOf(self.login("secret"), AuthenticationUnavailable)
        self.assertIn("try again in 10 minutes", str(failure.value))
        self.refused(self.accounts.secret("alice", IMAP))
        self.refused(self.accounts.authenticate(Proof("alice", True), IMAP))
        self.assertIsNotNone(self.successResultOf(self.login("secret", other)))
        self.clock.advance(FORGET)
        self.assertIsNotNone(self.successResultOf(self.login("secret")))

    def test_wrong_proofs_count_too_and_say_why(self) -> None:
        with capturedLogs() as events:
            self.done(self.accounts.authenticate(Proof("alice", False, "in between"), IMAP))
        self.assertEqual([event["reason"] for event in events if "reason" in event], ["in between"])
        self.assertNoResult(self.login("wrong"))

    def test_the_limit_follows_a_reload(self) -> None:
        import attrs

        limits = attrs.evolve(self.config.limits, login_failures=1)
        self.done(self.accounts.reload(attrs.evolve(self.config, limits=limits)))
        self.login("wrong")
        self.failureResultOf(self.login("secret"), AuthenticationUnavailable)

    def test_last_use_is_written_now_and_then_and_at_the_end(self) -> None:
        apps = AppPasswordFile.beside(self.path)
        secret = apps.add("alice@example.test", "phone", (), TODAY, os.urandom)
        path = used_file(self.config.data)
        self.accounts.start()
        self.assertIsNotNone(self.successResultOf(self.login(secret)))
        self.assertFalse(path.exists())
        self.clock.advance(FLUSH)
        self.assertIn("2026-11-22", path.read_text())
        self.clock.advance(86400)
        self.assertIsNotNone(self.successResultOf(self.login(secret)))
        self.accounts.stop()
        self.assertIn("2026-11-23", path.read_text())

    def test_last_use_that_can_not_be_written_stops_nothing(self) -> None:
        apps = AppPasswordFile.beside(self.path)
        secret = apps.add("alice@example.test", "phone", (), TODAY, os.urandom)
        self.assertIsNotNone(self.successResultOf(self.login(secret)))
        with mock.patch("os.rename", side_effect=OSError(28, "full")), capturedLogs() as events:
            self.accounts.stop()
        self.assertTrue(any("can't be written" in event["log_format"] for event in events))


class InstallationSecretTests(Directory):
    """What made-up salts come from."""

    def test_made_once(self) -> None:
        made = installation_secret(self.dir / "data", os.urandom)
        self.assertEqual(len(made), 32)
        self.assertEqual(installation_secret(self.dir / "data", os.urandom), made)
        self.assertEqual((self.dir / "data" / "secret").stat().st_mode & 0o777, 0o600)

    def test_a_damaged_one_is_made_anew(self) -> None:
        for text in ("", "zz", "00ff"):
            (self.dir / "secret").write_text(text)
            made = installation_secret(self.dir, lambda count: b"n" * count)
            self.assertEqual(made, b"n" * 32)

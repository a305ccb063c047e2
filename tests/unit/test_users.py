"""Accounts: password hashes, the passwd-file and its edits, and the authenticator."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
import unittest
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from twisted_mta.core.address import Address
from twisted_mta.core.sasl import Credentials
from twisted_mta.interfaces import Account, AuthenticationUnavailable, Client, IAuthenticator
from twisted_mta.store import passwords
from twisted_mta.store.authenticator import PasswdAuthenticator
from twisted_mta.store.passwords import UnusableHash, hash_password, sha512_crypt, verify
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.store.users import PasswdFile, UserError, maildir_path

#: The last of the published vectors.
SHA512 = "$6$rounds=1000$roundstoolow$kUMsbe306n21p9R.FRkW3IGn.S9NPN0x50YhH1xhLsPuWGsUSklZt58jaTfF4ZEQpyUNGc0dqbpBYYBaHHrsX."


def cheap_hash(password: bytes) -> str:
    """An Argon2id hash that costs next to nothing."""
    with (
        mock.patch.object(passwords, "MEMORY_KIB", 8),
        mock.patch.object(passwords, "ITERATIONS", 1),
        mock.patch.object(passwords, "LANES", 1),
    ):
        return hash_password(password, lambda count: b"s" * count)


SECRET = cheap_hash(b"secret")
IMAP = Client(service="imap", address="192.0.2.1")


class PasswordsTests(unittest.TestCase):
    """Hashes."""

    def test_argon2id_of_another_program(self) -> None:
        # The example of the reference implementation (P-H-C/phc-winner-argon2, test.c).
        stored = (
            "{ARGON2ID}$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"
        )
        self.assertTrue(verify(stored, b"password"))
        self.assertFalse(verify(stored, b"Password"))

    def test_own_hashes_are_strong_salted_and_readable(self) -> None:
        stored = hash_password(b"secret", os.urandom)
        self.assertTrue(stored.startswith("{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=4$"))
        self.assertTrue(verify(stored, b"secret"))
        self.assertFalse(verify(stored, b""))

    def test_several_at_a_time(self) -> None:
        """OpenSSL failed, or waited for ever, when hashes with several lanes ran beside each other."""
        stored = "{ARGON2ID}$argon2id$v=19$m=1024,t=2,p=4$c29tZXNhbHQ$" + "A" * 43
        answers: list[bool] = []
        threads = [
            threading.Thread(
                target=lambda: answers.extend(verify(stored, b"x") for _ in range(20)), daemon=True
            )
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(answers, [False] * 120)

    def test_published_sha512_crypt_vectors(self) -> None:
        vectors = [
            (
                b"Hello world!",
                b"saltstring",
                5000,
                "svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
            ),
            (
                b"Hello world!",
                b"saltstringsaltst",
                10000,
                "OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy/YTBmSK6H9qs/y3RnOaw5v.",
            ),
            (
                b"This is just a test",
                b"toolongsaltstrin",
                5000,
                "lQ8jolhgVRVhY4b5pZKaysCLi0QBxGoNeKQzQ3glMhwllF7oGDZxUhx1yxdYcz/e1JSbq3y6JMxxl8audkUEm0",
            ),
            (
                b"we have a short salt string but not a short password",
                b"short",
                77777,
                "WuQyW2YR.hBNpjjRhpYD/ifIw05xdfeEyQoMxIXbkvr0gge1a1x3yRULJ5CCaUeOxFmtlcGZelFl5CxtgfiAc0",
            ),
        ]
        for password, salt, rounds, expected in vectors:
            with self.subTest(salt):
                self.assertEqual(sha512_crypt(password, salt, rounds), expected)

    @unittest.skipUnless(shutil.which("openssl"), "openssl is the oracle")
    def test_sha512_crypt_against_openssl(self) -> None:
        for length in (1, 63, 64, 65, 127, 128, 129, 200):
            password = "p" * length
            command = ["openssl", "passwd", "-6", "-salt", "salt", "-stdin"]
            made = subprocess.run(command, input=password, capture_output=True, text=True, check=True)
            self.assertTrue(verify("{SHA512-CRYPT}" + made.stdout.strip(), password.encode()))

    def test_schemes(self) -> None:
        value = SECRET.removeprefix("{ARGON2ID}")
        for stored in (SECRET, "{argon2id}" + value, "{CRYPT}" + value, value):
            self.assertTrue(verify(stored, b"secret"), stored)
        for prefix in ("", "{CRYPT}", "{SHA512-CRYPT}"):
            self.assertTrue(verify(prefix + SHA512, b"the minimum number is still observed"))

    def test_unusable(self) -> None:
        cases = {
            "": "no password",
            "!": "no password",
            "*": "no password",
            "secret": "no {SCHEME}",
            "{PLAIN}secret": "plain text",
            "{CLEARTEXT}secret": "plain text",
            "{BLF-CRYPT}$2y$05$x": "{BLF-CRYPT} is not known",
            "{ARGON2ID}$argon2id$v=19$m=8,t=1,p=1$x$y": "not whole",
            "{ARGON2ID}$argon2id$v=19$m=9999999,t=1,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5": "more memory",
            "{ARGON2ID}$argon2id$v=19$m=4,t=1,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5": "more memory",
            "{SHA512-CRYPT}$6$salt$x": "not whole",
            "{SHA512-CRYPT}" + SHA512.replace("1000", "99999999"): "more rounds",
        }
        for stored, why in cases.items():
            with self.subTest(stored), self.assertRaisesRegex(UnusableHash, why) as caught:
                verify(stored, b"secret")
            self.assertNotIn("secret", str(caught.exception))

    def test_endless_passwords_are_wrong(self) -> None:
        self.assertFalse(verify(cheap_hash(b"x" * 1001), b"x" * 1001))

    @given(st.text(max_size=60))
    @settings(max_examples=200)
    def test_any_text_is_checked_or_unusable(self, stored: str) -> None:
        with contextlib.suppress(UnusableHash):
            self.assertFalse(verify(stored, b"x"))


class Directory(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = Path(directory.name)
        self.path = self.dir / "users"

    def users(self, text: str | None = None) -> PasswdFile:
        if text is not None:
            self.path.write_text(text)
        users = PasswdFile(self.path, "example.test", "/mail/{domain}/{local}")
        if text is not None:
            users.refresh()
        return users


class LookUpTests(Directory):
    """Reading."""

    def test_lines(self) -> None:
        users = self.users(
            f"# comment\n\nalice:{SECRET}:1000:1000::/home/alice::extra=1\nBob@example.ORG:x\r\n"
        )
        self.assertEqual(users.names(), ["alice@example.test", "Bob@example.org"])
        self.assertEqual(
            users.account("ALICE@Example.Test"), Account("alice@example.test", "/mail/example.test/alice")
        )
        self.assertEqual(users.account("alice"), users.account("alice@example.test"))
        self.assertEqual(
            users.account("bob@example.org"), Account("Bob@example.org", "/mail/example.org/bob")
        )
        self.assertIsNone(users.account("bob"))
        self.assertIsNone(users.account("not an address"))
        user = users.find("alice")
        assert user is not None
        self.assertEqual(user.stored, SECRET)
        self.assertNotIn(SECRET, repr(user))

    def test_bad_lines_are_told_and_skipped(self) -> None:
        users = self.users("alice:x\nal ice:x\nbob\nalice@example.test:y\n")
        self.assertEqual(users.names(), ["alice@example.test"])
        self.assertEqual(len(users.problems), 3)
        self.assertIn(":2: the user name is no address", users.problems[0])
        self.assertIn(':3: there is no ":"', users.problems[1])
        self.assertIn(":4: the user is listed twice", users.problems[2])

    def test_refresh_sees_changes(self) -> None:
        users = self.users("alice:x\n")
        self.assertFalse(users.refresh())
        replacement = self.dir / "new"
        replacement.write_text("bob:x\n")
        replacement.rename(self.path)
        self.assertTrue(users.refresh())
        self.assertEqual(users.names(), ["bob@example.test"])

    def test_a_file_that_vanished_changes_nothing(self) -> None:
        users = self.users("alice:x\n")
        self.path.unlink()
        self.assertRaises(OSError, users.refresh)
        self.assertEqual(users.names(), ["alice@example.test"])

    def test_maildirs_stay_in_their_place(self) -> None:
        cases = {
            "alice": "/m/example.test/alice",
            "..": "/m/example.test/%2E.",
            "../../etc": "/m/example.test/%2E.%2F..%2Fetc",
            "a/b": "/m/example.test/a%2Fb",
            "a%2fb": "/m/example.test/a%252fb",
            "Ünï": "/m/example.test/ünï",
            "{domain}": "/m/example.test/%7Bdomain%7D",
        }
        for local, expected in cases.items():
            self.assertEqual(maildir_path("/m/{domain}/{local}", Address(local, "example.test")), expected)
        self.assertEqual(maildir_path("/m/{user}", Address("a b", "x.test")), "/m/%22a%20b%22@x.test")

    @given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
    def test_no_name_leaves_its_directory(self, local: str, domain: str) -> None:
        path = maildir_path("/m/{domain}/{local}", Address(local, domain))
        self.assertEqual(path.count("/"), 3)
        self.assertNotIn("\0", path)
        self.assertFalse({".", ".."} & set(path.split("/")))


class EditTests(Directory):
    """Edits keep whatever they don't change."""

    BEFORE = "# people\nalice:{X}old:1:2:A:/home:/bin/sh:quota=1\n\nbob@example.test:y:::\n# end\n"

    def test_add(self) -> None:
        users = self.users(self.BEFORE)
        self.assertEqual(users.add("carol", SECRET), "carol@example.test")
        self.assertEqual(self.path.read_text(), f"{self.BEFORE}carol@example.test:{SECRET}::::::\n")
        users.refresh()
        self.assertEqual(users.names()[-1], "carol@example.test")

    def test_add_to_nothing(self) -> None:
        users = self.users()
        users.add("carol", "x")
        self.assertEqual(self.path.read_text(), "carol@example.test:x::::::\n")
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    def test_add_behind_a_line_without_end(self) -> None:
        self.users("alice:x").add("bob", "y")
        self.assertEqual(self.path.read_text(), "alice:x\nbob@example.test:y::::::\n")

    def test_set_password_keeps_the_other_fields(self) -> None:
        self.users(self.BEFORE).set_password("ALICE@example.test", "{Y}new")
        self.assertEqual(self.path.read_text(), self.BEFORE.replace("{X}old", "{Y}new"))

    def test_remove(self) -> None:
        self.users(self.BEFORE).remove("bob")
        self.assertEqual(self.path.read_text(), self.BEFORE.replace("bob@example.test:y:::\n", ""))

    def test_refusals_change_nothing(self) -> None:
        users = self.users(self.BEFORE)
        self.assertRaisesRegex(UserError, "already", users.add, "Bob", "x")
        self.assertRaisesRegex(UserError, "there is no account", users.remove, "carol")
        self.assertRaisesRegex(UserError, "there is no account", users.set_password, "carol", "x")
        self.assertRaisesRegex(UserError, "no name of an account", users.add, "a b", "x")
        self.assertRaisesRegex(UserError, "no name of an account", users.add, "a\nb", "x")
        self.assertRaisesRegex(UserError, "colon", users.add, '"a:b"@example.test', "x")
        self.assertRaisesRegex(UserError, "no name of an account", users.add, '""@example.test', "x")
        self.assertEqual(self.path.read_text(), self.BEFORE)

    def test_permissions_are_narrowed_but_for_the_group(self) -> None:
        users = self.users(self.BEFORE)
        self.path.chmod(0o664)
        users.remove("bob")
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o640)

    def test_a_link_stays_a_link(self) -> None:
        real = self.dir / "real"
        real.write_text(self.BEFORE)
        self.path.symlink_to("real")
        self.users().remove("bob")
        self.assertTrue(self.path.is_symlink())
        self.assertNotIn("bob", real.read_text())

    def test_failure_leaves_the_old_file_and_nothing_else(self) -> None:
        users = self.users(self.BEFORE)
        with mock.patch("os.rename", side_effect=OSError(28, "full")):
            self.assertRaises(OSError, users.remove, "bob")
        self.assertEqual(self.path.read_text(), self.BEFORE)
        self.assertEqual(sorted(os.listdir(self.dir)), ["users", "users.lock"])

    def test_editors_wait_for_each_other(self) -> None:
        users = self.users("")
        threads = [threading.Thread(target=users.add, args=(f"u{i}", "x")) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        users.refresh()
        self.assertEqual(len(users.names()), 20)

    def test_bytes_that_are_no_utf8_are_kept(self) -> None:
        self.path.write_bytes(b"alice:x:::caf\xe9\nbob:y\n")
        self.users().remove("bob")
        self.assertEqual(self.path.read_bytes(), b"alice:x:::caf\xe9\n")


class CountingWorkers(InlineWorkers):
    def __init__(self) -> None:
        self.count = 0

    def run(self, function: Callable[..., object], *args: object, **kwargs: object) -> Deferred[object]:  # type: ignore[override]
        self.count += 1
        return super().run(function, *args, **kwargs)


class StuckWorkers:
    """Jobs that never end."""

    def run(self, function: object, *args: object) -> Deferred[object]:
        return Deferred()


class AuthenticatorTests(Directory):
    """Logging in."""

    def setUp(self) -> None:
        super().setUp()
        self.path.write_text(f"alice:{SECRET}\ncarol:{{PLAIN}}hunter2\ndave:!\n")
        self.clock = Clock()
        self.workers = CountingWorkers()
        self.authenticator = PasswdAuthenticator(self.users(), self.workers, self.clock, os.urandom)

    def check(self, login: str, password: bytes) -> Account | None:
        return self.successResultOf(
            Deferred.fromCoroutine(self.authenticator.authenticate(Credentials(login, password), IMAP))
        )

    def test_interface(self) -> None:
        verifyObject(IAuthenticator, self.authenticator)

    def test_right_and_wrong(self) -> None:
        alice = Account("alice@example.test", "/mail/example.test/alice")
        self.assertEqual(self.check("alice", b"secret"), alice)
        self.assertEqual(self.check("Alice@EXAMPLE.test", b"secret"), alice)
        self.assertIsNone(self.check("alice", b"Secret"))
        self.assertIsNone(self.check("alice", b""))
        self.assertIsNone(self.check("bob", b"secret"))
        self.assertIsNone(self.check("", b"secret"))
        self.assertIsNone(self.check("alice", b"x" * 5000))

    def test_nothing_is_remembered_where_it_is_turned_off(self) -> None:
        self.authenticator = PasswdAuthenticator(
            self.users(), self.workers, self.clock, os.urandom, remember=0.0
        )
        for count in (1, 2):
            self.assertIsNotNone(self.check("alice", b"secret"))
            self.assertEqual(self.workers.count, count)
        self.assertEqual(self.authenticator._right, {})

    def test_success_is_remembered_for_a_while(self) -> None:
        self.check("alice", b"secret")
        self.check("alice", b"secret")
        self.assertEqual(self.workers.count, 1)
        self.clock.advance(300)
        self.assertIsNotNone(self.check("alice", b"secret"))
        self.assertEqual(self.workers.count, 2)

    def test_failure_is_not(self) -> None:
        self.check("alice", b"wrong")
        self.check("alice", b"wrong")
        self.assertEqual(self.workers.count, 2)

    def test_login_and_password_can_not_be_shifted_into_each_other(self) -> None:
        self.assertIsNotNone(self.check("alice", b"secret"))
        self.assertIsNone(self.check("alices", b"ecret"))

    def test_a_new_password_counts_at_once(self) -> None:
        self.assertIsNotNone(self.check("alice", b"secret"))
        self.users().set_password("alice", cheap_hash(b"other"))
        self.assertIsNone(self.check("alice", b"secret"))
        self.assertIsNotNone(self.check("alice", b"other"))

    def test_what_is_remembered_is_bounded(self) -> None:
        self.authenticator = PasswdAuthenticator(
            self.users(), self.workers, self.clock, os.urandom, max_remembered=1
        )
        for login in ("alice", "alice@example.test", "alice"):
            self.check(login, b"secret")
        self.assertEqual(self.workers.count, 3)

    def test_unknown_logins_cost_one_hash_too(self) -> None:
        for login in ("alice", "nobody", "carol", "dave"):
            counting = mock.Mock(wraps=passwords._verify_argon2id)
            with mock.patch.dict(passwords._SCHEMES, {"ARGON2ID": counting}):
                self.assertIsNone(self.check(login, b"wrong"))
            self.assertEqual(counting.call_count, 1, login)

    def test_without_accounts_there_is_a_hash_to_check_against(self) -> None:
        self.path.write_text("dave:!\n")
        self.authenticator._fallback = SECRET
        self.assertIsNone(self.check("bob", b"secret"))
        self.path.write_text("")
        self.assertIsNone(self.check("bob", b"secret"))

    def test_unusable_hash_is_logged_without_it(self) -> None:
        with capturedLogs() as events:
            self.assertIsNone(self.check("carol", b"hunter2"))
        (event,) = (event for event in events if "login" in event)
        self.assertEqual(event["login"], "carol@example.test")
        self.assertIn("plain text", event["error"])
        self.assertNotIn("hunter2", repr(event))

    def test_too_many_at_a_time(self) -> None:
        self.authenticator = PasswdAuthenticator(
            self.users(), StuckWorkers(), self.clock, os.urandom, max_waiting=2
        )
        waiting = [
            Deferred.fromCoroutine(self.authenticator.authenticate(Credentials("alice", b"x"), IMAP))
            for _ in range(3)
        ]
        self.failureResultOf(waiting[2], AuthenticationUnavailable)
        waiting[0].addErrback(lambda _: None).cancel()
        waiting.append(
            Deferred.fromCoroutine(self.authenticator.authenticate(Credentials("alice", b"x"), IMAP))
        )
        self.assertNoResult(waiting[3])

    def test_accounts_that_can_not_be_read(self) -> None:
        self.path.unlink()
        with capturedLogs() as events:
            self.failureResultOf(
                Deferred.fromCoroutine(
                    self.authenticator.authenticate(Credentials("alice", b"secret"), IMAP)
                ),
                AuthenticationUnavailable,
            )
        self.assertTrue(any("can't be read" in event["log_format"] for event in events))

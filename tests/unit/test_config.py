"""The configuration: what a file gives, what etc/mta.toml promises, and what a reload changes."""

from __future__ import annotations

import re
import tempfile
import unittest
from ipaddress import ip_network
from pathlib import Path
from unittest import mock

import attrs

from twisted_mta.config import schema
from twisted_mta.config.diff import changes, restart_needed
from twisted_mta.config.errors import ConfigErrors, did_you_mean, quote
from twisted_mta.config.lines import KeyLines
from twisted_mta.config.loader import load, load_with_warnings
from twisted_mta.config.schema import Role, Route
from twisted_mta.config.tables import KEYS
from twisted_mta.core.address import Address

EXAMPLE = Path(__file__).parents[2] / "etc" / "mta.toml"

SMALL = """
hostname = "mail.example.test"
domains = ["example.test"]
postmaster = "alice"
[[listen]]
role = "mx"
endpoint = "tcp:25"
"""


class Files(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = Path(directory.name)

    def load(self, text: str, top: str = "") -> schema.Config:
        path = self.dir / "mta.toml"
        path.write_text(top + SMALL + text)
        return load(path, check_files=False)

    def errors(self, text: str, top: str = "", *, check_files: bool = False) -> list[str]:
        path = self.dir / "mta.toml"
        path.write_text(top + SMALL + text)
        try:
            _, problems = load_with_warnings(path, check_files=check_files)
        except ConfigErrors as error:
            problems = error.problems
        return [str(problem).removeprefix(str(self.dir) + "/") for problem in problems]


class LoadTests(Files):
    """Good files."""

    def test_small_file_is_enough(self) -> None:
        config = self.load("")
        self.assertEqual(config.hostname, "mail.example.test")
        self.assertEqual(config.domains, ("example.test",))
        self.assertEqual(config.postmaster, Address("alice", "example.test"))
        self.assertEqual(config.listen, (schema.Listen(role=Role.MX, endpoint="tcp:25"),))
        self.assertEqual(config.accounts.file, self.dir / "users")
        self.assertEqual(config.accounts.maildir, "/var/lib/mta/mail/{domain}/{local}")
        self.assertEqual(config.queue, schema.Queue())
        self.assertEqual(config.limits, schema.Limits())
        self.assertEqual(config.relay, schema.Relay())
        self.assertEqual(config.path, self.dir / "mta.toml")

    def test_maildirs_follow_the_data_directory(self) -> None:
        config = self.load("", top='data = "spool"\n')
        self.assertEqual(config.data, self.dir / "spool")
        self.assertEqual(config.accounts.maildir, f"{self.dir}/spool/mail/{{domain}}/{{local}}")

    def test_durations_and_sizes(self) -> None:
        config = self.load(
            '[queue]\nschedule = "5m, 30m*2"\nexpire = "2d"\nwarn_after = 0\n'
            '[limits]\nmessage_size = "64K"\ndisk_reserve = "1 GiB"\nimap_timeout = 90.5\n'
        )
        self.assertEqual(config.queue.schedule, (300.0, 1800.0, 1800.0))
        self.assertEqual(config.queue.expire, 172800.0)
        self.assertEqual(config.queue.warn_after, 0.0)
        self.assertEqual(config.limits.message_size, 65536)
        self.assertEqual(config.limits.disk_reserve, 1 << 30)
        self.assertEqual(config.limits.imap_timeout, 90.5)

    def test_relay(self) -> None:
        config = self.load(
            '[relay]\nnetworks = ["192.0.2.0/24", "2001:db8::1"]\n'
            'smarthost = { host = "smtp.example.net:587", username = "u", password_file = "secret" }\n'
            '[relay.routes]\n"Example.ORG" = "[2001:db8::1]:2525"\n".sub.example" = { host = "mx.example", mx = true }\n'
        )
        self.assertEqual(config.relay.networks, (ip_network("192.0.2.0/24"), ip_network("2001:db8::1")))
        self.assertEqual(
            config.relay.smarthost,
            Route(host="smtp.example.net", port=587, username="u", password_file=self.dir / "secret"),
        )
        self.assertEqual(
            config.relay.routes,
            {
                "example.org": Route(host="2001:db8::1", port=2525),
                ".sub.example": Route(host="mx.example", mx=True),
            },
        )

    def test_domains_and_sources_of_relaying(self) -> None:
        config = self.load(
            '[relay]\nbind = ["192.0.2.1"]\nfamilies = ["ipv6"]\n'
            '[[relay.domain]]\nnames = ["Example.NET", ".example.net"]\nrate = 60\nschedule = "5m*2"\nbind = ["2001:DB8::1"]\n'
            '[[relay.source]]\nsenders = [".example.com"]\nhelo = "Mail.example.com"\n'
        )
        self.assertEqual((config.relay.bind, config.relay.families), (("192.0.2.1",), ("ipv6",)))
        self.assertEqual(
            config.relay.overrides,
            (
                schema.RelayDomain(
                    names=("example.net", ".example.net"),
                    rate=60,
                    schedule=(300.0, 300.0),
                    bind=("2001:db8::1",),
                ),
            ),
        )
        self.assertEqual(
            config.relay.sources, (schema.RelaySource(senders=(".example.com",), helo="mail.example.com"),)
        )

    def test_submission(self) -> None:
        config = self.load(
            "[submission]\ncheck_sender = false\nmessages_per_hour = 0\n"
            "[submission.domain]\nrecipients_per_day = 7\n"
            '[[submission.grant]]\naccount = "Alice"\naddresses = ["info", "@Example.ORG", "x@example.net"]\n'
        )
        found = config.submission
        self.assertFalse(found.check_sender)
        self.assertEqual((found.rates.messages_per_hour, found.rates.recipients_per_hour), (0, 300))
        self.assertEqual(found.domain, schema.Rates(recipients_per_day=7))
        self.assertEqual(
            found.grants,
            (
                schema.Grant(
                    account=Address("Alice", "example.test"),
                    addresses=("info@example.test", "@example.org", "x@example.net"),
                ),
            ),
        )

    def test_list_owner_is_the_postmaster_unless_given(self) -> None:
        config = self.load(
            '[[list]]\naddress = "team"\nmembers = ["alice", "x@example.net"]\n'
            '[[list]]\naddress = "b@example.test"\nmembers = ["bob"]\nowner = "bob"\n'
        )
        first, second = config.lists
        self.assertEqual(first.address, Address("team", "example.test"))
        self.assertEqual(first.members, (Address("alice", "example.test"), Address("x", "example.net")))
        self.assertEqual(first.owner, config.postmaster)
        self.assertEqual(second.owner, Address("bob", "example.test"))

    def test_more_iterations_than_some_programs_take_are_a_warning(self) -> None:
        accounts = "[accounts]\nscram_iterations = %d\n"
        self.assertEqual(
            self.errors(accounts % schema.Accounts(file=Path(), maildir="").scram_iterations), []
        )
        (warning,) = self.errors(accounts % 65_537)
        self.assertIn("warning: accounts.scram_iterations: programs that use Cyrus SASL", warning)
        self.assertEqual(self.errors(accounts % 65_537 + 'scram = "never"\n'), [])


class ExampleTests(Files):
    """etc/mta.toml: it names every key, and what it says about defaults is true."""

    def test_is_valid_as_it_stands(self) -> None:
        config = load(EXAMPLE, check_files=False)
        self.assertEqual(config.limits, schema.Limits())

    def test_names_every_field_of_the_schema(self) -> None:
        text = EXAMPLE.read_text()
        named = set(re.findall(r"^#?(\w+) =", text, re.M)) | set(re.findall(r"^#?\[+([\w.]+)\]+", text, re.M))
        named |= set(re.findall(r"(\w+) = ", text))  # inside { }
        named |= {name.rpartition(".")[2] for name in named}
        classes = [
            cls
            for cls in vars(schema).values()
            if isinstance(cls, type) and attrs.has(cls) and cls.__module__.startswith(schema.__name__)
        ]
        self.assertGreaterEqual(len(classes), 20)
        for cls in classes:
            for field in attrs.fields(cls):
                with self.subTest(f"{cls.__name__}.{field.name}"):
                    self.assertTrue(KEYS.get(field.name, field.name) in named or field.name == "path")

    def test_uncommented_it_is_valid_and_equal_to_the_defaults(self) -> None:
        text = re.sub(
            r'^#(?=[\w"]+ = |"[^"]+" = |\[\[(?:list|domain|tls\.sni|submission\.grant|relay\.\w+)\]\])',
            "",
            EXAMPLE.read_text(),
            flags=re.M,
        )
        self.assertNotRegex(text, r"(?m)^#\S")
        path = self.dir / "mta.toml"
        path.write_text(text)
        full = load(path, check_files=False)
        path.write_text(
            "\n".join(line for line in EXAMPLE.read_text().splitlines() if not line.startswith("#"))
        )
        bare = load(path, check_files=False)
        examples = {"tls.certificate", "tls.key", "tls.sni", "relay.smarthost", "list", "submission.grant"}
        examples |= {"tls_reports.contact", "delivery.command.user", "delivery.command.directory"}
        examples |= {"rules.address", "forward.srs_domain", "forward.srs_secret_file"}
        examples |= {'relay.routes."partner.example"', 'relay.routes.".partner.example"'}
        examples |= {"relay.domain", "relay.source", "domain", "virtual"}
        self.assertEqual(set(changes(bare, full)), examples)


class FileChecksTests(Files):
    """What is looked up on the machine."""

    def test_missing_accounts_file(self) -> None:
        (error,) = self.errors("", check_files=True)
        self.assertEqual(
            error,
            f'mta.toml: accounts.file: "{self.dir}/users" does not exist; "mta user add NAME" creates it',
        )

    def test_open_accounts_file_is_a_warning(self) -> None:
        (self.dir / "users").touch()
        (self.dir / "users").chmod(0o644)
        (error,) = self.errors("", check_files=True)
        self.assertEqual(
            error,
            f'mta.toml: warning: accounts.file: "{self.dir}/users" is open to other users: chmod 600 it',
        )

    def test_directory_in_place_of_a_file(self) -> None:
        (self.dir / "users").mkdir()
        (error,) = self.errors("", check_files=True)
        self.assertEqual(error, f'mta.toml: accounts.file: "{self.dir}/users" is not a file')

    def test_missing_alias_file_unknown_user(self) -> None:
        (self.dir / "users").touch(mode=0o600)
        errors = self.errors(
            "", top='aliases = ["nope"]\nuser = "no-such-user"\ngroup = "no-such-group"', check_files=True
        )
        self.assertEqual(
            errors,
            [
                f'mta.toml:1: aliases[1]: "{self.dir}/nope" does not exist',
                'mta.toml:2: user: there is no user "no-such-user" on this machine',
                'mta.toml:3: group: there is no group "no-such-group" on this machine',
            ],
        )

    def test_what_this_user_can_not_see_is_not_checked(self) -> None:
        for error in (PermissionError(13, "no"), FileNotFoundError(2, "no")):
            with mock.patch.object(Path, "stat", side_effect=error):
                errors = self.errors("", check_files=True)
            self.assertEqual([": warning: " in each for each in errors], [isinstance(error, PermissionError)])
        (self.dir / "users").touch()
        with mock.patch("os.access", return_value=False):
            (error_text,) = self.errors("", check_files=True)
        self.assertIn("warning: accounts.file", error_text)
        self.assertIn("was not checked", error_text)

    def test_endless_names(self) -> None:
        errors = self.errors("", top=f'data = "{"x" * 300}"\naliases = ["{"y" * 300}"]\n', check_files=True)
        self.assertEqual(sum("can't be used: File name too long" in each for each in errors), 2)

    def test_data_that_is_a_file(self) -> None:
        (self.dir / "users").touch(mode=0o600)
        (self.dir / "spool").touch()
        (error,) = self.errors("", top='data = "spool"', check_files=True)
        self.assertEqual(error, f'mta.toml:1: data: "{self.dir}/spool" is not a directory')


class CertificateTests(Files):
    """Certificate and key."""

    TLS = '[tls]\ncertificate = "cert.pem"\nkey = "key.pem"\n'

    def setUp(self) -> None:
        super().setUp()
        (self.dir / "users").touch(mode=0o600)

    def write(self, hostname: str = "mail.example.test", days: int = 30) -> None:
        import datetime

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hostname)])
        start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        (self.dir / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (self.dir / "key.pem").touch(mode=0o600)
        (self.dir / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def test_pair(self) -> None:
        self.write()
        self.assertEqual(self.errors(self.TLS, check_files=True), [])

    def test_key_of_another_certificate(self) -> None:
        self.write()
        certificate = (self.dir / "cert.pem").read_bytes()
        self.write()
        (self.dir / "cert.pem").write_bytes(certificate)
        (error,) = self.errors(self.TLS, check_files=True)
        self.assertIn(f'tls.key: "{self.dir}/key.pem" is not the key of "{self.dir}/cert.pem"', error)

    def test_expired_and_for_another_host(self) -> None:
        self.write("other.example", days=-1)
        expired, other = self.errors(self.TLS, check_files=True)
        self.assertIn("warning: tls.certificate: the certificate expired on", expired)
        self.assertIn('the certificate is not for "mail.example.test" but for other.example', other)

    def test_wildcard(self) -> None:
        self.write("*.example.test")
        self.assertEqual(self.errors(self.TLS, check_files=True), [])

    def test_open_key_is_a_warning(self) -> None:
        self.write()
        (self.dir / "key.pem").chmod(0o644)
        (error,) = self.errors(self.TLS, check_files=True)
        self.assertIn("warning: tls.key", error)

    def test_no_pem(self) -> None:
        self.write()
        (self.dir / "key.pem").write_text("x")
        self.assertIn("has no PEM private key", self.errors(self.TLS, check_files=True)[0])
        (self.dir / "cert.pem").write_text("x")
        self.assertIn("has no PEM certificate", self.errors(self.TLS, check_files=True)[0])


class ChangesTests(Files):
    """What a reload changes."""

    def test_nothing(self) -> None:
        self.assertEqual(changes(self.load(""), self.load("")), [])

    def test_names_keys(self) -> None:
        old = self.load('[relay.routes]\n"a.example" = "x.example"\n"b.example" = "y.example:26"\n')
        new = self.load(
            '[[list]]\naddress = "team"\nmembers = ["alice"]\n'
            '[queue]\nexpire = "1d"\n[relay.routes]\n"a.example" = "x.example"\n"b.example" = "y.example:27"\n',
            top='data = "x"\n',
        )
        changed = changes(old, new)
        self.assertEqual(
            changed,
            ["data", "accounts.maildir", "list", 'relay.routes."b.example".port', "queue.expire"],
        )
        self.assertEqual(restart_needed(changed), {"data": "the queue is open there"})


class WordsTests(unittest.TestCase):
    """The parts of a message."""

    def test_quote(self) -> None:
        self.assertEqual(quote("a\nb"), '"a\\nb"')
        self.assertEqual(quote(True), "true")
        self.assertEqual(quote({}), "a table")
        self.assertEqual(len(quote("x" * 1000)), 82)

    def test_did_you_mean(self) -> None:
        self.assertEqual(did_you_mean("shedule", ["schedule", "expire"]), '; did you mean "schedule"?')
        self.assertEqual(did_you_mean("zzz", ["schedule"]), "")


class KeyLinesTests(unittest.TestCase):
    """Finding the line of a key."""

    def test_lines(self) -> None:
        lines = KeyLines(
            'a = 1\n"b.c" = [\n  "x = 1",\n]\n[[t]]\nk = """\nz = 1\n"""\n[[t]]\nk = 2\n'
            '[r."x.example"]\nhost = "y"\nd . e = 1\n[f]\ng = {h = 1}\n'
        )
        expected = {
            "a": 1,
            '"b.c"': 2,
            '"b.c"[2]': 2,
            "t[1].k": 6,
            "t[2]": 9,
            "t[2].k": 10,
            'r."x.example"': 11,
            'r."x.example".host': 12,
            'r."x.example".d.e': 13,
            "f.g.h": 15,
            "z": 0,
            "": 0,
        }
        self.assertEqual({key: lines.of(key) for key in expected}, expected)

"""`mta init`: writes a new site, for a try on this machine or as the beginning of a real one."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path

import attrs

from twisted_mta.admin.accounts import random_password, stored_password
from twisted_mta.admin.errors import EX_CANTCREAT, EX_DATAERR, EX_USAGE, AdminError
from twisted_mta.config.loader import load
from twisted_mta.core.values import value
from twisted_mta.store.users import PasswdFile

#: The demo's listeners, role and port, in the order of its file.
DEMO_PORTS = {
    "SMTP": 2525,
    "submission": 2587,
    "submissions": 2465,
    "IMAP": 2143,
    "IMAPS": 2993,
    "POP3": 2110,
    "POP3S": 2995,
}


@value(kw_only=True)
class Site:
    """What is filled into the templates."""

    domain: str
    hostname: str
    postmaster: str


def init(options: argparse.Namespace) -> int:
    """mta init"""
    directory = Path(options.directory)
    if options.demo:
        if options.domain or options.hostname:
            raise AdminError(
                "--demo brings its own domain and host name: leave out --domain and --hostname", EX_USAGE
            )
        return _demo(directory)
    if not (options.domain and options.hostname):
        raise AdminError("--domain and --hostname are needed (or --demo)", EX_USAGE)
    return _production(directory, options.domain, options.hostname)


def _demo(directory: Path) -> int:
    site = Site(domain="example.test", hostname="mail.example.test", postmaster="alice")
    certificate, key = self_signed(site.hostname, ["localhost"])
    passwords = {name: random_password() for name in ("alice", "bob")}
    lines = [*demo_lines(directory, passwords)]
    _write(
        directory,
        {
            "mta.toml": (_template("demo.toml", site), 0o644),
            "aliases": (_template("aliases", site), 0o644),
            "cert.pem": (certificate, 0o644),
            "key.pem": (key, 0o600),
            "users": ("", 0o600),
            # Shown again at each `make run`: who plays with it tomorrow still wants the passwords.
            "README": ("\n".join([*lines, ""]), 0o600),
        },
    )
    config = load(directory / "mta.toml")
    users = PasswdFile(config.accounts.file, site.domain, config.accounts.maildir)
    for name, password in passwords.items():
        users.add(name, *stored_password(password.encode(), config))
    print("\n".join(lines))
    return 0


def demo_lines(directory: Path, passwords: Mapping[str, str]) -> Iterable[str]:
    """What listens where, and the commands that send a first message and read it."""
    ports = ", ".join(f"{name} {port}" for name, port in DEMO_PORTS.items())
    alice, bob = passwords["alice"], passwords["bob"]
    here = shlex.quote(str(directory))
    curl = f"curl -sS --cacert {here}/cert.pem"
    yield f"A demo site is in {directory}: domain example.test, list team@example.test, aliases in {directory}/aliases."
    yield f"On 127.0.0.1: {ports}."
    yield f"Accounts: alice (password {alice}) and bob (password {bob})."
    yield f"Start:  twistd -n --pidfile= mta --config {here}/mta.toml"
    yield "A first message, as another server would bring it, to the list:"
    yield "  swaks --server 127.0.0.1:2525 --from carol@example.net --to team@example.test"
    yield "One from alice to bob, with her password, over STARTTLS:"
    yield (
        f"  echo 'Subject: hello' | {curl} --ssl-reqd --crlf --user alice:{alice} "
        "--mail-from alice@example.test --mail-rcpt bob@example.test -T - smtp://localhost:2587"
    )
    yield "Bob's newest message, by IMAP, and the list of his messages, by POP3:"
    yield f"  {curl} --user bob:{bob} 'imaps://localhost:2993/INBOX;MAILINDEX=*'"
    yield f"  {curl} --user bob:{bob} pop3s://localhost:2995/"


def _production(directory: Path, domain: str, hostname: str) -> int:
    site = Site(domain=domain, hostname=hostname, postmaster="postmaster-account")
    # Checked before anything is written: the template has only these two to be wrong.
    _check_names(domain, hostname)
    _write(
        directory,
        {
            "mta.toml": (_template("site.toml", site), 0o644),
            "aliases": (_template("aliases", site), 0o644),
        },
        mode=0o755,
    )
    print(f"A site for {domain} is in {directory}. Next:")
    print(f"  1. get a certificate for {hostname}, and name it in {directory}/mta.toml under [tls]")
    print(f"  2. mta --config {directory}/mta.toml user add NAME, and put NAME behind postmaster")
    print(f"  3. mta check-config {directory}/mta.toml tells what is missing")
    print(f"  4. DNS: MX of {domain} is {hostname}; its address has a PTR back to {hostname}")
    return 0


def _check_names(domain: str, hostname: str) -> None:
    from twisted_mta.config import fields
    from twisted_mta.config.errors import Invalid
    from twisted_mta.config.lines import KeyLines

    reading = fields.Reading("", Path("/"), KeyLines(""))
    try:
        fields.domain(domain, reading, "domain")
        fields.hostname(hostname, reading, "hostname")
    except Invalid as error:
        raise AdminError(str(error), EX_DATAERR) from None


def _template(name: str, site: Site) -> str:
    text = files("twisted_mta").joinpath("data", name).read_text("utf-8")
    for field, content in attrs.asdict(site).items():
        text = text.replace(f"@{field.upper()}@", content)
    return text


def _write(directory: Path, contents: Mapping[str, tuple[str, int]], mode: int = 0o700) -> None:
    """Write the files; if one of them is there already, nothing is written."""
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        for name in contents:
            if os.path.lexists(directory / name):
                raise AdminError(f"{directory / name} is there already: nothing was written", EX_CANTCREAT)
        for name, (text, permissions) in contents.items():
            descriptor = os.open(directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, permissions)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise AdminError(f"{directory}: {error.strerror}", EX_CANTCREAT) from None


def self_signed(hostname: str, others: Iterable[str]) -> tuple[str, str]:
    """A certificate for these names on an ECDSA P-256 key, good for ten years: both as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hostname)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(name) for name in (hostname, *others)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"), private.decode("ascii")

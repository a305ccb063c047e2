"""Checks that look at the machine: do the files exist, can they be read, do certificate and key belong together?"""

from __future__ import annotations

import datetime
import grp
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path

from twisted_mta.config.errors import quote
from twisted_mta.config.fields import Reading
from twisted_mta.config.handlers import load_handlers
from twisted_mta.config.lines import join_key
from twisted_mta.config.schema import Config


def check_files(config: Config, reading: Reading) -> None:
    """Note files that are missing or unsuitable. What may merely not be readable for *us* is a warning."""
    if not reading.is_bad("data"):
        _check_data(config.data, reading)
    if not reading.is_bad("accounts.file"):
        hint = '; "mta user add NAME" creates it'
        if _is_file(config.accounts.file, "accounts.file", reading, hint):
            _check_private(config.accounts.file, "accounts.file", reading)
    if not reading.is_bad("aliases"):
        for number, path in enumerate(config.aliases, 1):
            _is_file(path, f"aliases[{number}]", reading)
    if not reading.is_bad("domain"):
        for block_number, block in enumerate(config.domain_blocks, 1):
            for number, path in enumerate(block.aliases, 1):
                _is_file(path, f"domain[{block_number}].aliases[{number}]", reading)
            if block.recipients is not None:
                _is_file(block.recipients, f"domain[{block_number}].recipients", reading)
    routes = {join_key("relay.routes", domain): route for domain, route in config.relay.routes.items()}
    if config.relay.smarthost is not None:
        routes["relay.smarthost"] = config.relay.smarthost
    for key, route in routes.items():
        if route.password_file is not None and _is_file(route.password_file, f"{key}.password_file", reading):
            _check_private(route.password_file, f"{key}.password_file", reading)
    _check_delivery(config, reading)
    _check_handlers(config, reading)
    secret = config.forward.srs_secret_file
    if secret is not None and config.forward.srs and secret.exists():
        _check_private(secret, "forward.srs_secret_file", reading)
    _check_identity(config.user, "user", pwd.getpwnam, reading)
    _check_identity(config.group, "group", grp.getgrnam, reading)
    if not reading.is_bad("tls") and config.tls.certificate and config.tls.key:
        _check_pair(config.tls.certificate, config.tls.key, "tls", config.hostname, reading)
        for number, pair in enumerate(config.tls.sni, 1):
            _check_pair(pair.certificate, pair.key, f"tls.sni[{number}]", "", reading)


def _check_data(path: Path, reading: Reading) -> None:
    try:
        is_directory = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, PermissionError):
        return  # the server makes it; or it is not for us to see
    except OSError as error:
        reading.problem("data", f"{quote(str(path))} can't be used: {error.strerror}")
        return
    if not is_directory:
        reading.problem("data", f"{quote(str(path))} is not a directory")


def _check_delivery(config: Config, reading: Reading) -> None:
    if not reading.is_bad("delivery.files"):
        for number, path in enumerate(config.delivery.files, 1):
            _is_directory(path, f"delivery.files[{number}]", reading)
    commands = config.delivery.command
    if commands.directory is not None and not reading.is_bad("delivery.command.directory"):
        _is_directory(commands.directory, "delivery.command.directory", reading)
    if commands.user and not reading.is_bad("delivery.command.user"):
        try:
            entry = pwd.getpwnam(commands.user)
        except KeyError:
            reading.problem(
                "delivery.command.user", f"there is no user {quote(commands.user)} on this machine"
            )
        else:
            if entry.pw_uid == 0:
                reading.problem("delivery.command.user", "commands are never run as root: name another user")


def _check_handlers(config: Config, reading: Reading) -> None:
    paths = () if reading.is_bad("handlers.path") else config.handlers.path
    for number, path in enumerate(paths, 1):
        key = f"handlers.path[{number}]"
        if _is_directory(path, key, reading) and path.stat().st_mode & stat.S_IWOTH:
            reading.problem(key, f"{quote(str(path))} can be changed by everybody: chmod o-w it")
    if reading.is_bad("handlers"):
        return
    for trouble in load_handlers(config)[1]:
        reading.problem(f"handlers.modules[{trouble.number}]", trouble.text)


def _is_directory(path: Path, key: str, reading: Reading) -> bool:
    """Whether there is a directory that we can see; what is not is noted."""
    try:
        found = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        reading.problem(key, f"{quote(str(path))} does not exist")
    except OSError as error:
        reading.problem(key, f"{quote(str(path))} was not checked: {error.strerror}", warning=True)
    else:
        if not found:
            reading.problem(key, f"{quote(str(path))} is not a directory")
        return found
    return False


def _is_file(path: Path, key: str, reading: Reading, hint: str = "") -> bool:
    """Whether there is a file that we can read; what is not is noted."""
    problem, warning = "", False
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            problem = "is not a file"
        elif not os.access(path, os.R_OK):
            problem, warning = "can't be read by this user, so it was not checked", True
    except FileNotFoundError:
        problem = f"does not exist{hint}"
    except PermissionError:
        problem, warning = "can't be reached by this user, so it was not checked", True
    except OSError as error:
        problem = f"can't be used: {error.strerror}"
    if problem:
        reading.problem(key, f"{quote(str(path))} {problem}", warning=warning)
    return not problem


def _check_private(path: Path, key: str, reading: Reading) -> None:
    # Its group may read a key: Debian's ssl-cert group lives from that.
    if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        reading.problem(key, f"{quote(str(path))} is open to other users: chmod 600 it", warning=True)


def _check_identity(name: str, key: str, look_up: Callable[[str], object], reading: Reading) -> None:
    if not name or reading.is_bad(key):
        return
    try:
        look_up(name)
    except KeyError:
        reading.problem(key, f"there is no {key} {quote(name)} on this machine")


def _check_pair(certificate: Path, key: Path, place: str, hostname: str, reading: Reading) -> None:
    found = _is_file(certificate, f"{place}.certificate", reading), _is_file(key, f"{place}.key", reading)
    if not all(found):
        return
    _check_private(key, f"{place}.key", reading)
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_private_key,
    )

    try:
        first = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    except ValueError:
        reading.problem(f"{place}.certificate", f"{quote(str(certificate))} has no PEM certificate")
        return
    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
    except TypeError:
        reading.problem(
            f"{place}.key", f"{quote(str(key))} is encrypted: a server can't ask for its password"
        )
        return
    except ValueError:
        reading.problem(f"{place}.key", f"{quote(str(key))} has no PEM private key")
        return
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if private.public_key().public_bytes(*form) != first.public_key().public_bytes(*form):
        reading.problem(f"{place}.key", f"{quote(str(key))} is not the key of {quote(str(certificate))}")
    _check_certificate(first, place, hostname, reading)


def _check_certificate(certificate: object, place: str, hostname: str, reading: Reading) -> None:
    """Expired, or for another host: the server would run, its clients would complain."""
    from cryptography import x509

    assert isinstance(certificate, x509.Certificate)
    now = datetime.datetime.now(datetime.UTC)
    if certificate.not_valid_after_utc < now:
        day = certificate.not_valid_after_utc.date()
        reading.problem(f"{place}.certificate", f"the certificate expired on {day}", warning=True)
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        names: list[str] = []
    else:
        names = [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]
    if not hostname:
        if not names:
            reading.problem(
                f"{place}.certificate", "there is no host name in the certificate: nobody can ask for it"
            )
        return
    wildcard = "*." + hostname.partition(".")[2]
    if not reading.is_bad("hostname") and hostname not in names and wildcard not in names:
        listed = ", ".join(names) or "no name"
        reading.problem(
            f"{place}.certificate",
            f"the certificate is not for {quote(hostname)} but for {listed}",
            warning=True,
        )

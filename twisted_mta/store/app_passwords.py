"""App passwords: one for each program of a user, made by us, and revoked one by one.

They stand in a file beside the accounts, which only the administrator's commands write; when each was used last stands in
another in the data directory, which only the server writes. So a server that can't write where the accounts are needs no
right to, no write waits for another, and removing a line is all that revoking takes.

A line is ``account:label:{SHA256}hash:created:services``; created is a date, services "smtp", "imap" and "pop3" with
commas, or nothing for all. A line of the other file is ``id date``.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date
from hashlib import sha256
from pathlib import Path

import attrs
from twisted.logger import Logger

from twisted_mta.config.reading import read_at_most
from twisted_mta.core.values import value
from twisted_mta.store.edits import editing
from twisted_mta.store.users import MAX_FILE, Stamp, UserError, stamp_of

SERVICES = ("smtp", "imap", "pop3")
#: Those of one account at most, so that a loop somewhere can't fill the file.
MAX_PER_ACCOUNT = 100

#: Without those that are mistaken for each other: 31, of which 28 make 138 bits.
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
_GROUPS, _GROUP = 7, 4
_SCHEME = "{SHA256}"
_LABEL = re.compile(r"[^\x00-\x1f\x7f-\x9f:]{1,64}")
_USED = re.compile(r"([0-9a-f]{16}) (\d{4}-\d\d-\d\d)")


@value
class AppPassword:
    """One line. `account` is folded."""

    account: str
    label: str
    digest: bytes = attrs.field(repr=False)
    #: "2026-11-22".
    created: str
    #: Empty: good for all.
    services: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Names it where it must not be told."""
        return self.digest.hex()[:16]

    def good_for(self, service: str) -> bool:
        """Whether it may be used there."""
        return not self.services or service in self.services

    @classmethod
    def parse(cls, line: str) -> AppPassword | None:
        """A line of the file; None if it is no such line."""
        fields = line.rstrip("\r").split(":")
        if len(fields) < 5 or not fields[2].startswith(_SCHEME):
            return None
        account, label, stored, created, services = fields[:5]
        digest = _decoded(stored.removeprefix(_SCHEME))
        names = tuple(services.split(",")) if services else ()
        if len(digest) != 32 or not set(names) <= set(SERVICES):
            return None  # one with a service that is not known must not be good for all
        return cls(account.casefold(), label, digest, created, names)

    def line(self) -> str:
        """What `parse` reads."""
        stored = _SCHEME + base64.b64encode(self.digest).decode("ascii")
        return ":".join((self.account, self.label, stored, self.created, ",".join(self.services)))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def digest_of(password: bytes) -> bytes:
    """The hash of an app password, however its groups were typed.

    A fast hash without a salt will do: the secret is random, so there is no dictionary to try, and no two are alike.
    """
    return sha256(password.translate(None, b"- ").lower()).digest()


def new_secret(random: Callable[[int], bytes]) -> str:
    """A new one: "k3fd-9xzq-..." with 138 bits. `random` gives so many octets."""
    letters: list[str] = []
    while len(letters) < _GROUPS * _GROUP:
        # The rest of the division would make some letters more likely: 248 is 8 times 31.
        letters += [_ALPHABET[octet % 31] for octet in random(_GROUPS * _GROUP) if octet < 248]
    return "-".join("".join(letters[start : start + _GROUP]) for start in range(0, _GROUPS * _GROUP, _GROUP))


class AppPasswordFile:
    """The file and what it says. Look-ups see the version last read by `refresh`; it need not be there."""

    log = Logger()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: Mapping[tuple[str, bytes], AppPassword] = {}
        self._stamp: Stamp | None = None

    @classmethod
    def beside(cls, users: Path) -> AppPasswordFile:
        """The one that belongs to a passwd-file."""
        return cls(users.with_name(f"{users.name}.app-passwords"))

    # --- look-ups ------------------------------------------------------------------------------

    def stamp(self) -> Stamp | None:
        """What changes whenever the file does; None if it is not there."""
        return stamp_of(self.path)

    def refresh(self) -> None:
        """Read the file if it changed since the last time. Raises OSError, and keeps what it knew."""
        stamp = self.stamp()
        if stamp == self._stamp:
            return
        found = {} if stamp is None else self._read()
        self._found, self._stamp = found, stamp

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._found)

    @property
    def ids(self) -> Collection[str]:
        """The ids of all."""
        return {app.id for app in self._found.values()}

    def find(self, account: str, password: bytes) -> AppPassword | None:
        """The one of this account that this is. Look-up by hash tells nothing: guessing a part of it is no help."""
        return self._found.get((account.casefold(), digest_of(password)))

    def of(self, account: str) -> Sequence[AppPassword]:
        """Those of an account, in the order of the file."""
        name = account.casefold()
        return [app for app in self._found.values() if app.account == name]

    def _read(self) -> Mapping[tuple[str, bytes], AppPassword]:
        with self.path.open("rb") as file:
            text = read_at_most(file, MAX_FILE).decode("utf-8", "surrogateescape")
        found: dict[tuple[str, bytes], AppPassword] = {}
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip() or line.startswith("#"):
                continue
            app = AppPassword.parse(line)
            if app is None:
                self.log.warn("{path}:{number}: no app password", path=str(self.path), number=number)
                continue
            found[app.account, app.digest] = app
        return found

    # --- edits ---------------------------------------------------------------------------------

    def add(
        self,
        account: str,
        label: str,
        services: Collection[str],
        created: date,
        random: Callable[[int], bytes],
    ) -> str:
        """A new app password: the secret, which is nowhere else. Raises UserError."""
        if not _LABEL.fullmatch(label):
            raise UserError("a label has 1 to 64 characters, and no colon")
        secret = new_secret(random)
        names = tuple(service for service in SERVICES if service in services)
        app = AppPassword(account.casefold(), label, digest_of(secret.encode()), created.isoformat(), names)
        with editing(self.path) as lines:
            others = [
                other for other in map(AppPassword.parse, lines) if other and other.account == app.account
            ]
            if any(other.label == label for other in others):
                raise UserError(f"{account} has an app password {label!r} already")
            if len(others) >= MAX_PER_ACCOUNT:
                raise UserError(f"{account} has {MAX_PER_ACCOUNT} app passwords, which is enough")
            lines.append(app.line())
        return secret

    def revoke(self, account: str, label: str | None = None) -> int:
        """Remove the one of that label, or with None all of an account; how many there were. Raises UserError if that label
        is not there."""
        name = account.casefold()
        if not self.path.exists():
            if label is None:
                return 0
            raise UserError(f"{account} has no app passwords")
        with editing(self.path) as lines:
            kept = [line for line in lines if not _is(AppPassword.parse(line), name, label)]
            count = len(lines) - len(kept)
            if label is not None and not count:
                raise UserError(f"{account} has no app password {label!r}")
            lines[:] = kept
        return count


def _is(app: AppPassword | None, account: str, label: str | None) -> bool:
    return app is not None and app.account == account and label in (None, app.label)


class LastUse:
    """On which day each app password was used last. `note` in the reactor's thread, `flush` in any."""

    def __init__(self, path: Path | None) -> None:
        """With None nothing is kept."""
        self._path = path
        self._lock = threading.Lock()
        self._dates = self._read()
        self._dirty = False

    def _read(self) -> dict[str, str]:
        try:
            text = self._path.read_text("utf-8", "replace") if self._path is not None else ""
        except FileNotFoundError:
            text = ""
        return {match[1]: match[2] for match in map(_USED.fullmatch, text.splitlines()) if match}

    def note(self, app: AppPassword, today: str) -> None:
        """It is used on that day ("2026-11-22")."""
        with self._lock:
            if self._dates.get(app.id) != today:
                self._dates[app.id] = today
                self._dirty = True

    def when(self, app: AppPassword) -> str:
        """The day; "" for never."""
        with self._lock:
            return self._dates.get(app.id, "")

    @property
    def dirty(self) -> bool:
        """Whether there is something to flush."""
        return self._dirty and self._path is not None

    def flush(self, known: Callable[[str], bool] = lambda name: True) -> None:
        """Write the file, with what other processes have written there. Those whose id is not `known` any more are forgotten.

        Raises OSError, and may be tried again.
        """
        if self._path is None:
            return
        try:
            with editing(self._path) as lines:
                written = {match[1]: match[2] for match in map(_USED.fullmatch, lines) if match}
                with self._lock:
                    latest = {
                        name: max(day, self._dates.get(name, ""))
                        for name, day in (written | self._dates).items()
                    }
                    dates = {name: day for name, day in latest.items() if known(name)}
                    self._dates, self._dirty = dates, False
                lines[:] = [f"{name} {day}" for name, day in sorted(dates.items())]
        except OSError:
            self._dirty = True
            raise


def used_file(data: Path) -> Path:
    """Where the server keeps it."""
    return data / "app-passwords.used"

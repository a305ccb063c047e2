"""The accounts: a passwd-file as Dovecot reads it, its look-ups and its edits.

A line is ``user:{SCHEME}hash:uid:gid:gecos:home:shell:extra``; only the first two fields are used here, and one word of the
extra ones: ``scram_sha256=iterations,salt,StoredKey,ServerKey``. An edit keeps the others, comments, order, and lines that
are not understood.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from twisted.logger import Logger

from twisted_mta.config.reading import read_at_most
from twisted_mta.core.address import Address, AddressError
from twisted_mta.core.sasl import ScramKeys
from twisted_mta.core.values import value
from twisted_mta.interfaces import Account
from twisted_mta.store.edits import editing
from twisted_mta.store.passwords import SCRAM_SCHEME, is_locked, scram_salt

#: A larger file is no passwd-file.
MAX_FILE = 256 << 20

#: In the name of a directory everything else is written as %XX, so that no login can leave its place.
_UNSAFE = re.compile(r"[^A-Za-z0-9._@+=~\u0080-\U0010ffff-]|^\.")

#: Begins the word of the last field that has the keys for SCRAM.
_SCRAM = "scram_sha256="

Stamp = tuple[int, int, int]


def stamp_of(path: Path) -> Stamp | None:
    """What changes whenever a file does: (inode, modification time, size); None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


class UserError(Exception):
    """An edit that can't be done; the text says why, fit for the administrator."""


@value
class User:
    """One line of the file."""

    account: Account
    #: "{SCHEME}hash" as written.
    stored: str = attrs.field(repr=False)
    #: The last field: words of the form key=value.
    extra: str = attrs.field(default="", repr=False)

    @property
    def locked(self) -> bool:
        """Whether there is no password at all, as in "alice:!:"."""
        return is_locked(self.stored)

    def scram(self) -> ScramKeys | None:
        """What SCRAM needs; None if the account can't use it."""
        if self.stored[: len(SCRAM_SCHEME)].upper() == SCRAM_SCHEME:
            return _parse(self.stored[len(SCRAM_SCHEME) :])
        word = next((word for word in self.extra.split() if word.startswith(_SCRAM)), None)
        keys = _parse(word.removeprefix(_SCRAM)) if word is not None else None
        # Of another hash: somebody changed the password, or locked the account, and left the old keys where they were.
        return keys if keys is not None and keys.salt == scram_salt(self.stored) else None


def _parse(text: str) -> ScramKeys | None:
    try:
        return ScramKeys.parse(text)
    except ValueError:
        return None


@value
class Users:
    """What one version of the file says."""

    #: By folded login.
    by_login: Mapping[str, User] = attrs.field(factory=dict)
    #: Lines that could not be used: "users:3: ...".
    problems: Sequence[str] = ()
    stamp: Stamp | None = None
    #: Whether there are accounts, and all that have a password can use SCRAM.
    scram: bool = False


def full_name(login: str, first_domain: str) -> Address:
    """A login as an address: a bare name belongs to the first domain. Raises AddressError."""
    address = Address.parse(login if "@" in login else f"{login}@{first_domain}")
    if not address.local:
        raise AddressError("the local part is empty")
    return address


def maildir_path(template: str, address: Address) -> str:
    """Fill in {user}, {local} and {domain}, each safe as the name of one directory, in lower case."""
    values = {"user": str(address), "local": address.local, "domain": address.domain}

    def fill(match: re.Match[str]) -> str:
        return _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", values[match[1]].casefold())

    return re.sub(r"\{(user|local|domain)\}", fill, template)


class PasswdFile:
    """The file and what it says. Look-ups see the version last read by `refresh`; none is read before."""

    log = Logger()

    def __init__(self, path: str | Path, first_domain: str, maildir: str) -> None:
        """`maildir` is the template of an account's Maildir, absolute, with {user}, {local} and {domain}."""
        self.path = Path(path)
        self._first_domain = first_domain
        self._maildir = maildir
        self._users = Users()

    # --- look-ups ------------------------------------------------------------------------------

    def stamp(self) -> Stamp | None:
        """What changes whenever the file does: (inode, modification time, size); None if it is not there."""
        return stamp_of(self.path)

    def refresh(self) -> bool:
        """Read the file if it changed since the last time: whether it did. Raises OSError, and keeps what it knew."""
        stamp = self.stamp()
        if stamp is not None and stamp == self._users.stamp:
            return False
        self._users = self._read()
        for problem in self._users.problems:
            self.log.warn("accounts: {problem}", problem=problem)
        return True

    def names(self) -> list[str]:
        """The names of all accounts ("alice@example.test"), in the order of the file."""
        return [user.account.name for user in self._users.by_login.values()]

    def account(self, name: str) -> Account | None:
        """The account of that login (a full address, or a bare name of the first domain)."""
        user = self.find(name)
        return user.account if user else None

    def find(self, login: str) -> User | None:
        """The account with its stored password."""
        try:
            return self._users.by_login.get(full_name(login, self._first_domain).folded)
        except AddressError:
            return None

    def decoy(self) -> str:
        """Some stored password, whose check costs what the others cost; "" if there is none."""
        return next((user.stored for user in self._users.by_login.values() if user.stored), "")

    @property
    def all_scram(self) -> bool:
        """Whether there are accounts, and all that have a password can use SCRAM."""
        return self._users.scram

    def folded(self, login: str) -> str:
        """A login in the one form that it has in tables; as it is where it can be nobody's."""
        try:
            return full_name(login, self._first_domain).folded
        except AddressError:
            return login

    @property
    def problems(self) -> Sequence[str]:
        """Lines that could not be used, with file and line."""
        return self._users.problems

    def _read(self) -> Users:
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = read_at_most(file, MAX_FILE).decode("utf-8", "surrogateescape")
        users: dict[str, User] = {}
        problems: list[str] = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip() or line.startswith("#"):
                continue
            login, colon, rest = line.rstrip("\r").partition(":")
            try:
                address = full_name(login, self._first_domain)
            except AddressError as error:
                problems.append(f"{self.path}:{number}: the user name is no address: {error}")
                continue
            if not colon or address.folded in users:
                why = "the user is listed twice" if colon else 'there is no ":" behind the user name'
                problems.append(f"{self.path}:{number}: {why}")
                continue
            account = Account(str(address), maildir_path(self._maildir, address))
            stored, _, _, _, _, _, extra = (*rest.split(":", 6), *[""] * 6)[:7]
            users[address.folded] = User(account, stored, extra)
        able = [user.scram() is not None for user in users.values() if not user.locked]
        stamp = status.st_ino, status.st_mtime_ns, status.st_size
        return Users(users, tuple(problems), stamp, bool(able) and all(able))

    # --- edits ---------------------------------------------------------------------------------

    def add(self, login: str, stored: str, scram: ScramKeys | None = None) -> str:
        """Append an account and return its full name. Raises UserError if it is there already.

        `scram` are the keys that `passwords.scram_keys` made for `stored`.
        """
        address = self._address(login)
        if ":" in str(address):
            raise UserError("the name of an account can't have a colon")
        with editing(self.path) as lines:
            if self._line_of(lines, address) is not None:
                raise UserError(f"there is an account {address} already")
            lines.append(f"{address}:{stored}::::::" + (f"{_SCRAM}{scram}" if scram else ""))
        return str(address)

    def set_password(self, login: str, stored: str, scram: ScramKeys | None = None) -> str:
        """Change the password, with its keys for SCRAM, and nothing else of the line. Raises UserError if there is no such
        account."""
        address = self._address(login)
        with editing(self.path) as lines:
            number = self._known_line(lines, address)
            name, _, rest = lines[number].partition(":")
            fields = [stored, *rest.split(":", 6)[1:]]
            if scram or len(fields) == 7:
                fields += [""] * (7 - len(fields))
                fields[6] = _with_scram(fields[6], scram)
            lines[number] = ":".join([name, *fields])
        return str(address)

    def remove(self, login: str) -> str:
        """Remove the line; the mail stays. Raises UserError if there is no such account."""
        address = self._address(login)
        with editing(self.path) as lines:
            del lines[self._known_line(lines, address)]
        return str(address)

    def _address(self, login: str) -> Address:
        try:
            return full_name(login, self._first_domain)
        except AddressError as error:
            raise UserError(f"{login!r} is no name of an account: {error}") from None

    def _known_line(self, lines: Sequence[str], address: Address) -> int:
        number = self._line_of(lines, address)
        if number is None:
            raise UserError(f"there is no account {address}")
        return number

    def _line_of(self, lines: Sequence[str], address: Address) -> int | None:
        for number, line in enumerate(lines):
            login, colon, _ = line.partition(":")
            with contextlib.suppress(AddressError):
                if colon and not line.startswith("#"):
                    found = full_name(login, self._first_domain)
                    if found.folded == address.folded:
                        return number
        return None


def _with_scram(extra: str, scram: ScramKeys | None) -> str:
    """The last field with these keys and no others."""
    end = "\r" if extra.endswith("\r") else ""
    words = [word for word in extra.split() if not word.startswith(_SCRAM)]
    return " ".join([*words, *([f"{_SCRAM}{scram}"] if scram else [])]) + end

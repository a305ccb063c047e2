"""The accounts: a passwd-file as Dovecot reads it, its look-ups and its edits.

A line is ``user:{SCHEME}hash:uid:gid:gecos:home:shell:extra``; only the first two fields are used here, and an edit
keeps the others, comments, order, and lines that are not understood.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
from twisted.logger import Logger

from twisted_mta.core.address import Address, AddressError
from twisted_mta.interfaces import Account

#: A larger file is no passwd-file.
MAX_FILE = 256 << 20

#: In the name of a directory everything else is written as %XX, so that no login can leave its place.
_UNSAFE = re.compile(r"[^A-Za-z0-9._@+=~\u0080-\U0010ffff-]|^\.")

Stamp = tuple[int, int, int]


class UserError(Exception):
    """An edit that can't be done; the text says why, fit for the administrator."""


@attrs.frozen
class User:
    """One line of the file."""

    account: Account
    #: "{SCHEME}hash" as written.
    stored: str = attrs.field(repr=False)


@attrs.frozen
class Users:
    """What one version of the file says."""

    #: By folded login.
    by_login: Mapping[str, User] = attrs.field(factory=dict)
    #: Lines that could not be used: "users:3: ...".
    problems: Sequence[str] = ()
    stamp: Stamp | None = None


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
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

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
    def problems(self) -> Sequence[str]:
        """Lines that could not be used, with file and line."""
        return self._users.problems

    def _read(self) -> Users:
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read(MAX_FILE).decode("utf-8", "surrogateescape")
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
            users[address.folded] = User(account, rest.partition(":")[0])
        return Users(users, tuple(problems), (status.st_ino, status.st_mtime_ns, status.st_size))

    # --- edits ---------------------------------------------------------------------------------

    def add(self, login: str, stored: str) -> str:
        """Append an account and return its full name. Raises UserError if it is there already."""
        address = self._address(login)
        if ":" in str(address):
            raise UserError("the name of an account can't have a colon")
        with self._editing() as lines:
            if self._line_of(lines, address) is not None:
                raise UserError(f"there is an account {address} already")
            lines.append(f"{address}:{stored}::::::")
        return str(address)

    def set_password(self, login: str, stored: str) -> str:
        """Change the password and nothing else of the line. Raises UserError if there is no such account."""
        address = self._address(login)
        with self._editing() as lines:
            number = self._known_line(lines, address)
            name, _, rest = lines[number].partition(":")
            lines[number] = ":".join([name, stored, *rest.split(":")[1:]])
        return str(address)

    def remove(self, login: str) -> str:
        """Remove the line; the mail stays. Raises UserError if there is no such account."""
        address = self._address(login)
        with self._editing() as lines:
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

    @contextlib.contextmanager
    def _editing(self) -> Iterator[list[str]]:
        """The lines of the file, to be changed in place; then they replace it at once and durably.

        One editor at a time: the lock is a file beside, because the file itself is replaced.
        """
        path = Path(os.path.realpath(self.path))
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(f"{path}.lock", flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                before: os.stat_result | None = path.stat()
                text = path.read_bytes().decode("utf-8", "surrogateescape")
            except FileNotFoundError:
                before, text = None, ""
            lines = text.split("\n")
            if lines[-1] == "":
                lines.pop()
            yield lines
            _replace(path, "".join(f"{line}\n" for line in lines), before)
        finally:
            os.close(lock)


def _replace(path: Path, text: str, before: os.stat_result | None) -> None:
    """Write a file in place of another: the old one or the new one is there at any time, whole."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            if before is not None:
                # A group that may read it (Dovecot's, say) keeps that; nobody else may.
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, 0o600 | before.st_mode & 0o040)
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(descriptor)
        os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

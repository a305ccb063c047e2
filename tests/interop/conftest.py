"""One server for most of the interop tests, with an account for each test that asks for one."""

from __future__ import annotations

import os
import smtplib
import ssl
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

from twisted_mta.testing.site import PASSWORD, Site

_ACCOUNTS = tuple(f"user{n}" for n in range(200))


@attrs.frozen
class User:
    """An account of the shared site that no other test uses."""

    site: Site
    name: str
    password: str = PASSWORD

    @property
    def address(self) -> str:
        """The address, which is the login too."""
        return f"{self.name}@example.test"

    def files(self, folder: str = "") -> list[Path]:
        """Messages in the Maildir."""
        return self.site.maildir(self.name, folder)

    def receive(self, *messages: bytes) -> list[bytes]:
        """Deliver messages through port mx, one after the other, and wait for each; what each became, with CRLF."""
        became = []
        for message in messages:
            before = {_key(path) for path in self.files()}
            with smtplib.SMTP("127.0.0.1", self.site.port("mx")) as client:
                client.sendmail("sender@example.org", [self.address], message, ["BODY=8BITMIME"])
            became.append(self.site.wait_for(lambda: self._newer(before)))  # noqa: B023  runs at once
        return became

    def _newer(self, before: set[str]) -> bytes | None:
        """A message that is not one of those."""
        for path in self.files():
            if _key(path) not in before:
                with suppress(FileNotFoundError):  # a session has just moved it: it is found at its new place
                    return crlf(path.read_bytes())
        return None


def _key(path: Path) -> str:
    """What stays of a file's name when flags change."""
    return path.name.partition(":")[0]


def crlf(content: bytes) -> bytes:
    """A file of a Maildir as it goes over the wire."""
    return content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def message(subject: str, body: str = "Hello") -> bytes:
    """A small message."""
    return (
        f"From: Sender <sender@example.org>\r\nTo: you@example.test\r\nSubject: {subject}\r\n"
        f"Date: Sat, 21 Nov 2026 10:00:00 +0000\r\nMessage-ID: <{subject}@example.org>\r\n\r\n{body}\r\n"
    ).encode()


def submit(site: Site, sender: str, recipients: Iterable[str], content: bytes) -> None:
    """Hand a message in as a user does: port submission, STARTTLS, login."""
    with smtplib.SMTP("127.0.0.1", site.port("submission")) as client:
        client.starttls(context=ssl._create_unverified_context())
        client.login(sender, PASSWORD)
        client.sendmail(sender, list(recipients), content)


@pytest.fixture(scope="session")
def _site() -> Iterator[Site]:
    assert os.geteuid() == 0, "Postfix and Dovecot need root: run the interop tests as root"
    # The messages of these tests are from strangers, whoever hands them in.
    with Site("[submission]\ncheck_sender = false\n", accounts=("alice", "bob", *_ACCOUNTS)) as site:
        yield site


@pytest.fixture
def site(_site: Site, request: pytest.FixtureRequest) -> Iterator[Site]:
    """The shared site; what it logged meanwhile is shown where a test fails."""
    before = len(_site.log())
    yield _site
    if request.node.stash.get(_FAILED, False):
        print("\n".join(_site.log()[before:].splitlines()[-60:]))


@pytest.fixture(scope="session")
def _names() -> Iterator[str]:
    return iter(_ACCOUNTS)


@pytest.fixture
def user(site: Site, _names: Iterator[str]) -> User:
    """An account for this test alone."""
    return User(site, next(_names))


@pytest.fixture
def certificate(site: Site) -> str:
    """The site's certificate: for the names mx.example.test and localhost."""
    return str(site.directory / "cert.pem")


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    outcome: Any = yield
    if outcome.get_result().failed:
        item.stash[_FAILED] = True

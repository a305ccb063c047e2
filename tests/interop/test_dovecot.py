"""Dovecot on the same Maildirs and the same file of users, at the same time."""

from __future__ import annotations

import imaplib
import poplib
import re
import shutil
import ssl
from collections.abc import Callable, Iterator

import pytest

from tests.interop.conftest import User, crlf, message
from tests.interop.test_bytes import attachment
from tests.peers import Dovecot, wait_for
from twisted_mta.testing.site import PASSWORD, Site

_OWNER, _GROUP = "nobody", "nogroup"


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Site, Dovecot]]:
    """A site that runs as an ordinary user, as Dovecot's mail processes must, and Dovecot beside it."""
    names = tuple(f"user{n}" for n in range(20))
    with_owner = f'user = "{_OWNER}"\ngroup = "{_GROUP}"\n'
    site = Site(top=with_owner, accounts=("alice", "bob", *names))
    for path in (site.directory, *site.directory.rglob("*")):
        shutil.chown(path, _OWNER, _GROUP)
    with (
        site,
        Dovecot(users=site.directory / "users", maildir=f"{site.directory}/mail/%u", owner=_OWNER) as dovecot,
    ):
        yield site, dovecot


@pytest.fixture(scope="module")
def _own_names() -> Iterator[str]:
    return iter([f"user{n}" for n in range(20)])


class Both:
    """One account, open in both servers."""

    def __init__(self, site: Site, dovecot: Dovecot, name: str) -> None:
        self.user, self.dovecot = User(site, name), dovecot
        self._open: list[imaplib.IMAP4] = []

    def ours(self) -> imaplib.IMAP4:
        """A session with our server."""
        context = ssl._create_unverified_context()
        client = imaplib.IMAP4_SSL("127.0.0.1", self.user.site.port("imaps"), ssl_context=context)
        return self._log_in(client)

    def theirs(self) -> imaplib.IMAP4:
        """A session with Dovecot."""
        return self._log_in(imaplib.IMAP4("127.0.0.1", self.dovecot.imap_port))

    def _log_in(self, client: imaplib.IMAP4) -> imaplib.IMAP4:
        client.login(self.user.address, PASSWORD)
        client.select()
        self._open.append(client)
        return client

    def close(self) -> None:
        for client in self._open:
            client.logout()


@pytest.fixture
def both(shared: tuple[Site, Dovecot], _own_names: Iterator[str]) -> Iterator[Both]:
    """An account that no other test uses."""
    both = Both(*shared, next(_own_names))
    yield both
    both.close()
    print("\n".join([*both.user.site.log().splitlines()[-40:], *both.dovecot.log().splitlines()[-10:]]))


#: Which server does it, and which is to see it.
_DIRECTIONS = pytest.mark.parametrize(("first", "second"), [("ours", "theirs"), ("theirs", "ours")])


def session(both: Both, which: str) -> imaplib.IMAP4:
    make: Callable[[], imaplib.IMAP4] = getattr(both, which)
    return make()


def uids(client: imaplib.IMAP4) -> dict[str, int]:
    """Subject to UID. Which UIDs files get that came together is each server's own choice."""
    client.noop()
    found = {}
    for part in client.uid("FETCH", "1:*", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")[1]:
        if isinstance(part, tuple):
            found[part[1].decode().partition(":")[2].strip()] = int(re.search(rb"UID (\d+)", part[0])[1])
    return found


def flags(client: imaplib.IMAP4) -> dict[str, set[str]]:
    """Subject to flags, but for \\Recent."""
    names = {uid: subject for subject, uid in uids(client).items()}
    found = {}
    for line in client.uid("FETCH", "1:*", "(FLAGS)")[1]:
        uid = re.search(rb"UID (\d+)", line or b"")
        listed = re.search(rb"FLAGS \(([^)]*)\)", line or b"")
        if uid and listed and int(uid[1]) in names:  # changes of other sessions come along without a UID
            found[names[int(uid[1])]] = set(listed[1].decode().split()) - {"\\Recent"}
    return found


def store(client: imaplib.IMAP4, subjects: str, change: str, listed: str) -> None:
    """STORE on messages named by their subjects."""
    known = uids(client)
    client.uid("STORE", ",".join(str(known[subject]) for subject in subjects.split()), change, f"({listed})")


def bodies(client: imaplib.IMAP4) -> list[bytes]:
    """All messages, whole, in their order; asked so that \\Seen stays as it is."""
    return [part[1] for part in client.fetch("1:*", "(BODY.PEEK[])")[1] if isinstance(part, tuple)]


def sizes(client: imaplib.IMAP4) -> list[int]:
    """What RFC822.SIZE is for each message."""
    return [
        int(re.search(rb"RFC822.SIZE (\d+)", line)[1]) for line in client.fetch("1:*", "(RFC822.SIZE)")[1]
    ]


def folders(client: imaplib.IMAP4) -> set[str]:
    return {line.decode().rpartition(' "/" ')[2].strip('"') for line in client.list()[1]}


class PasswordTests:
    def test_dovecot_takes_our_hashes(self, shared: tuple[Site, Dovecot]) -> None:
        _, dovecot = shared
        assert "auth succeeded" in dovecot.doveadm("auth", "test", "alice@example.test", PASSWORD)
        assert "auth failed" in dovecot.doveadm("auth", "test", "alice@example.test", "wrong", expect=77)

    @pytest.mark.parametrize("scheme", ["ARGON2ID", "SHA512-CRYPT"])
    def test_we_take_theirs(self, both: Both, scheme: str) -> None:
        user = f"{scheme.lower()}@example.test"
        stored = both.dovecot.doveadm("pw", "-s", scheme, "-p", "täglich neu").strip()
        assert stored.startswith(f"{{{scheme}}}")
        with (both.user.site.directory / "users").open("a") as file:
            file.write(f"{user}:{stored}::::::\n")
        both.user.site.control("reload")
        pop = poplib.POP3_SSL(
            "127.0.0.1", both.user.site.port("pop3s"), context=ssl._create_unverified_context()
        )
        pop.encoding = "utf-8"
        pop.user(user)
        assert pop.pass_("täglich neu").startswith(b"+OK")
        pop.quit()


class MaildirTests:
    def test_same_messages_and_sizes(self, both: Both) -> None:
        received = both.user.receive(
            message("one"), message("two", ".\r\nü\r\n" * 100), attachment(300_000), message("four")
        )
        theirs, ours = both.theirs(), both.ours()
        assert sorted(bodies(theirs)) == sorted(bodies(ours)) == sorted(received)
        expected = sorted(len(content) for content in received)
        assert sorted(sizes(theirs)) == sorted(sizes(ours)) == expected

    def test_same_dates(self, both: Both) -> None:
        both.user.receive(message("one"))
        [theirs], [ours] = (client.fetch("1", "(INTERNALDATE)")[1] for client in (both.theirs(), both.ours()))
        assert imaplib.Internaldate2tuple(theirs) == imaplib.Internaldate2tuple(ours)

    @_DIRECTIONS
    def test_flags_and_keywords(self, both: Both, first: str, second: str) -> None:
        both.user.receive(message("one"), message("two"), message("three"))
        one, other = session(both, first), session(both, second)
        store(one, "one", "+FLAGS", "\\Seen $Forwarded Work")
        store(one, "two", "+FLAGS", "\\Flagged \\Answered \\Draft Work")
        expected = {
            "one": {"\\Seen", "$Forwarded", "Work"},
            "two": {"\\Flagged", "\\Answered", "\\Draft", "Work"},
            "three": set(),
        }
        assert flags(one) == expected
        both.user.site.wait_for(lambda: flags(other) == expected)
        # And back: what the other takes away, and a keyword that is new there.
        store(other, "one", "-FLAGS", "\\Seen Work")
        store(other, "three", "+FLAGS", "Later")
        expected = {"one": {"$Forwarded"}, "two": expected["two"], "three": {"Later"}}
        assert flags(other) == expected
        both.user.site.wait_for(lambda: flags(one) == expected)

    @_DIRECTIONS
    def test_expunge(self, both: Both, first: str, second: str) -> None:
        both.user.receive(*(message(f"m{n}") for n in range(5)))
        one, other = session(both, first), session(both, second)
        assert set(flags(other)) == {"m0", "m1", "m2", "m3", "m4"}
        store(one, "m1 m3", "+FLAGS", "\\Deleted")
        one.expunge()
        both.user.site.wait_for(lambda: set(flags(other)) == {"m0", "m2", "m4"})

    @_DIRECTIONS
    def test_append_and_copy(self, both: Both, first: str, second: str) -> None:
        [received] = both.user.receive(message("one"))
        one, other = session(both, first), session(both, second)
        appended = message("appended", ".\r\nmore")
        one.append("INBOX", "(\\Seen Tagged)", '"01-Feb-2020 03:04:05 +0100"', appended)
        both.user.site.wait_for(lambda: flags(other) == {"one": set(), "appended": {"\\Seen", "Tagged"}})
        assert bodies(other) == [received, appended]
        [line] = other.fetch("2", "(INTERNALDATE)")[1]
        assert imaplib.Internaldate2tuple(line) == imaplib.Internaldate2tuple(
            b'2 (INTERNALDATE "01-Feb-2020 03:04:05 +0100")'
        )
        one.create("Kept")
        one.copy("2", "Kept")
        other.select("Kept")
        assert bodies(other) == [appended]
        assert flags(other) == {"appended": {"\\Seen", "Tagged"}}

    @_DIRECTIONS
    def test_folders(self, both: Both, first: str, second: str) -> None:
        both.user.receive(message("one"))
        one, other = session(both, first), session(both, second)
        for name in ("Work", "Work/Plans/2026", "Entw&APw-rfe", "R&-D"):
            assert one.create(f'"{name}"')[0] == "OK"
            one.subscribe(f'"{name}"')
        one.copy("1", '"Work/Plans/2026"')
        made = {"INBOX", "Work", "Work/Plans/2026", "Entw&APw-rfe", "R&-D"}
        wait_for(lambda: made <= folders(other), lambda: f"{made}, there are {folders(other)}")
        subscribed = made - {"INBOX"}
        wait_for(
            lambda: {line.decode().rpartition(" ")[2].strip('"') for line in other.lsub()[1]} == subscribed,
            lambda: f"{subscribed}, there are {other.lsub()}",
        )
        other.select('"Work/Plans/2026"')
        assert bodies(other) == [crlf(both.user.files()[0].read_bytes())]
        other.select()
        assert other.rename("Work", "Done")[0] == "OK"
        other.delete('"R&-D"')
        left, gone = {"INBOX", "Done", "Done/Plans/2026", "Entw&APw-rfe"}, {"Work", "Work/Plans/2026", "R&-D"}
        wait_for(lambda: folders(one) & (left | gone) == left, lambda: f"{left}, there are {folders(one)}")

    @_DIRECTIONS
    def test_what_arrives_is_announced(self, both: Both, first: str, second: str) -> None:
        """Both see what is delivered meanwhile."""
        one, other = session(both, first), session(both, second)
        received = both.user.receive(*(message(f"m{n}") for n in range(10)))
        for client in (one, other):
            both.user.site.wait_for(lambda client=client: len(flags(client)) == 10)
            # In which order a program meets files that come while it reads the directory is chance, in Dovecot's case.
            assert sorted(bodies(client)) == sorted(received)

    def test_both_at_once(self, both: Both) -> None:
        """Flags set in turns from both sides while mail comes in: nothing lost, nothing twice."""
        both.user.receive(*(message(f"m{n}") for n in range(20)))
        ours, theirs = both.ours(), both.theirs()
        for n in range(20):
            store(ours if n % 2 else theirs, f"m{n}", "+FLAGS", f"\\Seen k{n % 3}")
            if n % 5 == 0:
                both.user.receive(message(f"later{n}"))
        expected = {f"m{n}": {"\\Seen", f"k{n % 3}"} for n in range(20)}
        expected |= {f"later{n}": set() for n in (0, 5, 10, 15)}
        wait_for(lambda: flags(ours) == expected, lambda: f"{expected} from us, which says {flags(ours)}")
        wait_for(
            lambda: flags(theirs) == expected, lambda: f"{expected} from Dovecot, which says {flags(theirs)}"
        )
        assert sorted(bodies(ours)) == sorted(bodies(theirs))
        assert len(both.user.files()) == 24

    def test_pop3(self, both: Both) -> None:
        received = both.user.receive(message("one"), message("two", ".\r\n..\r\n"))
        theirs = poplib.POP3("127.0.0.1", both.dovecot.pop3_port)
        theirs.user(both.user.address)
        theirs.pass_(PASSWORD)
        seen = [b"".join(line + b"\r\n" for line in theirs.retr(n)[1]) for n in (1, 2)]
        assert sorted(seen) == sorted(received)
        theirs.dele(1)
        theirs.quit()
        assert bodies(both.ours()) == seen[1:]

"""mbsync (isync): both sides of a synchronisation, and UIDs that last."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import User, message
from tests.peers import run
from twisted_mta.testing.site import PASSWORD, Site, program


class Near:
    """A local Maildir that mbsync keeps in step with a user's mailboxes."""

    def __init__(self, user: User, directory: Path) -> None:
        self.user, self.directory = user, directory
        self.configuration = directory / "mbsyncrc"
        self.root = directory / "near"
        self.root.mkdir()

    def sync(self) -> str:
        """One run."""
        site = self.user.site
        self.configuration.write_text(
            f"IMAPAccount far\nHost localhost\nPort {site.port('imaps')}\nUser {self.user.address}\n"
            f'Pass "{self.user.password}"\nSSLType IMAPS\nSystemCertificates no\n'
            f"CertificateFile {site.directory}/cert.pem\n\n"
            "IMAPStore far\nAccount far\n\n"
            f"MaildirStore near\nPath {self.root}/\nInbox {self.root}/INBOX\nSubFolders Verbatim\n\n"
            "Channel all\nFar :far:\nNear :near:\nPatterns *\nCreate Both\nExpunge Both\nSyncState *\nCopyArrivalDate yes\n"
        )
        return run("mbsync", "-V", "-c", str(self.configuration), "-a")

    def files(self, folder: str = "INBOX") -> list[Path]:
        """Messages on this side."""
        return sorted((*(self.root / folder).glob("new/*"), *(self.root / folder).glob("cur/*")))

    def find(self, subject: str, folder: str = "INBOX") -> Path:
        """The message with that subject."""
        [path] = [path for path in self.files(folder) if f"Subject: {subject}\n" in path.read_text()]
        return path

    def set_flags(self, subject: str, letters: str) -> None:
        """Mark it as a mail program would."""
        path = self.find(subject)
        path.rename(self.root / "INBOX" / "cur" / f"{path.name.partition(':')[0]}:2,{letters}")

    def state(self, folder: str = "INBOX") -> str:
        """mbsync's own record: UIDVALIDITY, and which UIDs belong together."""
        return (self.root / folder / ".mbsyncstate").read_text()


@pytest.fixture(scope="module")
def own_site() -> Iterator[Site]:
    """A site that the tests here may restart."""
    with Site() as site:
        yield site


def flags(user: User, folder: str = "") -> dict[str, str]:
    """Subject to the flags in the file's name, on the server."""
    found = {}
    for path in user.files(folder):
        subject = next(line[9:] for line in path.read_text().splitlines() if line.startswith("Subject: "))
        found[subject] = path.name.partition(":2,")[2]
    return found


class MbsyncTests:
    def test_both_ways(self, user: User, tmp_path: Path) -> None:
        near = Near(user, tmp_path)
        originals = user.receive(*(message(f"m{n}", "ü" * n) for n in range(20)))
        near.sync()
        ours = sorted(content.replace(b"\r\n", b"\n") for content in originals)
        assert sorted(without_tuid(path.read_bytes()) for path in near.files()) == ours

        near.set_flags("m1", "FS")
        near.set_flags("m2", "RS")
        near.set_flags("m3", "ST")
        (near.root / "Made here" / "cur").mkdir(parents=True)
        for part in ("new", "tmp"):
            (near.root / "Made here" / part).mkdir()
        (near.root / "Made here" / "cur" / "1.local:2,FS").write_bytes(
            message("local").replace(b"\r\n", b"\n")
        )
        near.sync()
        there = flags(user)
        assert (there["m1"], there["m2"], there["m4"]) == ("FS", "RS", "")
        assert "m3" not in there
        assert flags(user, ".Made here") == {"local": "FS"}

        user.receive(message("later"))
        (gone,) = (path for path in user.files() if "Subject: m5\n" in path.read_text())
        gone.unlink()
        near.sync()
        assert near.find("later")
        assert not [path for path in near.files() if "Subject: m5\n" in path.read_text()]

    def test_a_second_run_changes_nothing(self, own_site: Site, tmp_path: Path) -> None:
        user = User(own_site, "bob")
        near = Near(user, tmp_path)
        user.receive(*(message(f"m{n}") for n in range(10)))
        near.sync()
        near.set_flags("m1", "FS")
        near.sync()
        state, here, there = near.state(), near.files(), user.files()
        output = near.sync()
        assert "Warning" not in output
        assert (near.state(), near.files(), user.files()) == (state, here, there)
        assert "MaxPulledUid 10\n" in state

        own_site.stop()
        own_site.start()
        near.sync()
        assert (near.state(), near.files(), user.files()) == (state, here, there)

        own_site.kill()
        own_site.start()
        near.sync()
        assert (near.state(), near.files(), user.files()) == (state, here, there)

        user.receive(message("after"))
        near.sync()
        assert len(near.files()) == 11
        assert "MaxPulledUid 11\n" in near.state()

    def test_many_messages_upwards(self, user: User, tmp_path: Path) -> None:
        near = Near(user, tmp_path)
        near.sync()
        (near.root / "Archive").mkdir()
        for part in ("cur", "new", "tmp"):
            (near.root / "Archive" / part).mkdir()
        for n in range(200):
            content = message(f"m{n}", "x" * 5000).replace(b"\r\n", b"\n")
            (near.root / "Archive" / "cur" / f"{n}.local:2,S").write_bytes(content)
        near.sync()
        assert flags(user, ".Archive") == {f"m{n}": "S" for n in range(200)}
        state = near.state("Archive")
        near.sync()
        assert near.state("Archive") == state

    def test_scram_with_an_account_that_mta_user_made(self, tmp_path: Path) -> None:
        """By Cyrus SASL, which chooses it where it is offered, and computes only so many iterations."""
        site = Site(accounts=())
        add = [
            program("mta"),
            "--config",
            site.config_file,
            "user",
            "add",
            "postmaster",
        ]
        subprocess.run(add, input=f"{PASSWORD}\n", text=True, capture_output=True, check=True)
        with site:
            user = User(site, "postmaster")
            user.receive(message("one"))
            near = Near(user, tmp_path)
            assert "SCRAM-SHA-256" in near.sync()
            assert near.find("one")


def without_tuid(content: bytes) -> bytes:
    """mbsync marks what it downloads with a header of its own."""
    return b"\n".join(line for line in content.split(b"\n") if not line.startswith(b"X-TUID: "))

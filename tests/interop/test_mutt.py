"""mutt, in a terminal of its own, driven by the keys that its configuration pushes."""

from __future__ import annotations

import mailbox
import os
from pathlib import Path

from tests.interop.conftest import User, message
from tests.peers import run_in_terminal
from twisted_mta.store.passwords import hash_password, scram_keys

_COMMON = """\
set quit = yes
set delete = yes
set move = no
set mark_old = no
set wait_key = no
set confirmappend = no
set confirmcreate = no
set record = ""
set copy = no
set sleep_time = 0
set ssl_use_sslv3 = no
"""


def mutt(tmp_path: Path, settings: str, keys: str) -> None:
    """Run it until the keys end it."""
    configuration = tmp_path / "muttrc"
    configuration.write_text(f"{_COMMON}{settings}push '{keys}<quit>'\n")
    configuration.chmod(0o600)
    run_in_terminal("mutt", "-F", str(configuration), home=tmp_path)


def imap(user: User, role: str, certificate: str) -> str:
    """The settings to reach the user's mailboxes; the certificate must be right, or mutt would ask."""
    scheme = "imaps" if role == "imaps" else "imap"
    return (
        f'set imap_user = "{user.address}"\nset imap_pass = "{user.password}"\n'
        f'set folder = "{scheme}://localhost:{user.site.port(role)}/"\nset spoolfile = "+INBOX"\n'
        f'set certificate_file = "{certificate}"\nset ssl_verify_host = yes\nset ssl_force_tls = yes\n'
    )


def flags(path: Path) -> str:
    return path.name.partition(":2,")[2]


def subjects(paths: list[Path]) -> set[str]:
    return {
        line.removeprefix("Subject: ")
        for path in paths
        for line in path.read_text().splitlines()
        if line.startswith("Subject: ")
    }


class MuttImapTests:
    def test_copy_flag_and_delete(self, user: User, tmp_path: Path, certificate: str) -> None:
        user.receive(message("one"), message("two"), message("three"))
        keys = (
            "<first-entry><copy-message><kill-line>=Kept<enter>"
            "<first-entry><flag-message><first-entry><next-entry><delete-message><sync-mailbox>"
        )
        mutt(tmp_path, imap(user, "imaps", certificate), keys)
        user.site.wait_for(lambda: len(user.files()) == 2)
        assert subjects(user.files()) == {"one", "three"}
        assert {"F" in flags(path) for path in user.files() if "Subject: one" in path.read_text()} == {True}
        assert subjects(user.files(".Kept")) == {"one"}

    def test_read_and_save_over_starttls(self, user: User, tmp_path: Path, certificate: str) -> None:
        user.receive(message("one", "the text"), message("two"))
        keys = "<first-entry><display-message><exit><last-entry><save-message><kill-line>=Box/Deep<enter><sync-mailbox>"
        mutt(tmp_path, imap(user, "imap", certificate), keys)
        [left] = user.files()
        assert (subjects([left]), flags(left)) == ({"one"}, "S")
        assert subjects(user.files(".Box.Deep")) == {"two"}

    def test_search_on_the_server_and_pipe(self, user: User, tmp_path: Path, certificate: str) -> None:
        user.receive(message("one", "hay"), message("two", "needle in hay"), message("three", "hay"))
        keys = f"<limit>=b needle<enter><pipe-message>cat > {tmp_path}/piped<enter>"
        mutt(tmp_path, imap(user, "imaps", certificate) + "set pipe_decode = no\n", keys)
        piped = (tmp_path / "piped").read_text()
        assert "Subject: two" in piped
        assert "needle in hay" in piped

    def test_a_user_name_and_a_folder_beyond_ascii(
        self, user: User, tmp_path: Path, certificate: str
    ) -> None:
        user.receive(message("one"))
        mutt(tmp_path, imap(user, "imaps", certificate), "<copy-message><kill-line>=Entwürfe<enter>")
        assert subjects(user.files(".Entw&APw-rfe")) == {"one"}


class MuttMaildirTests:
    def test_it_reads_and_changes_what_we_delivered(
        self, user: User, tmp_path: Path, certificate: str
    ) -> None:
        user.receive(message("one"), message("two"), message("three"))
        inbox = user.files()[0].parent.parent
        keys = (
            "<first-entry><flag-message><first-entry><display-message><exit>"
            "<last-entry><delete-message><sync-mailbox>"
        )
        mutt(
            tmp_path,
            f'set mbox_type = Maildir\nset spoolfile = "{inbox}"\nset folder = "{inbox}"\nset sort = subject\n',
            keys,
        )
        assert {flags(path) for path in user.files() if "Subject: one" in path.read_text()} == {"FS"}
        assert subjects(user.files()) == {"one", "three"}
        # The server shows what mutt did.
        keys = "<limit>~F<enter><copy-message><kill-line>=Flagged<enter>"
        mutt(tmp_path, imap(user, "imaps", certificate), keys)
        assert subjects(user.files(".Flagged")) == {"one"}

    def test_the_standard_library_reads_it(self, user: User) -> None:
        user.receive(message("one"), message("two"))
        box = mailbox.Maildir(str(user.files()[0].parent.parent), create=False)
        assert sorted(each["Subject"] for each in box) == ["one", "two"]
        assert {each.get_subdir() for each in box} == {"new"}


class MuttScramTests:
    def test_scram(self, user: User, tmp_path: Path, certificate: str) -> None:
        """Its SCRAM is GNU SASL's."""
        path = user.site.directory / "users"
        stored = hash_password(user.password.encode(), os.urandom)
        keys = scram_keys(user.password.encode(), stored, 4096)
        own = f"{user.address}:"
        lines = path.read_text().splitlines()
        changed = [
            f"{own}{stored}::::::scram_sha256={keys}" if line.startswith(own) else line for line in lines
        ]
        # In one step: the server reads it by itself when it changes, and must not find half of it.
        beside = path.with_name("users.new")
        beside.touch(mode=0o600)
        beside.write_text("\n".join(changed) + "\n")
        beside.replace(path)
        config = user.site.config_file
        before = config.read_text()
        config.write_text(before.replace("[accounts]\n", '[accounts]\nscram = "always"\n'))
        user.site.control("reload")
        try:
            user.receive(message("one"))
            settings = imap(user, "imaps", certificate) + 'set imap_authenticators = "scram-sha-256"\n'
            mutt(tmp_path, settings, "<first-entry><flag-message><sync-mailbox>")
            user.site.wait_for(lambda: [flags(found) for found in user.files()] == ["F"])
        finally:
            # The others on this site have no keys, and a mutt that is offered SCRAM tries nothing else.
            config.write_text(before)
            user.site.control("reload")

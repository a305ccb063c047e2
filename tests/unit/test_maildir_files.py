"""store.maildir: names, line ends, keywords and layout on a real disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.interfaces import MailboxError
from twisted_mta.store.maildir.files import (
    MessageFile,
    ToDisk,
    UniqueKeys,
    arrival_order,
    key_of,
    letters_of,
    safe_host,
    to_wire,
    virtual_size_of,
    with_letters,
    with_sizes,
)
from twisted_mta.store.maildir.keywords import Keywords
from twisted_mta.store.maildir.layout import Layout
from twisted_mta.store.maildir.names import directory_of, name_of, normalise, parents


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class FileNameTests(SynchronousTestCase):
    def test_parts_of_names_of_many_programs(self) -> None:
        for file, key, letters, virtual in (
            ("1700000000.M1P2Q3.host,S=10,W=12:2,RS", "1700000000.M1P2Q3.host", "RS", 12),
            ("1700000000.M1P2Q3.host,S=10,W=12", "1700000000.M1P2Q3.host", "", 12),
            ("1700000000.1_2.host,U=17:2,FSab", "1700000000.1_2.host", "FSab", None),  # mbsync
            ("1700000000.R1.host:2,", "1700000000.R1.host", "", None),  # mutt
            ("1.host,W=5,U=3:2,S", "1.host", "S", 5),
            ("1.host:2,W=5", "1.host", "W=5", None),
            ("1.host,W=5x:2,", "1.host", "", None),
        ):
            with self.subTest(file=file):
                self.assertEqual(
                    (key_of(file), letters_of(file), virtual_size_of(file)), (key, letters, virtual)
                )

    def test_letters_are_sorted_and_said_once(self) -> None:
        self.assertEqual(with_letters("1.h,S=2", "SaFS"), "1.h,S=2:2,FSa")
        self.assertEqual(with_letters("1.h,S=2:2,T", ""), "1.h,S=2:2,")
        self.assertEqual(with_sizes("1.h", 2, 3), "1.h,S=2,W=3")

    def test_files_sort_by_arrival(self) -> None:
        names = ["100.a", "99.b", "strange", "99.a"]
        self.assertEqual(sorted(names, key=arrival_order), ["strange", "99.a", "99.b", "100.a"])

    def test_keys_are_unique_and_safe(self) -> None:
        keys = UniqueKeys(lambda: 1700000000.25, host="a/b:c,d", process=7)
        self.assertEqual(keys(), r"1700000000.M250000P7Q1.a\057b\072c\054d")
        self.assertNotEqual(keys(), keys())
        self.assertEqual(key_of(keys()), keys().replace("Q5", "Q4"))
        self.assertEqual(safe_host(""), "localhost")


class LineEndTests(SynchronousTestCase):
    @given(st.lists(st.sampled_from([b"\r\n", b"\r", b"x", b"."]), max_size=12), st.data())
    def test_what_goes_in_comes_out(self, atoms: list[bytes], data: st.DataObject) -> None:
        message = b"".join(atoms)
        cut = data.draw(st.integers(0, len(message)))
        lines = ToDisk()
        disk = lines.feed(message[:cut]) + lines.feed(message[cut:]) + lines.finish()
        self.assertEqual(to_wire(disk), message)
        self.assertEqual((lines.size, lines.virtual), (len(disk), len(message)))
        if b"\r\r\n" not in message:
            self.assertNotIn(b"\r\n", disk)

    @given(st.binary(max_size=20))
    def test_the_counted_size_is_what_is_read(self, message: bytes) -> None:
        lines = ToDisk()
        disk = lines.feed(message) + lines.finish()
        self.assertEqual((lines.size, lines.virtual), (len(disk), len(to_wire(disk))))

    def test_files_of_others_may_have_any_line_ends(self) -> None:
        self.assertEqual(to_wire(b"a\nb\r\nc"), b"a\r\nb\r\nc")


class MessageFileTests(SynchronousTestCase):
    def test_written_and_named(self) -> None:
        path = Path(self.mktemp())
        path.parent.mkdir(parents=True, exist_ok=True)
        file = MessageFile(str(path))
        file.write(b"a\r")
        file.write(b"\nb\r\n")
        file.finish()
        file.sync()
        self.assertEqual(path.read_bytes(), b"a\nb\n")
        self.assertEqual(mode(path), 0o600)
        self.assertEqual(file.named("1.h"), "1.h,S=4,W=6")
        file.abort()
        file.abort()
        self.assertFalse(path.exists())

    def test_abort_amid_writing(self) -> None:
        path = Path(self.mktemp())
        file = MessageFile(str(path))
        self.assertRaises(FileExistsError, MessageFile, str(path))
        file.write(b"x")
        file.abort()
        self.assertFalse(path.exists())


class NameTests(SynchronousTestCase):
    def test_directories(self) -> None:
        for name, directory in (
            ("INBOX", ""),
            ("INBOX/sub", ".INBOX.sub"),
            ("Lists/python/dev", ".Lists.python.dev"),
            ("Entwürfe & mehr", ".Entw&APw-rfe &- mehr"),
            ("受信箱", ".&U9dP4Xux-"),
        ):
            with self.subTest(name=name):
                self.assertEqual(directory_of(name), directory)
                self.assertEqual(name_of(directory), name)

    def test_directories_that_no_name_has(self) -> None:
        for directory in (
            ".",
            "..",
            ".a..b",
            ".a.",
            ".inbox",
            ".&",
            ".&AGE-",
            ".Entw\udcfcrfe",
            ".\u00e9",
            ".a/b",
        ):
            with self.subTest(directory=directory):
                self.assertIsNone(name_of(directory))

    @given(st.text(max_size=30))
    def test_every_name_is_found_again_or_refused(self, text: str) -> None:
        try:
            name = normalise(text)
        except MailboxError:
            return
        self.assertEqual(normalise(name), name)
        self.assertEqual(name_of(directory_of(name)), name)
        self.assertNotIn("/", directory_of(name))
        self.assertFalse(directory_of(name).startswith(".."))

    def test_inbox_in_any_case_and_its_children(self) -> None:
        self.assertEqual(
            [normalise(name) for name in ("inbox", "Inbox/a", "a/inbox")], ["INBOX", "INBOX/a", "a/inbox"]
        )
        self.assertEqual(parents("a/b/c"), ["a", "a/b"])


class KeywordTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir(parents=True)
        self.file = self.directory / "dovecot-keywords"
        self.keywords = Keywords(str(self.directory))

    def test_a_file_written_by_dovecot(self) -> None:
        self.file.write_text("0 $Forwarded\n1 NonJunk\n26 TooFar\nrubbish\n")
        self.assertTrue(self.keywords.load())
        self.assertFalse(self.keywords.load())
        self.assertEqual(self.keywords.flags("RSaz"), {"\\Answered", "\\Seen", "$Forwarded"})
        self.assertEqual(self.keywords.letters(["\\seen", "nonjunk", "\\Recent"]), "Sb")

    def test_new_keywords_take_free_letters(self) -> None:
        self.file.write_text("0 $Forwarded\n2 NonJunk\n")
        self.assertEqual(self.keywords.letters(["Work", "$Label1", "work"]), "bdb")
        self.assertEqual(self.file.read_text(), "0 $Forwarded\n1 Work\n2 NonJunk\n3 $Label1\n")
        self.assertEqual(mode(self.file), 0o600)
        self.assertEqual(os.listdir(self.directory), ["dovecot-keywords"])

    def test_removing_makes_no_new_ones(self) -> None:
        self.assertEqual(self.keywords.letters(["Work", "\\Draft"], create=False), "D")
        self.assertFalse(self.file.exists())

    def test_what_can_not_be_a_flag(self) -> None:
        for flag in ("\\Unknown", "two words", "", "a\nb", "ä", "x" * 101, 'q"', "a]"):
            with self.subTest(flag=flag):
                self.assertRaises(MailboxError, self.keywords.letters, [flag])

    def test_only_26(self) -> None:
        self.keywords.letters([f"k{number}" for number in range(26)])
        self.assertRaises(MailboxError, self.keywords.letters, ["another"])
        self.assertEqual(self.keywords.letters(["k25"]), "z")
        self.assertEqual(os.listdir(self.directory), ["dovecot-keywords"])

    def test_a_lock_left_behind_is_broken(self) -> None:
        lock = self.directory / "dovecot-keywords.lock"
        lock.touch()
        os.utime(lock, (1, 1))
        self.assertEqual(self.keywords.letters(["Work"]), "a")

    def test_a_held_lock_is_respected(self) -> None:
        (self.directory / "dovecot-keywords.lock").touch()
        self.patch(__import__("twisted_mta.store.maildir.keywords", fromlist=["x"]), "_LOCK_PATIENCE", 0.0)
        self.assertRaises(MailboxError, self.keywords.letters, ["Work"])
        self.assertFalse(self.file.exists())


class LayoutTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute() / "a" / "Maildir"
        self.layout = Layout(str(self.root))
        self.layout.ensure()

    def test_modes_and_marker(self) -> None:
        self.layout.create(".a")
        for path in (
            self.root.parent,
            self.root,
            *(self.root / ".a" / part for part in ("cur", "new", "tmp")),
        ):
            self.assertEqual(mode(path), 0o700, path)
        self.assertTrue((self.root / ".a" / "maildirfolder").exists())
        self.assertFalse((self.root / "maildirfolder").exists())

    def test_a_half_made_mailbox_is_completed(self) -> None:
        (self.root / ".a").mkdir()
        self.assertFalse(self.layout.exists(".a"))
        self.layout.create(".a")
        self.assertTrue(self.layout.exists(".a"))

    def test_directories_that_are_no_mailboxes(self) -> None:
        self.layout.create(".a")
        self.layout.create(".&")
        (self.root / ".notmuch").mkdir()
        (self.root / "..deleted-1").mkdir()
        self.assertEqual(self.layout.directories(), (["", ".a"], [".&"]))

    def test_leftovers_of_removals_go_with_the_next(self) -> None:
        (self.root / "..deleted-old" / "cur").mkdir(parents=True)
        self.layout.create(".a")
        self.layout.remove(".a", "1")
        self.assertEqual(sorted(os.listdir(self.root)), ["cur", "new", "tmp"])

    def test_subscriptions_as_dovecot_writes_them(self) -> None:
        file = self.root / "subscriptions"
        for before, after in (
            ("INBOX\nLists.python\nEntw&APw-rfe\n", "INBOX\nLists.python\nEntw&APw-rfe\nLists.new\n"),
            (
                "V\t2\n\nINBOX\nLists\tpython\nEntw&APw-rfe\n",
                "V\t2\n\nINBOX\nLists\tpython\nEntw&APw-rfe\nLists\tnew\n",
            ),
        ):
            file.write_text(before)
            self.assertEqual(self.layout.subscriptions(), ["INBOX", "Lists/python", "Entwürfe"])
            self.layout.subscribe("Lists/new", True)
            self.assertEqual(file.read_text(), after)
            self.layout.subscribe("Lists/new", False)
            self.assertEqual(file.read_text(), before)

    def test_lines_we_do_not_understand_are_kept(self) -> None:
        file = self.root / "subscriptions"
        file.write_bytes(b"\xff\xfe\na..b\n")
        self.assertEqual(self.layout.subscriptions(), [])
        self.layout.subscribe("INBOX", True)
        self.assertEqual(file.read_bytes(), b"\xff\xfe\na..b\nINBOX\n")
        self.assertEqual(mode(file), 0o600)

"""Appending to mbox files: locks, failures halfway, repetitions, and who must not be written to."""

from __future__ import annotations

import errno
import fcntl
import mailbox
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from unittest import mock, skipUnless

from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.core.address import Address
from twisted_mta.store.below import NotAllowed, directory_below, root_of
from twisted_mta.store.faults import arm
from twisted_mta.store.mbox import STALE, Letter, Locked, append
from twisted_mta.store.queue.bodies import MemoryBody

NOW = 1_800_000_000.0
HEAD = b"Return-Path: <a@b.example>\r\nDelivered-To: log@example.test\r\nReceived: id Q1\r\n"


def letter(body: bytes = b"Subject: x\r\n\r\nFrom here\r\n", head: bytes = HEAD) -> Letter:
    return Letter(sender=Address("a", "b.example"), arrived=NOW, head=head, body=MemoryBody(body))


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(os.path.realpath(self.mktemp()))
        self.root.mkdir()
        self.box = self.root / "log"
        self.addCleanup(arm, None)

    def append(self, one: Letter | None = None, *, repeated: bool = False, path: Path | None = None) -> bool:
        return append(self.root, str(path or self.box), one or letter(), NOW, repeated=repeated)

    def whole(self, one: Letter | None = None) -> bytes:
        return b"".join((one or letter()).octets())


class AppendTests(_Case):
    def test_what_is_written(self) -> None:
        self.assertTrue(self.append())
        self.assertEqual(
            self.box.read_bytes(),
            b"From a@b.example Fri Jan 15 08:00:00 2027\nReturn-Path: <a@b.example>\nDelivered-To: log@example.test\n"
            b"Received: id Q1\nSubject: x\n\n>From here\n\n",
        )
        self.assertEqual(stat.S_IMODE(self.box.stat().st_mode), 0o600)
        self.assertEqual(os.listdir(self.root), ["log"])

    def test_others_read_what_we_write(self) -> None:
        bodies = [b"Subject: %d\r\n\r\nFrom x\r\n%s" % (n, b"y\r\n" * n) for n in range(4)]
        for body in bodies:
            self.append(letter(body))
        box = mailbox.mbox(self.box)
        self.addCleanup(box.close)
        self.assertEqual([message["subject"] for message in box], ["0", "1", "2", "3"])

    def test_it_parts_itself_from_what_others_left(self) -> None:
        for before, between in (
            (b"From x\n\ny\n\n", b""),
            (b"From x\n\ny\n", b"\n"),
            (b"From x\n\ny", b"\n\n"),
            (b"\n", b"\n"),
        ):
            self.box.write_bytes(before)
            self.append()
            self.assertEqual(self.box.read_bytes(), before + between + self.whole())

    def test_directories_are_made(self) -> None:
        self.append(path=self.root / "2027/january/log")
        self.assertEqual(stat.S_IMODE((self.root / "2027/january").stat().st_mode), 0o700)
        self.assertTrue((self.root / "2027/january/log").exists())

    def test_a_large_one(self) -> None:
        body = b"Subject: x\r\n\r\n" + b"From 0123456789\r\n" * 50_000
        self.append(letter(body))
        self.assertEqual(self.box.read_bytes(), self.whole(letter(body)))
        self.assertEqual(self.box.read_bytes().count(b">From 0123456789\n"), 50_000)


class FailureTests(_Case):
    def fail_at(self, point: str, after: int = 0) -> None:
        left = after

        def hook(passed: str) -> None:
            nonlocal left
            if passed == point:
                left -= 1
                if left < 0:
                    raise OSError(errno.ENOSPC, "full")

        arm(hook)

    def test_what_fails_is_taken_back(self) -> None:
        self.append()
        before = self.box.read_bytes()
        for point, after in (("mbox.write", 0), ("mbox.write", 2), ("mbox.sync", 0)):
            self.fail_at(point, after)
            with self.assertRaises(OSError):
                self.append(letter(b"Subject: y\r\n\r\n" + b"z" * 300_000))
            arm(None)
            self.assertEqual(self.box.read_bytes(), before, point)
            self.assertEqual(os.listdir(self.root), ["log"])

    def test_the_body_is_closed(self) -> None:
        begun: list[Iterator[bytes]] = []  # nobody else closes it while somebody has it

        def octets(one: Letter) -> Iterator[bytes]:
            begun.append(real(one))
            return begun[-1]

        real = Letter.octets
        long = letter(b"Subject: y\r\n\r\n" + b"z\r\n" * 100_000)
        other = letter(b"Subject: y\r\n\r\n" + b"z\r\n" * 50_000 + b"a\r\n" * 50_000)
        self.append(other)
        with mock.patch.object(Letter, "octets", octets):
            self.assertTrue(self.append(long, repeated=True))  # it is compared with the other, and differs
            self.fail_at("mbox.write", 3)
            with self.assertRaises(OSError):
                self.append(long)
        self.assertEqual(len(begun), 3)
        for one in begun:
            self.assertEqual(list(one), [])

    def test_the_lock_fails(self) -> None:
        self.fail_at("mbox.lock")
        with self.assertRaises(OSError):
            self.append()
        self.assertEqual(os.listdir(self.root), [])


class NamelessTests(_Case):
    """Nobody sees a dot-lock without the process that has it: after a kill nobody could judge it."""

    @skipUnless(hasattr(os, "O_TMPFILE"), "PyPy has no files without a name")
    def test_it_has_a_name_only_when_the_process_is_in_it(self) -> None:
        seen: list[tuple[list[str], bytes]] = []

        def link(source: str, name: str, *, dst_dir_fd: int) -> None:
            before = os.listdir(self.root)
            real_link(source, name, dst_dir_fd=dst_dir_fd)
            seen.append((before, (self.root / name).read_bytes()))

        real_link = os.link
        with mock.patch.object(os, "link", link):
            self.assertTrue(self.append())
        self.assertEqual(seen, [([], b"%d\n" % os.getpid())])

    def test_a_file_system_that_can_not(self) -> None:
        with mock.patch.object(os, "link", side_effect=OSError(errno.EOPNOTSUPP, "not here")):
            self.assertTrue(self.append())
            self.lock_of_another(os.getppid())
            with self.assertRaises(Locked):
                self.append()
            (self.root / "log.lock").unlink()
            with mock.patch.object(os, "write", side_effect=OSError(errno.ENOSPC, "full")):
                self.assertRaises(OSError, self.append)
        self.assertEqual(os.listdir(self.root), ["log"])

    def lock_of_another(self, process: int) -> None:
        (self.root / "log.lock").write_text(f"{process}\n")
        os.utime(self.root / "log.lock", (NOW, NOW))


class RepetitionTests(_Case):
    def test_a_message_that_is_there_is_not_added_again(self) -> None:
        self.append(letter(b"Subject: before\r\n\r\n"))
        self.append()
        self.append(letter(b"Subject: behind\r\n\r\n", HEAD.replace(b"Q1", b"Q2")))
        before = self.box.read_bytes()
        self.assertFalse(self.append(repeated=True))
        self.assertEqual(self.box.read_bytes(), before)

    def test_a_message_that_is_not_there_is(self) -> None:
        self.append(letter(head=HEAD.replace(b"Q1", b"Q2")))
        self.assertTrue(self.append(repeated=True))
        self.assertEqual(self.box.read_bytes().count(b"Received: id Q1\n"), 1)

    def test_cut_off_anywhere_it_is_written_anew(self) -> None:
        self.append(letter(b"Subject: before\r\n\r\n", HEAD.replace(b"Q1", b"Q0")))
        before, whole = self.box.read_bytes(), self.whole()
        for length in range(len(b"From "), len(whole)):
            self.box.write_bytes(before + whole[:length])
            self.assertTrue(self.append(repeated=True), str(length))
            self.assertEqual(self.box.read_bytes(), before + whole, str(length))

    def test_cut_off_in_an_empty_file(self) -> None:
        for length in (0, 5, 30, 100, len(self.whole()) - 1):
            self.box.write_bytes(self.whole()[:length])
            self.assertTrue(self.append(repeated=True), str(length))
            self.assertEqual(self.box.read_bytes(), self.whole(), str(length))

    def test_far_back_in_a_large_file(self) -> None:
        self.append()
        with self.box.open("ab") as file:
            file.write(b"From x\n\n" + b"From\n" * 1_000_000 + b"\n")
        size = self.box.stat().st_size
        self.assertFalse(self.append(repeated=True))
        self.assertEqual(self.box.stat().st_size, size)

    def test_a_needle_across_two_reads(self) -> None:
        with mock.patch("twisted_mta.store.mbox._CHUNK", 8):
            for before in range(100, 140):
                self.box.write_bytes(b"x" * before + b"\n" + self.whole())
                self.assertFalse(self.append(repeated=True), str(before))

    def test_it_is_not_found_within_another(self) -> None:
        """Who quotes a message with its first line has that line quoted."""
        inside = self.whole().replace(b"\n", b"\r\n")
        other = letter(b"Subject: fwd\r\n\r\n" + inside, HEAD.replace(b"Q1", b"Q2"))
        self.append(other)
        self.assertTrue(self.append(repeated=True))

    def test_a_mail_program_changed_it(self) -> None:
        self.box.write_bytes(self.whole().replace(b"\n\n>", b"\nStatus: RO\n\n>"))
        self.assertTrue(self.append(repeated=True))


class LockTests(_Case):
    @property
    def lock(self) -> Path:
        return self.root / "log.lock"

    def test_a_living_one(self) -> None:
        self.lock.write_text(f"{os.getppid()}\n")
        os.utime(self.lock, (NOW, NOW))
        with self.assertRaises(Locked):
            self.append()
        self.assertTrue(self.lock.exists())
        self.assertFalse(self.box.exists())

    def abandoned(self, after: bytes, *, offset: int | None = None) -> bytes:
        """What is there in the end if a process dies behind these octets, and another message comes first."""
        self.box.unlink(missing_ok=True)
        self.append(letter(head=HEAD.replace(b"Q1", b"Q0")))
        size = self.box.stat().st_size
        with self.box.open("ab") as file:
            file.write(after)
        self.lock.write_text(f"{os.getpid()}\n{size if offset is None else offset}\n")
        self.append(letter(head=HEAD.replace(b"Q1", b"Q2")))
        return self.box.read_bytes()[size:]

    def test_what_a_dead_one_was_writing_is_cut_off(self) -> None:
        next_one = self.whole(letter(head=HEAD.replace(b"Q1", b"Q2")))
        whole = self.whole()
        self.assertEqual(self.abandoned(b""), next_one)
        for length in range(1, len(whole)):
            rest = self.abandoned(whole[:length])
            if not whole[:length].endswith(b"\n\n"):
                self.assertEqual(rest, next_one, str(length))

    def test_what_is_not_of_a_dead_one_stays(self) -> None:
        next_one = self.whole(letter(head=HEAD.replace(b"Q1", b"Q2")))
        for after in (self.whole(), self.whole() + b"From x\n\nno end", b"no message"):
            found = self.abandoned(after)
            self.assertTrue(found.startswith(after), after)
            self.assertTrue(found.endswith(next_one))
        self.assertTrue(self.abandoned(b"From x", offset=1).startswith(b"From x"))
        with mock.patch("twisted_mta.store.mbox._CHUNK", 1):
            found = self.abandoned(self.whole()[:-1] + b"\nFrom x\n\nno end")
            self.assertIn(b"no end", found)

    def test_one_of_a_program_that_writes_nothing_into_it(self) -> None:
        self.lock.write_text("")
        for age, there in ((STALE - 1, True), (STALE + 1, False)):
            os.utime(self.lock, (NOW - age, NOW - age))
            if there:
                self.assertRaises(Locked, self.append)
                self.assertTrue(self.lock.exists())
            else:
                self.assertTrue(self.append())
                self.assertFalse(self.lock.exists())

    def test_one_of_a_dead_process_and_one_of_our_own_from_an_earlier_life(self) -> None:
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        for process in (child, os.getpid()):
            self.lock.write_text(f"{process}\n")
            os.utime(self.lock, (NOW, NOW))
            self.assertTrue(self.append())
            self.assertFalse(self.lock.exists())

    def test_a_lock_of_fcntl(self) -> None:
        self.append()
        before = self.box.read_bytes()
        go, ready = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            with self.box.open("rb+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX)
                os.write(ready[1], b"x")
                os.read(go[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        try:
            with self.assertRaises(Locked):
                self.append()
        finally:
            os.write(go[1], b"x")
            os.waitpid(child, 0)
        self.assertEqual(self.box.read_bytes(), before)
        self.append()

    def test_replaced_while_we_open_it(self) -> None:
        self.append()
        real = os.open

        def opening(path: str, *args: int, **more: int) -> int:
            found = real(path, *args, **more)
            if path == "log":
                other = self.root / "other"
                other.touch()
                other.rename(self.box)
            return found

        with mock.patch("os.open", opening), self.assertRaises(Locked):
            self.append()


class NotAllowedTests(_Case):
    def refused(self, path: Path, why: str) -> None:
        with self.assertRaisesRegex(NotAllowed, why):
            self.append(path=path)

    def test_links(self) -> None:
        outside = Path(self.mktemp())
        outside.mkdir()
        (outside / "file").touch()
        (self.root / "link").symlink_to(os.path.realpath(outside / "file"))
        (self.root / "way").symlink_to(os.path.realpath(outside))
        self.refused(self.root / "link", "link, or no regular file")
        self.refused(self.root / "way/file", '"way" on its way is a link')
        self.assertEqual((outside / "file").read_bytes(), b"")

    def test_other_kinds_of_files(self) -> None:
        os.mkfifo(self.root / "fifo")
        (self.root / "directory").mkdir()
        self.refused(self.root / "fifo", "no regular file")
        self.refused(self.root / "directory", "no regular file")

    def test_a_hard_link(self) -> None:
        (self.root / "one").touch()
        os.link(self.root / "one", self.root / "two")
        self.refused(self.root / "two", "another name")

    def test_paths(self) -> None:
        roots = [Path("/var/archive"), Path("/var/archive/deep")]
        self.assertEqual(root_of("/var/archive/x", roots), roots[0])
        self.assertEqual(root_of("/var/archive/deep/x", roots), roots[1])
        for path in ("/var/archivex", "/var/archive", "/etc/passwd"):
            with self.assertRaisesRegex(NotAllowed, "not below"):
                root_of(path, roots)
        for path in ("/var/archive/../x", "x", "/var/archive//x", "/var/archive/x/", "/var/archive/\0"):
            with self.assertRaisesRegex(NotAllowed, "absolute"):
                root_of(path, roots)

    def test_private(self) -> None:
        for mode, fine in ((0o755, True), (0o775, False), (0o757, False), (0o1777, True)):
            self.root.chmod(mode)
            try:
                with directory_below(self.root, ["x"], private=True):
                    self.assertTrue(fine)
            except NotAllowed:
                self.assertFalse(fine)

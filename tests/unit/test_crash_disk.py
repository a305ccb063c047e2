"""The disk that a power failure is tried on, and the reading of what strace(1) wrote down."""

from __future__ import annotations

import random
from pathlib import Path, PurePath
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.crash.disk import Disk, File, Folder, write_tree
from tests.crash.strace import replay

_NEW = PurePath("new")


class DiskTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.place = Path(self.mktemp())
        (self.place / "new").mkdir(parents=True)
        (self.place / "old").write_bytes(b"old")
        self.disk = Disk(self.place)

    def left(self) -> Any:
        return self.disk.left()

    def make(self, path: str, *writes: bytes) -> File:
        file = self.disk.create(PurePath(path))
        for octets in writes:
            file.write(file.length, octets)
        return file

    def folder(self, path: str) -> Folder:
        found = self.disk.find(PurePath(path))
        assert isinstance(found, Folder)
        return found

    def test_what_was_there_is_safe(self) -> None:
        self.assertEqual(self.left(), {"new": {}, "old": b"old"})

    def test_a_file_needs_its_own_sync_and_that_of_its_directory(self) -> None:
        file = self.make("new/a", b"text")
        self.disk.sync(file)()
        self.assertEqual(self.left()["new"], {})
        self.disk.sync(self.folder("new"))()
        self.assertEqual(self.left()["new"], {"a": b"text"})
        self.disk.sync(self.folder("new"))()
        file.write(4, b" and more")
        self.assertEqual(self.left()["new"], {"a": b"text"})

    def test_a_sync_keeps_what_was_done_before_it_began(self) -> None:
        file = self.make("new/a", b"one")
        ends = self.disk.sync(file), self.disk.sync(self.folder("new"))
        file.write(3, b" two")
        self.make("new/b")
        for end in ends:
            end()
        self.assertEqual(self.left()["new"], {"a": b"one"})

    def test_a_rename_is_one_change(self) -> None:
        self.disk.make_folder(PurePath("tmp"))
        file = self.make("tmp/a", b"text")
        self.disk.sync(file)()
        self.disk.rename(PurePath("tmp/a"), PurePath("new/a"))
        self.assertEqual(self.left()["new"], {})
        self.disk.sync(self.folder("new"))()
        self.assertEqual(self.left(), {"new": {"a": b"text"}, "old": b"old"})

    def test_removed_and_not_synced_it_is_back(self) -> None:
        self.disk.link(PurePath("old"), PurePath("new/name"))
        self.disk.sync(self.folder("new"))()
        self.disk.remove(PurePath("old"))
        self.assertEqual(self.left(), {"new": {"name": b"old"}, "old": b"old"})
        self.disk.sync(None)()
        self.assertEqual(self.left(), {"new": {"name": b"old"}})

    def test_truncated_and_with_a_hole(self) -> None:
        file = self.disk.find(PurePath("old"))
        assert isinstance(file, File)
        file.truncate(1)
        file.write(3, b"x")
        self.disk.sync(file)()
        self.assertEqual(self.left()["old"], b"o\0\0x")

    def test_by_chance_anything_may_be_left_but_never_less(self) -> None:
        safe = self.make("new/safe", b"safe")
        self.disk.sync(None)()
        safe.write(4, b", more")
        self.make("new/a", b"1")
        self.make("new/b", b"2")
        found = {repr(self.disk.left(random.Random(seed))) for seed in range(200)}
        self.assertTrue(all("safe" in one for one in found))
        self.assertTrue(any("'b': b'2'" in one and "more" in one for one in found))
        self.assertTrue(any("'a': b''" in one for one in found))
        self.assertFalse(any("'b'" in one and "'a'" not in one for one in found))

    def test_there_and_back(self) -> None:
        copy = Path(self.mktemp())
        copy.mkdir()
        write_tree(self.left(), copy)
        self.assertEqual(Disk(copy).left(), self.left())
        self.assertEqual((copy / "old").stat().st_mode & 0o777, 0o600)


class StraceTests(SynchronousTestCase):
    """Lines as strace -f -ttt -yy -xx writes them; here /srv is the root."""

    def setUp(self) -> None:
        place = Path(self.mktemp())
        (place / "new").mkdir(parents=True)
        self.disk = Disk(place)

    def replay(self, *lines: str) -> list[tuple[str, int | None]]:
        return [
            (moment.call, moment.port)
            for moment in replay((f"1 1.5 {line}\n" for line in lines), self.disk, Path("/srv"))
        ]

    @staticmethod
    def text(of: str) -> str:
        return "".join(f"\\x{octet:02x}" for octet in of.encode())

    def opened(self, path: str, flags: str = "O_WRONLY|O_CREAT", descriptor: int = 5) -> str:
        return (
            f'openat(AT_FDCWD<{self.text("/")}>, "{self.text(path)}", {flags}, 0600)'
            f" = {descriptor}<{self.text(path)}>"
        )

    def test_a_file_from_its_making_to_its_place(self) -> None:
        moments = self.replay(
            self.opened("/srv/tmp"),
            f'write(5<{self.text("/srv/tmp")}>, "{self.text("hello")}", 5) = 5',
            f'pwrite64(5<{self.text("/srv/tmp")}>, "{self.text("J")}", 1, 0) = 1',
            f"fdatasync(5<{self.text('/srv/tmp')}>) = 0",
            f"close(5<{self.text('/srv/tmp')}>) = 0",
            f'rename("{self.text("/srv/tmp")}", "{self.text("/srv/new/a")}") = 0',
            self.opened("/srv/new", "O_RDONLY"),
            f"fsync(5<{self.text('/srv/new')}>) = 0",
        )
        self.assertEqual(moments, [("fdatasync", None), ("fsync", None)])
        self.assertEqual(self.disk.left(), {"new": {"a": b"Jello"}})

    def test_threads(self) -> None:
        """What another thread wrote while a sync went on is not kept."""
        lines = [
            f"7 1.0 {self.opened('/srv/new/a')}",
            f'7 1.1 write(5<x>, "{self.text("one")}", 3) = 3',
            "7 1.2 syncfs(5<x> <unfinished ...>",
            f'8 1.3 write(5<x>, "{self.text("two")}", 3) = 3',
            '8 1.4 sendto(9<TCP:[127.0.0.1:25->127.0.0.1:4000]>, "\\x32", 1, 0, NULL, 0 <unfinished ...>',
            "7 1.5 <... syncfs resumed>) = 0",
            "8 1.6 <... sendto resumed>) = 1",
            "7 1.7 +++ exited with 0 +++",
        ]
        found = []
        for moment in replay((line + "\n" for line in lines), self.disk, Path("/srv")):
            found.append((moment.when, moment.port, self.disk.left()))
        self.assertEqual(found, [(1.2, None, {"new": {}}), (1.4, 4000, {"new": {}})])
        self.assertEqual(self.disk.left(), {"new": {"a": b"one"}})

    def test_what_failed_and_what_is_elsewhere_changes_nothing(self) -> None:
        self.replay(
            self.opened("/etc/x"),
            f'write(5<{self.text("/etc/x")}>, "{self.text("hello")}", 5) = 5',
            f'mkdir("{self.text("/srv/new")}", 0700) = -1 EEXIST (File exists)',
        )
        self.disk.sync(None)()
        self.assertEqual(self.disk.left(), {"new": {}})

    def test_a_call_that_nobody_knows(self) -> None:
        with self.assertRaisesRegex(AssertionError, "what truncate does"):
            self.replay(f'truncate("{self.text("/srv/new/a")}", 3) = 0')

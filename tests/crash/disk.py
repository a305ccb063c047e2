"""A disk that keeps only what it was told to keep: what would be on it if the power failed.

What a program does to files is done to a `Disk`, and `Disk.left` tells what a failure would leave. That is what was synced. Of
the rest nothing is left, or, given randomness, whatever the kernel may have written of its own accord: the changes of directories
up to some moment, since journals keep their order; and of each file all, none or any of its writes.

A change of a directory is kept when that directory was synced; that the file was is not enough. A rename is one change, and kept
when either of its directories was synced.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Union

import attrs

#: Names, with octets or what is below.
Tree = Mapping[str, Union[bytes, "Tree"]]


@attrs.define(eq=False)
class File:
    """`changes` in their order: octets that were written at an offset, or a length that was set."""

    changes: list[tuple[int, bytes] | int]
    #: How many of them were synced.
    synced: int = 0
    length: int = 0

    def write(self, offset: int, octets: bytes) -> None:
        """As pwrite(2)."""
        self.changes.append((offset, octets))
        self.length = max(self.length, offset + len(octets))

    def truncate(self, length: int) -> None:
        """As ftruncate(2)."""
        self.changes.append(length)
        self.length = length

    def left(self, chance: random.Random | None) -> bytes:
        """Its content after a failure."""
        share = chance.choice((0.0, 0.5, 1.0)) if chance else 0.0
        data = bytearray()
        for number, change in enumerate(self.changes):
            if number >= self.synced and not (chance and chance.random() < share):
                continue
            if isinstance(change, int):
                data[:] = data[:change].ljust(change, b"\0")
            else:
                offset, octets = change
                data[:] = data.ljust(offset, b"\0")
                data[offset : offset + len(octets)] = octets
        return bytes(data)


@attrs.define(eq=False)
class Folder:
    """A directory as the program sees it."""

    entries: dict[str, File | Folder]


Node = File | Folder


@attrs.define
class _Change:
    """Entries that came (a node) or went (None), together."""

    entries: tuple[tuple[Folder, str, Node | None], ...]
    synced: bool = False


class Disk:
    """What is below one directory. Paths are relative to it."""

    def __init__(self, now: Path) -> None:
        """Begins with what is there; all of it is safe."""
        self.root = Folder({})
        self._changes: list[_Change] = []
        self._load(self.root, now)
        self.sync(None)()

    def _load(self, folder: Folder, path: Path) -> None:
        for entry in path.iterdir():
            if entry.is_dir():
                below = Folder({})
                self._change((folder, entry.name, below))
                self._load(below, entry)
            elif entry.is_file():
                file = File([])
                file.write(0, entry.read_bytes())
                file.synced = 1
                self._change((folder, entry.name, file))

    # --- what the program sees and does ----------------------------------------------------------

    def find(self, path: PurePath) -> Node | None:
        """What has that path."""
        node: Node | None = self.root
        for part in path.parts:
            node = node.entries.get(part) if isinstance(node, Folder) else None
        return node

    def create(self, path: PurePath) -> File:
        """A new, empty file."""
        file = File([])
        self._change(self._entry(path, file))
        return file

    def make_folder(self, path: PurePath) -> None:
        """As mkdir(2)."""
        self._change(self._entry(path, Folder({})))

    def remove(self, path: PurePath) -> None:
        """As unlink(2) and rmdir(2)."""
        self._change(self._entry(path, None))

    def link(self, old: PurePath, new: PurePath) -> None:
        """As link(2)."""
        self._change(self._entry(new, self._found(old)))

    def rename(self, old: PurePath, new: PurePath) -> None:
        """As rename(2)."""
        node = self._found(old)
        self._change(self._entry(old, None), self._entry(new, node))

    def sync(self, node: Node | None) -> Callable[[], None]:
        """Begin to sync a file, a directory or (None) everything. What was done until now is safe when the result is called."""
        files = [node] if isinstance(node, File) else self._files(self.root) if node is None else []
        begun = [(file, len(file.changes)) for file in files]
        changes = [
            change
            for change in self._changes
            if not change.synced and (node is None or any(entry[0] is node for entry in change.entries))
        ]

        def done() -> None:
            for file, count in begun:
                file.synced = max(file.synced, count)
            for change in changes:
                change.synced = True

        return done

    def _files(self, folder: Folder) -> list[File]:
        found: list[File] = []
        for node in folder.entries.values():
            found += self._files(node) if isinstance(node, Folder) else [node]
        return found

    def _found(self, path: PurePath) -> Node:
        node = self.find(path)
        assert node is not None, path
        return node

    def _entry(self, path: PurePath, node: Node | None) -> tuple[Folder, str, Node | None]:
        folder = self.find(path.parent)
        assert isinstance(folder, Folder), path
        return folder, path.name, node

    def _change(self, *entries: tuple[Folder, str, Node | None]) -> None:
        self._changes.append(_Change(entries))
        _apply(entries, lambda folder: folder.entries)

    # --- what a failure leaves -------------------------------------------------------------------

    def left(self, chance: random.Random | None = None) -> Tree:
        """What would be there if the power failed now; by the worst disk, or by chance."""
        until = chance.randint(0, len(self._changes)) if chance else 0
        entries: dict[Folder, dict[str, Node]] = {}
        for number, change in enumerate(self._changes):
            if change.synced or number < until:
                _apply(change.entries, lambda folder: entries.setdefault(folder, {}))
        contents: dict[File, bytes] = {}  # one for all names of a file

        def tree(folder: Folder) -> Tree:
            return {
                name: tree(node) if isinstance(node, Folder) else contents.setdefault(node, node.left(chance))
                for name, node in entries.get(folder, {}).items()
            }

        return tree(self.root)


def _apply(
    entries: tuple[tuple[Folder, str, Node | None], ...], names: Callable[[Folder], dict[str, Node]]
) -> None:
    for folder, name, node in entries:
        if node is None:
            names(folder).pop(name, None)
        else:
            names(folder)[name] = node


def write_tree(tree: Tree, path: Path) -> None:
    """Make it be so; `path` is there."""
    for name, content in tree.items():
        below = path / name
        if isinstance(content, bytes):
            below.touch(mode=0o600)
            below.write_bytes(content)
        else:
            below.mkdir(mode=0o700)
            write_tree(content, below)

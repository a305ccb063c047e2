"""service.watched and what it watches in a server: accounts, aliases and the files they include."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.service.watched import INTERVAL, MAX_TOLD, FileWatch, Unusable, Watched
from twisted_mta.store.stamps import Stamps, look_at
from twisted_mta.store.threads import InlineWorkers
from twisted_mta.testing.world import World

MESSAGE = b"Subject: x\r\n\r\n"


class Text:
    """One file, whose text is in force; "bad" can't be used, and of "half x" only x."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()
        self.stamps: Stamps = look_at([path])
        self.reads = 0
        self.watched = Watched("the texts", lambda: self.stamps, self.read)

    async def read(self) -> Sequence[str]:
        self.reads += 1
        stamps = look_at([self.path])
        text = self.path.read_text()
        if text == "bad":
            raise Unusable(["it is bad"])
        if text == "bug":
            raise ValueError(text)
        self.stamps, self.text = stamps, text.removeprefix("half ")
        return ["half of it"] * (MAX_TOLD + 2) if text.startswith("half ") else []


class FileWatchTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.path = directory / "text"
        self.path.write_text("one")
        self.text = Text(self.path)
        self.clock = Clock()
        self.watch = FileWatch(InlineWorkers(), self.clock)
        self.watch.add(self.text.watched)
        self.watch.start()
        self.addCleanup(self.watch.stop)

    def looks(self, times: int) -> list[str]:
        """The lines of the log at level error."""
        with capturedLogs() as events:
            self.clock.pump([INTERVAL] * times)
        self.flushLoggedErrors()
        return [formatEvent(event) for event in events if event["log_level"] is LogLevel.error]

    def write(self, text: str) -> None:
        """As editors do: another file in its place."""
        new = self.path.with_name("new")
        new.write_text(text)
        new.rename(self.path)

    def test_it_waits_until_a_change_is_complete(self) -> None:
        self.write("two")
        self.looks(1)
        self.assertEqual(self.text.text, "one")
        self.looks(1)
        self.assertEqual(self.text.text, "two")
        self.looks(5)
        self.assertEqual(self.text.reads, 1)

    def test_unless_somebody_says_that_it_is(self) -> None:
        self.write("two")
        self.successResultOf(Deferred.fromCoroutine(self.watch.refresh()))
        self.assertEqual(self.text.text, "two")

    def test_what_is_broken_is_told_once_and_as_long_as_it_lasts(self) -> None:
        self.write("bad")
        self.assertEqual(self.looks(5), ["the texts stay as they were: it is bad"])
        self.assertEqual((self.text.text, self.text.reads), ("one", 1))
        self.assertEqual(self.watch.problems(), ["the texts stay as they were: it is bad"])
        self.write("two")
        self.looks(2)
        self.assertEqual((self.text.text, self.watch.problems()), ("two", []))

    def test_what_is_there_no_more(self) -> None:
        self.path.unlink()
        (line,) = self.looks(5)
        self.assertIn("No such file", line)
        self.assertEqual(self.text.text, "one")

    def test_the_rest_is_taken_where_a_part_is_broken(self) -> None:
        self.write("half two")
        self.assertEqual(len(self.looks(5)), MAX_TOLD + 1)
        self.assertEqual((self.text.text, self.text.reads), ("two", 1))
        self.assertEqual(self.watch.problems()[-1], "and 2 more")
        self.watch.forget()
        self.assertEqual(self.watch.problems(), [])

    def test_a_bug_is_no_end(self) -> None:
        self.write("bug")
        self.assertEqual(self.looks(5), ["the texts stay as they were: an internal error: see the log"])
        self.write("two")
        self.looks(2)
        self.assertEqual(self.text.text, "two")

    @settings(max_examples=100)
    @given(st.lists(st.sampled_from(["a", "bad", "half b", "c", "", "look", "look", "gone"]), max_size=12))
    def test_what_is_in_force_is_always_the_last_good_one(self, steps: list[str]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "text")
            path.write_text("one")
            text, clock = Text(path), Clock()
            watch = FileWatch(InlineWorkers(), clock)
            watch.add(text.watched)
            watch.start()
            good = "one"
            for number, step in enumerate((*steps, "look")):
                if step == "gone":
                    path.unlink(missing_ok=True)
                elif step != "look":
                    new = Path(directory, f"new{number}")
                    new.write_text(step)
                    new.rename(path)
                else:
                    clock.pump([INTERVAL] * 2)
                    now = path.read_text() if path.exists() else "bad"
                    good = now.removeprefix("half ") if now != "bad" else good
                    self.assertEqual(text.text, good)
                    self.assertEqual(bool(watch.problems()), now == "bad" or now.startswith("half "))
            watch.stop()


class ServerTests(SynchronousTestCase):
    """A whole server."""

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / "staff").write_text("alice\n")
        self.world = World(directory, aliases="sales: bob\nall: :include:staff\n")
        self.addCleanup(self.world.close)
        self.world.parts.watch.start()
        self.aliases, self.users = directory / "aliases", directory / "users"
        self.staff = directory / "staff"

    def code(self, name: str) -> int:
        return self.world.send("dave@example.org", [f"{name}@example.test"], MESSAGE, "192.0.2.9").code

    def later(self) -> list[str]:
        self.world.advance(3 * INTERVAL, step=1)
        problems: list[str] = self.world.explain("alice@example.test")["warnings"]
        self.assertEqual(problems, self.world.parts.warnings())
        return problems

    def add(self, path: Path, text: str) -> None:
        path.write_text(path.read_text() + text)

    def test_each_file_is_taken_up(self) -> None:
        self.add(self.users, "new@example.test:!::::::\n")
        self.add(self.aliases, "other: alice\n")
        self.assertEqual([self.code("new"), self.code("other")], [550, 550])
        self.assertEqual(self.later(), [])
        self.assertEqual([self.code("new"), self.code("other")], [250, 250])
        self.add(self.staff, "bob\n")
        self.later()
        self.assertEqual(len(self.world.explain("all@example.test")["places"]), 2)

    def test_aliases_that_are_gone(self) -> None:
        self.aliases.unlink()
        (problem,) = self.later()
        self.assertIn("accounts and aliases stay as they were", problem)
        self.assertIn(str(self.aliases), problem)
        self.assertEqual(self.code("sales"), 250)

    def test_aliases_with_a_line_that_is_none(self) -> None:
        self.aliases.write_text("other: alice\nsales: bob, <\n")
        (problem,) = self.later()
        self.assertIn("aliases:2", problem)
        self.assertEqual([self.code("sales"), self.code("other")], [250, 550])
        self.aliases.write_text("other: alice\nsales: bob\n")
        self.assertEqual(self.later(), [])
        self.assertEqual([self.code("sales"), self.code("other")], [250, 250])

    def test_accounts_are_taken_up_beside_broken_aliases(self) -> None:
        self.add(self.aliases, "nonsense\n")
        self.add(self.users, "new@example.test:!::::::\n")
        self.assertEqual(len(self.later()), 1)
        self.assertEqual([self.code("new"), self.code("sales")], [250, 250])

    def test_accounts_with_a_line_that_is_none(self) -> None:
        self.users.write_text("alice@example.test:!::::::\nbob\n@@:x\n")
        problems = self.later()
        self.assertIn("users:", " ".join(problems))
        self.assertEqual(self.code("bob"), 250)

    def test_accounts_that_are_gone(self) -> None:
        self.users.rename(self.users.with_name("away"))
        self.assertEqual(len(self.later()), 1)
        self.assertEqual(self.code("alice"), 250)
        self.users.with_name("away").rename(self.users)
        self.assertEqual(self.later(), [])

    def test_what_was_wrong_at_the_start_holds_up_nothing(self) -> None:
        self.add(self.aliases, "nonsense\n")
        self.world.restart()
        self.world.parts.watch.start()
        (problem,) = self.later()
        self.assertIn("passed over: ", problem)
        self.aliases.write_text("# one more line\n" + self.aliases.read_text() + "other: alice\n")
        self.assertEqual(len(self.later()), 1)
        self.assertEqual(self.code("other"), 250)

    def test_many_of_them(self) -> None:
        self.aliases.write_text("nonsense\n" * 30)
        self.world.restart()
        problems: Any = self.world.parts.warnings()
        self.assertEqual((len(problems), problems[-1]), (21, "and 10 more"))

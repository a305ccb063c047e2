"""Fault points: the table of them, how they are armed, and that no durable step is without one."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import twisted_mta
from twisted_mta.store import faults
from twisted_mta.store.edits import editing
from twisted_mta.store.faults import DONE, STEPS, Fault, Faults, arm, arm_from, fault

_ROOT = Path(twisted_mta.__file__).parent
_CALL = re.compile(r'\bfault\("([a-z.-]+)"\)')
_DURABLE = re.compile(
    r'self\.syncfs\(|os\.(fsync|rename|replace|unlink|link)\(|\b(lock|fresh|path|name\)|entry\.path\))\.(rename|unlink)\(|execute\("COMMIT"\)'
)
#: Durable steps that may go without: nothing depends on them.
_WITHOUT = {
    "store/edits.py": 1,  # what a killed edit left
    "store/maildir/folder.py": 3,  # the same; a copy across file systems
    "store/maildir/index.py": 1,  # a damaged index
    "store/maildir/keywords.py": 2,  # locks
    "store/maildir/layout.py": 1,  # abandoned files
    "store/queue/salvage.py": 3,  # by hand, and the damaged file is still there
    "store/rules.py": 1,  # a user has no rules any more: the file is there or not
    "store/side_file.py": 1,  # notes and counts, not durable on purpose
    "store/durable.py": 1,  # those who call it have one, or are at the very beginning
    "store/mbox.py": 2,  # dot-locks: one that a crash leaves is known for what it is
    "delivery/copies.py": 1,  # a file in tmp/ that is in the way
}


def _sources() -> list[Path]:
    return [path for path in _ROOT.rglob("*.py") if "testing" not in path.parts]


class PointsTests(SynchronousTestCase):
    def test_table_and_code_have_the_same_names(self) -> None:
        called = [name for path in _sources() for name in _CALL.findall(path.read_text())]
        self.assertEqual(sorted(set(called)), sorted({*STEPS, *DONE}))
        self.assertEqual(STEPS.keys() & DONE.keys(), set())

    def test_each_durable_step_has_a_point(self) -> None:
        """A new one must get a point, or be counted above with the reason."""
        bare: dict[str, int] = {}
        for path in _sources():
            name = str(path.relative_to(_ROOT))
            if not name.startswith(("store/", "delivery/")) or name == "store/faults.py":
                continue
            lines = path.read_text().splitlines()
            for number, line in enumerate(lines):
                code = line.partition("#")[0]
                before = "\n".join(lines[max(number - 4, 0) : number])
                if _DURABLE.search(code) and not _CALL.search(before):
                    bare[name] = bare.get(name, 0) + 1
        self.assertEqual(bare, _WITHOUT)


class FaultTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.addCleanup(arm, None)

    def test_off(self) -> None:
        self.assertFalse(arm_from({}))
        fault("queue.commit")
        self.assertIsNone(faults._armed)

    def test_parse(self) -> None:
        for text, wanted in (
            ("queue.commit", Fault("queue.commit")),
            ("queue.committed:3:kill", Fault("queue.committed", 3)),
            ("body.sync:1+:ENOSPC", Fault("body.sync", 1, True, errno.ENOSPC)),
            ("body.sync:EIO", Fault("body.sync", 1, False, errno.EIO)),
        ):
            self.assertEqual(Fault.parse(text), wanted)

    def test_nonsense(self) -> None:
        for text, why in (
            ("queue.comit", "no point"),
            ("queue.committed:1:EIO", "none that can fail"),
            ("queue.commit:1:boom", "neither kill nor an errno"),
            ("queue commit", "is not POINT"),
        ):
            error = self.assertRaises(ValueError, arm_from, {"MTA_FAULT": text})
            self.assertIn(why, str(error))

    def test_strikes_at_the_pass_asked_for(self) -> None:
        killed: list[str] = []
        plan = Faults(
            [
                Fault("queue.commit", 2, False, errno.EIO),
                Fault("body.sync", 2, True, errno.ENOSPC),
                Fault("queue.begin"),
            ],
            lambda: killed.append("killed"),
        )
        arm(plan)
        fault("queue.commit")
        error = self.assertRaises(OSError, fault, "queue.commit")
        self.assertEqual(error.errno, errno.EIO)
        fault("queue.commit")
        fault("body.sync")
        for _ in range(2):
            self.assertRaises(OSError, fault, "body.sync")
        fault("queue.begin")
        self.assertEqual(killed, ["killed"])
        self.assertEqual(plan.passes, {"queue.commit": 3, "body.sync": 3, "queue.begin": 1})

    def test_armed_by_the_environment(self) -> None:
        self.assertTrue(arm_from({"MTA_FAULT": "maildir.sync:2:EIO,index.commit:EROFS"}))
        fault("maildir.sync")
        self.assertRaises(OSError, fault, "maildir.sync")
        self.assertRaises(OSError, fault, "index.commit")


class EditLeftoverTests(SynchronousTestCase):
    def test_what_a_killed_editor_left_is_removed_by_the_next(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        users = directory / "users"
        users.write_text("alice:x\n")
        kept = [
            directory / ".users.app-passwords.abcdefgh",
            directory / ".users.swp",
            directory / "other.abcdefgh",
        ]
        for path in (directory / ".users.ab_d3fgh", *kept):
            path.touch()
        with editing(users) as lines:
            lines.append("bob:y")
        self.assertEqual(users.read_text(), "alice:x\nbob:y\n")
        self.assertFalse((directory / ".users.ab_d3fgh").exists())
        self.assertTrue(all(path.exists() for path in kept))

"""Each NAME.toml here is wrong, and NAME.expected is what the administrator is told, word for word.

Add a case by adding the two files. The first line of a case says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import unittest
from pathlib import Path

from twisted_mta.admin.main import main
from twisted_mta.config.errors import ConfigErrors
from twisted_mta.config.loader import load

HERE = Path(__file__).parent
CASES = sorted(path.stem for path in HERE.glob("*.toml"))


class BadConfigTests(unittest.TestCase):
    """Run in a copy of this directory, for the permissions that a checkout does not keep."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        for path in HERE.iterdir():
            if path.is_file():
                shutil.copyfile(path, Path(directory.name, path.name))
        self.prefix = f"{os.path.realpath(directory.name)}/"
        Path(directory.name, "users.ok").chmod(0o600)
        before = Path.cwd()
        self.addCleanup(os.chdir, before)
        os.chdir(directory.name)

    def expected(self, name: str) -> str:
        return (HERE / f"{name}.expected").read_text("utf-8")

    def test_there_are_cases_and_each_has_its_text(self) -> None:
        self.assertGreaterEqual(len(CASES), 25)
        self.assertEqual(CASES, sorted(path.stem for path in HERE.glob("*.expected")))

    def test_load_tells_exactly_this(self) -> None:
        for name in CASES:
            with self.subTest(name):
                with self.assertRaises(ConfigErrors) as caught:
                    load(f"{name}.toml")
                self.assertEqual(str(caught.exception).replace(self.prefix, "") + "\n", self.expected(name))

    def test_check_config_tells_the_same_and_exits_with_78(self) -> None:
        for name in CASES:
            with self.subTest(name):
                errors = io.StringIO()
                with contextlib.redirect_stderr(errors):
                    status = main(["check-config", f"{name}.toml"])
                self.assertEqual(status, 78)  # EX_CONFIG of sysexits.h
                self.assertEqual(errors.getvalue().replace(self.prefix, ""), self.expected(name))

    def test_every_case_says_what_is_wrong(self) -> None:
        for name in CASES:
            with self.subTest(name):
                self.assertRegex((HERE / f"{name}.toml").read_text("utf-8"), r"\A# [A-Z].+\.\n")

"""Alias files of other mail systems: what is rewritten, what is told, and that what is written reads as the same."""

from __future__ import annotations

import contextlib
import io
import unittest
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.admin.main import main
from twisted_mta.core.aliases import parse_aliases
from twisted_mta.core.aliases.convert import convert, written

VECTORS = Path(__file__).parent.parent / "vectors" / "aliases"


class ConvertTests(unittest.TestCase):
    def lines(self, text: str) -> list[str]:
        return convert(text, "f").text.splitlines()

    def test_postfix_and_sendmail_aliases(self) -> None:
        text = (
            "# See man 5 aliases\n\npostmaster:    root\nroot : alice,\n  # not bob\n\tcarol\n"
            'decode:  "|/usr/bin/decode -x \\"a b\\""\nlist:  :include:/etc/my list\nbox: /var/mail/a\\ b\n'
        )
        self.assertEqual(
            self.lines(text),
            [
                "# See man 5 aliases",
                "",
                "postmaster: root",
                "root: alice, carol",
                "# not bob",
                'decode: "|/usr/bin/decode -x \\"a b\\""',
                'list: ":include:/etc/my list"',
                'box: "/var/mail/a\\\\ b"',
            ],
        )

    def test_postfix_virtual(self) -> None:
        converted = convert(
            "info@example.org  alice, bob@example.net\n@example.org\tcatchall\nlist@x.test :include:/f\n"
            "  , more\n@old.test @new.test\n",
            "virtual",
        )
        self.assertEqual(
            converted.text,
            "info@example.org: alice, bob@example.net\n@example.org: catchall\nlist@x.test: :include:/f, more\n",
        )
        (problem,) = converted.problems
        self.assertEqual(
            str(problem),
            'virtual:5: a whole domain is mapped by [[domain]], name = "old.test", alias_of = "new.test": '
            "@old.test @new.test",
        )

    def test_a_domain_of_postfix_virtual_is_no_alias(self) -> None:
        converted = convert("Example.org anything\ninfo@example.org alice\na.b carol\n", "virtual")
        self.assertEqual(converted.text, "info@example.org: alice\na.b: carol\n")
        (problem,) = converted.problems
        self.assertEqual(
            str(problem),
            'virtual:1: that mail for Example.org is taken is said in mta.toml: domains = ["Example.org"]: '
            "Example.org anything",
        )
        self.assertEqual(convert("example.org: bob\nx@example.org: bob\n", "aliases").problems, ())

    def test_regular_expressions(self) -> None:
        text = "if /@x/\n/^sales-(.*)@x$/ $1@y\n!/@x$/ z\nendif\nif: alice\nendif: bob\n"
        converted = convert(text, "virtual")
        self.assertEqual(converted.text, "if: alice\nendif: bob\n")
        self.assertEqual([problem.line for problem in converted.problems], [1, 2, 3, 4])
        self.assertTrue(all("[virtual]" in problem.why for problem in converted.problems))

    def test_details_of_a_virtusertable(self) -> None:
        converted = convert(
            "bob+*@x.test bob\nbob++@x.test bob\nbob+a@x.test carol\nc++: d\n", "virtusertable"
        )
        self.assertEqual(converted.text, "bob+a@x.test: carol\nc++: d\n")
        self.assertEqual([problem.line for problem in converted.problems], [1, 2])
        self.assertIn("stands for all details", converted.problems[0].why)

    def test_virtusertable(self) -> None:
        converted = convert(
            'gone@x.test error:nouser "She left, sorry"\nno@x.test error:5.7.1:550 No\n'
            "@x.test %1@y.test\n  more\n%1@z\n",
            "virtusertable",
        )
        self.assertEqual(converted.text, "gone@x.test: :fail: She left, sorry\nno@x.test: :fail: No\n")
        self.assertEqual(
            [str(problem) for problem in converted.problems],
            [
                'virtusertable:3: parts of an address go into [virtual]: "(.*)@x.test" = "{1}@...": @x.test %1@y.test',
                "virtusertable:5: an entry is a name, a colon and targets (name: target, target): %1@z",
            ],
        )

    def test_exim(self) -> None:
        converted = convert(
            "nobody: :blackhole:\nspam: :fail: no, thanks\nold: :unknown:\nlate: :defer: later\n*: bob\n*: %1@b\n*@x.test: bob\n",
            "f",
        )
        self.assertEqual(
            converted.text,
            "nobody: :blackhole:\nspam: :fail: no, thanks\nold: :fail:\nlate: :defer: later\n@x.test: bob\n",
        )
        self.assertEqual([problem.line for problem in converted.problems], [5, 6])
        (problem,) = convert("a: %1@b", "f").problems
        self.assertIn('"(.*)@DOMAIN"', problem.why)

    def test_what_can_not_be_read_is_told_by_line(self) -> None:
        text = (VECTORS / "bad.aliases").read_text("utf-8", "surrogateescape")
        converted = convert(text, "bad")
        self.assertEqual(
            {problem.line for problem in converted.problems},
            {problem.line for problem in parse_aliases(text, "bad").problems} - {24},  # Exim's :unknown:
        )
        self.assertEqual(convert("", "f").text, "")

    def test_what_is_written_reads_as_the_same(self) -> None:
        for name in ("site", "bad"):
            text = (VECTORS / f"{name}.aliases").read_text("utf-8", "surrogateescape")
            self.check(text)

    def check(self, text: str) -> None:
        for entry in parse_aliases(text, "f").entries:
            (again,) = parse_aliases(written(entry), "f").entries
            self.assertEqual(again.name, entry.name)
            self.assertEqual(list(map(str, again.targets)), list(map(str, entry.targets)))

    @given(st.lists(st.text('ab@.:,"\\|/ %#\t', max_size=25), max_size=4))
    @settings(max_examples=150)
    def test_whatever_is_in_the_file(self, lines: list[str]) -> None:
        text = "\n".join(lines)
        converted = convert(text, "f")
        self.check(text)
        again = parse_aliases(converted.text, "f")
        self.assertEqual(again.problems, ())
        for problem in converted.problems:
            self.assertTrue(1 <= problem.line <= len(lines))


class CommandTests(SynchronousTestCase):
    def run_mta(self, *arguments: str) -> tuple[int, str, str]:
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = main(list(arguments))
        return (
            status,
            out.getvalue().replace(f"{self.folder}/", ""),
            errors.getvalue().replace(f"{self.folder}/", ""),
        )

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)
        (self.folder / "good").write_text("a: b\nc: :include:nothere\n")
        (self.folder / "bad").write_text("a: b\nb c: d\n")

    def test_check(self) -> None:
        status, out, errors = self.run_mta(
            "aliases", "check", str(self.folder / "good"), str(self.folder / "bad")
        )
        self.assertEqual(
            (status, out, errors),
            (
                1,
                "good: 2 aliases, 1 lines are wrong\nbad: 1 aliases, 1 lines are wrong\n",
                "good:2: the included file is not used: No such file or directory: nothere\n"
                "bad:2: targets need commas between them, and names with spaces quotes: b c\n",
            ),
        )

    def test_check_of_those_in_use(self) -> None:
        config = self.folder / "mta.toml"
        text = 'hostname = "mx.example.test"\ndomains = ["example.test"]\npostmaster = "a"\nALIASES\n[[listen]]\nrole = "mx"\nendpoint = "tcp:25"\n'
        config.write_text(text.replace("ALIASES", ""))
        status, out, _ = self.run_mta("-c", str(config), "aliases", "check")
        self.assertEqual((status, out), (0, "the configuration names no alias files (aliases)\n"))
        (self.folder / "good").write_text("a: b\n")
        config.write_text(
            text.replace("ALIASES", 'aliases = ["good"]')
            + '[[domain]]\nname = "x.test"\naliases = ["good"]\n'
        )
        status, out, _ = self.run_mta("-c", str(config), "aliases", "check")
        self.assertEqual((status, out), (0, "good: 1 aliases, good\n" * 2))

    def test_import(self) -> None:
        status, out, errors = self.run_mta("aliases", "import", str(self.folder / "bad"))
        self.assertEqual((status, out), (1, "a: b\n"))
        self.assertIn("bad:2: ", errors)
        (self.folder / "good").write_text("x@y.test z\n")
        self.assertEqual(
            self.run_mta("aliases", "import", str(self.folder / "good")), (0, "x@y.test: z\n", "")
        )
        status, _, errors = self.run_mta("aliases", "import", str(self.folder / "nothere"))
        self.assertEqual((status, errors), (66, "mta: nothere: No such file or directory\n"))

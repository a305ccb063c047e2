"""The aliases(5) parser: golden files, bounds, and that nothing makes it raise."""

from __future__ import annotations

import unittest
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_mta.core.address import Address
from twisted_mta.core.aliases import (
    AliasFile,
    AliasProblem,
    Include,
    Name,
    merge,
    parse_aliases,
    parse_include,
    table,
)
from twisted_mta.core.aliases import parse as module

VECTORS = Path(__file__).parent.parent / "vectors" / "aliases"


def shown(parsed: AliasFile) -> list[str]:
    """Entries and problems as the .expected files have them."""
    lines = []
    for entry in parsed.entries:
        name = str(entry.name) if entry.name.local else f"@{entry.name.domain}"
        lines.append(f"{entry.line} {name} -> {' | '.join(map(str, entry.targets))}")
    lines += [
        f"{problem.line} ! {problem.why}" + (f": {problem.text}" if problem.text else "")
        for problem in parsed.problems
    ]
    return lines


def names(text: str) -> list[str]:
    return [str(entry.name) for entry in parse_aliases(text, "aliases").entries]


class GoldenTests(unittest.TestCase):
    def check(self, name: str) -> None:
        text = (VECTORS / f"{name}.aliases").read_text("utf-8", "surrogateescape")
        expected = (VECTORS / f"{name}.expected").read_text("utf-8").splitlines()
        self.assertEqual(shown(parse_aliases(text, name)), expected)

    def test_a_site(self) -> None:
        self.check("site")

    def test_bad_lines_are_told_and_good_ones_kept(self) -> None:
        self.check("bad")


class EntryTests(unittest.TestCase):
    def test_targets_know_their_type_and_their_place(self) -> None:
        (entry,) = parse_aliases("\n\nall: bob, Carol@Example.ORG,\n  :include:more\n", "aliases").entries
        self.assertEqual(entry.source, "aliases:3")
        self.assertEqual(
            entry.targets,
            (
                Name(Address("bob", ""), "aliases:3"),
                Name(Address("Carol", "example.org"), "aliases:3"),
                Include("more", "aliases:3"),
            ),
        )

    def test_line_ends_and_byte_order_marks_of_other_systems(self) -> None:
        self.assertEqual(names("\ufeffa: b\r\nc: d,\r\n e\r\n"), ["a", "c"])

    def test_only_a_line_feed_ends_a_line(self) -> None:
        """A form feed or a Unicode line separator is no way to smuggle in an entry."""
        self.assertEqual(names("a: b\u2028root: eve\n"), [])
        self.assertEqual(names("a: b\x0croot: eve\n"), [])

    def test_quoted_name_with_the_look_of_an_address_is_a_name(self) -> None:
        (entry,) = parse_aliases('"a@b": "c@d"', "aliases").entries
        self.assertEqual(entry.name, Address("a@b", ""))
        self.assertEqual(entry.targets, (Name(Address("c@d", ""), "aliases:1"),))

    def test_commas_within_quotes(self) -> None:
        (entry,) = parse_aliases(r'a: "x,y", "u\"v,w", z', "aliases").entries
        self.assertEqual([str(target) for target in entry.targets], ['"x,y"', r'"u\"v,w"', "z"])

    def test_octets_that_are_not_utf8(self) -> None:
        places = ("jos\udce9: bob", "@jos\udce9.test: bob", "bob: jos\udce9", "bob: :include:\udce9")
        for line in (*places, "bob: /jos\udce9", "bob: |jos\udce9"):
            parsed = parse_aliases(line, "aliases")
            self.assertEqual(parsed.entries, ())
            self.assertEqual(len(parsed.problems), 1)
            str(parsed.problems[0]).encode()  # can be printed

    def test_problem_names_file_line_and_reason(self) -> None:
        (problem,) = parse_aliases("\na: |", "etc/aliases").problems
        self.assertEqual(str(problem), "etc/aliases:2: after the bar there must be a command: |")

    def test_problem_of_the_whole_file(self) -> None:
        self.assertEqual(str(AliasProblem("f", 0, "", "it is gone")), "f: it is gone")


class BoundTests(unittest.TestCase):
    def test_entry_length(self) -> None:
        with mock.patch.object(module, "MAX_ENTRY", 20):
            parsed = parse_aliases("a: bob,\n  carol,\n  dave,\n  erin\nb: bob\n" + "c" * 30, "f")
        self.assertEqual([entry.line for entry in parsed.entries], [5])
        self.assertEqual([problem.line for problem in parsed.problems], [1, 6])
        self.assertIn("longer than 20", parsed.problems[0].why)

    def test_targets(self) -> None:
        with mock.patch.object(module, "MAX_TARGETS", 2):
            parsed = parse_aliases("a: b, c, d, e", "f")
        self.assertEqual(len(parsed.entries[0].targets), 2)
        self.assertEqual([problem.text for problem in parsed.problems], ["d"])

    def test_problems(self) -> None:
        with mock.patch.object(module, "MAX_PROBLEMS", 2):
            parsed = parse_aliases("bad\n" * 5, "f")
        self.assertEqual(len(parsed.problems), 3)
        self.assertEqual(str(parsed.problems[-1]), "f: 3 more lines can't be read")

    def test_quoted_text_is_shortened(self) -> None:
        (problem,) = parse_aliases("x" * 500, "f").problems
        self.assertEqual(problem.text, "x" * 120 + "...")


class IncludeTests(unittest.TestCase):
    def test_lines_commas_and_comments(self) -> None:
        parsed = parse_include("# staff\nalice, bob\n\n  carol@example.org\n:include:more\n", "staff")
        self.assertEqual(
            [(str(target), target.source) for target in parsed.targets],
            [
                ("alice", "staff:2"),
                ("bob", "staff:2"),
                ("carol@example.org", "staff:4"),
                (":include:more", "staff:5"),
            ],
        )
        self.assertEqual(parsed.problems, ())

    def test_bad_targets(self) -> None:
        parsed = parse_include("alice\n|cmd\n/dev/null\nbob", "staff")
        self.assertEqual([str(target) for target in parsed.targets], ["alice", "bob"])
        self.assertEqual([problem.line for problem in parsed.problems], [2, 3])

    def test_bounds(self) -> None:
        with mock.patch.object(module, "MAX_TARGETS", 2), mock.patch.object(module, "MAX_ENTRY", 10):
            parsed = parse_include("a\nthis-line-is-too-long\nb\nc\nd", "staff")
        self.assertEqual([str(target) for target in parsed.targets], ["a", "b"])
        self.assertEqual([problem.line for problem in parsed.problems], [2, 4])


class MergeTests(unittest.TestCase):
    def test_full_address_comes_before_the_name(self) -> None:
        table, problems = merge([parse_aliases("info: a\nInfo@example.test: b\n@example.test: c", "f")])
        self.assertEqual(problems, ())
        found = [table.find(Address("INFO", domain)) for domain in ("example.test", "example.org")]
        self.assertEqual([entry and str(entry.targets[0]) for entry in found], ["b", "a"])
        self.assertIsNone(table.find(Address("x", "example.test")))
        self.assertEqual(list(table.catch_all), ["example.test"])

    def test_quoted_local_part_does_not_reach_another_kind_of_entry(self) -> None:
        table, _ = merge([parse_aliases("root@example.test: eve\n@example.test: eve", "f")])
        self.assertIsNone(table.find(Address("root@example.test", "example.test")))
        self.assertIsNone(table.find(Address("", "example.test")))

    def test_first_entry_of_a_name_stands(self) -> None:
        table, problems = merge([parse_aliases("a: one\nA: two", "f"), parse_aliases("\na: three", "g")])
        self.assertEqual(str(table.bare["a"].targets[0]), "one")
        self.assertEqual(
            [str(problem) for problem in problems],
            [
                "f:2: the name is already an alias at f:1, which is used: A",
                "g:2: the name is already an alias at f:1, which is used: a",
            ],
        )

    def test_clashes_are_bounded(self) -> None:
        with mock.patch.object(table, "MAX_PROBLEMS", 3):
            _, problems = merge([parse_aliases("a: b\n" * 10, "f")])
        self.assertEqual(len(problems), 3)


_noise = st.text(st.sampled_from('ab@.:,"\\|/<># \t\r\n\x00\udce9é[]') | st.characters(), max_size=200)
_name = st.from_regex(r"[a-z][a-z0-9_-]{0,10}(@[a-z]{1,5}\.test)?", fullmatch=True)


class PlainTests(unittest.TestCase):
    def test_the_quick_way_is_taken(self) -> None:
        self.assertEqual(module._plain("Bob"), Address("Bob", ""))
        self.assertEqual(module._plain("Bob_1@xn--a.b-c.test"), Address("Bob_1", "xn--a.b-c.test"))
        for text in ("a.b", "a@B", "a@b-", "a@-b", "a@", "@b", "a" * 65, "a@" + "b" * 254, "a\n", "é"):
            self.assertIsNone(module._plain(text), text)


class PropertyTests(unittest.TestCase):
    @given(st.text("aA0-_.@", max_size=14))
    @settings(max_examples=150)
    def test_the_quick_way_reads_what_the_full_parser_reads(self, text: str) -> None:
        quick = module._plain(text)
        if quick is not None:
            full = Address.parse(text if "@" in text else f"{text}@localhost")
            self.assertEqual(quick, full if "@" in text else Address(full.local, ""))

    @given(_noise)
    @settings(max_examples=200)
    def test_never_raises_and_problems_can_be_printed(self, text: str) -> None:
        parsed = parse_aliases(text, "f")
        included = parse_include(text, "f")
        for problem in (*parsed.problems, *included.problems):
            str(problem).encode()
            self.assertTrue(0 <= problem.line <= text.count("\n") + 1)
        for entry in parsed.entries:
            self.assertTrue(entry.targets)
            self.assertTrue(entry.name.local or entry.name.domain)

    @given(st.dictionaries(_name, st.lists(_name, min_size=1, max_size=5), max_size=10), st.data())
    @settings(max_examples=25)
    def test_reads_what_was_written_however_it_is_laid_out(
        self, wanted: dict[str, list[str]], data: st.DataObject
    ) -> None:
        lines = []
        for name, targets in wanted.items():
            comma = data.draw(st.sampled_from([",", " , ", ",\n\t", ",\n# comment\n\n  "]))
            lines.append(name + data.draw(st.sampled_from([":", " : ", ":\n  "])) + comma.join(targets))
        parsed = parse_aliases("\n".join(lines), "f")
        self.assertEqual(parsed.problems, ())
        self.assertEqual(
            {str(entry.name): [str(target) for target in entry.targets] for entry in parsed.entries}, wanted
        )

"""docs/rfc-index.md holds each RFC and each section that a comment or docstring of the program cites, and no others.

Run as a program, this writes the columns of sections and files anew, and rows with "?" for RFCs that have none yet:

    python -m tests.unit.test_rfc_index
"""

from __future__ import annotations

import re
import unittest
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "twisted_mta"
INDEX = ROOT / "docs" / "rfc-index.md"

# "RFC 5321 §4.1.2", "RFC 5321, 1870 and 2034"; then "§4.2, §6" and "§4 to §7" belong to the RFC named last.
_TOKEN = re.compile(
    r"RFC\s+(?P<rfc>\d{3,5})\b|(?:,|\band)\s+(?P<more>\d{4})\b(?!\s*§)|§\s*(?P<section>\d+(?:\.\d+)*)"
)
#: Characters between a section and the RFC it belongs to, or the section before it.
_NEAR = 120
_ROW = re.compile(r"\|\s*(\d{3,5})\s*\|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|\s*$")


def citations(text: str) -> Iterator[tuple[int, str, int]]:
    """(RFC, section or "", position) of each citation; RFC 0 for a section that belongs to none."""
    rfc, end = 0, -1
    for match in _TOKEN.finditer(text):
        gap = text[end : match.start()] if end >= 0 else ""
        if match["more"]:
            if gap.strip() or not rfc:
                continue  # some other number
            rfc = int(match["more"])
        elif match["rfc"]:
            rfc = int(match["rfc"])
        elif len(gap) > _NEAR or '"""' in gap or not rfc:
            rfc = 0
        end = match.end()
        yield rfc, match["section"] or "", match.start()


def cited() -> tuple[Mapping[int, Mapping[str, str]], list[str]]:
    """RFC -> section (and "" for itself) -> where it is cited first; and the sections that name no RFC."""
    found: dict[int, dict[str, str]] = defaultdict(dict)
    stray = []
    for path in sorted(PROGRAM.rglob("*.py")):
        text = path.read_text("utf-8")
        for rfc, section, position in citations(text):
            place = f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, position) + 1}"
            if not rfc:
                stray.append(f"{place}: §{section} of which RFC?")
                continue
            found[rfc].setdefault("", place)
            found[rfc].setdefault(section, place)
    return found, stray


def indexed() -> Mapping[int, tuple[frozenset[str], tuple[str, ...]]]:
    """RFC -> (sections, files) of its row."""
    rows: dict[int, tuple[frozenset[str], tuple[str, ...]]] = {}
    for line in INDEX.read_text("utf-8").splitlines():
        match = _ROW.match(line)
        if match:
            rfc = int(match[1])
            assert rfc not in rows, f"RFC {rfc} has two rows"
            sections = frozenset(re.findall(r"§(\d+(?:\.\d+)*)", match[3]))
            rows[rfc] = sections, tuple(re.findall(r"`([^`]+)`", match[5]))
    return rows


class CitationTests(unittest.TestCase):
    """The reader of comments, which the other tests rely on."""

    def read(self, text: str) -> list[tuple[int, str]]:
        return [(rfc, section) for rfc, section, _ in citations(text)]

    def test_forms(self) -> None:
        for text, expected in {
            "# RFC 5321 §4.5.2": [(5321, ""), (5321, "4.5.2")],
            "RFC 5321 §4.1.2 and §4.1.3.": [(5321, ""), (5321, "4.1.2"), (5321, "4.1.3")],
            "RFC 3501 §6.3, §6.4.1; RFC 2177": [(3501, ""), (3501, "6.3"), (3501, "6.4.1"), (2177, "")],
            "RFC 5321 §1: ours; §2: so is": [(5321, ""), (5321, "1"), (5321, "2")],
            "RFC 5321, 1870, 2034 and 2920.": [(5321, ""), (1870, ""), (2034, ""), (2920, "")],
            "RFC 5321 has 512, 1024 octets": [(5321, "")],
            "(§4.2 of something)": [(0, "4.2")],
            'RFC 5321."""\n\n"""See §3': [(5321, ""), (0, "3")],
        }.items():
            with self.subTest(text):
                self.assertEqual(self.read(text), expected)


class IndexTests(unittest.TestCase):
    """The table and the code name the same."""

    def test_every_citation_is_in_the_index(self) -> None:
        rows = indexed()
        found, problems = cited()
        for rfc, sections in sorted(found.items()):
            if rfc not in rows:
                problems.append(f"{sections['']}: RFC {rfc} has no row")
                continue
            problems += [
                f"{place}: RFC {rfc} §{section} is not in its row"
                for section, place in sections.items()
                if section and section not in rows[rfc][0]
            ]
        self.assertEqual(problems, [], "add to docs/rfc-index.md:\n" + "\n".join(problems))

    def test_nothing_in_the_index_is_cited_no_more(self) -> None:
        found, _ = cited()
        problems = []
        for rfc, (sections, files) in indexed().items():
            if rfc not in found:
                problems.append(f"RFC {rfc} is cited nowhere")
                continue
            gone = sorted(sections - found[rfc].keys())
            problems += [f"RFC {rfc} §{section} is cited nowhere" for section in gone]
            for file in files:
                path = PROGRAM / file
                if not path.is_file():
                    problems.append(f"RFC {rfc}: there is no file {file}")
                elif rfc not in {number for number, _, _ in citations(path.read_text("utf-8"))}:
                    problems.append(f"RFC {rfc}: {file} does not cite it")
        self.assertEqual(problems, [], "take out of docs/rfc-index.md:\n" + "\n".join(problems))

    def test_rows_are_complete_and_in_order(self) -> None:
        self.assertGreater(len(indexed()), 40)
        self.assertEqual(list(indexed()), sorted(indexed()))
        self.assertNotRegex(
            INDEX.read_text("utf-8"), r"\| *\?? *\|", "a row has no title, or not what is done"
        )


def rewrite() -> None:
    """Bring the columns of sections and files up to date; titles and what is done are for people to write."""
    sections: dict[int, set[str]] = defaultdict(set)
    files: dict[int, dict[str, None]] = defaultdict(dict)
    for path in sorted(PROGRAM.rglob("*.py")):
        for rfc, section, _ in citations(path.read_text("utf-8")):
            if rfc:
                sections[rfc] |= {section} - {""}
                files[rfc][str(path.relative_to(PROGRAM))] = None
    lines = INDEX.read_text("utf-8").splitlines()
    numbers = [number for number, line in enumerate(lines) if _ROW.match(line)]
    old = {int(match[1]): match for line in lines if (match := _ROW.match(line))}
    rows = []
    for rfc in sorted(files):
        title, done = (old[rfc][2].strip(), old[rfc][4].strip()) if rfc in old else ("?", "?")
        in_order = sorted(sections[rfc], key=lambda section: [int(part) for part in section.split(".")])
        cited_sections = ", ".join(f"§{section}" for section in in_order) or "-"
        rows.append(
            f"| {rfc} | {title} | {cited_sections} | {done} | {', '.join(f'`{file}`' for file in files[rfc])} |"
        )
    lines[numbers[0] : numbers[-1] + 1] = rows
    INDEX.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    rewrite()
